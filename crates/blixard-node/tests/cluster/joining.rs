//! Founding, joining, coming back, being refused and being removed.

use std::time::{Duration, Instant};

use blixard_core::{ClusterId, NodeId, Rejection, TokenId};
use blixard_hypervisor::{Driver, VmState};
use blixard_node::api::{Client, ClientError, CreateToken, NodeState, bootstrap};
use blixard_node::transport::{PeerAddress, Protocol, Registry, SecretKey, Ticket, TicketSecret, Transport, refusal};
use blixard_node::{Ended, JoinRefusal, Node, StartError};

use crate::bench::{
    Bench, PATIENCE, client, endpoint, free_port, import, kernel, node_view, until, until_phase, vm, voters,
};

const ANYBODY: CreateToken = CreateToken { ttl_ms: None, uses: None };

fn refused(started: Result<Node, StartError>) -> JoinRefusal {
    match started.map(drop) {
        Err(StartError::Refused(refusal)) => refusal,
        other => panic!("it was not refused: {other:?}"),
    }
}

fn rejected(started: Result<Node, StartError>) -> Rejection {
    match refused(started) {
        JoinRefusal::Rejected(rejection) => rejection,
        other => panic!("it was refused for another reason: {other:?}"),
    }
}

fn other_owner(started: Result<Node, StartError>) -> String {
    match started.map(drop) {
        Err(StartError::OtherOwner(text)) => text,
        other => panic!("the data directory was taken: {other:?}"),
    }
}

fn address(node: &Node) -> PeerAddress {
    Registry::read(node.registry()).unwrap().address()
}

