//! A Blixard node: everything that waits.
//!
//! [`Node`] is a running node, [`config`] what it is told, [`api`] the one contract it speaks with clients, and
//! [`transport`] and [`user`] what a client needs of it: keys, tickets and registry files. [`shares`] fetches what somebody shares. The rooms and who may use whom are
//! in ARCHITECTURE.md.
//!
//! With the feature `simulation` the crate is something else: the rooms that decide, on virtual time, and the simulator that runs
//! them.

#![cfg_attr(
    feature = "simulation",
    allow(
        dead_code,
        unused_imports,
        unreachable_pub,
        reason = "much of what a room offers is used by rooms that are not there"
    )
)]

#[cfg(not(feature = "simulation"))]
mod agent;
#[cfg(not(feature = "simulation"))]
pub mod api;
mod backoff;
#[cfg(not(feature = "simulation"))]
mod catalogs;
mod clock;
pub mod config;
mod damage;
#[cfg(not(feature = "simulation"))]
#[doc(hidden)]
pub mod decoders;
#[cfg(not(feature = "simulation"))]
mod documents;
#[cfg(not(feature = "simulation"))]
mod http;
#[cfg(not(feature = "simulation"))]
mod images;
#[cfg(not(feature = "simulation"))]
mod kept;
#[cfg(not(feature = "simulation"))]
mod lazy;
mod leader;
mod metrics;
#[cfg(not(feature = "simulation"))]
mod node;
mod raft;
mod runtime;
#[cfg(not(feature = "simulation"))]
pub mod shares;
#[cfg(feature = "simulation")]
pub mod simulation;
pub mod trace;
#[cfg(not(feature = "simulation"))]
mod transfers;
pub mod transport;
#[cfg(not(feature = "simulation"))]
pub mod user;

#[cfg(not(feature = "simulation"))]
pub use api::join::JoinRefusal;
pub use damage::Damage;
#[cfg(not(feature = "simulation"))]
pub use node::{Ended, Node, StartError};
pub use raft::Role;
