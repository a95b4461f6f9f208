//! When this node compares its documents with which other member.
//!
//! A comparison makes two members equal, whoever wrote what, and costs one round trip when they are equal already. What this node
//! wrote it compares with several members at once; what it learnt from one it passes on to a few others. A member with which it
//! failed is tried again with growing waits, so that a partition heals by itself, and now and then one is chosen by chance, in case
//! that all who knew of something ended before they could tell.
//!
//! ```text
//! idle -> due (news, a new member, a round) -> running -> idle
//!           ^                                     |
//!           +------------- backing off <----------+ failed
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use blixard_core::{DocumentsSecret, EndpointId};
use iroh::endpoint::{ReadError, ReadToEndError};
use iroh_docs::NamespaceId;
use iroh_docs::net::{AbortReason, ConnectError, connect_and_sync};
use iroh_docs::sync::Event;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::{Circle, Documents, News};
use crate::backoff::{after, random_byte, spread_out};
use crate::metrics::outcome;

/// How long comparing one document may take: both may have all the keys there can be, and be far apart.
pub(super) const SYNC_TIMEOUT: Duration = Duration::from_secs(60);
/// News of this time are taken together: writes come in bursts.
const GATHER: Duration = Duration::from_millis(20);
/// Members with which this node compares at the same time.
const SYNCS_MAX: usize = 8;
/// Members that are told at once of what was written here. In a cluster of usual size these are all.
const TOLD_MAX: usize = 16;
/// Members to which is passed on what came from another one.
const PASSED_ON_MAX: usize = 3;
/// How often a member is chosen by chance.
const ROUND_EVERY: Duration = Duration::from_secs(30);
/// The first wait after a comparison that failed; it doubles.
const BACKOFF_MIN: Duration = Duration::from_millis(200);
/// The longest wait: how late, at worst, a member is found to be back.
const BACKOFF_MAX: Duration = Duration::from_secs(10);

/// Where a change came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whence {
    /// It was written here, or for another reason everybody may lack it.
    Here,
    /// From this member.
    From(EndpointId),
}

impl Whence {
    /// Where two changes came from that are taken together.
    pub(super) fn and(self, other: Self) -> Self {
        if self == other { self } else { Self::Here }
    }
}

/// Another member.
struct Partner {
    /// What is to be compared with it.
    due: BTreeSet<NamespaceId>,
    is_running: bool,
    failures: u32,
    /// Whether it could not be reached the last time.
    is_unreached: bool,
    not_before: Instant,
}

impl Partner {
    fn new(due: BTreeSet<NamespaceId>) -> Self {
        Self { due, is_running: false, failures: 0, is_unreached: false, not_before: Instant::now() }
    }

    fn waits(&self) -> bool {
        !self.is_running && !self.due.is_empty()
    }
}

/// How the comparisons with one member went: what is to be compared again, and why.
struct Compared {
    peer: EndpointId,
    left: BTreeSet<NamespaceId>,
    failure: Option<Failure>,
}

/// Why a comparison failed.
struct Failure {
    reason: String,
    /// Whether there was not even a connection.
    is_unreached: bool,
}

impl Documents {
    /// Compares, for as long as the node runs.
    pub(super) async fn spread(&self) {
        let mut circle = self.inner.circle.subscribe();
        let mut partners: BTreeMap<EndpointId, Partner> = BTreeMap::new();
        let mut running: JoinSet<Compared> = JoinSet::new();
        let mut round = Instant::now() + spread_out(ROUND_EVERY);
        let mut is_opened = false;
        loop {
            let Circle { secret, members } = circle.borrow_and_update().clone();
            let news = std::mem::take(&mut *self.news());
            is_opened &= self.index().is_some_and(|index| !news.changed.contains_key(&index));
            if !is_opened {
                match self.open_all(secret).await {
                    Ok(()) => is_opened = true,
                    Err(error) => {
                        tracing::error!(error = format!("{error:#}"), "documents cannot be opened; it is tried again");
                        round = round.min(Instant::now() + BACKOFF_MAX);
                    }
                }
            }
            partners.retain(|peer, _| members.contains(peer));
            let all = self.all_spaces();
            for peer in members {
                partners.entry(peer).or_insert_with(|| Partner::new(all.clone()));
            }
            take_news(news, &mut partners);
            if Instant::now() >= round {
                round = Instant::now() + spread_out(ROUND_EVERY);
                for peer in some(partners.keys().copied().collect(), 1) {
                    if let Some(partner) = partners.get_mut(&peer) {
                        partner.due.extend(&all);
                    }
                }
            }
            self.begin(&mut partners, &mut running);
            let waiting = partners.values().filter(|partner| partner.waits() && running.len() < SYNCS_MAX);
            let next = waiting.map(|partner| partner.not_before).chain([round]).min().unwrap_or(round);
            tokio::select! {
                Some(ended) = running.join_next() => match ended {
                    Ok(compared) => settle(&mut partners, compared),
                    Err(error) => {
                        // Whose it was is not known any more, so nobody is left to be waited for.
                        tracing::error!(%error, "a comparison of documents ended in a panic");
                        running.shutdown().await;
                        partners.clear();
                    }
                },
                () = self.inner.stirred.notified() => sleep(GATHER).await,
                changed = circle.changed() => if changed.is_err() { return },
                () = sleep_until(next) => {}
            }
        }
    }

