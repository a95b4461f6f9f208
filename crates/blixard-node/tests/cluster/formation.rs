//! Founding, joining, coming back, leaving and being refused.

use crate::bench::Bench;

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
