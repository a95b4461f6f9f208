//! Nodes that are killed with -9, and what the cluster had promised.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::cluster::{Cluster, Plan};
use crate::dice::{Dice, number_in};
use crate::guests::{self, Seats, ask_guest};
use crate::program::eventually;
use crate::writer::{Promised, Writer};

/// The cluster promises two seconds on a quiet host; tests also run on busy ones.
pub(crate) const FAILOVER_MAX: Duration = Duration::from_secs(10);
/// Rounds of the random series, unless `BLIXARD_E2E_ROUNDS` says otherwise. A round takes some ten seconds on a busy host; each
/// wait in it has its own limit, and the series none.
const ROUNDS: u64 = 10;
/// Vms that a long series keeps: more would only make its later rounds slower than its first.
const KEPT_MAX: usize = 300;
/// The exit codes of what does not exist, and of a node that was removed.
const NOT_FOUND: i32 = 5;
const REMOVED: i32 = 12;

#[test]
fn the_leader_dies_in_a_stream_of_writes() {
    let mut cluster = Cluster::with_disk(Plan::fake(3));
    let mut promised = Promised::default();
    for round in 0..3 {
        let leader = eventually("a leader", || cluster.leader_seen_by(1));
        let (through, other) = match leader {
            1 => (2, 3),
            2 => (3, 1),
            _ => (1, 2),
        };
        let writer = Writer::start(&cluster, through, &format!("w{round}"));
        writer.goes_on_for(30);
        let killed = Instant::now();
        cluster.kill(&[leader]);
        let elected = eventually("a new leader", || {
            let leads =
                |id| Some(cluster.http(id, "/metrics")?.body.contains("blixard_raft_role{role=\"leader\"} 1\n"));
            [through, other].into_iter().any(|id| leads(id) == Some(true)).then(|| killed.elapsed())
        });
        writer.goes_on_for(30);
        let told = writer.stop();
        let again = told.answers.iter().filter(|(began, _)| *began > killed).map(|(_, answered)| *answered).min();
        let again = again.unwrap() - killed;
        println!(
            "node {leader}, the leader, was killed: a new one seen after {elected:?}, written again after {again:?}"
        );
        assert!(again < FAILOVER_MAX, "writes went on only after {again:?}");
        promised.add(told);
        promised.is_kept(&cluster, through);
        promised.is_kept(&cluster, other);
        cluster.spawn(leader);
        cluster.is_whole();
        promised.is_kept(&cluster, leader);
        cluster.agreed_digest();
    }
}

#[test]
fn nodes_die_at_random() {
    let rounds = number_in("BLIXARD_E2E_ROUNDS").unwrap_or(ROUNDS);
    let mut dice = Dice::seeded();
    let mut cluster = Cluster::with_disk(Plan::fake(3));
    let mut promised = Promised::default();
    for round in 0..rounds {
        let begun = Instant::now();
        let through = 1 + dice.below(3) as usize;
        let writer = Writer::start(&cluster, through, &format!("r{round}"));
        writer.goes_on_for(1 + dice.below(15) as usize);
        // A fourth node comes in one round and goes in a later one, while others die, or itself.
        let comes_or_goes = dice.below(2) == 0;
        let goes = (comes_or_goes && cluster.size() == 4).then_some(4);
        let comes = (comes_or_goes && goes.is_none()).then(|| cluster.grow());
        if let Some(comes) = comes {
            cluster.spawn(comes);
        }
        let mut victims: Vec<usize> = (1..=cluster.size()).filter(|_| dice.below(2) == 0).collect();
        if victims.is_empty() {
            victims.push(1 + dice.below(3) as usize);
        }
        let is_paused = dice.below(3) == 0;
        if is_paused {
            // A host that stands still, and then goes on as if no time had passed.
            victims.iter().for_each(|victim| cluster.signal(*victim, Signal::SIGSTOP));
        } else {
            cluster.kill(&victims);
        }
        if victims.len() == 1 && !victims.contains(&through) {
            writer.goes_on_for(1 + dice.below(15) as usize);
        }
        if is_paused {
            victims.iter().for_each(|victim| cluster.signal(*victim, Signal::SIGCONT));
            if dice.below(2) == 0 {
                victims.clear();
            } else {
                cluster.kill(&victims);
            }
        }
        if dice.below(2) == 0 {
            victims.reverse();
        }
        for &victim in &victims {
            cluster.spawn(victim);
            if dice.below(3) == 0 {
                // One that has hardly begun to start.
                cluster.kill(&[victim]);
                cluster.spawn(victim);
            }
        }
        if let Some(goes) = goes {
            remove(&mut cluster, goes, through);
        }
        cluster.is_whole();
        // Through a node that was killed the same client goes on as well.
        writer.goes_on_for(3);
        promised.add(writer.stop());
        for id in 1..=cluster.size() {
            promised.is_kept(&cluster, id);
        }
        let paused = if is_paused { "paused nodes, then " } else { "" };
        let change = match (comes, goes) {
            (Some(comes), _) => format!(", and node {comes} came"),
            (_, Some(goes)) => format!(", and node {goes} went"),
            _ => String::new(),
        };
        println!(
            "round {round}: {paused}killed {victims:?} while writing through {through}{change}, in {:?}",
            begun.elapsed()
        );
        if promised.there.len() > KEPT_MAX {
            promised.clear_out(&cluster, through);
        }
    }
    cluster.agreed_digest();
}

