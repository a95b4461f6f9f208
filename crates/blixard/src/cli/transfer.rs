//! `blixard transfer`: images on their way between nodes, and how fast they may go.

mod text;

use std::time::Duration;

use blixard_core::{ImageName, NodeId};
use blixard_node::api::{Client, LimitsView, NodeTransfersView, SetLimits, TransferOrder};
use clap::{Args, Subcommand};

use super::connect::NodeAddress;
use super::output::{self, Output, Table};
use super::values::{self, Rate};

/// Between two looks of `transfer watch`: as often as rates are measured.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What to do with transfers.
#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// List what is on its way to each node, what comes next, and why something waits or failed.
    #[command(after_help = "Examples:
  blixard transfer list
  blixard transfer list -o json")]
    List {
        #[command(flatten)]
        output: Output,
    },
    /// Show what is on its way whenever it has changed, until nothing is.
    #[command(after_help = "Examples:
  blixard transfer watch
  blixard transfer watch -o json")]
    Watch {
        #[command(flatten)]
        output: Output,
    },
    /// Let an image on its way to a node wait until it is resumed. What has come of it stays, also over a restart.
    #[command(after_help = "Examples:
  blixard transfer pause debian --node 3")]
    Pause(Order),
    /// Let an image go on that was paused, or try one again at once that failed.
    #[command(after_help = "Examples:
  blixard transfer resume debian --node 3")]
    Resume(Order),
    /// Give up an image that `blixard image fetch` asked for. What the cluster itself wants goes on, and can be paused.
    #[command(after_help = "Examples:
  blixard transfer cancel debian --node 3")]
    Cancel(Order),
    /// Show how much each node has sent and received since it started, to and from whom, and what failed.
    #[command(after_help = "Examples:
  blixard transfer stats
  blixard transfer stats -o yaml")]
    Stats {
        #[command(flatten)]
        output: Output,
    },
    /// Limit how fast a node sends and receives image content, or show its limits. They hold at once, and are kept.
    #[command(after_help = "Examples:
  blixard transfer limit                                   show the limits of the node that is asked
  blixard transfer limit --up 20MiB/s --down 50MiB/s
  blixard transfer limit --up 5MiB/s --peer 3 --node 1     what node 1 sends to node 3
  blixard transfer limit --up none --down none")]
    Limit(Limit),
}

/// What is to be changed of a node's queue.
#[derive(Debug, Args)]
pub(super) struct Order {
    /// The image's name.
    #[arg(value_name = "NAME")]
    image: ImageName,
    /// The node that it is on its way to; without it, the one that is asked.
    #[arg(long, value_name = "N", value_parser = values::node_id)]
    node: Option<NodeId>,
    #[command(flatten)]
    output: Output,
}

/// Limits to set.
#[derive(Debug, Args)]
pub(super) struct Limit {
    /// The most it sends, as in 500KiB/s, 20MiB/s or 1GiB/s, or `none` to lift the limit.
    #[arg(long, value_name = "RATE", value_parser = values::rate)]
    up: Option<Rate>,
    /// The most it receives, in the same words.
    #[arg(long, value_name = "RATE", value_parser = values::rate)]
    down: Option<Rate>,
    /// Limit what goes between the node and this other one, rather than all of it.
    #[arg(long, value_name = "N", value_parser = values::node_id)]
    peer: Option<NodeId>,
    /// The node whose limits they are; without it, the one that is asked.
    #[arg(long, value_name = "N", value_parser = values::node_id)]
    node: Option<NodeId>,
    #[command(flatten)]
    output: Output,
}

/// Does what was asked for.
pub(super) async fn run(node: NodeAddress, verb: Verb) -> anyhow::Result<()> {
    let nodes = |views: &Vec<NodeTransfersView>| views.iter().map(|view| view.node).collect();
    node.ask(async |client| match verb {
        Verb::List { output } => {
            output.show(&client.transfers().await?, |views| text::queues(views), |views| text::images(views))
        }
        Verb::Watch { output } => watch(client, output).await,
        Verb::Stats { output } => output.show(&client.transfers().await?, |views| text::stats(views), nodes),
        Verb::Pause(asked) => order(client, asked, TransferOrder::Pause, "waits on").await,
        Verb::Resume(asked) => order(client, asked, TransferOrder::Resume, "goes on to").await,
        Verb::Cancel(asked) => order(client, asked, TransferOrder::Cancel, "is no longer asked for on").await,
        Verb::Limit(Limit { up, down, peer, node, output }) => {
            let mut view = client.limits(node).await?;
            if up.is_some() || down.is_some() {
                let mut limits = standing(&view, peer);
                limits.up_bytes_per_s = up.map_or(limits.up_bytes_per_s, |Rate(rate)| rate);
                limits.down_bytes_per_s = down.map_or(limits.down_bytes_per_s, |Rate(rate)| rate);
                // The node that was asked before: another may answer now, and would take it for its own.
                view = client.set_limits(Some(view.node), &limits).await?;
            }
            output.show(&view, limits_text, |view| vec![view.node])
        }
    })
    .await
}

