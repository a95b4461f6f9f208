//! Who may join and who may ask for what: join tokens, clients and their roles.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Change, EndpointId, SecretHash, TokenId, UnixMs};

/// What lets a node join. Its secret travels in a ticket; the state knows only the secret's hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// Names the token in lists and for revocation.
    pub id: TokenId,
    /// The hash of the secret.
    pub secret_hash: SecretHash,
    /// How many more nodes may join with it; without a number, any.
    pub uses_left: Option<u32>,
    /// From when on it is refused; without a time, never.
    pub expires_at: Option<UnixMs>,
    /// Whether it was revoked.
    pub revoked: bool,
    /// When it was made.
    pub created_at: UnixMs,
}

/// A key that may use the control API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Client {
    /// The user's public key.
    pub key: EndpointId,
    /// A word for people, such as the user's login name.
    pub name: String,
    /// When it was added.
    pub added_at: UnixMs,
    /// What it may ask for.
    pub role: ClientRole,
}

/// What a client may ask for. Each role may do all that the ones before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientRole {
    /// Sees what there is and what was done.
    Viewer,
    /// Also changes vms and images, and reaches what is inside them: consoles and the content of images.
    Operator,
    /// Also changes what the cluster is and who has a part in it: nodes, settings, tokens and clients.
    Admin,
}

impl ClientRole {
    /// All roles, the least first.
    pub const ALL: [Self; 3] = [Self::Viewer, Self::Operator, Self::Admin];

    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for ClientRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// A word that is no role.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a role: choose viewer, operator or admin")]
pub struct ParseRoleError(String);

impl FromStr for ClientRole {
    type Err = ParseRoleError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let role = Self::ALL.into_iter().find(|role| role.word() == text);
        role.ok_or_else(|| ParseRoleError(text.chars().take(80).collect()))
    }
}

impl Change {
    /// The least role of a client that may ask for this; nothing for what only nodes may decide or report.
    pub fn least_role(&self) -> Option<ClientRole> {
        match self {
            Self::ChangeSettings(_)
            | Self::CreateToken(_)
            | Self::RevokeToken(_)
            | Self::RemoveNode { .. }
            | Self::GrantClient(_)
            | Self::RevokeClient(_) => Some(ClientRole::Admin),
            Self::AddImage(_)
            | Self::DeleteImage(_)
            | Self::CreateVm { .. }
            | Self::StartVm(_)
            | Self::StopVm { .. }
            | Self::RestartVm { .. }
            | Self::DeleteVm(_) => Some(ClientRole::Operator),
            Self::InitCluster { .. }
            | Self::AdmitNode { .. }
            | Self::UpdateNode(_)
            | Self::WantCopy { .. }
            | Self::ReportCopy { .. }
            | Self::PlaceVm { .. }
            | Self::ReportVm { .. }
            | Self::ForgetVm { .. }
            | Self::Note(_)
            | Self::SetDocumentsSecret(_)
            | Self::ReleaseCopy { .. }
            | Self::RecordDeed { .. }
            | Self::RecordBoot { .. } => None,
        }
    }
}
