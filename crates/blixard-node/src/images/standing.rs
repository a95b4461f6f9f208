//! How well other nodes have served this one of late. What a process saw is lost with it: a node gets a new chance then.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use blixard_core::EndpointId;

/// The score of who has done nothing wrong.
pub(crate) const SCORE_MAX: u32 = 100;
/// Who has less is asked last.
const SCORE_DOUBTFUL: u32 = 50;
/// What a failure costs: a node has to fail several times in a row to be asked last.
const FAILURE_COST: f64 = 12.0;
/// What content that does not match its hash costs. It comes of a broken machine or of malice, and one time is enough.
const LIE_COST: f64 = 80.0;
/// Half of what a node has lost is forgiven after this time.
const HALF_LIFE: Duration = Duration::from_secs(600);

/// What a node did wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wrong {
    /// It could not be reached, broke off, or delivered nothing.
    Failed,
    /// It sent content that does not match its hash.
    Lied,
}

/// How a node has served this one since this process started.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Standing {
    /// What it has lost of its score, at the time of `since`.
    lost: f64,
    since: Instant,
    /// Requests that failed.
    pub(crate) failures: u64,
    /// Requests that were answered with content that does not match its hash.
    pub(crate) lies: u64,
    /// Verified content that came from it, in bytes.
    pub(crate) received_bytes: u64,
    /// What it last did wrong, in words.
    pub(crate) reason: Option<String>,
}

impl Standing {
    fn new(now: Instant) -> Self {
        Self { lost: 0.0, since: now, failures: 0, lies: 0, received_bytes: 0, reason: None }
    }

    fn lost_by(&self, now: Instant) -> f64 {
        let half_lives = now.saturating_duration_since(self.since).as_secs_f64() / HALF_LIFE.as_secs_f64();
        self.lost * 0.5f64.powf(half_lives)
    }

    fn wrong(&mut self, wrong: Wrong, reason: String, now: Instant) {
        let cost = match wrong {
            Wrong::Failed => FAILURE_COST,
            Wrong::Lied => LIE_COST,
        };
        self.lost = (self.lost_by(now) + cost).min(f64::from(SCORE_MAX));
        self.since = now;
        match wrong {
            Wrong::Failed => self.failures += 1,
            Wrong::Lied => self.lies += 1,
        }
        self.reason = Some(reason);
    }

    /// From 0 to [`SCORE_MAX`].
    pub(crate) fn score(&self, now: Instant) -> u32 {
        // Between 0 and 100 by now, so that nothing is cut off.
        let lost = self.lost_by(now).round().clamp(0.0, f64::from(SCORE_MAX)) as u32;
        SCORE_MAX - lost
    }
}

/// The standing of every node that was asked for content.
#[derive(Debug, Default)]
pub(super) struct Standings {
    of: Mutex<BTreeMap<EndpointId, Standing>>,
}

impl Standings {
    fn of(&self) -> MutexGuard<'_, BTreeMap<EndpointId, Standing>> {
        self.of.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn received(&self, node: EndpointId, bytes: u64) {
        let mut of = self.of();
        let standing = of.entry(node).or_insert_with(|| Standing::new(Instant::now()));
        standing.received_bytes = standing.received_bytes.saturating_add(bytes);
    }

    pub(super) fn wrong(&self, node: EndpointId, wrong: Wrong, reason: String) {
        let now = Instant::now();
        self.of().entry(node).or_insert_with(|| Standing::new(now)).wrong(wrong, reason, now);
    }

    /// Whether a node is to be asked last.
    pub(super) fn is_doubtful(&self, node: EndpointId) -> bool {
        self.of().get(&node).is_some_and(|standing| standing.score(Instant::now()) < SCORE_DOUBTFUL)
    }

    pub(super) fn all(&self) -> BTreeMap<EndpointId, Standing> {
        self.of().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lie_weighs_more_than_failures_and_both_are_forgiven_with_time() {
        let start = Instant::now();
        let mut failing = Standing::new(start);
        assert_eq!(failing.score(start), SCORE_MAX);
        failing.wrong(Wrong::Failed, "gone".into(), start);
        assert!(failing.score(start) >= SCORE_DOUBTFUL, "one failure makes nobody doubtful");
        for _ in 0..4 {
            failing.wrong(Wrong::Failed, "gone".into(), start);
        }
        assert!(failing.score(start) < SCORE_DOUBTFUL, "{failing:?}");
        let mut lying = Standing::new(start);
        lying.wrong(Wrong::Lied, "wrong bytes".into(), start);
        assert!(lying.score(start) < failing.score(start));
        assert_eq!((lying.lies, lying.failures, lying.reason.as_deref()), (1, 0, Some("wrong bytes")));
        assert!(lying.score(start + HALF_LIFE) >= SCORE_DOUBTFUL, "half is forgiven");
        assert_eq!(lying.score(start + HALF_LIFE * 20), SCORE_MAX);
        for _ in 0..100 {
            lying.wrong(Wrong::Lied, "wrong bytes".into(), start);
        }
        assert_eq!(lying.score(start), 0);
        assert!(lying.score(start + HALF_LIFE * 2) > SCORE_DOUBTFUL, "nobody is lost for good");
    }
}
