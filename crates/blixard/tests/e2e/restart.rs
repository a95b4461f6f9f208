//! Nodes that are started again: with the same arguments, with others, and after the cluster has removed them.

use std::fs;

use serde_json::{Value, json};

use crate::cluster::{Cluster, Plan};
use crate::program::{as_text, eventually, free_address};

const REMOVED: i32 = 12;

/// What a node says that has to end by itself.
#[track_caller]
fn refused(cluster: &mut Cluster, id: usize, arguments: &[&str], code: i32) -> String {
    let before = cluster.log(id).len();
    cluster.spawn_with(id, arguments, &[]);
    let ended = cluster.ends(id);
    let said = cluster.log(id)[before..].to_owned();
    assert_eq!(ended, Some(code), "{arguments:?}: {said}");
    said
}

fn facts(cluster: &Cluster) -> Value {
    let status = eventually("the cluster's status", || cluster.status(1));
    let nodes = status["nodes"].as_array().unwrap().iter();
    let vms = cluster.ask(1, &["vm", "list"]).unwrap();
    let vms = vms.as_array().unwrap().iter().map(|vm| json!([vm["name"], vm["node"], vm["epoch"]]));
    json!({
        "cluster": status["cluster_id"],
        "nodes": nodes.map(|node| json!([node["id"], node["endpoint_id"]])).collect::<Vec<_>>(),
        "vms": vms.collect::<Vec<_>>(),
    })
}

#[test]
fn other_arguments_do_what_they_say_or_are_refused() {
    let mut cluster = Cluster::with_disk(Plan::fake(3));
    cluster.run(1, &["vm", "create", "web", "--image", "disk", "--node", "3"]).ends_with(0);
    let other = Cluster::start(Plan::fake(1));
    let foreign = other.run(1, &["cluster", "token", "create"]).ends_with(0).stdout;
    let own = cluster.run(1, &["cluster", "token", "create"]).ends_with(0).stdout;
    let before = facts(&cluster);

    // While it runs, no second one takes its directory.
    let said = refused_beside(&cluster, 3);
    assert!(said.contains("another node process"), "{said}");

    cluster.kill(&[3]);
    let said = refused(&mut cluster, 3, &["--id", "4"], 11);
    assert!(said.contains("belongs to node 3") && said.contains("--id 3"), "{said}");
    let said = refused(&mut cluster, 3, &["--join", foreign.trim()], 11);
    assert!(said.contains("another --data-dir") || said.contains("empty --data-dir"), "{said}");
    let said = refused(&mut cluster, 3, &["--peers", other.address(1)], 11);
    assert!(said.contains("is told to join cluster"), "{said}");
    let elsewhere = cluster.bench.path("elsewhere");
    let said = refused(&mut cluster, 3, &["--data-dir", as_text(&elsewhere)], 10);
    assert!(said.contains("another --id"), "{said}");

    // Another ticket of the same cluster, other peers of which one is away, another address, no sharing of images.
    let moved = free_address();
    let peers = format!("127.0.0.1:9,{}", cluster.address(2));
    let arguments: [&[&str]; 4] = [&["--join", own.trim()], &["--peers", &peers], &["--bind", &moved], &[]];
    let no_sharing = [("BLIXARD_P2P_ENABLED", "false")];
    for (number, arguments) in arguments.into_iter().enumerate() {
        let environment: &[(&str, &str)] = if number == 3 { &no_sharing } else { &[] };
        cluster.spawn_with(3, arguments, environment);
        eventually("node 3 to be ready", || {
            let status = cluster.status(1)?;
            let node = &status["nodes"][2];
            let at = if arguments.contains(&"--bind") { &moved } else { cluster.address(3) };
            (node["state"] == "ready" && node["addresses"] == json!([at])).then_some(())
        });
        assert_eq!(facts(&cluster), before, "{arguments:?}");
        cluster.kill(&[3]);
    }
    // Another hypervisor: the vm's records are of another kind, and its disk is nobody else's to take.
    cluster.spawn_with(3, &["--hypervisor", "qemu"], &[]);
    cluster.is_whole();
    assert_eq!(facts(&cluster), before);
    cluster.kill(&[3]);
    cluster.spawn(3);
    cluster.is_whole();
    cluster.vm_becomes(1, "web", "running again", |vm| vm["phase"] == "running");
    assert_eq!(facts(&cluster), before);
    cluster.agreed_digest();
}

/// Starts a second process on the directory of a node that runs, at another address.
#[track_caller]
fn refused_beside(cluster: &Cluster, id: usize) -> String {
    let address = free_address();
    let (number, data_dir) = (id.to_string(), cluster.data_dir(id));
    let arguments = ["node", "--id", &number, "--bind", &address, "--data-dir", as_text(&data_dir)];
    cluster.bench.run(&arguments).ends_with(1).stderr
}

