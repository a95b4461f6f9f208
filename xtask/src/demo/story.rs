//! The steps of the demo, each checked before it is told.

use super::guest_vm::Vm;
use super::teller::{Teller, seconds};
use crate::cluster::{self, Cluster, Entry};
use crate::guest;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::time::Instant;

const FOUNDER: u64 = 1;
const IMAGE: &str = "tiny";
/// The vm that the story is about, and the one that is made while a node is away.
const WEB: &str = "web";
const SPARE: &str = "spare";
const MEMORY: &str = "256M";
/// The cluster's setting by default: the node that imports an image is not the only one to hold it for long.
const COPIES: usize = 2;
/// The guest's clock may run a little slow on a busy machine, but a guest that was started again shows a few seconds.
const CLOCK_SHARE_MIN: f64 = 0.7;

/// From nothing to a vm that serves a page.
pub(super) fn beginning(cluster: &mut Cluster, teller: &mut Teller) -> Result<Vm> {
    form(cluster, teller)?;
    let target = import(cluster, teller)?;
    create(cluster, teller, target)?;
    boot(cluster, teller, target)
}

fn form(cluster: &mut Cluster, teller: &mut Teller) -> Result<()> {
    cluster.start(FOUNDER, &Entry::Found)?;
    cluster.wait_for_voters(FOUNDER, 1, 1).context("node 1 founds a cluster")?;
    cluster.start(2, &Entry::Peer(FOUNDER))?;
    let token = cluster.ask_json(FOUNDER, &["cluster", "token", "create"])?;
    cluster.start(3, &Entry::Ticket(cluster::text(&token, "/ticket")?.to_owned()))?;
    cluster.wait_for_voters(FOUNDER, 3, 3)?;
    teller.done("node 1 founded a cluster, node 2 joined by its address, node 3 by a ticket: three voters");
    teller.show(&cluster.ask(FOUNDER, &["cluster", "status"])?);
    Ok(())
}

/// Imports the image, and gives a node that neither holds it nor is to fetch it.
fn import(cluster: &mut Cluster, teller: &mut Teller) -> Result<u64> {
    let file = |name: &str| guest::folder().join(name).display().to_string();
    let (kernel, initrd) = (file(guest::KERNEL), file(guest::INITRD));
    let cmdline = ["--cmdline", "console=ttyS0 quiet"];
    let import = ["image", "import", "--name", IMAGE, "--kernel", &kernel, "--initrd", &initrd];
    let image = cluster.ask_json(FOUNDER, &[&import[..], &cmdline].concat())?;
    let size = mebibytes(cluster::unsigned(&image, "/bytes")?);
    let (holders, wanted) = cluster.wait_for("a second copy of the image being planned", |cluster| {
        let image = cluster.ask_json(FOUNDER, &["image", "show", IMAGE])?;
        let (holders, wanted) = (nodes(&image, "/holders")?, nodes(&image, "/wanted")?);
        ensure!(holders.len() + wanted.len() >= COPIES, "held by {holders:?}, to be fetched by {wanted:?}");
        Ok((holders, wanted))
    })?;
    let mut others = cluster.ids().into_iter().filter(|id| !holders.contains(id) && !wanted.contains(id));
    let Some(target) = others.next() else {
        bail!("every node holds the image or is to fetch it, though {COPIES} copies are enough");
    };
    teller
        .done(&format!("image {IMAGE} ({size}) is imported on node {FOUNDER}, and the cluster sees to a second copy"));
    Ok(target)
}

