//! Chance from a seed: the same seed gives the same run, on every machine.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// A stream of chance, shared by whoever holds it.
pub(crate) struct Dice(Mutex<u64>);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Mutex::new(seed))
    }

    /// SplitMix64.
    fn next(&self) -> u64 {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = *state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number from `from` to `to`, both included.
    pub(crate) fn between(&self, from: u64, to: u64) -> u64 {
        from + self.next() % (to - from + 1)
    }

    /// True so many times in a hundred.
    pub(crate) fn percent(&self, chance: u64) -> bool {
        self.next() % 100 < chance
    }

    /// A time from `from` to `to` microseconds.
    pub(crate) fn micros(&self, from: u64, to: u64) -> Duration {
        Duration::from_micros(self.between(from, to))
    }

    /// A time from `from` to `to` milliseconds.
    pub(crate) fn millis(&self, from: u64, to: u64) -> Duration {
        self.micros(from * 1000, to * 1000)
    }

    /// One of a list.
    pub(crate) fn pick<'a, T>(&self, of: &'a [T]) -> Option<&'a T> {
        (!of.is_empty()).then(|| &of[self.between(0, of.len() as u64 - 1) as usize])
    }
}
