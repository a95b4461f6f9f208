//! What a running node keeps right: who may connect, what the cluster knows of it, and whether it still belongs there.

use std::sync::Arc;
use std::time::{Duration, Instant};

use blixard_core::{Actor, Change, ClusterId, Command, EndpointId, Node as NodeRecord, Rejection, State};
use blixard_hypervisor::{Driver, VmState};
use tokio::sync::watch;

use super::Ended;
use super::data_dir::{DataDir, Membership};
use super::enter;
use crate::api::bootstrap::Bootstrap;
use crate::api::join::{self, JoinRefusal, Member};
use crate::clock;
use crate::documents::{Circle, Documents};
use crate::http::Stage;
use crate::raft::Raft;
use crate::runtime;
use crate::transport::{PeerAddress, Registry, Transport};

/// How often a node checks that what the cluster knows of it is right, and that it still hears from a leader.
const UPKEEP_EVERY: Duration = Duration::from_secs(1);
/// How often it is tried to end the guests of a removed node, before a person has to.
const END_GUESTS_TRIES: usize = 10;
/// Members that do not vote and are said hello to at once.
const HELLO_OTHERS: usize = 5;
/// How often a node that is in contact with a leader makes sure that it still is.
const CONTACT_EVERY: Duration = Duration::from_secs(10);
/// How long a removed node goes on taking part, so that its vote is not missed before the others have changed the group.
const FAREWELL: Duration = Duration::from_secs(10);
/// Changes of the state within this time are taken together: few of them say anything of who may be here.
const GATHER: Duration = Duration::from_millis(20);
/// A removed node that hears from no leader for this long, a few elections, is not needed by anybody.
const FAREWELL_LEADERLESS: Duration = Duration::from_secs(2);
/// How often it looks though nothing has changed.
const FAREWELL_POLL: Duration = Duration::from_millis(250);

/// This node among the others.
#[derive(Clone)]
pub(super) struct Me {
    pub(super) record: NodeRecord,
    pub(super) cluster: ClusterId,
    pub(super) transport: Transport,
    pub(super) raft: Raft,
}

impl Me {
    /// The record with the addresses of this moment.
    fn current(&self) -> NodeRecord {
        let own = self.transport.address();
        NodeRecord { addresses: own.addresses, relay_url: own.relay_url, ..self.record.clone() }
    }

    pub(super) fn bootstrap(&self) -> Bootstrap {
        let own = self.transport.address();
        Bootstrap {
            node_id: self.record.id,
            p2p_node_id: own.endpoint,
            p2p_addresses: own.addresses,
            p2p_relay_url: own.relay_url,
            cluster_id: self.cluster,
        }
    }

    pub(super) fn registry(&self) -> Registry {
        let own = self.transport.address();
        Registry {
            cluster_node_id: self.record.id,
            endpoint_id: own.endpoint,
            direct_addresses: own.addresses,
            relay_url: own.relay_url,
            cluster_id: self.cluster,
        }
    }

