//! Nodes in network namespaces of their own, cut off from each other and reached again.

use std::time::Instant;

use serde_json::Value;

use crate::cluster::{Cluster, Plan};
use crate::crash::FAILOVER_MAX;
use crate::guests::{Seats, is_alive};
use crate::program::eventually;
use crate::program::lab::Cut;
use crate::writer::{Promised, Writer};

/// Writes that are waited for while a node is cut off.
const WRITES: usize = 20;

fn term(cluster: &Cluster, id: usize) -> u64 {
    let status = eventually("the cluster's status", || cluster.ask(id, &["cluster", "status", "--stale"]));
    status["term"].as_u64().unwrap()
}

/// Waits until a node says that it hears from no leader, in each of the ways in which it is asked.
#[track_caller]
fn says_that_it_is_cut_off(cluster: &Cluster, id: usize) {
    eventually("a node that is not ready", || cluster.http(id, "/readyz").filter(|answer| answer.status == 503));
    eventually("a status without a leader", || {
        let stale = cluster.ask(id, &["cluster", "status", "--stale"])?;
        (stale["leader"] == Value::Null).then_some(())
    });
    let status = cluster.ask(id, &["cluster", "status"]).unwrap();
    assert!(status["margin"].as_str().unwrap().starts_with("no leader"), "{status}");
    let begun = Instant::now();
    let write = cluster.run(id, &["cluster", "token", "create"]).ends_with(7);
    assert!(write.stderr.contains("no leader could be reached"), "{write:?}");
    println!("a client of the node that is cut off was told so after {:?}", begun.elapsed());
}

#[test]
fn a_follower_that_is_cut_off_harms_nobody_and_comes_back() {
    let _seats = Seats::take(1);
    let mut cluster = Cluster::in_lab(Plan::qemu(3));
    cluster.import_disk();
    cluster.import_tiny(1);
    let create = ["vm", "create", "there", "--image", "tiny", "--memory", "128M", "--node", "3"];
    cluster.run(1, &create).ends_with(0);
    let vm = cluster.vm(1, "there").unwrap();
    let processes = cluster.processes(3, &vm);
    let leader = eventually("a leader", || cluster.leader_seen_by(1));
    if leader == 3 {
        // It is another's turn: the others elect one of them as soon as it is away.
        cluster.cut(3, Cut::BothWays);
        eventually("another leader", || cluster.leader_seen_by(1).filter(|leader| *leader != 3));
        cluster.heal(3);
        cluster.is_whole();
    }
    let before = term(&cluster, 1);
    let mut promised = Promised::default();
    for (round, way) in [Cut::BothWays, Cut::Speech, Cut::Hearing].into_iter().enumerate() {
        let writer = Writer::start(&cluster, 2, &format!("{round}"));
        writer.goes_on_for(3);
        cluster.cut(3, way);
        let cut = Instant::now();
        if way == Cut::BothWays {
            says_that_it_is_cut_off(&cluster, 3);
        }
        eventually("a cluster that misses node 3", || {
            let status = cluster.status(1)?;
            (status["nodes"][2]["state"] != "ready").then_some(())
        });
        writer.goes_on_for(WRITES);
        let told = writer.stop();
        let slowest = told.answers.iter().map(|(began, answered)| *answered - *began).max().unwrap();
        println!(
            "{way:?}: cut off for {:?}; of {} writes the slowest took {slowest:?}",
            cut.elapsed(),
            told.answers.len()
        );
        assert!(slowest < FAILOVER_MAX, "the loss of a follower held a write up for {slowest:?}");
        promised.add(told);
        assert!(is_alive(processes.guard) && is_alive(processes.hypervisor), "the guest on the node ended");
        cluster.heal(3);
        let healed = Instant::now();
        cluster.is_whole();
        println!("{way:?}: whole again {:?} after it was healed", healed.elapsed());
        promised.is_kept(&cluster, 3);
        assert_eq!(term(&cluster, 1), before, "there was an election for a follower's sake");
    }
    cluster.agreed_digest();
    assert_eq!(cluster.processes(3, &vm), processes);
    cluster.run(1, &["vm", "delete", "there"]).ends_with(0);
}

#[test]
fn a_leader_that_is_cut_off_steps_down_and_nothing_is_lost() {
    let mut cluster = Cluster::in_lab(Plan::fake(3));
    cluster.import_disk();
    let mut promised = Promised::default();
    for (round, way) in [Cut::BothWays, Cut::Hearing].into_iter().enumerate() {
        let old = eventually("a leader", || cluster.leader_seen_by(1));
        let before = term(&cluster, old);
        let others: Vec<usize> = (1..=3).filter(|id| *id != old).collect();
        let inside = Writer::start(&cluster, old, &format!("inside-{round}"));
        let outside = Writer::start(&cluster, others[0], &format!("outside-{round}"));
        inside.goes_on_for(5);
        outside.goes_on_for(5);
        cluster.cut(old, way);
        let cut = Instant::now();
        eventually("a new leader", || cluster.leader_seen_by(others[1]).filter(|leader| *leader != old));
        let elected = cut.elapsed();
        if way == Cut::BothWays {
            says_that_it_is_cut_off(&cluster, old);
        }
        outside.goes_on_for(WRITES);
        cluster.heal(old);
        let healed = Instant::now();
        cluster.is_whole();
        inside.goes_on_for(5);
        let (inside, outside) = (inside.stop(), outside.stop());
        let again = outside.answers.iter().filter(|(began, _)| *began > cut).map(|(_, answered)| *answered).min();
        let again = again.unwrap() - cut;
        println!(
            "{way:?}: a new leader after {elected:?}, written again after {again:?}, whole {:?} after it was healed; the old \
             leader's client was told of {} outcomes that nobody knew",
            healed.elapsed(),
            inside.unknown.len()
        );
        assert!(again < FAILOVER_MAX, "writes went on only after {again:?}");
        promised.add(inside);
        promised.add(outside);
        for id in 1..=3 {
            promised.is_kept(&cluster, id);
        }
        let after = term(&cluster, others[0]);
        assert!(after > before && after <= before + 3, "the term went from {before} to {after}");
        cluster.agreed_digest();
    }
}
