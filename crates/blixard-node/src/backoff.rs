//! How long whatever failed waits before it is tried again.

use std::time::Duration;

/// The wait after a number of failures in a row: `min` at first, doubling up to `max`, and spread by chance (see [`spread_out`]).
pub(crate) fn after(failures: u32, min: Duration, max: Duration) -> Duration {
    spread_out(doubled(failures, min, max))
}

/// A time of half to all of this, so that those who began to wait together do not go on together.
pub(crate) fn spread_out(full: Duration) -> Duration {
    spread(full, random_byte())
}

/// The longest wait after a number of failures in a row.
pub(crate) fn doubled(failures: u32, min: Duration, max: Duration) -> Duration {
    min.saturating_mul(1 << failures.saturating_sub(1).min(20)).min(max)
}

/// Half of a time and a part of the other half, of which 255 is all.
pub(crate) fn spread(full: Duration, part: u8) -> Duration {
    full / 2 + (full / 2) * u32::from(part) / 255
}

/// A byte by chance, or zero where there is no chance to be had: waits are then merely not spread.
pub(crate) fn random_byte() -> u8 {
    let mut byte = [0; 1];
    let _ = getrandom::fill(&mut byte);
    byte[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIN: Duration = Duration::from_millis(50);

    #[test]
    fn waits_double_within_their_bounds() {
        for max in [MIN * 40, MIN * 1200] {
            for failures in 1..100 {
                for part in [0, 1, 128, 255] {
                    let wait = spread(doubled(failures, MIN, max), part);
                    assert!(wait >= MIN / 2 && wait <= max, "{failures} failures wait {wait:?}");
                }
                let wait = after(failures, MIN, max);
                assert!(wait >= MIN / 2 && wait <= max, "{failures} failures wait {wait:?}");
            }
            assert!(after(1, MIN, max) <= MIN && after(20, MIN, max) >= max / 2);
            assert_eq!(spread(doubled(3, MIN, max), 255), MIN * 4);
            assert_eq!(spread(doubled(u32::MAX, MIN, max), 255), max);
        }
    }
}