    /// What a state knows of this node. A replica that is catching up may show an earlier node of the same number, and that one's
    /// removal.
    fn known_to<'a>(&self, state: &'a State) -> Option<&'a NodeRecord> {
        state.nodes.get(&self.record.id).filter(|known| known.endpoint == self.record.endpoint)
    }

    /// Waits until this node's own replica shows it as a member.
    pub(super) async fn is_member(&self) {
        let mut applied = self.raft.watch();
        loop {
            applied.borrow_and_update();
            if self.raft.read(|state| self.known_to(state).is_some()) {
                return;
            }
            if applied.changed().await.is_err() {
                // Raft has stopped, which the upkeep reports.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Whom to say hello to: the other voters, who are few and the leader among them, and in each round some of the other members.
    /// All voters that the replica knows may be gone when a node comes back, and any member knows the others.
    fn company(&self, round: usize, known: &[Member]) -> Vec<PeerAddress> {
        let voters = self.raft.view().voters;
        let mut members = join::members(&self.raft);
        if members.is_empty() {
            members = known.to_vec();
        }
        members.retain(|member| member.id != self.record.id);
        let (voters, others): (Vec<_>, Vec<_>) = members.into_iter().partition(|member| voters.contains(&member.id));
        let start = (round * HELLO_OTHERS).checked_rem(others.len()).unwrap_or(0);
        let some = others.iter().cycle().skip(start).take(HELLO_OTHERS.min(others.len()));
        voters.iter().chain(some).map(|member| member.address.clone()).collect()
    }
}

/// Finds out again and again whether this node is in contact with a leader that a majority follows. What Raft's own metrics say
/// of the leader is not enough: a follower that is cut off, or whose leader died, may name it for ever.
pub(super) async fn keep_contact(raft: Raft, contact: watch::Sender<bool>) {
    loop {
        let reached = raft.barrier().await.is_ok();
        contact.send_if_modified(|contact| std::mem::replace(contact, reached) != reached);
        if reached {
            // An election, too, is reason to look.
            let _ = tokio::time::timeout(CONTACT_EVERY, raft.leader_changed()).await;
        }
    }
}

/// Keeps the access list and the address book in line with the replicated state. Before this node has caught up, its replica
/// may lack members, so until then it only adds.
pub(super) async fn keep_access(
    raft: Raft,
    transport: Transport,
    data: Arc<DataDir>,
    mut contact: watch::Receiver<bool>,
) {
    let mut applied = raft.watch();
    let mut caught_up = false;
    let mut kept = Vec::new();
    loop {
        caught_up |= *contact.borrow();
        applied.borrow_and_update();
        let clients =
            raft.read(|state| state.clients.values().map(|client| (client.key, client.role)).collect::<Vec<_>>());
        let members = join::members(&raft);
        let own = transport.id();
        let addresses = members.iter().map(|member| &member.address);
        addresses.filter(|address| address.endpoint != own).for_each(|address| transport.learn(address));
        if caught_up && members != kept {
            let (data, keeping) = (data.clone(), members.clone());
            // It waits for the disk.
            if let Err(error) = runtime::blocking(move || enter::keep_members(&data, &keeping)).await {
                tracing::warn!(%error, "the members could not be kept for the next start");
            }
            kept.clone_from(&members);
        }
        let keys = members.iter().map(|member| member.address.endpoint);
        if caught_up {
            transport.access().set_members(keys);
        } else {
            transport.access().add_members(keys);
        }
        transport.access().set_group(raft.members());
        transport.access().set_clients(clients);
        tokio::time::sleep(GATHER).await;
        tokio::select! {
            changed = applied.changed() => if changed.is_err() {
                tracing::debug!("Raft has stopped; the access list stays as it is");
                return;
            },
            // A contact that is watched no more changes no more.
            Ok(()) = contact.changed(), if !caught_up => {}
        }
    }
}

/// Tells the documents who shares them, for as long as the node runs: by the replicated state, and before that shows any members,
/// by those of the last run. So they are compared though no leader has been heard from.
pub(super) async fn keep_circle(raft: Raft, documents: Documents, data: Arc<DataDir>, own: EndpointId) {
    let mut applied = raft.watch();
    loop {
        applied.borrow_and_update();
        let mut members = join::members(&raft);
        if members.is_empty() {
            let data = data.clone();
            members = runtime::blocking(move || enter::known_members(&data)).await.unwrap_or_default();
        }
        let secret = raft.read(|state| state.documents_secret);
        let members = members.into_iter().map(|member| member.address.endpoint).filter(|member| *member != own);
        documents.meet(Circle { secret, members: members.collect() });
        tokio::time::sleep(GATHER).await;
        if applied.changed().await.is_err() {
            tracing::debug!("Raft has stopped; documents are shared with the members of then");
            return;
        }
    }
}

/// Keeps this node's record right, finds members that its replica does not know while it hears from no leader, and
/// notices when it is removed or cannot go on.
pub(super) async fn keep_membership(
    me: Me,
    membership: Membership,
    data: Arc<DataDir>,
    driver: Arc<dyn Driver>,
    contact: watch::Receiver<bool>,
    stage: watch::Sender<Stage>,
    end: watch::Sender<Option<Ended>>,
) {
    let id = me.record.id;
    let mut was_member = false;
    let mut hellos = 0;
    let mut said_hello: Option<Instant> = None;
    let mut registry = None;
    let members_before = enter::known_members(&data);
    loop {
        let view = me.raft.view();
        if let Some(reason) = view.stopped {
            end.send_replace(Some(Ended::Failed(format!("consensus has stopped: {reason}"))));
            return;
        }
        let known = me.raft.read(|state| me.known_to(state).cloned());
        match known {
            Some(known) => {
                was_member = true;
                let current = NodeRecord { joined_at: known.joined_at, ..me.current() };
                if current != known && *contact.borrow() {
                    let by = Actor::Node(id);
                    let command = Command { request: None, at: clock::now(), by, change: Change::UpdateNode(current) };
                    match me.raft.propose(&command).await {
                        Ok(Ok(_)) => tracing::info!("told the cluster what is new about this node"),
                        Ok(Err(rejection)) => {
                            tracing::warn!(%rejection, "the cluster does not take this node's record")
                        }
                        Err(error) => tracing::debug!(%error, "this node's record is told again"),
                    }
                }
                // A relay is found, and addresses change, after the node has become ready.
                stage.send_if_modified(|stage| match stage {
                    Stage::Member(told) => {
                        let facts = me.bootstrap();
                        std::mem::replace(told, facts.clone()) != facts
                    }
                    Stage::Starting(_) => false,
                });
                let fresh = me.registry();
                if registry.as_ref() != Some(&fresh) {
                    let (data, writing) = (data.clone(), fresh.clone());
                    let written = runtime::blocking(move || writing.write(data.path())).await;
                    match written.map_err(anyhow::Error::from).and_then(|written| written) {
                        Ok(()) => registry = Some(fresh),
                        Err(error) => tracing::warn!(error = format!("{error:#}"), "the registry file is out of date"),
                    }
                }
            }
            None if was_member => {
                farewell(&me, &membership, &data).await;
                end_guests(&driver).await;
                end.send_replace(Some(Ended::Removed(id)));
                return;
            }
            None => {}
        }
        // Also at the start, so that the others let go of connections to the process before this one. The replica need not show this
        // node: what it holds may be older than its joining, and a leader that joined later than that is a stranger to it.
        let is_lost = view.leader.is_none() || !*contact.borrow();
        if is_lost && said_hello.is_none_or(|said| said.elapsed() >= UPKEEP_EVERY) {
            said_hello = Some(Instant::now());
            let company = me.company(hellos, &members_before);
            hellos += 1;
            match enter::hello(&me.transport, &me.current(), me.cluster, &company).await {
                Err(JoinRefusal::Rejected(Rejection::NodeRemoved)) => {
                    farewell(&me, &membership, &data).await;
                    end_guests(&driver).await;
                    end.send_replace(Some(Ended::Removed(id)));
                    return;
                }
                Err(refusal) => tracing::warn!(%refusal, "the cluster does not know this node any more"),
                Ok(()) => {}
            }
        }
        let mut applied = me.raft.watch();
        tokio::time::sleep(GATHER).await;
        let _ = tokio::time::timeout(UPKEEP_EVERY, applied.changed()).await;
    }
}

/// Ends every guest on this host: the cluster has given up on them, and may start the same vms elsewhere. Their files stay, for
/// the operator to judge.
pub(super) async fn end_guests(driver: &Arc<dyn Driver>) {
    for _ in 0..END_GUESTS_TRIES {
        let driver = driver.clone();
        let ended = tokio::task::spawn_blocking(move || -> anyhow::Result<()> {
            for vm in driver.list()?.into_iter().filter(|vm| matches!(vm.state, VmState::Running(_))) {
                tracing::warn!(vm = vm.vm, name = vm.name, "ending a guest: this node is no longer a member");
                driver.kill(&vm.vm)?;
            }
            Ok(())
        });
        match ended.await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => {
                tracing::error!(error = format!("{error:#}"), "a guest could not be ended; it is tried again")
            }
            Err(error) => tracing::error!(%error, "a guest could not be ended; it is tried again"),
        }
        tokio::time::sleep(UPKEEP_EVERY).await;
    }
    tracing::error!("guests may still run on this host, which is no longer a member: end them by hand");
}

/// A removed node goes on until the others have taken it out of the group, so that its vote is not missed.
async fn farewell(me: &Me, membership: &Membership, data: &Arc<DataDir>) {
    tracing::warn!("the cluster has removed this node");
    let (keeping, removed) = (data.clone(), Membership { removed: true, ..membership.clone() });
    let noted = runtime::blocking(move || keeping.set_membership(&removed)).await;
    if let Err(error) = noted.map_err(anyhow::Error::from).and_then(|noted| noted) {
        tracing::warn!(error = format!("{error:#}"), "the removal could not be noted in the data directory");
    }
    let taken_out = async {
        let mut leaderless: Option<Instant> = None;
        loop {
            let view = me.raft.view();
            if !view.voters.contains(&view.node) {
                return;
            }
            // While the leadership passes from one to another, nobody leads for a moment: the next leader may need this vote.
            match view.leader {
                Some(_) => leaderless = None,
                None if leaderless.get_or_insert_with(Instant::now).elapsed() >= FAREWELL_LEADERLESS => return,
                None => {}
            }
            let _ = tokio::time::timeout(FAREWELL_POLL, me.raft.group_changed()).await;
        }
    };
    let _ = tokio::time::timeout(FAREWELL, taken_out).await;
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::atomic::Ordering;

    use blixard_core::{Capacity, NodeId, Resources, UnixMs};
    use blixard_hypervisor::FakeDriver;

    use super::*;
    use crate::raft::{ConsensusError, testing};

    fn record(id: NodeId, endpoint: EndpointId) -> NodeRecord {
        NodeRecord {
            id,
            endpoint,
            addresses: vec![],
            relay_url: None,
            capacity: Capacity {
                physical: Resources { vcpus: 1, memory_mib: 1, disk_mib: 1 },
                overcommit_vcpus_percent: 100,
                overcommit_memory_percent: 100,
                overcommit_disk_percent: 100,
            },
            labels: BTreeMap::new(),
            shares_images: true,
            version: String::new(),
            joined_at: UnixMs(0),
        }
    }

    #[tokio::test]
    async fn an_earlier_node_of_the_same_number_is_another_one() {
        let dir = tempfile::tempdir().unwrap();
        let transport = testing::transport().await;
        let (raft, _) = testing::that_will_panic(&dir.path().join("raft"), &transport).await;
        let me = Me { record: record(NodeId(4), transport.id()), cluster: ClusterId([1; 32]), transport, raft };
        let mut state = State::default();
        // As a replica shows it that has only come as far as the time of the earlier one.
        state.nodes.insert(NodeId(4), record(NodeId(4), EndpointId([9; 32])));
        assert_eq!(me.known_to(&state), None);
        state.nodes.insert(NodeId(4), me.record.clone());
        assert_eq!(me.known_to(&state), Some(&me.record));
    }

    #[tokio::test]
    async fn a_node_whose_consensus_panicked_ends_and_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let transport = testing::transport().await;
        let (raft, is_over) = testing::that_will_panic(&dir.path().join("raft"), &transport).await;
        let (id, cluster) = (testing::NODE, ClusterId([1; 32]));
        let record = record(id, transport.id());
        let me = Me { record, cluster, transport: transport.clone(), raft: raft.clone() };
        let data = Arc::new(DataDir::open(&dir.path().join("data")).unwrap());
        let driver: Arc<dyn Driver> = Arc::new(FakeDriver::new(&dir.path().join("vms")).unwrap());
        let (_contact, contact) = watch::channel(true);
        let (end, mut ended) = watch::channel(None);
        let membership = Membership { node: id, cluster, removed: false };
        let stage = watch::channel(Stage::Starting(String::new())).0;
        let keeping = tokio::spawn(keep_membership(me, membership, data, driver, contact, stage, end));

        is_over.store(true, Ordering::Relaxed);
        let change = Change::RemoveNode { node: NodeId(9), force: false };
        let command = Command { request: None, at: clock::now(), by: Actor::Node(id), change };
        let answer = tokio::time::timeout(Duration::from_secs(60), raft.propose(&command)).await.unwrap();
        assert!(matches!(answer, Err(ConsensusError::Stopped { .. })), "{answer:?}");
        let end = tokio::time::timeout(Duration::from_secs(60), ended.wait_for(Option::is_some)).await;
        match end.expect("the node goes on without consensus").unwrap().clone() {
            Some(Ended::Failed(why)) => assert!(why.contains("consensus has stopped"), "{why}"),
            other => panic!("{other:?}"),
        }
        keeping.await.unwrap();
        transport.close().await;
    }
}