async fn order(client: &Client, asked: Order, order: TransferOrder, what: &str) -> anyhow::Result<()> {
    let Order { image, node, output } = asked;
    let node = client.order_transfer(&image, node, order).await?;
    let answer = serde_json::json!({ "image": image, "node": node });
    output.show(&answer, |_| format!("image {image} {what} node {node}\n"), |_| vec![image.clone()])
}

/// Shows the queues whenever they look different, until nothing waits or runs.
async fn watch(client: &Client, output: Output) -> anyhow::Result<()> {
    let client = client.with_members().await?;
    let mut shown = None;
    loop {
        let views = client.transfers().await?;
        if shown.as_ref() != Some(&views) {
            output.show_one_of_many(
                &views,
                |views| text::queues(views) + "\n",
                |views| output::list(text::images(views)),
            )?;
        }
        if views.iter().all(|view| view.transfers.is_empty()) {
            return Ok(());
        }
        shown = Some(views);
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// The limits as they are, to be changed.
fn standing(view: &LimitsView, peer: Option<NodeId>) -> SetLimits {
    let (up_bytes_per_s, down_bytes_per_s) = match peer {
        None => (view.up_bytes_per_s, view.down_bytes_per_s),
        Some(_) => {
            let known = view.peers.iter().find(|limits| limits.peer == peer);
            known.map_or((None, None), |limits| (limits.up_bytes_per_s, limits.down_bytes_per_s))
        }
    };
    SetLimits { peer, up_bytes_per_s, down_bytes_per_s }
}

fn rate_text(bytes_per_s: Option<u64>) -> String {
    bytes_per_s.map_or_else(|| "none".to_owned(), |rate| format!("{}/s", output::bytes(rate)))
}

fn limits_text(view: &LimitsView) -> String {
    let mut table = Table::new(&["NODE", "PEER", "SENDS AT MOST", "RECEIVES AT MOST"]);
    let (up, down) = (rate_text(view.up_bytes_per_s), rate_text(view.down_bytes_per_s));
    table.row([&view.node, &"all", &up, &down]);
    for limits in &view.peers {
        let peer = limits.peer.map_or_else(|| limits.endpoint_id.short(), |peer| peer.to_string());
        table.row([&view.node, &peer, &rate_text(limits.up_bytes_per_s), &rate_text(limits.down_bytes_per_s)]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use blixard_core::EndpointId;
    use blixard_node::api::PeerLimitsView;

    use super::*;

    #[test]
    fn a_limit_is_changed_beside_those_that_stand() {
        let peer = PeerLimitsView {
            peer: Some(NodeId(3)),
            endpoint_id: EndpointId([3; 32]),
            up_bytes_per_s: Some(5 << 20),
            down_bytes_per_s: None,
        };
        let view =
            LimitsView { node: NodeId(1), up_bytes_per_s: None, down_bytes_per_s: Some(50 << 20), peers: vec![peer] };
        let rates = |limits: SetLimits| (limits.up_bytes_per_s, limits.down_bytes_per_s);
        assert_eq!(rates(standing(&view, None)), (None, Some(50 << 20)));
        assert_eq!(rates(standing(&view, Some(NodeId(3)))), (Some(5 << 20), None));
        assert_eq!(rates(standing(&view, Some(NodeId(2)))), (None, None));
        let text = limits_text(&view);
        let rows: Vec<Vec<&str>> =
            text.lines().map(|line| line.split("  ").filter(|word| !word.is_empty()).collect()).collect();
        let words = |row: &Vec<&str>| row.iter().map(|word| word.trim()).collect::<Vec<_>>().join("|");
        assert_eq!(words(&rows[1]), "1|all|none|50 MiB/s", "{text}");
        assert_eq!(words(&rows[2]), "1|3|5 MiB/s|none", "{text}");
    }
}
