//! Image content on its way between nodes: how fast it may go, and what becomes of it.

use std::time::Duration;

use blixard_core::{ImageName, NodeId};
use blixard_node::api::{
    Client, FaultKind, NodeTransfersView, PeerLimitsView, QueuedState, QueuedView, SetLimits, TransferOrder,
};

use crate::bench::{Bench, fault, import, kernel, metric, until, until_phase, vm};

const MIB: u64 = 1 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn limits_of_any_node_are_set_through_any_node_and_kept() {
    let bench = Bench::new();
    let (configs, mut nodes, client) = bench.cluster(2, &[], 1).await;
    let none = client.limits(None).await.unwrap();
    assert_eq!((none.node, none.up_bytes_per_s, none.peers.len()), (NodeId(1), None, 0));

    let limits = SetLimits { peer: None, up_bytes_per_s: Some(20 * MIB), down_bytes_per_s: Some(50 * MIB) };
    let set = client.set_limits(Some(NodeId(2)), &limits).await.unwrap();
    assert_eq!((set.node, set.up_bytes_per_s, set.down_bytes_per_s), (NodeId(2), Some(20 * MIB), Some(50 * MIB)));
    let of_peer = SetLimits { peer: Some(NodeId(1)), up_bytes_per_s: Some(MIB), down_bytes_per_s: None };
    client.set_limits(Some(NodeId(2)), &of_peer).await.unwrap();
    assert_eq!(client.limits(Some(NodeId(1))).await.unwrap(), none, "those of another node are its own");
    let both = client.limits(Some(NodeId(2))).await.unwrap();
    let endpoint_id = both.peers[0].endpoint_id;
    let peer = PeerLimitsView { peer: Some(NodeId(1)), endpoint_id, up_bytes_per_s: Some(MIB), down_bytes_per_s: None };
    assert_eq!((both.up_bytes_per_s, both.peers.as_slice()), (Some(20 * MIB), std::slice::from_ref(&peer)));

    nodes.pop().unwrap().shutdown().await;
    let (kind, said) = fault(client.limits(Some(NodeId(2))).await);
    assert!(kind == FaultKind::Unavailable && said.contains("node 2 does not answer"), "{said}");
    nodes.push(bench.start(&configs[1]).await);
    until("node 2 to answer", async || client.limits(Some(NodeId(2))).await.is_ok()).await;
    assert_eq!(client.limits(Some(NodeId(2))).await.unwrap(), both);
    client.set_limits(Some(NodeId(2)), &SetLimits { peer: Some(NodeId(1)), ..SetLimits::default() }).await.unwrap();
    let lifted = client.set_limits(Some(NodeId(2)), &SetLimits::default()).await.unwrap();
    assert_eq!((lifted.up_bytes_per_s, lifted.down_bytes_per_s, lifted.peers.len()), (None, None, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_that_make_no_sense_are_refused() {
    let bench = Bench::new();
    let (_, _node, client) = bench.one(&[]).await;
    let set = async |node: Option<u64>, limits: SetLimits| fault(client.set_limits(node.map(NodeId), &limits).await);
    let (kind, said) = set(None, SetLimits { up_bytes_per_s: Some(1), ..SetLimits::default() }).await;
    assert!(kind == FaultKind::BadRequest && said.contains("at least 131072 bytes"), "{said}");
    let (kind, said) = set(None, SetLimits { peer: Some(NodeId(1)), ..SetLimits::default() }).await;
    assert!(kind == FaultKind::Conflict && said.contains("name another node"), "{said}");
    assert_eq!(set(None, SetLimits { peer: Some(NodeId(9)), ..SetLimits::default() }).await.0, FaultKind::NotFound);
    assert_eq!(set(Some(9), SetLimits::default()).await.0, FaultKind::NotFound);
}

/// Long on its way at the lowest limit.
const CONTENT_BYTES: usize = 12 << 20;

async fn of_node(client: &Client, node: u64) -> NodeTransfersView {
    let views = client.transfers().await.unwrap();
    views.into_iter().find(|view| view.node == NodeId(node)).unwrap()
}

/// The only thing on its way to a node.
async fn on_its_way(client: &Client, node: u64) -> Option<QueuedView> {
    let mut transfers = of_node(client, node).await.transfers;
    assert!(transfers.len() <= 1, "{transfers:?}");
    transfers.pop()
}

async fn holders(client: &Client, image: &ImageName) -> Vec<NodeId> {
    client.image(image).await.unwrap().holders
}

/// Limits what a node receives to the least there is, or lifts that.
async fn slow(client: &Client, node: u64, is_slow: bool) {
    let limits = SetLimits { down_bytes_per_s: is_slow.then_some(128 << 10), ..SetLimits::default() };
    client.set_limits(Some(NodeId(node)), &limits).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operators_request_is_fetched_paused_resumed_and_cancelled_over_restarts() {
    let bench = Bench::new();
    let (configs, mut nodes, client) = bench.cluster(2, &[("cluster.copies", "1")], 1).await;
    let big = import(&client, "big", kernel(1, CONTENT_BYTES)).await.name;
    let second = Some(NodeId(2));
    let order = async |order| client.order_transfer(&big, second, order).await;
    for unknown in [TransferOrder::Pause, TransferOrder::Resume, TransferOrder::Cancel] {
        let (kind, said) = fault(order(unknown).await);
        assert!(kind == FaultKind::NotFound && said.contains("not on its way to node 2"), "{said}");
    }
    let nothing = "nothing".parse().unwrap();
    assert_eq!(fault(client.order_transfer(&nothing, second, TransferOrder::Fetch).await).0, FaultKind::NotFound);

    slow(&client, 2, true).await;
    assert_eq!(order(TransferOrder::Fetch).await.unwrap(), NodeId(2));
    until("some of it to be there", async || {
        on_its_way(&client, 2).await.is_some_and(|it| it.state == QueuedState::Running && it.sources == 1)
    })
    .await;
    let running = on_its_way(&client, 2).await.unwrap();
    assert_eq!(
        (&running.image, running.priority.as_str(), running.bytes_total),
        (&big, "operator", CONTENT_BYTES as u64)
    );
    assert_eq!((running.holders.as_slice(), running.failures), (&[NodeId(1)][..], 0));
    order(TransferOrder::Pause).await.unwrap();
    let is = async |state| on_its_way(&client, 2).await.is_some_and(|it| it.state == state);
    assert!(is(QueuedState::Paused).await);

    nodes.pop().unwrap().shutdown().await;
    let silent = of_node(&client, 2).await.silent.unwrap();
    assert!(silent.contains("node 2 does not answer"), "{silent}");
    nodes.push(bench.start(&configs[1]).await);
    until("it to be paused still", async || is(QueuedState::Paused).await).await;
    order(TransferOrder::Resume).await.unwrap();
    until("it to go on", async || is(QueuedState::Running).await).await;
    order(TransferOrder::Cancel).await.unwrap();
    assert_eq!(on_its_way(&client, 2).await, None);
    nodes.pop().unwrap().shutdown().await;
    nodes.push(bench.start(&configs[1]).await);
    until("node 2 to answer", async || of_node(&client, 2).await.silent.is_none()).await;
    assert_eq!(holders(&client, &big).await, [NodeId(1)]);

    slow(&client, 2, false).await;
    order(TransferOrder::Fetch).await.unwrap();
    until("node 2 to hold it", async || holders(&client, &big).await.len() == 2).await;
    assert_eq!(order(TransferOrder::Fetch).await.unwrap(), NodeId(2), "it is there, and that is what was asked for");
    until("the request to be settled", async || on_its_way(&client, 2).await.is_none()).await;
    let stats = of_node(&client, 2).await.stats;
    let from_first = stats.peers.iter().find(|peer| peer.peer == Some(NodeId(1))).unwrap();
    assert!(from_first.received_bytes > 0 && stats.done == 1 && stats.fetched_bytes["operator"] > 0, "{stats:?}");
    let sent = of_node(&client, 1).await.stats.peers[0].sent_bytes;
    assert!(sent >= CONTENT_BYTES as u64, "{sent}");
    assert!(metric(&configs[1], "blixard_image_fetched_bytes_total{priority=\"operator\"}").await > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_cluster_wants_can_be_paused_and_not_cancelled() {
    let bench = Bench::new();
    let (_, nodes, client) = bench.cluster(2, &[("cluster.copies", "1")], 1).await;
    let big = import(&client, "big", kernel(1, CONTENT_BYTES)).await.name;
    slow(&client, 2, true).await;
    let mut wanted = vm("web", "big");
    wanted.node = Some(NodeId(2));
    client.create_vm(&wanted).await.unwrap();
    until("it to be on its way", async || on_its_way(&client, 2).await.is_some_and(|it| it.priority == "vm")).await;
    // Asked for at the node itself.
    let second = bench.client(&nodes[1]).await;
    let (kind, said) = fault(second.order_transfer(&big, None, TransferOrder::Cancel).await);
    assert!(kind == FaultKind::Conflict && said.contains("a vm there waits for it"), "{said}");
    assert_eq!(second.order_transfer(&big, None, TransferOrder::Pause).await.unwrap(), NodeId(2));
    let waits = crate::bench::until_vm(&client, "web", "told that it is paused", |vm| {
        vm.reason.as_ref().is_some_and(|reason| reason.contains("blixard transfer resume"))
    })
    .await;
    assert!(waits.retrying, "{waits:?}");
    slow(&client, 2, false).await;
    second.order_transfer(&big, None, TransferOrder::Resume).await.unwrap();
    until_phase(&client, "web", "running").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_does_not_come_is_an_event_once_and_listed_with_the_reason() {
    let bench = Bench::new();
    let (configs, mut nodes, client) = bench.cluster(2, &[("cluster.copies", "1")], 1).await;
    let second = bench.client(&nodes[1]).await;
    let big = import(&second, "big", kernel(1, 4096)).await.name;
    nodes.pop().unwrap().shutdown().await;
    client.order_transfer(&big, Some(NodeId(1)), TransferOrder::Fetch).await.unwrap();
    until("it to fail twice", async || on_its_way(&client, 1).await.is_some_and(|it| it.failures >= 2)).await;
    let failed = on_its_way(&client, 1).await.unwrap();
    assert_eq!(failed.failure_class.as_deref(), Some("sources"), "{failed:?}");
    assert!(failed.failure.is_some_and(|reason| reason.contains("no source delivers")), "it says why");
    assert!(of_node(&client, 1).await.stats.failed["sources"] >= 2);
    let told = async || {
        let events = client.events(&Default::default(), 1000).await.unwrap();
        events.into_iter().filter(|event| event.kind == "image failing").collect::<Vec<_>>()
    };
    until("it to be told", async || !told().await.is_empty()).await;
    let events = told().await;
    assert_eq!((events.len(), events[0].node, events[0].image.as_ref()), (1, Some(NodeId(1)), Some(&big)));
    assert!(events[0].text.ends_with("(it is tried again)"), "{}", events[0].text);
    nodes.push(bench.start(&configs[1]).await);
    until("node 1 to hold it", async || holders(&client, &big).await.len() == 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_deleted_while_it_is_fetched_goes_from_where_it_came_to() {
    let bench = Bench::new();
    let (_, _nodes, client) = bench.cluster(2, &[("cluster.copies", "1")], 1).await;
    let big = import(&client, "big", kernel(1, CONTENT_BYTES)).await.name;
    slow(&client, 2, true).await;
    let second = Some(NodeId(2));
    client.order_transfer(&big, second, TransferOrder::Fetch).await.unwrap();
    until("some of it to be there", async || on_its_way(&client, 2).await.is_some_and(|it| it.bytes_done > 0)).await;
    client.delete_image(&big).await.unwrap();
    until("nothing to be on its way", async || on_its_way(&client, 2).await.is_none()).await;
    let (kind, said) = fault(client.order_transfer(&big, second, TransferOrder::Fetch).await);
    assert_eq!(kind, FaultKind::NotFound, "{said}");
    for node in [1, 2] {
        let data = bench.path(&format!("data{node}")).join("images/data");
        until("its bytes to be gone", async || {
            let files = std::fs::read_dir(&data).unwrap().flatten();
            files.filter_map(|file| file.metadata().ok()).map(|meta| meta.len()).sum::<u64>() < MIB
        })
        .await;
    }
    // The same content under the same name is a new image, which comes whole.
    slow(&client, 2, false).await;
    import(&client, "big", kernel(1, CONTENT_BYTES)).await;
    client.order_transfer(&big, second, TransferOrder::Fetch).await.unwrap();
    until("node 2 to hold it", async || holders(&client, &big).await.len() == 2).await;
    until("the request to be settled", async || on_its_way(&client, 2).await.is_none()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_late_is_given_up_listed_with_the_reason_and_told_also_after_a_restart() {
    let bench = Bench::new();
    let (configs, mut nodes, client) = bench.cluster(2, &[("cluster.copies", "1")], 1).await;
    let big = import(&client, "big", kernel(1, CONTENT_BYTES)).await.name;
    let second = Some(NodeId(2));
    slow(&client, 2, true).await;
    // The node is not there when the time is up; what it goes on with knows of it.
    client.fetch_image(&big, second, Some(Duration::from_secs(3))).await.unwrap();
    until("it to be on its way", async || on_its_way(&client, 2).await.is_some()).await;
    let asked_at = std::time::Instant::now();
    nodes.pop().unwrap().shutdown().await;
    until("the deadline to pass", async || asked_at.elapsed() > Duration::from_secs(3)).await;
    nodes.push(bench.start(&configs[1]).await);
    until("it to be given up", async || {
        let found = of_node(&client, 2).await.transfers;
        found.first().is_some_and(|it| it.state == QueuedState::Failed)
    })
    .await;
    let late = on_its_way(&client, 2).await.unwrap();
    let said = (late.failure_class.as_deref(), late.retry_in_ms, late.deadline_in_ms);
    assert_eq!(said, (Some("deadline"), None, None), "{late:?}");
    until("it to be told", async || {
        let events = client.events(&Default::default(), 1000).await.unwrap();
        events.iter().any(|event| event.kind == "image failing" && event.text.contains("the deadline passed"))
    })
    .await;
    assert!(metric(&configs[1], "blixard_transfer_failures_total{class=\"deadline\"}").await >= 1);
    assert_eq!(holders(&client, &big).await, [NodeId(1)]);

    // Asked for anew it comes, and then nothing is left of the deadline.
    slow(&client, 2, false).await;
    client.fetch_image(&big, second, Some(Duration::from_secs(3600))).await.unwrap();
    until("node 2 to hold it", async || holders(&client, &big).await.len() == 2).await;
    until("the request to be settled", async || on_its_way(&client, 2).await.is_none()).await;
    let (kind, said) = fault(client.fetch_image(&big, second, Some(Duration::from_secs(1 << 40))).await);
    assert!(kind == FaultKind::BadRequest && said.contains("a deadline is between"), "{said}");
}
