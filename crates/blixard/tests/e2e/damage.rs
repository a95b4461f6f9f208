//! Files of a node that were damaged or lost while it was down: it says which and what to do, or repairs them from the
//! cluster where that is safe, and never goes on as if nothing were.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::cluster::{Cluster, Plan};
use crate::dice::Dice;
use crate::program::eventually;

/// The exit code of a damaged file.
const DAMAGED: i32 = 13;
/// Flipped bits that are tried in each file of the log and the state, besides those in what is known to be in use.
const FLIPS: u64 = 4;

/// The name of the vm, which nothing else in the files is likely to hold.
const VM: &str = "web-under-test";

/// What is done to a file.
#[derive(Debug, Clone, Copy)]
enum Harm {
    Missing,
    Empty,
    Half,
    Zeroed,
    Head,
}

const ALL: &[Harm] = &[Harm::Missing, Harm::Empty, Harm::Half, Harm::Zeroed, Harm::Head];

fn harm(path: &Path, harm: Harm) {
    let content = fs::read(path).unwrap();
    let damaged = match harm {
        Harm::Missing => return fs::remove_file(path).unwrap(),
        Harm::Empty => Vec::new(),
        Harm::Half => content[..content.len() / 2].to_vec(),
        Harm::Zeroed => vec![0; content.len()],
        Harm::Head => content.iter().enumerate().map(|(at, byte)| if at < 4 { !byte } else { *byte }).collect(),
    };
    fs::write(path, damaged).unwrap();
}

