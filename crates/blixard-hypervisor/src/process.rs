//! The only file of this crate that starts processes.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use rustix::io::FdFlags;
use rustix::thread::{CapabilitySet, CapabilitySets, Gid, Uid};

/// How often a tool that must end in time is looked at.
const TOOL_POLL: Duration = Duration::from_millis(5);
/// What is kept of a tool's output; the tools we run say little.
const TOOL_OUTPUT_BYTES_MAX: u64 = 1 << 20;
/// A hypervisor needs one group at most, that of /dev/kvm; room on the stack, since nothing may allocate there.
const ACCOUNT_GROUPS_MAX: usize = 4;

/// Starts a guard for a vm's folder, in a session of its own. Its standard output is the line on which it reports.
#[allow(unsafe_code)]
pub(crate) fn spawn_guard(command: &[OsString], dir: &Path, stderr: File) -> io::Result<Child> {
    let (program, arguments) = split(command)?;
    let mut guard = Command::new(program);
    guard.args(arguments).arg(dir).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr);
    // SAFETY: setsid is a plain system call; nothing allocates or locks between fork and exec. It happens there and not
    // in the guard's first lines so that a signal to this process's group can never find the guard still in it.
    unsafe {
        guard.pre_exec(|| {
            nix::unistd::setsid()?;
            Ok(())
        });
    }
    guard.spawn()
}

/// A user that a hypervisor runs as; its group has the same number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) id: u32,
    pub(crate) groups: Vec<u32>,
}

/// What a hypervisor may do. Whatever its user, it has no capability but the one named here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rights {
    /// The user to become; absent means the guard's own.
    pub(crate) account: Option<Account>,
    /// Whether it may listen on the ports below 1024.
    pub(crate) keeps_bind: bool,
}

/// Starts a hypervisor as the guard's child. Its standard input is the machine monitor, its standard output the serial
/// console: sockets that nobody else can reach and that no path limits. It inherits `files` under their numbers.
#[allow(unsafe_code)]
pub(crate) fn spawn_hypervisor(
    program: &Path,
    argv: &[String],
    monitor: OwnedFd,
    serial: OwnedFd,
    files: Vec<OwnedFd>,
    rights: &Rights,
) -> io::Result<Child> {
    let guard = nix::unistd::getpid();
    let rights = rights.clone();
    let mut command = Command::new(program);
    // The vm's folder is closed to the user that it becomes, and whatever it needs is open already.
    command.current_dir("/");
    command.args(argv).stdin(monitor).stdout(serial).stderr(Stdio::piped());
    // What the node was started with is none of the hypervisor's business; secrets may be in there.
    command.env_clear().env("LC_ALL", "C");
    if let Some(path) = std::env::var_os("PATH") {
        command.env("PATH", path);
    }
    // SAFETY: between fork and exec only plain system calls are made (ids, capabilities, prctl, getppid, sigprocmask,
    // fcntl), nothing allocates, and no lock is taken. It has to happen there: the guard keeps its own user, and the death
    // signal is not inherited by a child.
    unsafe {
        command.pre_exec(move || {
            take(&rights)?;
            // After the change of user, which clears it.
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
            if nix::unistd::getppid() != guard {
                // The guard died before the death signal was set; nobody would ever end this process.
                return Err(nix::errno::Errno::ESRCH.into());
            }
            // The guard blocks the signals that it reads from a descriptor; the hypervisor must not inherit that.
            SigSet::empty().thread_set_mask()?;
            for file in &files {
                rustix::io::fcntl_setfd(file.as_fd(), FdFlags::empty())?;
            }
            Ok(())
        });
    }
    command.spawn()
}

/// Gives this process the rights and takes all others from it, for good. The calls are those of the kernel, for one
/// thread: there is only one between fork and exec, and those of the C library would take locks.
fn take(rights: &Rights) -> io::Result<()> {
    let bind = CapabilitySet::NET_BIND_SERVICE;
    let kept = if rights.keeps_bind { bind } else { CapabilitySet::empty() };
    if let Some(Account { id, groups }) = &rights.account {
        let mut list = [Gid::ROOT; ACCOUNT_GROUPS_MAX];
        let list = list.get_mut(..groups.len()).ok_or(nix::errno::Errno::EINVAL)?;
        for (place, group) in list.iter_mut().zip(groups) {
            *place = Gid::from_raw(*group);
        }
        rustix::thread::set_thread_groups(list)?;
        let (user, group) = (Uid::from_raw(*id), Gid::from_raw(*id));
        rustix::thread::set_thread_res_gid(group, group, group)?;
        // Otherwise the change of user would take every capability.
        rustix::thread::set_keep_capabilities(rights.keeps_bind)?;
        rustix::thread::set_thread_res_uid(user, user, user)?;
    }
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: kept };
    rustix::thread::set_capabilities(None, sets)?;
    rustix::thread::clear_ambient_capability_set()?;
    if rights.keeps_bind {
        rustix::thread::configure_capability_in_ambient_set(bind, true)?;
    }
    Ok(())
}

/// What a tool said.
pub(crate) struct ToolOutput {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

/// Runs a tool to its end, or kills it when the limit is reached.
pub(crate) fn run_tool(command: &[OsString], limit: Duration) -> io::Result<ToolOutput> {
    let deadline = Instant::now() + limit;
    let (program, arguments) = split(command)?;
    let mut child = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    // Both pipes are drained while the tool runs, or it would stall on a full one.
    let stdout = drain(child.stdout.take());
    let stderr = drain(child.stderr.take());
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("{} did not end within {} ms", program.display(), limit.as_millis()),
            ));
        }
        std::thread::sleep(TOOL_POLL);
    };
    let collect = |reader: std::thread::JoinHandle<Vec<u8>>| reader.join().unwrap_or_default();
    Ok(ToolOutput {
        status,
        stdout: collect(stdout),
        stderr: String::from_utf8_lossy(&collect(stderr)).trim().to_owned(),
    })
}

fn drain(pipe: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut kept = vec![];
        if let Some(mut pipe) = pipe {
            // A pipe breaks only when the tool dies, and its exit status tells that better.
            let _ = pipe.by_ref().take(TOOL_OUTPUT_BYTES_MAX).read_to_end(&mut kept);
            let _ = io::copy(&mut pipe, &mut io::sink());
        }
        kept
    })
}

fn split(command: &[OsString]) -> io::Result<(&Path, &[OsString])> {
    let (program, arguments) =
        command.split_first().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the command is empty"))?;
    Ok((Path::new(program), arguments))
}
