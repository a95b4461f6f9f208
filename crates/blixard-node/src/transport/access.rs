//! Who may connect, by key and protocol. Checked when the handshake is done, before a byte of the protocol is read.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, RwLock};

use blixard_core::{ClientRole, EndpointId};
use iroh::endpoint::{AfterHandshakeOutcome, Connection, EndpointHooks, Side};
use tokio::sync::watch;

use super::Protocol;
use super::connections::Connections;
use super::traffic::Watched;

/// The code with which a connection is closed that is not allowed.
pub const REFUSED: u32 = 403;

/// The keys that may connect. Shared and live: a change holds for the next connection, and ends those that are open and no
/// longer allowed.
#[derive(Debug, Clone, Default)]
pub struct AccessList {
    keys: Arc<RwLock<Keys>>,
    /// Rises with every change, so that connections which are open can be looked at again.
    changes: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Keys {
    members: HashSet<EndpointId>,
    group: HashSet<EndpointId>,
    clients: HashMap<EndpointId, ClientRole>,
}

impl AccessList {
    /// Sets the nodes that are members, in place of those before.
    pub fn set_members(&self, members: impl IntoIterator<Item = EndpointId>) {
        self.keys.write().expect("no holder of this lock panics").members = members.into_iter().collect();
        self.changes.send_modify(|changes| *changes += 1);
    }

    /// Adds a member that another member vouched for, ahead of the replicated state.
    pub fn add_members(&self, members: impl IntoIterator<Item = EndpointId>) {
        self.keys.write().expect("no holder of this lock panics").members.extend(members);
    }

    /// Sets the nodes that Raft counts, in place of those before. One that was removed from the cluster speaks Raft until it is
    /// out of the group: if it leads, it is the one that takes itself out.
    pub fn set_group(&self, group: impl IntoIterator<Item = EndpointId>) {
        self.keys.write().expect("no holder of this lock panics").group = group.into_iter().collect();
        self.changes.send_modify(|changes| *changes += 1);
    }

    /// Sets the clients that may use the control API and their roles, in place of those before.
    pub fn set_clients(&self, clients: impl IntoIterator<Item = (EndpointId, ClientRole)>) {
        self.keys.write().expect("no holder of this lock panics").clients = clients.into_iter().collect();
        self.changes.send_modify(|changes| *changes += 1);
    }

    /// Whether a key is a member's.
    pub fn is_member(&self, key: &EndpointId) -> bool {
        self.keys.read().expect("no holder of this lock panics").members.contains(key)
    }

    /// The role of a client's key.
    fn role(&self, key: &EndpointId) -> Option<ClientRole> {
        self.keys.read().expect("no holder of this lock panics").clients.get(key).copied()
    }

    /// Why a key may not speak a protocol, if it may not.
    fn refuse(&self, key: &EndpointId, alpn: &[u8]) -> Option<&'static str> {
        match Protocol::of_alpn(alpn) {
            // Whoever has no secret gets nothing there.
            Some(Protocol::Join | Protocol::Share | Protocol::SharedDocuments | Protocol::Published) => None,
            Some(Protocol::Raft) if self.keys.read().expect("no holder of this lock panics").group.contains(key) => {
                None
            }
            Some(Protocol::Raft | Protocol::Peer | Protocol::Blobs | Protocol::Documents | Protocol::Values) => {
                (!self.is_member(key)).then_some("this key is not a member of the cluster")
            }
            Some(Protocol::Api) => self.role(key).is_none().then_some("this client key is not known to the cluster"),
            None => Some("unknown protocol"),
        }
    }