#[test]
fn a_removed_node_that_keeps_talking_is_refused_and_harms_nobody() {
    let mut cluster = Cluster::with_disk(Plan::fake(4));
    // A voter that is not the leader, and was down when it was removed: it knows nothing of it.
    let status = cluster.status(1).unwrap();
    let voter = status["nodes"].as_array().unwrap().iter().find(|node| node["role"] == "voter").unwrap();
    let gone = voter["id"].as_u64().unwrap() as usize;
    let others: Vec<usize> = (1..=4).filter(|id| *id != gone).collect();
    let at = others[0];
    cluster.kill(&[gone]);
    let good = cluster.bench.path("good");
    fs::rename(cluster.data_dir(gone), &good).unwrap();
    let removed = gone.to_string();
    cluster.run(at, &["cluster", "remove", &removed, "--force"]).ends_with(0);
    eventually("three voters without it", || {
        let status = cluster.status(at)?;
        let nodes = status["nodes"].as_array()?;
        (nodes.len() == 3 && nodes.iter().all(|node| node["role"] != "learner")).then_some(())
    });
    let term = cluster.status(at).unwrap()["term"].clone();

    fs::rename(&good, cluster.data_dir(gone)).unwrap();
    let peer = cluster.address(at).to_owned();
    for round in 0..4 {
        let said = refused(&mut cluster, gone, &["--peers", &peer], REMOVED);
        assert!(said.contains("removed from its cluster") || said.contains("no longer part"), "{said}");
        assert!(said.contains("empty data directory"), "{said}");
        let mark = cluster.data_dir(gone).join("node.json");
        let noted = fs::read_to_string(&mark).unwrap();
        assert!(noted.contains("\"removed\": true"), "{noted}");
        match round {
            // Somebody takes the mark out...
            0 => fs::write(&mark, noted.replace("true", "false")).unwrap(),
            // ...or the whole file, and every memory of the others' refusal with it.
            1 => {
                fs::remove_file(&mark).unwrap();
                let said = refused(&mut cluster, gone, &["--peers", &peer], 10);
                assert!(said.contains("removed"), "{said}");
                fs::write(&mark, noted.replace("true", "false")).unwrap();
            }
            // It stays as it is.
            _ => {}
        }
        cluster.run(at, &["cluster", "token", "create"]).ends_with(0);
    }
    // All of that was no reason for an election.
    let status = cluster.status(at).unwrap();
    assert_eq!((&status["term"], status["nodes"].as_array().unwrap().len()), (&term, 3), "{status}");
}

#[test]
fn nodes_join_and_leave_while_another_is_down() {
    let mut cluster = Cluster::planned(Plan::fake(5));
    cluster.spawn(1);
    cluster.is_ready(1);
    for id in 2..=4 {
        cluster.spawn(id);
        cluster.is_ready(id);
    }
    let status = |cluster: &Cluster, what: &str, holds: &dyn Fn(&[Value]) -> bool| {
        eventually(what, || {
            let status = cluster.status(1)?;
            holds(status["nodes"].as_array()?).then_some(())
        });
    };
    let votes =
        |nodes: &[Value]| nodes.iter().filter(|node| node["role"] == "voter" || node["role"] == "leader").count();
    status(&cluster, "three voters", &|nodes| votes(nodes) == 3 && nodes.iter().all(|node| node["state"] == "ready"));
    // A voter that does not lead is away while one joins and one leaves.
    cluster.kill(&[2]);
    for said in ["", "let in"] {
        // It dies while it joins, and goes on where it was.
        cluster.spawn(5);
        eventually("a joiner", || cluster.log(5).contains(said).then_some(()));
        cluster.kill(&[5]);
    }
    cluster.spawn(5);
    cluster.is_ready(5);
    // A ticket names several nodes, any of which may answer: none of them is meant.
    let ticket = cluster.run(1, &["cluster", "token", "create", "-o", "json"]).ends_with(0).json();
    let ticket = ticket["ticket"].as_str().unwrap();
    let ambiguous = cluster.bench.run(&["cluster", "leave", "--addr", ticket]).ends_with(2);
    assert!(ambiguous.stderr.contains("--addr HOST:PORT"), "{}", ambiguous.stderr);
    cluster.run(3, &["cluster", "leave"]).ends_with(0);
    assert_eq!(cluster.ends(3), Some(REMOVED));
    status(&cluster, "three voters without node 3", &|nodes| {
        nodes.len() == 4 && votes(nodes) == 3 && nodes.iter().all(|node| node["id"] != 3)
    });
    cluster.run(5, &["cluster", "token", "create"]).ends_with(0);
    // It comes back to a cluster that it does not know as it is now.
    cluster.spawn(2);
    status(&cluster, "node 2", &|nodes| nodes.iter().any(|node| node["id"] == 2 && node["state"] == "ready"));
    cluster.run(2, &["cluster", "token", "create"]).ends_with(0);
    let digests = || {
        let of = |id: usize| {
            let stale = cluster.ask(id, &["cluster", "status", "--stale"])?;
            Some((stale["applied"].clone(), stale["state_digest"].clone()))
        };
        [1, 2, 4, 5].into_iter().map(of).collect::<Option<Vec<_>>>()
    };
    eventually("the same state on all", || digests()?.windows(2).all(|pair| pair[0] == pair[1]).then_some(()));
}
