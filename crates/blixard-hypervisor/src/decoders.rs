//! The readers of bytes that come from outside, one door for fuzzing and property tests.
//!
//! Each gives the words of its refusal, or else what it read in a form that it reads again; empty where it has none.

use std::io::Cursor;

use crate::disk::qcow2::Flaw;
use crate::disk::{inspect, kernel};
use crate::guard;

fn words(flaw: Flaw) -> String {
    match flaw {
        Flaw::Refused(reason) => reason,
        Flaw::Read(error) => error.to_string(),
    }
}

/// A disk image, qcow2 or raw.
pub fn disk(bytes: &[u8]) -> Result<Vec<u8>, String> {
    inspect::inspect_content(&mut Cursor::new(bytes), bytes.len() as u64).map(|_| vec![]).map_err(words)
}

/// A kernel, bzImage or ELF.
pub fn kernel(bytes: &[u8]) -> Result<Vec<u8>, String> {
    kernel::inspect(&mut Cursor::new(bytes)).map(|_| vec![]).map_err(words)
}

/// What a hypervisor, which a guest may have taken over, says on its monitor.
pub fn monitor(bytes: &[u8]) -> Result<Vec<u8>, String> {
    guard::read_monitor(bytes).map(|()| vec![]).map_err(|error| error.to_string())
}

/// An order to a guard, on one line.
pub fn order(bytes: &[u8]) -> Result<Vec<u8>, String> {
    guard::reread_order(bytes).map_err(|error| error.to_string())
}
