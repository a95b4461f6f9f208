//! Writes, reads, leaders that go, nodes that come back, and who votes.

use std::time::{Duration, Instant};

use blixard_core::{BlobHash, NodeId, Settings};
use blixard_node::api::{Client, CreateToken, FaultKind, NodeState};
use blixard_node::config::NodeConfig;
use blixard_node::{Ended, Node, Role};

use crate::bench::{Bench, Host, PATIENCE, fault, import, kernel, metric, node_view, until, until_phase, vm, voters};

const ANYBODY: CreateToken = CreateToken { ttl_ms: None, uses: None };

async fn leader(client: &Client) -> Option<u64> {
    client.cluster(false).await.ok()?.leader.map(|leader| leader.0)
}

/// The leader, once there is one: a host that is very busy may have missed its heartbeats.
async fn the_leader(client: &Client) -> u64 {
    let mut found = None;
    until("a leader", async || {
        found = leader(client).await;
        found.is_some()
    })
    .await;
    found.unwrap()
}

/// Writes until it is taken: a leader may be on its way out.
async fn write(client: &Client) {
    until("a write to be taken", async || client.create_token(&ANYBODY).await.is_ok()).await;
}

/// Waits until all nodes have applied as much, and returns the digest of their state, which must be one.
async fn agreed(clients: &[Client]) -> BlobHash {
    // A node that was just started has yet to apply its log.
    for client in clients {
        until("a node to have caught up", async || client.tokens().await.is_ok()).await;
    }
    let mut digest = None;
    until("all nodes to have applied as much", async || {
        let views = futures::future::join_all(clients.iter().map(|client| client.cluster(true))).await;
        let Ok(views) = views.into_iter().collect::<Result<Vec<_>, _>>() else { return false };
        if views.iter().any(|view| view.applied != views[0].applied) {
            return false;
        }
        for view in &views {
            assert_eq!(view.state_digest, views[0].state_digest, "states differ at index {}", view.applied);
        }
        digest = Some(views[0].state_digest);
        true
    })
    .await;
    digest.unwrap()
}

async fn clients(bench: &Bench, nodes: &[Node]) -> Vec<Client> {
    futures::future::join_all(nodes.iter().map(|node| bench.client(node))).await
}