    /// The list of documents and all that are open.
    fn all_spaces(&self) -> BTreeSet<NamespaceId> {
        self.inner.open.borrow().all().map(|space| space.id).collect()
    }

    /// By which the list of documents is found, once it is open.
    fn index(&self) -> Option<NamespaceId> {
        self.inner.open.borrow().index.as_ref().map(|index| index.id)
    }

    /// Opens what is not open yet, as far as this node knows how.
    async fn open_all(&self, secret: Option<DocumentsSecret>) -> anyhow::Result<()> {
        match secret {
            Some(secret) if self.index().is_none() => self.open_first(&secret).await?,
            _ => {}
        }
        self.open_listed().await
    }

    /// Begins what is due, as far as there is room for it.
    fn begin(&self, partners: &mut BTreeMap<EndpointId, Partner>, running: &mut JoinSet<Compared>) {
        let now = Instant::now();
        for (peer, partner) in partners.iter_mut().filter(|(_, partner)| partner.waits() && partner.not_before <= now) {
            if running.len() >= SYNCS_MAX {
                return;
            }
            partner.is_running = true;
            let (documents, peer, due) = (self.clone(), *peer, std::mem::take(&mut partner.due));
            running.spawn(async move { documents.compare(peer, due).await });
        }
    }

    /// Compares documents with a member, one after the other.
    async fn compare(&self, peer: EndpointId, due: BTreeSet<NamespaceId>) -> Compared {
        let mut left = due.clone();
        let index = self.index();
        // The list first: a member that does not know of a document yet learns of it by that.
        let mut order: Vec<NamespaceId> = due.into_iter().collect();
        order.sort_by_key(|space| Some(*space) != index);
        for space in order {
            let compared = self.compare_one(peer, space).await;
            self.inner.metrics.document_syncs.get_or_create(&outcome(compared.is_ok())).inc();
            match compared {
                Ok(()) => {
                    left.remove(&space);
                }
                Err(failure) => return Compared { peer, left, failure: Some(failure) },
            }
        }
        Compared { peer, left, failure: None }
    }

    /// Compares one document.
    async fn compare_one(&self, peer: EndpointId, space: NamespaceId) -> Result<(), Failure> {
        let failure = |reason: String| Failure { reason, is_unreached: false };
        let dialled = self.inner.transport.dialled(peer);
        let (endpoint, address) = dialled.ok_or_else(|| failure("its key cannot be one".to_owned()))?;
        let comparing = connect_and_sync(endpoint, &self.inner.store, space, address, None);
        match timeout(SYNC_TIMEOUT, comparing).await {
            // Whoever does not have a document yet compares it when it does.
            Ok(Ok(_) | Err(ConnectError::RemoteAbort(AbortReason::NotFound))) => Ok(()),
            Ok(Err(ConnectError::Close { error })) if ended_well(&error) => Ok(()),
            Ok(Err(error)) => {
                let is_unreached = matches!(error, ConnectError::Connect { .. });
                Err(Failure { reason: format!("{:#}", anyhow::Error::from(error)), is_unreached })
            }
            Err(_) => Err(failure(format!("it took longer than {} s", SYNC_TIMEOUT.as_secs()))),
        }
    }

