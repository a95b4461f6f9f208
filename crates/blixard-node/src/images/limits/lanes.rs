//! Who may go next under the limits of a node and of its peers. Plain data: the time comes in as an argument.
//!
//! Each peer has a lane, in which whoever asks waits in turn; each has one thing to send or to fetch at a time, so its
//! streams share the lane evenly. Of the lanes that may go, the one goes that was served least. A lane that begins to
//! wait is taken for one that was served as much as the others: it cannot make up for its rest.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use blixard_core::EndpointId;

use super::bucket::Bucket;

/// Everybody who waits to go in one direction, each with a ticket of their own.
#[derive(Debug)]
pub(super) struct Lanes<T> {
    total: Option<Bucket>,
    /// One a peer that was ever served or limited: members, of which there are few.
    lanes: BTreeMap<EndpointId, Lane<T>>,
    /// How far the lane was served that went last.
    served: u64,
}

#[derive(Debug)]
struct Lane<T> {
    bucket: Option<Bucket>,
    waiting: VecDeque<(u64, T)>,
    served: u64,
}

impl<T> Default for Lane<T> {
    fn default() -> Self {
        Self { bucket: None, waiting: VecDeque::new(), served: 0 }
    }
}

impl<T> Default for Lanes<T> {
    fn default() -> Self {
        Self { total: None, lanes: BTreeMap::new(), served: 0 }
    }
}

fn limit(bucket: &mut Option<Bucket>, bytes_per_s: Option<u64>, now: Instant) {
    match (bucket.as_mut(), bytes_per_s) {
        (Some(bucket), Some(rate)) => bucket.set_rate(rate, now),
        (_, rate) => *bucket = rate.map(|rate| Bucket::new(rate, now)),
    }
}

impl<T> Lanes<T> {
    /// Limits everybody together, or lifts that limit.
    pub(super) fn limit_total(&mut self, bytes_per_s: Option<u64>, now: Instant) {
        limit(&mut self.total, bytes_per_s, now);
    }

    /// Limits one peer, or lifts its limit.
    pub(super) fn limit_peer(&mut self, peer: EndpointId, bytes_per_s: Option<u64>, now: Instant) {
        limit(&mut self.lanes.entry(peer).or_default().bucket, bytes_per_s, now);
    }

    /// The lower one of the limits that hold for a peer.
    pub(super) fn rate(&self, peer: EndpointId) -> Option<u64> {
        let own = self.lanes.get(&peer).and_then(|lane| lane.bucket.as_ref());
        [self.total.as_ref(), own].into_iter().flatten().map(Bucket::rate).min()
    }

    /// Stands in a peer's lane.
    pub(super) fn ask(&mut self, peer: EndpointId, bytes: u64, ticket: T) {
        let lane = self.lanes.entry(peer).or_default();
        if lane.waiting.is_empty() {
            lane.served = lane.served.max(self.served);
        }
        lane.waiting.push_back((bytes, ticket));
    }

    /// Lets the next one go, if one may: gives its peer, its bytes and its ticket.
    pub(super) fn grant(&mut self, now: Instant) -> Option<(EndpointId, u64, T)> {
        if let Some(total) = &mut self.total {
            total.fill(now);
            if !total.is_open() {
                return None;
            }
        }
        let waiting = self.lanes.iter_mut().filter(|(_, lane)| !lane.waiting.is_empty());
        let open = waiting.filter_map(|(peer, lane)| {
            if let Some(bucket) = &mut lane.bucket {
                bucket.fill(now);
            }
            lane.bucket.as_ref().is_none_or(Bucket::is_open).then_some((peer, lane))
        });
        let (peer, lane) = open.min_by_key(|(peer, lane)| (lane.served, **peer))?;
        let (bytes, ticket) = lane.waiting.pop_front()?;
        self.served = self.served.max(lane.served);
        lane.served = lane.served.saturating_add(bytes);
        for bucket in [&mut self.total, &mut lane.bucket].into_iter().flatten() {
            bucket.take(bytes);
        }
        Some((*peer, bytes, ticket))
    }

