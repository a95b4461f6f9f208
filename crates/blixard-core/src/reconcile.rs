//! Reconcile: what a node's agent does next, from what the cluster wants and what is on the host.
//!
//! It is level-triggered: every plan is made from scratch, so a plan that was half carried out, lost or carried out twice
//! does no harm. Each vm gets at most one order per plan, and none while an earlier one is being carried out.
//!
//! ```text
//!  power on                                                     power off
//!  (nothing) --FetchImage--> (image) --Launch--> running --Stop--> stopping --(guest ends, or Kill)--> exited
//!                                                   |                                                    ^
//!                                                   +--(ends by itself)--> exited --Launch, with backoff |
//!  A lazy vm is launched while its image is still on its way:  running --(the image is here) Settle--> running
//!  deleting, or placed elsewhere:  running --Kill--> exited --Remove--> (nothing) --ForgetVm, if deleting
//! ```
//!
//! A plan is only as good as the replica it is made from. The agent must not ask before its replica has applied everything
//! that it had applied when the agent last acted: to an older replica, a vm created since would look like one to remove.

mod ages;
mod images;
mod vms;

use std::collections::{BTreeMap, BTreeSet};

pub use ages::Ages;

use crate::{BootRecord, Change, ImageId, NodeId, State, UnixMs, VmId};

/// What an agent finds on its host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LocalView {
    /// The vms of which there are files or processes.
    pub vms: BTreeMap<VmId, LocalVm>,
    /// The images of which there are blobs.
    pub images: BTreeMap<ImageId, LocalImage>,
    /// Those on their way of which so much is here that a lazy vm can be started: what is needed whole, and the beginning of
    /// the disk, so that somebody delivers it.
    pub bootable: BTreeSet<ImageId>,
    /// The vms that run and read their image as it comes.
    pub lazy: BTreeSet<VmId>,
    /// What was seen here of boots of images.
    pub boots: BTreeMap<ImageId, BootRecord>,
}

/// A vm on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalVm {
    /// The epoch it was launched under.
    pub epoch: u64,
    /// The run it was launched for.
    pub run: u64,
    /// How often the restart policy has launched it in this run, as given with [`Action::Launch`].
    pub restarts: u32,
    /// What it is doing.
    pub state: LocalVmState,
    /// How long it has been doing that, in milliseconds, by a clock that does not step; [`Ages`] tells.
    pub for_ms: u64,
}

/// What a vm on this host is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LocalVmState {
    /// An order for it is being carried out; until that is done it gets no other.
    Busy {
        /// Which order.
        what: Order,
    },
    /// The guest runs.
    Running {
        /// Whether it was asked to shut down.
        stopping: bool,
        /// Since when it runs or, if it was asked to shut down, when that was.
        since: UnixMs,
    },
    /// The guest ended.
    Exited {
        /// Whether it shut down by its own means and without an error.
        clean: bool,
        /// Whether it ended because this node stopped or killed it.
        requested: bool,
        /// How it ended, for people.
        reason: String,
        /// When.
        at: UnixMs,
        /// How long it had run, in milliseconds.
        ran_ms: u64,
    },
    /// The guest could not be started.
    LaunchFailed {
        /// Why, for people.
        reason: String,
        /// When.
        at: UnixMs,
    },
    /// What is left of it on this host cannot be used.
    Damaged {
        /// Why, for people.
        reason: String,
    },
}

/// An order that is being carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Its disk is being made.
    Prepare,
    /// See [`Action::Launch`].
    Launch,
    /// See [`Action::Stop`].
    Stop,
    /// See [`Action::Kill`].
    Kill,
    /// See [`Action::Remove`].
    Remove,
    /// See [`Action::Settle`].
    Settle,
}

/// An image on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LocalImage {
    /// All of it is here and verified.
    Complete,
    /// It is on its way, or in the queue, which tries it again until it is here.
    Fetching {
        /// Whether a vm waits for it.
        urgent: bool,
        /// Why the last attempt failed, for people, until something has come since.
        failure: Option<String>,
    },
    /// It is being given up, to have room. When that is refused, it is complete again.
    Leaving,
    /// A user is importing it here; this lasts until this node's replica has applied the image's [`Change::AddImage`].
    Importing,
}

/// What an agent is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "a plan has a few actions and lives for a moment; a box would serve nobody"
)]
pub enum Action {
    /// Fetch an image from other nodes. For one that is being fetched already: make it urgent.
    FetchImage {
        /// The image.
        image: ImageId,
        /// Whether a vm waits for it.
        urgent: bool,
    },
    /// Remove an image from this host, or give up fetching it.
    DropImage {
        /// The image.
        image: ImageId,
    },
    /// Start a guest, making the vm's disk first if it has none yet.
    Launch {
        /// The vm.
        vm: VmId,
        /// The epoch to record with it.
        epoch: u64,
        /// The run to record with it.
        run: u64,
        /// The restarts to record with it.
        restarts: u32,
    },
    /// Ask a guest to shut down, and force it when it takes longer than the timeout.
    Stop {
        /// The vm.
        vm: VmId,
        /// The timeout in milliseconds.
        timeout_ms: u64,
    },
    /// End a guest at once, keeping its files.
    Kill {
        /// The vm.
        vm: VmId,
    },
    /// Let a running guest, which has read its image as it came, read it from where it now is as a whole.
    Settle {
        /// The vm.
        vm: VmId,
    },
    /// Remove every file of a vm that does not run.
    Remove {
        /// The vm.
        vm: VmId,
    },
    /// Propose a report to the cluster. Every plan repeats it until the replica has applied it; the agent sends it once.
    Propose(Change),
}

impl Action {
    /// What frees something comes before what takes it: a port or memory may change hands within one plan.
    fn rank(&self) -> u8 {
        match self {
            Self::Kill { .. } => 0,
            Self::Stop { .. } => 1,
            Self::Remove { .. } => 2,
            Self::DropImage { .. } => 3,
            Self::FetchImage { .. } => 4,
            Self::Launch { .. } => 5,
            Self::Settle { .. } => 6,
            Self::Propose(_) => 7,
        }
    }
}

/// What to do now, and when to look again though nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// What to do now, in this order.
    pub actions: Vec<Action>,
    /// When something falls due: a restart, a retry, the end of a guest's time to shut down.
    pub look_again_at: Option<UnixMs>,
}

impl Plan {
    fn push(&mut self, action: Action) {
        self.actions.push(action);
    }

    fn look_again(&mut self, at: UnixMs) {
        self.look_again_at = Some(self.look_again_at.map_or(at, |earlier| earlier.min(at)));
    }
}

/// What node `me` is to do, given the cluster's state as its replica has it, what is on the host, and the time.
pub fn reconcile(me: NodeId, state: &State, local: &LocalView, now: UnixMs) -> Plan {
    let mut plan = Plan::default();
    if state.cluster.is_none() {
        // An empty replica knows nothing, least of all that the vms here should not be here.
        return plan;
    }
    if !state.nodes.contains_key(&me) {
        vms::expelled(local, &mut plan);
    } else {
        let needs = vms::reconcile(me, state, local, now, &mut plan);
        images::reconcile(me, state, local, &needs, now, &mut plan);
    }
    plan.actions.sort_by_key(Action::rank);
    plan
}
