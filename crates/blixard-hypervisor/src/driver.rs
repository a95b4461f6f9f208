//! The one contract that every driver keeps, and its errors.

use std::io;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::log::{LogChunk, LogPosition, LogSpan};
use crate::observed::ObservedVm;
use crate::spec::{LaunchSpec, SpecError};

/// Runs vms on this host. Every call blocks; a driver may be shared between threads.
pub trait Driver: Send + Sync {
    /// Starts the vm and returns once its hypervisor runs, or says why it does not. A repeated call for the
    /// `(epoch, run)` that already runs is no error and changes nothing; one that has ended is begun again. A failed launch leaves no process behind; the
    /// vm's disk and log stay.
    fn launch(&self, spec: &LaunchSpec) -> Result<(), LaunchError>;

    /// Asks the guest to shut down, and cuts it off when it has not within `timeout`. Returns when the order is
    /// accepted; the guard carries it out even when this process ends. A second call can only bring the end nearer.
    /// A vm that does not run is no error.
    fn stop(&self, vm: &str, timeout: Duration) -> Result<(), StopError>;

    /// Ends the vm at once and returns when it has ended. A vm that does not run is no error.
    fn kill(&self, vm: &str) -> Result<(), StopError>;

    /// Lets a vm that was launched over a [`LazyBase`](crate::LazyBase) read its base from the base's file from now on, which has
    /// to be whole. The guest runs on and notices nothing. A vm that reads it from there already, or does not run, is no
    /// error; one that could not be switched goes on as before, and the call can be repeated.
    fn settle(&self, vm: &str) -> Result<(), SettleError>;

    /// All vms with a folder on this host, by id, also those that an earlier process launched.
    fn list(&self) -> Result<Vec<ObservedVm>, ListError>;

    /// Kills the vm if it runs and deletes every file of it, its disk included. An unknown vm is no error.
    fn remove(&self, vm: &str) -> Result<(), RemoveError>;

    /// Blocks until a vm that the last [`list`](Driver::list) showed as running has ended, or something else may have
    /// changed (true), or until the timeout (false).
    fn wait_change(&self, timeout: Duration) -> bool;

    /// A connection to the serial console: bytes both ways, several viewers at once. It begins with the last few KiB
    /// of output, so that a prompt is visible. A viewer that does not read loses old output.
    fn console(&self, vm: &str) -> Result<UnixStream, ConsoleError>;

    /// The part of the console log that is still kept.
    fn log_span(&self, vm: &str) -> Result<LogSpan, LogError>;

    /// Reads the console log from a position, at most `bytes_max` bytes. A position that is no longer kept continues
    /// at the oldest byte that is.
    fn read_log(&self, vm: &str, from: LogPosition, bytes_max: usize) -> Result<LogChunk, LogError>;
}

/// Why a launch failed.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The spec is wrong; no host will run it.
    #[error("the spec cannot be run")]
    Spec(#[from] SpecError),
    /// A newer launch has been seen for this vm, so this order is out of date.
    #[error("order out of date: epoch {epoch} run {run} was launched already")]
    Stale {
        /// Epoch of the newer launch.
        epoch: u64,
        /// Run of the newer launch.
        run: u64,
    },
    /// Another run of the vm goes on; it must end first.
    #[error("epoch {epoch} run {run} of this vm still runs; stop it first")]
    AnotherRun {
        /// Epoch of that run.
        epoch: u64,
        /// Run number of that run.
        run: u64,
    },
    /// The vm's folder, disk or seed could not be made ready.
    #[error("{doing}")]
    Prepare {
        /// What was being done, in the present tense.
        doing: String,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// This host or the files named in the spec do not fit the spec.
    #[error("{detail}")]
    Unsuitable {
        /// What does not fit and what to do.
        detail: String,
    },
    /// The hypervisor or its guard did not come up.
    #[error("{detail}")]
    Hypervisor {
        /// What it said.
        detail: String,
    },
}

/// Why a stop or kill order failed.
#[derive(Debug, thiserror::Error)]
pub enum StopError {
    /// There is no such vm on this host.
    #[error("there is no vm {vm} on this host")]
    Unknown {
        /// The id that was asked for.
        vm: String,
    },
    /// The guard did not take the order.
    #[error("{doing}")]
    Guard {
        /// What was being done, in the present tense.
        doing: String,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
}

/// Why a vm still reads its base from the server that it was launched over.
#[derive(Debug, thiserror::Error)]
pub enum SettleError {
    /// There is no such vm on this host.
    #[error("there is no vm {vm} on this host")]
    Unknown {
        /// The id that was asked for.
        vm: String,
    },
    /// The guard did not take the order.
    #[error("{doing}")]
    Guard {
        /// What was being done, in the present tense.
        doing: String,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// The hypervisor did not open the file, or did not change over to it.
    #[error("the guest cannot be changed over to the image's file: {detail}")]
    Hypervisor {
        /// What it said.
        detail: String,
    },
}

/// Why the vms could not be listed.
#[derive(Debug, thiserror::Error)]
#[error("read the vm folders in {root}")]
pub struct ListError {
    /// The driver's root folder.
    pub root: String,
    /// What went wrong.
    #[source]
    pub source: io::Error,
}

/// Why a vm could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// The vm could not be ended first; nothing was deleted.
    #[error("end the vm before deleting it")]
    Kill(#[from] StopError),
    /// Its files could not be deleted.
    #[error("delete the files of the vm")]
    Files(#[source] io::Error),
}

/// Why there is no console.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// There is no such vm on this host.
    #[error("there is no vm {vm} on this host")]
    Unknown {
        /// The id that was asked for.
        vm: String,
    },
    /// The vm does not run; its log can still be read.
    #[error("the vm does not run")]
    NotRunning,
    /// The guard does not answer.
    #[error("connect to the console")]
    Connect(#[source] io::Error),
}

/// Why a log could not be read.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// There is no such vm on this host.
    #[error("there is no vm {vm} on this host")]
    Unknown {
        /// The id that was asked for.
        vm: String,
    },
    /// The log's files could not be read.
    #[error("read the console log")]
    Read(#[source] io::Error),
}
