//! `blixard fetch`: what somebody shares, from anywhere and without a node.

use std::io::{self, IsTerminal, Read};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::Context;
use blixard_node::shares::{self, FetchError, FetchProgress, Fetched, ShareTicket, StagingError};
use blixard_node::transport::TicketError;
use clap::Args;
use tokio::sync::watch;

use super::output;
use super::progress::{ByteBar, Rate};
use super::share::size;
use crate::failure::{Exit, Failure};

/// Between two lines of progress where there is no terminal: enough to see that it moves, and few enough to be read later.
const LINE_EVERY: Duration = Duration::from_secs(5);
/// How often a bar is looked after.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// More than a ticket takes; a longer text is something else.
const TICKET_BYTES_MAX: u64 = 64 << 10;

/// What to fetch.
#[derive(Debug, Args)]
pub(super) struct Fetch {
    /// The ticket that `blixard share` printed, or - to read it from standard input, where nobody sees it in a list of processes.
    #[arg(value_name = "TICKET")]
    ticket: String,
    /// What to call it here; without it, the name under which it was shared, in the folder that you are in.
    #[arg(short = 'o', long = "output", value_name = "PATH")]
    target: Option<PathBuf>,
    /// Replace what is there.
    #[arg(long)]
    force: bool,
}

/// Does what was asked for.
pub(super) async fn run(fetch: Fetch) -> anyhow::Result<()> {
    let Fetch { ticket, target, force } = fetch;
    let ticket: ShareTicket = given_ticket(&ticket)?;
    let progress = watch::Sender::default();
    let shown = show(progress.subscribe());
    let fetched = tokio::select! {
        fetched = shares::fetch(&ticket, target.as_deref(), force, &progress) => fetched,
        () = shown => unreachable!("progress is shown for as long as there is some"),
    };
    let Fetched { path, files, bytes, received_bytes, .. } = fetched.map_err(failure)?;
    let before = match bytes - received_bytes {
        0 => String::new(),
        before => format!(", of which {} were here before", output::bytes(before)),
    };
    let text = format!("{} is fetched: {}{before}", path.display(), size(bytes, files));
    output::print((output::clean(&text) + "\n").as_bytes())
}

/// A ticket as it was given: itself, or - for standard input.
pub(super) fn given_ticket<T: FromStr<Err = TicketError>>(given: &str) -> anyhow::Result<T> {
    let mut text = given.to_owned();
    if given == "-" {
        text.clear();
        io::stdin().take(TICKET_BYTES_MAX).read_to_string(&mut text).context("read the ticket from standard input")?;
    }
    Ok(text.parse().map_err(Failure::usage)?)
}

fn failure(error: FetchError) -> anyhow::Error {
    match &error {
        FetchError::Refused => {
            Failure::new(Exit::Refused, &error).next_step("ask whoever shared it for a new ticket").into()
        }
        FetchError::Unreachable { .. } => Failure::new(Exit::Unreachable, &error)
            .next_step(
                "run the same command again once the node can be reached: what came is kept, and it goes on from there",
            )
            .into(),
        FetchError::Staging(StagingError::Exists(_)) => Failure::new(Exit::Failure, &error)
            .next_step("replace it with --force, or name another place with -o PATH")
            .into(),
        _ => error.into(),
    }
}

/// Shows how far a fetch is, as a bar on a terminal and in lines elsewhere. Never returns.
async fn show(mut progress: watch::Receiver<FetchProgress>) {
    let is_terminal = io::stderr().is_terminal();
    let mut shown = Shown { bar: None, rate: Rate::default(), line_at: None, waits: None };
    loop {
        let now = progress.borrow_and_update().clone();
        if is_terminal {
            shown.on_terminal(&now)
        } else {
            shown.in_lines(&now)
        }
        let _ = tokio::time::timeout(LOOK_EVERY, progress.changed()).await;
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

struct Shown {
    bar: Option<ByteBar>,
    rate: Rate,
    line_at: Option<Instant>,
    waits: Option<String>,
}

impl Shown {
    fn on_terminal(&mut self, now: &FetchProgress) {
        let bar = self.bar.get_or_insert_with(|| ByteBar::start("looks for the node", None));
        if now.name.is_empty() {
            bar.say(&now.waits.as_ref().map_or_else(String::new, |reason| format!("waits: {reason}")));
            return;
        }
        if self.line_at.is_none() {
            bar.end();
            *bar = ByteBar::start(&now.name, Some(now.total_bytes));
            self.line_at = Some(Instant::now());
        }
        bar.at(now.done_bytes, now.found_bytes);
        bar.say(&now.waits.as_ref().map_or_else(|| now.name.clone(), |reason| format!("{} waits: {reason}", now.name)));
    }

    fn in_lines(&mut self, now: &FetchProgress) {
        if self.waits != now.waits {
            if let Some(reason) = &now.waits {
                output::note(&output::clean(&format!("waits: {reason}")));
            }
            self.waits.clone_from(&now.waits);
        }
        if now.name.is_empty() || self.line_at.is_some_and(|at| at.elapsed() < LINE_EVERY) {
            return;
        }
        self.line_at = Some(Instant::now());
        let rate = self.rate.update(Instant::now(), now.done_bytes);
        output::note(&output::clean(&line(now, rate)));
    }
}

/// How far a fetch is, in one line.
fn line(now: &FetchProgress, rate: Option<u64>) -> String {
    let left = now.total_bytes.saturating_sub(now.done_bytes);
    let pace = match rate {
        Some(rate) if rate > 0 => {
            format!(", {}/s, {} left", output::bytes(rate), output::span(left.saturating_mul(1000) / rate))
        }
        _ => String::new(),
    };
    format!("{}: {} of {}{pace}", now.name, output::bytes(now.done_bytes), output::bytes(now.total_bytes))
}

impl Drop for Shown {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.end();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_far_it_is_and_how_long_it_takes() {
        let now = FetchProgress {
            name: "stuff".to_owned(),
            done_bytes: 25 << 20,
            total_bytes: 100 << 20,
            ..FetchProgress::default()
        };
        assert_eq!(line(&now, None), "stuff: 25 MiB of 100 MiB");
        assert_eq!(line(&now, Some(0)), "stuff: 25 MiB of 100 MiB");
        assert_eq!(line(&now, Some(5 << 20)), "stuff: 25 MiB of 100 MiB, 5 MiB/s, 15s left");
    }
}