fn create(cluster: &mut Cluster, teller: &mut Teller, target: u64) -> Result<()> {
    let images = cluster.data_dir(target).join("images");
    let before = bytes_below(&images)?;
    let port = cluster.free_port()?;
    let (node, publish) = (target.to_string(), format!("127.0.0.1:{port}:80/tcp"));
    let started = Instant::now();
    cluster.ask(
        FOUNDER,
        &[
            "vm",
            "create",
            WEB,
            "--image",
            IMAGE,
            "--memory",
            MEMORY,
            "--node",
            &node,
            "--publish",
            &publish,
            "--no-wait",
        ],
    )?;
    let bytes = cluster.wait_for("the image on the vm's node", |cluster| {
        let image = cluster.ask_json(FOUNDER, &["image", "show", IMAGE])?;
        let holders = nodes(&image, "/holders")?;
        ensure!(holders.contains(&target), "it is held by {holders:?}");
        cluster::unsigned(&image, "/bytes")
    })?;
    let took = started.elapsed();
    let fetched = bytes_below(&images)? - before;
    ensure!(
        fetched >= bytes,
        "node {target} says it holds {bytes} bytes of the image, and only {fetched} came to its disk"
    );
    teller.done(&format!(
        "vm {WEB} is created on node {target}, which had nothing of the image: it fetched {} from its peers in {}",
        mebibytes(bytes),
        seconds(took)
    ));
    Ok(())
}

fn boot(cluster: &mut Cluster, teller: &mut Teller, target: u64) -> Result<Vm> {
    let vm = cluster.wait_for("the vm running", |cluster| Vm::look(cluster, FOUNDER, WEB))?;
    ensure!(vm.node == target, "vm {WEB} was to be on node {target} and is on node {}", vm.node);
    cluster.wait_for("the guest's boot", |cluster| vm.console_line(cluster, FOUNDER, guest::READY))?;
    let log = cluster.ask(FOUNDER, &["vm", "logs", WEB])?;
    let ours: Vec<&str> = log.lines().filter(|line| line.starts_with("blixard-guest:")).collect();
    teller.done("the guest has booted; `vm logs`, asked of node 1, has its words");
    teller.show(&ours.join("\n"));

    let seen = vm.type_commands(cluster, FOUNDER, "uname -a\nhostname\nuptime\n")?;
    let says = |start: &str| seen.lines().any(|line| line.trim_end().starts_with(start));
    ensure!(says(&format!("Linux {WEB} ")) && says(WEB) && seen.contains("load average"), "the console said:\n{seen}");
    teller.done("typed into `vm console`, from node 1 through to the guest");
    teller.show(&seen);

    cluster.wait_for("the guest's page", |_| vm.check_page())?;
    let port = vm.port.context("no port is published")?;
    teller.done(&format!("the guest's web server answers at http://127.0.0.1:{port}/: hello from {WEB}"));
    Ok(vm)
}

/// Kills a node beside the vm, then the one under it.
pub(super) fn crashes(cluster: &mut Cluster, teller: &mut Teller, vm: &Vm) -> Result<()> {
    let view = cluster.wait_for_voters(FOUNDER, 3, 3)?;
    let leader = cluster::unsigned(&view, "/leader")?;
    // The leader, as that is the harder loss, unless it is the vm's own node.
    let victim = if leader == vm.node { FOUNDER } else { leader };
    lose(cluster, teller, vm, victim, if victim == leader { ", the leader," } else { "" })?;
    write(cluster, teller, vm, victim)?;
    recover(cluster, teller, victim)?;
    cluster
        .ask(victim, &["vm", "status", SPARE])
        .with_context(|| format!("node {victim} knows what was done without it"))?;

    let uptime_s = vm.uptime_s(cluster, FOUNDER)?;
    let asked_at = Instant::now();
    teller.done(&format!("vm {} has been up for {uptime_s:.0} s; its hypervisor is process {}", vm.name, vm.pid));
    lose(cluster, teller, vm, vm.node, ", the vm's own,")?;
    recover(cluster, teller, vm.node)?;
    adopted(cluster, teller, vm, uptime_s, asked_at)
}

