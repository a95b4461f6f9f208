//! The QEMU driver: prepares a vm's folder, hands it to a guard, and finds guards again.

mod argv;
mod launch;
mod prepare;

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout};

use crate::driver::{ConsoleError, Driver, LaunchError, ListError, LogError, RemoveError, SettleError, StopError};
use crate::folder::{CONSOLE_SOCKET, Folder, GuardRecord};
use crate::guard;
use crate::host::{self, Probed, cgroup};
use crate::identity::ProcessIdentity;
use crate::log::{self, LogChunk, LogPosition, LogSpan};
use crate::observe::{Observation, observe};
use crate::observed::{ObservedVm, VmState};
use crate::root::Root;
use crate::spec::LaunchSpec;

/// Time for a guard to write down the end after a kill order; the rest is killed by force.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a guard that no longer listens may take to write its last record: it only waits for its viewers and the disk.
const ENDING_TIMEOUT: Duration = Duration::from_secs(2);
/// Time for a hypervisor to change a guest over to another file, which takes it some milliseconds.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(10);
/// How often it is looked whether it has.
const SETTLE_POLL: Duration = Duration::from_millis(20);
/// How often the lock of a guard without a readable record is tried.
const LOCK_POLL: Duration = Duration::from_millis(10);
/// File in the root folder that keeps what was found out about the host.
const PROBE_CACHE: &str = "host.json";

/// Which accelerator is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AcceleratorChoice {
    /// KVM where it really runs guests, else the translator.
    #[default]
    Auto,
    /// KVM, or no launch.
    Kvm,
    /// QEMU's translator.
    Tcg,
}

/// What may be set about the QEMU driver.
#[derive(Debug, Clone)]
pub struct QemuOptions {
    /// The QEMU to run; without a slash it is searched in `PATH`.
    pub qemu: PathBuf,
    /// Which accelerator is used.
    pub accelerator: AcceleratorChoice,
    /// The control group below which vms get theirs; absent means one that systemd delegated, if any.
    pub cgroup_parent: Option<PathBuf>,
}

impl Default for QemuOptions {
    fn default() -> QemuOptions {
        QemuOptions {
            qemu: PathBuf::from("qemu-system-x86_64"),
            accelerator: AcceleratorChoice::default(),
            cgroup_parent: None,
        }
    }
}

/// Runs vms with QEMU, each under a guard of its own. One driver at a time may use a root folder.
pub struct QemuDriver {
    root: Root,
    guard_command: Vec<OsString>,
    options: QemuOptions,
    /// Found out once, by whoever asks first; the others wait for the answer.
    probed: Mutex<Option<Probed>>,
    /// Guards that are children of this process, to be reaped when they end.
    children: Mutex<Vec<Child>>,
    /// The guards that the last list showed as alive.
    watched: Mutex<Vec<ProcessIdentity>>,
    /// A byte through this pair ends a wait: something was launched or removed here.
    nudge: (UnixStream, UnixStream),
}

impl QemuDriver {
    /// A driver that keeps its vms in `root`. `guard_command` starts [`guard::run`] with the arguments that follow it,
    /// such as this program and `guard`.
    pub fn new(root: &Path, guard_command: Vec<OsString>, options: QemuOptions) -> io::Result<QemuDriver> {
        let nudge = UnixStream::pair()?;
        nudge.0.set_nonblocking(true)?;
        nudge.1.set_nonblocking(true)?;
        Ok(QemuDriver {
            root: Root::open(root)?,
            guard_command,
            options,
            probed: Mutex::new(None),
            children: Mutex::new(vec![]),
            watched: Mutex::new(vec![]),
            nudge,
        })
    }

    /// Whether KVM runs guests here, or why not. The first call after a start of the host takes a second or two.
    pub fn kvm(&self) -> io::Result<Result<(), String>> {
        Ok(self.probed()?.kvm)
    }

    fn probed(&self) -> io::Result<Probed> {
        let mut probed = self.probed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(probed) = &*probed {
            return Ok(probed.clone());
        }
        let found = host::probe_accelerator(&self.guard_command, &self.root.path().join(PROBE_CACHE))?;
        Ok(probed.insert(found).clone())
    }

