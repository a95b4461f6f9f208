//! A node as the host around it sees it: signals, systemd, its log, and its TCP door.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::cluster::{Cluster, Plan};
use crate::metrics;
use crate::program::{PATIENCE, as_text, eventually};

/// What a node told systemd next.
fn told(socket: &UnixDatagram) -> String {
    let mut message = [0; 4096];
    let length = socket.recv(&mut message).expect("a word to systemd");
    String::from_utf8_lossy(&message[..length]).into_owned()
}

#[test]
fn a_node_says_when_it_is_ready_and_how_it_stops() {
    let mut cluster = Cluster::planned(Plan::fake(2));
    let path = cluster.bench.path("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_nonblocking(true).unwrap();
    let environment = [("NOTIFY_SOCKET", as_text(&path)), ("BLIXARD_LOG", "info,blixard_node=debug")];
    cluster.spawn_with(2, &["--log-format", "json"], &environment);

    // Nobody is there whom it could join.
    eventually("a sign of life", || cluster.http(2, "/healthz").filter(|answer| answer.status == 200).map(drop));
    let waiting = eventually("a word on why it waits", || {
        cluster.http(2, "/readyz").filter(|answer| answer.body.contains("waiting to be let into the cluster"))
    });
    assert_eq!(waiting.status, 503);
    let bootstrap = cluster.http(2, "/bootstrap").unwrap();
    assert_eq!((bootstrap.status, bootstrap.body.is_empty()), (503, false), "{bootstrap:?}");
    let early = socket.recv(&mut [0; 1]);
    assert_eq!(early.unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "it called itself ready before it was");

    cluster.spawn(1);
    socket.set_nonblocking(false).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(told(&socket).contains("READY=1"));
    assert_eq!(cluster.http(2, "/readyz").unwrap().status, 200, "it called itself ready before it was");
    let facts: Value = serde_json::from_str(&cluster.http(2, "/bootstrap").unwrap().body).unwrap();
    assert_eq!(facts["node_id"], 2);
    assert_eq!(facts["p2p_addresses"], serde_json::json!([cluster.address(2)]));
    assert_eq!((facts["p2p_node_id"].as_str().unwrap().len(), &facts["p2p_relay_url"]), (64, &Value::Null));
    cluster.is_whole();
    let status = cluster.status(1).unwrap();
    assert_eq!(facts["cluster_id"], status["cluster_id"]);

    let answer = cluster.http(2, "/metrics").unwrap();
    assert!(answer.head.contains("application/openmetrics-text; version=1.0.0"), "{}", answer.head);
    let families = metrics::parse(&answer.body).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(families["blixard_nodes"].value(&[]), Some(2.0));
    assert_eq!(cluster.http(2, "/v1/vms").unwrap().status, 404, "the control API is not public");

    cluster.signal(2, Signal::SIGTERM);
    assert!(told(&socket).contains("STOPPING=1"));
    assert_eq!(cluster.ends(2), Some(0));
    let lines: Vec<Value> = cluster.log(2).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let said: Vec<&str> = lines.iter().filter_map(|line| line["fields"]["message"].as_str()).collect();
    let stop = [
        "SIGTERM received",
        "stopping",
        "background tasks have stopped",
        "transfers have stopped",
        "consensus has stopped",
        "the endpoint is closed",
        "the blob store is closed",
        "stopped",
    ];
    let order: Vec<_> = stop.iter().map(|word| said.iter().position(|line| line == word)).collect();
    assert!(order.iter().all(Option::is_some) && order.is_sorted(), "{order:?} in {said:#?}");
    let levels = lines.iter().all(|line| line["timestamp"].is_string() && line["level"].is_string());
    assert!(levels, "a line of the log is without time or level");
}

#[test]
fn a_node_without_its_voters_is_not_ready() {
    let mut cluster = Cluster::start(Plan::fake(3));
    cluster.kill(&[1, 2]);
    let answer =
        eventually("the loss of the leader", || cluster.http(3, "/readyz").filter(|answer| answer.status == 503));
    assert!(answer.body.contains("majority"), "{answer:?}");
    let stale = cluster.ask(3, &["cluster", "status", "--stale"]).expect("a stale status needs no leader");
    assert_eq!(stale["leader"], Value::Null);
    let begun = std::time::Instant::now();
    let write = cluster.run(3, &["cluster", "token", "create"]).ends_with(7);
    assert!(begun.elapsed() < Duration::from_secs(30) && write.stderr.contains("leader"), "{write:?}");
    cluster.spawn(2);
    cluster.is_ready(3);
    cluster.run(3, &["cluster", "token", "create"]).ends_with(0);
}