/// Kills a node; the others and the vm go on.
fn lose(cluster: &mut Cluster, teller: &mut Teller, vm: &Vm, victim: u64, which: &str) -> Result<()> {
    cluster.kill(victim)?;
    let survivor = survivor(cluster, victim)?;
    let view = cluster.wait_for_voters(survivor, 2, 3)?;
    let margin = cluster::text(&view, "/margin")?;
    ensure!(margin == "2 of 3 voters reachable: one more loss stops writes", "the quorum margin is {margin:?}");
    let leader = cluster::unsigned(&view, "/leader")?;
    ensure!(leader != victim, "node {victim} was killed and is still said to lead");
    let dead = array_item(&view, "/nodes", |node| node["id"] == victim)?;
    ensure!(dead["state"] == "unreachable", "node {victim} was killed and is said to be {}", dead["state"]);
    vm.check_page().context("after a node was killed")?;
    ensure!(vm.is_alive(), "the hypervisor {} of vm {} is gone", vm.pid, vm.name);
    teller.done(&format!(
        "kill -9 of node {victim}{which} and node {leader} leads; vm {} goes on serving its page",
        vm.name
    ));
    teller.show(&format!("quorum    {margin}"));
    Ok(())
}

/// Creates a vm while a node is away.
fn write(cluster: &mut Cluster, teller: &mut Teller, vm: &Vm, away: u64) -> Result<()> {
    let asked = survivor(cluster, away)?;
    cluster.ask(asked, &["vm", "create", SPARE, "--image", IMAGE, "--memory", MEMORY])?;
    let spare = Vm::look(cluster, asked, SPARE)?;
    ensure!(spare.node != away, "vm {SPARE} was placed on node {away}, which is away");
    cluster.wait_for("the second guest's boot", |cluster| spare.console_line(cluster, asked, guest::READY))?;
    teller
        .done(&format!("meanwhile the cluster takes writes: vm {SPARE} is created, and booted on node {}", spare.node));
    teller.show(&cluster.ask(asked, &["vm", "list"])?);
    Vm::look(cluster, asked, vm.name)?;
    Ok(())
}

/// Starts a killed node again, with the arguments of its first start.
fn recover(cluster: &mut Cluster, teller: &mut Teller, id: u64) -> Result<()> {
    cluster.restart(id)?;
    cluster.wait_for_voters(id, 3, 3)?;
    let digest = same_state(cluster)?;
    teller.done(&format!("node {id} is started again: 3 of 3 voters, all with the same state ({digest})"));
    Ok(())
}

/// Waits until all nodes have applied as much and come to the same; gives the beginning of the state's hash.
fn same_state(cluster: &mut Cluster) -> Result<String> {
    let ids = cluster.ids();
    cluster.wait_for("the same state on all nodes", |cluster| {
        let mut seen = Vec::new();
        for &id in &ids {
            let view = cluster.ask_json(id, &["cluster", "status", "--stale"])?;
            ensure!(view["seen_by"] == id, "node {id} was asked and {} answered", view["seen_by"]);
            let digest = cluster::text(&view, "/state_digest")?;
            seen.push((cluster::unsigned(&view, "/applied")?, digest.get(..10).unwrap_or(digest).to_owned()));
        }
        ensure!(seen.windows(2).all(|pair| pair[0] == pair[1]), "index and hash of the state differ: {seen:?}");
        Ok(seen.swap_remove(0).1)
    })
}

/// Holds the vm to be the one that ran before its node was killed.
fn adopted(cluster: &mut Cluster, teller: &mut Teller, vm: &Vm, uptime_before_s: f64, asked_at: Instant) -> Result<()> {
    let now = cluster.wait_for("the vm adopted by its node", |cluster| Vm::look(cluster, FOUNDER, vm.name))?;
    ensure!(
        now.pid == vm.pid,
        "the hypervisor was process {} and is process {}: it was started again",
        vm.pid,
        now.pid
    );
    let uptime_s = vm.uptime_s(cluster, FOUNDER)?;
    let least_s = uptime_before_s + asked_at.elapsed().as_secs_f64() * CLOCK_SHARE_MIN;
    ensure!(
        uptime_s > least_s,
        "the guest has been up for {uptime_s} s, and {least_s:.1} s are the least if it ran on"
    );
    teller.done(&format!(
        "node {} has adopted its vm {}: still process {}, up for {uptime_s:.0} s",
        vm.node, vm.name, vm.pid
    ));
    Ok(())
}

