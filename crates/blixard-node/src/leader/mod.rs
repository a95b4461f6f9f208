//! What the leader does besides writing the log: who votes, where vms go, where copies of images go.
//!
//! All decisions are [`blixard_core`]'s; this room only asks for them while its node leads, and has them written. It is fed by
//! changes of the state and by a tick (silence changes nothing in the state), and stops when its task is dropped.
//! A decision that failed to be written is made again at the next look.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use blixard_core::{
    Actor, COPY_LOST_AFTER_MS, Change, Command, HEALTHY_WITHIN_MS, MembershipStep, NodeId, Note, RaftView,
};
use tracing::{Instrument, info_span};

use crate::clock;
use crate::metrics::{LEADER_LOOP, Metrics};
use crate::raft::{GroupView, Raft};
use crate::runtime::{self, Instant};
use crate::trace;

/// How often the leader looks when nothing tells it to: who has gone quiet is seen only by looking.
const TICK: Duration = Duration::from_millis(250);
/// Between two looks at least. What changes meanwhile is looked at together: when many write at once, the leader has better
/// things to do than to look at each change alone.
const GATHER: Duration = Duration::from_millis(10);
/// How far behind the leader's log a learner may be to count as caught up: a few batches, which it takes in at once.
const CAUGHT_UP_ENTRIES: u64 = 200;

/// How long a new leader waits for members that it has not heard from before it places vms without them. Many heartbeats on
/// a LAN: those that live have answered by then.
const ROLL_CALL_MS: u64 = 1000;

/// The nodes to which vms may go; nothing while a new leader does not know yet. No node is given the benefit of the doubt
/// here: the one that is silent after an election is most likely the leader that was lost, and a vm that is placed on a dead
/// node stays there.
fn open_to_vms(view: &GroupView, members: &BTreeSet<NodeId>, office_ms: u64) -> Option<BTreeSet<NodeId>> {
    let heard = view.heard_from(members, u64::MAX, HEALTHY_WITHIN_MS);
    let is_waited_for = |node: &NodeId| *node != view.node && matches!(view.silent_ms.get(node), Some(None));
    (office_ms >= ROLL_CALL_MS || !members.iter().any(is_waited_for)).then_some(heard)
}

/// Leads whenever this node is the leader. Never returns.
pub(crate) async fn run(raft: Raft, metrics: Arc<Metrics>) {
    let mut applied = raft.watch();
    let mut office: Option<(u64, Instant)> = None;
    let turns = metrics.turns_of(LEADER_LOOP);
    loop {
        turns.inc();
        let view = raft.view();
        if view.is_leader() {
            let since = match office {
                Some((term, since)) if term == view.term => since,
                _ => {
                    tracing::info!(term = view.term, "this node leads");
                    let now = Instant::now();
                    office = Some((view.term, now));
                    now
                }
            };
            let office_ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
            metrics.leader_rounds.inc();
            if let Err(error) = lead(&raft, &view, office_ms).await {
                metrics.leader_failures.inc();
                tracing::warn!(
                    error = format!("{error:#}"),
                    "a decision of the leader was not carried out; it is made again"
                );
            }
        } else if office.take().is_some() {
            tracing::info!(leader = ?view.leader.map(|leader| leader.0), "this node does not lead any more");
        }
        runtime::sleep(GATHER).await;
        let awaits_learners = view.is_leader() && !view.learners.is_empty();
        let news = async {
            tokio::select! {
                // In the order written, as the simulator has it: by chance, one seed would have two histories.
                biased;
                // A closed watch means that Raft has stopped, and the tick goes on harmlessly.
                _ = applied.changed() => {}
                // That a learner has caught up changes nothing in the state.
                () = raft.group_changed(), if awaits_learners => {}
            }
        };
        let _ = runtime::timeout(TICK, news).await;
    }
}

async fn lead(raft: &Raft, view: &GroupView, office_ms: u64) -> anyhow::Result<()> {
    let (step, placements, copies, mut notes) = raft.read(|state| {
        let members: BTreeSet<NodeId> = state.nodes.keys().copied().collect();
        let others = view.voters.union(&view.learners).copied().filter(|node| *node != view.node);
        let caught_up = view.matched.iter().filter(|(_, index)| **index + CAUGHT_UP_ENTRIES >= view.last_log);
        let raft_view = RaftView {
            leader: view.node,
            voters: view.voters.clone(),
            learners: view.learners.clone(),
            caught_up: caught_up.map(|(node, _)| *node).chain([view.node]).collect(),
            silent_ms: others.filter_map(|node| Some((node, view.silent_ms(node, office_ms)?))).collect(),
        };
        let placements = open_to_vms(view, &members, office_ms).map(|open| state.schedule(&open)).unwrap_or_default();
        let present = view.heard_from(&members, office_ms, COPY_LOST_AFTER_MS);
        let notes = state.plan_notes(&raft_view, view.term);
        (state.plan_membership(&raft_view), placements, state.plan_copies(&present), notes)
    });
    let propose = async |change: Change| {
        let command = Command { request: None, at: clock::now(), by: Actor::Node(view.node), change };
        let outcome = raft.propose(&command).await.context("write a decision")?;
        if let Err(rejection) = outcome {
            // The state has moved on since the decision was made, so the next look decides anew.
            tracing::debug!(%rejection, "a decision came too late");
        }
        anyhow::Ok(())
    };
    for (id, node, epoch) in placements {
        let place = || info_span!(target: trace::TARGET, "place", vm = %id, node = node.0);
        let span = trace::under(raft.trace_of(id), place);
        propose(Change::PlaceVm { id, node, epoch }).instrument(span).await?;
    }
    for (image, node) in copies {
        propose(Change::WantCopy { image, node }).await?;
    }
    if raft.is_joint() {
        // Between the old voters and the new ones; the next look finds who votes in the end.
        notes.retain(|note| !matches!(note, Note::Voters(_)));
    }
    for note in notes {
        propose(Change::Note(note)).await?;
    }
    if let Some(step) = step {
        change_membership(raft, view, step).await?;
    } else if raft.is_joint() {
        // Both the old voters and the new ones would be needed for every write from here on.
        tracing::info!("completing a change of voters that the last leader began");
        raft.set_voters(view.voters.clone()).await?;
    }
    Ok(())
}

