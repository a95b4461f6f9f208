//! A real guest that boots while its image comes, from nodes that are killed meanwhile.

use std::process::Command;

use serde_json::Value;

use crate::cluster::{Cluster, Plan};
use crate::guests::{Seats, ask_guest, guest_file};
use crate::program::as_text;

/// Several times what the guest reads while it boots.
const DISK_BYTES: usize = 96 << 20;

/// The test guest's disk, with much behind it that no boot reads.
fn long_disk(cluster: &Cluster) -> String {
    let path = cluster.bench.path("long.raw");
    let mut convert = Command::new("qemu-img");
    let status = convert.args(["convert", "-O", "raw", &guest_file("disk.qcow2")]).arg(&path).status().unwrap();
    assert!(status.success(), "qemu-img: {status}");
    let mut content = std::fs::read(&path).unwrap();
    let mut rest = vec![0; DISK_BYTES - content.len()];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom").unwrap(), &mut rest).unwrap();
    content.extend(rest);
    std::fs::write(&path, content).unwrap();
    as_text(&path).to_owned()
}

fn is_lazy(vm: &Value) -> bool {
    vm["phase"] == "running" && vm["live"]["lazy"] == true
}

#[test]
fn a_guest_boots_while_its_image_comes_and_nobody_who_dies_meanwhile_ends_it() {
    let _seats = Seats::take(1);
    let mut cluster = Cluster::start(Plan::qemu(2));
    cluster.run(1, &["cluster", "set", "--copies", "1"]).ends_with(0);
    let disk = long_disk(&cluster);
    cluster.run(1, &["image", "import", "--name", "long", &disk]).ends_with(0);
    cluster.run(1, &["transfer", "limit", "--node", "2", "--down", "2MiB/s"]).ends_with(0);
    let create = ["vm", "create", "web", "--image", "long", "--memory", "128M", "--node", "2", "--lazy", "--no-wait"];
    cluster.run(1, &create).ends_with(0);
    let begun = cluster.vm_becomes(1, "web", "running while its image comes", is_lazy);
    let pid = &begun["live"]["pid"];
    let done = begun["live"]["transfer"]["bytes_done"].as_u64().unwrap();
    assert!(done < DISK_BYTES as u64 / 2, "{done} bytes had come when it was started");

    // The only source goes away while the guest reads its kernel, and comes back.
    cluster.kill(&[1]);
    cluster.spawn(1);
    cluster.is_whole();
    // So does the node that serves the guest its disk.
    cluster.kill(&[2]);
    cluster.spawn(2);
    cluster.is_whole();
    cluster.guest_is_up(1, "web", 1);
    let up = cluster.vm_becomes(1, "web", "up", |vm| vm["phase"] == "running");
    assert_eq!((&up["live"]["pid"], &up["since"]), (pid, &begun["since"]), "the same guest, all the time");

    cluster.run(1, &["transfer", "limit", "--node", "2", "--down", "none"]).ends_with(0);
    let settled = cluster.vm_becomes(1, "web", "settled", |vm| vm["live"]["lazy"] == false);
    assert_eq!((&settled["live"]["pid"], &settled["since"]), (pid, &begun["since"]), "and nobody noticed");
    // What the guest reads now is in the file, of which the source is not needed any more.
    let mut console = cluster.console(1, "web");
    let read = "echo 3 > /proc/sys/vm/drop_caches; md5sum < /dev/vda | cut -c1-32";
    let seen = ask_guest(&mut console, "sum", read);
    let output = Command::new("md5sum").arg(&disk).output().unwrap();
    let expected = String::from_utf8(output.stdout).unwrap();
    assert_eq!(Some(seen.as_str()), expected.split(' ').next());
}
