//! What the queue decides, by example.

use blixard_core::{BlobHash, EndpointId, Part};

use super::*;
use crate::images::tests::{disk, whole};
use crate::transfers::FailureClass;

/// At once, where a test does not say otherwise.
const RUNNING_MAX: usize = 3;

fn queue() -> Queue {
    Queue::new(RUNNING_MAX, BTreeSet::new())
}

fn image(number: u8) -> (ImageId, Manifest) {
    let manifest = disk(Part { hash: BlobHash([number; 32]), bytes: 7 });
    (manifest.id(), manifest)
}

fn source(number: u8) -> Holder {
    whole(EndpointId([number; 32]))
}

/// Wants an image of that number from source 1.
fn want(queue: &mut Queue, number: u8, priority: Priority) -> ImageId {
    let (id, manifest) = image(number);
    queue.want(id, manifest, vec![source(1)], priority);
    id
}

fn start(queue: &mut Queue, now: Instant) -> Option<ImageId> {
    queue.start(now).map(|(_, order)| order.image)
}

fn gone() -> Failure {
    Failure { class: FailureClass::Sources, reason: "gone".to_owned() }
}

fn state(queue: &Queue, image: ImageId) -> TransferState {
    queue.status(image).expect("it is known").state
}

#[test]
fn the_urgent_come_first_then_the_older() {
    let (mut queue, now) = (queue(), Instant::now());
    let copies = [1, 2, 3].map(|number| want(&mut queue, number, Priority::Copy));
    let asked = want(&mut queue, 4, Priority::Operator);
    let urgent = want(&mut queue, 5, Priority::VmWaiting);
    let listed: Vec<ImageId> = queue.list().into_iter().map(|(image, _)| image).collect();
    assert_eq!(listed, [urgent, asked, copies[0], copies[1], copies[2]]);
    for expected in [urgent, asked, copies[0]] {
        assert_eq!(start(&mut queue, now), Some(expected));
    }
    assert_eq!(start(&mut queue, now), None, "no more than {RUNNING_MAX} at once");
    assert_eq!(queue.counts()[&(Priority::Copy, "queued")], 2);
    assert_eq!(queue.counts()[&(Priority::VmWaiting, "running")], 1);
}

#[test]
fn the_urgent_take_the_place_of_the_least_urgent_which_goes_on_first() {
    let (mut queue, now) = (Queue::new(2, BTreeSet::new()), Instant::now());
    let [old, young, third] = [1, 2, 3].map(|number| want(&mut queue, number, Priority::Copy));
    let asked = want(&mut queue, 4, Priority::Operator);
    assert_eq!((start(&mut queue, now), start(&mut queue, now)), (Some(asked), Some(old)));
    let first = want(&mut queue, 5, Priority::VmWaiting);
    assert_eq!(start(&mut queue, now), Some(first));
    assert_eq!((state(&queue, old), state(&queue, asked)), (TransferState::Queued, TransferState::Running));
    let second = want(&mut queue, 6, Priority::VmWaiting);
    let (attempt, _) = queue.start(now).expect("an operator's gives way to a vm's");
    assert_eq!((state(&queue, second), state(&queue, asked)), (TransferState::Running, TransferState::Queued));
    want(&mut queue, 7, Priority::VmWaiting);
    assert_eq!(start(&mut queue, now), None, "equals do not push each other out");
    queue.forget(image(7).0);
    queue.ended(second, attempt, Ok(()), now, 0);
    assert_eq!(start(&mut queue, now), Some(asked), "it was put back, not behind the others");
    queue.forget(first);
    assert_eq!(start(&mut queue, now), Some(old));
    assert_eq!((state(&queue, young), state(&queue, third)), (TransferState::Queued, TransferState::Queued));
}

#[test]
fn a_vm_that_begins_to_wait_makes_its_image_urgent() {
    let (mut queue, now) = (Queue::new(1, BTreeSet::new()), Instant::now());
    let copies = [1, 2].map(|number| want(&mut queue, number, Priority::Copy));
    assert_eq!(start(&mut queue, now), Some(copies[0]));
    assert_eq!(want(&mut queue, 2, Priority::VmWaiting), copies[1]);
    assert_eq!(start(&mut queue, now), Some(copies[1]), "its priority was raised");
    assert_eq!(want(&mut queue, 1, Priority::VmWaiting), copies[0]);
    assert_eq!(start(&mut queue, now), None);
}

#[test]
fn one_that_fails_waits_behind_its_equals() {
    let (mut queue, now) = (Queue::new(1, BTreeSet::new()), Instant::now());
    let [failing, other, last] = [1, 2, 3].map(|number| want(&mut queue, number, Priority::Copy));
    let later = |turn: u32| now + BACKOFF_MAX * turn;
    let mut order = Vec::new();
    for turn in 1..=4 {
        let (attempt, next) = queue.start(later(turn)).expect("one is due");
        order.push(next.image);
        let result = if next.image == failing { Err(gone()) } else { Ok(()) };
        queue.ended(next.image, attempt, result, later(turn), 0);
    }
    assert_eq!(order, [failing, other, last, failing], "it holds nobody up");
}

