//! How the process ends when something went wrong: its exit code, and the next step for the user.

use std::process::ExitCode;

use blixard_node::Damage;
use blixard_node::api::{ClientError, FaultKind};
use blixard_node::user::UserState;

/// Exit codes and what each means. The help of the program prints this table; scripts may rely on it.
pub(crate) const EXIT_CODES: &[(Exit, &str)] = &[
    (Exit::Success, "the command did what it was asked for"),
    (Exit::Failure, "it failed for a reason without a code of its own"),
    (Exit::Usage, "the command line, an environment variable or the configuration file is wrong"),
    (Exit::Unreachable, "no node could be reached, or not the one that alone can answer"),
    (Exit::Refused, "not permitted: the node does not know your key, or forbids what you asked for"),
    (Exit::NotFound, "what you named does not exist, or no longer"),
    (Exit::Conflict, "the cluster rejected the request, as its state or its limits do not allow it"),
    (Exit::NoLeader, "the cluster has no leader now, or the outcome of the request is unknown"),
    (Exit::WaitFailed, "the request was accepted, but what it asked for failed or took too long"),
    (Exit::JoinRefused, "`blixard node`: the cluster refused to let the node join"),
    (Exit::ForeignData, "`blixard node`: the data directory belongs to another cluster or another node id"),
    (Exit::Removed, "`blixard node`: the node was removed from the cluster"),
    (Exit::Damaged, "a file that Blixard keeps is damaged or missing"),
    (Exit::Interrupted, "you interrupted the command; what it had asked for goes on"),
];

/// An exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs, reason = "the table above says what each means, once")]
pub(crate) enum Exit {
    Success = 0,
    Failure = 1,
    Usage = 2,
    Unreachable = 3,
    Refused = 4,
    NotFound = 5,
    Conflict = 6,
    NoLeader = 7,
    WaitFailed = 8,
    JoinRefused = 10,
    ForeignData = 11,
    Removed = 12,
    Damaged = 13,
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// A failure with an exit code of its own that no other error type stands for.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    exit: Exit,
    message: String,
    next_step: Option<String>,
}

impl Failure {
    /// A failure that ends the process with `exit`.
    pub(crate) fn new(exit: Exit, message: impl ToString) -> Self {
        Self { exit, message: message.to_string(), next_step: None }
    }

    /// Something wrong with what the user gave.
    pub(crate) fn usage(message: impl ToString) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// Adds what the user can do about it.
    pub(crate) fn next_step(mut self, next_step: impl ToString) -> Self {
        self.next_step = Some(next_step.to_string());
        self
    }
}

/// Whoever read our standard output has closed it, as `head` does. Nobody needs to be told.
#[derive(Debug, thiserror::Error)]
#[error("standard output was closed")]
pub(crate) struct OutputClosed;

/// The code that an error ends the process with.
pub(crate) fn exit_of(error: &anyhow::Error) -> Exit {
    for cause in error.chain() {
        if cause.is::<OutputClosed>() {
            return Exit::Success;
        }
        if let Some(failure) = cause.downcast_ref::<Failure>() {
            return failure.exit;
        }
        if cause.is::<Damage>() {
            return Exit::Damaged;
        }
        if let Some(error) = cause.downcast_ref::<ClientError>() {
            return match error {
                ClientError::Unreachable(_) => Exit::Unreachable,
                ClientError::Lost(_) => Exit::NoLeader,
                ClientError::Unreadable(_) => Exit::Failure,
                ClientError::Refused(..) => Exit::Refused,
                ClientError::Ambiguous(_) => Exit::Usage,
                ClientError::Fault(fault) => match fault.kind {
                    FaultKind::BadRequest | FaultKind::Conflict => Exit::Conflict,
                    FaultKind::Forbidden => Exit::Refused,
                    FaultKind::NotFound => Exit::NotFound,
                    FaultKind::Unavailable => Exit::Unreachable,
                    FaultKind::NoLeader | FaultKind::Unknown => Exit::NoLeader,
                    FaultKind::Internal => Exit::Failure,
                },
            };
        }
    }
    Exit::Failure
}

