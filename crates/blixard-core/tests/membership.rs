//! Who votes: the plan's steps by example, and that from anywhere they come to rest where they should.
#![allow(clippy::unwrap_used)]

mod plausible;

use std::collections::{BTreeMap, BTreeSet};

use blixard_core::{Change, HEALTHY_WITHIN_MS, LOST_AFTER_MS, MembershipStep, NodeId, RaftView, Settings, State};
use plausible::{asked, cluster, told};
use proptest::prelude::*;

use MembershipStep::{AddLearners, Demote, Promote, Remove, Replace, StepDown};

fn ids(numbers: &[u64]) -> BTreeSet<NodeId> {
    numbers.iter().copied().map(NodeId).collect()
}

/// All learners have caught up, and everybody answers but those named.
fn view(leader: u64, voters: &[u64], learners: &[u64], silent: &[(u64, u64)]) -> RaftView {
    let mut silent_ms: BTreeMap<NodeId, u64> = ids(voters).union(&ids(learners)).map(|id| (*id, 50)).collect();
    silent_ms.extend(silent.iter().map(|(id, ms)| (NodeId(*id), *ms)));
    let (voters, learners) = (ids(voters), ids(learners));
    RaftView { leader: NodeId(leader), voters, caught_up: learners.clone(), learners, silent_ms }
}

fn without(mut state: State, node: u64) -> State {
    state.apply(&asked(9_000, Change::RemoveNode { node: NodeId(node), force: true })).unwrap();
    state
}

const GONE: u64 = LOST_AFTER_MS + 1;

#[test]
fn a_cluster_grows_by_learners_first_and_never_rests_on_an_even_number() {
    let plan =
        |nodes: u8, voters: &[u64], learners: &[u64]| cluster(nodes).plan_membership(&view(1, voters, learners, &[]));
    assert_eq!(plan(1, &[1], &[]), None);
    assert_eq!(plan(2, &[1], &[]), Some(AddLearners(ids(&[2]))));
    assert_eq!(plan(2, &[1], &[2]), None, "two voters would tolerate less than one");
    assert_eq!(plan(3, &[1], &[2]), Some(AddLearners(ids(&[3]))));
    assert_eq!(plan(5, &[1], &[3]), Some(AddLearners(ids(&[2, 4, 5]))), "all that are new in one change");
    assert_eq!(plan(3, &[1], &[2, 3]), Some(Promote(NodeId(2))));
    assert_eq!(plan(3, &[1, 2], &[3]), Some(Promote(NodeId(3))));
    assert_eq!(plan(3, &[1, 2, 3], &[]), None);
    assert_eq!(plan(5, &[1, 2, 3], &[4, 5]), None, "three were asked for");
}

#[test]
fn growth_waits_for_learners_that_have_caught_up_and_answer() {
    let state = cluster(3);
    let behind = RaftView { caught_up: ids(&[2]), ..view(1, &[1], &[2, 3], &[]) };
    assert_eq!(state.plan_membership(&behind), None);
    assert_eq!(state.plan_membership(&view(1, &[1], &[2, 3], &[(3, HEALTHY_WITHIN_MS + 1)])), None);
    let unheard = RaftView { silent_ms: [(NodeId(2), 0)].into(), ..view(1, &[1], &[2, 3], &[]) };
    assert_eq!(state.plan_membership(&unheard), None);
    // Once begun, the way from one to three is gone back only when the last learner is lost.
    assert_eq!(state.plan_membership(&view(1, &[1, 2], &[3], &[(3, GONE - 1)])), None);
    assert_eq!(state.plan_membership(&view(1, &[1, 2], &[3], &[(3, GONE)])), Some(Demote(NodeId(2))));
}

#[test]
fn a_lost_voter_is_replaced_and_a_quiet_one_is_not() {
    let state = cluster(4);
    let plan = |silent: &[(u64, u64)]| state.plan_membership(&view(1, &[1, 2, 3], &[4], silent));
    assert_eq!(plan(&[(3, GONE)]), Some(Replace { lost: NodeId(3), healthy: NodeId(4) }));
    assert_eq!(plan(&[(3, LOST_AFTER_MS)]), None);
    assert_eq!(plan(&[(3, GONE), (4, GONE)]), None, "there is nobody to take its place");
    assert_eq!(plan(&[(2, GONE), (3, GONE)]), Some(Replace { lost: NodeId(2), healthy: NodeId(4) }));
    let three = cluster(3).plan_membership(&view(1, &[1, 2, 3], &[], &[(3, GONE)]));
    assert_eq!(three, None, "two of three voters is the best there is");
}

#[test]
fn what_is_no_longer_a_member_leaves() {
    let state = without(cluster(4), 3);
    let plan = |voters: &[u64], learners: &[u64], silent: &[(u64, u64)]| {
        state.plan_membership(&view(1, voters, learners, silent))
    };
    assert_eq!(plan(&[1, 2, 4], &[3], &[]), Some(Remove(NodeId(3))));
    assert_eq!(plan(&[1, 2, 3], &[4], &[]), Some(Replace { lost: NodeId(3), healthy: NodeId(4) }));
    assert_eq!(plan(&[1, 2, 3], &[4], &[(4, GONE)]), Some(Remove(NodeId(3))));
    // With node 2 gone for long, removing node 3 would leave one of two. Node 2 makes way first.
    assert_eq!(plan(&[1, 2, 3], &[4], &[(4, GONE), (2, GONE)]), Some(Demote(NodeId(2))));
    assert_eq!(plan(&[1, 3], &[2, 4], &[(4, GONE), (2, GONE)]), Some(Remove(NodeId(3))));
    assert_eq!(plan(&[1, 2, 3], &[4], &[(4, GONE), (2, GONE), (3, GONE)]), None, "no majority is left to agree on it");
}