#[test]
fn a_failed_one_waits_and_a_new_source_ends_the_wait() {
    let (mut queue, now) = (queue(), Instant::now());
    let id = want(&mut queue, 1, Priority::Copy);
    let (attempt, _) = queue.start(now).expect("it is queued");
    queue.ended(id, attempt, Err(gone()), now, 255);
    let status = queue.status(id).expect("it is known");
    let retry_at = now + BACKOFF_MIN;
    assert_eq!((status.state, status.failures), (TransferState::Failed { retry_at: Some(retry_at) }, 1));
    assert_eq!(status.failure, Some(gone()));
    assert_eq!(queue.next_due(now), Some(retry_at));
    assert_eq!(start(&mut queue, now), None);
    let (_, manifest) = image(1);
    assert!(!queue.want(id, manifest.clone(), vec![source(1)], Priority::Copy), "nothing is new");
    assert_eq!(start(&mut queue, now), None);
    assert!(queue.want(id, manifest, vec![source(2)], Priority::Copy));
    let (attempt, order) = queue.start(now).expect("a new source is tried at once");
    assert_eq!(*order.sources.borrow(), [source(2)]);
    queue.ended(id, attempt, Err(gone()), now, 0);
    assert_eq!(queue.next_due(now), Some(now + BACKOFF_MIN), "half of twice the first wait");
    assert_eq!(start(&mut queue, now + BACKOFF_MIN), Some(id));
}

#[test]
fn what_cannot_become_better_is_tried_again_only_when_somebody_says_so() {
    let (mut queue, now) = (queue(), Instant::now());
    let id = want(&mut queue, 1, Priority::Copy);
    let (attempt, _) = queue.start(now).expect("it is queued");
    let wrong = Failure { class: FailureClass::Manifest, reason: "wrong".to_owned() };
    queue.ended(id, attempt, Err(wrong.clone()), now, 0);
    assert_eq!(state(&queue, id), TransferState::Failed { retry_at: None });
    assert_eq!((queue.next_due(now), start(&mut queue, now + BACKOFF_MAX * 100)), (None, None));
    assert_eq!(queue.status(id).and_then(|status| status.failure), Some(wrong));
    queue.resume(id);
    assert_eq!(start(&mut queue, now), Some(id));
}

#[test]
fn when_there_is_room_what_had_none_is_tried_at_once() {
    let (mut queue, now) = (queue(), Instant::now());
    let ids = [1, 2].map(|number| want(&mut queue, number, Priority::Copy));
    for (id, class) in ids.into_iter().zip([FailureClass::NoSpace, FailureClass::Sources]) {
        let (attempt, order) = queue.start(now).expect("it is queued");
        assert_eq!(order.image, id);
        queue.ended(id, attempt, Err(Failure { class, reason: "no".to_owned() }), now, 0);
    }
    assert!(queue.retry_for_room() && !queue.retry_for_room());
    assert_eq!((start(&mut queue, now), start(&mut queue, now)), (Some(ids[0]), None));
}

#[test]
fn a_failure_is_said_until_something_comes() {
    let (mut queue, now) = (queue(), Instant::now());
    let id = want(&mut queue, 1, Priority::Copy);
    let failure = |queue: &Queue| queue.status(id).and_then(|status| status.failure);
    let receive = |queue: &Queue| queue.transfers[&id].progress.send_modify(|progress| progress.bytes_received = 9);
    let (attempt, _) = queue.start(now).expect("it is queued");
    receive(&queue);
    assert_eq!(failure(&queue), None);
    queue.ended(id, attempt, Err(gone()), now, 255);
    assert_eq!(failure(&queue), Some(gone()));
    queue.start(now + BACKOFF_MIN).expect("it is due");
    assert_eq!(failure(&queue), Some(gone()), "what the attempt before received does not count");
    receive(&queue);
    assert_eq!(failure(&queue), None);
}

#[test]
fn the_end_of_an_earlier_attempt_does_not_touch_a_later_one() {
    let (mut queue, now) = (queue(), Instant::now());
    let id = want(&mut queue, 1, Priority::Copy);
    let (old, _) = queue.start(now).expect("it is queued");
    assert!(queue.forget(id) && !queue.forget(id));
    assert_eq!(queue.status(id), None);
    want(&mut queue, 1, Priority::Copy);
    queue.ended(id, old, Ok(()), now, 0);
    assert_eq!(state(&queue, id), TransferState::Queued);
    let (put_back, _) = queue.start(now).expect("it is queued");
    queue.pause(id);
    queue.resume(id);
    queue.start(now).expect("it goes on");
    queue.ended(id, put_back, Err(gone()), now, 0);
    assert_eq!(state(&queue, id), TransferState::Running);
}

