//! Launches a run: checks that the order is current, prepares the folder, starts a guard, and hears its report.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::process::{Child, ChildStdout};
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout};

use super::QemuDriver;
use crate::driver::LaunchError;
use crate::folder::{ExitRecord, Folder, now_ms};
use crate::guard::{LAUNCH_TIMEOUT, Report, launch_timeout};
use crate::identity::ProcessIdentity;
use crate::observe::observe;
use crate::observed::ExitReason;
use crate::order::{Standing, standing};
use crate::process;
use crate::spec::LaunchSpec;

/// Time that a guard has for itself before it reports, besides what it gives the hypervisor.
const REPORT_MARGIN: Duration = Duration::from_secs(10);
/// A report is one line with at most the last words of a hypervisor.
const REPORT_BYTES_MAX: usize = 64 * 1024;
/// Time in which the last run's hypervisor must be gone after its guard has died; the kernel does it at once.
const LEFTOVER_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a launch that an earlier process began is looked at.
const ADOPT_POLL: Duration = Duration::from_millis(20);

impl QemuDriver {
    /// Launches while the caller holds the vm.
    pub(super) fn launch_held(&self, spec: &LaunchSpec) -> Result<(), LaunchError> {
        let context = |doing: &'static str| move |source| LaunchError::Prepare { doing: doing.to_owned(), source };
        let folder = self
            .root
            .folder(&spec.vm)
            .ok_or_else(|| LaunchError::Unsuitable { detail: format!("{} is not a vm id", spec.vm) })?;
        self.reap();
        if self.is_running_already(&folder, spec)? {
            return Ok(());
        }
        // Before the record that names it is cleared.
        end_leftover(&folder).map_err(|detail| LaunchError::Hypervisor { detail })?;
        folder.create().map_err(context("make the folder of the vm"))?;
        // The new spec comes first: from here on what is left of the last run belongs to no current run.
        folder.write_spec(spec).map_err(context("write spec.json"))?;
        folder.clear_run().map_err(context("clear the last run"))?;
        let result = self.prepare(&folder, spec).and_then(|()| self.start_guard(&folder, is_lazy(spec)));
        if let Err(error) = &result {
            self.record_failure(&folder, spec, error);
        }
        result
    }

    fn is_running_already(&self, folder: &Folder, spec: &LaunchSpec) -> Result<bool, LaunchError> {
        let deadline = Instant::now() + LAUNCH_TIMEOUT;
        while let Some(seen) = observe(folder, &spec.vm, true).map(|seen| seen.vm) {
            match standing(&seen, spec)? {
                Standing::RunsAlready => return Ok(true),
                Standing::MayStart => return Ok(false),
                // A process before this one began it, and its guard is about to know how it went.
                Standing::Starting if Instant::now() < deadline => std::thread::sleep(ADOPT_POLL),
                Standing::Starting => {
                    return Err(LaunchError::AnotherRun { epoch: seen.epoch, run: seen.run });
                }
            }
        }
        Ok(false)
    }

    fn start_guard(&self, folder: &Folder, is_lazy: bool) -> Result<(), LaunchError> {
        let failed = |doing: &str, error: io::Error| LaunchError::Hypervisor { detail: format!("{doing}: {error}") };
        let stderr = folder.create_guard_stderr().map_err(|error| failed("open guard.stderr", error))?;
        let mut guard = process::spawn_guard(&self.guard_command, folder.path(), stderr)
            .map_err(|error| failed("start the guard", error))?;
        let report =
            guard.stdout.take().ok_or(io::ErrorKind::BrokenPipe.into()).and_then(|stdout| hear_report(stdout, is_lazy));
        let outcome = match report {
            Ok(Report::Running) => Ok(()),
            Ok(Report::Failed(detail)) => Err(explain(detail)),
            Err(error) => Err(format!("the guard did not report: {error} {}", folder.guard_stderr())),
        };
        match outcome {
            Ok(()) => {
                self.children.lock().unwrap_or_else(PoisonError::into_inner).push(guard);
                Ok(())
            }
            Err(detail) => {
                end_guard(folder, guard);
                Err(LaunchError::Hypervisor { detail: detail.trim().to_owned() })
            }
        }
    }

