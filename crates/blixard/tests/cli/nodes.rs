//! Nodes that join, and those that may not.

use std::process::{Child, Stdio};

use crate::bench::{Bench, Node, PATIENCE, Ran, eventually, free_address, terminate};

/// Starts a further node of the same user, without waiting for anything.
fn join(bench: &Bench, id: &str, data_dir: &str, arguments: &[&str]) -> Joiner {
    join_as(bench, "state", id, data_dir, arguments)
}

/// Starts a further node of the user with this state folder.
fn join_as(bench: &Bench, user: &str, id: &str, data_dir: &str, arguments: &[&str]) -> Joiner {
    let address = free_address();
    let fixed = ["node", "--id", id, "--bind", &address, "--data-dir", data_dir, "--hypervisor", "fake"];
    let mut command = bench.command(&[&fixed[..], arguments].concat());
    command.env("BLIXARD_STATE_DIR", bench.path(user));
    Joiner(Some(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()))
}

/// A node that is expected to end by itself, or killed when the test is over.
struct Joiner(Option<Child>);

impl Joiner {
    fn ends_with(mut self, code: i32) -> Ran {
        let mut child = self.0.take().unwrap();
        eventually("the end of the node", || child.try_wait().unwrap());
        Ran::of(child.wait_with_output().unwrap()).ends_with(code)
    }
}

impl Drop for Joiner {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            // It may have ended in the course of the test.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn is_ready(bench: &Bench, node: &Node, id: u64) -> bool {
    let status = bench.run(&["cluster", "status", "--addr", &node.address, "-o", "json"]);
    status.code == 0
        && status.json()["nodes"].as_array().unwrap().iter().any(|node| node["id"] == id && node["state"] == "ready")
}

#[test]
fn nodes_join_by_peer_or_ticket_and_leave() {
    let bench = Bench::new();
    let first = bench.node();
    let second = join(&bench, "2", "data2", &["--peers", &first.address, "--label", "zone=b"]);
    let ticket = bench.run(&["cluster", "token", "create", "--addr", &first.address]).ends_with(0).stdout;
    // Another user, so that nothing but the ticket lets it in.
    let third = join_as(&bench, "stranger", "3", "data3", &["--join", ticket.trim()]);
    for id in [2, 3] {
        eventually("the node", || is_ready(&bench, &first, id).then_some(()));
    }
    let table = bench.run(&["cluster", "status"]).ends_with(0).stdout;
    assert!(table.contains("zone=b") && table.lines().filter(|line| line.contains(" ready ")).count() == 3, "{table}");

    let uninvited = join_as(&bench, "stranger", "4", "data4", &["--peers", &first.address]).ends_with(10);
    assert!(uninvited.stderr.contains("needs a ticket"), "{uninvited:?}");
    let used = join(&bench, "4", "data4", &["--join", ticket.trim()]).ends_with(10);
    assert!(used.stderr.contains("used up"), "{used:?}");
    let twice = join(&bench, "3", "data5", &["--peers", &first.address]).ends_with(10);
    assert!(twice.stderr.contains("another --id"), "{twice:?}");

    bench.run(&["cluster", "remove", "3", "--addr", &first.address]).ends_with(0);
    let removed = third.ends_with(12);
    assert!(removed.stderr.contains("empty data directory"), "{removed:?}");
    join(&bench, "3", "data3", &["--join", ticket.trim()]).ends_with(12);
    drop(second);
}

#[test]
fn a_data_directory_is_of_one_node() {
    let bench = Bench::new();
    let mut node = bench.node();
    let locked = join(&bench, "1", "data", &[]).ends_with(1);
    assert!(locked.stderr.contains("data"), "{locked:?}");
    assert_eq!(node.stop(), Some(0));
    let other = join(&bench, "2", "data", &[]).ends_with(11);
    assert!(other.stderr.contains("node 1"), "{other:?}");
}

#[test]
fn the_log_is_json_where_that_is_asked_for() {
    let bench = Bench::new();
    let node = bench.node();
    let told = join(&bench, "2", "data2", &["--join", "blixardx"]).ends_with(2);
    assert!(told.stderr.contains("--join"), "{told:?}");
    let twice = join(&bench, "1", "data2", &["--peers", &node.address, "--log-format", "json"]).ends_with(10);
    let (error, log): (Vec<&str>, Vec<&str>) = twice.stderr.lines().partition(|line| line.starts_with("error: "));
    assert_eq!(error.len(), 1, "{twice:?}");
    for line in log.iter().filter(|line| !line.starts_with("next: ")) {
        serde_json::from_str::<serde_json::Value>(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    }
}

#[test]
fn the_service_manager_is_told_that_the_node_is_ready_and_lives() {
    let bench = Bench::new();
    let path = bench.path("notify");
    let socket = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let address = free_address();
    let mut command = bench.command(&["node", "--id", "1", "--bind", &address, "--data-dir", "data"]);
    // Far less than anybody would set, so that a busy machine still gets to the second sign of life in time.
    command.args(["--hypervisor", "fake"]).env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "400000");
    let mut child = command.stderr(Stdio::null()).spawn().unwrap();
    let told = || {
        let mut message = [0; 256];
        let length = socket.recv(&mut message).expect("the node says something in time");
        String::from_utf8(message[..length].to_vec()).unwrap()
    };
    assert_eq!(told().trim(), "READY=1");
    for _ in 0..3 {
        assert_eq!(told().trim(), "WATCHDOG=1");
    }
    terminate(&child);
    while told().trim() != "STOPPING=1" {}
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
