//! Which copies of images nodes give up, by example and over many clusters.
#![allow(clippy::unwrap_used)]

mod plausible;

use std::collections::{BTreeMap, BTreeSet};

use blixard_core::{Cached, Change, ImageId, KeepReason, NodeId, Note, Rejection, Settings, State, UnixMs, VmSpec};
use plausible::{asked, cluster, manifest, spec, told, vm_id};
use proptest::prelude::*;

const NOW: UnixMs = UnixMs(100_000_000);

fn id(index: u8) -> ImageId {
    manifest(index).id()
}

fn hold(state: &mut State, node: u64, image: u8) {
    state.apply(&told(node, Change::ReportCopy { image: id(image), node: NodeId(node), present: true })).unwrap();
}

fn release(state: &mut State, node: u64, image: u8) -> Result<(), Rejection> {
    state.apply(&told(node, Change::ReleaseCopy { image: id(image), node: NodeId(node) })).map(drop)
}

fn cached(minutes_ago: u64) -> Cached {
    Cached { used_at: UnixMs(NOW.0 - minutes_ago * 60_000), is_pinned: false }
}

/// Four nodes that all hold the three images of the pool, of which two copies are kept.
fn four() -> State {
    let mut state = cluster(4);
    for node in 2..=4 {
        (0..3).for_each(|image| hold(&mut state, node, image));
    }
    state
}

#[test]
fn of_two_that_would_give_up_the_last_copies_at_once_one_is_refused() {
    let mut state = four();
    release(&mut state, 4, 0).unwrap();
    // Both looked at this state, in which each of them alone may.
    assert_eq!((state.may_release(id(0), NodeId(2)), state.may_release(id(0), NodeId(3))), (Ok(2), Ok(2)));
    release(&mut state, 2, 0).unwrap();
    let refused = release(&mut state, 3, 0).unwrap_err();
    assert!(refused.to_string().contains("1 other nodes hold it, and 2 copies are to be kept"), "{refused}");
    assert_eq!(state.images[&id(0)].holders, [NodeId(1), NodeId(3)].into());
    let events: Vec<String> = state.history.events.iter().rev().take(1).map(|event| event.what.to_string()).collect();
    assert_eq!(events, ["node 2 has image image-0 no more"]);
}

#[test]
fn only_copies_that_somebody_could_have_count() {
    let mut state = four();
    state.apply(&told(1, Change::Note(Note::Lost(NodeId(2))))).unwrap();
    state.nodes.get_mut(&NodeId(3)).unwrap().shares_images = false;
    let few = KeepReason::FewCopies { others: 1, copies: 2 };
    assert_eq!(state.may_release(id(0), NodeId(4)), Err(few), "nodes 2 and 3 can give none");
    state.apply(&told(1, Change::Note(Note::Back(NodeId(2))))).unwrap();
    assert_eq!(state.may_release(id(0), NodeId(4)), Ok(2));
    let others_word = told(1, Change::ReleaseCopy { image: id(0), node: NodeId(4) });
    assert!(matches!(state.apply(&others_word), Err(Rejection::NotAllowed(_))));
}

#[test]
fn what_a_vm_uses_or_is_about_to_use_stays() {
    let mut state = four();
    let create = |state: &mut State, number: u8, spec: VmSpec| {
        let name = format!("vm-{number}").parse().unwrap();
        state.apply(&asked(2_000, Change::CreateVm { id: vm_id(number), name, spec, start: false })).unwrap();
    };
    create(&mut state, 1, spec(0));
    assert_eq!(state.may_release(id(0), NodeId(4)), Ok(3), "it may be placed anywhere");
    state.apply(&told(1, Change::PlaceVm { id: vm_id(1), node: NodeId(4), epoch: 1 })).unwrap();
    assert_eq!(state.may_release(id(0), NodeId(4)), Err(KeepReason::Used { vms: "vm-1".into() }));
    assert!(release(&mut state, 4, 0).unwrap_err().to_string().contains("used by vm-1"));
    create(&mut state, 2, VmSpec { node: Some(NodeId(3)), ..spec(1) });
    assert_eq!(state.may_release(id(1), NodeId(3)), Err(KeepReason::Used { vms: "vm-2".into() }));
    assert_eq!(state.may_release(id(1), NodeId(4)), Ok(3));
}

