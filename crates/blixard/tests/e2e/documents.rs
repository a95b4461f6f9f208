//! Documents of nodes that are killed with -9 right after they said that something was written.

use crate::cluster::{Cluster, Plan};
use crate::program::eventually;
use crate::program::lab::Cut;

/// Keys that are written before the nodes die.
const KEYS: usize = 5;

#[test]
fn what_was_acknowledged_outlives_the_death_of_every_node() {
    let mut cluster = Cluster::start(Plan::fake(2));
    let value = cluster.bench.write("value", "kept\n");
    for number in 0..KEYS {
        // By turns, so that each node has something that the other may not have heard of.
        let key = format!("key-{number}");
        cluster.run(1 + number % 2, &["doc", "set", "config", &key, &value]).ends_with(0);
    }
    cluster.kill(&[1, 2]);
    // One of two, without a quorum, has what it acknowledged itself.
    cluster.spawn(2);
    eventually("the second node to answer", || {
        (cluster.run(2, &["doc", "get", "config", "key-1"]).stdout == "kept\n").then_some(())
    });
    cluster.run(2, &["doc", "set", "config", "alone", &value]).ends_with(0);
    cluster.spawn(1);
    for id in [1, 2] {
        for key in (0..KEYS).map(|number| format!("key-{number}")).chain(["alone".to_owned()]) {
            eventually(&format!("{key} at node {id}"), || {
                (cluster.run(id, &["doc", "get", "config", &key]).stdout == "kept\n").then_some(())
            });
        }
    }
}

#[test]
fn what_was_written_on_both_sides_of_a_partition_is_on_both_afterwards() {
    let cluster = Cluster::in_lab(Plan::fake(3));
    let set = |id: usize, key: &str, value: &str| {
        let value = cluster.bench.write(&format!("value-{id}"), value);
        cluster.run(id, &["doc", "set", "config", key, &value]).ends_with(0);
    };
    let get = |id: usize, key: &str| cluster.run(id, &["doc", "get", "config", key]).stdout;
    set(1, "both", "before");
    eventually("one value on all nodes", || (1..=3).all(|id| get(id, "both") == "before").then_some(()));
    cluster.cut(3, Cut::BothWays);
    // The third cannot reach a quorum, and needs none for this.
    set(3, "cut", "of the minority");
    set(1, "rest", "of the majority");
    set(1, "both", "first");
    set(3, "both", "second");
    assert_eq!((get(3, "both"), get(1, "both")), ("second".to_owned(), "first".to_owned()));
    assert_eq!(get(2, "cut"), "", "there is no way between them");
    cluster.heal(3);
    for id in 1..=3 {
        for (key, value) in [("cut", "of the minority"), ("rest", "of the majority"), ("both", "second")] {
            eventually(&format!("{key} at node {id}"), || (get(id, key) == value).then_some(()));
        }
    }
}
