//! How a leader is heard, and for how long its silence is put up with.
//!
//! Raft's own time-outs are fixed and meant for a LAN. On a slow or unsteady link, or a busy host, a leader that lives may be
//! silent for longer, and an election would only make things worse. So a voter notes how irregular its leader has been, and
//! stands for election only after a silence that is out of the ordinary by that measure.
//!
//! A leader that no majority answers does the others a favour by its silence: as long as they hear it, they elect nobody else. So it
//! falls silent after a while, and speaks up now and then, to find them when they are back.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use openraft::{Instant as _, ServerState};

use super::group::Vote;
use super::machine::OpenRaft;
use crate::runtime::{self, Instant};

/// A silence is out of the ordinary when it is so many times the longest one that a living leader kept of late.
const LONGEST_TIMES: u32 = 3;
/// However unsteady the leader was, its loss is noticed after this time.
const PATIENCE_MAX: Duration = Duration::from_secs(10);
/// The longest silence counts for half after this time, for a quarter after twice as long, and so on.
const HALF_LIFE: Duration = Duration::from_secs(30);
/// How often it is looked whether a leader that is taken for lost is heard again, and whether this one is answered.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// The longest time between two looks: the node may have become the leader meanwhile.
const LOOK_LATEST: Duration = Duration::from_millis(500);
/// A leader falls silent when no majority has answered for so many of the longest election time-outs. Answers that are late for one
/// or two of these are no rarity on a busy host.
const UNANSWERED_ELECTIONS_MAX: u32 = 3;
/// It is silent for so many of them, which is enough to elect another one, and then speaks for as long.
const SILENT_ELECTIONS: u32 = 6;

#[derive(Debug, Default)]
struct Rhythm {
    /// Whom the voter followed last, and when it was heard.
    leader: Option<(Vote, Instant)>,
    /// The longest silence, and when it ended.
    longest: Option<(Duration, Instant)>,
    /// The term in which this node leads, and when that was first seen.
    office: Option<(u64, Instant)>,
}

impl Rhythm {
    /// Notes the term in which this node leads, if it does, and gives the office with its beginning.
    fn holds_office(&mut self, term: Option<u64>, now: Instant) -> Option<(u64, Instant)> {
        self.office = term.map(|term| match self.office {
            Some((before, since)) if before == term => (term, since),
            _ => (term, now),
        });
        self.office
    }

    fn heard(&mut self, leader: Vote, now: Instant) {
        if self.leader.is_some_and(|(before, _)| leader < before) {
            // One that has been replaced and does not know it yet says nothing of the one that counts.
            return;
        }
        if let Some((before, last)) = self.leader
            && before == leader
        {
            let silence = now.saturating_duration_since(last);
            if silence >= self.longest_at(now) {
                self.longest = Some((silence, now));
            }
        }
        // Between two leaders there was none, which says nothing of how regular either is.
        self.leader = Some((leader, now));
    }

    /// The longest silence as it counts now.
    fn longest_at(&self, now: Instant) -> Duration {
        self.longest.map_or(Duration::ZERO, |(silence, ended)| {
            let halves = now.saturating_duration_since(ended).as_millis() / HALF_LIFE.as_millis();
            silence / 2u32.saturating_pow(u32::try_from(halves).unwrap_or(u32::MAX))
        })
    }

    /// How much longer the leader may be silent before an election; nothing when it is time for one.
    fn patience(&self, now: Instant) -> Option<Duration> {
        let (_, last) = self.leader?;
        let allowed = (self.longest_at(now) * LONGEST_TIMES).min(PATIENCE_MAX);
        allowed.checked_sub(now.saturating_duration_since(last)).filter(|left| !left.is_zero())
    }
}

/// When leaders were heard of. Raft itself goes on naming one that is long dead for as long as nobody can be elected in its
/// place.
#[derive(Debug, Clone, Default)]
pub(super) struct Heard(Arc<Mutex<Rhythm>>);

