//! What the tests stand on: the binary in an environment of its own, and a node with the fake driver.

use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// How long a test waits for what must come about. Far more than it takes, because machines are busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A command of the program, blind to the environment of whoever runs the tests.
pub(crate) fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blixard"));
    command.args(arguments).stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("BLIXARD_") || name == "NO_COLOR" {
            command.env_remove(name);
        }
    }
    command
}

/// What a command said, and how it ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    pub(crate) fn of(output: Output) -> Self {
        Self {
            code: output.status.code().expect("the command ended by itself"),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Holds the exit code, and shows everything when it is another.
    #[track_caller]
    pub(crate) fn ends_with(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self:?}");
        self
    }

    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// A folder for a test, with the state of its user.
pub(crate) struct Bench {
    dir: TempDir,
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        let path = self.path(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = command(arguments);
        command.env("BLIXARD_STATE_DIR", self.path("state")).current_dir(self.dir.path());
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Ran {
        Ran::of(self.command(arguments).output().unwrap())
    }

    /// Starts a node with the fake driver, and returns when it answers.
    pub(crate) fn node(&self) -> Node {
        let address = free_address();
        let log = std::fs::File::create(self.path("node.log")).unwrap();
        let arguments = ["node", "--id", "1", "--bind", &address, "--data-dir", "data", "--hypervisor", "fake"];
        let child = self.command(&arguments).args(["--label", "zone=here"]).stderr(log).spawn().unwrap();
        let node = Node { child, address, registry: self.path("data/node-1-registry.json") };
        let deadline = Instant::now() + PATIENCE;
        loop {
            let asked = self.run(&["cluster", "status", "--addr", &node.address]);
            if asked.code == 0 {
                return node;
            }
            let log = || std::fs::read_to_string(self.path("node.log")).unwrap();
            assert!(Instant::now() < deadline, "the node does not answer: {asked:?}\n{}", log());
        }
    }

    /// A raw disk with a boot sector and some content.
    pub(crate) fn disk(&self, name: &str, seed: u8) -> String {
        let mut disk: Vec<u8> = (0..3_u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8 ^ seed).collect();
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        self.write(name, disk)
    }
}

/// A running node; it is killed when the test is over.
pub(crate) struct Node {
    pub(crate) child: Child,
    pub(crate) address: String,
    pub(crate) registry: PathBuf,
}

impl Node {
    pub(crate) fn registry(&self) -> &str {
        as_text(&self.registry)
    }

    /// Asks the node to stop, and gives its exit code.
    pub(crate) fn stop(&mut self) -> Option<i32> {
        terminate(&self.child);
        self.child.wait().unwrap().code()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // It may have ended in the course of the test.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn as_text(path: &Path) -> &str {
    path.to_str().unwrap()
}

pub(crate) fn terminate(child: &Child) {
    signal(child, nix::sys::signal::Signal::SIGTERM);
}

pub(crate) fn signal(child: &Child, signal: nix::sys::signal::Signal) {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, signal).unwrap();
}

/// Waits for a condition.
#[track_caller]
pub(crate) fn eventually<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what} did not come about");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A loopback address whose UDP port is free, and the TCP port 1000 above, too.
pub(crate) fn free_address() -> String {
    for _ in 0..1000 {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        if port.checked_add(1000).is_some_and(|port| TcpListener::bind(("127.0.0.1", port)).is_ok()) {
            return format!("127.0.0.1:{port}");
        }
    }
    panic!("no free port");
}
