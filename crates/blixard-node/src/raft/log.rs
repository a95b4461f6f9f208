//! The Raft log and vote on disk, in redb.
//!
//! One thread owns the database. It takes everything that is queued into one transaction and one fsync (group commit), so
//! that many writers share the price of a disk's flush. What is written is kept in memory too, up to the next
//! purge: replication reads it from there.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::path::PathBuf;
use std::sync::{Arc, RwLock, Weak};

use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{EntryPayload, OptionalSend, RaftLogReader};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use tokio::sync::{mpsc, oneshot};

use super::group::{Entry, Group, LogId, Vote, storage_error};
use crate::metrics::{Metrics, observe};
use crate::runtime::{self, Instant};

const ENTRIES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("entries");
const MARKS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("marks");
const VOTE: &str = "vote";
const PURGED: &str = "purged";
const COMMITTED: &str = "committed";

/// Orders taken into one transaction at most: a bound on how long the first of them waits for its fsync.
const BATCH_MAX: usize = 1024;

/// Bytes of entries read for one request at most: well below the largest frame, whatever users put into a command.
const BATCH_BYTES_MAX: usize = 4 << 20;
/// What an entry takes besides its command, generously.
const ENTRY_OVERHEAD_BYTES: usize = 256;

#[derive(Debug, Default)]
struct Memory {
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    entries: VecDeque<Entry>,
}

impl Memory {
    fn first_index(&self) -> u64 {
        let after_purged = || self.purged.as_ref().map_or(0, |id| id.index + 1);
        self.entries.front().map_or_else(after_purged, RaftEntry::index)
    }
}

enum Order {
    Append(Vec<(u64, Vec<u8>)>, IOFlushed<Group>),
    Mark(&'static str, Vec<u8>, oneshot::Sender<io::Result<()>>),
    Truncate { from: u64, done: oneshot::Sender<io::Result<()>> },
    Purge { upto: u64, purged: Vec<u8>, done: oneshot::Sender<io::Result<()>> },
}

/// The log of one node.
#[derive(Clone)]
pub(super) struct LogStore {
    memory: Arc<RwLock<Memory>>,
    orders: mpsc::UnboundedSender<Order>,
    held: Weak<()>,
}

fn encode<T: serde::Serialize>(value: &T) -> Vec<u8> {
    postcard::to_stdvec(value).expect("plain data always encodes into memory")
}

impl LogStore {
    /// Takes up the log in a database, or begins one. `path` names it to people.
    pub(super) fn open(db: Database, path: PathBuf, metrics: Arc<Metrics>) -> io::Result<Self> {
        let fail = |error: &dyn std::fmt::Display| storage_error(&path, "open the Raft log", error);
        let memory = load(&db).map_err(|error| fail(&error))?;
        let memory = Arc::new(RwLock::new(memory));
        let (orders, queue) = mpsc::unbounded_channel();
        let holding = Arc::new(());
        let held = Arc::downgrade(&holding);
        let writer = Writer { db, path, memory: memory.clone(), metrics, _holding: holding };
        runtime::work_off("raft-log", queue, BATCH_MAX, move |batch: &[Order]| writer.write(batch), answer)?;
        Ok(Self { memory, orders, held })
    }

    /// What is there for as long as the file is open.
    pub(super) fn held(&self) -> Weak<()> {
        self.held.clone()
    }

    fn order(&self, order: Order) -> io::Result<()> {
        self.orders.send(order).map_err(|_| io::Error::other("the Raft log's writer has ended"))
    }

    async fn carry_out(&self, order: impl FnOnce(oneshot::Sender<io::Result<()>>) -> Order) -> io::Result<()> {
        let (done, answer) = oneshot::channel();
        self.order(order(done))?;
        answer.await.map_err(|_| io::Error::other("the Raft log's writer has ended"))?
    }

    fn memory(&self) -> std::sync::RwLockReadGuard<'_, Memory> {
        self.memory.read().expect("no holder of this lock panics")
    }

    fn memory_mut(&self) -> std::sync::RwLockWriteGuard<'_, Memory> {
        self.memory.write().expect("no holder of this lock panics")
    }
}

