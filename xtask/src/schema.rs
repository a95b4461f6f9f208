//! `cargo xtask schema`: schemathesis, a tool of others, holds the running control API against its document.
//!
//! It makes requests out of docs/openapi.json, sound ones and broken ones, sends them through `blixard api proxy` to a cluster of
//! real processes, and looks whether each answer is one that the document allows. What it looks for, and where it cannot, is in
//! `xtask/schema/schemathesis.toml`, each exception with its reason. The same seed gives the same requests.

use crate::cluster::{self, Cluster, Entry, Profile};
use crate::interrupt::Interrupt;
use crate::{process, setup, workspace_root};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// The requests are made from this, so that a failure comes again.
const SEED: &str = "20260114";
/// Requests of each kind that are drawn for one operation. All operations together take about a minute.
const EXAMPLES: &str = "25";
/// What nodes are told to have, so that no host is too small for the vms that are asked for.
const CAPACITY: [(&str, &str); 3] = [
    ("BLIXARD_CAPACITY_VCPUS", "64"),
    ("BLIXARD_CAPACITY_MEMORY_MIB", "65536"),
    ("BLIXARD_CAPACITY_DISK_MIB", "1048576"),
];
/// What takes nodes out of the cluster.
const REMOVALS: [&str; 2] = ["/v1/cluster/leave", "/v1/nodes/{node}/remove"];
/// A disk to import, in bytes.
const DISK_BYTES: usize = 1 << 20;

/// Holds the API against its document; an error when an answer is not as the document says.
pub fn run() -> Result<()> {
    setup::install_missing(setup::SCHEMA)?;
    let program = schemathesis()?;
    let binary = cluster::blixard(Profile::Dev).context("build blixard")?;
    let interrupt = Interrupt::listen()?;
    // All but what takes nodes out, on three of them; that, on one that nobody can take out.
    for (nodes, filter) in [(3, "--exclude-path"), (1, "--include-path")] {
        let mut cluster = Cluster::new(&binary, &interrupt)?;
        let held = hold(&mut cluster, nodes, &program, filter);
        if held.is_err() {
            println!("{}", cluster.last_words());
        }
        held.with_context(|| format!("the API of a cluster of {nodes} is not as its document says"))?;
        cluster.shut_down()?;
    }
    println!("schema: every answer is one that docs/openapi.json allows");
    Ok(())
}

/// The program, in an environment of its own below target/. All that is in it is pinned.
fn schemathesis() -> Result<PathBuf> {
    let dir = workspace_root().join("target/schemathesis");
    let (wanted, installed) = (workspace_root().join("xtask/schema/requirements.txt"), dir.join("installed.txt"));
    let program = dir.join("bin/schemathesis");
    let text = fs::read_to_string(&wanted).with_context(|| format!("read {}", wanted.display()))?;
    if fs::read_to_string(&installed).is_ok_and(|installed| installed == text) {
        return Ok(program);
    }
    println!("schema: installing schemathesis into {}", dir.display());
    process::check(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&dir))
        .context("make an environment for schemathesis")?;
    let mut pip = Command::new(dir.join("bin/python"));
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement"]).arg(&wanted);
    process::check(&mut pip).context("install schemathesis: this needs a package index that pip can reach")?;
    // Last, so that what was left half done is done anew.
    fs::write(&installed, text).context("note what is installed")?;
    Ok(program)
}

/// The proxy, which ends with this.
struct Proxy(Child);

impl Drop for Proxy {
    fn drop(&mut self) {
        // Fails when it has ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn hold(cluster: &mut Cluster, nodes: u64, program: &Path, filter: &str) -> Result<()> {
    cluster.set("BLIXARD_HYPERVISOR", "fake");
    for (variable, value) in CAPACITY {
        cluster.set(variable, value);
    }
    cluster.start(1, &Entry::Found)?;
    for id in 2..=nodes {
        cluster.start(id, &Entry::Peer(1))?;
    }
    cluster.wait_for_voters(1, nodes, nodes)?;
    prepare(cluster)?;
    let port = cluster.free_port()?;
    let mut command = cluster.command_to(1, &["api", "proxy", "--listen", &format!("127.0.0.1:{port}")]);
    let shown = process::shown(&command);
    let mut proxy = Proxy(command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().context("start the proxy")?);
    let stdout = proxy.0.stdout.take().context("the proxy's output was piped")?;
    let mut token = String::new();
    BufReader::new(stdout).read_line(&mut token).with_context(|| format!("read what `{shown}` prints"))?;
    ensure!(!token.trim().is_empty(), "`{shown}` ended without a word");

    let root = workspace_root();
    let settings = root.join("xtask/schema");
    let mut schemathesis = Command::new(program);
    schemathesis
        .args(["--no-color", "--config-file"])
        .arg(settings.join("schemathesis.toml"))
        .arg("run")
        .arg(root.join("docs/openapi.json"))
        .args(["--url", &format!("http://127.0.0.1:{port}")])
        .args(["--seed", SEED, "--max-examples", EXAMPLES])
        .args(REMOVALS.iter().flat_map(|path| [filter, path]))
        // Where it keeps what it found.
        .current_dir(cluster.dir())
        .env("SCHEMATHESIS_HOOKS", "hooks")
        .env("PYTHONPATH", &settings)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("BLIXARD_PROXY_TOKEN", token.trim())
        .stdin(Stdio::null());
    process::check(&mut schemathesis)
}

/// Something for requests to be about: an image, and vms of it.
fn prepare(cluster: &mut Cluster) -> Result<()> {
    let disk = cluster.dir().join("disk.raw");
    let mut content = vec![0; DISK_BYTES];
    // The mark of a boot sector, by which a raw disk is told from any other file.
    content[510..512].copy_from_slice(&[0x55, 0xaa]);
    fs::write(&disk, content).context("write a disk")?;
    let disk = disk.to_str().context("a temporary path is not text")?;
    cluster.ask(1, &["image", "import", "--name", "tiny", disk])?;
    for name in ["web", "db"] {
        cluster.ask(1, &["vm", "create", name, "--image", "tiny"])?;
    }
    Ok(())
}
