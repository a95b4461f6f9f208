//! What a new version of an image moves to a node that has the old one.
//!
//! The image is a Debian of the mirror, on an ext4 file system in a raw file of 1 GiB: as it was released, and after an upgrade
//! of its packages, built anew each time. It is made once, with debootstrap as root, and kept in `target/bench/update`; without
//! root, debootstrap or a mirror there is nothing to measure, and the bench says so.
//! What went is what the sender counts, proofs included. The bounds are what changed, as blixard cuts the disk, and the whole disk; the
//! comparator is rsync from a daemon on loopback, which looks into the old file and sends differences.

use super::Request;
use super::limit::sent_mib;
use super::samples::{Findings, Goal, Samples};
use super::transfer::daemon;
use crate::cluster::{self, Cluster, Entry};
use crate::{process, workspace_root};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const RELEASE: &str = "bookworm";
const MIRROR: &str = "http://deb.debian.org/debian";
const SECURITY: &str = "http://deb.debian.org/debian-security";
/// What is installed beside the essential packages: what a host in a rack often has.
const PACKAGES: &str = "openssh-server,python3,nginx-light,curl,vim-tiny,git,ca-certificates,linux-image-cloud-amd64,systemd-sysv,sudo,\
                        perl,openssl";
/// The same for both versions, so that they differ by what is in them.
const UUID: &str = "6d1ba0f4-6a4c-4a0e-8bb8-1f43a8a3b0de";
const DISK: &str = "1G";
/// Most that may go, beside what changed.
const GOAL: f64 = 1.15;
const MIB: f64 = (1 << 20) as f64;

pub(super) fn run(request: &Request) -> Result<Findings> {
    let (old, new) =
        versions().context("make a Debian and its next version, which needs root, debootstrap and a mirror")?;
    let rsync = process::find("rsync");
    if rsync.is_none() {
        println!("bench: rsync is not on the PATH: measured without it");
    }
    let [mut moved, mut changed, mut zeros, mut whole, mut copied] =
        ["moved", "changed", "zeros", "the whole disk", "rsync"].map(|what| Samples::of(what, "MiB"));
    for run in 1..=request.runs {
        let mut cluster = Cluster::new(request.binary, request.interrupt)?;
        cluster.set("BLIXARD_CLUSTER_COPIES", "2");
        cluster.set("BLIXARD_HYPERVISOR", "fake");
        cluster.start(1, &Entry::Found)?;
        cluster.start(2, &Entry::Peer(1))?;
        cluster.ask(1, &["image", "import", "--name", "old", &old.display().to_string()])?;
        wait_for_copy(&mut cluster, "old")?;
        let before = sent_mib(&cluster)?;
        let import = ["image", "import", "--name", "new", &new.display().to_string(), "--base", "old"];
        let imported = cluster.ask_json(1, &import)?;
        wait_for_copy(&mut cluster, "new")?;
        moved.add(sent_mib(&cluster)? - before);
        let part = |name: &str| -> Result<f64> {
            let bytes = imported["compared"][name].as_f64();
            Ok(bytes.with_context(|| format!("the import says nothing of {name}"))? / MIB)
        };
        changed.add(part("fresh_bytes")? + part("repeated_bytes")?);
        zeros.add(part("zero_bytes")?);
        whole.add(fs::metadata(&new)?.len() as f64 / MIB);
        if let Some(rsync) = &rsync {
            copied.add(with_rsync(&mut cluster, rsync, &old, &new)?);
        }
        cluster.shut_down()?;
        println!("bench: run {run}: {}", Samples::last_told(&[&moved, &changed, &zeros, &whole, &copied]));
    }
    let goal = Goal::at_most("moved, beside what changed", moved.ratio(&changed), GOAL);
    Ok(Findings { all: vec![moved, changed, zeros, whole, copied], goals: goal.into_iter().collect() })
}

