//! The audit trail: the last writes that were asked for, with who, when, what, and how each ended.
//!
//! It is part of the state, so that every node has all of it and none can change it alone, and therefore bounded. What
//! follows from a write is left out: the leader's decisions and the agents' reports come every few seconds, and would push out
//! what people did. So are refused requests to join, of which a stranger can make any number. No entry holds a secret,
//! nor what a guest is given: names, ids and numbers only.

use std::collections::VecDeque;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Actor, Change, Command, Outcome, Rejection, State, UnixMs, VmId};

/// Entries kept: days of what people do, and some 200 KiB of state at most.
pub const AUDIT_MAX: usize = 1000;
/// Length of what an entry says of its object. A name in a refused command may be of any length.
pub(crate) const OBJECT_CHARS_MAX: usize = 160;

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Deed {
    /// The cluster was founded.
    FoundCluster,
    /// Settings of the cluster were changed.
    ChangeSettings,
    /// A join token was made.
    CreateToken,
    /// A join token was revoked.
    RevokeToken,
    /// A node was let in.
    AdmitNode,
    /// A node was removed.
    RemoveNode,
    /// A client was let in, or given another role.
    GrantClient,
    /// A client was revoked.
    RevokeClient,
    /// An image was added.
    AddImage,
    /// An image was deleted.
    DeleteImage,
    /// A vm was created.
    CreateVm,
    /// A vm was started.
    StartVm,
    /// A vm was stopped.
    StopVm,
    /// A vm was restarted.
    RestartVm,
    /// A vm was deleted.
    DeleteVm,
    /// A node was told to fetch an image.
    FetchImage,
    /// An image on its way to a node was paused.
    PauseTransfer,
    /// An image on its way to a node was let go on.
    ResumeTransfer,
    /// An image that a node had been told to fetch was given up.
    CancelTransfer,
    /// The limits of a node's transfers were set.
    LimitTransfers,
    /// An image was pinned on a node.
    PinImage,
    /// An image was unpinned on a node.
    UnpinImage,
    /// Something was shared with those who have a ticket.
    CreateShare,
    /// It is shared no more.
    StopShare,
}

impl Deed {
    /// Whether it is a matter of one node, which does it without the others and records it afterwards.
    pub fn is_of_one_node(self) -> bool {
        matches!(
            self,
            Self::FetchImage
                | Self::PauseTransfer
                | Self::ResumeTransfer
                | Self::CancelTransfer
                | Self::LimitTransfers
                | Self::PinImage
                | Self::UnpinImage
                | Self::CreateShare
                | Self::StopShare
        )
    }
}

impl fmt::Display for Deed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::FoundCluster => "found cluster",
            Self::ChangeSettings => "change settings",
            Self::CreateToken => "create token",
            Self::RevokeToken => "revoke token",
            Self::AdmitNode => "admit node",
            Self::RemoveNode => "remove node",
            Self::GrantClient => "grant client",
            Self::RevokeClient => "revoke client",
            Self::AddImage => "add image",
            Self::DeleteImage => "delete image",
            Self::CreateVm => "create vm",
            Self::StartVm => "start vm",
            Self::StopVm => "stop vm",
            Self::RestartVm => "restart vm",
            Self::DeleteVm => "delete vm",
            Self::FetchImage => "fetch image",
            Self::PauseTransfer => "pause transfer",
            Self::ResumeTransfer => "resume transfer",
            Self::CancelTransfer => "cancel transfer",
            Self::LimitTransfers => "limit transfers",
            Self::PinImage => "pin image",
            Self::UnpinImage => "unpin image",
            Self::CreateShare => "create share",
            Self::StopShare => "stop share",
        })
    }
}

/// One write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditEntry {
    /// One more than that of the entry before, so that a gap shows.
    pub number: u64,
    /// When the node that accepted the request did so, by that node's clock.
    pub at: UnixMs,
    /// Who asked.
    pub by: Actor,
    /// The name that the client had then.
    pub client_name: Option<String>,
    /// What was asked for.
    pub deed: Deed,
    /// Of what: a name or an id, and what tells this write from another like it.
    pub object: String,
    /// Why it was rejected, if it was.
    pub rejection: Option<Rejection>,
}

/// The trail, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Audit {
    /// How many writes there have been, forgotten ones included.
    pub count: u64,
    /// The last of them.
    pub entries: VecDeque<AuditEntry>,
}

impl Audit {
    /// The entries after a number, the last `max` of them.
    pub fn after(&self, number: u64, max: usize) -> impl Iterator<Item = &AuditEntry> {
        let fresh = self.entries.iter().rev().take(max).take_while(|entry| entry.number > number).count();
        self.entries.iter().skip(self.entries.len() - fresh)
    }
}

