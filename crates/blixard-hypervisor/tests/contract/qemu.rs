//! What holds for QEMU besides the contract.

use crate::Case;

pub(crate) fn cases() -> Vec<Case> {
    vec![]
}