#[test]
fn what_was_not_used_for_long_and_is_held_by_many_goes_first() {
    let mut state = four();
    let planned = |state: &State, cache: [(u8, Cached); 3]| {
        let cache: BTreeMap<ImageId, Cached> = cache.map(|(image, copy)| (id(image), copy)).into();
        state.plan_releases(NodeId(4), &cache, NOW)
    };
    let order = |images: &[u8]| images.iter().map(|image| id(*image)).collect::<Vec<_>>();
    let by_age = [(0, cached(5)), (1, cached(50)), (2, cached(20))];
    assert_eq!(planned(&state, by_age), (order(&[1, 2, 0]), BTreeMap::new()));
    // Two others hold image 1, and three hold image 2.
    release(&mut state, 3, 1).unwrap();
    assert_eq!(planned(&state, [(0, cached(5)), (1, cached(29)), (2, cached(20))]).0, order(&[2, 1, 0]));
    assert_eq!(planned(&state, [(0, cached(5)), (1, cached(31)), (2, cached(20))]).0, order(&[1, 2, 0]));
    let pinned = Cached { is_pinned: true, ..cached(500) };
    let (first, kept) = planned(&state, [(0, cached(5)), (1, cached(29)), (2, pinned)]);
    assert_eq!((first, kept), (order(&[1, 0]), [(id(2), KeepReason::Pinned)].into()));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    /// However many nodes ask at once, each from what it saw before any other asked, every image stays where it has to.
    #[test]
    fn nodes_that_all_make_room_at_once_lose_nothing(
        held in proptest::collection::vec((1_u64..8, 0_u8..3), 0..30),
        lost in proptest::collection::btree_set(1_u64..8, 0..3),
        copies in 1_u8..5,
        minutes in proptest::collection::vec(0_u64..100, 21),
    ) {
        let mut state = cluster(7);
        held.iter().for_each(|(node, image)| hold(&mut state, *node, *image));
        state.apply(&asked(2_000, Change::ChangeSettings(Settings { voters: 3, copies }))).unwrap();
        for node in &lost {
            state.apply(&told(1, Change::Note(Note::Lost(NodeId(*node))))).unwrap();
        }
        let before = state.clone();
        let mut asks = Vec::new();
        for node in 1..=7 {
            let mine = (0..3_u8).filter(|image| before.images[&id(*image)].holders.contains(&NodeId(node)));
            let cache = mine.map(|image| (id(image), cached(minutes[usize::try_from(node).unwrap() * 3 - 3 + usize::from(image)])));
            let cache: BTreeMap<ImageId, Cached> = cache.collect();
            let (first, kept) = before.plan_releases(NodeId(node), &cache, NOW);
            let all: BTreeSet<ImageId> = first.iter().chain(kept.keys()).copied().collect();
            prop_assert_eq!(all.len(), first.len() + kept.len());
            prop_assert!(all.into_iter().eq(cache.keys().copied()), "each copy goes or stays");
            asks.extend(first.into_iter().map(|image| (node, image)));
        }
        asks.sort_by_key(|(node, image)| (minutes[usize::try_from(*node).unwrap()], *image));
        for (node, image) in asks {
            let _ = state.apply(&told(node, Change::ReleaseCopy { image, node: NodeId(node) }));
        }
        let heard = |state: &State, image: u8| {
            state.images[&id(image)].holders.iter().filter(|node| !lost.contains(&node.0)).count()
        };
        for image in 0..3 {
            let floor = heard(&before, image).min(copies.into());
            prop_assert!(heard(&state, image) >= floor, "image {image}: {:?}", state.images[&id(image)].holders);
        }
    }
}
