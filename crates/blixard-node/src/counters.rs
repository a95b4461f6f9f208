//! What a node counts about itself, for `/metrics`. Background work that fails is counted here, so that none fails silently.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that only rises.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// Raises it to what another counter says.
    pub(crate) fn raise_to(&self, count: u64) {
        self.0.fetch_max(count, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that is set anew at each look.
#[derive(Debug)]
pub(crate) struct Gauge(AtomicU64);

impl Gauge {
    pub(crate) fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Default for Gauge {
    /// Well until seen otherwise.
    fn default() -> Self {
        Self(AtomicU64::new(1))
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
    /// Attempts to fetch an image that failed.
    pub(crate) transfer_failures: Counter,
    /// Panics in the queue of transfers, which goes on.
    pub(crate) transfer_panics: Counter,
    /// Whether the blob store works. Once it has failed, only a restart of the process brings it back.
    pub(crate) store_alive: Gauge,
    /// Whether the blob store frees what nothing keeps. Once that has failed, only a restart brings it back.
    pub(crate) store_collects: Gauge,
    /// Requests to the control API.
    pub(crate) api_requests: Counter,
    /// Nodes that asked to join and were refused.
    pub(crate) joins_refused: Counter,
}
