//! An image on its way to many nodes, while one that has it is killed, another has it damaged, and a receiver dies as well.

use std::fs::{File, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::cluster::{Cluster, Plan};
use crate::program::{as_text, eventually};

const NODES: usize = 8;
/// Long enough on its way, over the limited links, for all that happens to it.
const DISK_BYTES: usize = 64 << 20;

fn holders(cluster: &Cluster, through: usize) -> Option<Vec<usize>> {
    let image = cluster.ask(through, &["image", "show", "big"])?;
    Some(image["holders"].as_array()?.iter().filter_map(Value::as_u64).map(|id| id as usize).collect())
}

/// A node's file with the disk. All else in the folder is far smaller.
fn data_file(cluster: &Cluster, id: usize) -> Option<PathBuf> {
    let files = std::fs::read_dir(cluster.data_dir(id).join("images/data")).ok()?.flatten();
    let sized = files.filter_map(|file| Some((file.metadata().ok()?.len(), file.path())));
    let whole = sized
        .filter(|(bytes, path)| *bytes == DISK_BYTES as u64 && path.extension().is_some_and(|kind| kind == "data"));
    whole.map(|(_, path)| path).next()
}

/// Bends a bit in each MiB of a file that is closed for writing.
fn damage(path: &Path) {
    std::fs::set_permissions(path, Permissions::from_mode(0o644)).unwrap();
    let file = File::options().read(true).write(true).open(path).unwrap();
    for at in (0..DISK_BYTES as u64).step_by(1 << 20).map(|mib| mib + 4321) {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
    }
    std::fs::set_permissions(path, Permissions::from_mode(0o444)).unwrap();
}

/// How much of the image a node has received by now; nothing when none is on its way to it.
fn bytes_done(cluster: &Cluster, through: usize, id: usize) -> Option<u64> {
    let nodes = cluster.ask(through, &["transfer", "list"])?;
    let node = nodes.as_array()?.iter().find(|node| node["node"] == id)?;
    node["transfers"].as_array()?.first()?["bytes_done"].as_u64()
}

#[test]
fn an_image_reaches_eight_nodes_whole_though_holders_die_and_lie() {
    let mut cluster = Cluster::start(Plan::fake(NODES));
    cluster.run(1, &["cluster", "set", "--copies", "3"]).ends_with(0);
    let path = cluster.bench.path("random.raw");
    let mut content = vec![0; DISK_BYTES];
    std::io::Read::read_exact(&mut File::open("/dev/urandom").unwrap(), &mut content).unwrap();
    // What makes it a disk.
    content[510..512].copy_from_slice(&[0x55, 0xaa]);
    std::fs::write(&path, &content).unwrap();
    cluster.run(1, &["image", "import", "--name", "big", as_text(&path)]).ends_with(0);
    std::fs::remove_file(&path).unwrap();
    let first = eventually("three holders", || holders(&cluster, 1).filter(|holders| holders.len() == 3));
    let others: Vec<usize> = first.iter().copied().filter(|id| *id != 1).collect();
    let (damaged, dies) = (others[0], others[1]);
    let receivers: Vec<usize> = (1..=NODES).filter(|id| !first.contains(id)).collect();
    let through = receivers[0];
    for holder in &first {
        cluster.run(1, &["transfer", "limit", "--up", "8MiB/s", "--node", &holder.to_string()]).ends_with(0);
    }
    damage(&data_file(&cluster, damaged).unwrap());

    let settings = ["cluster", "set", "--copies", &NODES.to_string()];
    cluster.run(1, &settings).ends_with(0);
    let falls = receivers[1];
    let under_way = || bytes_done(&cluster, through, falls).filter(|done| *done > 0);
    let done = eventually("a transfer that is under way", under_way);
    assert!(done < DISK_BYTES as u64, "it was too fast to be looked at");
    cluster.kill(&[dies, falls]);
    cluster.spawn(falls);
    eventually("all receivers to hold it", || {
        let holders = holders(&cluster, through)?;
        receivers.iter().all(|id| holders.contains(id)).then_some(())
    });
    cluster.spawn(dies);
    cluster.is_ready(dies);
    for id in receivers.iter().chain([&dies, &1]) {
        let found = std::fs::read(data_file(&cluster, *id).unwrap()).unwrap();
        assert!(found == content, "node {id} has something else");
    }
    // The one whose copy is damaged finds that when it is told to look, and gets it again.
    let verified = cluster.run(through, &["image", "verify", "big", "--node", &damaged.to_string()]);
    assert!(verified.stdout.contains("damaged"), "{verified:?}");
    eventually("a sound copy in place of the damaged one", || {
        let path = data_file(&cluster, damaged)?;
        (std::fs::read(path).ok()? == content).then_some(())
    });
}
