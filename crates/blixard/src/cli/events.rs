//! `blixard events`: what happened in the cluster, and what happens.

use std::time::Duration;

use blixard_core::{NodeId, VmName};
use blixard_node::api::{Client, ClientError, EventFilter, EventView};
use clap::Args;
use futures::{StreamExt, pin_mut};

use super::connect::NodeAddress;
use super::output::{self, Output, Table};
use super::values;
use crate::failure::{Exit, Failure};

/// How long nobody may answer before following is given up. A cluster that lost its leader has another within seconds.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two tries to find a node that answers.
const AGAIN_AFTER: Duration = Duration::from_millis(500);
/// Room for the longest time and the longest kind of event, so that lines that come one by one stand below each other.
const TIME_WIDTH: usize = 20;
/// See [`TIME_WIDTH`].
const KIND_WIDTH: usize = 16;

/// Which events.
#[derive(Debug, Args)]
pub(super) struct Events {
    /// Go on with what happens from now on, until Ctrl-C.
    #[arg(short, long)]
    follow: bool,
    /// Only what is about this vm.
    #[arg(long, value_name = "NAME")]
    vm: Option<VmName>,
    /// Only what is about this node, or happened on it.
    #[arg(long, value_name = "N", value_parser = values::node_id)]
    node: Option<NodeId>,
    /// Begin with the last COUNT events. The cluster keeps about a thousand.
    #[arg(short = 'n', long = "last", value_name = "COUNT", default_value_t = 50)]
    last: usize,
    #[command(flatten)]
    output: Output,
}

/// Shows what happened.
pub(super) async fn run(node: NodeAddress, events: Events) -> anyhow::Result<()> {
    let Events { follow, vm, node: about, last, output } = events;
    let filter = EventFilter { vm, node: about };
    node.ask(async |client| {
        let mut seen = client.events(&filter, last).await?;
        if !follow {
            return output.show(&seen, |events| table(events), |events| numbers(events));
        }
        // Without a filter the newest is among them. With one, and with nothing to begin with, another has to be asked for.
        let newest = if seen.is_empty() || filter != EventFilter::default() {
            client.events(&EventFilter::default(), 1).await?.last().map_or(0, |event| event.number)
        } else {
            seen.last().map_or(0, |event| event.number)
        };
        // What happened between the two questions comes with the watch.
        seen.retain(|event| event.number <= newest);
        for event in &seen {
            output.show_one_of_many(event, line, |event| event.number)?;
        }
        watch(client, &filter, newest, output).await
    })
    .await
}

/// Shows events as they happen. When the node that tells them is lost, another goes on where it ended: the numbers are those
/// of the whole cluster.
async fn watch(client: &Client, filter: &EventFilter, mut after: u64, output: Output) -> anyhow::Result<()> {
    let mut client = client.with_members().await?;
    let mut silent_since = None;
    loop {
        let why = match client.watch_events(filter, after).await {
            Ok(events) => {
                if silent_since.take().is_some() {
                    output::note("another node answers; going on where the last one ended");
                }
                pin_mut!(events);
                loop {
                    match events.next().await {
                        Some(Ok(event)) => {
                            after = event.number;
                            output.show_one_of_many(&event, line, |event| event.number)?;
                        }
                        Some(Err(error)) => break format!("{error:#}"),
                        None => break "it has stopped".to_owned(),
                    }
                }
            }
            Err(error @ (ClientError::Refused(..) | ClientError::Unreadable(_))) => return Err(error.into()),
            Err(error) => {
                if let ClientError::Fault(_) = error {
                    // One that is cut off from the others answers, and knows nothing new.
                    client.turn_away();
                }
                format!("{:#}", anyhow::Error::from(error))
            }
        };
        let since = *silent_since.get_or_insert_with(|| {
            output::note(&format!("the node that told the events is lost ({}); asking another", output::clean(&why)));
            tokio::time::Instant::now()
        });
        if since.elapsed() >= PATIENCE {
            let message = format!("no node has told of events for {} s: {why}", PATIENCE.as_secs());
            let next_step = "check that the nodes run; `blixard cluster status --stale` asks without a leader";
            return Err(Failure::new(Exit::Unreachable, message).next_step(next_step).into());
        }
        tokio::time::sleep(AGAIN_AFTER).await;
    }
}

fn numbers(events: &[EventView]) -> Vec<u64> {
    events.iter().map(|event| event.number).collect()
}

/// The time in words that sort.
fn time(event: &EventView) -> String {
    /// The last second of the year 9999, beyond which the format has no words.
    const LAST_MS: u64 = 253_402_300_799_000;
    let at = std::time::UNIX_EPOCH + Duration::from_millis(event.at.0.min(LAST_MS));
    humantime::format_rfc3339_seconds(at).to_string()
}

/// What happened, and whose doing it was where that is a person.
fn text(event: &EventView) -> String {
    if event.by.starts_with("node ") || event.by == "nobody" {
        event.text.clone()
    } else {
        format!("{} (by {})", event.text, event.by)
    }
}

/// One line of those that come one by one.
fn line(event: &EventView) -> String {
    let (time, kind, text) = (time(event), output::clean(&event.kind), output::clean(&text(event)));
    format!("{time:TIME_WIDTH$}  {kind:KIND_WIDTH$}  {text}\n")
}

fn table(events: &[EventView]) -> String {
    if events.is_empty() {
        return "nothing has happened\n".to_owned();
    }
    let mut table = Table::new(&["TIME", "EVENT", "WHAT"]);
    for event in events {
        table.row([&time(event), &event.kind, &text(event)]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use blixard_core::UnixMs;

    use super::*;

    fn event(by: &str, text: &str) -> EventView {
        EventView {
            number: 7,
            at: UnixMs(1_700_000_000_500),
            kind: "vm started".to_owned(),
            vm: None,
            image: None,
            node: None,
            by: by.to_owned(),
            text: text.to_owned(),
        }
    }

    #[test]
    fn lines_stand_below_each_other_and_name_people() {
        assert_eq!(line(&event("node 2", "vm a runs")), "2023-11-14T22:13:20Z  vm started        vm a runs\n");
        assert_eq!(line(&event("ada", "x\x1b[2J")), "2023-11-14T22:13:20Z  vm started        x\\u{1b}[2J (by ada)\n");
        assert!(table(&[event("ada", "it")]).ends_with("2023-11-14T22:13:20Z  vm started  it (by ada)\n"));
        assert_eq!(table(&[]), "nothing has happened\n");
        let never = EventView { at: UnixMs(u64::MAX), ..event("ada", "it") };
        assert!(line(&never).starts_with("9999-12-31T23:59:59Z"));
    }
}
