//! An image on its way to the node that needs it, while that node, or those that it comes from, are killed.

use std::io::Write;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::cluster::{Cluster, Plan};
use crate::guests::Seats;
use crate::program::{as_text, eventually};

/// Long enough on its way to be killed in the middle of it.
const DISK_BYTES: u64 = 256 << 20;
/// What is verified and counted together, and so what a crash may cost.
const PIECE_BYTES: u64 = 16 << 20;

/// A raw disk of random bytes, which nothing on the way can make smaller.
fn random_disk(cluster: &Cluster) -> String {
    let path = cluster.bench.path("random.raw");
    let mut file = std::fs::File::create(&path).unwrap();
    let mut random = std::fs::File::open("/dev/urandom").unwrap();
    std::io::copy(&mut std::io::Read::take(&mut random, DISK_BYTES), &mut file).unwrap();
    // What makes it a disk.
    std::os::unix::fs::FileExt::write_all_at(&file, &[0x55, 0xaa], 510).unwrap();
    file.flush().unwrap();
    as_text(&path).to_owned()
}

/// Looks at the vm through a node, by a client that stays connected.
fn looker(cluster: &Cluster, id: usize) -> impl Fn() -> Option<Value> + use<> {
    let (runtime, client) = cluster.client(id);
    let name = "web".parse().unwrap();
    move || {
        let view = runtime.block_on(client.vm(&name)).ok()?;
        Some(serde_json::to_value(view).unwrap())
    }
}

fn bytes_done(vm: &Value) -> Option<u64> {
    vm["live"]["transfer"]["bytes_done"].as_u64()
}

#[test]
fn a_transfer_goes_on_where_kill_9_ended_it() {
    let _seats = Seats::take(1);
    let mut cluster = Cluster::start(Plan::qemu(3));
    cluster.run(1, &["cluster", "set", "--copies", "1"]).ends_with(0);
    let disk = random_disk(&cluster);
    cluster.run(1, &["image", "import", "--name", "big", &disk]).ends_with(0);
    std::fs::remove_file(disk).unwrap();
    let look = looker(&cluster, 3);
    let create = ["vm", "create", "web", "--image", "big", "--memory", "128M", "--node", "2", "--no-lazy", "--no-wait"];
    cluster.run(1, &create).ends_with(0);
    let before =
        eventually("a transfer that is under way", || bytes_done(&look()?).filter(|done| *done >= 2 * PIECE_BYTES));
    assert!(before < DISK_BYTES, "the transfer was too fast to be looked at");
    cluster.kill(&[2]);
    // Nobody is left to fetch from: what the node then has is what it had.
    cluster.signal(1, Signal::SIGSTOP);
    cluster.spawn(2);
    // The first look may come before the node has looked at what it has.
    let after = eventually("what was there before the kill", || {
        let done = bytes_done(&look()?)?;
        (done + PIECE_BYTES >= before).then_some(done)
    });
    println!("{} MiB were there, and after kill -9 and a restart {} MiB", before >> 20, after >> 20);
    assert!(after < DISK_BYTES, "the transfer had ended before the kill");
    cluster.signal(1, Signal::SIGCONT);
    let running = cluster.vm_becomes(3, "web", "running", |vm| vm["phase"] == "running");
    assert_eq!(running["node"], 2);
    let image = cluster.ask(3, &["image", "show", "big"]).unwrap();
    assert_eq!(image["holders"], serde_json::json!([1, 2]));
    cluster.run(3, &["vm", "delete", "web"]).ends_with(0);
}

/// Nodes in the order of their parts: the leader, which holds the image, the node that is to fetch it, and the third.
fn parts(cluster: &Cluster) -> (usize, usize, usize) {
    let leader = eventually("a leader", || cluster.leader_seen_by(1));
    let others: Vec<usize> = (1..=3).filter(|id| *id != leader).collect();
    (leader, others[0], others[1])
}

