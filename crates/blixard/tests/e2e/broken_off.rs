//! What is under way for a user when a node dies: it goes on where it can, and ends with a clear word where it cannot.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Child;
use std::time::Duration;

use tokio::io::AsyncWriteExt;

use crate::cluster::{Cluster, Plan};
use crate::program::session::Session;
use crate::program::{PATIENCE, eventually, patiently};

/// The exit codes of what cannot be reached, and of what does not exist.
const UNREACHABLE: i32 = 3;
const NOT_FOUND: i32 = 5;
/// The program waits for half a minute itself before it gives a log up.
const GIVEN_UP_WITHIN: Duration = PATIENCE.saturating_mul(3);

/// `vm logs -f web` with its output in files.
struct Followed {
    child: Child,
    output: PathBuf,
    notes: PathBuf,
}

impl Followed {
    fn start(cluster: &Cluster, through: usize, more: &[&str]) -> Self {
        let registry = cluster.registry(through);
        let (output, notes) = (cluster.bench.path("followed"), cluster.bench.path("notes"));
        let verb = [&["vm", "logs", "-f", "web", "--addr", &registry], more].concat();
        let mut command = cluster.bench.command(&verb);
        command.stdout(File::create(&output).unwrap()).stderr(File::create(&notes).unwrap());
        Self { child: command.spawn().unwrap(), output, notes }
    }

    fn content(&self) -> String {
        fs::read_to_string(&self.output).unwrap()
    }

    #[track_caller]
    fn shows(&self, text: &str) {
        eventually(&format!("{text:?} in the log"), || self.content().contains(text).then_some(()));
    }

    #[track_caller]
    fn notes(&self, text: &str) {
        let notes = || fs::read_to_string(&self.notes).unwrap();
        patiently(GIVEN_UP_WITHIN, &format!("{text:?} on standard error"), || notes().contains(text).then_some(()));
    }

    #[track_caller]
    fn ends_with(&mut self, code: i32) {
        let ended = patiently(GIVEN_UP_WITHIN, "the end of a followed log", || self.child.try_wait().unwrap());
        assert_eq!(ended.code(), Some(code), "{}", fs::read_to_string(&self.notes).unwrap());
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        // It has ended, unless the test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Has the guest say something. The fake one repeats what it is told.
fn say(cluster: &Cluster, through: usize, text: &str) {
    let (runtime, client) = cluster.client(through);
    let name = "web".parse().unwrap();
    eventually(&format!("{text:?} on the console"), || {
        runtime.block_on(async {
            let mut console = client.vm_console(&name).await.ok()?;
            console.write_all(text.as_bytes()).await.ok()?;
            console.flush().await.ok()
        })
    });
    eventually("it in the log", || cluster.run(through, &["vm", "logs", "web"]).stdout.contains(text).then_some(()));
    runtime.block_on(client.close());
}

#[test]
fn a_followed_log_goes_on_at_another_node_with_nothing_lost_or_repeated() {
    let mut cluster = Cluster::with_disk(Plan::fake(3));
    cluster.run(1, &["vm", "create", "web", "--image", "disk", "--node", "3"]).ends_with(0);
    say(&cluster, 1, "half a li");
    let mut followed = Followed::start(&cluster, 2, &[]);
    followed.shows("half a li");

    // The node that passes it on dies, and the guest goes on to talk.
    cluster.kill(&[2]);
    say(&cluster, 1, "ne, said while node 2 was dead\n");
    followed.shows("while node 2 was dead");
    cluster.spawn(2);
    cluster.is_whole();

    // The node that has the log dies, and comes back.
    cluster.kill(&[3]);
    followed.notes("node 3, which has vm web, cannot be reached");
    cluster.spawn(3);
    cluster.is_whole();
    say(&cluster, 1, "said after node 3 was dead\n");
    followed.shows("after node 3 was dead");

    // Whoever leads, dies.
    let leader = eventually("a leader", || cluster.leader_seen_by(1));
    cluster.kill(&[leader]);
    cluster.spawn(leader);
    cluster.is_whole();
    say(&cluster, 1, "said after the leader was dead\n");
    followed.shows("after the leader was dead");
    assert_eq!(followed.content(), cluster.run(1, &["vm", "logs", "web"]).stdout);

    cluster.run(1, &["vm", "delete", "web"]).ends_with(0);
    followed.ends_with(NOT_FOUND);
    followed.notes("the log of vm web ends here: there is no vm named web");
}

#[test]
fn a_console_outlives_the_leader_and_what_cannot_go_on_ends_with_a_word() {
    let mut cluster = Cluster::with_disk(Plan::fake(3));
    let leader = eventually("a leader", || cluster.leader_seen_by(1));
    let others: Vec<usize> = (1..=3).filter(|id| *id != leader).collect();
    let (asked, host) = (others[0], others[1]);
    let host_text = host.to_string();
    cluster.run(asked, &["vm", "create", "web", "--image", "disk", "--node", &host_text]).ends_with(0);
    let console = |cluster: &Cluster| {
        let registry = cluster.registry(asked);
        let mut session = Session::start(&cluster.bench, &["vm", "console", "web", "--addr", &registry]);
        session.sees("ready");
        session
    };
    let mut through_asked = console(&cluster);
    cluster.kill(&[leader]);
    eventually("another leader", || cluster.leader_seen_by(asked).filter(|other| *other != leader));
    through_asked.press(b"still here\r");
    through_asked.sees("still here");
    cluster.spawn(leader);
    cluster.is_whole();

    cluster.kill(&[asked]);
    through_asked.sees("the console of vm web was closed: the connection was lost; the vm runs on node");
    through_asked.ends_with(UNREACHABLE);
    cluster.spawn(asked);
    cluster.is_whole();

    let mut through_asked = console(&cluster);
    let mut followed = Followed::start(&cluster, asked, &["--tail", "1"]);
    followed.shows("here");
    assert!(!followed.content().contains("ready"), "more than the last line");
    cluster.kill(&[host]);
    through_asked.sees("the console of vm web was closed");
    through_asked.sees(&format!("node {host}"));
    through_asked.ends_with(UNREACHABLE);
    followed.ends_with(UNREACHABLE);
    followed.notes(&format!("nobody could tell the rest for 30s: node {host}, which has vm web, cannot be reached"));
    followed.notes("start the node that has the vm again");
    // The vm is as it was when its node is back.
    cluster.spawn(host);
    cluster.is_whole();
    eventually("the vm's log", || cluster.run(asked, &["vm", "logs", "web"]).stdout.contains("ready").then_some(()));
}