/// Removes the last node, however it is, and waits until it has learnt of that.
fn remove(cluster: &mut Cluster, id: usize, through: usize) {
    let number = id.to_string();
    eventually("the removal", || {
        let ran = cluster.run(through, &["cluster", "remove", &number, "--force"]);
        // One whose answer was lost is found to be done.
        (ran.code == 0 || ran.code == NOT_FOUND).then_some(())
    });
    assert_eq!(cluster.ends(id), Some(REMOVED));
    cluster.shrink();
}

/// Seconds since the guest booted.
fn uptime(cluster: &Cluster, name: &str, marker: &str) -> f64 {
    let mut console = cluster.console(2, name);
    let text = ask_guest(&mut console, marker, "cut -d' ' -f1 /proc/uptime");
    console.press(b"\x1d");
    console.ends_with(0);
    text.parse().unwrap_or_else(|_| panic!("{text:?} is no uptime"))
}

fn endpoints(cluster: &Cluster) -> Vec<String> {
    let status = eventually("the cluster's status", || cluster.status(2));
    let nodes = status["nodes"].as_array().unwrap();
    nodes.iter().map(|node| format!("{} {}", node["id"], node["endpoint_id"])).collect()
}

#[test]
fn all_nodes_die_at_once_and_their_guests_live_on() {
    let _seats = Seats::take(2);
    let mut cluster = Cluster::start(Plan::qemu(3));
    cluster.import_tiny(1);
    let vms = [("one", 1), ("three", 3)];
    for (name, node) in vms {
        let create = ["vm", "create", name, "--image", "tiny", "--memory", "128M", "--node", &node.to_string()];
        cluster.run(2, &create).ends_with(0);
    }
    for (name, _) in vms {
        cluster.guest_is_up(2, name, 1);
    }
    let before: Vec<_> = vms.iter().map(|(name, _)| cluster.vm(2, name).unwrap()).collect();
    let processes: Vec<_> = vms.iter().zip(&before).map(|((_, node), vm)| cluster.processes(*node, vm)).collect();
    let uptimes: Vec<_> = vms.iter().map(|(name, _)| uptime(&cluster, name, "before")).collect();
    let identities = endpoints(&cluster);
    let digest = cluster.agreed_digest();

    cluster.kill(&[1, 2, 3]);
    for one in &processes {
        assert!(guests::is_alive(one.guard) && guests::is_alive(one.hypervisor), "a guest died with its node");
    }
    let started = Instant::now();
    for id in 1..=3 {
        cluster.spawn(id);
    }
    cluster.is_whole();
    println!("three nodes, killed at once, were whole again {:?} after their start", started.elapsed());
    assert_eq!(endpoints(&cluster), identities);
    for ((name, node), before) in vms.iter().zip(&before) {
        let after = cluster.vm_becomes(2, name, "adopted", |vm| vm["live"]["pid"] == before["live"]["pid"]);
        for key in ["phase", "observed_run", "restarts", "since", "epoch", "node"] {
            assert_eq!(after[key], before[key], "{key} of {name}");
        }
        assert_eq!(after["node"], *node);
    }
    let now: Vec<_> = vms.iter().zip(&before).map(|((_, node), vm)| cluster.processes(*node, vm)).collect();
    assert_eq!(now, processes);
    assert_eq!(cluster.agreed_digest(), digest, "the restart changed the state");
    for ((name, _), before) in vms.iter().zip(uptimes) {
        let after = uptime(&cluster, name, "after");
        assert!(after > before, "{name} was up for {before} s and is now for {after} s");
    }

    // A polite end does no more harm than an impolite one.
    cluster.signal(3, Signal::SIGTERM);
    assert_eq!(cluster.ends(3), Some(0));
    assert!(guests::is_alive(processes[1].hypervisor), "the guest stopped with its node");
    cluster.spawn(3);
    cluster.is_whole();
    assert_eq!(cluster.processes(3, &before[1]), processes[1]);
    assert_eq!(cluster.agreed_digest(), digest, "the restart changed the state");
    let stopped = cluster.run(1, &["vm", "stop", "three", "-o", "json"]).ends_with(0).json();
    assert_eq!(stopped["reason"], "stopped on request");
}
