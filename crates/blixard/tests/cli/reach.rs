//! Finding a node, and what is said when there is none.

use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::bench::{Bench, Ran, free_address};

#[test]
fn every_way_to_name_a_node_works_and_so_does_none() {
    let bench = Bench::new();
    let mut node = bench.node();
    let facts = bench.run(&["cluster", "status", "-o", "json"]).ends_with(0).json();
    let endpoint = facts["nodes"][0]["endpoint_id"].as_str().unwrap();
    let ticket = bench.run(&["cluster", "token", "create"]).ends_with(0);
    assert!(ticket.stderr.contains("one node for 1h"), "{ticket:?}");
    let ticket = ticket.stdout.trim();
    assert!(ticket.starts_with("blixard") && !ticket.contains(char::is_whitespace));
    for address in [&node.address, node.registry(), endpoint, ticket] {
        let named = bench.run(&["cluster", "status", "--addr", address, "-o", "json"]).ends_with(0).json();
        assert_eq!(named["cluster_id"], facts["cluster_id"], "{address}");
        let mut command = bench.command(&["--addr", address, "vm", "list", "--stale", "-o", "json"]);
        assert_eq!(Ran::of(command.output().unwrap()).ends_with(0).json(), serde_json::json!([]));
        let mut command = bench.command(&["cluster", "status"]);
        Ran::of(command.env("BLIXARD_NODE_ADDR", address).output().unwrap()).ends_with(0);
    }
    assert_eq!(node.stop(), Some(0));
    let gone = bench.run(&["cluster", "status"]).ends_with(3);
    assert!(gone.stderr.contains("node-1-registry.json"), "{gone:?}");
}

#[test]
fn an_unreachable_node_is_given_up_soon() {
    let bench = Bench::new();
    let registry = bench.write(
        "registry.json",
        serde_json::json!({
            "cluster_node_id": 1,
            // A key of nobody: the public half of a secret that was thrown away.
            "endpoint_id": "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
            "direct_addresses": [free_address()],
            "relay_url": null,
            "cluster_id": "0".repeat(64),
        })
        .to_string(),
    );
    for address in [free_address(), registry, "missing-registry.json".to_owned(), "ab".repeat(32)] {
        let begun = Instant::now();
        let ran = bench.run(&["cluster", "status", "--addr", &address]).ends_with(3);
        assert!(begun.elapsed() < Duration::from_secs(30), "{address} took {:?}", begun.elapsed());
        assert!(ran.stderr.starts_with("error: ") && ran.stderr.contains("\nnext:  "), "{ran:?}");
        assert_eq!(ran.stderr.lines().count(), 2, "{ran:?}");
    }
}

#[test]
fn a_key_that_the_cluster_does_not_know_is_refused() {
    let bench = Bench::new();
    let node = bench.node();
    let mut command = bench.command(&["vm", "list", "--addr", node.registry()]);
    command.env("BLIXARD_STATE_DIR", bench.path("stranger"));
    let ran = Ran::of(command.output().unwrap()).ends_with(4);
    assert!(ran.stderr.contains("stranger") && ran.stderr.contains("BLIXARD_STATE_DIR"), "{ran:?}");
}