/// Stops and deletes the vms and ends the nodes.
pub(super) fn end(cluster: &mut Cluster, teller: &mut Teller, vm: &Vm) -> Result<()> {
    let stopped = cluster.ask_json(FOUNDER, &["vm", "stop", vm.name])?;
    let (phase, reason) = (cluster::text(&stopped, "/phase")?, cluster::text(&stopped, "/reason")?);
    // Another reason is given when the guest had to be forced.
    ensure!((phase, reason) == ("stopped", "stopped on request"), "vm {} is {phase}: {reason}", vm.name);
    vm.console_line(cluster, FOUNDER, "power button pressed")?;
    ensure!(!vm.is_alive(), "vm {} is stopped and its hypervisor {} is still there", vm.name, vm.pid);
    teller.done(&format!("vm {} is stopped by its power button; the guest shut itself down", vm.name));

    let spare = Vm::look(cluster, FOUNDER, SPARE)?;
    for gone in [vm, &spare] {
        cluster.ask(FOUNDER, &["vm", "delete", gone.name])?;
        ensure!(!gone.is_alive(), "vm {} is deleted and its hypervisor {} is still there", gone.name, gone.pid);
        for id in cluster.ids() {
            let folder = cluster.data_dir(id).join("vms").join(&gone.id);
            ensure!(!folder.exists(), "vm {} is deleted and left {}", gone.name, folder.display());
        }
    }
    let left = cluster.ask_json(FOUNDER, &["vm", "list"])?;
    ensure!(left == Value::Array(vec![]), "all vms were deleted, and `vm list` has {left}");
    teller.done(&format!("both vms are deleted, {SPARE} while it ran, and none of their files is left"));

    let dir = cluster.dir().to_owned();
    cluster.shut_down()?;
    ensure!(!dir.exists(), "{} is still there", dir.display());
    teller.done("all nodes ended on SIGTERM with exit code 0; no process and no file is left");
    Ok(())
}

/// Says what to try with a cluster that is left running, and how to end it.
pub(super) fn invite(cluster: &Cluster, binary: &Path, vm: &Vm) -> Result<()> {
    let (name, node) = (vm.name, vm.node);
    println!("demo: left running. To try it:\n");
    println!("  export BLIXARD_STATE_DIR={}", cluster.state_dir().display());
    println!("  export BLIXARD_NODE_ADDR={}", cluster.registry(FOUNDER).display());
    println!("  alias blixard={}", binary.display());
    println!("  blixard cluster status");
    println!("  blixard vm console {name}                           # Enter for a prompt, Ctrl-] leaves");
    println!("  blixard vm create mine --image {IMAGE} --memory {MEMORY}");
    println!("  blixard vm explain mine");
    println!("  kill -9 {}                                   # node {node}; vm {name} lives on", cluster.pid(node)?);
    if let Some(port) = vm.port {
        println!("  curl http://127.0.0.1:{port}/");
    }
    println!("\nTo end it, with all its vms and files:\n\n  cargo xtask demo --end {}", cluster.dir().display());
    Ok(())
}

fn survivor(cluster: &Cluster, victim: u64) -> Result<u64> {
    cluster.ids().into_iter().find(|&id| id != victim).context("no node is left")
}

fn nodes(view: &Value, pointer: &str) -> Result<Vec<u64>> {
    cluster::array(view, pointer)?.iter().map(|id| id.as_u64().with_context(|| format!("{id} is no node"))).collect()
}

fn array_item<'a>(view: &'a Value, pointer: &str, is_it: impl Fn(&Value) -> bool) -> Result<&'a Value> {
    let found = cluster::array(view, pointer)?.iter().find(|item| is_it(item));
    found.with_context(|| format!("not found among {pointer} of {view}"))
}

fn mebibytes(bytes: u64) -> String {
    // Only shown, to one decimal place.
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// The length of all files below a folder.
fn bytes_below(dir: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
        let entry = entry?;
        let meta = entry.metadata()?;
        bytes += if meta.is_dir() { bytes_below(&entry.path())? } else { meta.len() };
    }
    Ok(bytes)
}
