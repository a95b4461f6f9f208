//! Hosts of a bench: network namespaces on one bridge, which is in a namespace as well, so that nothing of the machine's own
//! network is touched. Each has a link of its own, as fast in both directions as was asked for. Needs root.

use crate::process;
use anyhow::{Context, Result, bail};
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;

/// Where `ip netns` keeps its namespaces.
const NAMESPACES: &str = "/run/netns";
/// What the names of such namespaces begin with; then comes the process.
const PREFIX: &str = "blixard-bench-";
/// What may go out at once, before the rate holds it: more than the largest packet that the kernel hands over whole.
const BURST: &str = "256kb";
/// How long a packet may wait for its turn, before it is lost.
const QUEUE: &str = "50ms";

/// Hosts 1 to n. They are gone when it is dropped; those of a process that was killed are removed by the next lab.
pub(super) struct Lab {
    name: String,
    hosts: usize,
}

fn call(arguments: &str) -> Result<()> {
    let ip = process::find("ip").context("find `ip`, which is of the package iproute2")?;
    process::output(Command::new(ip).args(arguments.split(' '))).map(drop)
}

fn remove_leftovers() {
    for entry in fs::read_dir(NAMESPACES).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let process = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if process.is_some_and(|process| !Path::new("/proc").join(process).exists()) {
            // Another process may be at it as well.
            let _ = call(&format!("netns del {name}"));
        }
    }
}

impl Lab {
    /// As many hosts, with links of so many Mbit/s.
    pub(super) fn new(hosts: usize, link_mbit: u32) -> Result<Self> {
        if !nix::unistd::geteuid().is_root() {
            bail!("hosts of their own are network namespaces, which only root can make: run this bench as root");
        }
        remove_leftovers();
        let lab = Self { name: format!("{PREFIX}{}", std::process::id()), hosts };
        let hub = lab.namespace(0);
        call(&format!("netns add {hub}"))?;
        call(&format!("-n {hub} link add bridge type bridge"))?;
        call(&format!("-n {hub} link set bridge up"))?;
        for host in 1..=hosts {
            let (namespace, address) = (lab.namespace(host), lab.address(host));
            call(&format!("netns add {namespace}"))?;
            call(&format!("-n {hub} link add p{host} type veth peer name eth0 netns {namespace}"))?;
            call(&format!("-n {hub} link set p{host} master bridge"))?;
            call(&format!("-n {hub} link set p{host} up"))?;
            call(&format!("-n {namespace} addr add {address}/24 dev eth0"))?;
            call(&format!("-n {namespace} link set lo up"))?;
            call(&format!("-n {namespace} link set eth0 up"))?;
            for (place, device) in [(&namespace, "eth0".to_owned()), (&hub, format!("p{host}"))] {
                let limit = format!("rate {link_mbit}mbit burst {BURST} latency {QUEUE}");
                call(&format!("netns exec {place} tc qdisc add dev {device} root tbf {limit}"))?;
            }
        }
        Ok(lab)
    }

    fn namespace(&self, host: usize) -> String {
        format!("{}-{host}", self.name)
    }

    pub(super) fn address(&self, host: usize) -> Ipv4Addr {
        Ipv4Addr::new(10, 78, 0, u8::try_from(host).expect("a lab has fewer than 250 hosts"))
    }

    /// A command on a host.
    pub(super) fn command(&self, host: usize, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace(host)]).arg(program);
        command
    }

    /// Bytes that a host has sent over its link.
    pub(super) fn sent_bytes(&self, host: usize) -> Result<u64> {
        let mut look = self.command(host, Path::new("cat"));
        let text = process::text(look.arg("/sys/class/net/eth0/statistics/tx_bytes"))?;
        text.trim().parse().with_context(|| format!("read {text:?} as a number of bytes"))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for host in 0..=self.hosts {
            // A lab that was not made whole lacks some.
            let _ = call(&format!("netns del {}", self.namespace(host)));
        }
    }
}
