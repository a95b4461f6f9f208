//! Bugs to plant, so that the simulator can show that it finds them. They live in the simulator's wrappers around storage,
//! network and requests; the product has no switch for any of them.

/// A bug that was planted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Planted {
    /// Disks say "flushed" and have done nothing.
    NoFsync,
    /// A vote is not written down.
    ForgottenVote,
    /// Reads do not wait for what was acknowledged before them.
    StaleRead,
    /// A leader that restarts takes its old leadership up again.
    LeaderRestore,
    /// A follower acknowledges a write and does not forward it.
    DroppedForward,
    /// A write that failed, or whose outcome is not known, is reported as done.
    FailureIsDone,
    /// A node whose peer does not answer founds a cluster of its own.
    TwoBootstraps,
    /// A node that was removed is still let in.
    RemovedNodeLetIn,
    /// A snapshot leaves out the answers to requests.
    SnapshotLosesField,
    /// Applying a command reads the host's own clock.
    LocalClock,
    /// Applying a placement does not look at the node's capacity.
    NoCapacityCheck,
    /// After a restart everything in the log counts as committed.
    CommittedAhead,
    /// Applying the release of a copy does not look at how many copies are left.
    NoCopiesCheck,
    /// A node that needs room removes a copy without asking.
    RemovesUnasked,
}

impl Planted {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::NoFsync,
        Self::ForgottenVote,
        Self::StaleRead,
        Self::LeaderRestore,
        Self::DroppedForward,
        Self::FailureIsDone,
        Self::TwoBootstraps,
        Self::RemovedNodeLetIn,
        Self::SnapshotLosesField,
        Self::LocalClock,
        Self::NoCapacityCheck,
        Self::CommittedAhead,
        Self::NoCopiesCheck,
        Self::RemovesUnasked,
    ];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoFsync => "no-fsync",
            Self::ForgottenVote => "forgotten-vote",
            Self::StaleRead => "stale-read",
            Self::LeaderRestore => "leader-restore",
            Self::DroppedForward => "dropped-forward",
            Self::FailureIsDone => "failure-is-done",
            Self::TwoBootstraps => "two-bootstraps",
            Self::RemovedNodeLetIn => "removed-node-let-in",
            Self::SnapshotLosesField => "snapshot-loses-field",
            Self::LocalClock => "local-clock",
            Self::NoCapacityCheck => "no-capacity-check",
            Self::CommittedAhead => "committed-ahead",
            Self::NoCopiesCheck => "no-copies-check",
            Self::RemovesUnasked => "removes-unasked",
        }
    }
}
