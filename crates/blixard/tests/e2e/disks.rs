//! Disk images: what is taken, what is refused, and that what comes out is what went in.

use std::fs::File;
use std::process::{Command, Stdio};

use crate::cluster::{Cluster, Plan};
use crate::guests::{Seats, guest_file};
use crate::program::{Ran, as_text};

/// Runs qemu-img, which the hypervisor needs anyhow.
fn qemu_img(arguments: &[&str]) {
    let output = Command::new("qemu-img").args(arguments).output().expect("qemu-img can be run");
    assert!(output.status.success(), "qemu-img {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_disk_boots_and_comes_out_as_it_went_in() {
    let _seats = Seats::take(1);
    let cluster = Cluster::start(Plan::qemu(1));
    let disk = guest_file("disk.qcow2");
    let mut command =
        cluster.bench.command(&["image", "import", "--name", "disk", "-", "--addr", &cluster.registry(1)]);
    Ran::of(command.stdin(Stdio::from(File::open(&disk).unwrap())).output().unwrap()).ends_with(0);
    let raw = as_text(&cluster.bench.path("disk.raw")).to_owned();
    qemu_img(&["convert", "-O", "raw", &disk, &raw]);
    let imported = cluster.run(1, &["image", "import", "--name", "raw", &raw, "-o", "json"]).ends_with(0).json();
    let (bytes, disk_bytes) = (imported["bytes"].as_u64().unwrap(), std::fs::metadata(&raw).unwrap().len());
    // The disk, and the index of its chunks.
    assert!((disk_bytes..disk_bytes + disk_bytes / 100).contains(&bytes), "{bytes} of {disk_bytes}");

    for (name, original) in [("disk", &disk), ("raw", &raw)] {
        let exported = as_text(&cluster.bench.path(&format!("{name}.out"))).to_owned();
        cluster.run(1, &["image", "export", name, "-o", &exported]).ends_with(0);
        assert!(std::fs::read(&exported).unwrap() == std::fs::read(original).unwrap(), "{name} is another");
        std::fs::remove_file(exported).unwrap();
    }

    for image in ["disk", "raw"] {
        let create = ["vm", "create", image, "--image", image, "--memory", "256M", "--restart", "never"];
        cluster.run(1, &create).ends_with(0);
        cluster.guest_is_up(1, image, 1);
        assert!(cluster.vm_log(1, image).contains(&format!("hostname {image}")), "the seed has named it");
        let stopped = cluster.run(1, &["vm", "stop", image, "-o", "json"]).ends_with(0).json();
        assert_eq!(stopped["reason"], "stopped on request");
    }
    // An image that a vm uses stays, and its blob was not written to.
    cluster.run(1, &["image", "delete", "disk"]).ends_with(6);
    let exported = as_text(&cluster.bench.path("again.out")).to_owned();
    cluster.run(1, &["image", "export", "disk", "-o", &exported]).ends_with(0);
    assert!(std::fs::read(&exported).unwrap() == std::fs::read(&disk).unwrap(), "the guest has changed its image");
}

#[test]
fn a_disk_that_is_not_whole_in_itself_is_refused() {
    let cluster = Cluster::start(Plan::fake(1));
    let path = |name: &str| as_text(&cluster.bench.path(name)).to_owned();
    let (backing, outside, data) = (path("backing.qcow2"), path("outside.qcow2"), path("outside.data"));
    let disk = guest_file("disk.qcow2");
    qemu_img(&["create", "-q", "-f", "qcow2", "-b", &disk, "-F", "qcow2", &backing]);
    qemu_img(&["create", "-q", "-f", "qcow2", "-o", &format!("data_file={data}"), &outside, "1M"]);
    let mut content = std::fs::read(&disk).unwrap();
    content.truncate(content.len() / 2);
    let truncated = cluster.bench.write("truncated.qcow2", content);
    let nonsense = cluster.bench.write("nonsense.raw", vec![7; 4096]);
    for (file, word) in [
        (&backing, "backing file"),
        (&outside, "in another file"),
        (&truncated, "cut off"),
        (&nonsense, "cannot be used"),
    ] {
        let ran = cluster.run(1, &["image", "import", "--name", "bad", file]).ends_with(6);
        assert!(ran.stderr.contains(word), "{ran:?}");
        assert!(
            !ran.stderr.contains(as_text(&cluster.data_dir(1))),
            "a path of the node means nothing to a user: {ran:?}"
        );
    }
    assert_eq!(cluster.ask(1, &["image", "list"]).unwrap(), serde_json::json!([]));
}