    /// Hears from the store what is new in it, for as long as the node runs. It must not wait for anything: the store does not go
    /// on before it is heard. What it refused, such as an entry from the future, is not among that, or members would pass it
    /// to and fro.
    pub(super) async fn hear(&self) {
        while let Ok(event) = self.inner.events.1.recv().await {
            let (space, from) = match event {
                Event::RemoteInsert { namespace, from, .. } => (namespace, EndpointId(from)),
                Event::LocalInsert { namespace, .. } => (namespace, self.inner.transport.id()),
            };
            let is_own = from == self.inner.transport.id();
            self.note(space, if is_own { Whence::Here } else { Whence::From(from) });
        }
    }

    /// Notes that a member can be reached, so that whatever waits for it may go ahead.
    pub(super) fn met(&self, peer: EndpointId) {
        self.news().met.insert(peer);
        self.inner.stirred.notify_one();
    }
}

/// Whether a comparison went well though it ended with this: when the other side has the last word, the library reads to the end of
/// the stream once more, which the endpoint takes for an error.
pub(super) fn ended_well(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(ReadToEndError::Read(ReadError::ClosedStream)))
}

/// Marks what is due with whom.
fn take_news(news: News, partners: &mut BTreeMap<EndpointId, Partner>) {
    for peer in news.met {
        // One that failed for another reason is not better for being there.
        if let Some(partner) = partners.get_mut(&peer).filter(|partner| partner.is_unreached) {
            (partner.failures, partner.not_before) = (0, Instant::now());
        }
    }
    for (space, whence) in news.changed {
        let told = match whence {
            Whence::Here => some(partners.keys().copied().collect(), TOLD_MAX),
            Whence::From(peer) => {
                some(partners.keys().copied().filter(|other| *other != peer).collect(), PASSED_ON_MAX)
            }
        };
        for peer in told {
            if let Some(partner) = partners.get_mut(&peer) {
                partner.due.insert(space);
            }
        }
    }
}

fn settle(partners: &mut BTreeMap<EndpointId, Partner>, compared: Compared) {
    let Compared { peer, left, failure } = compared;
    // It may have been removed meanwhile.
    let Some(partner) = partners.get_mut(&peer) else { return };
    partner.is_running = false;
    partner.due.extend(left);
    match failure {
        None => (partner.failures, partner.is_unreached, partner.not_before) = (0, false, Instant::now()),
        Some(Failure { reason, is_unreached }) => {
            if partner.failures == 0 {
                tracing::debug!(peer = %peer.short(), reason, "documents could not be compared; trying again");
            }
            partner.is_unreached = is_unreached;
            partner.failures += 1;
            partner.not_before = Instant::now() + backoff(partner.failures);
        }
    }
}

/// The wait after a number of failures in a row.
pub(super) fn backoff(failures: u32) -> Duration {
    after(failures, BACKOFF_MIN, BACKOFF_MAX)
}

/// At most so many of these, chosen by chance.
pub(super) fn some<T>(mut all: Vec<T>, max: usize) -> Vec<T> {
    let mut chosen = Vec::new();
    while !all.is_empty() && chosen.len() < max {
        // A little uneven where there are many, which does no harm; without chance the same are chosen each time, and the
        // others are reached by way of them.
        let at = (usize::from(random_byte()) << 8 | usize::from(random_byte())) % all.len();
        chosen.push(all.swap_remove(at));
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_are_chosen_and_none_twice() {
        for max in [0, 1, 3, 16, 40] {
            let chosen: BTreeSet<usize> = some((0..20).collect(), max).into_iter().collect();
            assert_eq!(chosen.len(), max.min(20));
        }
        let first: BTreeSet<usize> = (0..200).map(|_| some((0..4).collect(), 1)[0]).collect();
        assert_eq!(first.len(), 4, "each of them is chosen some time");
    }

    #[test]
    fn news_from_several_sides_are_news_for_all() {
        let (one, two) = (Whence::From(EndpointId([1; 32])), Whence::From(EndpointId([2; 32])));
        assert_eq!(one.and(one), one);
        assert_eq!(one.and(two), Whence::Here);
        assert_eq!(Whence::Here.and(one), Whence::Here);
    }
}
