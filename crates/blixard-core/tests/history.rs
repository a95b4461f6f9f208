//! The story that events tell, told by a few commands, and by any log.
#![allow(clippy::unwrap_used)]

mod plausible;

use std::collections::{BTreeMap, BTreeSet};

use blixard_core::limits::EVENTS_MAX;
use blixard_core::{
    Actor, Change, Command, HEALTHY_WITHIN_MS, NodeId, Note, Observed, Phase, RaftView, SILENT_AFTER_MS, State, UnixMs,
};
use plausible::{asked, cluster, manifest, prelude, spec, steps, told, vm_id};
use proptest::prelude::*;

fn apply(state: &mut State, command: Command) {
    state.apply(&command).unwrap();
}

/// What happened after the first `skipped` events, in words.
fn story(state: &State, skipped: usize) -> Vec<String> {
    state.history.events.iter().skip(skipped).map(|event| event.what.to_string()).collect()
}

fn report(phase: Phase, restarts: u32) -> Change {
    let observed = Observed { epoch: 1, run: 1, phase, since: UnixMs(0), restarts };
    Change::ReportVm { id: vm_id(1), node: NodeId(2), observed }
}

#[test]
fn a_vm_tells_its_life() {
    let mut state = cluster(2);
    let before = state.history.events.len();
    let name = "web".parse().unwrap();
    apply(&mut state, asked(5_000, Change::CreateVm { id: vm_id(1), name, spec: spec(1), start: true }));
    apply(&mut state, told(1, Change::PlaceVm { id: vm_id(1), node: NodeId(2), epoch: 1 }));
    apply(&mut state, told(2, report(Phase::Preparing, 0)));
    apply(&mut state, told(2, report(Phase::Running, 0)));
    // Seen again, and started again when it was on already: nothing has happened.
    apply(&mut state, told(2, report(Phase::Running, 0)));
    apply(&mut state, asked(6_000, Change::StartVm(vm_id(1))));
    let failed = Phase::Failed { reason: "ö".repeat(500), retrying: true };
    apply(&mut state, told(2, report(failed, 0)));
    apply(&mut state, told(2, report(Phase::Running, 1)));
    apply(&mut state, told(2, Change::Note(Note::Started { adopted: vec![vm_id(1), vm_id(9)] })));
    apply(&mut state, asked(7_000, Change::StopVm { id: vm_id(1), timeout_ms: 0 }));
    apply(&mut state, asked(7_000, Change::StopVm { id: vm_id(1), timeout_ms: 0 }));
    apply(&mut state, told(2, report(Phase::Stopped { reason: Some("forced".into()) }, 1)));
    apply(&mut state, asked(8_000, Change::DeleteVm(vm_id(1))));
    apply(&mut state, told(2, Change::ForgetVm { id: vm_id(1), node: NodeId(2), epoch: 1 }));
    let cut = "ö".repeat(128);
    assert_eq!(
        story(&state, before),
        [
            "vm web was created",
            "vm web was given to node 2",
            "vm web runs on node 2",
            &format!("vm web has failed on node 2: {cut} (it will be tried again)"),
            "vm web runs again on node 2: restart 1 of this run",
            "node 2 started and has caught up",
            "vm web ran on while node 2 was restarted",
            "vm web is to stop",
            "vm web has stopped on node 2: forced",
            "vm web is to be deleted",
            "vm web and its files are gone",
        ]
    );
    let created = &state.history.events[before];
    assert_eq!((created.at, created.by), (UnixMs(5_000), Actor::Client(plausible::USER)));
    assert!(state.history.events.iter().skip(before).all(|event| {
        event.what.vm().is_some_and(|vm| vm.as_str() == "web") || event.what.node() == Some(NodeId(2))
    }));
}

#[test]
fn images_and_nodes_tell_theirs() {
    let mut state = cluster(3);
    assert_eq!(
        story(&state, 0)[..5],
        [
            "node 1 founded the cluster",
            "join token 0101010101010101 was made",
            "node 2 was let in",
            "node 3 was let in",
            "image image-0 was added on node 1",
        ]
    );
    let before = state.history.events.len();
    let image = manifest(0).id();
    apply(&mut state, told(1, Change::WantCopy { image, node: NodeId(2) }));
    apply(&mut state, told(1, Change::WantCopy { image, node: NodeId(2) }));
    apply(&mut state, told(2, Change::ReportCopy { image, node: NodeId(2), present: true }));
    apply(&mut state, told(2, Change::ReportCopy { image, node: NodeId(2), present: false }));
    apply(&mut state, told(1, Change::Note(Note::Lost(NodeId(3)))));
    apply(&mut state, asked(9_000, Change::RemoveNode { node: NodeId(3), force: true }));
    apply(&mut state, asked(9_000, Change::DeleteImage(image)));
    assert_eq!(
        story(&state, before),
        [
            "node 2 is to fetch image image-0",
            "node 2 has all of image image-0",
            "node 2 has image image-0 no more",
            "node 3 does not answer the leader",
            "node 3 was removed by force",
            "image image-0 is gone from the catalog",
        ]
    );
    assert_eq!(state.check(), Ok(()), "a removed node is not lost any more");
    let stranger = told(1, Change::Note(Note::Lost(NodeId(3))));
    assert!(state.clone().apply(&stranger).is_err());
    let user = asked(9_000, Change::Note(Note::Leads { term: 99 }));
    assert!(state.apply(&user).is_err(), "only nodes note");
}

