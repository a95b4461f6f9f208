//! The state machine: applies commands to the state, and keeps its snapshots in redb.
//!
//! The state lives in memory; on disk there is the last snapshot, and after a restart the log brings it up to date.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, RwLock, Weak};

use blixard_core::{Change, Command, State, VmId};
use bytes::Bytes;
use futures::{Stream, TryStreamExt};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use tracing::info_span;

use super::group::{Applied, Group, LogId, Snapshot, SnapshotMeta, StoredMembership, storage_error};
use crate::runtime::{self, watch};
use crate::trace::{self, TraceContext};

const SNAPSHOT: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("snapshot");
/// Vms whose traces are remembered: those that are being launched, on a busy cluster.
const TRACES_MAX: usize = 1024;
const META: &str = "meta";
const STATE: &str = "state";

/// openraft with this cluster's types and state machine.
pub(super) type OpenRaft = openraft::Raft<Group, Applier>;

/// What openraft applies entries with: the state machine itself.
#[cfg(not(feature = "simulation"))]
pub(super) type Applier = Machine;
#[cfg(feature = "simulation")]
pub(super) use super::simulated::Applier;

#[derive(Debug, Default)]
struct Progress {
    applied: Option<LogId>,
    membership: StoredMembership,
}

/// The replicated state of this node, shared with whoever reads it.
#[derive(Clone)]
pub(super) struct Machine {
    state: Arc<RwLock<State>>,
    progress: Arc<RwLock<Progress>>,
    changed: watch::Sender<u64>,
    /// In memory only: no decision is taken on it.
    traces: Arc<Mutex<BTreeMap<VmId, TraceContext>>>,
    db: Arc<Database>,
    path: Arc<PathBuf>,
    // After the database, so that the file is closed when the last of these is gone.
    held: Arc<()>,
}

impl Machine {
    /// Takes up the last snapshot of a store. `path` names it to people.
    pub(super) fn open(db: Database, path: PathBuf) -> io::Result<Self> {
        let fail = |error: &dyn std::fmt::Display| storage_error(&path, "open the state store", error);
        let mut state = State::default();
        let mut progress = Progress::default();
        if let Some((meta, bytes)) = read_snapshot(&db).map_err(|error| fail(&error))? {
            state = State::decode(&bytes).map_err(|error| fail(&error))?;
            progress = Progress { applied: meta.last_log_id, membership: meta.last_membership };
        }
        let index = progress.applied.map_or(0, |id| id.index);
        Ok(Self {
            state: Arc::new(RwLock::new(state)),
            progress: Arc::new(RwLock::new(progress)),
            changed: watch::Sender::new(index),
            traces: Arc::default(),
            db: Arc::new(db),
            path: Arc::new(path),
            held: Arc::default(),
        })
    }

    /// Looks at the state. The closure must be short: applying waits for it.
    pub(super) fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.state.read().expect("a panic while applying stops the node"))
    }

    /// Looks at the state together with the index of the last entry applied to it.
    pub(super) fn read_with_index<T>(&self, look: impl FnOnce(&State, u64) -> T) -> T {
        // Under the lock that apply takes first, so that they belong together.
        let state = self.state.read().expect("a panic while applying stops the node");
        let applied = self.progress.read().expect("no holder of this lock panics").applied;
        look(&state, applied.map_or(0, |id| id.index))
    }

    /// The index of the last applied entry, live.
    pub(super) fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Notes which trace a command on a vm belongs to. Forgets any other when there are too many: a launch follows within
    /// seconds, or its span is missed.
    fn remember(&self, change: &Change, trace: Option<TraceContext>) {
        let vm = match change {
            Change::CreateVm { id, .. } | Change::PlaceVm { id, .. } | Change::RestartVm { id, .. } => *id,
            Change::StartVm(id) => *id,
            _ => return,
        };
        let Some(trace) = trace else { return };
        let mut traces = self.traces.lock().expect("no holder of this lock panics");
        traces.insert(vm, trace);
        if traces.len() > TRACES_MAX {
            traces.pop_first();
        }
    }

    /// The trace of the latest command on a vm, while it is remembered.
    pub(super) fn trace_of(&self, vm: VmId) -> Option<TraceContext> {
        self.traces.lock().expect("no holder of this lock panics").get(&vm).copied()
    }

    /// What is there for as long as the file is open.
    pub(super) fn held(&self) -> Weak<()> {
        Arc::downgrade(&self.held)
    }

    async fn store(&self, meta: &SnapshotMeta, state: Bytes) -> io::Result<()> {
        let last_log_id = meta.last_log_id;
        let meta = postcard::to_stdvec(meta).map_err(io::Error::other)?;
        let (db, path) = (self.db.clone(), self.path.clone());
        let write = move || {
            let txn = db.begin_write()?;
            {
                let mut table = txn.open_table(SNAPSHOT)?;
                // A snapshot that was being built while a newer one came from the leader must not take its place: the log
                // before the newer one is gone.
                let stored = table.get(META)?.and_then(|meta| postcard::from_bytes::<SnapshotMeta>(meta.value()).ok());
                if stored.is_some_and(|stored| stored.last_log_id > last_log_id) {
                    return Ok(());
                }
                table.insert(META, meta.as_slice())?;
                table.insert(STATE, state.as_ref())?;
            }
            txn.commit()?;
            Ok::<_, redb::Error>(())
        };
        let written = runtime::blocking(write).await?;
        written.map_err(|error| storage_error(&path, "write a snapshot to", error))
    }
}

