//! An image on its way to the node that needs it, which is killed in the middle.

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
    let (runtime, client) = cluster.client(3);
    let name = "web".parse().unwrap();
    let look = || {
        let view = runtime.block_on(client.vm(&name)).ok()?;
        Some(serde_json::to_value(view).unwrap())
    };
    let create = ["vm", "create", "web", "--image", "big", "--memory", "128M", "--node", "2", "--no-wait"];
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
