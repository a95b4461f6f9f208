//! What openraft is told, from this node's settings.

use openraft::SnapshotPolicy;

use crate::config::RaftConfig;

/// Entries of one append request at most; openraft's own bound on a batch.
const APPEND_ENTRIES_MAX: u64 = 512;

/// What openraft is told.
pub(super) fn settings(config: RaftConfig) -> openraft::Config {
    openraft::Config {
        cluster_name: "blixard".into(),
        heartbeat_interval: config.heartbeat_ms,
        election_timeout_min: config.election_min_ms,
        election_timeout_max: config.election_max_ms,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(config.snapshot_entries),
        max_in_snapshot_log_to_keep: config.keep_entries,
        max_payload_entries: APPEND_ENTRIES_MAX,
        // A cut-off voter must not raise terms.
        enable_pre_vote: Some(true),
        // A restarted leader that took its old leadership up again broke promises in simulation.
        enable_leader_restore: Some(false),
        // A log that went back, on a host that was restored from an older copy, must not stop its leader, and then the next
        // one. Such a node is brought up to date again, and the leader's log says so.
        allow_log_reversion: Some(true),
        ..Default::default()
    }
}
