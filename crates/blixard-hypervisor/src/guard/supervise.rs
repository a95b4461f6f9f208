//! The guard's loop: starts the hypervisor, waits for whatever happens next, and names the end.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, ChildStderr};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::console::Console;
use super::control::{Answer, Control, Order};
use super::monitor::{Monitor, News};
use super::orders::{Deed, Orders};
use super::settle::Settler;
use super::{Confines, Report, files, launch_timeout, send_report};
use crate::folder::{CONSOLE_SOCKET, CONTROL_SOCKET, Folder, GuardRecord, Plan, now_ms};
use crate::identity::{ProcessHandle, ProcessIdentity};
use crate::log::LogWriter;
use crate::observed::ExitReason;
use crate::process;

/// What is kept of the hypervisor's standard error: its last words, in an exit reason that people read.
const STDERR_BYTES_MAX: usize = 2048;
/// What a host that is shutting down lets us have: less than systemd's 90 s before it kills everything.
const HOST_SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(60);
/// Reads of what a hypervisor left behind when it ended. A socket or pipe holds a quarter of this; more would come from
/// somebody who has its other end as well, and would never be all.
const LAST_READS_MAX: usize = 1024;
/// Time for viewers to take the last lines of a guest that has ended.
const FAREWELL_TIMEOUT: Duration = Duration::from_millis(250);

/// Something that the loop waits for.
#[derive(Debug, Clone, Copy)]
enum Source {
    HypervisorEnded,
    Signal,
    Monitor,
    Serial,
    Stderr,
    ControlListener,
    ControlClient(usize),
    ConsoleListener,
    Viewer(usize),
}

struct Supervisor<'a> {
    folder: &'a Folder,
    record: GuardRecord,
    child: Child,
    hypervisor: ProcessHandle,
    monitor: Monitor,
    console: Console,
    control: Control,
    stderr: Option<ChildStderr>,
    last_words: Vec<u8>,
    orders: Orders,
    settler: Settler,
    /// How long the hypervisor has for its first answer.
    launch_timeout: Duration,
    shutdown: Option<String>,
    signals: SignalFd,
    has_ended: bool,
    launch_deadline: Instant,
}

/// Runs the plan to its end and says how it ended. Reports to the launcher as soon as the hypervisor has answered.
pub(super) fn supervise(folder: &Folder, plan: &Plan, confines: Confines) -> ExitReason {
    let reason = match Supervisor::start(folder, plan, confines) {
        Ok(supervisor) => supervisor.run(),
        Err(detail) => ExitReason::LaunchFailed { detail },
    };
    for socket in [CONTROL_SOCKET, CONSOLE_SOCKET] {
        // One that stays behind refuses connections and is removed by the next launch.
        let _ = std::fs::remove_file(socket);
    }
    reason
}

