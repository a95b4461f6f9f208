//! Guests under QEMU: their images, their processes, and talking to them.

use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex};
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::cluster::Cluster;
use crate::program::session::Session;
use crate::program::{PATIENCE, as_text, eventually};

/// What the test guest prints when its shell is there.
pub(crate) const READY: &str = "blixard-guest: ready";
/// Guests that run at the same time, over all tests: each takes a processor to itself while it boots.
const SEATS: usize = 3;

static SEATS_TAKEN: Mutex<usize> = Mutex::new(0);
static SEAT_FREED: Condvar = Condvar::new();

/// The right to run some guests.
pub(crate) struct Seats(usize);

impl Seats {
    /// Waits until there is room for so many guests more.
    pub(crate) fn take(count: usize) -> Self {
        assert!(count <= SEATS);
        // A test that failed has given its seats back all the same.
        let taken = SEATS_TAKEN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let room = |taken: &mut usize| *taken + count > SEATS;
        let mut taken = SEAT_FREED.wait_while(taken, room).unwrap_or_else(std::sync::PoisonError::into_inner);
        *taken += count;
        Self(count)
    }
}

impl Drop for Seats {
    fn drop(&mut self) {
        *SEATS_TAKEN.lock().unwrap_or_else(std::sync::PoisonError::into_inner) -= self.0;
        SEAT_FREED.notify_all();
    }
}

/// A file of the test guest.
pub(crate) fn guest_file(name: &str) -> String {
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/guest");
    let path = std::env::var_os("BLIXARD_GUEST_DIR").map_or_else(default, PathBuf::from).join(name);
    assert!(path.is_file(), "there is no {}: run `cargo xtask guest` first", path.display());
    as_text(&path.canonicalize().unwrap()).to_owned()
}

impl Cluster {
    /// Imports the tiny guest as `tiny`.
    pub(crate) fn import_tiny(&self, id: usize) {
        let (kernel, initrd) = (guest_file("vmlinuz"), guest_file("initrd.gz"));
        let import = ["image", "import", "--name", "tiny", "--kernel", &kernel, "--initrd", &initrd];
        self.run(id, &[&import[..], &["--cmdline", "quiet"]].concat()).ends_with(0);
    }

    /// The console log of a vm so far.
    pub(crate) fn vm_log(&self, id: usize, name: &str) -> String {
        self.run(id, &["vm", "logs", name]).stdout
    }

    /// Waits until the guest has come up for the given time.
    #[track_caller]
    pub(crate) fn guest_is_up(&self, id: usize, name: &str, times: usize) {
        let deadline = Instant::now() + PATIENCE;
        while self.vm_log(id, name).matches(READY).count() < times {
            let late = || format!("{name} has not booted {times} times: {}", self.vm_log(id, name));
            assert!(Instant::now() < deadline, "{}", late());
        }
    }

    /// A console of a vm through a node.
    pub(crate) fn console(&self, id: usize, name: &str) -> Session {
        let registry = self.registry(id);
        let mut console = Session::start(&self.bench, &["vm", "console", name, "--addr", &registry]);
        console.sees("Ctrl-]");
        console.becomes_raw();
        console
    }

    /// The processes of a vm on the node that it runs on, by its guard's record.
    pub(crate) fn processes(&self, id: usize, vm: &Value) -> Processes {
        let record = self.vm_dir(id, vm).join("guard.json");
        Processes::read(&record).unwrap_or_else(|| panic!("{} is no record of a guard", record.display()))
    }

    /// The folder of a vm on the node that it runs on.
    pub(crate) fn vm_dir(&self, id: usize, vm: &Value) -> PathBuf {
        self.data_dir(id).join("vms").join(vm["id"].as_str().unwrap())
    }
}

/// What runs for a vm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Processes {
    pub(crate) guard: Pid,
    pub(crate) hypervisor: Pid,
}

impl Processes {
    fn read(record: &Path) -> Option<Self> {
        let record: Value = serde_json::from_slice(&std::fs::read(record).ok()?).ok()?;
        let pid = |key: &str| Some(Pid::from_raw(record[key]["pid"].as_i64()? as i32));
        Some(Self { guard: pid("guard")?, hypervisor: pid("hypervisor")? })
    }
}

/// Waits until a process has ended, reaped or not.
#[track_caller]
pub(crate) fn is_gone(pid: Pid) {
    eventually(&format!("the end of process {pid}"), || (!is_alive(pid)).then_some(()));
}

pub(crate) fn is_alive(pid: Pid) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// Ends all guests that run in a data directory.
pub(crate) fn end_all(data_dir: &Path) {
    let Ok(vms) = std::fs::read_dir(data_dir.join("vms")) else { return };
    for vm in vms.flatten() {
        let Some(processes) = Processes::read(&vm.path().join("guard.json")) else { continue };
        // Only what still is the guard of this folder: its number may belong to another process by now.
        let folder = std::fs::read_link(format!("/proc/{}/cwd", processes.guard));
        if folder.is_ok_and(|folder| folder == vm.path()) {
            // The guard takes the guest along.
            let _ = kill(processes.guard, Signal::SIGKILL);
        }
    }
}

/// Has the guest's shell carry out a command and gives what it printed.
#[track_caller]
pub(crate) fn ask_guest(console: &mut Session, marker: &str, command: &str) -> String {
    // The quotes keep what is typed from being taken for what is printed.
    console.press(format!("echo \"<\"'{marker}:'\"$({command})\"':{marker}'\">\"\r").as_bytes());
    let (begin, end) = (format!("<{marker}:"), format!(":{marker}>"));
    console.finds(command, |seen| {
        let answer = seen.split(&begin).nth(1)?;
        Some(answer.split_once(&end)?.0.trim().to_owned())
    })
}
