//! Callers that are slow, endless, oversized or too many: each is cut off, and the others are served all the while.

use std::net::SocketAddr;
use std::time::Duration;

use blixard_core::ClientRole;
use blixard_node::Node;
use blixard_node::api::{Client, GrantClient};
use blixard_node::config::{HTTP_PORT_OFFSET, NodeConfig};
use blixard_node::transport::{
    BUSY, Connection, Protocol, RecvStream, Registry, SecretKey, SendStream, Transport, load_or_create_key,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::bench::{Bench, PATIENCE, endpoint, import, kernel, until};

/// How long an offender may last. The node's own limits are 2 to 30 s.
const CUT_WITHIN: Duration = Duration::from_secs(120);
/// How often a slow sender sends a byte: often enough that only its slowness, and no idle time-out, ends it.
const DRIP: Duration = Duration::from_millis(500);
/// More than any head of a request may be.
const HUGE_BYTES: usize = 4 << 20;

async fn connect(transport: &Transport, node: &Node, protocol: Protocol) -> Connection {
    let peer = Registry::read(node.registry()).unwrap().endpoint_id;
    transport.connect(peer, protocol).await.unwrap()
}

/// A client with a role, as its key.
async fn granted(admin: &Client, role: ClientRole) -> SecretKey {
    let key = SecretKey::generate();
    admin.grant_client(key.id(), &GrantClient { role, name: None }).await.unwrap();
    key
}

/// Sends `head`, then `piece` again and again, until the node wants no more of it. What it answered, if it did.
async fn send_until_cut(connection: Connection, head: Vec<u8>, piece: Vec<u8>, pause: Duration) -> Vec<u8> {
    let (send, recv): (SendStream, RecvStream) = connection.open_bi().await.unwrap();
    pump(send, recv, head, piece, pause).await
}

async fn pump(
    mut send: impl AsyncWriteExt + Unpin,
    mut recv: impl AsyncReadExt + Unpin,
    head: Vec<u8>,
    piece: Vec<u8>,
    pause: Duration,
) -> Vec<u8> {
    let sending = async {
        if send.write_all(&head).await.is_err() {
            return;
        }
        while send.write_all(&piece).await.is_ok() && send.flush().await.is_ok() {
            tokio::time::sleep(pause).await;
        }
    };
    let mut answer = Vec::new();
    // A stream that is reset ends with an error, and is cut all the same.
    let reading = async { drop(recv.read_to_end(&mut answer).await) };
    tokio::join!(sending, reading);
    answer
}

/// Waits until all offenders have been cut, while `serves` keeps being true.
async fn cut_while_served<T>(offenders: impl Future<Output = T>, mut serves: impl AsyncFnMut() -> bool) -> T {
    let mut offenders = std::pin::pin!(tokio::time::timeout(CUT_WITHIN, offenders));
    loop {
        tokio::select! {
            done = &mut offenders => return done.expect("every offender is cut off"),
            () = tokio::time::sleep(DRIP) => {}
        }
        assert!(serves().await, "an honest caller was not served");
    }
}

fn text(answer: &[u8]) -> String {
    String::from_utf8_lossy(answer).into_owned()
}

/// What an HTTP request over a stream can do wrong; for the control API and for the protocol among members alike.
async fn abuse_http(connection: &Connection, path: &str) {
    let request = |method: &str, rest: &str| format!("{method} {path} HTTP/1.1\r\nhost: x\r\n{rest}").into_bytes();
    let (slow, endless) = (DRIP, Duration::ZERO);
    let slow_head = send_until_cut(connection.clone(), request("GET", "x-slow: "), b"a".to_vec(), slow);
    let huge_head = send_until_cut(connection.clone(), request("GET", "x-huge: "), vec![b'a'; HUGE_BYTES], endless);
    let many_heads = send_until_cut(connection.clone(), request("GET", ""), b"x-a: b\r\n".repeat(1024), endless);
    let no_http = send_until_cut(connection.clone(), vec![0xff; 100], vec![0; 1 << 16], endless);
    let chunk = format!("10000\r\n{}\r\n", "z".repeat(0x1_0000)).into_bytes();
    let body = request("GET", "transfer-encoding: chunked\r\n\r\n");
    let endless_body = send_until_cut(connection.clone(), body, chunk, endless);
    tokio::join!(slow_head, huge_head, many_heads, no_http, endless_body);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_control_api_cuts_off_who_is_slow_endless_or_oversized() {
    let bench = Bench::new();
    let (_, node, honest) = bench.one(&[]).await;
    import(&honest, "large", kernel(1, 16 << 20)).await;
    let transport = endpoint(granted(&honest, ClientRole::Admin).await, &node).await;
    let peer = Registry::read(node.registry()).unwrap().endpoint_id;
    until("the client to be let in", async || {
        let Ok(connection) = transport.connect(peer, Protocol::Api).await else { return false };
        connection.open_bi().await.is_ok() && connection.close_reason().is_none()
    })
    .await;
    let connection = connect(&transport, &node, Protocol::Api).await;

    let post = |length: usize| {
        let kind = "content-type: application/json\r\n";
        format!("POST /v1/tokens HTTP/1.1\r\nhost: x\r\n{kind}content-length: {length}\r\n\r\n{{").into_bytes()
    };
    let slow_body = send_until_cut(connection.clone(), post(100_000), b" ".to_vec(), DRIP);
    let huge_body = send_until_cut(connection.clone(), post(64 << 20), vec![b' '; 1 << 16], Duration::ZERO);
    let head = "POST /v1/blobs HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n".as_bytes().to_vec();
    let slow_upload = send_until_cut(connection.clone(), head, b"1\r\nx\r\n".to_vec(), DRIP);
    let takes_nothing = async {
        let (mut send, mut recv) = connection.open_bi().await.unwrap();
        send.write_all(b"GET /v1/images/large/parts/kernel HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        // Nothing is read, and still it is known when the node gives up.
        recv.received_reset().await.unwrap().expect("the answer was not ended in order")
    };
    let offenders = async {
        tokio::join!(slow_body, huge_body, slow_upload, takes_nothing, abuse_http(&connection, "/v1/cluster"))
    };
    let (slow, huge, upload, ..) = cut_while_served(offenders, async || honest.cluster(false).await.is_ok()).await;
    assert!(text(&slow).contains("too slowly"), "{}", text(&slow));
    assert!(text(&huge).contains("1048576 bytes"), "{}", text(&huge));
    assert!(text(&upload).contains("too slowly"), "{}", text(&upload));
    // The offenders' own connection has come to no harm either.
    assert!(connection.close_reason().is_none());
    assert_eq!(honest.tokens().await.unwrap().len(), 1, "nothing was made of half a request");
}

#[tokio::test(flavor = "multi_thread")]
async fn members_that_run_wild_are_cut_off() {
    let bench = Bench::new();
    let (configs, mut nodes, honest) = bench.cluster(2, &[], 1).await;
    // The second node's own key, in hands that mean no good.
    nodes.pop().unwrap().shutdown().await;
    let key = load_or_create_key(&configs[1].data_dir.join("node.key")).unwrap();
    let member = endpoint(key, &nodes[0]).await;
    let raft = connect(&member, &nodes[0], Protocol::Raft).await;
    let peer = connect(&member, &nodes[0], Protocol::Peer).await;

    let frame = |kind: u8, length: u32| [&[kind][..], &length.to_le_bytes()].concat();
    let (slow, endless) = (DRIP, Duration::ZERO);
    let offenders = async {
        tokio::join!(
            send_until_cut(raft.clone(), frame(1, 1000), vec![0], slow),
            send_until_cut(raft.clone(), frame(2, 1000), vec![0], slow),
            send_until_cut(raft.clone(), frame(1, u32::MAX), vec![0; 1 << 16], endless),
            send_until_cut(raft.clone(), frame(2, 1 << 20), vec![0xff; 1 << 16], endless),
            send_until_cut(raft.clone(), vec![7], vec![7; 1 << 16], endless),
            abuse_http(&peer, "/group"),
        )
    };
    cut_while_served(offenders, async || honest.cluster(false).await.is_ok_and(|view| view.leader.is_some())).await;
    assert!(raft.close_reason().is_none() && peer.close_reason().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_listened_to_briefly_and_given_little() {
    let bench = Bench::new();
    let (_, node, honest) = bench.one(&[]).await;
    let stranger = endpoint(SecretKey::generate(), &node).await;
    let connection = connect(&stranger, &node, Protocol::Join).await;
    // No protocol has streams of one direction, so a stranger cannot fill them.
    assert!(futures::poll!(std::pin::pin!(connection.open_uni())).is_pending());
    let slow = send_until_cut(connection, vec![1], vec![0], DRIP);
    let other = endpoint(SecretKey::generate(), &node).await;
    let connection = connect(&other, &node, Protocol::Join).await;
    let endless = send_until_cut(connection, vec![1], vec![0; 1 << 16], Duration::ZERO);
    let answers =
        cut_while_served(async { tokio::join!(slow, endless) }, async || honest.cluster(false).await.is_ok()).await;
    assert_eq!(answers, (vec![], vec![]));

    // What has been sent and not been read stays small, however many streams carry it.
    let greedy = endpoint(SecretKey::generate(), &node).await;
    let connection = connect(&greedy, &node, Protocol::Join).await;
    let mut streams = Vec::new();
    let mut sent = 0;
    while let Ok(Ok((mut send, recv))) = tokio::time::timeout(DRIP, connection.open_bi()).await {
        while let Ok(Ok(len)) = tokio::time::timeout(DRIP, send.write(&[0; 1 << 12])).await {
            sent += len;
            assert!(sent <= 256 << 10, "{sent} bytes were taken of a stranger that is not being listened to");
        }
        streams.push((send, recv));
        assert!(streams.len() <= 8, "a stranger needs one stream");
    }
    tokio::time::timeout(CUT_WITHIN, connection.closed()).await.expect("the stranger is sent away");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_key_opens_so_many_connections_and_no_more() {
    let bench = Bench::new();
    let (_, node, honest) = bench.one(&[]).await;
    let client = granted(&honest, ClientRole::Viewer).await;
    for (protocol, key, max) in [(Protocol::Join, SecretKey::generate(), 4), (Protocol::Api, client, 32)] {
        let mut endpoints = Vec::new();
        for _ in 0..max + 2 {
            endpoints.push(endpoint(key.clone(), &node).await);
        }
        let is_busy = |connection: &Connection| {
            connection.close_reason().is_some_and(|reason| format!("{reason:?}").contains(&BUSY.to_string()))
        };
        // The node learns of the client a moment after it was granted, and strangers who say nothing do not last: so this is
        // tried until all are there at once.
        until("one too many to be turned away", async || {
            let connecting = endpoints.iter().map(|endpoint| connect(endpoint, &node, protocol));
            let connections = futures::future::join_all(connecting).await;
            let busy = futures::future::join_all(connections.iter().map(async |connection| {
                tokio::time::timeout(DRIP, connection.closed()).await.is_ok() && is_busy(connection)
            }));
            let busy = busy.await.into_iter().filter(|is_busy| *is_busy).count();
            let still = connections.iter().filter(|connection| connection.close_reason().is_none()).count();
            busy > 0 && still <= max
        })
        .await;
        assert!(honest.cluster(false).await.is_ok());
    }
}

async fn door(config: &NodeConfig, from: &str) -> TcpStream {
    let address = SocketAddr::new(config.bind.ip(), config.bind.port() + HTTP_PORT_OFFSET);
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(format!("{from}:0").parse().unwrap()).unwrap();
    socket.connect(address).await.unwrap()
}

/// Whether a caller at another address gets an answer.
async fn is_healthy(config: &NodeConfig) -> bool {
    let mut stream = door(config, "127.0.0.2").await;
    stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer)).await;
    matches!(read, Ok(Ok(_))) && answer.starts_with("HTTP/1.1 200")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_door_cuts_off_who_is_slow_endless_or_oversized() {
    let bench = Bench::new();
    let (config, _node, _) = bench.one(&[]).await;
    let abuse = async |head: String, piece: Vec<u8>, pause: Duration| {
        let (recv, send) = door(&config, "127.0.0.1").await.into_split();
        pump(send, recv, head.into_bytes(), piece, pause).await
    };
    let get = "GET /healthz HTTP/1.1\r\nhost: x\r\n";
    let chunk = format!("10000\r\n{}\r\n", "z".repeat(0x1_0000)).into_bytes();
    let offenders = async {
        let silent = async {
            let mut stream = door(&config, "127.0.0.1").await;
            drop(stream.read(&mut [0; 16]).await);
        };
        // Far more than one caller may have, and as many as there are places in all.
        let crowd = async {
            let mut held = Vec::new();
            for _ in 0..256 {
                held.push(door(&config, "127.0.0.1").await);
            }
            for mut stream in held {
                drop(stream.read(&mut [0; 16]).await);
            }
        };
        tokio::join!(
            abuse(format!("{get}x-slow: "), b"a".to_vec(), DRIP),
            abuse(format!("{get}x-huge: "), vec![b'a'; HUGE_BYTES], Duration::ZERO),
            abuse(format!("{get}transfer-encoding: chunked\r\n\r\n"), chunk, Duration::ZERO),
            abuse(String::new(), vec![0; 1 << 16], Duration::ZERO),
            silent,
            crowd,
        )
    };
    cut_while_served(offenders, async || is_healthy(&config).await).await;
}
