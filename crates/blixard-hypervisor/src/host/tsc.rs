//! Measures the time stamp counter, whose frequency QEMU's translator hands through to the guest unchanged.

use std::arch::x86_64::_rdtsc;
use std::time::{Duration, Instant};

/// Long enough that the error of reading two clocks one after the other vanishes (some 100 ns in it, 4 ppm).
const SPAN: Duration = Duration::from_millis(50);
/// Readings at each end, of which the one least disturbed counts.
const READINGS: usize = 16;

/// The counter's frequency in kHz; none where it does not count like a clock.
pub(super) fn measure_khz() -> Option<u64> {
    let (counter_a, time_a) = read_both();
    std::thread::sleep(SPAN);
    let (counter_b, time_b) = read_both();
    let ticks = u128::from(counter_b.checked_sub(counter_a)?);
    let nanoseconds = time_b.duration_since(time_a).as_nanos();
    let khz = u64::try_from(ticks * 1_000_000 / nanoseconds.max(1)).ok()?;
    // Slower than any processor that runs this, or faster than any: something else counts there.
    (100_000..20_000_000).contains(&khz).then_some(khz)
}

/// The counter and the clock at almost the same moment.
fn read_both() -> (u64, Instant) {
    let mut best = (u64::MAX, 0, Instant::now());
    for _ in 0..READINGS {
        let before = counter();
        let now = Instant::now();
        let after = counter();
        let width = after.saturating_sub(before);
        if width < best.0 {
            best = (width, before + width / 2, now);
        }
    }
    (best.1, best.2)
}

#[allow(unsafe_code)]
fn counter() -> u64 {
    // SAFETY: the instruction reads a register, touches no memory, and every x86-64 processor has it; an operating
    // system that forbids it to programs would break most of them.
    unsafe { _rdtsc() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_measurements_agree() {
        let (Some(a), Some(b)) = (measure_khz(), measure_khz()) else {
            panic!("the time stamp counter of this host does not count like a clock");
        };
        assert!(a.abs_diff(b) < a / 1000, "{a} kHz and {b} kHz");
    }
}