async fn removed(node: Node, id: u64) {
    assert_eq!(tokio::time::timeout(PATIENCE, node.ended()).await.unwrap(), Ended::Removed(NodeId(id)));
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_through_any_node_is_read_at_once_through_any_other() {
    let bench = Bench::new();
    let (_, nodes, _) = bench.three().await;
    let clients = clients(&bench, &nodes).await;
    for round in 0..4 {
        for writer in 0..3 {
            let made = clients[writer].create_token(&ANYBODY).await.unwrap();
            let reader = &clients[(writer + 1 + round % 2) % 3];
            let tokens = reader.tokens().await.unwrap();
            assert!(tokens.iter().any(|token| token.id == made.token.id), "round {round}, writer {writer}");
        }
    }
    agreed(&clients).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_leader_stops_another_leads_and_writes_go_on() {
    let bench = Bench::new();
    let (configs, mut nodes, client) = bench.three().await;
    for _ in 0..2 {
        let old = the_leader(&client).await;
        let at = nodes.iter().position(|node| node.registry().ends_with(format!("node-{old}-registry.json"))).unwrap();
        nodes.remove(at).shutdown().await;
        let others = clients(&bench, &nodes).await;
        for other in &others {
            write(other).await;
        }
        assert_ne!(leader(&others[0]).await, Some(old));
        nodes.insert(at, bench.start(&configs[usize::try_from(old).unwrap() - 1]).await);
        agreed(&clients(&bench, &nodes).await).await;
        until("all three to vote and answer", async || {
            client.cluster(false).await.is_ok_and(|view| view.voters_reachable == Some(3))
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_leader_dies_no_acknowledged_write_is_lost() {
    let bench = Bench::new();
    let configs = bench.configs(3, &[]);
    let mut hosts = Vec::new();
    for config in &configs {
        hosts.push(Host::start(&bench, config).await);
    }
    let client = bench.client(&hosts[0].node).await;
    until("three voters", async || voters(&client).await == Some(3)).await;
    let first = the_leader(&client).await;
    let mut written = Vec::new();
    for _ in 0..10 {
        written.push(client.create_token(&ANYBODY).await.unwrap().token.id);
    }
    let at = hosts.iter().position(|host| host.config.id.0 == first).unwrap();
    let dead = hosts.remove(at).kill().await;
    let client = bench.client(&hosts[0].node).await;
    let begun = Instant::now();
    write(&client).await;
    // Connections to the dead take longer than this to time out: nobody may wait for that.
    assert!(begun.elapsed() < Duration::from_secs(4), "the first write took {:?}", begun.elapsed());
    let tokens = client.tokens().await.unwrap();
    assert!(written.iter().all(|id| tokens.iter().any(|token| token.id == *id)));
    assert_ne!(leader(&client).await, Some(first));

    // It comes back with what a crash leaves.
    hosts.push(Host::start(&bench, &dead).await);
    let mut clients = Vec::new();
    for host in &hosts {
        clients.push(bench.client(&host.node).await);
    }
    until("all three to vote and answer", async || {
        client.cluster(false).await.is_ok_and(|view| view.voters_reachable == Some(3))
    })
    .await;
    write(&clients[2]).await;
    agreed(&clients).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_nodes_stop_and_start_again_as_they_were() {
    let bench = Bench::new();
    let (configs, nodes, client) = bench.three().await;
    for _ in 0..5 {
        write(&client).await;
    }
    let before = client.cluster(false).await.unwrap();
    let digest = agreed(&clients(&bench, &nodes).await).await;
    futures::future::join_all(nodes.into_iter().map(Node::shutdown)).await;
    let nodes = futures::future::join_all(configs.iter().map(|config| bench.start(config))).await;
    let again = agreed(&clients(&bench, &nodes).await).await;
    let after = bench.client(&nodes[0]).await.cluster(false).await.unwrap();
    assert_eq!(again, digest, "{before:#?} became {after:#?}");
    let ids = |view: &blixard_node::api::ClusterView| {
        view.nodes.iter().map(|node| (node.id, node.endpoint_id, node.addresses.clone())).collect::<Vec<_>>()
    };
    assert_eq!((before.cluster_id, ids(&before)), (after.cluster_id, ids(&after)));
    assert!(after.term > before.term, "terms go on from where they were");
    write(&client).await;
}

/// Takes out of a stopped node's log how far it is committed, which is written after the entries themselves.
fn forget_commit(config: &NodeConfig) {
    let log = redb::Database::open(config.data_dir.join("raft/log.redb")).unwrap();
    let txn = log.begin_write().unwrap();
    let marks: redb::TableDefinition<'_, &str, &[u8]> = redb::TableDefinition::new("marks");
    assert!(txn.open_table(marks).unwrap().remove("committed").unwrap().is_some());
    txn.commit().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_catches_up_with_members_that_came_and_went_while_it_was_down() {
    let bench = Bench::new();
    let (mut configs, mut nodes, client) = bench.three().await;
    nodes.pop().unwrap().shutdown().await;
    configs.push(bench.config(4, &[("peers", &configs[0].bind.to_string())]));
    let fourth = bench.start(&configs[3]).await;
    until("the newcomer to be caught up", async || {
        node_view(&client, 4).await.is_some_and(|node| node.state == NodeState::Ready)
    })
    .await;
    client.remove_node(NodeId(2), false).await.unwrap();
    removed(nodes.pop().unwrap(), 2).await;
    until("the newcomer to vote in its place", async || {
        let role = node_view(&client, 4).await.and_then(|node| node.role);
        matches!(role, Some(Role::Voter | Role::Leader))
    })
    .await;
    // Node 3 has never heard of node 4, which is to be the leader when it comes back.
    let at_fourth = bench.client(&fourth).await;
    until("node 4 to lead", async || {
        if leader(&client).await == Some(4) {
            return true;
        }
        nodes.pop().unwrap().shutdown().await;
        nodes.push(bench.start(&configs[0]).await);
        until("a leader", async || leader(&at_fourth).await.is_some()).await;
        leader(&at_fourth).await == Some(4)
    })
    .await;
    // After a crash a replica may not know what of its log is committed, so that it begins with an empty state.
    forget_commit(&configs[2]);
    let third = bench.start(&configs[2]).await;
    nodes.extend([third, fourth]);
    until("node 3 to be heard from", async || {
        node_view(&client, 3).await.is_some_and(|node| node.state == NodeState::Ready)
    })
    .await;
    let clients = clients(&bench, &nodes).await;
    write(&clients[1]).await;
    agreed(&clients).await;
    let ids: Vec<u64> = clients[1].cluster(true).await.unwrap().nodes.iter().map(|node| node.id.0).collect();
    assert_eq!(ids, [1, 3, 4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_number_of_voters_follows_the_settings() {
    let bench = Bench::new();
    let (_, nodes, client) = bench.cluster(5, &[], 3).await;
    let settings = client.cluster(false).await.unwrap().settings;
    for wanted in [5, 1, 3] {
        client.change_settings(&Settings { voters: wanted, ..settings }).await.unwrap();
        until("that many voters", async || voters(&client).await == Some(usize::from(wanted))).await;
    }
    let refused = client.change_settings(&Settings { voters: 2, ..settings }).await;
    assert_eq!(fault(refused).0, FaultKind::BadRequest);
    agreed(&clients(&bench, &nodes).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_leave_and_are_removed_the_leader_too() {
    let bench = Bench::new();
    let (_, mut nodes, client) = bench.three().await;
    let first = the_leader(&client).await;
    let at = |nodes: &[Node], id: u64| {
        nodes.iter().position(|node| node.registry().ends_with(format!("node-{id}-registry.json"))).unwrap()
    };
    let leaving = nodes.remove(at(&nodes, first));
    assert_eq!(bench.client(&leaving).await.leave(false).await.unwrap(), NodeId(first));
    removed(leaving, first).await;
    let remaining = clients(&bench, &nodes).await;
    until("one voter of the two that are left", async || voters(&remaining[0]).await == Some(1)).await;
    agreed(&remaining).await;

    // The leader again, by a request to the other.
    let second = the_leader(&remaining[0]).await;
    let leaving = nodes.remove(at(&nodes, second));
    let client = bench.client(&nodes[0]).await;
    client.remove_node(NodeId(second), false).await.unwrap();
    removed(leaving, second).await;
    write(&client).await;
    let view = client.cluster(false).await.unwrap();
    assert_eq!((view.nodes.len(), view.voters), (1, 1));
    assert!(fault(client.leave(true).await).1.contains("only node"));
    assert_eq!(fault(client.remove_node(NodeId(9), false).await).0, FaultKind::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_something_to_lose_is_removed_by_force_only() {
    let bench = Bench::new();
    let (_, nodes, client) = bench.cluster(2, &[("cluster.copies", "1")], 1).await;
    let second = bench.client(&nodes[1]).await;
    import(&second, "only", kernel(1, 4096)).await;
    let (kind, text) = fault(client.remove_node(NodeId(2), false).await);
    assert!(kind == FaultKind::Conflict && text.contains("last copy of only"), "{text}");
    import(&client, "base", kernel(2, 4096)).await;
    let mut request = vm("web", "base");
    request.node = Some(NodeId(2));
    client.create_vm(&request).await.unwrap();
    until_phase(&client, "web", "running").await;
    let (kind, text) = fault(client.remove_node(NodeId(2), false).await);
    assert!(kind == FaultKind::Conflict && text.contains("web"), "{text}");
    client.remove_node(NodeId(2), true).await.unwrap();
    assert!(client.images().await.unwrap().iter().all(|image| image.name.as_str() == "base"));
    let lost = until_phase(&client, "web", "pending").await;
    assert_eq!((lost.node, lost.desired.power), (None, blixard_core::Power::Off));
    let driver = bench.driver(2);
    until("the removed node to have ended its vm", async || {
        use blixard_hypervisor::{Driver, VmState};
        driver.list().unwrap().iter().all(|vm| !matches!(vm.state, VmState::Running(_)))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_joiner_catches_up_by_snapshot_when_the_log_is_gone() {
    let bench = Bench::new();
    let small = [("raft.snapshot_entries", "50"), ("raft.keep_entries", "10")];
    let (first, node, client) = bench.one(&small).await;
    for _ in 0..120 {
        client.create_token(&ANYBODY).await.unwrap();
    }
    // Ten entries stay behind a snapshot, so none before this one is left for a joiner.
    until("a snapshot of most of it", async || metric(&first, "blixard_raft_snapshot_index").await > 80).await;
    let peer = first.bind.to_string();
    let joining = [small[0], small[1], ("peers", peer.as_str())];
    let second = bench.config(2, &joining);
    let nodes = vec![node, bench.start(&second).await];
    let both = clients(&bench, &nodes).await;
    let digest = agreed(&both).await;
    assert!(metric(&second, "blixard_raft_snapshot_index").await > 80);
    assert_eq!(both[1].tokens().await.unwrap().len(), 121, "those and the local one");

    // What was installed is there after a restart, and the log goes on from it.
    let [node, joined] = <[Node; 2]>::try_from(nodes).ok().unwrap();
    joined.shutdown().await;
    let nodes = vec![node, bench.start(&second).await];
    let both = clients(&bench, &nodes).await;
    assert_eq!(agreed(&both).await, digest);
    for _ in 0..60 {
        both[1].create_token(&ANYBODY).await.unwrap();
    }
    assert_ne!(agreed(&both).await, digest);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_have_one_voter() {
    let bench = Bench::new();
    let (configs, mut nodes, client) = bench.cluster(2, &[], 1).await;
    let second = bench.client(&nodes[1]).await;
    write(&client).await;
    write(&second).await;
    let view = client.cluster(false).await.unwrap();
    assert_eq!(view.margin, "1 of 1 voters reachable: its loss stops writes");
    // The learner may go without anybody noticing.
    nodes.pop().unwrap().shutdown().await;
    write(&client).await;
    nodes.push(bench.start(&configs[1]).await);
    agreed(&clients(&bench, &nodes).await).await;
    // Without the voter nothing can be written, and that is said.
    nodes.remove(0).shutdown().await;
    until("the learner to miss its leader", async || second.cluster(true).await.is_ok_and(|v| v.leader.is_none()))
        .await;
    assert_eq!(fault(second.create_token(&ANYBODY).await).0, FaultKind::NoLeader);
    assert!(second.cluster(false).await.unwrap().margin.starts_with("no leader: nothing can be written"));
    nodes.insert(0, bench.start(&configs[0]).await);
    write(&second).await;
}