async fn change_membership(raft: &Raft, view: &GroupView, step: MembershipStep) -> anyhow::Result<()> {
    tracing::info!(?step, "changing who votes");
    let with = |node: NodeId| view.voters.iter().copied().chain([node]).collect::<BTreeSet<_>>();
    let without = |node: NodeId| view.voters.iter().copied().filter(|voter| *voter != node).collect::<BTreeSet<_>>();
    match step {
        MembershipStep::AddLearners(nodes) => {
            // One that is not there was removed between the plan and now.
            let there = raft.read(|state| {
                let endpoint = |node: NodeId| Some((node, state.nodes.get(&node)?.endpoint));
                nodes.into_iter().filter_map(endpoint).collect()
            });
            raft.add_learners(there).await
        }
        MembershipStep::Promote(node) => raft.set_voters(with(node)).await,
        MembershipStep::Demote(node) => raft.set_voters(without(node)).await,
        MembershipStep::Replace { lost, healthy } => {
            raft.set_voters(without(lost).into_iter().chain([healthy]).collect()).await
        }
        MembershipStep::Remove(node) => {
            if view.voters.contains(&node) {
                raft.set_voters(without(node)).await?;
            }
            raft.remove_learner(node).await
        }
        MembershipStep::StepDown { successor } => raft.transfer_leadership(successor).await,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// What node 2 sees as the leader of three, with the silences of the other two.
    fn view(silent_ms: [Option<u64>; 2]) -> (GroupView, BTreeSet<NodeId>) {
        let members = BTreeSet::from([NodeId(1), NodeId(2), NodeId(3)]);
        let view = GroupView {
            node: NodeId(2),
            leader: Some(NodeId(2)),
            term: 2,
            voters: members.clone(),
            changing: false,
            learners: BTreeSet::new(),
            silent_ms: BTreeMap::from([(NodeId(1), silent_ms[0]), (NodeId(3), silent_ms[1])]),
            matched: BTreeMap::new(),
            last_log: 9,
            committed: 9,
            applied: 9,
            snapshot: 0,
            stopped: None,
        };
        (view, members)
    }

    #[test]
    fn a_new_leader_places_nothing_on_a_node_that_it_never_heard_from() {
        let (lost_one, members) = view([None, Some(20)]);
        assert_eq!(open_to_vms(&lost_one, &members, 100), None, "node 1 may only be slow to answer");
        let open = BTreeSet::from([NodeId(2), NodeId(3)]);
        assert_eq!(open_to_vms(&lost_one, &members, ROLL_CALL_MS), Some(open.clone()));
        let (fell_silent, members) = view([Some(HEALTHY_WITHIN_MS + 1), Some(20)]);
        assert_eq!(open_to_vms(&fell_silent, &members, 60_000), Some(open));
        let (all_answered, members) = view([Some(40), Some(20)]);
        assert_eq!(open_to_vms(&all_answered, &members, 100), Some(members.clone()), "nobody is left to wait for");
    }

    #[cfg(not(feature = "simulation"))]
    #[tokio::test]
    async fn a_change_of_voters_that_a_leader_began_is_completed_by_the_next() {
        use crate::raft::testing;
        let dir = tempfile::tempdir().unwrap();
        let transport = testing::transport().await;
        let raft = testing::with_half_a_change(&dir.path().join("raft"), &transport).await;
        assert!(raft.is_joint());
        let completed = async {
            while raft.is_joint() {
                let _ = runtime::timeout(TICK, raft.group_changed()).await;
            }
        };
        tokio::select! {
            () = run(raft.clone(), Arc::default()) => {}
            completed = runtime::timeout(Duration::from_secs(60), completed) => assert!(completed.is_ok()),
        }
        assert_eq!(raft.view().voters, BTreeSet::from([testing::NODE]));
        raft.shutdown().await;
        transport.close().await;
    }
}
