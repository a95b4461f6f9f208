//! The one contract: requests, views and faults, with the server and the client that speak it.
//!
//! It is HTTP with JSON, served over streams of the `blixard/api/1` protocol to clients whose key the cluster knows. The room
//! owns the words of the contract and turns requests into commands and reads; it mints ids and reads the clock, which
//! commands carry into the log. It decides nothing about vms and images.

pub mod bootstrap;
mod client;
mod fault;
pub(crate) mod join;
mod proxy;
mod relay;
pub(crate) mod server;
mod target;
mod views;

pub use client::{Client, ClientError, LogStart, VmLog};
pub use fault::{Fault, FaultKind};
pub use proxy::Proxy;
pub use server::routes::{Rule, openapi, rules};
pub use target::Target;
pub use views::*;

pub use crate::documents::{DocumentRight, DocumentTicket};

/// Names a request, so that it has one effect however often it is sent.
const REQUEST_HEADER: &str = "x-blixard-request";
/// For which client a member asks another one.
const CLIENT_HEADER: &str = "x-blixard-client";
/// The position in a console log at which an answer begins.
const LOG_POSITION_HEADER: &str = "x-blixard-log-position";
/// The vm that an answer is about: another one may have got its name.
const VM_HEADER: &str = "x-blixard-vm";
/// What a request for a console upgrades to.
const CONSOLE_UPGRADE: &str = "blixard-console";
