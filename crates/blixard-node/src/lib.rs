//! A Blixard node: everything that waits.
//!
//! [`Node`] is a running node, [`config`] what it is told, [`api`] the one contract it speaks with clients, and
//! [`transport`] and [`user`] what a client needs of it: keys, tickets and registry files. The rooms and who may use whom are
//! in ARCHITECTURE.md.

mod agent;
pub mod api;
mod clock;
pub mod config;
mod damage;
#[doc(hidden)]
pub mod decoders;
mod http;
mod images;
mod leader;
mod metrics;
mod node;
mod raft;
mod runtime;
mod transfers;
pub mod transport;
pub mod user;

pub use api::join::JoinRefusal;
pub use damage::Damage;
pub use node::{Ended, Node, StartError};
pub use raft::Role;
