//! The openraft types of this cluster, in one place.

use std::fmt;
use std::path::Path;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::trace::TraceContext;

/// An encoded [`blixard_core::Command`] as it travels in the log. Replicas store it as it came, and decode it when it
/// is applied: a node can hold entries that only a newer version understands. The trace that it belongs to goes beside it, so
/// that no state can depend on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Logged(pub(super) Bytes, pub(super) Option<TraceContext>);

impl fmt::Display for Logged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "command of {} bytes", self.0.len())
    }
}

/// What applying an entry answers. Entries that are not commands answer nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Applied(pub(super) Option<blixard_core::Outcome>);

#[cfg(feature = "simulation")]
use crate::runtime::Runtime;
#[cfg(not(feature = "simulation"))]
use openraft::impls::TokioRuntime as Runtime;

openraft::declare_raft_types!(
    pub(super) Group:
        D = Logged,
        R = Applied,
        NodeId = u64,
        Node = openraft::BasicNode,
        LeaderId = openraft::impls::leader_id_std::LeaderId<Self::Term, Self::NodeId>,
        AsyncRuntime = Runtime,
);

pub(super) type Entry = openraft::alias::EntryOf<Group>;
pub(super) type LogId = openraft::alias::LogIdOf<Group>;
pub(super) type Vote = openraft::alias::VoteOf<Group>;
pub(super) type SnapshotMeta = openraft::alias::SnapshotMetaOf<Group>;
pub(super) type Snapshot = openraft::alias::SnapshotOf<Group, Bytes>;
pub(super) type StoredMembership = openraft::alias::StoredMembershipOf<Group>;

/// An io error that names the file it is about.
pub(super) fn storage_error(path: &Path, doing: &str, error: impl fmt::Display) -> std::io::Error {
    std::io::Error::other(format!("{doing} {}: {error}", path.display()))
}