    /// Undoes a grant of which nothing will come.
    pub(super) fn refund(&mut self, peer: EndpointId, bytes: u64) {
        let own = self.lanes.get_mut(&peer).and_then(|lane| lane.bucket.as_mut());
        for bucket in [self.total.as_mut(), own].into_iter().flatten() {
            bucket.give_back(bytes);
        }
    }

    /// When the next one may go that waits.
    pub(super) fn next_at(&self) -> Option<Instant> {
        let waiting = self.lanes.values().filter(|lane| !lane.waiting.is_empty());
        // A lane without a limit of its own waits for the total alone.
        let own = waiting.map(|lane| lane.bucket.as_ref().map(Bucket::opens_at)).min()?;
        own.max(self.total.as_ref().map(Bucket::opens_at))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::super::bucket::burst_bytes;
    use super::*;

    const CHUNK: u64 = 16 << 10;

    fn peer(number: usize) -> EndpointId {
        EndpointId([u8::try_from(number).expect("few peers"); 32])
    }

    /// What went when, by peer, when so many streams of each peer always have something more, and the clock is looked at
    /// only every so often.
    fn run(
        total: Option<u64>,
        peers: &[(Option<u64>, u64, usize)],
        steps: impl IntoIterator<Item = Duration>,
    ) -> Vec<(Duration, usize, u64)> {
        let start = Instant::now();
        let mut lanes = Lanes::default();
        lanes.limit_total(total, start);
        for (number, (limit, bytes, streams)) in peers.iter().enumerate() {
            lanes.limit_peer(peer(number), *limit, start);
            (0..*streams).for_each(|_| lanes.ask(peer(number), *bytes, number));
        }
        let mut gone = Vec::new();
        let mut now = start;
        for step in steps {
            now += step;
            while let Some((_, bytes, number)) = lanes.grant(now) {
                gone.push((now - start, number, bytes));
                lanes.ask(peer(number), bytes, number);
            }
        }
        gone
    }

    fn sum(gone: &[(Duration, usize, u64)], of: impl Fn(usize) -> bool) -> u64 {
        gone.iter().filter(|(_, number, _)| of(*number)).map(|(.., bytes)| bytes).sum()
    }

    fn limited() -> impl Strategy<Value = Vec<(Option<u64>, u64, usize)>> {
        // Every one is held back by something, or it would go on for ever within one moment.
        prop::collection::vec(
            (prop::option::of((64 << 10)..(8_u64 << 20)), (4 << 10)..(64_u64 << 10), 1..40_usize),
            1..5,
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn nobody_ever_gets_more_than_rate_and_burst(
            total in (128 << 10)..(16_u64 << 20),
            peers in limited(),
            steps in prop::collection::vec(1..60_u64, 10..80),
        ) {
            let gone = run(Some(total), &peers, steps.iter().map(|ms| Duration::from_millis(*ms)));
            let largest = peers.iter().map(|(_, bytes, _)| *bytes).max().unwrap_or(0);
            let may_go = |rate: u64, span: Duration| {
                rate as f64 * span.as_secs_f64() + (burst_bytes(rate) + largest) as f64
            };
            // In any span, wherever it begins.
            for begin in (0..gone.len()).step_by(1 + gone.len() / 40) {
                let mut of_peer = vec![0; peers.len()];
                let mut of_all = 0;
                for (at, number, bytes) in &gone[begin..] {
                    let span = *at - gone[begin].0;
                    of_all += bytes;
                    of_peer[*number] += bytes;
                    prop_assert!(of_all as f64 <= may_go(total, span), "{of_all} in {span:?} of all");
                    if let Some(own) = peers[*number].0 {
                        prop_assert!(of_peer[*number] as f64 <= may_go(own, span), "{} in {span:?}", of_peer[*number]);
                    }
                }
            }
        }

        #[test]
        fn nothing_of_the_rate_is_lost_while_somebody_waits(
            total in (512 << 10)..(16_u64 << 20),
            peers in limited(),
        ) {
            let gone = run(Some(total), &peers, (0..200).map(|_| Duration::from_millis(10)));
            let own = peers.iter().map(|(own, ..)| own.unwrap_or(u64::MAX)).fold(0, u64::saturating_add);
            let due = total.min(own) * 2;
            let all = sum(&gone, |_| true);
            prop_assert!(all as f64 >= due as f64 * 0.99, "{all} of {due} went");
        }
    }

    #[test]
    fn ten_seconds_of_any_number_of_streams_are_within_a_twentieth() {
        for rate in [1 << 20, 10 << 20, 200 << 20] {
            for streams in [1, 2, 64, 1000] {
                let peers = [(None, CHUNK, streams), (Some(rate / 4), CHUNK, streams), (None, 4 * CHUNK, 1)];
                let gone = run(Some(rate), &peers, (0..5000).map(|_| Duration::from_millis(2)));
                let (all, own) = (sum(&gone, |_| true), sum(&gone, |number| number == 1));
                assert!(all.abs_diff(rate * 10) <= rate / 2, "{all} at {rate} with {streams} streams");
                assert!(own.abs_diff(rate / 4 * 10) <= rate / 8, "{own} of one peer at {rate} with {streams} streams");
            }
        }
    }

    #[test]
    fn peers_share_evenly_whatever_they_ask_for_at_a_time() {
        let peers = [(None, CHUNK, 100), (None, CHUNK, 1), (None, 8 * CHUNK, 2), (None, 100, 3)];
        let gone = run(Some(10 << 20), &peers, (0..10_000).map(|_| Duration::from_millis(1)));
        let shares: Vec<u64> = (0..4).map(|peer| sum(&gone, |number| number == peer)).collect();
        let (least, most) = (shares.iter().min().expect("four"), shares.iter().max().expect("four"));
        assert!(most - least <= most / 50, "{shares:?}");
    }

    #[test]
    fn whoever_rested_does_not_make_up_for_it() {
        let now = Instant::now();
        let mut lanes = Lanes::default();
        lanes.limit_total(Some(1), now);
        let grant = |lanes: &mut Lanes<usize>, at: u64| lanes.grant(now + Duration::from_secs(at * 1_000_000));
        for turn in 1..=50 {
            lanes.ask(peer(0), CHUNK, 0);
            assert_eq!(grant(&mut lanes, turn).map(|(.., ticket)| ticket), Some(0));
        }
        for _ in 0..10 {
            lanes.ask(peer(0), CHUNK, 0);
            lanes.ask(peer(1), CHUNK, 1);
        }
        let next: Vec<usize> = (51..61).filter_map(|turn| grant(&mut lanes, turn)).map(|(.., ticket)| ticket).collect();
        assert_eq!(next.iter().filter(|ticket| **ticket == 0).count(), 5, "{next:?}");
    }

    #[test]
    fn a_limit_can_be_changed_and_lifted_while_others_wait() {
        let start = Instant::now();
        let mut lanes = Lanes::default();
        lanes.limit_peer(peer(1), Some(1 << 20), start);
        assert_eq!((lanes.rate(peer(1)), lanes.rate(peer(2)), lanes.next_at()), (Some(1 << 20), None, None));
        lanes.limit_total(Some(1 << 10), start);
        assert_eq!((lanes.rate(peer(1)), lanes.rate(peer(2))), (Some(1 << 10), Some(1 << 10)));
        (0..20).for_each(|ticket| lanes.ask(peer(1), 1 << 20, ticket));
        assert!(lanes.grant(start).is_none() && lanes.next_at() > Some(start));
        let later = start + Duration::from_millis(1);
        assert_eq!(lanes.grant(later).map(|(.., ticket)| ticket), Some(0));
        assert!(lanes.grant(later).is_none(), "a thousand times its rate is owed");
        lanes.refund(peer(1), 1 << 20);
        assert_eq!(lanes.grant(later).map(|(.., ticket)| ticket), Some(1), "what did not go is not owed");
        lanes.limit_total(None, later);
        assert!(lanes.grant(later).is_none(), "its own limit holds still");
        lanes.limit_peer(peer(1), None, later);
        let rest: Vec<i32> = std::iter::from_fn(|| lanes.grant(later)).map(|(.., ticket)| ticket).collect();
        assert_eq!(rest, (2..20).collect::<Vec<_>>());
        assert_eq!(lanes.next_at(), None);
    }
}
