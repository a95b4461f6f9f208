//! What a node counts about itself, for `/metrics`. Background work that fails is counted here, so that none fails silently.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that only rises.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The counters of one node.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Decisions of the leader that could not be carried out.
    pub(crate) leader_failures: Counter,
    /// Looks of the agent that failed.
    pub(crate) agent_failures: Counter,
    /// Orders of the agent that failed, such as a launch.
    pub(crate) order_failures: Counter,
    /// Background tasks that ended by a panic and were started again.
    pub(crate) task_restarts: Counter,
    /// Requests to the control API.
    pub(crate) api_requests: Counter,
    /// Nodes that asked to join and were refused.
    pub(crate) joins_refused: Counter,
}
