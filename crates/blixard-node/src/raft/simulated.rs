//! The room as the simulator runs it: the same log, state machine, server and forwarding, on a disk and a network that are not
//! there. Two thin wrappers around the log and the state machine show each applied entry to an observer, and can plant bugs.

use std::fmt::Debug;
use std::io;
use std::ops::RangeBounds;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use blixard_core::{Actor, Capacity, Change, Command, Node, NodeId, State};
use bytes::Bytes;
use futures::{Stream, TryStreamExt};
use openraft::entry::RaftEntry;
use openraft::storage::{EntryResponder, IOFlushed, LogState, RaftLogStorage, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, RaftLogReader, RaftSnapshotBuilder};
use redb::{Database, StorageBackend};

use super::group::{Entry, Group, LogId, Logged, Snapshot, SnapshotMeta, StoredMembership, Vote};
pub(crate) use super::link::{Incoming, Link, Outgoing};
use super::log::LogStore;
use super::machine::Machine;
use super::{Raft, Stores, server, settings};
use crate::clock;
use crate::config::RaftConfig;
use crate::metrics::Metrics;
use crate::simulation::Planted;

/// Sees each entry as it is applied: its index, the hash of what the log holds there, and the state after it.
pub(crate) type Observer = Arc<dyn Fn(u64, [u8; 32], &State) + Send + Sync>;

/// What surrounds the room of one node.
#[derive(Clone)]
pub(crate) struct Stage {
    pub(crate) planted: Option<Planted>,
    pub(crate) observer: Observer,
}

impl Raft {
    /// Opens the stores in two files and takes part in whatever group they know.
    pub(crate) async fn on_stage(
        node: NodeId,
        config: RaftConfig,
        link: Arc<dyn Link>,
        files: [impl StorageBackend; 2],
        stage: Stage,
    ) -> anyhow::Result<Self> {
        let metrics = Arc::new(Metrics::default());
        let [log, state] = files;
        let log = LogStore::open(Database::builder().create_with_backend(log)?, PathBuf::from("log"), metrics.clone())?;
        let held_log = log.held();
        let machine = Machine::open(Database::builder().create_with_backend(state)?, PathBuf::from("state"))?;
        let mut settings = settings(config);
        if stage.planted == Some(Planted::LeaderRestore) {
            settings.enable_leader_restore = None;
        }
        let book = Book { log, planted: stage.planted, vote: Arc::default() };
        let applier = Applier { machine: machine.clone(), stage };
        let stores = Stores { machine, held_log };
        Self::assemble(node, settings, link, stores, applier, book, metrics).await
    }

    /// Serves one stream of a peer to its end.
    pub(crate) async fn serve(self, send: Outgoing, recv: Incoming) -> io::Result<()> {
        server::serve_stream(self.raft, self.heard, send, recv).await
    }
}

/// The log, perhaps with a bug.
#[derive(Clone)]
struct Book {
    log: LogStore,
    planted: Option<Planted>,
    /// A vote that only this process remembers.
    vote: Arc<Mutex<Option<Vote>>>,
}

impl RaftLogReader<Group> for Book {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<Entry>> {
        self.log.try_get_log_entries(range).await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.log.limited_get_log_entries(start, end).await
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        let remembered = *self.vote.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(remembered.or(self.log.read_vote().await?))
    }
}

impl RaftLogStorage<Group> for Book {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<Group>> {
        self.log.get_log_state().await
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        if self.planted == Some(Planted::ForgottenVote) {
            *self.vote.lock().unwrap_or_else(PoisonError::into_inner) = Some(*vote);
            return Ok(());
        }
        self.log.save_vote(vote).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        self.log.save_committed(committed).await
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        if self.planted == Some(Planted::CommittedAhead) {
            return Ok(self.log.get_log_state().await?.last_log_id);
        }
        self.log.read_committed().await
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Group>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        self.log.append(entries, callback).await
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        self.log.truncate_after(last).await
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        self.log.purge(upto).await
    }
}

/// The state machine, watched, and perhaps with a bug.
#[derive(Clone)]
pub(super) struct Applier {
    machine: Machine,
    stage: Stage,
}

impl Applier {
    /// The entries to apply in place of one.
    fn distort(&self, entry: Entry) -> Vec<Entry> {
        let EntryPayload::Normal(logged) = &entry.payload else { return vec![entry] };
        let Ok(command) = Command::decode(&logged.0) else { return vec![entry] };
        let with = |command: Command| {
            let payload = EntryPayload::Normal(Logged(Bytes::from(command.encode()), None));
            Entry::new(entry.log_id, payload)
        };
        match (self.stage.planted, &command.change) {
            (Some(Planted::LocalClock), _) => vec![with(Command { at: clock::now(), ..command })],
            (Some(Planted::NoCapacityCheck), Change::PlaceVm { node, .. }) => {
                let Some(known) = self.machine.read(|state| state.nodes.get(node).cloned()) else { return vec![entry] };
                let mut endless = known.capacity;
                endless.overcommit_vcpus_percent = 10_000;
                endless.overcommit_memory_percent = 10_000;
                endless.overcommit_disk_percent = 10_000;
                let offering = |capacity: Capacity| Command {
                    request: None,
                    by: Actor::Node(*node),
                    change: Change::UpdateNode(Node { capacity, ..known.clone() }),
                    ..command.clone()
                };
                vec![with(offering(endless)), with(command.clone()), with(offering(known.capacity))]
            }
            (Some(Planted::NoCopiesCheck), Change::ReleaseCopy { image, node }) => {
                let change = Change::ReportCopy { image: *image, node: *node, present: false };
                vec![with(Command { change, ..command })]
            }
            _ => vec![entry],
        }
    }

    fn distort_snapshot(&self, snapshot: Snapshot) -> Snapshot {
        if self.stage.planted != Some(Planted::SnapshotLosesField) {
            return snapshot;
        }
        let Ok(mut state) = State::decode(&snapshot.snapshot) else { return snapshot };
        state.answered.clear();
        Snapshot { snapshot: Bytes::from(state.encode()), ..snapshot }
    }
}

impl RaftSnapshotBuilder<Group> for Applier {
    type SnapshotData = Bytes;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        let snapshot = self.machine.build_snapshot().await?;
        Ok(self.distort_snapshot(snapshot))
    }
}

impl RaftStateMachine<Group> for Applier {
    type SnapshotData = Bytes;
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        self.machine.applied_state().await
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<Group>>> + Unpin + OptionalSend,
    {
        while let Some((entry, mut responder)) = entries.try_next().await? {
            let index = entry.index();
            let content = postcard::to_stdvec(&entry.payload).map_err(io::Error::other)?;
            let entries = self.distort(entry);
            // The answer is that of the command itself, which stands in the middle of what a bug adds.
            let middle = entries.len() / 2;
            for (position, entry) in entries.into_iter().enumerate() {
                let responder = if position == middle { responder.take() } else { None };
                self.machine.apply(futures::stream::iter([Ok((entry, responder))])).await?;
            }
            let hash = *blake3::hash(&content).as_bytes();
            self.machine.read(|state| (self.stage.observer)(index, hash, state));
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: Bytes) -> io::Result<()> {
        self.machine.install_snapshot(meta, snapshot).await
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        let snapshot = self.machine.get_current_snapshot().await?;
        Ok(snapshot.map(|snapshot| self.distort_snapshot(snapshot)))
    }
}
