//! Who may join and who may ask: join tokens and clients.

use serde::{Deserialize, Serialize};

use crate::{EndpointId, SecretHash, TokenId, UnixMs};

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
}
