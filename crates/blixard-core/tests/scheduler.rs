//! The scheduler and the plan of copies: properties over arbitrary clusters, and the preferences by example.
#![allow(clippy::unwrap_used)]

mod plausible;

use std::collections::BTreeSet;

use blixard_core::{Answer, Change, NodeId, RefusalReason, State, Strategy as Placing, Verdict, Vm, VmId, VmSpec};
use plausible::{asked, cluster, manifest, node, prelude, spec, steps, told, vm_id};
use proptest::prelude::*;

/// The oracle: whether a node can carry a vm, worked out anew from the state each time.
fn could_carry(state: &State, reachable: &BTreeSet<NodeId>, vm: &Vm, id: NodeId) -> bool {
    let node = &state.nodes[&id];
    let there: Vec<&Vm> = state.vms.values().filter(|vm| vm.placement.is_some_and(|at| at.node == id)).collect();
    let enough = |physical: u64, percent: u32, take: fn(&VmSpec) -> u64| {
        let used: u128 = there.iter().map(|vm| u128::from(take(&vm.spec))).sum();
        let needs = u128::from(take(&vm.spec));
        needs == 0 || used + needs <= u128::from(physical) * u128::from(percent) / 100
    };
    let capacity = &node.capacity;
    let room = enough(capacity.physical.vcpus, capacity.overcommit_vcpus_percent, |spec| spec.vcpus.into())
        && enough(capacity.physical.memory_mib, capacity.overcommit_memory_percent, |spec| spec.memory_mib)
        && enough(capacity.physical.disk_mib, capacity.overcommit_disk_percent, |spec| spec.disk_mib);
    let alone = there.iter().all(|other| {
        let group = vm.spec.anti_affinity.is_some() && vm.spec.anti_affinity == other.spec.anti_affinity;
        let taken = |port: &blixard_core::PublishedPort| {
            other.spec.publish.iter().any(|o| (o.host_port, o.protocol) == (port.host_port, port.protocol))
        };
        !group && !vm.spec.publish.iter().any(taken)
    });
    let image = &state.images[&vm.spec.image];
    let given = image.holders.iter().any(|holder| reachable.contains(holder) && state.nodes[holder].shares_images);
    reachable.contains(&id)
        && vm.spec.node.is_none_or(|pinned| pinned == id)
        && vm.spec.require.iter().all(|(key, value)| node.labels.get(key) == Some(value))
        && alone
        && (image.holders.contains(&id) || (node.shares_images && given))
        && room
}

/// A cluster in the middle of its life, with further vms waiting.
fn any_cluster() -> impl Strategy<Value = State> {
    (steps(60), proptest::collection::vec((plausible::any_spec(), any::<bool>()), 0..12)).prop_map(|(steps, specs)| {
        let mut state = State::default();
        let mut at = 10_000;
        for command in prelude(5) {
            state.apply(&command).unwrap();
        }
        for step in steps {
            let command = step.command(&state, &mut at);
            let _ = state.apply(&command);
        }
        for (index, (mut spec, start)) in (100_u8..).zip(specs) {
            spec.node = spec.node.filter(|pinned| state.nodes.contains_key(pinned));
            let name = format!("new-{index}").parse().unwrap();
            let _ = state.apply(&asked(at, Change::CreateVm { id: vm_id(index), name, spec, start }));
        }
        state
    })
}

