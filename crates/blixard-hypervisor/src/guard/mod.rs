//! The guard: one small process per run of a vm, the parent of its hypervisor.
//!
//! It exists so that a vm outlives the process that launched it. It owns the hypervisor's monitor and serial console,
//! keeps the console log, takes orders on `control.sock`, serves viewers on `console.sock`, and writes down how the run
//! ended. It never decides to start anything again, and never talks to anybody outside its folder.
//!
//! One thread, one loop, no allocation that grows with time: see `supervise.rs`. If the guard dies the kernel kills the
//! hypervisor (parent death signal), so a guest is never without somebody who answers for it.
//!
//! ```text
//! plan.json ──> starting ──monitor answers──> running ──stop order──> stopping
//!                  │ ends or takes too long       │ ends                 │ ends, or is cut off at the deadline
//!                  v                              v                      v
//!              exit.json: launch failed       exit.json: why         exit.json: stopped or forced
//! ```

mod client;
mod console;
mod control;
mod files;
mod monitor;
mod orders;
mod rights;
mod settle;
mod supervise;

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use nix::fcntl::Flock;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

pub(crate) use client::{order_kill, order_settle, order_stop};

use crate::folder::{ExitRecord, Folder, Plan, now_ms};
use crate::host::kvm;
use crate::observed::ExitReason;
use crate::process::Rights;

/// Time in which a hypervisor must answer on its monitor. It takes 50 ms on an idle host; this is for a drowned one.
pub(crate) const LAUNCH_TIMEOUT: Duration = Duration::from_secs(20);
/// What a hypervisor gets on top when it reads its image from a server: it looks into the image before it answers, and that part
/// of it may have to come from afar first.
pub(crate) const LAZY_LAUNCH_TIMEOUT: Duration = Duration::from_secs(60);
/// Sockets of published ports and of the connections through them, disks, and a reserve.
const OPEN_FILES_MAX: u64 = 4096;
/// First argument for the other thing that this entry point does: trying whether /dev/kvm runs a guest.
pub(crate) const PROBE_ARGUMENT: &str = "--probe-kvm";

/// Time in which the hypervisor of a plan must answer.
pub(crate) fn launch_timeout(is_lazy: bool) -> Duration {
    if is_lazy { LAUNCH_TIMEOUT.saturating_add(LAZY_LAUNCH_TIMEOUT) } else { LAUNCH_TIMEOUT }
}

/// The one line that a guard writes to its standard output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Report {
    Running,
    Failed(String),
}

/// Body of the hidden `guard` subcommand; `arguments` is what follows it on the command line. Call it before anything
/// else: from the process's main thread, with no other thread and no runtime started, since the hypervisor dies with the
/// thread that started it.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut arguments = arguments.into_iter();
    let Some(first) = arguments.next() else {
        return fail("a guard needs the folder of its vm");
    };
    if first == PROBE_ARGUMENT {
        return kvm::run_stage(arguments.next().as_deref());
    }
    match guard(Path::new(&first)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(detail) => fail(&detail),
    }
}

fn fail(detail: &str) -> ExitCode {
    // Whoever launched us may be gone; there is nobody else to tell.
    let _ = send_report(&Report::Failed(detail.to_owned()));
    ExitCode::FAILURE
}

fn send_report(report: &Report) -> io::Result<()> {
    let mut line = serde_json::to_vec(report)?;
    line.push(b'\n');
    let mut stdout = io::stdout().lock();
    stdout.write_all(&line)?;
    stdout.flush()
}

fn guard(dir: &Path) -> Result<(), String> {
    let context = |doing: &'static str| move |error: io::Error| format!("{doing}: {error}");
    // From here on every path is relative: socket addresses are short, data folders need not be.
    std::env::set_current_dir(dir).map_err(context("enter the folder of the vm"))?;
    let folder = Folder::new(PathBuf::from("."));
    let lock = folder.lock().map_err(context("lock the folder of the vm"))?;
    let lock: Flock<File> = lock.ok_or("another guard holds this vm")?;
    let plan = folder.plan().map_err(|error| error.to_string())?.ok_or("there is no plan.json")?;
    let reason = match confine(&plan) {
        Ok(confines) => supervise::supervise(&folder, &plan, confines),
        Err(detail) => ExitReason::LaunchFailed { detail },
    };
    let at_ms = now_ms();
    let since_ms = folder.guard().ok().flatten().map_or(at_ms, |record| record.since_ms);
    let ran_ms = at_ms.saturating_sub(since_ms);
    let record = ExitRecord { epoch: plan.epoch, run: plan.run, reason: reason.clone(), at_ms, ran_ms };
    let written = folder.write_exit(&record).map_err(context("write exit.json"));
    // The record is there before anybody can take the lock and begin the next run.
    drop(lock);
    written?;
    match reason {
        ExitReason::LaunchFailed { detail } => Err(detail),
        _ => Ok(()),
    }
}

/// Listens to what a hypervisor says on its monitor, to its end or for as long as a guard listens.
pub(crate) fn read_monitor(said: &[u8]) -> io::Result<()> {
    let (ours, mut theirs) = UnixStream::pair()?;
    let mut monitor = monitor::Monitor::new(ours)?;
    // In pieces that the socket holds, since nobody reads while this writes.
    for piece in said.chunks(4096) {
        theirs.write_all(piece)?;
        while monitor.receive().is_some() {}
        if monitor.is_closed() {
            return Err(io::Error::other("a message on the monitor is too long"));
        }
    }
    drop(theirs);
    while monitor.receive().is_some() {}
    Ok(())
}

/// Reads an order, and writes it again.
pub(crate) fn reread_order(line: &[u8]) -> io::Result<Vec<u8>> {
    let order: control::Order = serde_json::from_slice(line)?;
    Ok(serde_json::to_vec(&order)?)
}

/// What the hypervisor may do, and what this host does not offer to hold it back.
struct Confines {
    rights: Rights,
    shared_user: Option<String>,
    group: Result<PathBuf, String>,
}

/// Sets limits that the hypervisor inherits, and chooses its rights. What the host does not offer is reported, not
/// required.
fn confine(plan: &Plan) -> Result<Confines, String> {
    nix::sys::prctl::set_no_new_privs().map_err(|error| format!("give up new privileges: {error}"))?;
    let limit = |resource, wanted: u64| {
        let hard = getrlimit(resource)?.1.min(wanted);
        setrlimit(resource, hard, hard)
    };
    limit(Resource::RLIMIT_CORE, 0).map_err(|error| format!("forbid core dumps: {error}"))?;
    limit(Resource::RLIMIT_NOFILE, OPEN_FILES_MAX).map_err(|error| format!("limit open files: {error}"))?;
    let group = plan.group.clone().and_then(|group| {
        // Zero means the process that writes; the hypervisor inherits the group without a moment outside of it.
        let entered = std::fs::write(group.join("cgroup.procs"), "0");
        entered.map(|()| group).map_err(|error| format!("enter the control group: {error}"))
    });
    let (rights, shared_user) = rights::choose(plan);
    Ok(Confines { rights, shared_user, group })
}
