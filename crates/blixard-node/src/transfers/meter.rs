//! How fast something goes, of which is heard now and then. Plain data: the time comes in as an argument.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The span over which a rate is taken: long enough to be steady, short enough to be true.
const SPAN: Duration = Duration::from_secs(5);

/// What was heard lately of one attempt.
#[derive(Debug, Default)]
pub(super) struct Meter(VecDeque<(Instant, u64)>);

impl Meter {
    /// Notes how many bytes have come so far.
    pub(super) fn note(&mut self, at: Instant, bytes: u64) {
        if self.0.back().is_some_and(|(_, last)| bytes < *last) {
            self.0.clear();
        }
        self.0.push_back((at, bytes));
        // One that is older stays, so that there is something to compare with.
        while self.0.get(1).is_some_and(|(then, _)| at.saturating_duration_since(*then) >= SPAN) {
            self.0.pop_front();
        }
    }

    /// The rate of the last seconds; 0 before there is one.
    pub(super) fn bytes_per_s(&self) -> u64 {
        let (Some((begin, before)), Some((end, after))) = (self.0.front(), self.0.back()) else { return 0 };
        let ms = end.saturating_duration_since(*begin).as_millis();
        let rate = (u128::from(after - before) * 1000).checked_div(ms).unwrap_or(0);
        u64::try_from(rate).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_that_of_the_last_seconds() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut meter = Meter::default();
        assert_eq!(meter.bytes_per_s(), 0);
        meter.note(at(0), 0);
        assert_eq!(meter.bytes_per_s(), 0);
        (1..=3).for_each(|second| meter.note(at(second), second * 1000));
        assert_eq!(meter.bytes_per_s(), 1000);
        (4..=20).for_each(|second| meter.note(at(second), 3000 + (second - 3) * 10));
        assert_eq!(meter.bytes_per_s(), 10, "the fast start is forgotten");
        assert!(meter.0.len() < 10);
        (21..=40).for_each(|second| meter.note(at(second), 3170));
        assert_eq!(meter.bytes_per_s(), 0, "it has stalled");
        meter.note(at(41), 5);
        assert_eq!(meter.bytes_per_s(), 0, "another attempt");
    }
}