    fn folder(&self, vm: &str) -> Option<Folder> {
        self.root.folder(vm).filter(Folder::exists)
    }

    fn observe(&self, vm: &str) -> Option<Observation> {
        self.reap();
        let held = self.root.hold(vm);
        // A launch that is under way is no reason to wait: it is seen as starting.
        let guard = held.try_lock();
        observe(&self.folder(vm)?, vm, guard.is_ok())
    }

    /// Lets ended guards of this process go; until then the kernel keeps their ids.
    fn reap(&self) {
        let mut children = self.children.lock().unwrap_or_else(PoisonError::into_inner);
        children.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
    }

    fn nudge(&self) {
        // A full pair means that the waiter has been nudged already.
        let _ = io::Write::write(&mut &self.nudge.0, &[1]);
    }

    /// Ends a run, by the guard if it listens, else by ending the guard, and waits until both processes are gone.
    fn end(&self, folder: &Folder, record: &GuardRecord) -> io::Result<()> {
        let guard = record.guard.open();
        let hypervisor = record.hypervisor.open();
        let ordered = guard::order_kill(folder);
        if let Some(guard) = guard {
            // One that does not listen may be about to end, with its word on how the run ended still to be written.
            let patience = if ordered.is_ok() { KILL_TIMEOUT } else { ENDING_TIMEOUT };
            if !guard.wait(patience) {
                guard.kill()?;
            }
            if !guard.wait(KILL_TIMEOUT) {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the guard does not end"));
            }
        }
        match hypervisor {
            Some(hypervisor) if !hypervisor.wait(KILL_TIMEOUT) => {
                Err(io::Error::new(io::ErrorKind::TimedOut, "the hypervisor does not end"))
            }
            _ => Ok(()),
        }
    }

    fn kill_held(&self, vm: &str) -> Result<(), StopError> {
        let unknown = || StopError::Unknown { vm: vm.to_owned() };
        let folder = self.folder(vm).ok_or_else(unknown)?;
        let ended = match observe(&folder, vm, true).ok_or_else(unknown)?.guard {
            Some(record) => self.end(&folder, &record),
            None => end_unrecorded(&folder),
        };
        ended.map_err(|source| StopError::Guard { doing: format!("kill vm {vm}"), source })
    }
}

/// Ends a guard whose record cannot be read: that one runs is known by its lock, and that it has ended, too.
fn end_unrecorded(folder: &Folder) -> io::Result<()> {
    if folder.lock()?.is_some() {
        return Ok(());
    }
    guard::order_kill(folder)?;
    let deadline = Instant::now() + KILL_TIMEOUT;
    while folder.lock()?.is_none() {
        if Instant::now() >= deadline {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the guard does not end"));
        }
        std::thread::sleep(LOCK_POLL);
    }
    Ok(())
}

impl Driver for QemuDriver {
    fn launch(&self, spec: &LaunchSpec) -> Result<(), LaunchError> {
        spec.validate()?;
        let held = self.root.hold(&spec.vm);
        let _holding = held.lock().unwrap_or_else(PoisonError::into_inner);
        let result = self.launch_held(spec);
        self.nudge();
        result
    }

    fn stop(&self, vm: &str, timeout: Duration) -> Result<(), StopError> {
        let unknown = || StopError::Unknown { vm: vm.to_owned() };
        let folder = self.folder(vm).ok_or_else(unknown)?;
        if self.observe(vm).ok_or_else(unknown)?.guard.is_none() {
            return Ok(());
        }
        match guard::order_stop(&folder, timeout) {
            Ok(()) => Ok(()),
            // It may have ended between the look and the order.
            Err(_) if self.observe(vm).is_none_or(|seen| seen.guard.is_none()) => Ok(()),
            Err(source) => Err(StopError::Guard { doing: format!("stop vm {vm}"), source }),
        }
    }

    fn kill(&self, vm: &str) -> Result<(), StopError> {
        let held = self.root.hold(vm);
        let _holding = held.lock().unwrap_or_else(PoisonError::into_inner);
        self.kill_held(vm)
    }

