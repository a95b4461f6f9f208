//! What a new version of an image moves to a node that has the old one.
//!
//! The image is a Debian of the mirror, on an ext4 file system in a raw file of 1 GiB: as it was released, and after an upgrade
//! of its packages, built anew each time. It is made once, with debootstrap as root, and kept in `target/bench/update`; without
//! root, debootstrap or a mirror there is nothing to measure, and the bench says so.
//! What went is what the sender counts, the index and proofs included. What it is held against are the changed chunks: those of the
//! new version's index that the old one lacks, and the index itself. The comparators look into the old file as well: rsync from a daemon on
//! loopback, and zsync, whose table of the new file is made beforehand, from nginx.

use super::Request;
use super::limit::sent_mib;
use super::samples::{Findings, Goal, Samples};
use super::transfer::{answering, daemon};
use crate::cluster::{self, Cluster, Entry};
use crate::{process, workspace_root};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

const RELEASE: &str = "bookworm";
const MIRROR: &str = "http://deb.debian.org/debian";
const SECURITY: &str = "http://deb.debian.org/debian-security";
/// What is installed beside the essential packages: what a host in a rack often has.
const PACKAGES: &str = "openssh-server,python3,nginx-light,curl,vim-tiny,git,ca-certificates,linux-image-cloud-amd64,systemd-sysv,sudo,\
                        perl,openssl";
/// The same for both versions, so that they differ by what is in them.
const UUID: &str = "6d1ba0f4-6a4c-4a0e-8bb8-1f43a8a3b0de";
const DISK: &str = "1G";
/// Most that may go, beside the changed chunks and the index.
const GOAL: f64 = 1.15;
/// How long a copy may take: bytes are measured, and a development build on a busy host is slow.
const COPY_MAX: Duration = Duration::from_secs(600);
const MIB: f64 = (1 << 20) as f64;

pub(super) fn run(request: &Request) -> Result<Findings> {
    let (old, new) =
        versions().context("make a Debian and its next version, which needs root, debootstrap and a mirror")?;
    let (rsync, zsync) = (process::find("rsync"), ["zsync", "zsyncmake", "nginx"].map(process::find));
    if rsync.is_none() || zsync.contains(&None) {
        println!("bench: measured without those of rsync, and zsync with nginx, that are not on the PATH");
    }
    let [mut moved, mut changed, mut zeros, mut whole, mut by_rsync, mut by_zsync] =
        ["moved", "changed chunks and index", "zeros", "the whole disk", "rsync", "zsync, its table included"]
            .map(|what| Samples::of(what, "MiB"));
    for run in 1..=request.runs {
        let mut cluster = Cluster::new(request.binary, request.interrupt)?;
        cluster.set("BLIXARD_CLUSTER_COPIES", "2");
        cluster.set("BLIXARD_HYPERVISOR", "fake");
        cluster.start(1, &Entry::Found)?;
        cluster.start(2, &Entry::Peer(1))?;
        // Two nodes have one voter.
        cluster.wait_for_voters(1, 1, 1)?;
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
        let index = imported.pointer("/manifest/disk/chunks/bytes").and_then(Value::as_f64);
        let index = index.context("the import names no index")? / MIB;
        changed.add(part("fresh_bytes")? + part("repeated_bytes")? + index);
        zeros.add(part("zero_bytes")?);
        whole.add(fs::metadata(&new)?.len() as f64 / MIB);
        if let Some(rsync) = &rsync {
            by_rsync.add(with_rsync(&mut cluster, rsync, &old, &new)?);
        }
        if let [Some(zsync), Some(zsyncmake), Some(nginx)] = &zsync {
            by_zsync.add(with_zsync(&mut cluster, [zsync, zsyncmake, nginx], &old, &new)?);
        }
        cluster.shut_down()?;
        println!("bench: run {run}: {}", Samples::last_told(&[&moved, &changed, &zeros, &whole, &by_rsync, &by_zsync]));
    }
    let goal = Goal::at_most("moved, beside changed chunks and index", moved.ratio(&changed), GOAL);
    Ok(Findings { all: vec![moved, changed, zeros, whole, by_rsync, by_zsync], goals: goal.into_iter().collect() })
}

fn wait_for_copy(cluster: &mut Cluster, image: &str) -> Result<()> {
    cluster.wait_at_most(COPY_MAX, &format!("a second copy of image {image}"), |cluster| {
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

/// What a server sends so that the new disk can be made of the old one and what is asked for, and the table that says so.
fn with_zsync(cluster: &mut Cluster, programs: [&PathBuf; 3], old: &Path, new: &Path) -> Result<f64> {
    let [zsync, zsyncmake, nginx] = programs;
    let (port, dir) = (cluster.free_port()?, cluster.dir().to_owned());
    let (config, table, copy) = (dir.join("nginx.conf"), dir.join("new.zsync"), dir.join("zsynced.raw"));
    let (folder, name) = (new.parent().context("the new disk is in a folder")?, new.file_name().unwrap_or_default());
    let text = format!(
        "user root;\ndaemon off;\nmaster_process off;\npid {}/nginx.pid;\nerror_log stderr;\nevents {{}}\nhttp {{ access_log off; \
         server {{ listen 127.0.0.1:{port}; root {}; }} }}\n",
        dir.display(),
        folder.display()
    );
    fs::write(&config, text).context("write the configuration of nginx")?;
    let mut command = Command::new(nginx);
    command.args(["-e", "stderr", "-c"]).arg(&config).stdin(Stdio::null()).stdout(Stdio::null());
    let _daemon = answering(&mut command, port).context("start nginx")?;
    process::output(Command::new(zsyncmake).args(["-C", "-u"]).arg(name).arg("-o").arg(&table).arg(new))?;
    let base = format!("http://127.0.0.1:{port}/");
    let said = process::text(
        Command::new(zsync).args(["-u", &base, "-i"]).arg(old).arg("-o").arg(&copy).arg(&table).current_dir(&dir),
    )?;
    let fetched =
        said.rsplit_once("fetched ").and_then(|(_, bytes)| bytes.split_whitespace().next()?.parse::<f64>().ok());
    ensure!(fs::read(&copy)? == fs::read(new)?, "zsync made another disk of it");
    fs::remove_file(&copy).context("remove zsync's copy")?;
    let fetched = fetched.with_context(|| format!("zsync does not say what it fetched: {said}"))?;
    Ok((fetched + fs::metadata(&table)?.len() as f64) / MIB)
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
