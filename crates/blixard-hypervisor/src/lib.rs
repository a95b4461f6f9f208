//! Runs virtual machines on this host.
