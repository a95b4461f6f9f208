//! Groups of one node in a state that only a fault brings about, for tests of those who must cope with it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::io;
use std::ops::RangeBounds;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use openraft::storage::{IOFlushed, LogState, RaftLogStorage, RaftLogStorageExt};
use openraft::{EntryPayload, Membership, OptionalSend, RaftLogReader};

use super::group::{Entry, Group, LogId, Vote};
use super::{
    Database, LOG_FILE, LogStore, Machine, Metrics, NodeId, Raft, STATE_FILE, Stores, Transport, prepare, runtime,
    settings,
};
use crate::config::RaftConfig;
use crate::transport::{SecretKey, TransportConfig};

/// The node's number.
pub(crate) const NODE: NodeId = NodeId(1);
/// How long what must come about may take on a busy host.
const PATIENCE: Duration = Duration::from_secs(60);

/// An endpoint on loopback.
pub(crate) async fn transport() -> Transport {
    let bind = vec![([127, 0, 0, 1], 0).into()];
    Transport::open(TransportConfig { key: SecretKey::generate(), bind, relays: vec![] }).await.unwrap()
}

async fn until(mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            runtime::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(runtime::timeout(PATIENCE, waiting).await.is_ok(), "it did not come about");
}

async fn start(dir: &Path, transport: &Transport) -> Raft {
    Raft::start(dir, NODE, RaftConfig::default(), transport.clone(), Arc::default()).await.unwrap()
}

fn open_log(dir: &Path) -> LogStore {
    let path = dir.join(LOG_FILE);
    LogStore::open(Database::open(&path).unwrap(), path, Arc::default()).unwrap()
}

/// A group whose leader ended in the middle of a change of voters: its log ends between the old ones and the new ones.
pub(crate) async fn with_half_a_change(dir: &Path, transport: &Transport) -> Raft {
    prepare(dir, false).unwrap();
    let raft = start(dir, transport).await;
    raft.found().await.unwrap();
    until(|| raft.view().is_leader()).await;
    let member = openraft::BasicNode::new(transport.id());
    let (log, state) = (raft.held_log(), raft.held_state());
    raft.shutdown().await;
    drop(raft);
    until(|| log.strong_count() + state.strong_count() == 0).await;

    let mut log = open_log(dir);
    let last = log.get_log_state().await.unwrap().last_log_id.unwrap();
    let both = Membership::new(vec![BTreeSet::from([NODE.0]); 2], BTreeMap::from([(NODE.0, member)])).unwrap();
    let log_id = LogId::new(last.leader_id, last.index + 1);
    log.blocking_append([Entry { log_id, payload: EntryPayload::Membership(both) }]).await.unwrap();
    let held = log.held();
    drop(log);
    until(|| held.strong_count() == 0).await;
    let raft = start(dir, transport).await;
    until(|| raft.view().is_leader()).await;
    raft
}

/// A group that leads, and the switch that lets its core panic at the next write.
pub(crate) async fn that_will_panic(dir: &Path, transport: &Transport) -> (Raft, Arc<AtomicBool>) {
    prepare(dir, false).unwrap();
    let path = dir.join(STATE_FILE);
    let machine = Machine::open(Database::open(&path).unwrap(), path).unwrap();
    let log = Doomed { log: open_log(dir), is_over: Arc::default() };
    let (is_over, held_log) = (log.is_over.clone(), log.log.held());
    let stores = Stores { machine: machine.clone(), held_log };
    let (link, metrics) = (Arc::new(transport.clone()), Arc::new(Metrics::default()));
    let settings = settings(RaftConfig::default());
    let raft = Raft::assemble(NODE, settings, link, stores, machine, log, metrics).await.unwrap();
    raft.found().await.unwrap();
    until(|| raft.view().is_leader()).await;
    (raft, is_over)
}

/// A log that panics in Raft's own task.
#[derive(Clone)]
struct Doomed {
    log: LogStore,
    is_over: Arc<AtomicBool>,
}

impl RaftLogReader<Group> for Doomed {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<Entry>> {
        self.log.try_get_log_entries(range).await
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        self.log.read_vote().await
    }
}

impl RaftLogStorage<Group> for Doomed {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<Group>> {
        self.log.get_log_state().await
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        self.log.save_vote(vote).await
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Group>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        assert!(!self.is_over.load(Ordering::Relaxed), "a bug in the core, which a test planted");
        self.log.append(entries, callback).await
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        self.log.truncate_after(last).await
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        self.log.purge(upto).await
    }
}
