//! A vm's console log as it comes, over as many nodes and connections as it takes.
//!
//! Each answer says at which byte of the log it begins, and the node that has the vm counts those bytes for as long as the vm is
//! there. So a log that broke off goes on at the very next byte, through whichever node answers. The log is on the vm's node
//! alone: while that one is away, it is waited for.

use std::time::Duration;

use blixard_core::VmName;
use blixard_node::api::{Client, ClientError, FaultKind, LogStart, VmLog};
use bytes::Bytes;
use futures::StreamExt;
use tokio::time::Instant;

use super::super::output;
use super::wait::is_passing;
use crate::failure::{Exit, Failure};

/// How long the log may be out of reach before it is given up. A node is restarted, and a lost leader replaced, within
/// seconds.
const PATIENCE: Duration = Duration::from_secs(30);
/// The wait before the log is asked for again.
const AGAIN_AFTER: Duration = Duration::from_millis(200);

/// A log that is being read.
pub(super) struct Reading<'a> {
    client: Client,
    name: &'a VmName,
    follow: bool,
    /// Behind the last byte that was read.
    at: u64,
    log: VmLog,
    /// Whether the log has to be asked for again.
    is_lost: bool,
}

impl<'a> Reading<'a> {
    /// Begins to read. Who follows a log can go on at any member of the cluster.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub(super) async fn begin(
        client: &Client,
        name: &'a VmName,
        follow: bool,
        start: LogStart,
    ) -> Result<Self, ClientError> {
        let client = if follow { client.with_members().await? } else { client.clone() };
        let log = client.vm_logs(name, follow, start).await?;
        Ok(Self { client, name, follow, at: log.position, log, is_lost: false })
    }

    /// Behind which byte of the log the last piece ended.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// The next piece. Nothing comes after the last of a log that is not followed; one that is followed ends with an error.
    ///
    /// # Errors
    /// When the vm is gone, or nobody can tell how its log goes on.
    pub(super) async fn next(&mut self) -> anyhow::Result<Option<Bytes>> {
        loop {
            if self.is_lost {
                self.go_on().await?;
            }
            match self.log.content.next().await {
                Some(Ok(piece)) => {
                    self.at += piece.len() as u64;
                    return Ok(Some(piece));
                }
                None if !self.follow => return Ok(None),
                // The node has seen the vm go, which the next answer tells.
                None => self.is_lost = true,
                Some(Err(error)) => {
                    self.is_lost = true;
                    let why = output::clean(&error.to_string());
                    output::note(&format!("the log of vm {} broke off ({why}); asking for the rest", self.name));
                }
            }
        }
    }

    /// Asks for the log from where it broke off, until there is an answer or no patience left.
    async fn go_on(&mut self) -> anyhow::Result<()> {
        let name = self.name;
        let since = Instant::now();
        let mut has_told = false;
        loop {
            tokio::time::sleep(AGAIN_AFTER).await;
            let error = match self.client.vm_logs(name, self.follow, LogStart::At(self.at)).await {
                Ok(log) if log.vm != self.log.vm => return Err(ended(name, "another vm has its name now")),
                Ok(log) => {
                    if log.position > self.at {
                        let missed = log.position - self.at;
                        output::note(&format!("[{missed} bytes are left out here: they are not kept any more]"));
                    }
                    (self.at, self.log, self.is_lost) = (log.position, log, false);
                    return Ok(());
                }
                Err(ClientError::Fault(fault)) if fault.kind == FaultKind::NotFound => {
                    return Err(ended(name, &fault.message));
                }
                Err(error) if !is_passing(&error) => return Err(error.into()),
                Err(error) => error,
            };
            if let ClientError::Fault(_) = error {
                // Another may reach whom this one does not.
                self.client.turn_away();
            }
            let why = output::clean(&format!("{:#}", anyhow::Error::from(error)));
            if since.elapsed() >= PATIENCE {
                let message =
                    format!("the log of vm {name} broke off, and nobody could tell the rest for {PATIENCE:?}: {why}");
                let next_step = "start the node that has the vm again: its guest may run on, and the log goes on then; \
                                 `blixard cluster status` shows which nodes answer";
                return Err(Failure::new(Exit::Unreachable, message).next_step(next_step).into());
            }
            if !std::mem::replace(&mut has_told, true) {
                output::note(&format!("waiting for the rest of the log: {why}"));
            }
        }
    }
}

/// Why a log that was followed goes no further.
fn ended(name: &VmName, why: &str) -> anyhow::Error {
    let message = format!("the log of vm {name} ends here: {why}");
    Failure::new(Exit::NotFound, message).next_step("`blixard events` tells what became of it").into()
}
