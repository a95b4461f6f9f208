//! Founding, joining, coming back, leaving and being refused.

use blixard_core::NodeId;
use blixard_node::api::CreateToken;
use blixard_node::{Ended, StartError};

use crate::bench::{Bench, until, voters};

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_become_three_voters() {
    let bench = Bench::new();
    let (_, nodes, client) = bench.three().await;
    let view = client.cluster(false).await.unwrap();
    assert_eq!(view.nodes.len(), 3);
    assert_eq!(view.margin, "3 of 3 voters reachable: one loss is tolerated");
    for node in nodes.into_iter().rev() {
        node.shutdown().await;
    }
}
