//! What is under way for a user when a node dies: it goes on where it can, and ends with a clear word where it cannot.

use crate::cluster::{Cluster, Plan};
use crate::program::eventually;
use crate::program::session::Session;

/// The exit code of a node that cannot be reached.
const UNREACHABLE: i32 = 3;

fn session(cluster: &Cluster, through: usize, verb: &[&str]) -> Session {
    let registry = cluster.registry(through);
    let mut session = Session::start(&cluster.bench, &[verb, &["--addr", &registry]].concat());
    session.sees("ready");
    session
}

#[test]
fn a_console_and_a_followed_log_end_with_a_word_when_a_node_on_their_way_dies() {
    let mut cluster = Cluster::with_disk(Plan::fake(3));
    cluster.run(1, &["vm", "create", "web", "--image", "disk", "--node", "3"]).ends_with(0);
    let verbs: [(&[&str], &str); 2] = [
        (&["vm", "console", "web"], "the console of vm web was closed"),
        (&["vm", "logs", "-f", "web"], "the log broke off"),
    ];
    // The node that was asked, and then the one that has the vm.
    for dies in [2, 3] {
        let open: Vec<(Session, &str)> = verbs.iter().map(|(verb, word)| (session(&cluster, 2, verb), *word)).collect();
        cluster.kill(&[dies]);
        for (mut session, word) in open {
            session.sees(word);
            session.ends_with(UNREACHABLE);
        }
        // Through another node, or when it is back, the vm is as it was.
        cluster.spawn(dies);
        cluster.is_whole();
        eventually("the vm's log", || cluster.run(1, &["vm", "logs", "web"]).stdout.contains("ready").then_some(()));
    }
    // The leader is no part of their way.
    let leader = eventually("a leader", || cluster.leader_seen_by(1));
    if leader == 1 {
        let mut console = session(&cluster, 2, verbs[0].0);
        let mut log = session(&cluster, 2, verbs[1].0);
        cluster.kill(&[1]);
        eventually("another leader", || cluster.leader_seen_by(2).filter(|leader| *leader != 1));
        console.press(b"still here\r");
        console.sees("still here");
        log.sees("still here");
    }
}