    /// Waits until an open connection is not allowed any more, and says why. A client whose role was lowered has to connect
    /// anew: what it holds open, such as a console, may be no longer for it.
    pub(super) async fn revoked(&self, key: &EndpointId, alpn: &[u8]) -> &'static str {
        let mut changes = self.changes.subscribe();
        let is_client = Protocol::of_alpn(alpn) == Some(Protocol::Api);
        let mut had = None;
        loop {
            changes.borrow_and_update();
            if let Some(reason) = self.refuse(key, alpn) {
                return reason;
            }
            if is_client {
                let has = self.role(key);
                if has < had {
                    return "the role of this client key was lowered";
                }
                had = has;
            }
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    pub(super) fn hook(&self, connections: Connections, watched: Watched) -> Hook {
        Hook { access: self.clone(), connections, watched }
    }
}

#[derive(Debug)]
pub(super) struct Hook {
    access: AccessList,
    connections: Connections,
    watched: Watched,
}

impl EndpointHooks for Hook {
    async fn after_handshake(&self, connection: &Connection) -> AfterHandshakeOutcome {
        if connection.side() != Side::Server {
            self.watched.opened(connection);
            return AfterHandshakeOutcome::Accept;
        }
        let key = EndpointId(*connection.remote_id().as_bytes());
        match self.access.refuse(&key, connection.alpn()) {
            None => {
                // A peer that reaches us can likely be reached: whoever waits out a backoff may try at once.
                self.connections.forgive(key);
                self.watched.opened(connection);
                AfterHandshakeOutcome::Accept
            }
            Some(reason) => {
                self.watched.refused();
                tracing::debug!(peer = %key.short(), reason, "connection refused");
                AfterHandshakeOutcome::Reject { error_code: REFUSED.into(), reason: reason.as_bytes().to_vec() }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_key_that_is_removed_is_noticed() {
        let member = EndpointId([1; 32]);
        let access = AccessList::default();
        access.set_members([member]);
        let alpn = Protocol::Raft.alpn();
        let (_, reason) = tokio::join!(async { access.set_members([]) }, access.revoked(&member, alpn));
        assert!(reason.contains("not a member"));
    }

    #[tokio::test]
    async fn a_role_that_is_lowered_is_noticed_and_one_that_is_raised_is_not() {
        let client = EndpointId([2; 32]);
        let access = AccessList::default();
        access.set_clients([(client, ClientRole::Viewer)]);
        let mut revoked = std::pin::pin!(access.revoked(&client, Protocol::Api.alpn()));
        assert!(futures::poll!(&mut revoked).is_pending());
        access.set_clients([(client, ClientRole::Operator)]);
        assert!(futures::poll!(&mut revoked).is_pending());
        access.set_clients([(client, ClientRole::Viewer)]);
        assert!(revoked.await.contains("lowered"));
    }

    #[test]
    fn a_removed_node_speaks_raft_until_it_is_out_of_the_group() {
        let removed = EndpointId([1; 32]);
        let access = AccessList::default();
        access.set_group([removed]);
        assert!(access.refuse(&removed, Protocol::Raft.alpn()).is_none());
        assert!(access.refuse(&removed, Protocol::Peer.alpn()).is_some());
        access.set_group([]);
        assert!(access.refuse(&removed, Protocol::Raft.alpn()).is_some());
    }

    #[test]
    fn only_protocols_that_ask_for_a_secret_are_open_to_strangers() {
        let (member, client, stranger) = (EndpointId([1; 32]), EndpointId([2; 32]), EndpointId([3; 32]));
        let access = AccessList::default();
        access.set_members([member]);
        access.set_clients([(client, ClientRole::Viewer)]);
        let allowed = |key: &EndpointId, protocol: Protocol| access.refuse(key, protocol.alpn()).is_none();
        for protocol in [Protocol::Raft, Protocol::Peer, Protocol::Blobs, Protocol::Documents, Protocol::Values] {
            assert!(allowed(&member, protocol) && !allowed(&client, protocol) && !allowed(&stranger, protocol));
        }
        assert!(allowed(&client, Protocol::Api) && !allowed(&stranger, Protocol::Api));
        assert!(!allowed(&member, Protocol::Api), "a node's key is not a user's");
        for protocol in [Protocol::Join, Protocol::Share, Protocol::SharedDocuments, Protocol::Published] {
            assert!(allowed(&stranger, protocol));
        }
        assert!(access.refuse(&member, b"other/1").is_some());
    }
}
