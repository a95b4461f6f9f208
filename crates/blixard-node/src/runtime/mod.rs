//! Time, tasks and slow work, for the rooms that may run without a host under them: tokio's clock, tasks and threads.
//!
//! A room that takes these from here and nowhere else can be run on a virtual clock and a disk that is not there. So
//! `raft/` and `leader/` name neither tokio's clock nor its tasks.

#[cfg(not(feature = "simulation"))]
mod real;

#[cfg(feature = "simulation")]
pub(crate) use crate::simulation::runtime::{
    Instant, Runtime, blocking, sleep, spawn, spawn_tied, timeout, timeout_at, watch, work_off,
};
#[cfg(not(feature = "simulation"))]
pub(crate) use real::{Instant, Tied, blocking, sleep, spawn, spawn_tied, timeout, timeout_at, watch, work_off};
