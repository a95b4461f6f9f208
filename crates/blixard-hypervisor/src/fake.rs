//! A driver without a hypervisor: keeps the whole contract, runs nothing, and fails where its script says so.
//!
//! Its state is on disk like that of the real one, so that it survives a restart of the process and can be steered from
//! another. A fake guest is ready at once, echoes what is typed on its console, obeys a stop at once, and shuts down when
//! somebody types `poweroff`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::driver::{ConsoleError, Driver, LaunchError, ListError, LogError, RemoveError, SettleError, StopError};
use crate::folder::{ExitRecord, Folder, now_ms, read_record, write_record};
use crate::log::{self, LogChunk, LogPosition, LogSpan, LogWriter};
use crate::observed::{Accelerator, Confinement, ExitReason, ObservedVm, Running, VmState};
use crate::order::{Standing, standing};
use crate::root::Root;
use crate::spec::{LAZY_SOCKET, LaunchSpec};

const SCRIPT_FILE: &str = "script.json";
const RUN_FILE: &str = "fake.json";
/// What the last viewers see of the past, as from a guard.
const REPLAY_BYTES_MAX: u64 = 4096;
/// How often a wait looks for changes, which may come from another process.
const CHANGE_POLL: Duration = Duration::from_millis(10);
/// A viewer that does not read loses output after this; nothing else waits for it.
const VIEWER_TIMEOUT: Duration = Duration::from_millis(10);
/// What a user types to have the guest shut itself down.
const POWEROFF: &[u8] = b"poweroff";

/// What goes wrong, by vm id or vm name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FakeScript {
    /// Launches that fail, and the reason that they give.
    pub launch_failures: BTreeMap<String, String>,
    /// Guests that ignore a stop, so that it is forced.
    pub ignore_stop: BTreeSet<String>,
}

/// The fake driver.
pub struct FakeDriver {
    shared: Arc<Shared>,
}

struct Shared {
    root: Root,
    /// Everything that changes a vm or shows its console, one at a time.
    consoles: Mutex<HashMap<String, Vec<UnixStream>>>,
    /// What the last list showed as running.
    watched: Mutex<Vec<(String, u64, u64)>>,
}

/// A run that goes on.
#[derive(Debug, Serialize, Deserialize)]
struct RunRecord {
    epoch: u64,
    run: u64,
    since_ms: u64,
    stop: Option<StopRecord>,
    /// Whether its base is read from a server.
    #[serde(default)]
    lazy: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct StopRecord {
    ordered_ms: u64,
    forced_ms: u64,
}

type Consoles<'a> = MutexGuard<'a, HashMap<String, Vec<UnixStream>>>;

impl FakeDriver {
    /// A fake driver that keeps its vms in `root`.
    pub fn new(root: &Path) -> io::Result<FakeDriver> {
        let root = Root::open(root)?;
        let (consoles, watched) = (Mutex::default(), Mutex::default());
        Ok(FakeDriver { shared: Arc::new(Shared { root, consoles, watched }) })
    }

    /// Says from now on what goes wrong.
    pub fn set_script(&self, script: &FakeScript) -> io::Result<()> {
        write_record(&self.shared.script_path(), script)
    }

    /// Ends a run as if by itself, such as with a signal; false when the vm does not run.
    pub fn end_run(&self, vm: &str, reason: ExitReason) -> io::Result<bool> {
        self.shared.end_run(&mut self.shared.lock(), vm, reason)
    }
}

impl Shared {
    fn script_path(&self) -> PathBuf {
        self.root.path().join(SCRIPT_FILE)
    }

    fn script(&self) -> io::Result<FakeScript> {
        Ok(read_record(&self.script_path())?.unwrap_or_default())
    }

    fn lock(&self) -> Consoles<'_> {
        self.consoles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn folder(&self, vm: &str) -> Option<Folder> {
        self.root.folder(vm).filter(Folder::exists)
    }

    fn observe(&self, consoles: &mut Consoles<'_>, vm: &str) -> Option<ObservedVm> {
        let folder = self.folder(vm)?;
        let damaged = |detail: String| VmState::Damaged { detail };
        let (name, epoch, run, restarts, state) = match folder.spec() {
            Err(error) => (String::new(), 0, 0, 0, damaged(error.to_string())),
            Ok(None) => (String::new(), 0, 0, 0, interrupted()),
            Ok(Some(spec)) => {
                let state = self.state(consoles, &folder, &spec).unwrap_or_else(damaged);
                (spec.name, spec.epoch, spec.run, spec.restarts, state)
            }
        };
        let last_exit = folder.last_exit();
        Some(ObservedVm { vm: vm.to_owned(), name, epoch, run, restarts, last_exit, state })
    }