    fn settle(&self, vm: &str) -> Result<(), SettleError> {
        let unknown = || SettleError::Unknown { vm: vm.to_owned() };
        let guard = |source| SettleError::Guard { doing: format!("settle vm {vm}"), source };
        let held = self.root.hold(vm);
        let _holding = held.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = self.folder(vm).ok_or_else(unknown)?;
        let deadline = Instant::now() + SETTLE_TIMEOUT;
        let mut is_ordered = false;
        loop {
            // Who has ended, or reads the file already, has nothing to do.
            let record = observe(&folder, vm, true).ok_or_else(unknown)?.guard;
            let Some(record) = record.filter(|record| record.lazy) else { return Ok(()) };
            if !is_ordered {
                guard::order_settle(&folder).map_err(guard)?;
                is_ordered = true;
                continue;
            }
            if let Some(detail) = record.unsettled {
                return Err(SettleError::Hypervisor { detail });
            }
            if Instant::now() >= deadline {
                let detail = format!("it has not answered within {} s", SETTLE_TIMEOUT.as_secs());
                return Err(SettleError::Hypervisor { detail });
            }
            std::thread::sleep(SETTLE_POLL);
        }
    }

    fn list(&self) -> Result<Vec<ObservedVm>, ListError> {
        let context = |source| ListError { root: self.root.path().display().to_string(), source };
        let seen: Vec<Observation> =
            self.root.vms().map_err(context)?.iter().filter_map(|vm| self.observe(vm)).collect();
        let alive = seen.iter().filter_map(|seen| seen.guard.as_ref()).map(|record| record.guard.clone());
        *self.watched.lock().unwrap_or_else(PoisonError::into_inner) = alive.collect();
        Ok(seen.into_iter().map(|seen| seen.vm).collect())
    }

    fn remove(&self, vm: &str) -> Result<(), RemoveError> {
        let held = self.root.hold(vm);
        let _holding = held.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(folder) = self.folder(vm) else { return Ok(()) };
        self.kill_held(vm)?;
        self.reap();
        if let Ok(Some(plan)) = folder.plan()
            && let Ok(group) = plan.group
        {
            cgroup::remove(&group).map_err(RemoveError::Files)?;
        }
        self.root.delete(vm).map_err(RemoveError::Files)?;
        self.nudge();
        Ok(())
    }

    fn wait_change(&self, timeout: Duration) -> bool {
        let watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut handles = vec![];
        for identity in &watched {
            match identity.open() {
                Some(handle) => handles.push(handle),
                // Ended since the list: that is the change.
                None => return true,
            }
        }
        let mut fds: Vec<PollFd<'_>> =
            handles.iter().map(|handle| PollFd::new(handle.as_fd(), PollFlags::POLLIN)).collect();
        fds.push(PollFd::new(self.nudge.1.as_fd(), PollFlags::POLLIN));
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
        // Interrupted counts as "something may have changed".
        let has_changed = nix::poll::poll(&mut fds, timeout) != Ok(0);
        let mut nudges = [0; 64];
        while matches!((&self.nudge.1).read(&mut nudges), Ok(got) if got > 0) {}
        has_changed
    }

    fn console(&self, vm: &str) -> Result<UnixStream, ConsoleError> {
        let unknown = || ConsoleError::Unknown { vm: vm.to_owned() };
        let folder = self.folder(vm).ok_or_else(unknown)?;
        match self.observe(vm).ok_or_else(unknown)?.vm.state {
            VmState::Running(_) => folder.connect(CONSOLE_SOCKET).map_err(ConsoleError::Connect),
            _ => Err(ConsoleError::NotRunning),
        }
    }

    fn log_span(&self, vm: &str) -> Result<LogSpan, LogError> {
        let folder = self.folder(vm).ok_or_else(|| LogError::Unknown { vm: vm.to_owned() })?;
        log::span(folder.path()).map_err(LogError::Read)
    }

    fn read_log(&self, vm: &str, from: LogPosition, bytes_max: usize) -> Result<LogChunk, LogError> {
        let folder = self.folder(vm).ok_or_else(|| LogError::Unknown { vm: vm.to_owned() })?;
        log::read(folder.path(), from, bytes_max).map_err(LogError::Read)
    }
}
