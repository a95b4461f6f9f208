//! `blixard vm logs`: what the guest wrote to its serial console.

use std::io::{self, IsTerminal};
use std::time::Duration;

use blixard_core::VmName;
use blixard_node::api::Client;
use clap::Args;
use futures::{StreamExt, pin_mut};

use super::screen::Screen;
use super::terminal::LogFilter;
use crate::failure::{Exit, Failure};

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
    let mut tail_bytes = LOG_BYTES_MAX as u64;
    if let Some(lines) = tail {
        // A node knows bytes only: the lines are counted here, in all there is.
        let content = read(client, &name).await?;
        let last = &content[start_of_last(&content, lines)..];
        if !follow {
            return show(futures::stream::iter([Ok(last.to_vec().into())])).await;
        }
        tail_bytes = last.len() as u64;
    }
    show(client.vm_logs(&name, follow, tail_bytes).await?).await
}

async fn read(client: &Client, name: &VmName) -> anyhow::Result<Vec<u8>> {
    let stream = client.vm_logs(name, false, LOG_BYTES_MAX as u64).await?;
    pin_mut!(stream);
    let mut content = Vec::new();
    while let Some(chunk) = stream.next().await {
        content.extend_from_slice(&chunk.map_err(lost)?);
        anyhow::ensure!(content.len() <= LOG_BYTES_MAX, "the node sends more than a log has: try without --tail");
    }
    Ok(content)
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

async fn show(stream: impl futures::Stream<Item = io::Result<bytes::Bytes>>) -> anyhow::Result<()> {
    // A file or program gets the bytes as they are; a terminal only what is text.
    let mut filter = io::stdout().is_terminal().then(LogFilter::default);
    let mut screen = Screen::start(io::stdout(), LOG_BYTES_MAX)?;
    pin_mut!(stream);
    loop {
        let chunk = tokio::select! {
            chunk = stream.next() => chunk,
            error = screen.failed() => return Err(error),
        };
        match chunk {
            None => return screen.finish(FINISH_TIMEOUT).await,
            Some(Ok(chunk)) => match &mut filter {
                Some(filter) => screen.take(&filter.pass(&chunk)),
                None => screen.take(&chunk),
            },
            Some(Err(error)) => {
                screen.finish(FINISH_TIMEOUT).await?;
                return Err(lost(error));
            }
        }
    }
}

fn lost(error: io::Error) -> anyhow::Error {
    let failure = Failure::new(Exit::Unreachable, format!("the log broke off: {error}"));
    failure
        .next_step("ask again, through another node with --addr if this one is gone: the log is on the vm's node")
        .into()
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