fn wait_for_copy(cluster: &mut Cluster, image: &str) -> Result<()> {
    cluster.wait_for(&format!("a second copy of image {image}"), |cluster| {
        let image = cluster.ask_json(1, &["image", "show", image])?;
        ensure!(cluster::array(&image, "/holders")?.len() == 2, "node 2 does not hold it");
        Ok(())
    })
}

/// What a daemon sends so that a copy of the old disk becomes the new one.
fn with_rsync(cluster: &mut Cluster, rsync: &Path, old: &Path, new: &Path) -> Result<f64> {
    let folder = new.parent().context("the new disk is in a folder")?;
    let (port, _daemon) = daemon(cluster, rsync, folder)?;
    let copy = cluster.dir().join("copy.raw");
    fs::copy(old, &copy).context("copy the old disk")?;
    let from = format!("rsync://127.0.0.1:{port}/bulk/{}", new.file_name().unwrap_or_default().display());
    let flags = ["--no-whole-file", "--inplace", "--ignore-times", "--stats", "--no-human-readable"];
    let said = process::text(Command::new(rsync).args(flags).arg(&from).arg(&copy))?;
    let bytes = said.lines().find_map(|line| line.strip_prefix("Total bytes received: ")?.trim().parse::<f64>().ok());
    ensure!(fs::read(&copy)? == fs::read(new)?, "rsync made another disk of it");
    Ok(bytes.with_context(|| format!("rsync does not say what it received: {said}"))? / MIB)
}

/// The disk before and after the upgrade.
fn versions() -> Result<(PathBuf, PathBuf)> {
    let folder = workspace_root().join("target/bench/update");
    let (old, new, root) = (folder.join("old.raw"), folder.join("new.raw"), folder.join("root"));
    if old.exists() && new.exists() {
        return Ok((old, new));
    }
    ensure!(nix::unistd::geteuid().is_root(), "this is not root");
    let debootstrap = process::find("debootstrap").context("debootstrap is not on the PATH: install it")?;
    println!("bench: a Debian is made in {}, which takes minutes", folder.display());
    let _ = fs::remove_dir_all(&root);
    fs::create_dir_all(&folder)?;
    let include = format!("--include={PACKAGES}");
    process::output(Command::new(debootstrap).args(["--variant=minbase", &include, RELEASE]).arg(&root).arg(MIRROR))?;
    let inside = |words: &[&str]| {
        let mut command = Command::new("chroot");
        process::output(command.arg(&root).args(words).env("DEBIAN_FRONTEND", "noninteractive"))
    };
    inside(&["apt-get", "clean"])?;
    disk_of(&root, &old)?;
    let sources = format!(
        "deb {MIRROR} {RELEASE} main\ndeb {MIRROR} {RELEASE}-updates main\ndeb {SECURITY} {RELEASE}-security main\n"
    );
    fs::write(root.join("etc/apt/sources.list"), sources)?;
    fs::copy("/etc/resolv.conf", root.join("etc/resolv.conf"))?;
    inside(&["apt-get", "update"])?;
    inside(&["apt-get", "-y", "upgrade"])?;
    inside(&["apt-get", "clean"])?;
    inside(&["sh", "-c", "rm -rf /var/lib/apt/lists/*"])?;
    disk_of(&root, &new)?;
    fs::remove_dir_all(&root)?;
    Ok((old, new))
}

/// A file system of a folder; whole or not there.
fn disk_of(root: &Path, disk: &Path) -> Result<()> {
    let mke2fs = process::find("mke2fs").context("mke2fs is not on the PATH: install e2fsprogs")?;
    let fresh = disk.with_extension("part");
    let _ = fs::remove_file(&fresh);
    let mut command = Command::new(mke2fs);
    command.args(["-q", "-t", "ext4", "-U", UUID, "-E", "lazy_itable_init=0,root_owner=0:0", "-d"]);
    process::output(command.arg(root).arg(&fresh).arg(DISK))?;
    fs::rename(&fresh, disk).with_context(|| format!("rename to {}", disk.display()))
}
