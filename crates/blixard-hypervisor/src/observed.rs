//! What a driver sees of a vm, as opposed to what was asked for.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One vm that has a folder on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObservedVm {
    /// The vm's id.
    pub vm: String,
    /// The name people gave it; empty when its record cannot be read.
    pub name: String,
    /// Placement it was last launched for.
    pub epoch: u64,
    /// Start within that placement.
    pub run: u64,
    /// How often that start was begun again, as the launch said.
    pub restarts: u32,
    /// How the run before the present one ended, for people.
    pub last_exit: Option<ExitReason>,
    /// What it is doing.
    pub state: VmState,
}

/// What a vm is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum VmState {
    /// A launch is under way; its outcome is not known yet.
    Starting,
    /// The hypervisor runs.
    Running(Running),
    /// The run is over.
    Exited {
        /// How it ended.
        reason: ExitReason,
        /// When, in milliseconds since 1970.
        at_ms: u64,
        /// How long it had run, in milliseconds.
        ran_ms: u64,
    },
    /// A record in the vm's folder cannot be read; nothing else about the vm is known.
    Damaged {
        /// Which record, and what is wrong with it.
        detail: String,
    },
}

/// A run that goes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// Process id of the hypervisor; 0 where there is no process (the fake driver).
    pub pid: u32,
    /// When the hypervisor started, in milliseconds since 1970.
    pub since_ms: u64,
    /// Whether a stop was ordered and the guest has not ended yet.
    pub stopping: bool,
    /// Whether the guest reads its base from the server of a [`LazyBase`](crate::LazyBase).
    #[serde(default)]
    pub lazy: bool,
    /// What executes the guest's instructions.
    pub accelerator: Accelerator,
    /// What holds the hypervisor back.
    pub confinement: Confinement,
}

/// What executes a guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Accelerator {
    /// The processor, through /dev/kvm.
    Kvm,
    /// QEMU's translator: works anywhere, many times slower.
    Tcg,
    /// Nothing: the fake driver.
    Fake,
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Accelerator::Kvm => "kvm",
            Accelerator::Tcg => "tcg",
            Accelerator::Fake => "fake",
        })
    }
}

/// What holds a hypervisor process back, as the kernel tells of the process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confinement {
    /// What the process may do; none where there is no process (the fake driver).
    pub privileges: Option<Privileges>,
    /// Why the process has no user of its own, when it has none.
    pub shared_user: Option<String>,
    /// What the process may use; none without limits.
    pub limits: Option<Limits>,
    /// Why there are no limits, when there are none.
    pub unlimited: Option<String>,
}

/// What a process may do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Privileges {
    /// Number of its user.
    pub user: u32,
    /// Number of its group.
    pub group: u32,
    /// Numbers of its other groups.
    pub groups: Vec<u32>,
    /// Its capabilities by name, such as `net_bind_service`.
    pub capabilities: Vec<String>,
    /// Whether it can never gain more than this, whatever program it starts.
    pub no_new_privileges: bool,
    /// Whether a filter keeps it from system calls that it does not need.
    pub system_call_filter: bool,
}

/// What a process may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Memory in MiB, the guest's and its hypervisor's together.
    pub memory_mib: u64,
    /// Processors.
    pub processors: u64,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "reason")]
pub enum ExitReason {
    /// The guest powered itself off, unasked.
    GuestShutdown,
    /// The guest asked for a reset. Each boot is a run of its own, so the run ends and may be followed by another.
    GuestRebooted,
    /// The guest powered itself off after a stop order.
    Stopped,
    /// The guest did not end in time after a stop order and was cut off.
    Forced {
        /// The time it was given, in milliseconds.
        timeout_ms: u64,
    },
    /// A kill order.
    Killed,
    /// A signal ended the hypervisor, not by our order.
    Signal {
        /// The signal's number.
        signal: i32,
    },
    /// The hypervisor ended by itself.
    Code {
        /// Its exit code.
        code: i32,
        /// The last lines it wrote to standard error.
        stderr: String,
    },
    /// The guard ended without a word, and took the hypervisor with it.
    GuardDied,
    /// The host was restarted while the vm ran.
    HostRestarted,
    /// The run never began.
    LaunchFailed {
        /// Why not.
        detail: String,
    },
}

impl ExitReason {
    /// Whether somebody, inside or outside, wanted this end; an `on-failure` restart policy leaves it at that.
    pub fn is_intended(&self) -> bool {
        matches!(self, ExitReason::GuestShutdown | ExitReason::Stopped | ExitReason::Forced { .. } | ExitReason::Killed)
    }
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ExitReason::GuestShutdown => f.write_str("the guest shut down"),
            ExitReason::GuestRebooted => f.write_str("the guest rebooted"),
            ExitReason::Stopped => f.write_str("stopped on request"),
            ExitReason::Forced { timeout_ms } => {
                write!(f, "forced off: the guest did not shut down within {timeout_ms} ms")
            }
            ExitReason::Killed => f.write_str("killed on request"),
            ExitReason::Signal { signal } => write!(f, "the hypervisor was ended by signal {signal}"),
            ExitReason::Code { code, stderr } if stderr.is_empty() => {
                write!(f, "the hypervisor exited with code {code}")
            }
            ExitReason::Code { code, stderr } => write!(f, "the hypervisor exited with code {code}: {stderr}"),
            ExitReason::GuardDied => f.write_str("the guard died"),
            ExitReason::HostRestarted => f.write_str("the host was restarted"),
            ExitReason::LaunchFailed { detail } => write!(f, "the launch failed: {detail}"),
        }
    }
}