fn load(db: &Database) -> Result<Memory, Box<dyn std::error::Error>> {
    // Opening a table in a write transaction makes it when it is missing.
    let txn = db.begin_write()?;
    txn.open_table(ENTRIES)?;
    txn.open_table(MARKS)?;
    txn.commit()?;
    let txn = db.begin_read()?;
    let marks = txn.open_table(MARKS)?;
    let mut memory = Memory::default();
    if let Some(bytes) = marks.get(VOTE)? {
        memory.vote = Some(postcard::from_bytes(bytes.value())?);
    }
    if let Some(bytes) = marks.get(PURGED)? {
        memory.purged = Some(postcard::from_bytes(bytes.value())?);
    }
    if let Some(bytes) = marks.get(COMMITTED)? {
        memory.committed = postcard::from_bytes(bytes.value())?;
    }
    for row in txn.open_table(ENTRIES)?.iter()? {
        let (index, bytes) = row?;
        let entry: Entry = postcard::from_bytes(bytes.value())?;
        // The first entry of a log from which nothing was purged stands wherever it does.
        let is_open = memory.entries.is_empty() && memory.purged.is_none();
        let expected = if is_open { index.value() } else { memory.first_index() + memory.entries.len() as u64 };
        if index.value() != expected || entry.index() != expected {
            return Err(format!("entry {expected} is missing: found {}", index.value()).into());
        }
        memory.entries.push_back(entry);
    }
    let end = memory.first_index() + memory.entries.len() as u64;
    if memory.committed.is_some_and(|committed| committed.index >= end) {
        // It was known before the entries it speaks of were on disk, and then the host lost power. Without it Raft only
        // finds out again.
        memory.committed = None;
    }
    Ok(memory)
}

/// The one hand that writes the file.
struct Writer {
    db: Database,
    path: PathBuf,
    memory: Arc<RwLock<Memory>>,
    metrics: Arc<Metrics>,
    // After the database, so that the file is closed when it is gone.
    _holding: Arc<()>,
}

impl Writer {
    fn write(&self, batch: &[Order]) -> io::Result<()> {
        // It may be ahead of the entries in this batch; `load` forgets it then.
        let committed = self.memory.read().expect("no holder of this lock panics").committed;
        let start = Instant::now();
        let result = write_batch(&self.db, batch, committed).map_err(|error| storage_error(&self.path, "write", error));
        observe(&self.metrics.log_flush_times, start.elapsed());
        let entries = batch.iter().map(|order| if let Order::Append(rows, _) = order { rows.len() } else { 0 });
        // A group of marks alone, such as a vote, shares its flush with no entry.
        if let entries @ 1.. = entries.sum::<usize>() {
            self.metrics.log_group_sizes.observe(entries as f64);
        }
        if let Err(error) = &result {
            tracing::error!(%error, "the Raft log cannot be written: this node stops taking part");
        }
        result
    }
}

/// Tells whoever waits for a batch what became of it.
fn answer(batch: Vec<Order>, result: io::Result<()>) {
    for order in batch {
        // An error is answered to each order; io::Error cannot be cloned.
        let answer = match &result {
            Ok(()) => Ok(()),
            Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
        };
        match order {
            Order::Append(_, flushed) => flushed.io_completed(answer),
            Order::Mark(_, _, done) | Order::Truncate { done, .. } | Order::Purge { done, .. } => {
                // Whoever ordered it may have given up; the work is done all the same.
                let _ = done.send(answer);
            }
        }
    }
}

fn write_batch(db: &Database, batch: &[Order], committed: Option<LogId>) -> Result<(), redb::Error> {
    let txn = db.begin_write()?;
    {
        let mut entries = txn.open_table(ENTRIES)?;
        let mut marks = txn.open_table(MARKS)?;
        for order in batch {
            match order {
                Order::Append(rows, _) => {
                    for (index, bytes) in rows {
                        entries.insert(index, bytes.as_slice())?;
                    }
                }
                Order::Mark(name, bytes, _) => {
                    marks.insert(*name, bytes.as_slice())?;
                }
                Order::Truncate { from, .. } => entries.retain_in(*from.., |_, _| false)?,
                Order::Purge { upto, purged, .. } => {
                    entries.retain_in(..=*upto, |_, _| false)?;
                    marks.insert(PURGED, purged.as_slice())?;
                }
            }
        }
        marks.insert(COMMITTED, encode(&committed).as_slice())?;
    }
    txn.commit()?;
    Ok(())
}

impl RaftLogReader<Group> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<Entry>> {
        let memory = self.memory();
        let first = memory.first_index();
        let last = first + memory.entries.len() as u64;
        let start = match range.start_bound() {
            Bound::Included(index) => *index,
            Bound::Excluded(index) => index + 1,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(index) => index + 1,
            Bound::Excluded(index) => *index,
            Bound::Unbounded => u64::MAX,
        };
        let (start, end) = (start.max(first), end.min(last));
        if start >= end {
            return Ok(Vec::new());
        }
        let position = |index: u64| usize::try_from(index - first).expect("the log in memory is indexed by usize");
        Ok(memory.entries.range(position(start)..position(end)).cloned().collect())
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        let mut entries = self.try_get_log_entries(start..end).await?;
        let mut bytes = 0;
        let fits = entries.iter().take_while(|entry| {
            let first = bytes == 0;
            bytes += entry_bytes(entry);
            first || bytes <= BATCH_BYTES_MAX
        });
        let count = fits.count();
        entries.truncate(count);
        Ok(entries)
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.memory().vote)
    }
}

/// About what an entry takes on the wire.
fn entry_bytes(entry: &Entry) -> usize {
    match &entry.payload {
        EntryPayload::Normal(logged) => logged.0.len() + ENTRY_OVERHEAD_BYTES,
        EntryPayload::Blank | EntryPayload::Membership(_) => ENTRY_OVERHEAD_BYTES,
    }
}

