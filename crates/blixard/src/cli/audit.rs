//! `blixard cluster log`: who asked for which write, and how it ended.

use std::fmt::Write;
use std::time::{Duration, UNIX_EPOCH};

use blixard_node::api::{AuditView, Client};
use clap::Args;
use futures::{StreamExt, pin_mut};

use super::output::{self, Output};
use crate::failure::{Exit, Failure};

/// How much of the log.
#[derive(Debug, Args)]
pub(super) struct Log {
    /// How many of the last writes to show. The cluster keeps 1000.
    #[arg(short = 'n', long, value_name = "N", default_value_t = 20)]
    last: usize,
    /// Go on with what is written from now on, until Ctrl-C.
    #[arg(short, long)]
    follow: bool,
    #[command(flatten)]
    output: Output,
}

/// Shows the log.
pub(super) async fn run(client: &Client, log: Log) -> anyhow::Result<()> {
    let Log { last, follow, output } = log;
    let numbers = |entries: &[AuditView]| entries.iter().map(|entry| entry.number).collect::<Vec<_>>();
    if !follow {
        let entries = client.audit(last).await?;
        return output.show(&entries, |entries| entries.iter().map(line).collect(), |entries| numbers(entries));
    }
    let entries = client.watch_audit(last).await?;
    pin_mut!(entries);
    let mut seen: Option<u64> = None;
    while let Some(entry) = entries.next().await {
        let entry = entry?;
        let missed = seen.map_or(0, |seen| entry.number.saturating_sub(seen + 1));
        if missed > 0 {
            output::note(&format!("{missed} writes came too fast to be shown"));
        }
        seen = Some(entry.number);
        output.show_one_of_many(&entry, line, |entry| entry.number)?;
    }
    Err(Failure::new(Exit::Unreachable, "the node has ended the log").next_step("follow it at another node").into())
}

/// A line for people: when, who, what, of what, and how it ended.
fn line(entry: &AuditView) -> String {
    // A clock beyond the year 9999, which has no such form, is shown as it is.
    let mut at = String::new();
    let since = Duration::from_millis(entry.at.0);
    let shown = UNIX_EPOCH.checked_add(since).map(|at_utc| write!(at, "{}", humantime::format_rfc3339_seconds(at_utc)));
    if !matches!(shown, Some(Ok(()))) {
        at = format!("{} ms", entry.at.0);
    }
    let by = match (&entry.client_name, &entry.client, &entry.node) {
        (Some(name), ..) => name.clone(),
        (None, Some(key), _) => key.short(),
        (None, None, Some(node)) => format!("node {node}"),
        (None, None, None) => "nobody".to_owned(),
    };
    let end = entry.rejection.as_ref().map_or_else(|| "done".to_owned(), |why| format!("rejected: {why}"));
    let deed = entry.deed.to_string();
    output::clean(&format!("{at}  {by:<12}  {deed:<15}  {}: {end}", entry.object)) + "\n"
}

#[cfg(test)]
mod tests {
    use blixard_core::{Deed, EndpointId, NodeId, UnixMs};

    use super::*;

    #[test]
    fn a_line_says_who_did_what_and_holds_no_surprises() {
        let mut entry = AuditView {
            number: 7,
            at: UnixMs(1_700_000_000_000),
            client: Some(EndpointId([1; 32])),
            client_name: Some("ada".into()),
            node: None,
            deed: Deed::CreateVm,
            object: "web image=tiny".into(),
            rejection: None,
        };
        assert_eq!(line(&entry), "2023-11-14T22:13:20Z  ada           create vm        web image=tiny: done\n");
        entry.client_name = Some("a\u{1b}[2Jda".into());
        entry.rejection = Some("a vm named web exists already".into());
        let shown = line(&entry);
        assert!(shown.ends_with("web image=tiny: rejected: a vm named web exists already\n"), "{shown}");
        assert!(!shown.contains('\u{1b}'), "{shown:?}");
        (entry.client_name, entry.client, entry.node) = (None, None, Some(NodeId(3)));
        entry.at = UnixMs(1 << 53);
        assert!(line(&entry).contains("node 3"));
    }
}
