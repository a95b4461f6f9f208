//! What holds of apply for any log. The oracles here are written apart from the code they judge.
#![allow(clippy::unwrap_used)]

mod plausible;

use std::collections::{BTreeMap, BTreeSet};

use blixard_core::{
    AUDIT_MAX, Actor, Change, Command, EndpointId, ImageId, NodeId, Placement, Rejection, State, TokenId, UnixMs,
};
use plausible::{prelude, request_key, step, steps};
use proptest::prelude::*;
use proptest::strategy::ValueTree;

/// The commands of a generated log, grounded in the state that the ones before lead to.
fn log(steps: &[plausible::Step]) -> Vec<Command> {
    let mut at = 10_000;
    let mut log = prelude(3);
    let mut state = replayed(State::default(), &log);
    for step in steps {
        let command = step.command(&state, &mut at);
        let _ = state.apply(&command);
        log.push(command);
    }
    log
}

fn replayed(mut state: State, log: &[Command]) -> State {
    for command in log {
        let _ = state.apply(command);
    }
    state
}

/// What the scheduler may promise, by the oracle's own sums: memory and processors on a node after a placement.
fn is_over_capacity(state: &State, node: NodeId) -> bool {
    let capacity = state.nodes[&node].capacity;
    let (mut vcpus, mut memory) = (0_u128, 0_u128);
    for vm in state.vms.values().filter(|vm| vm.placement.is_some_and(|placed| placed.node == node)) {
        vcpus += u128::from(vm.spec.vcpus);
        memory += u128::from(vm.spec.memory_mib);
    }
    vcpus * 100 > u128::from(capacity.physical.vcpus) * u128::from(capacity.overcommit_vcpus_percent)
        || memory * 100 > u128::from(capacity.physical.memory_mib) * u128::from(capacity.overcommit_memory_percent)
}

