//! What becomes of an attempt that failed.

use std::fmt;

use crate::images::FetchError;

/// What sort of failure it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum FailureClass {
    /// No node is known that has the image, or none of them delivered: gone, too slow, or refusing.
    Sources,
    /// What is here does not match its hash.
    Damaged,
    /// The disk is too small.
    NoSpace,
    /// The image's manifest is wrong. Trying again does not help.
    Manifest,
    /// This node's own doing: its store failed, or a bug.
    Storage,
    /// It was not here by the time that whoever asked for it gave it. Trying again would be too late.
    Deadline,
}

impl FailureClass {
    pub(crate) const ALL: [Self; 6] =
        [Self::Sources, Self::Damaged, Self::NoSpace, Self::Manifest, Self::Storage, Self::Deadline];

    /// The word for it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Sources => "sources",
            Self::Damaged => "damaged",
            Self::NoSpace => "no_space",
            Self::Manifest => "manifest",
            Self::Storage => "storage",
            Self::Deadline => "deadline",
        }
    }
}

/// Why an attempt failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// What sort of failure it was.
    pub class: FailureClass,
    /// For people.
    pub reason: String,
}

impl Failure {
    /// Whether it is tried again by itself.
    pub(crate) fn is_retried(&self) -> bool {
        !matches!(self.class, FailureClass::Manifest | FailureClass::Deadline)
    }

    /// Its time is up.
    pub(crate) fn deadline() -> Self {
        Self { class: FailureClass::Deadline, reason: "the deadline passed before it was here".to_owned() }
    }

    /// This node's own doing.
    pub(super) fn storage(reason: impl fmt::Display) -> Self {
        Self { class: FailureClass::Storage, reason: reason.to_string() }
    }
}

impl From<FetchError> for Failure {
    fn from(error: FetchError) -> Self {
        let class = match &error {
            FetchError::NoSource | FetchError::AllSourcesFailed(_) => FailureClass::Sources,
            FetchError::Damaged(_) => FailureClass::Damaged,
            FetchError::NoSpace(_) | FetchError::NoRoom(_) => FailureClass::NoSpace,
            FetchError::WrongSize { .. } | FetchError::EmptyPart(_) => FailureClass::Manifest,
            FetchError::Storage(_) => FailureClass::Storage,
        };
        Self { class, reason: error.to_string() }
    }
}