impl Heard {
    fn rhythm(&self) -> std::sync::MutexGuard<'_, Rhythm> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a leader is heard now.
    pub(super) fn now(&self, leader: Vote) {
        self.rhythm().heard(leader, Instant::now());
    }

    /// Whether one was heard within a time.
    pub(super) fn is_within(&self, time: Duration) -> bool {
        self.rhythm().leader.is_some_and(|(_, last)| last.elapsed() <= time)
    }

    /// Whether this node has led for longer than a time, so that whoever has not answered it by then does not answer.
    pub(super) fn leads_longer_than(&self, term: u64, time: Duration) -> bool {
        self.rhythm().office.is_some_and(|(held, since)| held == term && since.elapsed() > time)
    }
}

/// Since when this node has been at work. While it was stopped nobody could answer it, and its silence would keep the others
/// waiting for nothing.
#[derive(Debug, Clone, Copy)]
struct Awake {
    since: Instant,
    looked: Instant,
}

impl Awake {
    fn from(now: Instant) -> Self {
        Self { since: now, looked: now }
    }

    /// For how long it has been, at a look that comes at least every [`LOOK_LATEST`] while it is.
    fn look(&mut self, now: Instant) -> Duration {
        if now.saturating_duration_since(self.looked) > LOOK_LATEST * 2 {
            self.since = now;
        }
        self.looked = now;
        now.saturating_duration_since(self.since)
    }
}

/// Whether a leader that no majority has answered for a time should be heard.
fn speaks(unanswered: Duration, election_max: Duration) -> bool {
    let beyond = unanswered.checked_sub(election_max * UNANSWERED_ELECTIONS_MAX);
    let turn = election_max * SILENT_ELECTIONS;
    beyond.is_none_or(|beyond| (beyond.as_millis() / turn.as_millis().max(1)) % 2 == 1)
}