    fn state(&self, consoles: &mut Consoles<'_>, folder: &Folder, spec: &LaunchSpec) -> Result<VmState, String> {
        let exit = folder.exit().map_err(|error| error.to_string())?;
        if let Some(exit) = exit.filter(|exit| (exit.epoch, exit.run) == (spec.epoch, spec.run)) {
            return Ok(VmState::Exited { reason: exit.reason, at_ms: exit.at_ms, ran_ms: exit.ran_ms });
        }
        let record = run_record(folder).map_err(|error| format!("{RUN_FILE}: {error}"))?;
        let Some(record) = record.filter(|record| (record.epoch, record.run) == (spec.epoch, spec.run)) else {
            return Ok(interrupted());
        };
        if let Some(stop) = record.stop.as_ref().filter(|stop| stop.forced_ms <= now_ms()) {
            let reason = ExitReason::Forced { timeout_ms: stop.forced_ms - stop.ordered_ms };
            let exit = self.write_exit(consoles, folder, spec, reason).map_err(|error| error.to_string())?;
            return Ok(VmState::Exited { reason: exit.reason, at_ms: exit.at_ms, ran_ms: exit.ran_ms });
        }
        Ok(VmState::Running(Running {
            pid: 0,
            since_ms: record.since_ms,
            stopping: record.stop.is_some(),
            lazy: record.lazy,
            accelerator: Accelerator::Fake,
            confinement: Confinement {
                privileges: None,
                shared_user: None,
                limits: None,
                unlimited: Some("no process runs".to_owned()),
            },
        }))
    }

    fn write_exit(
        &self,
        consoles: &mut Consoles<'_>,
        folder: &Folder,
        spec: &LaunchSpec,
        reason: ExitReason,
    ) -> io::Result<ExitRecord> {
        let at_ms = now_ms();
        let since_ms = run_record(folder)?.map_or(at_ms, |record| record.since_ms);
        let ran_ms = at_ms.saturating_sub(since_ms);
        let exit = ExitRecord { epoch: spec.epoch, run: spec.run, reason, at_ms, ran_ms };
        folder.write_exit(&exit)?;
        for viewer in consoles.remove(&spec.vm).unwrap_or_default() {
            // A viewer that has left needs no goodbye.
            let _ = viewer.shutdown(Shutdown::Both);
        }
        Ok(exit)
    }

    fn end_run(&self, consoles: &mut Consoles<'_>, vm: &str, reason: ExitReason) -> io::Result<bool> {
        let Some(folder) = self.folder(vm) else { return Ok(false) };
        let is_running = matches!(self.observe(consoles, vm), Some(seen) if is_running(&seen));
        if let (true, Ok(Some(spec))) = (is_running, folder.spec()) {
            self.write_exit(consoles, &folder, &spec, reason)?;
        }
        Ok(is_running)
    }

    /// What the guest says: to the log and to every viewer.
    fn output(consoles: &mut Consoles<'_>, folder: &Folder, vm: &str, bytes: &[u8]) -> io::Result<()> {
        LogWriter::open(folder.path())?.append(bytes)?;
        for viewer in consoles.entry(vm.to_owned()).or_default() {
            // One that does not read in time loses this.
            let _ = viewer.write_all(bytes);
        }
        Ok(())
    }