impl<'a> Supervisor<'a> {
    fn start(folder: &'a Folder, plan: &Plan, confines: Confines) -> Result<Supervisor<'a>, String> {
        let context = |doing: &'static str| move |error: io::Error| format!("{doing}: {error}");
        // Blocked signals do not interrupt; these are read from a descriptor, and SIGHUP and SIGPIPE mean nothing here.
        let mut polite = SigSet::empty();
        for signal in [Signal::SIGTERM, Signal::SIGINT] {
            polite.add(signal);
        }
        let mut blocked = polite;
        blocked.add(Signal::SIGHUP);
        blocked.add(Signal::SIGPIPE);
        blocked.thread_block().map_err(|error| format!("block signals: {error}"))?;
        let signals = SignalFd::with_flags(&polite, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
            .map_err(|error| format!("watch for signals: {error}"))?;

        let control = Control::bind(CONTROL_SOCKET).map_err(context("listen on control.sock"))?;
        let (serial, serial_theirs) = UnixStream::pair().map_err(context("make a socket pair"))?;
        let (monitor, monitor_theirs) = UnixStream::pair().map_err(context("make a socket pair"))?;
        let log = LogWriter::open(folder.path()).map_err(context("open the console log"))?;
        let console = Console::new(serial, CONSOLE_SOCKET, log).map_err(context("listen on console.sock"))?;
        let monitor = Monitor::new(monitor).map_err(context("prepare the monitor"))?;
        let mut child = process::spawn_hypervisor(
            &plan.program,
            &plan.argv,
            OwnedFd::from(monitor_theirs),
            OwnedFd::from(serial_theirs),
            files::open(&plan.files, &confines.rights)?,
            &confines.rights,
        )
        .map_err(|error| cannot_start(plan, &confines, &error))?;

        let watched = ProcessIdentity::of(child.id()).and_then(|identity| {
            // Our own child that nobody has waited for cannot have passed its id on.
            let handle = identity.open().ok_or_else(|| io::Error::other("it ended at once"))?;
            Ok((identity, handle))
        });
        let (identity, hypervisor) = match watched {
            Ok(watched) => watched,
            Err(error) => {
                // Dead or not, it must not be left behind.
                let _ = child.kill();
                let mut words = String::new();
                if let Some(stderr) = child.stderr.take() {
                    let _ = stderr.take(STDERR_BYTES_MAX as u64).read_to_string(&mut words);
                }
                let _ = child.wait();
                return Err(format!("watch the hypervisor: {error}: {}", words.trim()));
            }
        };
        let stderr = child.stderr.take();
        if let Some(stderr) = &stderr {
            set_nonblocking(stderr.as_fd()).map_err(context("prepare standard error"))?;
        }
        let record = GuardRecord {
            epoch: plan.epoch,
            run: plan.run,
            guard: ProcessIdentity::of(std::process::id()).map_err(context("read /proc/PID/stat"))?,
            hypervisor: identity,
            since_ms: now_ms(),
            ready: false,
            stopping: false,
            lazy: plan.settling.is_some(),
            unsettled: None,
            accelerator: plan.accelerator,
            shared_user: confines.shared_user,
            unlimited: confines.group.as_ref().err().cloned(),
            group: confines.group.ok(),
        };
        folder.write_guard(&record).map_err(context("write guard.json"))?;
        Ok(Supervisor {
            folder,
            record,
            child,
            hypervisor,
            monitor,
            console,
            control,
            stderr,
            last_words: vec![],
            orders: Orders::default(),
            settler: Settler::new(plan.settling.clone()),
            launch_timeout: launch_timeout(plan.settling.is_some()),
            shutdown: None,
            signals,
            has_ended: false,
            launch_deadline: Instant::now() + launch_timeout(plan.settling.is_some()),
        })
    }

    fn run(mut self) -> ExitReason {
        while !self.has_ended {
            self.turn(self.next_deadline());
            self.carry_out_what_is_due();
        }
        let status = self.child.wait();
        self.hear_out();
        let words = String::from_utf8_lossy(&self.last_words).trim().to_owned();
        match status {
            Ok(status) if self.record.ready => self.orders.exit_reason(status, self.shutdown.as_deref(), words),
            _ if !words.is_empty() => ExitReason::LaunchFailed { detail: words },
            Ok(status) => ExitReason::LaunchFailed { detail: format!("the hypervisor did not come up ({status})") },
            Err(error) => ExitReason::LaunchFailed { detail: format!("wait for the hypervisor: {error}") },
        }
    }

    /// Waits until something happens or the deadline comes, and deals with all of it.
    fn turn(&mut self, deadline: Option<Instant>) {
        let timeout = deadline.map_or(PollTimeout::NONE, |deadline| {
            // Rounded up, or the loop would spin through the last millisecond.
            let left = deadline.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        for (source, happened) in self.wait(timeout) {
            self.deal_with(source, happened);
        }
        self.control.sweep();
        self.console.sweep();
    }

    fn wait(&self, timeout: PollTimeout) -> Vec<(Source, PollFlags)> {
        let mut sources = vec![];
        let mut fds = vec![];
        let mut watch = |source, fd, flags| {
            sources.push(source);
            fds.push(PollFd::new(fd, flags));
        };
        if !self.has_ended {
            watch(Source::HypervisorEnded, self.hypervisor.as_fd(), PollFlags::POLLIN);
            watch(Source::Signal, self.signals.as_fd(), PollFlags::POLLIN);
        }
        if !self.monitor.is_closed() {
            let mut flags = PollFlags::POLLIN;
            flags.set(PollFlags::POLLOUT, self.monitor.wants_write());
            watch(Source::Monitor, self.monitor.as_fd(), flags);
        }
        if let Some((fd, flags)) = self.console.serial() {
            watch(Source::Serial, fd, flags);
        }
        if let Some(stderr) = &self.stderr {
            watch(Source::Stderr, stderr.as_fd(), PollFlags::POLLIN);
        }
        watch(Source::ControlListener, self.control.listener(), PollFlags::POLLIN);
        for (index, fd) in self.control.clients().enumerate() {
            watch(Source::ControlClient(index), fd, PollFlags::POLLIN);
        }
        watch(Source::ConsoleListener, self.console.listener(), PollFlags::POLLIN);
        for (index, (fd, flags)) in self.console.viewers().enumerate() {
            watch(Source::Viewer(index), fd, flags);
        }
        // Interrupted or out of memory: the next turn asks again, and its deadlines still hold.
        let _ = nix::poll::poll(&mut fds, timeout);
        let happened = fds.iter().map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
        sources.into_iter().zip(happened).filter(|(_, happened)| !happened.is_empty()).collect()
    }

    fn deal_with(&mut self, source: Source, happened: PollFlags) {
        match source {
            Source::HypervisorEnded => self.has_ended = true,
            Source::Signal => {
                while let Ok(Some(_)) = self.signals.read_signal() {
                    take_stop(&mut self.orders, &mut self.record, self.folder, HOST_SHUTDOWN_TIMEOUT);
                }
            }
            Source::Monitor => {
                self.hear_monitor();
            }
            Source::Serial => {
                self.console.serve_serial();
            }
            Source::Stderr => {
                self.hear_stderr();
            }
            Source::ControlListener => self.control.accept(),
            Source::ControlClient(index) => self.take_orders(index),
            Source::ConsoleListener => self.console.accept(),
            Source::Viewer(index) => self.console.serve_viewer(index, happened),
        }
    }

    fn take_orders(&mut self, index: usize) {
        let Supervisor { control, orders, record, folder, settler, monitor, .. } = self;
        control.serve(index, |order| {
            match order {
                Order::Stop { timeout_ms } => take_stop(orders, record, folder, Duration::from_millis(timeout_ms)),
                Order::Kill => orders.kill(),
                Order::Settle => {
                    // Cleared before the answer: whoever ordered it then reads of this attempt only.
                    if record.unsettled.take().is_some() || !record.lazy {
                        let _ = folder.write_guard(record);
                    }
                    if let Err(detail) = settler.begin(monitor) {
                        return Answer::Refused(detail);
                    }
                }
            }
            Answer::Accepted
        });
    }

    /// Hears some of what the hypervisor says on its monitor; false when it has said nothing.
    fn hear_monitor(&mut self) -> bool {
        self.monitor.flush();
        let Some(heard) = self.monitor.receive() else { return false };
        for news in heard {
            match news {
                News::Ready => self.become_ready(),
                News::Shutdown(reason) => self.shutdown = Some(reason),
                News::Answered(answer) => self.settle_on(answer),
                News::Closed => {}
            }
        }
        true
    }

    /// Goes on with changing the guest over to the file of its base, and writes down how that ended.
    fn settle_on(&mut self, answer: Result<(), String>) {
        match self.settler.answered(answer, &mut self.monitor) {
            None => return,
            Some(Ok(())) => self.record.lazy = false,
            Some(Err(detail)) => self.record.unsettled = Some(detail),
        }
        // A record that cannot be written is out of date: the order is then given again, and does nothing.
        let _ = self.folder.write_guard(&self.record);
    }

    fn become_ready(&mut self) {
        self.record.ready = true;
        if self.folder.write_guard(&self.record).is_err() {
            // Without a record nobody could adopt this vm, so it must not run.
            self.record.ready = false;
            self.last_words = b"the record of the guard cannot be written".to_vec();
            let _ = self.hypervisor.kill();
            return;
        }
        // The launcher may have died meanwhile; whoever comes next finds the record.
        let _ = send_report(&Report::Running);
    }

    /// Hears some of what the hypervisor writes to its standard error; false when it has written nothing.
    fn hear_stderr(&mut self) -> bool {
        let Some(stderr) = &mut self.stderr else { return false };
        let mut buffer = [0; 1024];
        match stderr.read(&mut buffer) {
            Ok(got) if got > 0 => {
                self.last_words.extend_from_slice(&buffer[..got]);
                let excess = self.last_words.len().saturating_sub(STDERR_BYTES_MAX);
                self.last_words.drain(..excess);
                return true;
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            _ => self.stderr = None,
        }
        false
    }

    fn next_deadline(&self) -> Option<Instant> {
        let launch = (!self.record.ready).then_some(self.launch_deadline);
        [launch, self.orders.next()].into_iter().flatten().min()
    }

    fn carry_out_what_is_due(&mut self) {
        let now = Instant::now();
        while let Some(deed) = self.orders.due(now) {
            match deed {
                Deed::PressPowerButton => self.monitor.execute("system_powerdown"),
                Deed::Quit => self.monitor.execute("quit"),
                // It fails only for a process that has ended, which the loop is about to see.
                Deed::Kill => drop(self.hypervisor.kill()),
            }
        }
        if !self.record.ready && now >= self.launch_deadline {
            let waited = self.launch_timeout.as_secs();
            self.last_words = format!("the hypervisor did not answer within {waited} s").into_bytes();
            let _ = self.hypervisor.kill();
            // It ends now; do not come back here every turn until it has.
            self.launch_deadline = now + self.launch_timeout;
        }
    }

    /// Takes what the hypervisor wrote before it ended, and gives viewers a moment to read it.
    fn hear_out(&mut self) {
        (0..LAST_READS_MAX).all(|_| self.hear_monitor());
        (0..LAST_READS_MAX).all(|_| self.console.serve_serial());
        (0..LAST_READS_MAX).all(|_| self.hear_stderr());
        let deadline = Instant::now() + FAREWELL_TIMEOUT;
        while self.console.has_unsent() && Instant::now() < deadline {
            self.turn(Some(deadline));
        }
    }
}

fn take_stop(orders: &mut Orders, record: &mut GuardRecord, folder: &Folder, timeout: Duration) {
    if orders.stop(Instant::now(), timeout) {
        record.stopping = true;
        // Only shown to people; the order itself stands.
        let _ = folder.write_guard(record);
    }
}

/// Why the program did not start; a user of the guest's own may be kept from what root may do.
fn cannot_start(plan: &Plan, confines: &Confines, error: &io::Error) -> String {
    let program = plan.program.display();
    match &confines.rights.account {
        Some(account) if error.kind() == io::ErrorKind::PermissionDenied => format!(
            "start {program}: {error}; the guest runs as user {}, so others must be allowed to run the program",
            account.id
        ),
        _ => format!("start {program}: {error}"),
    }
}

fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}