/// Whether an image that a node let go of is used by no vm there, and still held as often as the settings say by nodes that can
/// give it.
fn is_well_kept(state: &State, image: ImageId, node: NodeId) -> bool {
    let can_give = |holder: &&NodeId| state.nodes[holder].shares_images && !state.history.lost.contains(*holder);
    let left = state.images[&image].holders.iter().filter(can_give).count();
    let used = state.vms.values().any(|vm| vm.spec.image == image && vm.placement.is_some_and(|at| at.node == node));
    left >= usize::from(state.settings.copies) && !used
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_state_is_sound_and_rejected_commands_change_nothing(steps in steps(120)) {
        let mut state = State::default();
        for command in log(&steps) {
            let before = state.clone();
            let outcome = state.apply(&command);
            prop_assert_eq!(state.check(), Ok(()), "after {:?}", command);
            if outcome.is_err() {
                let (answered, audit) = (state.answered.clone(), state.audit.clone());
                let unchanged = State { answered, audit, ..before.clone() };
                prop_assert_eq!(&state, &unchanged, "changed by the rejected {:?}", command);
            }
            if let (Change::ReleaseCopy { image, node }, Ok(_), true) = (&command.change, &outcome, before != state) {
                prop_assert!(is_well_kept(&state, *image, *node), "too little is left after {:?}", command);
            }
            if let (Change::PlaceVm { node, .. }, Ok(_), true) = (&command.change, &outcome, before != state) {
                prop_assert!(!is_over_capacity(&state, *node), "over capacity after {:?}", command);
            }
        }
    }

    #[test]
    fn equal_logs_give_equal_state_and_a_snapshot_stands_for_the_log_before_it(steps in steps(80), cut in 0_usize..80) {
        let log = log(&steps);
        let whole = replayed(State::default(), &log);
        let again: Vec<Command> =
            log.iter().map(|command| Command::decode(&command.encode()).unwrap()).collect();
        prop_assert_eq!(&again, &log);
        let (head, tail) = again.split_at(cut.min(log.len()));
        let snapshot = replayed(State::default(), head).encode();
        let restored = replayed(State::decode(&snapshot).unwrap(), tail);
        prop_assert_eq!(restored.digest(), whole.digest());
        prop_assert_eq!(restored, whole);
    }

    #[test]
    fn a_request_is_carried_out_once(steps in steps(60), last in step()) {
        let mut state = replayed(State::default(), &log(&steps));
        let mut at = 1_000_000_000;
        let command = Command { request: Some(request_key(77, 1)), ..last.command(&state, &mut at) };
        let first = state.apply(&command);
        let after = state.clone();
        prop_assert_eq!(state.apply(&command), first.clone());
        // A try through another node makes up its own ids and reads its own clock.
        let again = Command { at: UnixMs(at + 1), change: Change::RevokeToken(TokenId([9; 8])), ..command.clone() };
        prop_assert_eq!(state.apply(&again), first);
        prop_assert_eq!(&state, &after);
        // Another request with the same id is refused, however alike its command is.
        let other = Command { request: Some(request_key(77, 2)), ..command };
        prop_assert_eq!(state.apply(&other), Err(Rejection::RequestIdTaken));
        prop_assert_eq!(state, after);
    }

    /// A vm's epoch and run only rise, its node changes only with its epoch, and nobody votes it onto two nodes.
    #[test]
    fn history_goes_forward(steps in steps(120)) {
        let mut state = State::default();
        let mut seen: BTreeMap<_, (u64, u64, BTreeMap<u64, NodeId>)> = BTreeMap::new();
        for command in log(&steps) {
            let _ = state.apply(&command);
            seen.retain(|id, _| state.vms.contains_key(id));
            for (id, vm) in &state.vms {
                let (epoch, run, nodes) = seen.entry(*id).or_default();
                prop_assert!(vm.epoch >= *epoch && vm.desired.run >= *run, "went back after {:?}", command);
                prop_assert!(vm.epoch <= *epoch + 1, "an epoch was skipped by {:?}", command);
                (*epoch, *run) = (vm.epoch, vm.desired.run);
                if let Some(placed) = vm.placement {
                    let first = *nodes.entry(placed.epoch).or_insert(placed.node);
                    prop_assert_eq!(first, placed.node, "epoch {} has two nodes", placed.epoch);
                }
            }
        }
    }

    /// Nobody but the node that has a vm is heard on it, and only on its present placement and on runs that go forward.
    #[test]
    fn only_the_node_that_has_a_vm_is_heard(steps in steps(120)) {
        let mut state = State::default();
        for command in log(&steps) {
            let before = state.clone();
            let is_retry = command.request.is_some_and(|key| before.answered.iter().any(|(known, _)| known.id == key.id));
            let (false, Ok(_)) = (is_retry, state.apply(&command)) else { continue };
            let (id, node, epoch) = match &command.change {
                Change::ReportVm { id, node, observed } => (id, node, observed.epoch),
                Change::ForgetVm { id, node, epoch } => (id, node, *epoch),
                _ => continue,
            };
            let vm = &before.vms[id];
            prop_assert_eq!(command.by, Actor::Node(*node));
            prop_assert_eq!(vm.placement, Some(Placement { node: *node, epoch }));
            if let Change::ReportVm { observed, .. } = &command.change {
                let known = vm.observed.as_ref().map_or(0, |known| known.run);
                prop_assert!((known..=vm.desired.run).contains(&observed.run));
            } else {
                prop_assert!(vm.desired.deleting);
            }
        }
    }

    /// Whatever was asked for by a client, and every node that was let in, is in the trail as it was and in order; nothing
    /// else is, and nothing twice.
    #[test]
    fn the_audit_trail_has_every_write_once(steps in steps(120)) {
        let mut state = State::default();
        let mut expected: Vec<(UnixMs, Actor, Option<Rejection>)> = Vec::new();
        for command in log(&steps) {
            let before = state.clone();
            let is_retry = command.request.is_some_and(|key| before.answered.iter().any(|(known, _)| known.id == key.id));
            let outcome = state.apply(&command);
            let is_kept = match &command.change {
                Change::UpdateNode(_) | Change::WantCopy { .. } | Change::ReportCopy { .. } | Change::PlaceVm { .. }
                | Change::ReportVm { .. } | Change::ForgetVm { .. } | Change::Note(_)
                | Change::SetDocumentsSecret(_) | Change::ReleaseCopy { .. }
                | Change::RecordBoot { .. } => false,
                Change::AdmitNode { .. } => before.nodes.len() < state.nodes.len(),
                Change::RecordDeed { .. } => outcome.is_ok(),
                _ => true,
            };
            if is_kept && !is_retry {
                let by = match &command.change {
                    Change::RecordDeed { client, .. } => Actor::Client(*client),
                    _ => command.by,
                };
                expected.push((command.at, by, outcome.err()));
            } else {
                prop_assert_eq!(&before.audit, &state.audit, "kept {:?}", command);
            }
        }
        prop_assert_eq!(state.audit.count, expected.len() as u64);
        let kept: Vec<_> = state.audit.entries.iter().map(|kept| (kept.at, kept.by, kept.rejection.clone())).collect();
        let forgotten = expected.len().saturating_sub(AUDIT_MAX);
        prop_assert_eq!(kept, &expected[forgotten..]);
        for entry in &state.audit.entries {
            let is_client = matches!(entry.by, Actor::Client(_));
            prop_assert!(is_client || entry.client_name.is_none());
            prop_assert!(!entry.object.is_empty() && entry.object.chars().count() <= 160);
        }
    }

    /// Each token lets in as many as it said when it was made, and nobody comes in without one or after being removed.
    #[test]
    fn tokens_let_in_as_many_as_they_say(steps in steps(150)) {
        let mut state = State::default();
        let mut left: BTreeMap<TokenId, Option<u32>> = BTreeMap::new();
        let mut removed: BTreeSet<EndpointId> = BTreeSet::new();
        for command in log(&steps) {
            let before = state.clone();
            let is_retry = command.request.is_some_and(|key| before.answered.iter().any(|(known, _)| known.id == key.id));
            let outcome = state.apply(&command);
            let (false, Ok(_)) = (is_retry, &outcome) else { continue };
            match &command.change {
                Change::CreateToken(token) => {
                    left.insert(token.id, token.uses_left);
                }
                Change::RevokeToken(id) => {
                    left.insert(*id, Some(0));
                }
                Change::RemoveNode { node, .. } => {
                    removed.insert(before.nodes[node].endpoint);
                }
                Change::AdmitNode { node, token } => {
                    prop_assert!(!removed.contains(&node.endpoint));
                    if !before.nodes.contains_key(&node.id) {
                        let (id, secret) = token.unwrap();
                        prop_assert_eq!(before.tokens[&id].secret_hash, secret);
                        prop_assert!(before.tokens[&id].expires_at.is_none_or(|expires| expires > command.at));
                        let uses = left.get_mut(&id).unwrap();
                        prop_assert_ne!(*uses, Some(0), "token {} let one too many in", id);
                        *uses = uses.map(|uses| uses - 1);
                    }
                }
                _ => {}
            }
        }
    }

    #[test]
    fn bytes_from_anywhere_are_read_or_refused(mut bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = (Command::decode(&bytes), State::decode(&bytes));
        bytes.insert(0, Command::FORMAT);
        if let Ok(command) = Command::decode(&bytes) {
            let _ = State::default().apply(&command);
        }
        if let Ok(state) = State::decode(&bytes) {
            let _ = state.check();
        }
    }

    /// A damaged snapshot or log entry is refused or read as something else; it never brings the node down.
    #[test]
    fn damaged_bytes_are_read_or_refused(steps in steps(40), at in any::<prop::sample::Index>(), flip in 1_u8..=255) {
        let log = log(&steps);
        let mut bytes = replayed(State::default(), &log).encode();
        let index = at.index(bytes.len());
        bytes[index] ^= flip;
        if let Ok(mut state) = State::decode(&bytes) {
            let _ = state.check();
            for command in &log {
                let _ = state.apply(command);
            }
        }
    }
}

