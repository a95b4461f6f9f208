//! `blixard vm logs`: what the guest wrote to its serial console.

use std::io::{self, IsTerminal};
use std::time::Duration;

use blixard_core::VmName;
use blixard_node::api::{Client, LogStart};
use clap::Args;

use super::reading::Reading;
use super::screen::Screen;
use super::terminal::LogFilter;

/// More than a node keeps of one console; so this is all of it.
const LOG_BYTES_MAX: usize = 64 << 20;
/// How long the output may take the rest once the log has ended. A pager takes as long as its user.
const FINISH_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

/// Which log, and how much of it.
#[derive(Debug, Args)]
pub(in crate::cli) struct Logs {
    /// The vm's name.
    #[arg(value_name = "NAME")]
    name: VmName,
    /// Go on with what the guest writes from now on, until Ctrl-C.
    #[arg(short, long)]
    follow: bool,
    /// Begin with the last LINES lines instead of the whole log.
    #[arg(long, value_name = "LINES")]
    tail: Option<usize>,
}

/// Prints the log.
pub(super) async fn run(client: &Client, logs: Logs) -> anyhow::Result<()> {
    let Logs { name, follow, tail } = logs;
    let all = LogStart::Last(LOG_BYTES_MAX as u64);
    let Some(lines) = tail else { return show(Reading::begin(client, &name, follow, all).await?).await };
    // A node knows bytes only: the lines are counted here, in all there is.
    let mut whole = Reading::begin(client, &name, false, all).await?;
    let mut content = Vec::new();
    while let Some(piece) = whole.next().await? {
        content.extend_from_slice(&piece);
        anyhow::ensure!(content.len() <= LOG_BYTES_MAX, "the node sends more than a log has: try without --tail");
    }
    let last = &content[start_of_last(&content, lines)..];
    let start = LogStart::At(whole.at().saturating_sub(last.len() as u64));
    show(Reading::begin(client, &name, follow, start).await?).await
}

/// Where the last `lines` lines begin. The last line need not have ended.
fn start_of_last(content: &[u8], lines: usize) -> usize {
    let body = content.strip_suffix(b"\n").unwrap_or(content);
    if lines == 0 {
        return content.len();
    }
    let mut line_ends = body.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1);
    line_ends.nth(lines - 1).unwrap_or(0)
}

async fn show(mut reading: Reading<'_>) -> anyhow::Result<()> {
    // A file or program gets the bytes as they are; a terminal only what is text.
    let mut filter = io::stdout().is_terminal().then(LogFilter::default);
    let mut screen = Screen::start(io::stdout(), LOG_BYTES_MAX)?;
    loop {
        let piece = tokio::select! {
            piece = reading.next() => piece,
            error = screen.failed() => return Err(error),
        };
        match (piece, &mut filter) {
            (Ok(Some(piece)), Some(filter)) => screen.take(&filter.pass(&piece)),
            (Ok(Some(piece)), None) => screen.take(&piece),
            (Ok(None), _) => return screen.finish(FINISH_TIMEOUT).await,
            (Err(error), _) => {
                screen.finish(FINISH_TIMEOUT).await?;
                return Err(error);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_counted_from_the_end() {
        let last = |text: &'static str, lines| &text[start_of_last(text.as_bytes(), lines)..];
        assert_eq!(last("a\nb\nc\n", 1), "c\n");
        assert_eq!(last("a\nb\nc\n", 2), "b\nc\n");
        assert_eq!(last("a\nb\nc", 1), "c");
        assert_eq!(last("a\nb\nc\n", 3), "a\nb\nc\n");
        assert_eq!(last("a\nb\nc\n", 9), "a\nb\nc\n");
        assert_eq!(last("a\n\n\n", 2), "\n\n");
        assert_eq!(last("a\n", 0), "");
        assert_eq!(last("", 5), "");
    }
}
