//! Apply: what each command does to the state.
//!
//! Apply is total and deterministic. It looks at nothing but the state and the command, has no effects, and answers every
//! command that can be decoded: either the change is made whole, or the command is rejected and nothing has changed.

mod cluster;
mod history;
mod images;
mod nodes;
mod tokens;
mod vms;

use crate::limits::{self, ANSWERED_MAX};
use crate::{
    Actor, Answer, Change, Client, ClientRole, Command, EndpointId, NodeId, Outcome, Rejection, RequestKey, State,
};

impl State {
    /// Carries a command out.
    ///
    /// A command whose request was answered before gets that answer again and changes nothing, for as long as the answer
    /// is among the last [`ANSWERED_MAX`]; so does one whose id was another request's, which is rejected.
    pub fn apply(&mut self, command: &Command) -> Outcome {
        if let Some(answer) = command.request.and_then(|request| self.answer_to(request)) {
            return answer;
        }
        // Before, because what a command removes has a name only until then.
        let entry = self.audit_entry(command);
        let happens = self.foretell(command);
        let outcome = self.carry_out(command);
        if let Some(entry) = entry {
            self.keep_entry(entry, &outcome);
        }
        if outcome.is_ok() {
            self.remember(command, happens);
        }
        if let Some(request) = command.request {
            while self.answered.len() >= ANSWERED_MAX {
                self.answered.pop_front();
            }
            self.answered.push_back((request, outcome.clone()));
        }
        outcome
    }

    /// What a request is answered that is not carried out: the answer that it had before or, when its id is that of
    /// another request, [`Rejection::RequestIdTaken`].
    pub fn answer_to(&self, request: RequestKey) -> Option<Outcome> {
        // A retry follows its first try closely, so the search starts with the newest.
        let (first, outcome) = self.answered.iter().rev().find(|(answered, _)| answered.id == request.id)?;
        Some(if first.content == request.content { outcome.clone() } else { Err(Rejection::RequestIdTaken) })
    }

    fn carry_out(&mut self, command: &Command) -> Outcome {
        let (at, by) = (command.at, command.by);
        if let Change::InitCluster { cluster, node, client, settings } = &command.change {
            return self.init_cluster(*cluster, node, client, settings, at);
        }
        if self.cluster.is_none() {
            return Err(Rejection::NoCluster);
        }
        self.may(by, &command.change)?;
        match &command.change {
            Change::InitCluster { cluster, .. } => Err(Rejection::ClusterExists(*cluster)),
            Change::ChangeSettings(settings) => self.change_settings(settings),
            Change::CreateToken(token) => self.create_token(token, at),
            Change::RevokeToken(id) => self.revoke_token(*id),
            Change::AdmitNode { node, token } => self.admit_node(node, token.as_ref(), at),
            Change::UpdateNode(node) => {
                own_word(by, node.id)?;
                self.update_node(node)
            }
            Change::RemoveNode { node, force } => self.remove_node(*node, *force),
            Change::GrantClient(client) => self.grant_client(client, at),
            Change::RevokeClient(key) => self.revoke_client(*key),
            Change::AddImage(image) => self.add_image(image, at),
            Change::DeleteImage(id) => self.delete_image(*id),
            Change::WantCopy { image, node } => self.want_copy(*image, *node),
            Change::ReportCopy { image, node, present } => {
                own_word(by, *node)?;
                self.report_copy(*image, *node, *present)
            }
            Change::CreateVm { id, name, spec, start } => self.create_vm(*id, name, spec, *start, at),
            Change::StartVm(id) => self.start_vm(*id),
            Change::StopVm { id, timeout_ms } => self.stop_vm(*id, *timeout_ms),
            Change::RestartVm { id, timeout_ms } => self.restart_vm(*id, *timeout_ms),
            Change::DeleteVm(id) => self.delete_vm(*id),
            Change::PlaceVm { id, node, epoch } => self.place_vm(*id, *node, *epoch),
            Change::ReportVm { id, node, observed } => {
                own_word(by, *node)?;
                self.report_vm(*id, *node, observed)
            }
            Change::ForgetVm { id, node, epoch } => {
                own_word(by, *node)?;
                self.forget_vm(*id, *node, *epoch)
            }
            Change::Note(note) => self.note(by, note),
            Change::SetDocumentsSecret(secret) => self.set_documents_secret(*secret),
            Change::ReleaseCopy { image, node } => {
                own_word(by, *node)?;
                self.release_copy(*image, *node)
            }
            Change::RecordDeed { node, deed, object, .. } => {
                own_word(by, *node)?;
                limits::deed(*deed, object)?;
                Ok(Answer::Done)
            }
            Change::RecordBoot { image, node, record } => {
                own_word(by, *node)?;
                self.record_boot(*image, record)
            }
        }
    }

    /// Whether the actor has a say in the change. Whoever was removed, or lost its role, while the command was on the way
    /// has none any more, whatever the node that accepted the command knew.
    fn may(&self, by: Actor, change: &Change) -> Result<(), Rejection> {
        let key = match by {
            Actor::Node(id) if self.nodes.contains_key(&id) => return Ok(()),
            Actor::Node(id) => {
                return Err(Rejection::NotAllowed(format!("node {id} is not a member of the cluster")));
            }
            Actor::Client(key) => key,
        };
        let Some(least) = change.least_role() else {
            return Err(Rejection::NotAllowed("only the nodes of the cluster decide and report this".into()));
        };
        self.client_may(key, least).map(drop)
    }

    /// The client of a key, when its role is `least` or more.
    ///
    /// # Errors
    /// [`Rejection::NotAllowed`], with what the client has and what it needs.
    pub fn client_may(&self, key: EndpointId, least: ClientRole) -> Result<&Client, Rejection> {
        let Some(client) = self.clients.get(&key) else {
            return Err(Rejection::NotAllowed(format!("the client key {key} is not known to the cluster")));
        };
        if client.role >= least {
            return Ok(client);
        }
        let (name, role) = (&client.name, client.role);
        Err(Rejection::NotAllowed(format!(
            "this needs the role {least}, and client {name} has the role {role}: an admin can give it with `blixard \
             cluster grant {key} --role {least}`"
        )))
    }
}

/// Refuses what only `node` can know when somebody else says it.
fn own_word(by: Actor, node: NodeId) -> Result<(), Rejection> {
    if by == Actor::Node(node) {
        return Ok(());
    }
    Err(Rejection::NotAllowed(format!("only node {node} itself may report this")))
}