fn read_snapshot(db: &Database) -> Result<Option<(SnapshotMeta, Bytes)>, Box<dyn std::error::Error>> {
    let txn = db.begin_write()?;
    txn.open_table(SNAPSHOT)?;
    txn.commit()?;
    let table = db.begin_read()?.open_table(SNAPSHOT)?;
    let (Some(meta), Some(state)) = (table.get(META)?, table.get(STATE)?) else { return Ok(None) };
    Ok(Some((postcard::from_bytes(meta.value())?, Bytes::copy_from_slice(state.value()))))
}

impl RaftSnapshotBuilder<Group> for Machine {
    type SnapshotData = Bytes;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        let (meta, state) = {
            // Both under the lock that apply takes first, so that they belong together.
            let state = self.state.read().expect("a panic while applying stops the node");
            let progress = self.progress.read().expect("no holder of this lock panics");
            let meta = SnapshotMeta { last_log_id: progress.applied, last_membership: progress.membership.clone() };
            (meta, Bytes::from(state.encode()))
        };
        self.store(&meta, state.clone()).await?;
        tracing::info!(bytes = state.len(), upto = ?meta.last_log_id.map(|id| id.index), "snapshot written");
        Ok(Snapshot { meta, snapshot: state })
    }
}

impl RaftStateMachine<Group> for Machine {
    type SnapshotData = Bytes;
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        let progress = self.progress.read().expect("no holder of this lock panics");
        Ok((progress.applied, progress.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<Group>>> + Unpin + OptionalSend,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            let index = entry.log_id.index;
            let mut answer = Applied(None);
            {
                let mut state = self.state.write().expect("a panic while applying stops the node");
                let mut progress = self.progress.write().expect("no holder of this lock panics");
                match entry.payload {
                    EntryPayload::Normal(logged) => {
                        // A command that this version cannot read would make its state differ from everybody else's.
                        let command = Command::decode(&logged.0).map_err(|error| {
                            io::Error::other(format!("the command at log index {index} cannot be applied: {error}"))
                        })?;
                        let apply = || info_span!(target: trace::TARGET, "apply", index);
                        answer = Applied(Some(trace::under(logged.1, apply).in_scope(|| state.apply(&command))));
                        self.remember(&command.change, logged.1);
                    }
                    EntryPayload::Membership(membership) => {
                        progress.membership = StoredMembership::new(Some(entry.log_id), membership);
                    }
                    EntryPayload::Blank => {}
                }
                progress.applied = Some(entry.log_id);
            }
            self.changed.send_replace(index);
            if let Some(responder) = responder {
                responder.send(answer);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: Bytes) -> io::Result<()> {
        let encoded = snapshot.clone();
        // A large state takes long enough to be missed meanwhile.
        let fresh = runtime::blocking(move || State::decode(&encoded)).await?;
        let fresh =
            fresh.map_err(|error| io::Error::other(format!("the leader's snapshot cannot be read: {error}")))?;
        self.store(meta, snapshot).await?;
        {
            let mut state = self.state.write().expect("a panic while applying stops the node");
            let mut progress = self.progress.write().expect("no holder of this lock panics");
            *state = fresh;
            *progress = Progress { applied: meta.last_log_id, membership: meta.last_membership.clone() };
        }
        self.changed.send_replace(meta.last_log_id.map_or(0, |id| id.index));
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        let (db, path) = (self.db.clone(), self.path.clone());
        let read = move || read_snapshot(&db).map_err(|error| storage_error(&path, "read a snapshot from", error));
        // It waits for the disk, and for a snapshot that is being written.
        let found = runtime::blocking(read).await??;
        Ok(found.map(|(meta, snapshot)| Snapshot { meta, snapshot }))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn meta(index: u64) -> SnapshotMeta {
        let id = LogId::new(openraft::vote::leader_id_std::CommittedLeaderId::new(1), index);
        SnapshotMeta { last_log_id: Some(id), last_membership: StoredMembership::default() }
    }

    #[tokio::test]
    async fn an_older_snapshot_does_not_take_the_place_of_a_newer_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.redb");
        let mut machine = Machine::open(Database::create(&path).unwrap(), path).unwrap();
        let newer = Bytes::from(State::default().encode());
        machine.store(&meta(9), newer.clone()).await.unwrap();
        // One that was being built when the newer one came from the leader.
        machine.store(&meta(5), Bytes::from_static(b"older")).await.unwrap();
        let kept = machine.get_current_snapshot().await.unwrap().unwrap();
        assert_eq!((kept.meta, kept.snapshot), (meta(9), newer));
        machine.store(&meta(12), Bytes::from_static(b"newest")).await.unwrap();
        assert_eq!(machine.get_current_snapshot().await.unwrap().unwrap().meta, meta(12));
    }
}