#[test]
fn a_paused_one_waits_until_it_is_resumed_whoever_wants_it() {
    let (id, manifest) = image(1);
    let now = Instant::now();
    let mut queue = Queue::new(RUNNING_MAX, [id].into());
    want(&mut queue, 1, Priority::Copy);
    let other = want(&mut queue, 2, Priority::Copy);
    queue.want(id, manifest, vec![source(9)], Priority::VmWaiting);
    assert_eq!((state(&queue, id), start(&mut queue, now)), (TransferState::Paused, Some(other)));
    assert_eq!(start(&mut queue, now), None);
    queue.resume(id);
    assert_eq!(start(&mut queue, now), Some(id));
    queue.pause(id);
    assert_eq!((state(&queue, id), start(&mut queue, now)), (TransferState::Paused, None));
    assert_eq!(queue.counts()[&(Priority::VmWaiting, "paused")], 1);
    assert!(queue.forget(id) && queue.paused.is_empty());
}

#[test]
fn only_an_operators_own_request_can_be_cancelled() {
    let (mut queue, now) = (queue(), Instant::now());
    let id = want(&mut queue, 1, Priority::Operator);
    assert!(queue.status(id).expect("it is known").is_requested);
    assert_eq!(start(&mut queue, now), Some(id));
    assert_eq!(queue.cancel_request(id), Some(Cancelled::Gone));
    assert_eq!((queue.status(id), queue.cancel_request(id)), (None, None));
    want(&mut queue, 1, Priority::Operator);
    want(&mut queue, 1, Priority::Copy);
    assert_eq!(queue.status(id).expect("it is known").priority, Priority::Operator);
    assert_eq!(queue.cancel_request(id), Some(Cancelled::Wanted(Priority::Copy)));
    assert_eq!(queue.status(id).expect("it is known").priority, Priority::Copy);
}

#[test]
fn what_is_not_here_by_its_deadline_is_given_up_for_good() {
    let (mut queue, now) = (Queue::new(1, BTreeSet::new()), Instant::now());
    let until = now + BACKOFF_MAX;
    let id = want(&mut queue, 1, Priority::Operator);
    queue.set_deadline(id, Some(until));
    let (attempt, _) = queue.start(now).expect("it is queued");
    let before = until - Duration::from_millis(1);
    assert_eq!((queue.next_due(now), queue.expire(before)), (Some(until), Vec::new()));
    assert_eq!((queue.expire(until), queue.expire(until)), (vec![id], Vec::new()), "it is told once");
    queue.ended(id, attempt, Ok(()), until, 0);
    let status = queue.status(id).expect("whoever asked is to see it");
    assert_eq!((status.state, status.is_expired), (TransferState::Failed { retry_at: None }, true));
    assert_eq!(status.failure.map(|failure| failure.class), Some(FailureClass::Deadline));
    let (_, manifest) = image(1);
    queue.want(id, manifest, vec![source(2)], Priority::Operator);
    assert_eq!((start(&mut queue, until + BACKOFF_MAX), queue.next_due(until)), (None, None), "not by a new source");
    queue.set_deadline(id, None);
    assert_eq!(start(&mut queue, until), Some(id), "it was asked for anew");
    assert_eq!(queue.status(id).and_then(|status| status.failure), None);
}

#[test]
fn a_paused_one_expires_too_and_resuming_it_ends_that() {
    let (mut queue, now) = (queue(), Instant::now());
    let id = want(&mut queue, 1, Priority::Operator);
    queue.set_deadline(id, Some(now));
    queue.pause(id);
    assert_eq!((queue.expire(now), state(&queue, id)), (vec![id], TransferState::Failed { retry_at: None }));
    queue.resume(id);
    assert_eq!((queue.expire(now), start(&mut queue, now)), (Vec::new(), Some(id)));
}

#[test]
fn what_the_cluster_wants_outlives_a_deadline() {
    let (mut queue, now) = (queue(), Instant::now());
    let ids = [1, 2].map(|number| want(&mut queue, number, Priority::Operator));
    ids.into_iter().for_each(|id| queue.set_deadline(id, Some(now)));
    want(&mut queue, 1, Priority::Copy);
    assert_eq!(queue.expire(now), ids);
    let status = queue.status(ids[0]).expect("it is known");
    assert_eq!((status.state, status.priority, status.is_requested), (TransferState::Queued, Priority::Copy, false));
    // The cluster begins to want the other only now.
    assert_eq!(want(&mut queue, 2, Priority::Copy), ids[1]);
    assert_eq!((start(&mut queue, now), start(&mut queue, now)), (Some(ids[0]), Some(ids[1])));
    assert_eq!(queue.cancel_request(ids[1]), Some(Cancelled::Wanted(Priority::Copy)));
}