/// An endpoint that the cluster knows nothing of.
async fn stranger(node: &Node) -> Transport {
    endpoint(SecretKey::generate(), node).await
}

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_become_three_voters() {
    let bench = Bench::new();
    let (_, nodes, client) = bench.three().await;
    let view = client.cluster(false).await.unwrap();
    assert_eq!(view.nodes.len(), 3);
    assert_eq!(view.margin, "3 of 3 voters reachable: one loss is tolerated");
    assert!(nodes.iter().all(|node| node.cluster() == view.cluster_id));
    for node in nodes.into_iter().rev() {
        node.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_door_tells_a_joiner_whom_to_talk_to() {
    let bench = Bench::new();
    let (config, node, _) = bench.one(&[]).await;
    let facts = bootstrap::fetch(&config.bind.to_string()).await.unwrap();
    assert_eq!(facts.node_id, NodeId(1));
    assert_eq!(facts.cluster_id, node.cluster());
    assert_eq!(facts.p2p_addresses, [config.bind]);
    assert_eq!(facts.address(), address(&node));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_lets_in_whoever_has_it_as_often_as_it_says() {
    let bench = Bench::new();
    let (_, first, client) = bench.one(&[]).await;
    let once = client.create_token(&CreateToken { ttl_ms: Some(3_600_000), uses: Some(1) }).await.unwrap();
    let second = bench.try_start_as("friend", &bench.config(2, &[("join", &once.ticket)])).await.unwrap();
    assert_eq!(second.cluster(), first.cluster());
    let again = bench.try_start_as("friend", &bench.config(3, &[("join", &once.ticket)])).await;
    assert_eq!(rejected(again), Rejection::TokenUsedUp);
    let token = client.tokens().await.unwrap().into_iter().find(|token| token.id == once.token.id).unwrap();
    assert_eq!((token.state.as_str(), token.uses_left), ("used up", Some(0)));
    assert_eq!(client.cluster(false).await.unwrap().nodes.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_may_not_join_is_told_why() {
    let bench = Bench::new();
    let (first, node, client) = bench.one(&[]).await;
    let peer = first.bind.to_string();
    let good = client.create_token(&ANYBODY).await.unwrap();
    let ticket: Ticket = good.ticket.parse().unwrap();
    let joining = async |id: u64, ticket: &Ticket| {
        let mut config = bench.config(id, &[("join", &ticket.to_string())]);
        config.data_dir = bench.path("guest's data");
        bench.try_start_as("guest", &config).await
    };

    let foreign = ClusterId([7; 32]);
    let started = joining(2, &Ticket { cluster: foreign, ..ticket.clone() }).await;
    assert_eq!(refused(started), JoinRefusal::OtherCluster { asked: foreign, found: node.cluster() });

    let secret = ticket.secret.clone().unwrap();
    let unknown = TokenId([9; 8]);
    let made_up = TicketSecret { token: unknown, ..secret.clone() };
    let started = joining(2, &Ticket { secret: Some(made_up), ..ticket.clone() }).await;
    assert_eq!(rejected(started), Rejection::UnknownToken(unknown));

    let wrong = TicketSecret { secret: [0; 32], ..secret };
    let started = joining(2, &Ticket { secret: Some(wrong), ..ticket.clone() }).await;
    assert_eq!(rejected(started), Rejection::WrongSecret);
    let started = joining(2, &Ticket { secret: None, ..ticket.clone() }).await;
    assert_eq!(rejected(started), Rejection::TokenMissing);
    let started = bench.try_start_as("guest", &bench.config(2, &[("peers", &peer)])).await;
    assert_eq!(rejected(started), Rejection::TokenMissing, "the local ticket is the first user's own");
    assert_eq!(rejected(joining(1, &ticket).await), Rejection::NodeIdTaken(NodeId(1)));

    let brief = client.create_token(&CreateToken { ttl_ms: Some(1), uses: None }).await.unwrap();
    until("the token's time to be over", async || {
        let tokens = client.tokens().await.unwrap();
        tokens.iter().any(|token| token.id == brief.token.id && token.state == "expired")
    })
    .await;
    let started = joining(2, &brief.ticket.parse().unwrap()).await;
    assert_eq!(rejected(started), Rejection::TokenExpired);

    client.revoke_token(good.token.id).await.unwrap();
    assert_eq!(rejected(joining(2, &ticket).await), Rejection::TokenRevoked);

    assert!(matches!(joining_garbage(&bench).await, Err(StartError::Failed(_))));
    assert_eq!(client.cluster(false).await.unwrap().nodes.len(), 1, "nobody got in");
}

async fn joining_garbage(bench: &Bench) -> Result<Node, StartError> {
    bench.try_start(&bench.config(2, &[("join", "blixardnonsense")])).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_belongs_to_one_node_of_one_cluster() {
    let bench = Bench::new();
    let (first, node, _) = bench.one(&[]).await;
    let mut other = bench.config(5, &[]);
    other.data_dir = bench.path("other");
    let elsewhere = bench.start(&other).await;
    let foreign = bench.client(&elsewhere).await.create_token(&ANYBODY).await.unwrap();

    let started = bench.try_start(&first).await.map(drop);
    assert!(
        matches!(&started, Err(StartError::Failed(error)) if format!("{error:#}").contains("another node process"))
    );
    node.shutdown().await;
    let mut renamed = first.clone();
    renamed.id = NodeId(4);
    assert!(other_owner(bench.try_start(&renamed).await).contains("--id 1"));
    let mut enticed = first.clone();
    enticed.join = Some(foreign.ticket);
    assert!(other_owner(bench.try_start(&enticed).await).contains(&elsewhere.cluster().to_string()));
    let mut enticed = first.clone();
    enticed.peers = vec![other.bind.to_string()];
    assert!(other_owner(bench.try_start(&enticed).await).contains(&elsewhere.cluster().to_string()));
    // None of this has harmed it.
    bench.start(&first).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_joiner_waits_for_its_peer_and_never_founds_a_cluster() {
    let bench = Bench::new();
    let first = bench.config(1, &[]);
    let (absent, peer) = (format!("127.0.0.1:{}", free_port()), first.bind.to_string());
    let joiner = bench.config(2, &[("peers", &format!("{absent},{peer}"))]);
    let starting = tokio::spawn(Node::start(joiner.clone(), bench.user("user")));
    until("the joiner to say that it waits", async || {
        let answer = bootstrap::fetch(&joiner.bind.to_string()).await.map_err(|error| format!("{error:#}"));
        answer.is_err_and(|error| error.contains("503") && error.contains("waiting to be let into the cluster"))
    })
    .await;
    assert!(!starting.is_finished());
    assert!(!joiner.data_dir.join("cluster.key").exists() && !joiner.data_dir.join("node.json").exists());
    let first = bench.start(&first).await;
    let second = tokio::time::timeout(PATIENCE, starting).await.unwrap().unwrap().unwrap();
    assert_eq!(second.cluster(), first.cluster());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_good_bootstrap_is_used_when_http_is_gone() {
    let bench = Bench::new();
    let (first, node, _) = bench.one(&[]).await;
    let peer = first.bind.to_string();
    let joiner = bench.config(2, &[("peers", &peer)]);
    assert_eq!(rejected(bench.try_start_as("guest", &joiner).await), Rejection::TokenMissing);
    let kept = joiner.data_dir.join("bootstrap.json");
    let text = std::fs::read_to_string(&kept).unwrap();
    assert!(text.contains(&address(&node).endpoint.to_string()));
    // Nobody listens at this address; what was kept for it still says where the node is.
    let gone = format!("127.0.0.1:{}", free_port());
    std::fs::write(&kept, text.replace(&format!("\"peer\": \"{peer}\""), &format!("\"peer\": \"{gone}\""))).unwrap();
    let mut joiner = joiner;
    joiner.peers = vec![gone];
    assert_eq!(bench.start(&joiner).await.cluster(), node.cluster());
}

#[tokio::test(flavor = "multi_thread")]
async fn rejoining_with_the_same_arguments_changes_nothing() {
    let bench = Bench::new();
    let (_, _first, client) = bench.one(&[]).await;
    let token = client.create_token(&CreateToken { ttl_ms: None, uses: Some(2) }).await.unwrap();
    let joiner = bench.config(2, &[("join", &token.ticket)]);
    let second = bench.try_start_as("friend", &joiner).await.unwrap();
    let before = node_view(&client, 2).await.unwrap();
    let uses = async || {
        let tokens = client.tokens().await.unwrap();
        tokens.iter().find(|known| known.id == token.token.id).unwrap().uses_left
    };
    assert_eq!(uses().await, Some(1));
    second.shutdown().await;
    let _second = bench.try_start_as("friend", &joiner).await.unwrap();
    let after = node_view(&client, 2).await.unwrap();
    assert_eq!((before.endpoint_id, before.addresses), (after.endpoint_id, after.addresses));
    assert_eq!(uses().await, Some(1), "it is a member, and members need no ticket");
    assert_eq!(client.cluster(false).await.unwrap().nodes.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_comes_back_at_another_address_is_found_again() {
    let bench = Bench::new();
    let (mut configs, mut nodes, client) = bench.three().await;
    // Both at once: neither knows where the other is now, and together they are a majority.
    for _ in 0..2 {
        nodes.pop().unwrap().shutdown().await;
    }
    for config in &mut configs[1..] {
        config.bind.set_port(free_port());
    }
    for config in &configs[1..] {
        nodes.push(bench.start(config).await);
    }
    until("all three to answer at their new addresses", async || {
        let Ok(view) = client.cluster(false).await else { return false };
        view.nodes
            .iter()
            .zip(&configs)
            .all(|(node, config)| node.state == NodeState::Ready && node.addresses == [config.bind])
    })
    .await;
    // What the others have learnt lasts.
    nodes.remove(0).shutdown().await;
    let client = bench.client(&nodes[0]).await;
    until("the two that moved to go on without the first", async || client.create_token(&ANYBODY).await.is_ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_get_no_further_than_the_handshake() {
    let bench = Bench::new();
    let (_, node, _) = bench.one(&[]).await;
    let stranger = stranger(&node).await;
    for protocol in
        [Protocol::Raft, Protocol::Peer, Protocol::Blobs, Protocol::Documents, Protocol::Values, Protocol::Api]
    {
        let why = match stranger.connect(address(&node).endpoint, protocol).await {
            Ok(connection) => {
                tokio::time::timeout(PATIENCE, connection.closed()).await.unwrap();
                refusal(&connection).unwrap_or_else(|| panic!("{protocol:?}: closed, and not by refusal"))
            }
            Err(error) => error.to_string(),
        };
        assert!(why.contains("this key is not a member") || why.contains("this client key is not known"), "{why}");
    }
    let unknown = client(&bench.user("unknown"), node.registry()).await;
    assert!(matches!(unknown.cluster(false).await, Err(ClientError::Refused(..))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_strangers_malformed_requests_harm_nobody() {
    let bench = Bench::new();
    let (first, node, client) = bench.one(&[]).await;
    let peer = address(&node).endpoint;
    for message in [vec![], vec![0xff; 100], vec![0; 3 << 20]] {
        let stranger = stranger(&node).await;
        let connection = stranger.connect(peer, Protocol::Join).await.unwrap();
        let (mut send, mut recv) = connection.open_bi().await.unwrap();
        // The node may give up on it before all of it is written.
        let _ = send.write_all(&message).await;
        let _ = send.finish();
        let answer = tokio::time::timeout(PATIENCE, recv.read_to_end(1024)).await.unwrap();
        assert!(answer.is_err(), "it was answered: {answer:?}");
    }
    // Some say nothing at all and stay.
    let mut silent = Vec::new();
    for _ in 0..40 {
        let stranger = stranger(&node).await;
        silent.push((stranger.connect(peer, Protocol::Join).await.unwrap(), stranger));
    }
    let begun = Instant::now();
    let joined = bench.start(&bench.config(2, &[("peers", &first.bind.to_string())])).await;
    assert_eq!(joined.cluster(), node.cluster());
    // Less than one of them would be waited for.
    assert!(begun.elapsed() < Duration::from_secs(10), "it took {:?}", begun.elapsed());
    assert!(client.create_token(&ANYBODY).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_node_is_told_so() {
    let bench = Bench::new();
    let (configs, mut nodes, client) = bench.three().await;
    let removed = nodes.remove(1);
    client.remove_node(NodeId(2), false).await.unwrap();
    assert_eq!(tokio::time::timeout(PATIENCE, removed.ended()).await.unwrap(), Ended::Removed(NodeId(2)));
    removed.shutdown().await;
    assert!(matches!(bench.try_start(&configs[1]).await.map(drop), Err(StartError::Removed(NodeId(2)))));

    // One that was down at the time learns of it when it comes back.
    until("the first node to vote alone", async || voters(&client).await == Some(1)).await;
    nodes.remove(1).shutdown().await;
    client.remove_node(NodeId(3), false).await.unwrap();
    match bench.try_start(&configs[2]).await {
        Err(StartError::Removed(NodeId(3))) => {}
        Err(error) => panic!("{error:?}"),
        Ok(node) => {
            assert_eq!(tokio::time::timeout(PATIENCE, node.ended()).await.unwrap(), Ended::Removed(NodeId(3)));
            node.shutdown().await;
        }
    }
    until("the first node to be alone", async || voters(&client).await == Some(1)).await;
    assert_eq!(client.cluster(false).await.unwrap().nodes.len(), 1);

    // With an empty directory it is another node, which may have the old number.
    let mut fresh = configs[2].clone();
    fresh.data_dir = bench.path("fresh");
    let fresh = bench.start(&fresh).await;
    until("the new node 3 to answer", async || {
        node_view(&client, 3).await.is_some_and(|node| node.state == NodeState::Ready)
    })
    .await;
    assert_eq!(address(&fresh).endpoint, node_view(&client, 3).await.unwrap().endpoint_id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_node_ends_its_guests_also_when_it_learns_late() {
    let bench = Bench::new();
    let (configs, mut nodes, client) = bench.cluster(2, &[], 1).await;
    import(&client, "base", kernel(1, 4096)).await;
    let mut request = vm("web", "base");
    request.node = Some(NodeId(2));
    client.create_vm(&request).await.unwrap();
    until_phase(&client, "web", "running").await;
    let driver = bench.driver(2);
    let runs = || driver.list().unwrap().iter().any(|vm| matches!(vm.state, VmState::Running(_)));
    nodes.pop().unwrap().shutdown().await;
    assert!(runs(), "guests go on while their node is down");
    client.remove_node(NodeId(2), true).await.unwrap();

    // It dies between noting its removal and ending its guests.
    let mark = configs[1].data_dir.join("node.json");
    let noted = std::fs::read_to_string(&mark).unwrap().replace("\"removed\": false", "\"removed\": true");
    assert!(noted.contains("true"), "{noted}");
    std::fs::write(&mark, &noted).unwrap();
    assert!(matches!(bench.try_start(&configs[1]).await.map(drop), Err(StartError::Removed(NodeId(2)))));
    assert!(!runs(), "a guest of a removed node runs on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_in_a_hurry_is_connected_when_it_comes_again() {
    let bench = Bench::new();
    let (_, node, _) = bench.one(&[]).await;
    let (stranger, peer) = (stranger(&node).await, address(&node).endpoint);
    // Nobody is dialled in no time at all; an append that waits for less than a heartbeat is no better off on a slow link.
    until("a connection", async || {
        let connecting = stranger.connect(peer, Protocol::Join);
        matches!(tokio::time::timeout(Duration::ZERO, connecting).await, Ok(Ok(_)))
    })
    .await;
    stranger.close().await;
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_leaves_when_any_of_several_nodes_might() {
    let bench = Bench::new();
    let (_, nodes, client) = bench.three().await;
    let key = bench.user("user").client_key().unwrap();
    let peers = nodes.iter().map(address).collect();
    let either = Client::open(key, peers).await.unwrap();
    let answer = either.leave(true).await;
    assert!(matches!(answer, Err(ClientError::Ambiguous(3))), "{answer:?}");
    assert_eq!(client.cluster(false).await.unwrap().nodes.len(), 3);
    for node in nodes {
        node.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_joins_with_as_many_labels_as_it_may_have() {
    let bench = Bench::new();
    let (config, first, client) = bench.one(&[]).await;
    let mut joining = bench.config(2, &[("peers", config.bind.to_string().as_str())]);
    // Characters of four bytes, so that no message is larger.
    let key = |number: usize| format!("{number:02}") + &"\u{1d11e}".repeat(61);
    joining.labels = (0..32).map(|number| (key(number), "\u{1d11e}".repeat(255))).collect();
    let second = bench.start(&joining).await;
    let view = client.cluster(false).await.unwrap();
    assert_eq!(view.nodes.iter().map(|node| node.labels.len()).collect::<Vec<_>>(), [0, 32]);
    for node in [second, first] {
        node.shutdown().await;
    }
}
