//! The wall clock, read in one place: when a request is accepted, and when a report is made.

#[cfg(not(feature = "simulation"))]
use std::time::{SystemTime, UNIX_EPOCH};

use blixard_core::UnixMs;

/// The time now; 0 on a host whose clock stands before 1970.
#[cfg(not(feature = "simulation"))]
pub(crate) fn now() -> UnixMs {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMs(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// The time now on the host that is simulated.
#[cfg(feature = "simulation")]
pub(crate) fn now() -> UnixMs {
    UnixMs(crate::simulation::wall_ms())
}
