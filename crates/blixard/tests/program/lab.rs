//! A network of the test's own: hosts are network namespaces on one bridge, which is in a namespace as well, so that nothing
//! of the machine's own network is touched. Needs root.

use std::fs::File;
use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::sched::{CloneFlags, setns};

/// Where `ip netns` keeps its namespaces.
const NAMESPACES: &str = "/run/netns";
/// What the names of this program's namespaces begin with; then come the process and the lab.
const PREFIX: &str = "blixard-lab-";

/// In which direction a host is cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    /// Nothing comes through.
    BothWays,
    /// The host hears the others, who do not hear it.
    Speech,
    /// The others hear the host, which does not hear them.
    Hearing,
}

/// Hosts 1 to n. They are gone when it is dropped; those of a process that was killed are removed by the next lab.
pub(crate) struct Lab {
    name: String,
    hosts: usize,
}

#[track_caller]
fn call(program: &str, arguments: &str) {
    let output = Command::new(program).args(arguments.split(' ')).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments}: {said}(network namespaces are made by root)");
}

fn remove_leftovers() {
    for entry in std::fs::read_dir(NAMESPACES).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let process = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if process.is_some_and(|process| !std::path::Path::new("/proc").join(process).exists()) {
            // Another process may be at it as well.
            let _ = Command::new("ip").args(["netns", "del", &name]).output();
        }
    }
}

impl Lab {
    pub(crate) fn new(hosts: usize) -> Self {
        static LABS: AtomicUsize = AtomicUsize::new(0);
        remove_leftovers();
        let number = LABS.fetch_add(1, Ordering::Relaxed);
        let lab = Self { name: format!("{PREFIX}{}-{number}", std::process::id()), hosts };
        let hub = lab.namespace(0);
        call("ip", &format!("netns add {hub}"));
        call("ip", &format!("-n {hub} link add bridge type bridge"));
        call("ip", &format!("-n {hub} link set bridge up"));
        for host in 1..=hosts {
            let (namespace, address) = (lab.namespace(host), lab.address(host));
            call("ip", &format!("netns add {namespace}"));
            call("ip", &format!("-n {hub} link add p{host} type veth peer name eth0 netns {namespace}"));
            call("ip", &format!("-n {hub} link set p{host} master bridge"));
            call("ip", &format!("-n {hub} link set p{host} up"));
            call("ip", &format!("-n {namespace} addr add {address}/24 dev eth0"));
            call("ip", &format!("-n {namespace} link set lo up"));
            call("ip", &format!("-n {namespace} link set eth0 up"));
        }
        lab
    }

    fn namespace(&self, host: usize) -> String {
        format!("{}-{host}", self.name)
    }

    pub(crate) fn address(&self, host: usize) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, u8::try_from(host).unwrap())
    }

    /// Carries something out on a host. What it starts, threads and processes, stays there.
    pub(crate) fn on<T: Send>(&self, host: usize, act: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(format!("{NAMESPACES}/{}", self.namespace(host))).unwrap();
        let acting = move || {
            // Of this thread alone, which ends with what it does.
            setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            act()
        };
        std::thread::scope(|scope| match scope.spawn(acting).join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    /// Cuts a host off, in place of what cut it off before. Packets are lost on their way, as by a broken cable: nobody is
    /// told.
    pub(crate) fn cut(&self, host: usize, way: Cut) {
        self.heal(host);
        let hub = self.namespace(0);
        let chain = "{ type filter hook forward priority 0 ; }";
        call("ip", &format!("netns exec {hub} nft add table bridge cut{host}"));
        call("ip", &format!("netns exec {hub} nft add chain bridge cut{host} way {chain}"));
        if way != Cut::Hearing {
            call("ip", &format!("netns exec {hub} nft add rule bridge cut{host} way iifname p{host} drop"));
        }
        if way != Cut::Speech {
            call("ip", &format!("netns exec {hub} nft add rule bridge cut{host} way oifname p{host} drop"));
        }
    }

    /// Lets everything through to and from a host again.
    pub(crate) fn heal(&self, host: usize) {
        let table = format!("cut{host}");
        let hub = self.namespace(0);
        // There is none when it was not cut off.
        let _ = Command::new("ip").args(["netns", "exec", &hub, "nft", "delete", "table", "bridge", &table]).output();
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for host in 0..=self.hosts {
            // A lab that was not made whole lacks some.
            let _ = Command::new("ip").args(["netns", "del", &self.namespace(host)]).output();
        }
    }
}