    /// Body of the thread that is the guest's ear for one viewer.
    fn listen(&self, vm: &str, mut viewer: UnixStream) {
        let mut buffer = [0; 1024];
        while let Ok(got) = viewer.read(&mut buffer)
            && got > 0
        {
            let mut consoles = self.lock();
            let Some(folder) = self.folder(vm) else { return };
            let typed = &buffer[..got];
            let is_poweroff = typed.windows(POWEROFF.len()).any(|window| window == POWEROFF);
            let done = Self::output(&mut consoles, &folder, vm, typed).and_then(|()| match is_poweroff {
                true => self.end_run(&mut consoles, vm, ExitReason::GuestShutdown),
                false => Ok(true),
            });
            if done.is_err() {
                return;
            }
        }
    }
}

fn run_record(folder: &Folder) -> io::Result<Option<RunRecord>> {
    read_record(&folder.path().join(RUN_FILE))
}

/// Connects to the server of a base, as a hypervisor does.
fn reach(server: &Path) -> io::Result<()> {
    let dir = File::open(server)?;
    let fd = std::os::fd::AsRawFd::as_raw_fd(&dir);
    UnixStream::connect(format!("/proc/self/fd/{fd}/{LAZY_SOCKET}")).map(drop)
}

fn is_running(seen: &ObservedVm) -> bool {
    matches!(seen.state, VmState::Running(_))
}

fn interrupted() -> VmState {
    let detail = "it was interrupted".to_owned();
    VmState::Exited { reason: ExitReason::LaunchFailed { detail }, at_ms: 0, ran_ms: 0 }
}

impl Driver for FakeDriver {
    fn launch(&self, spec: &LaunchSpec) -> Result<(), LaunchError> {
        spec.validate()?;
        let context = |doing: &'static str| move |source| LaunchError::Prepare { doing: doing.to_owned(), source };
        let shared = &self.shared;
        let mut consoles = shared.lock();
        if let Some(seen) = shared.observe(&mut consoles, &spec.vm) {
            match standing(&seen, spec)? {
                Standing::RunsAlready => return Ok(()),
                Standing::MayStart | Standing::Starting => {}
            }
        }
        let folder = shared
            .root
            .folder(&spec.vm)
            .ok_or_else(|| LaunchError::Unsuitable { detail: format!("{} is not a vm id", spec.vm) })?;
        folder.create().map_err(context("make the folder of the vm"))?;
        folder.write_spec(spec).map_err(context("write spec.json"))?;
        folder.clear_run().map_err(context("clear the last run"))?;
        let script = shared.script().map_err(context("read the script"))?;
        let named = |vms: &BTreeMap<String, String>| vms.get(&spec.vm).or_else(|| vms.get(&spec.name)).cloned();
        if let Some(detail) = named(&script.launch_failures) {
            let reason = ExitReason::LaunchFailed { detail: detail.clone() };
            shared.write_exit(&mut consoles, &folder, spec, reason).map_err(context("write exit.json"))?;
            return Err(LaunchError::Hypervisor { detail });
        }
        let lazy = spec.boot.base().and_then(|base| base.lazy.as_ref());
        if let Some(lazy) = lazy {
            reach(&lazy.server).map_err(context("reach the server of the base"))?;
        }
        let (since_ms, lazy) = (now_ms(), lazy.is_some());
        let record = RunRecord { epoch: spec.epoch, run: spec.run, since_ms, stop: None, lazy };
        write_record(&folder.path().join(RUN_FILE), &record).map_err(context("write the record of the run"))?;
        let hello = format!("fake guest {}, epoch {}, run {}\r\n", spec.name, spec.epoch, spec.run);
        let hello = format!("{hello}blixard-guest: ready\r\n");
        Shared::output(&mut consoles, &folder, &spec.vm, hello.as_bytes()).map_err(context("write the console log"))
    }

    fn stop(&self, vm: &str, timeout: Duration) -> Result<(), StopError> {
        let shared = &self.shared;
        let mut consoles = shared.lock();
        let (folder, seen) = shared
            .folder(vm)
            .zip(shared.observe(&mut consoles, vm))
            .ok_or_else(|| StopError::Unknown { vm: vm.to_owned() })?;
        let mut order = || -> io::Result<()> {
            let script = shared.script()?;
            if ![vm, &seen.name].iter().any(|name| script.ignore_stop.contains(*name)) {
                return shared.end_run(&mut consoles, vm, ExitReason::Stopped).map(drop);
            }
            let Some(mut record) = run_record(&folder)?.filter(|_| is_running(&seen)) else { return Ok(()) };
            let now_ms = now_ms();
            let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
            let stop = record.stop.get_or_insert(StopRecord { ordered_ms: now_ms, forced_ms: u64::MAX });
            stop.forced_ms = stop.forced_ms.min(now_ms.saturating_add(timeout_ms));
            write_record(&folder.path().join(RUN_FILE), &record)
        };
        order().map_err(|source| StopError::Guard { doing: format!("stop vm {vm}"), source })
    }

    fn settle(&self, vm: &str) -> Result<(), SettleError> {
        let shared = &self.shared;
        let unknown = || SettleError::Unknown { vm: vm.to_owned() };
        let mut consoles = shared.lock();
        let (folder, seen) = shared.folder(vm).zip(shared.observe(&mut consoles, vm)).ok_or_else(unknown)?;
        let base = folder.spec().ok().flatten().and_then(|spec| spec.boot.base().map(|base| base.path.clone()));
        let settle = || -> io::Result<()> {
            let record = run_record(&folder)?.filter(|record| record.lazy && is_running(&seen));
            let (Some(mut record), Some(base)) = (record, base) else { return Ok(()) };
            drop(File::open(base)?);
            record.lazy = false;
            write_record(&folder.path().join(RUN_FILE), &record)
        };
        settle().map_err(|source| SettleError::Guard { doing: format!("settle vm {vm}"), source })
    }

