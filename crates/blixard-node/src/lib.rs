//! A Blixard node: transport, consensus, images, the agent and the control API.

pub mod api;
pub mod config;
mod raft;
pub mod transport;
pub mod user;

pub use raft::{RaftConfig, Role};
