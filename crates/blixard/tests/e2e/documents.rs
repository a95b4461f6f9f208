//! Documents of nodes that are killed with -9 right after they said that something was written.

use crate::cluster::{Cluster, Plan};
use crate::program::eventually;

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