fn any_reachable() -> impl Strategy<Value = BTreeSet<NodeId>> {
    proptest::collection::btree_set((1_u64..8).prop_map(NodeId), 0..8)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn decisions_hold_are_complete_and_are_explained(state in any_cluster(), reachable in any_reachable()) {
        let decisions = state.schedule(&reachable);
        prop_assert_eq!(&decisions, &state.clone().schedule(&reachable));
        let waiting: Vec<VmId> = state.vms.values().filter(|vm| vm.placement.is_none()).map(|vm| vm.id).collect();
        for id in &waiting {
            let decided = decisions.iter().find(|(vm, ..)| vm == id).map(|(_, node, _)| *node);
            let verdicts = state.explain(&state.vms[id], &reachable);
            prop_assert_eq!(verdicts.iter().map(|v| v.node).collect::<Vec<_>>(), state.nodes.keys().copied().collect::<Vec<_>>());
            let is_chosen = |v: &&blixard_core::NodeVerdict| matches!(v.verdict, Verdict::Chosen(_));
            let chosen: Vec<NodeId> = verdicts.iter().filter(is_chosen).map(|v| v.node).collect();
            prop_assert_eq!(chosen, decided.into_iter().collect::<Vec<_>>());
            if decided.is_none() {
                prop_assert!(verdicts.iter().all(|v| matches!(v.verdict, Verdict::Refused(_))));
            }
        }
        let (mut told_of, mut in_turn) = (BTreeSet::new(), Vec::new());
        state.explain_waiting(&reachable, |vm, verdicts| {
            told_of.insert(vm.id);
            in_turn.push((verdicts, state.explain(vm, &reachable)));
        });
        prop_assert_eq!(told_of, waiting.iter().copied().collect());
        for (told, alone) in in_turn {
            prop_assert_eq!(told, alone);
        }
        let mut after = state.clone();
        for (id, node, epoch) in &decisions {
            prop_assert!(could_carry(&after, &reachable, &after.vms[id], *node));
            let outcome = after.apply(&told(node.0, Change::PlaceVm { id: *id, node: *node, epoch: *epoch }));
            prop_assert!(matches!(outcome, Ok(Answer::Vm { .. })), "refused: {:?}", outcome);
        }
        prop_assert_eq!(after.check(), Ok(()));
        for vm in after.vms.values().filter(|vm| vm.placement.is_none()) {
            prop_assert!(!after.nodes.keys().any(|id| could_carry(&after, &reachable, vm, *id)), "{} was forgotten", vm.name);
        }
        for vm in state.vms.values().filter(|vm| vm.placement.is_some()) {
            let placed = vm.placement.map(|at| at.node);
            for verdict in state.explain(vm, &reachable) {
                prop_assert_eq!(verdict.verdict == Verdict::Placed, Some(verdict.node) == placed);
                prop_assert!(!matches!(verdict.verdict, Verdict::Chosen(_)));
            }
        }
    }

    #[test]
    fn copies_are_planned_where_they_count_and_no_further(state in any_cluster(), present in any_reachable()) {
        let plan = state.plan_copies(&present);
        let mut after = state.clone();
        for (image, node) in &plan {
            prop_assert!(present.contains(node) && state.nodes[node].shares_images);
            prop_assert!(!after.images[image].holders.contains(node) && !after.images[image].wanted.contains(node));
            after.apply(&told(node.0, Change::WantCopy { image: *image, node: *node })).unwrap();
        }
        prop_assert_eq!(after.plan_copies(&present), vec![]);
        for image in after.images.values() {
            let takers = after.nodes.values().filter(|node| present.contains(&node.id) && node.shares_images);
            let counted = image.holders.union(&image.wanted).filter(|id| present.contains(id)).count();
            let has_source = takers.clone().any(|node| image.holders.contains(&node.id));
            let could_more = takers.clone().any(|node| !image.holders.union(&image.wanted).any(|id| *id == node.id));
            let enough = counted >= usize::from(after.settings.copies);
            prop_assert!(enough || !has_source || !could_more, "{} of {}", counted, after.settings.copies);
            let planned = plan.iter().filter(|(id, _)| *id == image.id).count();
            prop_assert!(planned == 0 || counted <= usize::from(after.settings.copies), "too many copies");
        }
    }
}

fn all(state: &State) -> BTreeSet<NodeId> {
    state.nodes.keys().copied().collect()
}

fn create(state: &mut State, index: u8, spec: VmSpec) -> VmId {
    let (id, name) = (vm_id(index), format!("vm-{index}").parse().unwrap());
    state.apply(&asked(5_000 + u64::from(index), Change::CreateVm { id, name, spec, start: true })).unwrap();
    id
}

/// Applies what the scheduler decides, and says where each vm went.
fn place(state: &mut State, reachable: &BTreeSet<NodeId>) -> Vec<u64> {
    let decisions = state.schedule(reachable);
    for (id, node, epoch) in &decisions {
        state.apply(&told(1, Change::PlaceVm { id: *id, node: *node, epoch: *epoch })).unwrap();
    }
    decisions.iter().map(|(_, node, _)| node.0).collect()
}

/// A cluster whose nodes all hold every image, so that only balance counts.
fn furnished(nodes: u8) -> State {
    let mut state = cluster(nodes);
    for node in all(&state) {
        for index in 0..3 {
            let change = Change::ReportCopy { image: manifest(index).id(), node, present: true };
            state.apply(&told(node.0, change)).unwrap();
        }
    }
    state
}

#[test]
fn spread_takes_turns_and_pack_fills_up() {
    for (strategy, expected) in [(Placing::Spread, vec![1, 2, 3, 1]), (Placing::Pack, vec![1, 1, 1, 1])] {
        let mut state = furnished(3);
        for index in 0..4 {
            create(&mut state, index, VmSpec { strategy, ..spec(0) });
        }
        let reachable = all(&state);
        assert_eq!(place(&mut state, &reachable), expected, "{strategy:?}");
    }
}

#[test]
fn the_oldest_vm_comes_first_and_what_is_left_over_waits() {
    let mut state = furnished(1);
    let late = create(&mut state, 1, VmSpec { memory_mib: 3000, ..spec(0) });
    let name = "early".parse().unwrap();
    let early = vm_id(9);
    let change = Change::CreateVm { id: early, name, spec: VmSpec { memory_mib: 3000, ..spec(0) }, start: false };
    state.apply(&asked(4_000, change)).unwrap();
    let reachable = all(&state);
    assert_eq!(state.schedule(&reachable), vec![(early, NodeId(1), 1)]);
    let verdict = &state.explain(&state.vms[&late], &reachable)[0].verdict;
    assert_eq!(verdict.to_string(), "needs 3000 MiB memory, 1096 free of 4096");
}

