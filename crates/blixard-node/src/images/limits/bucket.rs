//! A token bucket. Plain data: the time comes in as an argument.

use std::time::{Duration, Instant};

/// What may go at once after a rest, as a time at the full rate: longer than a task waits for its turn on a busy host, so
/// that nothing of the rate is lost, and too short to show in ten seconds.
const BURST: Duration = Duration::from_millis(100);
/// The same at low rates: a few of the 16 KiB that are verified together.
const BURST_BYTES_MIN: u64 = 64 << 10;
/// Levels are counted in billionths of a byte, in which a rate and a time in nanoseconds multiply without a rest.
const FRACTIONS: i128 = 1_000_000_000;

/// How much may go now, under one rate.
#[derive(Debug, Clone)]
pub(super) struct Bucket {
    bytes_per_s: u64,
    /// Below zero once more was taken than was there: what goes is never cut in two.
    level: i128,
    filled_at: Instant,
}

impl Bucket {
    /// An empty bucket.
    pub(super) fn new(bytes_per_s: u64, now: Instant) -> Self {
        Self { bytes_per_s: bytes_per_s.max(1), level: 0, filled_at: now }
    }

    pub(super) fn rate(&self) -> u64 {
        self.bytes_per_s
    }

    /// Goes on with another rate. What was taken too much stays owed.
    pub(super) fn set_rate(&mut self, bytes_per_s: u64, now: Instant) {
        self.fill(now);
        self.bytes_per_s = bytes_per_s.max(1);
        self.level = self.level.min(self.capacity());
    }

    fn capacity(&self) -> i128 {
        let burst = i128::from(self.bytes_per_s) * BURST.as_nanos() as i128;
        burst.max(i128::from(BURST_BYTES_MIN) * FRACTIONS)
    }

    /// Takes in what has come since it was last filled.
    pub(super) fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.filled_at).as_nanos() as i128;
        self.filled_at = self.filled_at.max(now);
        self.level = (self.level + i128::from(self.bytes_per_s) * passed).min(self.capacity());
    }

    /// Whether something may go, as of when it was last filled.
    pub(super) fn is_open(&self) -> bool {
        self.level > 0
    }

    pub(super) fn take(&mut self, bytes: u64) {
        self.level -= i128::from(bytes) * FRACTIONS;
    }

    /// Undoes a [`Self::take`].
    pub(super) fn give_back(&mut self, bytes: u64) {
        self.level = (self.level + i128::from(bytes) * FRACTIONS).min(self.capacity());
    }

    /// From when on something may go.
    pub(super) fn opens_at(&self) -> Instant {
        if self.is_open() {
            return self.filled_at;
        }
        let missing = (1 - self.level).unsigned_abs();
        let wait_ns = missing.div_ceil(u128::from(self.bytes_per_s));
        self.filled_at + Duration::from_nanos(u64::try_from(wait_ns).unwrap_or(u64::MAX))
    }
}

/// What a bucket of this rate lets through in any span, at most, beyond the rate itself.
#[cfg(test)]
pub(super) fn burst_bytes(bytes_per_s: u64) -> u64 {
    (bytes_per_s / 10).max(BURST_BYTES_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_opens_when_it_says_and_not_before() {
        let start = Instant::now();
        let mut bucket = Bucket::new(1000, start);
        bucket.take(500);
        let at = bucket.opens_at();
        assert!(at > start + Duration::from_millis(500) && at < start + Duration::from_millis(501));
        bucket.fill(at - Duration::from_nanos(1));
        assert!(!bucket.is_open());
        bucket.fill(at);
        assert!(bucket.is_open() && bucket.opens_at() <= at);
    }

    #[test]
    fn a_rest_earns_a_burst_and_no_more() {
        let start = Instant::now();
        let mut bucket = Bucket::new(10 << 20, start);
        bucket.fill(start + Duration::from_secs(3600));
        let mut gone = 0;
        while bucket.is_open() {
            bucket.take(1 << 10);
            gone += 1 << 10;
        }
        assert!(gone >= burst_bytes(10 << 20) && gone <= burst_bytes(10 << 20) + (1 << 10), "{gone}");
        bucket.fill(start);
        assert!(!bucket.is_open(), "a clock that goes back brings nothing");
    }

    #[test]
    fn another_rate_takes_over_what_is_owed() {
        let start = Instant::now();
        let mut bucket = Bucket::new(1 << 20, start);
        bucket.take(1 << 20);
        bucket.set_rate(2 << 20, start);
        let wait = bucket.opens_at() - start;
        assert!(wait >= Duration::from_millis(500) && wait < Duration::from_millis(501), "{wait:?}");
    }
}