/// What the user can do about an error, where that is known.
pub(crate) fn next_step_of(error: &anyhow::Error) -> Option<String> {
    for cause in error.chain() {
        if let Some(failure) = cause.downcast_ref::<Failure>() {
            return failure.next_step.clone();
        }
        if let Some(damage) = cause.downcast_ref::<Damage>() {
            return Some(damage.next_step.clone());
        }
        if let Some(error) = cause.downcast_ref::<ClientError>() {
            return match error {
                ClientError::Unreachable(_) => {
                    Some("check that the node runs and that its UDP port can be reached from here".to_owned())
                }
                ClientError::Lost(_) => Some("look whether it had its effect before you ask again".to_owned()),
                ClientError::Unreadable(_) => Some("run the same version of Blixard as the node does".to_owned()),
                ClientError::Ambiguous(_) => {
                    Some("name the node with --addr HOST:PORT, or run this on its host".to_owned())
                }
                ClientError::Refused(..) => {
                    let place = UserState::locate().map_or_else(
                        |_| "your state folder".to_owned(),
                        |state| format!("the state folder {}", state.dir().display()),
                    );
                    Some(format!(
                        "a cluster answers only keys that it knows, and yours is the one in {place}: have an admin run \
                         `blixard cluster grant` for it, or run this as a user whom the cluster knows, such as the one who \
                         started its first node, or set BLIXARD_STATE_DIR to that user's state folder"
                    ))
                }
                ClientError::Fault(fault) => match fault.kind {
                    FaultKind::NoLeader => Some(
                        "start more of the voters: `blixard cluster status --stale` shows which are missing".into(),
                    ),
                    FaultKind::Unknown => Some("look whether it had its effect before you ask again".into()),
                    _ => None,
                },
            };
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use anyhow::Context;
    use blixard_core::EndpointId;
    use blixard_node::api::Fault;

    use super::*;

    #[test]
    fn each_code_is_in_the_table_once() {
        let mut codes: Vec<u8> = EXIT_CODES.iter().map(|(exit, _)| *exit as u8).collect();
        assert_eq!(codes, [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 130]);
        codes.dedup();
        assert_eq!(codes.len(), EXIT_CODES.len());
    }

    #[test]
    fn an_error_keeps_its_code_under_any_context() {
        let code = |error: anyhow::Error| {
            exit_of(&Err::<(), _>(error).context("do this").context("do that").expect_err("it is one"))
        };
        let fault = |kind| code(ClientError::Fault(Fault::new(kind, "why")).into());
        assert_eq!(fault(FaultKind::BadRequest), Exit::Conflict);
        assert_eq!(fault(FaultKind::Conflict), Exit::Conflict);
        assert_eq!(fault(FaultKind::Forbidden), Exit::Refused);
        assert_eq!(fault(FaultKind::NotFound), Exit::NotFound);
        assert_eq!(fault(FaultKind::NoLeader), Exit::NoLeader);
        assert_eq!(fault(FaultKind::Unknown), Exit::NoLeader);
        assert_eq!(fault(FaultKind::Internal), Exit::Failure);
        assert_eq!(code(ClientError::Unreachable(anyhow::anyhow!("gone")).into()), Exit::Unreachable);
        assert_eq!(code(ClientError::Refused("no".into(), EndpointId([1; 32])).into()), Exit::Refused);
        assert_eq!(code(Failure::usage("bad").into()), Exit::Usage);
        assert_eq!(code(OutputClosed.into()), Exit::Success);
        assert_eq!(code(anyhow::anyhow!("anything")), Exit::Failure);
    }

    #[test]
    fn a_refused_key_is_told_where_it_is() {
        let refused = ClientError::Refused("unknown key".into(), EndpointId([1; 32]));
        let step = next_step_of(&refused.into()).unwrap_or_default();
        assert!(step.contains("state folder") && step.contains("first node"), "{step}");
    }
}
