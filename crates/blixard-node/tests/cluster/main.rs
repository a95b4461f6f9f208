//! Clusters of real nodes in one process: real iroh connections on loopback, real files, and the fake driver.
#![allow(clippy::unwrap_used)]

mod audit;
mod bench;
mod cache;
mod catalogs;
mod consensus;
mod documents;
mod hostile;
mod images;
mod joining;
mod lazy;
mod requests;
mod roles;
mod transfers;
mod vms;