    fn kill(&self, vm: &str) -> Result<(), StopError> {
        let shared = &self.shared;
        shared.folder(vm).ok_or_else(|| StopError::Unknown { vm: vm.to_owned() })?;
        shared
            .end_run(&mut shared.lock(), vm, ExitReason::Killed)
            .map(drop)
            .map_err(|source| StopError::Guard { doing: format!("kill vm {vm}"), source })
    }

    fn list(&self) -> Result<Vec<ObservedVm>, ListError> {
        let shared = &self.shared;
        let mut consoles = shared.lock();
        let vms = shared.root.vms();
        let vms = vms.map_err(|source| ListError { root: shared.root.path().display().to_string(), source })?;
        let seen: Vec<_> = vms.iter().filter_map(|vm| shared.observe(&mut consoles, vm)).collect();
        let running = seen.iter().filter(|seen| is_running(seen));
        let running = running.map(|seen| (seen.vm.clone(), seen.epoch, seen.run)).collect();
        *shared.watched.lock().unwrap_or_else(PoisonError::into_inner) = running;
        Ok(seen)
    }

    fn remove(&self, vm: &str) -> Result<(), RemoveError> {
        let shared = &self.shared;
        let mut consoles = shared.lock();
        shared.end_run(&mut consoles, vm, ExitReason::Killed).map_err(RemoveError::Files)?;
        match shared.folder(vm) {
            Some(_) => shared.root.delete(vm).map_err(RemoveError::Files),
            None => Ok(()),
        }
    }

    fn wait_change(&self, timeout: Duration) -> bool {
        let deadline = Instant::now().checked_add(timeout);
        let watched = self.shared.watched.lock().unwrap_or_else(PoisonError::into_inner).clone();
        loop {
            let has_ended = watched.iter().any(|(vm, epoch, run)| {
                let seen = self.shared.observe(&mut self.shared.lock(), vm);
                seen.is_none_or(|seen| !is_running(&seen) || (seen.epoch, seen.run) != (*epoch, *run))
            });
            if has_ended {
                return true;
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return false;
            }
            // Where nothing runs, nothing ends.
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            std::thread::sleep(if watched.is_empty() { left.unwrap_or(CHANGE_POLL) } else { CHANGE_POLL });
        }
    }

    fn console(&self, vm: &str) -> Result<UnixStream, ConsoleError> {
        let shared = &self.shared;
        let mut consoles = shared.lock();
        let seen = shared.observe(&mut consoles, vm).ok_or_else(|| ConsoleError::Unknown { vm: vm.to_owned() })?;
        if !is_running(&seen) {
            return Err(ConsoleError::NotRunning);
        }
        let folder = shared.folder(vm).ok_or(ConsoleError::NotRunning)?;
        let mut connect = || -> io::Result<UnixStream> {
            let (ours, theirs) = UnixStream::pair()?;
            ours.set_write_timeout(Some(VIEWER_TIMEOUT))?;
            let end = log::span(folder.path())?.end.0;
            let past = LogPosition(end.saturating_sub(REPLAY_BYTES_MAX));
            (&ours).write_all(&log::read(folder.path(), past, REPLAY_BYTES_MAX as usize)?.bytes)?;
            let (ear, ear_shared, ear_vm) = (ours.try_clone()?, self.shared.clone(), vm.to_owned());
            std::thread::Builder::new().name("fake-console".into()).spawn(move || ear_shared.listen(&ear_vm, ear))?;
            consoles.entry(vm.to_owned()).or_default().push(ours);
            Ok(theirs)
        };
        connect().map_err(ConsoleError::Connect)
    }

    fn log_span(&self, vm: &str) -> Result<LogSpan, LogError> {
        let folder = self.shared.folder(vm).ok_or_else(|| LogError::Unknown { vm: vm.to_owned() })?;
        log::span(folder.path()).map_err(LogError::Read)
    }

    fn read_log(&self, vm: &str, from: LogPosition, bytes_max: usize) -> Result<LogChunk, LogError> {
        let folder = self.shared.folder(vm).ok_or_else(|| LogError::Unknown { vm: vm.to_owned() })?;
        log::read(folder.path(), from, bytes_max).map_err(LogError::Read)
    }
}