/// Lets this node stand for election only when its leader's silence is out of the ordinary, and speak as the leader only while
/// that serves anybody, until Raft stops.
///
/// openraft's clock ticks several times a heartbeat, for elections and for a leader's own heartbeats. Where there is no reason for
/// either it stands still: nothing else takes as much of a node's time at rest.
pub(super) async fn keep_patience(raft: OpenRaft, heard: Heard, election_max: Duration) {
    let mut group = raft.server_metrics();
    let mut awake = Awake::from(Instant::now());
    loop {
        let awake_for = awake.look(Instant::now());
        group.borrow_and_update();
        let patience = heard.rhythm().patience(Instant::now());
        raft.runtime_config().elect(patience.is_none());
        let (follows, unanswered) = {
            let group = group.borrow_watched();
            let follows = matches!(group.state, ServerState::Follower | ServerState::Learner);
            let metrics = raft.metrics();
            let metrics = metrics.borrow_watched();
            let leads = group.state == ServerState::Leader;
            let office = heard.rhythm().holds_office(leads.then_some(metrics.current_term), Instant::now());
            let votes_alone = metrics.membership_config.membership().voter_ids().count() == 1;
            let answered = metrics.last_quorum_acked.as_ref().map(|time| time.elapsed());
            let unanswered = office.map(|(_, since)| answered.unwrap_or_else(|| since.elapsed()));
            (follows, unanswered.filter(|_| !votes_alone).unwrap_or_default().min(awake_for))
        };
        raft.runtime_config().heartbeat(speaks(unanswered, election_max));
        raft.runtime_config().tick(!follows || patience.is_none());
        let wait = patience.unwrap_or(LOOK_EVERY).clamp(LOOK_EVERY, LOOK_LATEST);
        // A node that takes office without an election of its own, because its leader hands over, is to be heard at once.
        if let Ok(Err(_)) = runtime::timeout(wait, group.changed()).await {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// A leader heard every `every` for a minute; gives when it was heard last.
    fn listen(rhythm: &mut Rhythm, every: Duration, start: Instant) -> Instant {
        let mut now = start;
        while now < start + Duration::from_secs(60) {
            now += every;
            rhythm.heard(Vote::new(1, 1), now);
        }
        now
    }

    #[test]
    fn an_office_ages_until_the_term_ends() {
        let heard = Heard::default();
        let begin = Instant::now();
        let age = |term: Option<u64>, at: Duration| {
            let held = heard.rhythm().holds_office(term, begin + at);
            held.map(|(_, since)| (begin + at).saturating_duration_since(since))
        };
        let second = Duration::from_secs(1);
        assert_eq!(age(Some(2), second), Some(Duration::ZERO));
        assert_eq!(age(Some(2), second * 3), Some(second * 2));
        assert_eq!(age(Some(3), second * 4), Some(Duration::ZERO), "another term is another office");
        assert_eq!(age(None, second * 5), None);
        assert_eq!(age(Some(3), second * 6), Some(Duration::ZERO));
        assert!(!heard.leads_longer_than(2, Duration::ZERO), "nothing is known of a term that it does not lead");
    }

    #[test]
    fn a_steady_leader_is_missed_soon_and_an_unsteady_one_later() {
        let mut rhythm = Rhythm::default();
        let start = Instant::now();
        assert_eq!(rhythm.patience(start), None, "nobody was ever heard");
        let last = listen(&mut rhythm, 50 * MS, start);
        assert_eq!(rhythm.patience(last + 151 * MS), None);
        assert_eq!(rhythm.patience(last + 100 * MS), Some(50 * MS));
        let last = listen(&mut rhythm, 800 * MS, last);
        assert_eq!(rhythm.patience(last + 2400 * MS), None);
        assert_eq!(rhythm.patience(last + 1400 * MS), Some(1000 * MS));
    }

    #[test]
    fn a_leader_that_is_not_answered_is_silent_by_turns() {
        let spoken = (0..=5000).step_by(250).map(|ms| speaks(ms * MS, 250 * MS)).collect::<Vec<_>>();
        // For as long as answers may merely be late, then in turns of six.
        let turns = [(true, 3), (false, 6), (true, 6), (false, 6)];
        let expected = turns.iter().flat_map(|(speaks, count)| vec![*speaks; *count]).collect::<Vec<_>>();
        assert_eq!(spoken, expected);
    }

    #[test]
    fn patience_has_an_end_and_goes_back_when_things_get_better() {
        let mut rhythm = Rhythm::default();
        let last = listen(&mut rhythm, Duration::from_secs(20), Instant::now());
        assert_eq!(rhythm.patience(last + PATIENCE_MAX), None);
        assert!(rhythm.patience(last + PATIENCE_MAX - MS).is_some());
        let mut last = last;
        for _ in 0..10 {
            last = listen(&mut rhythm, 50 * MS, last);
        }
        assert_eq!(rhythm.patience(last + 200 * MS), None);
    }

    #[test]
    fn a_leader_that_was_replaced_is_not_heard() {
        let mut rhythm = Rhythm::default();
        let last = listen(&mut rhythm, 50 * MS, Instant::now());
        rhythm.heard(Vote::new(2, 3), last + 50 * MS);
        rhythm.heard(Vote::new(1, 1), last + 100 * MS);
        assert_eq!(rhythm.leader, Some((Vote::new(2, 3), last + 50 * MS)));
    }

    #[test]
    fn a_node_that_was_stopped_has_not_been_left_unanswered() {
        let start = Instant::now();
        let mut awake = Awake::from(start);
        let looks = [500, 1000, 1900, 10_000, 10_500].map(|ms| awake.look(start + ms * MS).as_millis());
        assert_eq!(looks, [500, 1000, 1900, 0, 500]);
    }

    #[test]
    fn the_time_between_two_leaders_does_not_count() {
        let mut rhythm = Rhythm::default();
        let last = listen(&mut rhythm, 50 * MS, Instant::now());
        rhythm.heard(Vote::new(2, 3), last + 5000 * MS);
        assert_eq!(rhythm.patience(last + 5151 * MS), None);
        assert!(rhythm.patience(last + 5100 * MS).is_some());
    }
}
