//! Records of what a boot reads: which are kept, and which are refused.
#![allow(clippy::unwrap_used)]

mod plausible;

use blixard_core::limits::{BOOT_BYTES_MAX, BOOT_RANGES_MAX};
use blixard_core::{
    Action, BlobHash, BootRecord, ByteRange, Change, DiskFormat, DiskPart, Image, ImageId, LocalImage, LocalView,
    Manifest, NodeId, Part, Rejection, State, UnixMs, reconcile,
};
use plausible::{asked, cluster, told};

const DISK_BYTES: u64 = 1 << 40;

/// A cluster of two with an image that has a large disk.
fn with_image() -> (State, ImageId) {
    let mut state = cluster(2);
    let part = Part { hash: BlobHash([77; 32]), bytes: DISK_BYTES };
    let manifest = Manifest::Disk(DiskPart { part, format: DiskFormat::Raw, virtual_bytes: DISK_BYTES, chunks: None });
    let id = manifest.id();
    let (holders, wanted) = ([NodeId(1)].into(), Default::default());
    let image = Image { id, name: "big".parse().unwrap(), manifest, added_at: UnixMs(0), holders, wanted };
    state.apply(&asked(1_000, Change::AddImage(image))).unwrap();
    (state, id)
}

fn record(is_whole: bool, ranges: &[(u64, u64)]) -> BootRecord {
    BootRecord { ranges: ranges.iter().map(|(start, end)| ByteRange { start: *start, end: *end }).collect(), is_whole }
}

fn tell(state: &mut State, node: u64, image: ImageId, record: &BootRecord) -> Result<(), Rejection> {
    let change = Change::RecordBoot { image, node: NodeId(node), record: record.clone() };
    let outcome = state.apply(&told(node, change)).map(drop);
    assert_eq!(state.check(), Ok(()));
    outcome
}

#[test]
fn the_first_boot_that_was_seen_to_its_end_stays_until_the_image_goes() {
    let (mut state, id) = with_image();
    let cut = record(false, &[(100, 200)]);
    tell(&mut state, 1, id, &cut).unwrap();
    tell(&mut state, 2, id, &record(false, &[(100, 299)])).unwrap();
    assert_eq!(state.boots[&id], cut, "that is hardly more");
    let longer = record(false, &[(100, 300)]);
    tell(&mut state, 2, id, &longer).unwrap();
    assert_eq!(state.boots[&id], longer);
    let whole = record(true, &[(300, 400), (0, 16)]);
    tell(&mut state, 1, id, &whole).unwrap();
    for late in [record(true, &[(0, 4000)]), record(false, &[(0, 4000)])] {
        assert!(!state.wants_boot(id, &late));
        tell(&mut state, 2, id, &late).unwrap();
        assert_eq!(state.boots[&id], whole);
    }
    state.apply(&asked(2_000, Change::DeleteImage(id))).unwrap();
    assert!(state.boots.is_empty());
    assert_eq!(state.check(), Ok(()));
    assert_eq!(tell(&mut state, 1, id, &whole), Err(Rejection::UnknownImage));
}

#[test]
fn what_cannot_have_been_read_is_refused() {
    let (mut state, id) = with_image();
    let many: Vec<(u64, u64)> = (0..=BOOT_RANGES_MAX as u64).map(|at| (at * 10, at * 10 + 5)).collect();
    for (ranges, says) in [
        (&[][..], "read nothing"),
        (&[(0, 10), (5, 20)], "said to twice"),
        (&[(20, 30), (0, 10), (0, 10)], "said to twice"),
        (&[(10, 10)], "cannot have read"),
        (&[(10, 9)], "cannot have read"),
        (&[(DISK_BYTES - 1, DISK_BYTES + 1)], "cannot have read"),
        (&[(0, u64::MAX)], "cannot have read"),
        (&many, "at most 256"),
        (&[(0, BOOT_BYTES_MAX), (BOOT_BYTES_MAX + 1, BOOT_BYTES_MAX + 2)], "is not recorded"),
    ] {
        let wrong = record(true, ranges);
        let refused = tell(&mut state, 2, id, &wrong).unwrap_err().to_string();
        assert!(refused.contains(says), "{refused}");
        assert!(state.boots.is_empty() && !state.wants_boot(id, &wrong));
    }
    // Ranges that touch do not overlap, and the end of the disk belongs to it.
    tell(&mut state, 2, id, &record(true, &[(10, 20), (0, 10), (DISK_BYTES - 1, DISK_BYTES)])).unwrap();
    let other = Change::RecordBoot { image: id, node: NodeId(2), record: record(true, &[(0, 1)]) };
    assert!(matches!(state.apply(&told(1, other)), Err(Rejection::NotAllowed(_))), "only who saw it may tell");
}

#[test]
fn a_node_tells_what_it_saw_for_as_long_as_that_is_news() {
    let (mut state, id) = with_image();
    let seen = record(true, &[(0, 16)]);
    let told = |state: &State| {
        let local = LocalView {
            images: [(id, LocalImage::Fetching { urgent: true, failure: None })].into(),
            boots: [(id, seen.clone())].into(),
            ..LocalView::default()
        };
        let plan = reconcile(NodeId(2), state, &local, UnixMs(0));
        let is_it = |action: &&Action| matches!(action, Action::Propose(Change::RecordBoot { .. }));
        plan.actions.iter().find(is_it).cloned()
    };
    let change = Change::RecordBoot { image: id, node: NodeId(2), record: seen.clone() };
    assert_eq!(told(&state), Some(Action::Propose(change)));
    tell(&mut state, 1, id, &seen).unwrap();
    assert_eq!(told(&state), None);
}