/// Lets a vm wait for the image on a node until a good part of it is there, and gives how much.
fn begin(cluster: &Cluster, target: usize, through: usize, look: impl Fn() -> Option<Value>) -> u64 {
    let node = target.to_string();
    let create = ["vm", "create", "web", "--image", "big", "--node", &node, "--no-lazy", "--no-wait"];
    cluster.run(through, &create).ends_with(0);
    let done = eventually("a transfer that is under way", || bytes_done(&look()?).filter(|done| *done >= PIECE_BYTES));
    assert!(done < DISK_BYTES, "the transfer was too fast to be looked at");
    done
}

#[test]
fn a_transfer_waits_for_its_only_source_which_led_and_goes_on_from_there() {
    let mut cluster = Cluster::start(Plan::fake(3));
    let (source, target, third) = parts(&cluster);
    cluster.run(source, &["cluster", "set", "--copies", "1"]).ends_with(0);
    let disk = random_disk(&cluster);
    cluster.run(source, &["image", "import", "--name", "big", &disk]).ends_with(0);
    let look = looker(&cluster, third);
    let before = begin(&cluster, target, third, &look);
    cluster.kill(&[source]);
    let waiting = eventually("a word on the transfer", || {
        let reason = "image big could not be fetched: no source delivers the image: ";
        look().filter(|vm| vm["reason"].as_str().is_some_and(|found| found.starts_with(reason)))
    });
    assert_eq!((&waiting["phase"], &waiting["retrying"]), (&"failed".into(), &true.into()), "{waiting}");
    assert_eq!(waiting["node"].as_u64(), Some(target as u64), "{waiting}");
    let kept = bytes_done(&waiting).unwrap();
    println!("{} MiB were there when the source died, and {} MiB afterwards", before >> 20, kept >> 20);
    assert!(kept + PIECE_BYTES >= before && kept < DISK_BYTES, "{waiting}");
    let image = eventually("an image without a holder that answers", || {
        let image = cluster.ask(third, &["image", "show", "big"])?;
        (image["unreachable"] == serde_json::json!([source])).then_some(image)
    });
    assert_eq!(image["holders"], serde_json::json!([source]));
    let list = cluster.run(third, &["image", "list"]).ends_with(0).stdout;
    assert!(list.contains(&format!("{source} (unreachable)")), "{list}");

    cluster.spawn(source);
    let running = cluster.vm_becomes(third, "web", "running", |vm| vm["phase"] == "running");
    assert_eq!(running["reason"], Value::Null, "{running}");
    let image = cluster.ask(third, &["image", "show", "big"]).unwrap();
    assert_eq!(image["holders"].as_array().unwrap().len(), 2);
    assert_eq!(image["unreachable"], serde_json::json!([]));
}

#[test]
fn a_transfer_goes_on_from_another_holder_when_the_one_that_leads_dies() {
    let mut cluster = Cluster::start(Plan::fake(3));
    let (leader, target, third) = parts(&cluster);
    cluster.run(leader, &["cluster", "set", "--copies", "1"]).ends_with(0);
    let disk = random_disk(&cluster);
    // Both were given it by hand, so the third node has no reason to fetch it yet.
    for holder in [leader, third] {
        cluster.run(holder, &["image", "import", "--name", "big", &disk]).ends_with(0);
    }
    let look = looker(&cluster, third);
    eventually("two holders", || {
        let image = cluster.ask(third, &["image", "show", "big"])?;
        (image["holders"].as_array()?.len() == 2).then_some(())
    });
    let before = begin(&cluster, target, third, &look);
    cluster.kill(&[leader]);
    // The rest comes without it.
    let running = cluster.vm_becomes(third, "web", "running", |vm| vm["phase"] == "running");
    assert_eq!(running["node"].as_u64(), Some(target as u64));
    println!("the holder that died was there for {} of {} MiB", before >> 20, DISK_BYTES >> 20);
    let other = eventually("another leader", || cluster.leader_seen_by(third).filter(|other| *other != leader));
    println!("node {leader} led, and then node {other}");
}