#[test]
fn a_client_is_granted_roles_and_revoked() {
    let bench = Bench::new();
    let node = bench.node();
    let friend = |arguments: &[&str]| {
        let mut command = bench.command(&[arguments, &["--addr", node.registry()]].concat());
        Ran::of(command.env("BLIXARD_STATE_DIR", bench.path("friend")).output().unwrap())
    };
    let mut own = bench.command(&["client", "id"]);
    let id = Ran::of(own.env("BLIXARD_STATE_DIR", bench.path("friend")).output().unwrap()).ends_with(0);
    assert!(id.stderr.contains("blixard cluster grant"), "{id:?}");
    let id = id.stdout.trim();
    assert!(friend(&["vm", "list"]).ends_with(4).stderr.contains("`blixard cluster grant`"));

    let granted = bench.run(&["cluster", "grant", id, "--role", "viewer", "--name", "grace"]).ends_with(0);
    assert_eq!(granted.stdout, format!("client grace ({}) is viewer\n", &id[..10]));
    friend(&["vm", "list"]).ends_with(0);
    let forbidden = friend(&["cluster", "set", "--copies", "3"]).ends_with(4);
    let needs = format!(
        "this needs the role admin, and client grace has the role viewer: an admin can give it with \
                         `blixard cluster grant {id} --role admin`"
    );
    assert_eq!(forbidden.stderr, format!("error: {needs}\n"));
    bench.run(&["cluster", "grant", id, "--role", "admin"]).ends_with(0);
    friend(&["cluster", "set", "--copies", "3"]).ends_with(0);
    let clients = friend(&["cluster", "clients"]).ends_with(0).stdout;
    assert!(clients.lines().any(|line| line.starts_with("grace ") && line.ends_with(id)), "{clients}");
    bench.run(&["cluster", "revoke", id]).ends_with(0);
    let revoked = friend(&["vm", "list"]).ends_with(4);
    assert!(revoked.stderr.contains("not known to the cluster"), "{revoked:?}");
    bench.run(&["cluster", "revoke", id]).ends_with(5);
    let log = bench.run(&["cluster", "log", "-n", "2"]).ends_with(0).stdout;
    let lines: Vec<&str> = log.lines().collect();
    assert!(lines[0].ends_with(&format!("revoke client    {id} name=grace: done")), "{log}");
    assert!(lines[1].ends_with(&format!("revoke client    {id}: rejected: no such client key")), "{log}");
    assert_eq!(bench.run(&["cluster", "log", "-n", "3", "-o", "name"]).ends_with(0).stdout.lines().count(), 3);
    let me = bench.run(&["client", "id", "-o", "json"]).ends_with(0).json()["id"].as_str().unwrap().to_owned();
    assert!(bench.run(&["cluster", "revoke", &me]).ends_with(6).stderr.contains("only admin"));
}

#[test]
fn a_reader_that_goes_ends_the_command_quietly() {
    let bench = Bench::new();
    let _node = bench.node();
    let mut child = bench
        .command(&["cluster", "status", "-o", "json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // As `head` does when it has seen enough; here that is nothing.
    drop(child.stdout.take());
    let ran = Ran::of(child.wait_with_output().unwrap()).ends_with(0);
    assert_eq!(ran.stderr, "");
}

#[test]
fn tokens_and_settings_are_kept() {
    let bench = Bench::new();
    let _node = bench.node();
    let created =
        bench.run(&["cluster", "token", "create", "--ttl", "unlimited", "--uses", "0", "-o", "json"]).ends_with(0);
    let created = created.json();
    assert_eq!((&created["token"]["uses_left"], &created["token"]["expires_at"]), (&().into(), &().into()));
    let id = created["token"]["id"].as_str().unwrap();
    let state = || {
        let tokens = bench.run(&["cluster", "token", "list", "-o", "json"]).ends_with(0).json();
        let token = tokens.as_array().unwrap().iter().find(|token| token["id"] == id).cloned().unwrap();
        token["state"].as_str().unwrap().to_owned()
    };
    assert_eq!(state(), "valid");
    bench.run(&["cluster", "token", "revoke", id]).ends_with(0);
    assert_eq!(state(), "revoked");
    bench.run(&["cluster", "token", "revoke", "0011223344556677"]).ends_with(5);

    let set = bench.run(&["cluster", "set", "--copies", "3"]).ends_with(0);
    assert_eq!(set.stdout, "the cluster now has 3 voters and 3 copies of each image\n");
    bench.run(&["cluster", "set", "--voters", "4"]).ends_with(6);
    bench.run(&["cluster", "remove", "7"]).ends_with(5);
    bench.run(&["cluster", "leave"]).ends_with(6);
}