impl State {
    /// The entry of a command as it is before it is carried out, when it is one to be kept.
    pub(crate) fn audit_entry(&self, command: &Command) -> Option<AuditEntry> {
        let (deed, object) = self.deed(command)?;
        let by = match &command.change {
            Change::RecordDeed { client, .. } => Actor::Client(*client),
            _ => command.by,
        };
        let client_name = match by {
            Actor::Client(key) => self.clients.get(&key).map(|client| client.name.clone()),
            Actor::Node(_) => None,
        };
        let object = object.chars().take(OBJECT_CHARS_MAX).collect();
        Some(AuditEntry { number: 0, at: command.at, by, client_name, deed, object, rejection: None })
    }

    /// Keeps an entry with how its command ended.
    pub(crate) fn keep_entry(&mut self, entry: AuditEntry, outcome: &Outcome) {
        // Nobody asked for what only a stranger, or a node that may not say so, claims.
        let is_claim = (entry.deed == Deed::AdmitNode || entry.deed.is_of_one_node()) && outcome.is_err();
        if is_claim || self.cluster.is_none() {
            return;
        }
        while self.audit.entries.len() >= AUDIT_MAX {
            self.audit.entries.pop_front();
        }
        self.audit.count = self.audit.count.saturating_add(1);
        let (number, rejection) = (self.audit.count, outcome.as_ref().err().cloned());
        self.audit.entries.push_back(AuditEntry { number, rejection, ..entry });
    }

    fn deed(&self, command: &Command) -> Option<(Deed, String)> {
        let vm = |id: &VmId| self.vms.get(id).map_or_else(|| id.to_string(), |vm| vm.name.to_string());
        Some(match &command.change {
            Change::InitCluster { cluster, .. } => (Deed::FoundCluster, cluster.to_string()),
            Change::ChangeSettings(settings) => {
                (Deed::ChangeSettings, format!("voters={} copies={}", settings.voters, settings.copies))
            }
            Change::CreateToken(token) => {
                let uses = token.uses_left.map_or_else(|| "any".to_owned(), |uses| uses.to_string());
                let end = token
                    .expires_at
                    .map_or_else(|| "unlimited".to_owned(), |end| format!("{}s", end.since_ms(command.at) / 1000));
                (Deed::CreateToken, format!("{} uses={uses} ttl={end}", token.id))
            }
            Change::RevokeToken(id) => (Deed::RevokeToken, id.to_string()),
            // A member that only says what is new about itself does so without being asked.
            Change::AdmitNode { node, .. } if self.nodes.contains_key(&node.id) => return None,
            Change::AdmitNode { node, token } => {
                let token = token.as_ref().map(|(token, _)| format!(" token={token}")).unwrap_or_default();
                (Deed::AdmitNode, format!("{} key={}{token}", node.id, node.endpoint))
            }
            Change::RemoveNode { node, force } => {
                (Deed::RemoveNode, format!("{node}{}", if *force { " force" } else { "" }))
            }
            Change::GrantClient(client) => {
                (Deed::GrantClient, format!("{} role={} name={}", client.key, client.role, client.name))
            }
            Change::RevokeClient(key) => {
                let name = self.clients.get(key).map(|client| format!(" name={}", client.name)).unwrap_or_default();
                (Deed::RevokeClient, format!("{key}{name}"))
            }
            Change::AddImage(image) => (Deed::AddImage, format!("{} id={}", image.name, image.id)),
            Change::DeleteImage(id) => {
                let name = self.images.get(id).map(|image| format!("{} ", image.name)).unwrap_or_default();
                (Deed::DeleteImage, format!("{name}id={id}"))
            }
            Change::CreateVm { name, spec, .. } => {
                let image = self.images.get(&spec.image).map_or("unknown", |image| image.name.as_str());
                (Deed::CreateVm, format!("{name} image={image}"))
            }
            Change::StartVm(id) => (Deed::StartVm, vm(id)),
            Change::StopVm { id, timeout_ms } => (Deed::StopVm, format!("{} timeout={timeout_ms}ms", vm(id))),
            Change::RestartVm { id, timeout_ms } => (Deed::RestartVm, format!("{} timeout={timeout_ms}ms", vm(id))),
            Change::DeleteVm(id) => (Deed::DeleteVm, vm(id)),
            // What a node cannot do alone has an entry by its own command, and none by a node's word.
            Change::RecordDeed { deed, .. } if !deed.is_of_one_node() => return None,
            Change::RecordDeed { deed, object, .. } => (*deed, object.clone()),
            Change::UpdateNode(_)
            | Change::WantCopy { .. }
            | Change::ReportCopy { .. }
            | Change::PlaceVm { .. }
            | Change::ReportVm { .. }
            | Change::ForgetVm { .. }
            | Change::Note(_)
            | Change::SetDocumentsSecret(_)
            | Change::ReleaseCopy { .. }
            | Change::RecordBoot { .. } => return None,
        })
    }
}
