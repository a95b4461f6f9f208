//! Why a request failed, in a form that programs can branch on and people can read.

use std::fmt;

use axum::Json;
use axum::response::{IntoResponse, Response};
use blixard_core::Rejection;
use http::StatusCode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::raft::ConsensusError;

/// The kind of a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// The request cannot be read or breaks a limit.
    BadRequest,
    /// The caller may not do this.
    Forbidden,
    /// What the request names does not exist.
    NotFound,
    /// The cluster's state does not allow it.
    Conflict,
    /// Another node that is needed for the answer cannot be reached now.
    Unavailable,
    /// There is no leader: fewer than a majority of the voters run.
    NoLeader,
    /// The leader was lost meanwhile; the request may or may not have had its effect.
    Unknown,
    /// The node failed.
    Internal,
}

impl FaultKind {
    /// Each with what it means to whoever asked.
    pub(super) const ALL: [(Self, &'static str); 8] = [
        (Self::BadRequest, "The request cannot be read or breaks a limit."),
        (Self::Forbidden, "The caller may not do this."),
        (Self::NotFound, "What the request names does not exist."),
        (Self::Conflict, "The cluster's state does not allow it."),
        (Self::Unavailable, "Another node that is needed for the answer cannot be reached now."),
        (Self::NoLeader, "There is no leader: fewer than a majority of the voters run."),
        (Self::Unknown, "The leader was lost meanwhile; the request may or may not have had its effect."),
        (Self::Internal, "The node failed."),
    ];

    /// The status of an answer that is such a fault.
    pub(in crate::api) fn status(self) -> StatusCode {
        match self {
            Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::Conflict => StatusCode::CONFLICT,
            Self::Unavailable => StatusCode::BAD_GATEWAY,
            Self::NoLeader => StatusCode::SERVICE_UNAVAILABLE,
            Self::Unknown => StatusCode::GATEWAY_TIMEOUT,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct Fault {
    /// The kind.
    pub kind: FaultKind,
    /// What was wrong and what to do.
    pub message: String,
}

impl Fault {
    /// A fault of a kind.
    pub fn new(kind: FaultKind, message: impl fmt::Display) -> Self {
        Self { kind, message: message.to_string() }
    }

    /// What the request names does not exist.
    pub fn not_found(what: impl fmt::Display) -> Self {
        Self::new(FaultKind::NotFound, what)
    }

    /// The cluster answered a command with what no such command is answered with.
    pub(super) fn wrong_answer() -> Self {
        Self::new(FaultKind::Internal, "the cluster's answer is that of another command")
    }

    /// The request cannot be read or breaks a limit.
    pub fn bad_request(what: impl fmt::Display) -> Self {
        Self::new(FaultKind::BadRequest, what)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Fault {}

impl From<Rejection> for Fault {
    fn from(rejection: Rejection) -> Self {
        let kind = match &rejection {
            Rejection::Invalid(_) => FaultKind::BadRequest,
            Rejection::UnknownToken(_)
            | Rejection::UnknownNode(_)
            | Rejection::UnknownClient
            | Rejection::UnknownImage
            | Rejection::UnknownVm => FaultKind::NotFound,
            Rejection::NotAllowed(_) => FaultKind::Forbidden,
            _ => FaultKind::Conflict,
        };
        Self::new(kind, rejection)
    }
}

impl From<ConsensusError> for Fault {
    fn from(error: ConsensusError) -> Self {
        let kind = match &error {
            ConsensusError::NoLeader { .. } => FaultKind::NoLeader,
            ConsensusError::Unknown { .. } => FaultKind::Unknown,
            ConsensusError::Stopped { .. } => FaultKind::Internal,
        };
        Self::new(kind, error)
    }
}

impl From<anyhow::Error> for Fault {
    fn from(error: anyhow::Error) -> Self {
        Self::new(FaultKind::Internal, format!("{error:#}"))
    }
}

impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        if self.kind == FaultKind::Internal {
            tracing::error!(error = %self.message, "a request failed");
        }
        (self.kind.status(), Json(self)).into_response()
    }
}