#[test]
fn a_removed_leader_hands_over_and_takes_no_other_step() {
    let state = without(cluster(3), 1);
    assert_eq!(state.plan_membership(&view(1, &[1, 2, 3], &[], &[])), Some(StepDown { successor: NodeId(2) }));
    assert_eq!(state.plan_membership(&view(1, &[1], &[2, 3], &[(2, GONE)])), Some(Promote(NodeId(3))));
    assert_eq!(state.plan_membership(&view(1, &[1], &[], &[])), Some(AddLearners(ids(&[2, 3]))));
    assert_eq!(state.plan_membership(&view(1, &[1, 2, 3], &[], &[(2, GONE), (3, GONE)])), None);
    assert_eq!(
        state.plan_membership(&view(2, &[1, 2], &[3], &[])),
        Some(Replace { lost: NodeId(1), healthy: NodeId(3) })
    );
}

#[test]
fn fewer_voters_are_reached_one_by_one() {
    let mut state = cluster(5);
    state.apply(&asked(9_000, Change::ChangeSettings(Settings { voters: 1, copies: 2 }))).unwrap();
    let plan = |voters: &[u64], learners: &[u64]| state.plan_membership(&view(2, voters, learners, &[]));
    assert_eq!(plan(&[1, 2, 3], &[4, 5]), Some(Demote(NodeId(3))));
    assert_eq!(plan(&[1, 2], &[3, 4, 5]), Some(Demote(NodeId(1))));
    assert_eq!(plan(&[2], &[1, 3, 4, 5]), None);
}

/// Carries a step out as Raft would, with a majority of the old voters and of the new.
fn carry_out(raft: &mut RaftView, step: MembershipStep, healthy: &BTreeSet<NodeId>) {
    match step {
        AddLearners(new) => {
            assert!(!new.is_empty() && new.is_disjoint(&raft.voters) && new.is_disjoint(&raft.learners));
            raft.learners.extend(new);
        }
        Promote(id) => {
            assert!(raft.learners.remove(&id) && raft.voters.insert(id));
        }
        Demote(id) => {
            assert!(id != raft.leader && raft.voters.remove(&id) && raft.learners.insert(id));
        }
        Replace { lost, healthy } => {
            assert!(lost != raft.leader && raft.voters.remove(&lost) && raft.learners.insert(lost));
            assert!(raft.learners.remove(&healthy) && raft.voters.insert(healthy));
        }
        Remove(id) => {
            assert!(id != raft.leader);
            assert!(raft.voters.remove(&id) || raft.learners.remove(&id));
        }
        StepDown { successor } => {
            assert!(raft.voters.contains(&successor) && healthy.contains(&successor));
            raft.leader = successor;
        }
    }
    raft.caught_up = raft.learners.intersection(healthy).copied().collect();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// With the faults standing still, the plan comes to rest; no step costs the majority; and with nobody lost it rests
    /// at the largest odd number of voters that there can be, all of them members.
    #[test]
    fn the_plan_comes_to_rest(
        nodes in 1_u8..9,
        removed in proptest::collection::vec(1_u64..9, 0..4),
        roles in proptest::collection::vec(0_u8..3, 8),
        lost in proptest::collection::btree_set((1_u64..9).prop_map(NodeId), 0..4),
        wanted in prop_oneof![Just(1_u8), Just(3), Just(5), Just(7)],
    ) {
        let mut state = cluster(nodes);
        for node in removed {
            let _ = state.apply(&told(1, Change::RemoveNode { node: NodeId(node), force: true }));
        }
        let client_wants = Change::ChangeSettings(Settings { voters: wanted, copies: 2 });
        state.apply(&asked(9_000, client_wants)).unwrap();
        let with = |role: u8| (1_u64..).zip(&roles).filter(|(_, r)| **r == role).map(|(id, _)| NodeId(id)).collect::<BTreeSet<_>>();
        let (mut voters, learners) = (with(1), with(2));
        let leader = voters.first().copied().unwrap_or(NodeId(1));
        voters.insert(leader);
        let mut healthy: BTreeSet<NodeId> = (1..9).map(NodeId).filter(|id| !lost.contains(id)).collect();
        healthy.insert(leader);
        prop_assume!(voters.intersection(&healthy).count() * 2 > voters.len());
        let silent_ms = (1..9).map(NodeId).map(|id| (id, if healthy.contains(&id) { 100 } else { GONE })).collect();
        let learners: BTreeSet<NodeId> = learners.difference(&voters).copied().collect();
        let caught_up = learners.intersection(&healthy).copied().collect();
        let mut raft = RaftView { leader, voters, learners, caught_up, silent_ms };
        let mut steps = Vec::new();
        while let Some(step) = state.plan_membership(&raft) {
            carry_out(&mut raft, step.clone(), &healthy);
            steps.push(step.clone());
            let alive = raft.voters.intersection(&healthy).count();
            prop_assert!(alive * 2 > raft.voters.len(), "{:?} of {:?} cost the majority", step, steps);
            prop_assert!(steps.len() < 60, "no rest: {:?}", steps);
        }
        let members: BTreeSet<NodeId> = state.nodes.keys().copied().collect();
        if members.is_subset(&healthy) {
            let all: BTreeSet<NodeId> = raft.voters.union(&raft.learners).copied().collect();
            prop_assert_eq!(&all, &members);
            let largest = members.len().min(wanted.into());
            prop_assert_eq!(raft.voters.len(), if largest % 2 == 0 { largest - 1 } else { largest });
        }
    }
}