fn view(leader: u64, silent_ms: &[(u64, u64)]) -> RaftView {
    let voters: BTreeSet<NodeId> = [1, 2, 3].map(NodeId).into();
    let silent_ms: BTreeMap<NodeId, u64> = silent_ms.iter().map(|(node, ms)| (NodeId(*node), *ms)).collect();
    RaftView { leader: NodeId(leader), voters: voters.clone(), learners: BTreeSet::new(), caught_up: voters, silent_ms }
}

#[test]
fn a_leader_notes_what_has_changed_and_then_no_more() {
    let mut state = cluster(3);
    let mut look = |view: RaftView, term: u64| {
        let before = state.history.events.len();
        for _ in 0..2 {
            for note in state.plan_notes(&view, term) {
                apply(&mut state, told(view.leader.0, Change::Note(note)));
            }
        }
        assert_eq!(state.plan_notes(&view, term), [], "all of it is noted");
        story(&state, before)
    };
    let voters = "nodes 1, 2, 3 vote";
    assert_eq!(look(view(1, &[(2, 10), (3, 10)]), 1), ["node 1 leads since term 1", voters]);
    let lost = view(1, &[(2, 10), (3, SILENT_AFTER_MS)]);
    assert_eq!(look(lost.clone(), 1), ["node 3 does not answer the leader"]);
    assert_eq!(look(lost, 2), [""; 0], "elected again, with the same node lost");
    // Between the two bounds nothing is said, so that a slow node does not come and go.
    assert_eq!(look(view(1, &[(2, HEALTHY_WITHIN_MS + 1), (3, HEALTHY_WITHIN_MS + 1)]), 2), [""; 0]);
    let led = look(view(3, &[(1, SILENT_AFTER_MS), (2, 10)]), 3);
    let expected =
        ["node 3 leads since term 3", "node 1 does not answer the leader", "node 3 answers the leader again"];
    assert_eq!(led, expected);
    assert_eq!(look(view(3, &[(1, 5), (2, 10)]), 3), ["node 1 answers the leader again"]);
    let late = told(2, Change::Note(Note::Leads { term: 2 }));
    apply(&mut state, late);
    assert_eq!(state.history.leader, Some((NodeId(3), 3)), "a leader of before has no say");
}

#[test]
fn an_image_that_cannot_be_fetched_is_told_by_its_node_and_name() {
    let mut state = cluster(2);
    let before = state.history.events.len();
    let note = |image, reason: &str, retrying| {
        let reason = reason.to_owned();
        told(2, Change::Note(Note::ImageFailing { image, reason, retrying }))
    };
    let image = *state.images.keys().next().unwrap();
    let name = state.images[&image].name.clone();
    apply(&mut state, note(image, "nobody answers", true));
    apply(&mut state, note(image, "it is empty", false));
    let expected = [
        format!("node 2 could not fetch image {name}: nobody answers (it is tried again)"),
        format!("node 2 could not fetch image {name}: it is empty (it is not tried again by itself)"),
    ];
    assert_eq!(story(&state, before), expected);
    let event = state.history.events.back().unwrap();
    assert_eq!((event.what.image(), event.what.node()), (Some(&name), Some(NodeId(2))));
    assert!(state.apply(&note(blixard_core::ImageId([77; 32]), "gone", true)).is_err());
    assert!(state.apply(&note(image, &"x".repeat(2000), true)).is_err());
    assert_eq!(state.history.events.len(), before + 2);
}

#[test]
fn only_the_last_events_are_kept_and_their_numbers_go_on() {
    let mut state = cluster(1);
    let before = state.history.count;
    for at in 0..EVENTS_MAX as u64 {
        let start = Command { at: UnixMs(at), ..told(1, Change::Note(Note::Started { adopted: vec![] })) };
        apply(&mut state, start.clone());
        // Its answer was lost, and it is told again.
        apply(&mut state, start);
    }
    assert_eq!((state.history.events.len(), state.history.count), (EVENTS_MAX, before + EVENTS_MAX as u64));
    assert_eq!(state.history.events[0].number, before + 1);
    assert_eq!(state.check(), Ok(()));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// The digest says what is: all but the history counts. And what is rejected has not happened.
    #[test]
    fn the_digest_leaves_out_the_history_and_nothing_else(steps in steps(60)) {
        let mut state = State::default();
        prelude(3).iter().for_each(|command| drop(state.apply(command)));
        let mut at = 10_000;
        for step in &steps {
            let (before, command) = (state.clone(), step.command(&state, &mut at));
            let outcome = state.apply(&command);
            if outcome.is_err() {
                prop_assert_eq!(&before.history, &state.history, "after the rejected {:?}", command);
            }
            let told = State { history: before.history.clone(), ..state.clone() };
            prop_assert_eq!(told.digest() == before.digest(), told == before, "after {:?}", command);
            prop_assert_eq!(told.digest(), state.digest());
        }
    }
}