    /// Leaves behind why nothing runs, unless the guard has done so.
    fn record_failure(&self, folder: &Folder, spec: &LaunchSpec, error: &LaunchError) {
        let is_recorded = matches!(folder.exit(), Ok(Some(exit)) if (exit.epoch, exit.run) == (spec.epoch, spec.run));
        if !is_recorded {
            let mut detail = error.to_string();
            if let Some(source) = std::error::Error::source(error) {
                detail += &format!(": {source}");
            }
            let reason = ExitReason::LaunchFailed { detail };
            // The caller is told anyway.
            let record = ExitRecord { epoch: spec.epoch, run: spec.run, reason, at_ms: now_ms(), ran_ms: 0 };
            let _ = folder.write_exit(&record);
        }
    }
}

fn is_lazy(spec: &LaunchSpec) -> bool {
    spec.boot.base().is_some_and(|base| base.lazy.is_some())
}

/// A guard that died took its hypervisor with it, but "at once" is not "before us": two must never write to one disk.
fn end_leftover(folder: &Folder) -> Result<(), String> {
    let Ok(Some(record)) = folder.guard() else { return Ok(()) };
    let Some(handle) = record.hypervisor.open() else { return Ok(()) };
    handle.kill().map_err(|error| format!("end the hypervisor of the last run: {error}"))?;
    if handle.wait(LEFTOVER_TIMEOUT) { Ok(()) } else { Err("the hypervisor of the last run does not end".into()) }
}

/// Makes sure that neither guard nor hypervisor is left.
fn end_guard(folder: &Folder, mut guard: Child) {
    // One that has reported a failure is on its way out; one that has not is not waited for.
    let hypervisor = folder.guard().ok().flatten().map(|record| record.hypervisor);
    let handle = ProcessIdentity::of(guard.id()).ok().and_then(|identity| identity.open());
    if !handle.is_none_or(|handle| handle.wait(Duration::from_secs(1))) {
        let _ = guard.kill();
    }
    let _ = guard.wait();
    if let Some(handle) = hypervisor.and_then(|hypervisor| hypervisor.open()) {
        let _ = handle.kill();
        handle.wait(Duration::from_secs(5));
    }
}

fn hear_report(mut stdout: ChildStdout, is_lazy: bool) -> io::Result<Report> {
    let deadline = Instant::now() + launch_timeout(is_lazy) + REPORT_MARGIN;
    let mut heard = vec![];
    loop {
        if let Some(end) = heard.iter().position(|&byte| byte == b'\n') {
            return Ok(serde_json::from_slice(&heard[..end])?);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let mut fds = [PollFd::new(stdout.as_fd(), PollFlags::POLLIN)];
        match nix::poll::poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
            Ok(0) => return Err(io::Error::new(io::ErrorKind::TimedOut, "it took too long")),
            Ok(_) => {}
            Err(nix::errno::Errno::EINTR) => continue,
            Err(error) => return Err(error.into()),
        }
        let mut buffer = [0; 4096];
        match stdout.read(&mut buffer)? {
            0 => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it ended")),
            got => heard.extend_from_slice(&buffer[..got]),
        }
        if heard.len() > REPORT_BYTES_MAX {
            return Err(io::Error::other("it says too much"));
        }
    }
}

/// Turns what QEMU says into what a user can act on, where we know better.
fn explain(detail: String) -> String {
    const FORWARD: &str = "Could not set up host forwarding rule '";
    let Some(at) = detail.find(FORWARD) else { return detail };
    let rule = detail[at + FORWARD.len()..].split('\'').next().unwrap_or_default();
    let published = rule.split('-').next().unwrap_or(rule);
    format!("port {published} of this host cannot be published: it is in use, or not allowed to this user")
}