/// The first word of a value's debug text: the name of its variant.
fn variant(value: &impl std::fmt::Debug) -> String {
    format!("{value:?}").split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().to_owned()
}

/// The properties above are worth as much as the logs they are tried on: each kind of command must be carried out in some,
/// and each reason to reject one must come up.
#[test]
fn the_generated_logs_reach_everything() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut reached: BTreeMap<String, u32> = BTreeMap::new();
    for _ in 0..400 {
        let steps = steps(150).new_tree(&mut runner).unwrap().current();
        let mut state = State::default();
        for command in log(&steps) {
            let outcome = match state.apply(&command) {
                Ok(_) => variant(&command.change),
                Err(rejection) => variant(&rejection),
            };
            *reached.entry(outcome).or_default() += 1;
        }
    }
    let changes = "ChangeSettings CreateToken RevokeToken AdmitNode UpdateNode RemoveNode GrantClient RevokeClient \
                   AddImage DeleteImage WantCopy ReportCopy CreateVm StartVm StopVm RestartVm DeleteVm PlaceVm ReportVm \
                   ForgetVm";
    let rejections = "ClusterExists Invalid UnknownToken WrongSecret TokenExpired TokenUsedUp TokenRevoked TokenMissing \
                      NodeIdTaken NodeKnownAs NodeRemoved UnknownNode LastNode NodeHasVms NodeHasLastCopy LastAdmin \
                      UnknownClient ImageNameTaken ImageKnownAs UnknownImage ImageInUse VmNameTaken UnknownVm VmDeleting \
                      StaleEpoch AlreadyPlaced DoesNotFit NotAllowed RequestIdTaken";
    let missed: Vec<&str> =
        changes.split(" ").chain(rejections.split(' ')).filter(|kind| !reached.contains_key(*kind)).collect();
    assert!(missed.is_empty(), "never reached: {missed:?}, of {reached:?}");
}
