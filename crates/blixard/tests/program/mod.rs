//! What every test of the program stands on: the binary in an environment of its own, free ports, and waiting.

pub(crate) mod lab;
pub(crate) mod session;

use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
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
        command.env("BLIXARD_STATE_DIR", self.path("state")).env("BLIXARD_CONFIG_DIR", self.path("config"));
        command.current_dir(self.dir.path());
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Ran {
        Ran::of(self.command(arguments).output().unwrap())
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
pub(crate) fn eventually<T>(what: &str, check: impl FnMut() -> Option<T>) -> T {
    patiently(PATIENCE, what, check)
}

/// Waits for a condition that takes its time.
#[track_caller]
pub(crate) fn patiently<T>(patience: Duration, what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what} did not come about");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Ports that nodes of tests listen on: below those that the system gives out by itself, so that no client takes one
/// between the look and the bind.
const PORTS: std::ops::Range<u16> = 20_000..30_000;
/// Ports apart that the processes of a test run begin to look at, so that several runs at once seldom meet.
const PORTS_A_PROCESS: u16 = 100;

/// A port of this host address whose UDP port is free, and the TCP port 1000 above, too.
pub(crate) fn free_port(host: &str) -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let places = PORTS.len() as u16 / PORTS_A_PROCESS;
    let begin = (std::process::id() % u32::from(places)) as u16 * PORTS_A_PROCESS;
    for _ in PORTS {
        let port = PORTS.start + (begin + NEXT.fetch_add(1, Ordering::Relaxed)) % PORTS.len() as u16;
        if UdpSocket::bind((host, port)).is_ok() && TcpListener::bind((host, port + 1000)).is_ok() {
            return port;
        }
    }
    panic!("no free port");
}

/// A loopback address with such a port.
pub(crate) fn free_address() -> String {
    format!("127.0.0.1:{}", free_port("127.0.0.1"))
}
