//! `blixard peer`: how a node finds the others.

use blixard_core::NodeId;
use blixard_node::api::PeerView;
use clap::Subcommand;

use super::connect::NodeAddress;
use super::output::{self, Output, Table};
use super::values;

/// What to do about the other nodes.
#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// List the other nodes as one of them finds them: how far they are, what came from them, and how well they served.
    #[command(after_help = "Examples:
  blixard peer list
  blixard peer list --node 3                   as node 3 finds them
  blixard peer list -o json                    with their failures and bytes in both directions

A node begins with a score of 100. It loses some by each failure as a source of images, and nearly all by content that does
not match its hash; below 50 it is asked only for what no other has. What it has lost comes back: half of it in ten minutes.")]
    List {
        /// The node that is to say how it finds the others; without it, the one that is asked.
        #[arg(long, value_name = "N", value_parser = values::node_id)]
        node: Option<NodeId>,
        #[command(flatten)]
        output: Output,
    },
}

/// Does what was asked for.
pub(super) async fn run(node: NodeAddress, verb: Verb) -> anyhow::Result<()> {
    let Verb::List { node: finder, output } = verb;
    let peers = node.ask(async |client| Ok(client.peers(finder).await?)).await?;
    output.show(&peers, |peers| text(peers), |peers| peers.iter().map(|peer| peer.node).collect())
}

fn text(peers: &[PeerView]) -> String {
    let mut table =
        Table::new(&["NODE", "SITE", "SCORE", "PATH", "ROUND TRIP", "CONTENT", "FAILURES", "LIES", "REASON"]);
    table.may_drop(&["LIES", "FAILURES", "PATH", "SITE"]);
    for peer in peers {
        let site = peer.site.as_deref().unwrap_or_default();
        let round_trip = peer.round_trip_us.map(milliseconds).unwrap_or_default();
        let content = output::bytes(peer.content_bytes);
        let reason = peer.reason.as_deref().unwrap_or_default();
        table.row([
            &peer.node,
            &site,
            &peer.score,
            &peer.path.word(),
            &round_trip,
            &content,
            &peer.failures,
            &peer.lies,
            &reason,
        ]);
    }
    table.render()
}

/// Microseconds as milliseconds, with a tenth.
fn milliseconds(us: u64) -> String {
    let tenths = us.saturating_add(50) / 100;
    format!("{}.{}ms", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use blixard_core::EndpointId;
    use blixard_node::api::PeerPath;

    use super::*;

    #[test]
    fn a_row_says_how_a_node_served_and_why() {
        let fine = PeerView {
            node: NodeId(2),
            endpoint_id: EndpointId([2; 32]),
            site: Some("lab".into()),
            score: 100,
            reason: None,
            failures: 0,
            lies: 0,
            content_bytes: 5 << 20,
            path: PeerPath::Direct,
            round_trip_us: Some(1_460),
            sent_bytes: 1,
            received_bytes: 2,
        };
        let bad = PeerView {
            node: NodeId(3),
            site: None,
            score: 20,
            reason: Some("what it sent does not match the hash".into()),
            lies: 1,
            path: PeerPath::None,
            round_trip_us: None,
            ..fine.clone()
        };
        let lines: Vec<Vec<String>> = text(&[fine, bad])
            .lines()
            .map(|line| line.split("  ").filter(|word| !word.is_empty()).map(|word| word.trim().to_owned()).collect())
            .collect();
        assert_eq!(lines[1], ["2", "lab", "100", "direct", "1.5ms", "5 MiB", "0", "0", "-"]);
        assert_eq!(lines[2][..5], ["3", "-", "20", "none", "-"]);
        assert_eq!(lines[2][8], "what it sent does not match the hash");
    }
}
