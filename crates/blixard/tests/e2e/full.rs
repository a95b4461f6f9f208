//! A disk that is full on one node, or on the leader: the node says so, loses nothing, and the others go on.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::cluster::{Cluster, Plan};
use crate::program::eventually;
use crate::writer::{Promised, Writer};

/// Enough for a node, and for what images leave free.
const DISK_MIB: u64 = 400;

/// A small file system. It is gone when it is dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path) -> Self {
        fs::create_dir_all(at).unwrap();
        let size = format!("size={DISK_MIB}m,mode=700");
        mount(Some("blixard-test"), at, Some("tmpfs"), MsFlags::empty(), Some(size.as_str()))
            .expect("file systems are mounted by root");
        Self(at.to_owned())
    }

    /// Takes all that is free but for some bytes.
    fn fill(&self, but: u64) {
        let free = nix::sys::statvfs::statvfs(&self.0).unwrap();
        let mut left = (free.blocks_available() * free.fragment_size()).saturating_sub(but);
        let mut file = File::options().create(true).append(true).open(self.0.join("filler")).unwrap();
        let chunk = vec![7; 1 << 20];
        while left > 0 {
            let part = left.min(chunk.len() as u64) as usize;
            match file.write(&chunk[..part]) {
                Ok(written) => left -= written as u64,
                Err(error) if error.kind() == std::io::ErrorKind::StorageFull => return,
                Err(error) => panic!("fill the disk: {error}"),
            }
        }
    }

    fn free_up(&self) {
        fs::remove_file(self.0.join("filler")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Whoever still has a file open on it does not keep the test's folder from being removed.
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_full_disk_stops_one_node_and_says_so() {
    let mut cluster = Cluster::planned(Plan::fake(3));
    let disks: Vec<SmallDisk> = [1, 3].into_iter().map(|id| SmallDisk::mount(&cluster.data_dir(id))).collect();
    cluster.spawn(1);
    cluster.is_ready(1);
    cluster.spawn(2);
    cluster.spawn(3);
    cluster.is_whole();
    cluster.import_disk();
    let mut promised = Promised::default();

    // An image that would not fit is refused before a byte of it is kept, and the node goes on.
    disks[1].fill(280 << 20);
    let large = cluster.bench.path("large.raw");
    let mut content = vec![0; 64 << 20];
    // Zeros, and what is there already, would take no room.
    for (at, word) in content.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&(at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    }
    content[510..512].copy_from_slice(&[0x55, 0xaa]);
    fs::write(&large, content).unwrap();
    let refused = cluster.run(3, &["image", "import", "--name", "large", large.to_str().unwrap()]);
    assert_ne!(refused.code, 0);
    assert!(refused.stderr.contains("no room for"), "{refused:?}");
    cluster.run(2, &["image", "import", "--name", "large", large.to_str().unwrap()]).ends_with(0);
    let create = ["vm", "create", "there", "--image", "large", "--node", "3", "--timeout", "3s"];
    let waited = cluster.run(1, &create).ends_with(8);
    assert!(waited.stderr.contains("no room for"), "{waited:?}");
    cluster.run(1, &["vm", "delete", "there"]).ends_with(0);
    cluster.run(3, &["cluster", "token", "create"]).ends_with(0);

    // The leader last, so that both kinds are met.
    for (id, disk) in [(3, &disks[1]), (1, &disks[0])] {
        let writer = Writer::start(&cluster, 2, &format!("disk-{id}"));
        writer.goes_on_for(5);
        disk.fill(0);
        let filled = Instant::now();
        // Writes go on, and it is they that need the space.
        let ended = eventually("the end of the node whose disk is full", || {
            writer.is_alive();
            cluster.has_ended(id)
        });
        println!("node {id} ended {:?} after its disk was full", filled.elapsed());
        assert_eq!(ended, Some(1));
        cluster.ends(id);
        let said = cluster.log(id);
        assert!(said.contains("No space left on device"), "{said}");
        writer.goes_on_for(20);
        promised.add(writer.stop());

        // Without space it may come back for as long as nothing more is written, or end with the same words.
        let before = cluster.log(id).len();
        cluster.spawn(id);
        let again = eventually("its end, or its return", || {
            let ready = cluster.http(id, "/readyz").filter(|answer| answer.status == 200).map(|_| None);
            cluster.has_ended(id).map(Some).or(ready)
        });
        match again {
            Some(code) => {
                assert!(code == Some(1) && cluster.log(id)[before..].contains("No space left on device"));
                cluster.ends(id);
            }
            None => cluster.kill(&[id]),
        }
        // With space it is back, with all that it had promised.
        disk.free_up();
        cluster.spawn(id);
        cluster.is_whole();
        for id in 1..=3 {
            promised.is_kept(&cluster, id);
        }
    }
    cluster.agreed_digest();
}