impl RaftLogStorage<Group> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<Group>> {
        let memory = self.memory();
        let last = memory.entries.back().map(RaftEntry::log_id).or(memory.purged);
        Ok(LogState { last_purged_log_id: memory.purged, last_log_id: last })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        // The same queue as appends: vote and entries reach the disk in the order in which Raft wrote them.
        self.carry_out(|done| Order::Mark(VOTE, encode(vote), done)).await?;
        self.memory_mut().vote = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        // It goes to disk with the next batch, without an fsync of its own: what it speeds up is only a restart.
        self.memory_mut().committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.memory().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Group>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let rows = entries.iter().map(|entry| (entry.index(), encode(entry))).collect();
        // Readable from now on, durable when the callback is called.
        self.memory_mut().entries.extend(entries);
        self.order(Order::Append(rows, callback))
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        let from = last.map_or(0, |id| id.index + 1);
        {
            let mut memory = self.memory_mut();
            let keep = usize::try_from(from.saturating_sub(memory.first_index())).unwrap_or(usize::MAX);
            memory.entries.truncate(keep);
        }
        self.carry_out(|done| Order::Truncate { from, done }).await
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        {
            let mut memory = self.memory_mut();
            let count = usize::try_from((upto.index + 1).saturating_sub(memory.first_index())).unwrap_or(usize::MAX);
            let count = count.min(memory.entries.len());
            memory.entries.drain(..count);
            memory.purged = Some(upto);
        }
        self.carry_out(|done| Order::Purge { upto: upto.index, purged: encode(&upto), done }).await
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use openraft::StorageError;
    use openraft::testing::log::{StoreBuilder, Suite};
    use tempfile::TempDir;

    use super::*;
    use crate::raft::machine::Machine;

    struct InTempDir;

    fn open(path: &Path) -> LogStore {
        LogStore::open(Database::create(path).unwrap(), path.into(), Arc::default()).unwrap()
    }

    impl StoreBuilder<Group, LogStore, Machine, TempDir> for InTempDir {
        async fn build(&self) -> Result<(TempDir, LogStore, Machine), StorageError<Group>> {
            let dir = tempfile::tempdir().unwrap();
            let log = open(&dir.path().join("log.redb"));
            let path = dir.path().join("state.redb");
            let machine = Machine::open(Database::create(&path).unwrap(), path).unwrap();
            Ok((dir, log, machine))
        }
    }

    #[tokio::test]
    async fn log_and_state_machine_keep_openrafts_own_contract() {
        Suite::test_all(InTempDir).await.unwrap();
    }

    #[tokio::test]
    async fn a_commit_that_was_known_before_its_entries_were_on_disk_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.redb");
        let ahead = LogId::new(openraft::vote::leader_id_std::CommittedLeaderId::new(1), 7);
        let mut log = open(&path);
        log.save_committed(Some(ahead)).await.unwrap();
        // Goes to disk with the next order of any kind.
        log.save_vote(&Vote::new(1, 1)).await.unwrap();
        let held = Arc::downgrade(&log.memory);
        drop(log);
        while held.strong_count() > 0 {
            tokio::task::yield_now().await;
        }
        let mut log = open(&path);
        assert_eq!(log.read_vote().await.unwrap(), Some(Vote::new(1, 1)));
        assert_eq!(log.read_committed().await.unwrap(), None);
    }

    fn log_id(index: u64) -> LogId {
        LogId::new(openraft::vote::leader_id_std::CommittedLeaderId::new(1), index)
    }

    /// An entry with a command of so many bytes.
    fn entry(index: u64, bytes: usize) -> Entry {
        let logged = crate::raft::group::Logged(bytes::Bytes::from(vec![0; bytes]), None);
        Entry { log_id: log_id(index), payload: EntryPayload::Normal(logged) }
    }

    #[tokio::test]
    async fn entries_for_one_request_are_never_more_than_a_frame_takes() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = open(&dir.path().join("log.redb"));
        let large = BATCH_BYTES_MAX / 4;
        log.memory_mut().entries.extend((0..9).map(|index| entry(index, large)));
        let batch = log.limited_get_log_entries(0, 9).await.unwrap();
        assert_eq!(
            batch.iter().map(|entry| entry.log_id.index).collect::<Vec<_>>(),
            [0, 1, 2],
            "four and what they take besides"
        );
        // One that is larger than the bound goes alone: there must always be progress.
        log.memory_mut().entries.extend((9..11).map(|index| entry(index, 2 * BATCH_BYTES_MAX)));
        let alone = log.limited_get_log_entries(9, 11).await.unwrap();
        assert_eq!(alone.iter().map(|entry| entry.log_id.index).collect::<Vec<_>>(), [9]);
        assert_eq!(log.limited_get_log_entries(3, 5).await.unwrap().len(), 2);
    }
}
