//! The cluster itself: its first command, its settings and its clients.

use crate::limits::{self, CLIENTS_MAX, room_for_one};
use crate::{
    Answer, Client, ClientRole, ClusterId, DocumentsSecret, EndpointId, Node, Outcome, Rejection, Settings, State,
    UnixMs,
};

impl State {
    pub(super) fn init_cluster(
        &mut self,
        cluster: ClusterId,
        node: &Node,
        client: &Client,
        settings: &Settings,
        at: UnixMs,
    ) -> Outcome {
        if let Some(existing) = self.cluster {
            return Err(Rejection::ClusterExists(existing));
        }
        limits::node(node)?;
        limits::client(client)?;
        limits::settings(settings)?;
        if client.role != ClientRole::Admin {
            return limits::invalid("the first client of a cluster is its admin".into());
        }
        self.cluster = Some(cluster);
        self.settings = *settings;
        self.nodes.insert(node.id, Node { joined_at: at, ..node.clone() });
        self.clients.insert(client.key, Client { added_at: at, ..client.clone() });
        Ok(Answer::Done)
    }

    pub(super) fn change_settings(&mut self, settings: &Settings) -> Outcome {
        limits::settings(settings)?;
        self.settings = *settings;
        Ok(Answer::Done)
    }

    /// The first secret stays: what was written under it would be lost with it.
    pub(super) fn set_documents_secret(&mut self, secret: DocumentsSecret) -> Outcome {
        self.documents_secret.get_or_insert(secret);
        Ok(Answer::Done)
    }

    /// A key that is known already gets the new role and name, and keeps its time.
    pub(super) fn grant_client(&mut self, client: &Client, at: UnixMs) -> Outcome {
        limits::client(client)?;
        if client.role != ClientRole::Admin && self.is_last_admin(client.key) {
            return Err(Rejection::LastAdmin);
        }
        if let Some(known) = self.clients.get_mut(&client.key) {
            known.name.clone_from(&client.name);
            known.role = client.role;
            return Ok(Answer::Done);
        }
        room_for_one(self.clients.len(), CLIENTS_MAX, "client keys")?;
        self.clients.insert(client.key, Client { added_at: at, ..client.clone() });
        Ok(Answer::Done)
    }

    pub(super) fn revoke_client(&mut self, key: EndpointId) -> Outcome {
        if !self.clients.contains_key(&key) {
            return Err(Rejection::UnknownClient);
        }
        if self.is_last_admin(key) {
            return Err(Rejection::LastAdmin);
        }
        self.clients.remove(&key);
        Ok(Answer::Done)
    }

    /// Whether nobody could grant anything any more without this key.
    fn is_last_admin(&self, key: EndpointId) -> bool {
        let mut admins = self.clients.values().filter(|client| client.role == ClientRole::Admin);
        admins.next().is_some_and(|admin| admin.key == key) && admins.next().is_none()
    }
}