fn copy(from: &Path, to: &Path) {
    if to.exists() {
        fs::remove_dir_all(to).unwrap();
    }
    assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

/// The files below a folder of a data directory.
fn files(data_dir: &Path, below: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> =
        fs::read_dir(data_dir.join(below)).unwrap().map(|file| file.unwrap().path()).collect();
    found.sort();
    found
}

/// Three nodes with an image on all of them and a vm on the third, which is down, and a copy of what it had.
struct Ward {
    cluster: Cluster,
    good: PathBuf,
}

impl Ward {
    fn open() -> Self {
        let mut cluster = Cluster::with_disk(Plan::fake(3));
        cluster.run(1, &["vm", "create", VM, "--image", "disk", "--node", "3"]).ends_with(0);
        cluster.agreed_digest();
        cluster.signal(3, Signal::SIGTERM);
        assert_eq!(cluster.ends(3), Some(0));
        let good = cluster.bench.path("good");
        copy(&cluster.data_dir(3), &good);
        Self { cluster, good }
    }

    fn data_dir(&self) -> PathBuf {
        self.cluster.data_dir(3)
    }

    fn restore(&self) {
        copy(&self.good, &self.data_dir());
    }

    /// Starts the third node, which has to end by itself, and gives what it said.
    #[track_caller]
    fn refuses(&mut self, arguments: &[&str], code: i32) -> String {
        let before = self.cluster.log(3).len();
        self.cluster.spawn_with(3, arguments, &[]);
        let ended = self.cluster.ends(3);
        let said = self.cluster.log(3)[before..].to_owned();
        assert_eq!(ended, Some(code), "{said}");
        said
    }

    /// Starts the third node, which has to come back whole, and ends it again.
    #[track_caller]
    fn comes_back(&mut self) {
        self.cluster.spawn(3);
        self.cluster.is_whole();
        self.cluster.agreed_digest();
        self.cluster.kill(&[3]);
    }
}

#[test]
fn a_damaged_file_is_told_with_what_to_do() {
    let mut ward = Ward::open();
    let mut cases: Vec<(PathBuf, Harm, &str)> = Vec::new();
    let of = |path: PathBuf, next: &'static str| ALL.iter().map(move |harm| (path.clone(), *harm, next));
    for file in files(&ward.data_dir(), "raft") {
        cases.extend(of(file, "cluster remove"));
    }
    cases.extend(of(ward.data_dir().join("node.key"), "restore the key"));
    // Without it the node finds out again, which is another test.
    cases.extend(of(ward.data_dir().join("node.json"), "remove it").filter(|case| !matches!(case.1, Harm::Missing)));
    cases.extend(of(ward.data_dir().join("images/blobs.db"), "move the folder"));
    for (path, how, next) in &cases {
        harm(path, *how);
        let said = ward.refuses(&[], DAMAGED);
        let name = path.file_name().unwrap().to_str().unwrap();
        let error = said.lines().find(|line| line.starts_with("error: ")).unwrap_or_default();
        assert!(error.contains(name) && (error.contains("damaged") || error.contains("missing")), "{how:?}: {said}");
        assert!(said.lines().any(|line| line.starts_with("next: ") && line.contains(next)), "{name} {how:?}: {said}");
        // It says so again, rather than having made the file anew.
        ward.refuses(&[], DAMAGED);
        ward.restore();
    }
    println!("{} kinds of damage were told", cases.len());
    ward.cluster.run(1, &["cluster", "token", "create"]).ends_with(0);
    ward.comes_back();
}

#[test]
fn a_flipped_bit_in_the_log_or_the_state_is_told_or_was_in_nothing() {
    let mut ward = Ward::open();
    let mut dice = Dice::seeded();
    let mut told = 0;
    for file in files(&ward.data_dir(), "raft") {
        let content = fs::read(&file).unwrap();
        let written: Vec<usize> = (0..content.len()).filter(|at| content[*at] != 0).collect();
        let anywhere: Vec<usize> = (0..FLIPS).map(|_| written[dice.below(written.len() as u64) as usize]).collect();
        // The vm's name: one place is the entry in the log, others may be free pages with what was written before.
        let named = (0..content.len()).filter(|at| content[*at..].starts_with(VM.as_bytes()));
        for at in named.chain(anywhere) {
            let mut flipped = content.clone();
            flipped[at] ^= 1 << dice.below(8);
            fs::write(&file, flipped).unwrap();
            let before = ward.cluster.log(3).len();
            ward.cluster.spawn(3);
            let ended = eventually("its end, or its return", || {
                let ready = ward.cluster.http(3, "/readyz").filter(|answer| answer.status == 200).map(|_| None);
                ward.cluster.has_ended(3).map(Some).or(ready)
            });
            match ended {
                Some(code) => {
                    let said = &ward.cluster.log(3)[before..];
                    assert!(code == Some(DAMAGED) && said.contains("raft/"), "byte {at}: {said}");
                    ward.cluster.ends(3);
                    told += 1;
                }
                None => {
                    // It was in what nothing refers to: all of the state is as that of the others.
                    ward.cluster.agreed_digest();
                    ward.cluster.kill(&[3]);
                }
            }
            ward.restore();
        }
    }
    assert!(told > 0, "not even a flipped bit of an entry was told");
    println!("{told} flipped bits were told, the others were in nothing that is read");
}

#[test]
fn what_can_be_had_from_the_cluster_is_repaired() {
    let mut ward = Ward::open();
    let data_dir = ward.data_dir();
    // What the node writes at each start.
    fs::write(data_dir.join("node-3-registry.json"), "damaged").unwrap();
    fs::write(data_dir.join("bootstrap.json"), "damaged").unwrap();
    let unread = ward.cluster.run(3, &["cluster", "status"]).ends_with(3);
    assert!(unread.stderr.contains("node-3-registry.json") && unread.stderr.contains("restart the node"), "{unread:?}");
    ward.comes_back();

    // Who it is: its key tells the others, and its log says which number it has.
    fs::remove_file(data_dir.join("node.json")).unwrap();
    let said = ward.refuses(&["--id", "7"], 11);
    assert!(said.contains("--id 3"), "{said}");
    ward.comes_back();

    // Images: the cluster learns that this copy is gone, and it is fetched again when it is needed.
    fs::rename(data_dir.join("images"), ward.cluster.bench.path("images-away")).unwrap();
    ward.cluster.spawn(3);
    ward.cluster.is_whole();
    let held_by = |cluster: &Cluster, holders: Value| {
        eventually("the holders of the image", || {
            let image = cluster.ask(1, &["image", "show", "disk"])?;
            (image["holders"] == holders).then_some(())
        });
    };
    held_by(&ward.cluster, json!([1, 2]));
    ward.cluster.run(1, &["vm", "restart", VM, "--force"]).ends_with(0);
    held_by(&ward.cluster, json!([1, 2, 3]));
    ward.cluster.agreed_digest();
    ward.cluster.kill(&[3]);

    // A vm is not: its record says which run of which placement its disk belongs to.
    let vm = ward.cluster.vm(1, VM).unwrap();
    let spec = ward.cluster.vm_dir(3, &vm).join("spec.json");
    harm(&spec, Harm::Half);
    ward.cluster.spawn(3);
    ward.cluster.is_whole();
    let failed = ward.cluster.vm_becomes(1, VM, "failed", |vm| vm["phase"] == "failed");
    assert!(failed["reason"].as_str().is_some_and(|reason| reason.contains("spec.json")), "{failed}");
    ward.cluster.kill(&[3]);

    // A voter without its log: it must not come back as if it had never promised anything, whatever else is lost with it.
    fs::remove_dir_all(data_dir.join("raft")).unwrap();
    ward.refuses(&[], DAMAGED);
    fs::remove_file(data_dir.join("node.json")).unwrap();
    let said = ward.refuses(&[], 10);
    assert!(said.contains("without its log") && said.contains("cluster remove"), "{said}");

    // What it is told to do works.
    ward.cluster.run(1, &["cluster", "remove", "3", "--force"]).ends_with(0);
    fs::remove_dir_all(&data_dir).unwrap();
    eventually("a new node 3", || {
        ward.cluster.spawn(3);
        ward.cluster.is_ready(3);
        Some(())
    });
    ward.cluster.is_whole();
    ward.cluster.agreed_digest();
}

#[test]
fn a_node_whose_disk_went_back_in_time_stops_nobody() {
    let mut ward = Ward::open();
    ward.cluster.spawn(3);
    ward.cluster.is_whole();
    let leader = ward.cluster.status(1).unwrap()["leader"].clone();
    for _ in 0..20 {
        ward.cluster.run(3, &["cluster", "token", "create"]).ends_with(0);
    }
    ward.cluster.agreed_digest();
    ward.cluster.kill(&[3]);
    ward.restore();
    ward.cluster.spawn(3);
    ward.cluster.is_whole();
    ward.cluster.run(1, &["cluster", "token", "create"]).ends_with(0);
    ward.cluster.agreed_digest();
    let status = ward.cluster.status(1).unwrap();
    if status["leader"] == leader && leader != 3 {
        let said = ward.cluster.log(leader.as_u64().unwrap() as usize);
        assert!(said.contains("follower log is reverted"), "nobody was told: {said}");
    }
}

#[test]
fn a_users_damaged_files_are_told() {
    let mut cluster = Cluster::start(Plan::fake(2));
    let tickets = files(&cluster.bench.path("state"), "clusters");
    assert_eq!(tickets.len(), 1);
    fs::write(&tickets[0], "damaged").unwrap();
    cluster.kill(&[2]);
    fs::remove_dir_all(cluster.data_dir(2)).unwrap();
    cluster.run(1, &["cluster", "remove", "2", "--force"]).ends_with(0);
    cluster.spawn(2);
    assert_eq!(cluster.ends(2), Some(10));
    let said = cluster.log(2);
    assert!(said.contains(".ticket") && said.contains("cannot be read") && said.contains("needs a ticket"), "{said}");

    let key = cluster.bench.path("state/client.key");
    let whole = fs::read(&key).unwrap();
    for how in [Harm::Empty, Harm::Half, Harm::Zeroed, Harm::Head] {
        harm(&key, how);
        let ran = cluster.run(1, &["cluster", "status"]).ends_with(DAMAGED);
        assert!(
            ran.stderr.contains("client.key is damaged") && ran.stderr.contains("next:  restore the key"),
            "{ran:?}"
        );
        fs::write(&key, &whole).unwrap();
    }
    cluster.run(1, &["cluster", "status"]).ends_with(0);
}
