//! What nodes do for people by themselves, told to the audit trail.
//!
//! Limits, pauses, pins and shares are a matter of one node and must be changed without a quorum. So they are done first, and
//! recorded as soon as there is a leader, in the order in which they were done. A node that dies before that takes the entries
//! that still wait with it; its log has them.

use blixard_core::{Actor, Change, Command, ContentHash, Deed, EndpointId, ImageId, RequestId, RequestKey};
use tokio::sync::mpsc;

use super::Server;
use crate::clock;
use crate::raft::{ConsensusError, Raft};

/// Deeds that wait to be recorded: hours of what people do, while there is no leader.
const WAITING_MAX: usize = 1000;

/// Where deeds wait to be recorded.
pub(super) struct Deeds(mpsc::Sender<Command>);

impl Deeds {
    /// Ends when it is dropped, or with consensus.
    pub(super) fn new(raft: Raft) -> Self {
        let (waiting, commands) = mpsc::channel(WAITING_MAX);
        tokio::spawn(record(raft, commands));
        Self(waiting)
    }
}

async fn record(raft: Raft, mut commands: mpsc::Receiver<Command>) {
    while let Some(command) = commands.recv().await {
        loop {
            match raft.propose(&command).await {
                Ok(Ok(_)) => break,
                Ok(Err(rejection)) => {
                    tracing::warn!(%rejection, "what was done for a client is not in the audit trail");
                    break;
                }
                Err(ConsensusError::Stopped { .. }) => return,
                // The proposal has waited for a leader long enough by itself.
                Err(error) => tracing::debug!(%error, "what was done for a client is told again"),
            }
        }
    }
}

impl Server {
    /// An image, and that it is about this node's.
    pub(super) fn image_here(&self, image: ImageId) -> String {
        let name = self.inner.raft.read(|state| state.images.get(&image).map(|image| image.name.clone()));
        let name = name.map_or_else(|| image.short(), |name| name.to_string());
        format!("{name} node={}", self.inner.me)
    }

    /// Has the audit trail say that this node did something for a client.
    pub(super) fn record(&self, client: EndpointId, deed: Deed, object: String) {
        let mut id = RequestId([0; 16]);
        // With an id, so that it is there once however often it is proposed. Without random bytes it may be there twice.
        let request = getrandom::fill(&mut id.0).is_ok().then_some(RequestKey { id, content: ContentHash([0; 16]) });
        let node = self.inner.me;
        tracing::info!(client = %client.short(), %deed, object, "done for a client");
        let change = Change::RecordDeed { node, client, deed, object };
        let command = Command { request, at: clock::now(), by: Actor::Node(node), change };
        if self.inner.deeds.0.try_send(command).is_err() {
            tracing::warn!(%deed, "too much waits to be recorded: the audit trail will not have this");
        }
    }
}