#[test]
fn a_node_that_holds_the_image_is_preferred_until_it_is_much_fuller() {
    let mut state = cluster(2);
    for index in 0..4 {
        create(&mut state, index, VmSpec { memory_mib: 1024, ..spec(0) });
    }
    let reachable = all(&state);
    // Node 1 holds the image. The first vm would make it a quarter full, the second half; at the second both cost the same
    // and the lower id decides, at the third an empty node that has to fetch is better.
    assert_eq!(place(&mut state, &reachable), vec![1, 1, 2, 1]);
}

#[test]
fn every_reason_is_said_in_words() {
    let mut state = furnished(3);
    let mut labelled = node(2, 2);
    labelled.labels.insert("zone".into(), "b".into());
    labelled.shares_images = false;
    state.apply(&told(2, Change::UpdateNode(labelled))).unwrap();
    for (node, present) in [(2, false), (3, false)] {
        let change = Change::ReportCopy { image: manifest(1).id(), node: NodeId(node), present };
        state.apply(&told(node, change)).unwrap();
    }
    let reachable = all(&state);
    let grouped = VmSpec { anti_affinity: Some("db".into()), node: Some(NodeId(1)), ..spec(0) };
    create(&mut state, 1, VmSpec { publish: vec!["8080:80".parse().unwrap()], ..grouped.clone() });
    place(&mut state, &reachable);
    let says = |spec: VmSpec, node: usize, reachable: &BTreeSet<NodeId>| {
        let mut state = state.clone();
        let id = create(&mut state, 7, spec);
        state.explain(&state.vms[&id], reachable)[node - 1].verdict.to_string()
    };
    let zone = VmSpec { require: [("zone".to_owned(), "a".to_owned())].into(), ..spec(0) };
    assert_eq!(says(zone.clone(), 2, &reachable), "label zone=a required, node has zone=b");
    assert_eq!(says(zone, 3, &reachable), "label zone=a required, node has no label zone");
    assert_eq!(says(grouped, 1, &reachable), "runs vm-1 of the same anti-affinity group db");
    let published = VmSpec { publish: vec!["127.0.0.1:8080:90".parse().unwrap()], ..spec(0) };
    assert_eq!(says(published, 1, &reachable), "published port 127.0.0.1:8080:90/tcp is taken by vm-1");
    assert_eq!(says(spec(0), 3, &[NodeId(1)].into()), "not reachable");
    assert_eq!(says(VmSpec { node: Some(NodeId(3)), ..spec(0) }, 1, &reachable), "pinned to node 3");
    assert_eq!(says(spec(1), 2, &reachable), "would have to fetch the image but shares no images");
    let lonely = "would have to fetch the image, and no reachable node that shares images holds it";
    assert_eq!(says(spec(1), 3, &[NodeId(3)].into()), lonely);
    assert_eq!(says(VmSpec { vcpus: 9, ..spec(0) }, 2, &reachable), "needs 9 vcpus, 8 free of 8");
    assert_eq!(
        says(VmSpec { disk_mib: 19_000, ..spec(0) }, 1, &reachable),
        "needs 19000 MiB disk, 18976 free of 20000"
    );
    assert_eq!(says(spec(0), 2, &reachable), "chosen: holds the image, would be 12 % full");
    assert_eq!(says(spec(0), 3, &reachable), "fits, choice 2: holds the image, would be 12 % full");
}

#[test]
fn a_vm_that_is_being_deleted_is_explained_as_such() {
    let mut state = furnished(2);
    let id = create(&mut state, 1, spec(0));
    let reachable = all(&state);
    place(&mut state, &reachable);
    state.apply(&asked(6_000, Change::DeleteVm(id))).unwrap();
    let verdicts: Vec<Verdict> = state.explain(&state.vms[&id], &reachable).into_iter().map(|v| v.verdict).collect();
    assert_eq!(verdicts, vec![Verdict::Placed, Verdict::Refused(RefusalReason::Deleting)]);
}

#[test]
fn an_image_gets_its_copies_on_the_emptiest_nodes() {
    let mut state = cluster(3);
    let everyone = all(&state);
    let plan = state.plan_copies(&everyone);
    // Three images on node 1; the second copies take turns between the others.
    assert_eq!(plan.iter().map(|(_, node)| node.0).collect::<Vec<_>>(), vec![2, 3, 2]);
    for (image, node) in plan {
        state.apply(&told(1, Change::WantCopy { image, node })).unwrap();
        state.apply(&told(node.0, Change::ReportCopy { image, node, present: true })).unwrap();
    }
    assert_eq!(state.plan_copies(&everyone), vec![]);
    // Node 2 has been away for long: its two copies are made up for, and the third image still has two.
    let plan = state.plan_copies(&[NodeId(1), NodeId(3)].into());
    assert_eq!(plan.iter().map(|(_, node)| node.0).collect::<Vec<_>>(), vec![3, 3]);
    assert_eq!(state.plan_copies(&[NodeId(2)].into()).len(), 0, "there is nobody to take a copy");
}
