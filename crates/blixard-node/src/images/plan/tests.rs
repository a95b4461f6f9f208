use std::iter;
use std::ops::Range;

use blixard_core::ByteRange;
use iroh_blobs::protocol::{ChunkRangesExt, GetRequest};

use super::super::demand::Ahead;
use super::piece::PIECE_BYTES_MIN;
use super::*;

const HASH: BlobHash = BlobHash([1; 32]);
const PIECE: u64 = PIECE_BYTES_MIN;

pub(super) fn id(number: u8) -> EndpointId {
    let mut id = EndpointId([0; 32]);
    // Where the draw for a piece looks, and where it does not.
    (id.0[0], id.0[31]) = (number, number);
    id
}

fn blob(bytes: u64) -> Blob {
    Blob { hash: HASH, bytes, present: ChunkRanges::empty() }
}

/// A plan of node 100 for a blob, with sources that have all of it.
fn plan(bytes: u64, sources: &[(u8, Tier)]) -> Plan {
    let mut plan = Plan::new(id(100), &[blob(bytes)], 7);
    for (number, tier) in sources {
        plan.join(id(*number), true, *tier);
        plan.learn(id(*number), HASH, &ChunkRanges::all());
    }
    plan
}

#[track_caller]
fn fetch(next: Next) -> Order {
    match next {
        Next::Fetch(order) => order,
        other => panic!("there is something to fetch: {other:?}"),
    }
}

/// Lets a source carry out an order at a speed, and gives the time at its end.
fn deliver(plan: &mut Plan, order: &Order, now_ms: u64, bytes_a_ms: u64) -> u64 {
    let end_ms = now_ms + order.bytes() / bytes_a_ms;
    plan.received(order.number, order.bytes(), end_ms);
    plan.finish(order.number, end_ms);
    end_ms
}

#[test]
fn a_blob_is_cut_into_pieces_that_leave_out_what_is_here() {
    let cut = |bytes, present| Piece::of_blob(0, &Blob { present, ..blob(bytes) });
    let lengths = |pieces: Vec<Piece>| pieces.iter().map(|piece| piece.missing_bytes).collect::<Vec<_>>();
    assert_eq!(lengths(cut(2 * PIECE + 17, ChunkRanges::empty())), [PIECE, PIECE, 17]);
    assert_eq!(lengths(cut(2 * PIECE + 17, ChunkRanges::bytes(0..PIECE + (16 << 10)))), [PIECE - (16 << 10), 17]);
    assert!(cut(PIECE, ChunkRanges::all()).is_empty());
    assert_eq!(cut(8 << 30, ChunkRanges::empty()).len(), 1024, "large blobs have longer pieces");
    assert_eq!(cut(40 << 30, ChunkRanges::empty())[0].missing_bytes, PIECE_BYTES_MAX);
}

#[test]
fn the_end_of_a_blob_is_asked_for_with_the_proof_of_its_length() {
    let order = |ranges| Order { number: 1, hash: HASH, blob_bytes: PIECE + 17, ranges, why: Why::Rest };
    let proves_length = |order: &Order| {
        let request = order.request();
        request != GetRequest::blob_ranges(request.hash, order.ranges.clone())
    };
    assert!(proves_length(&order(ChunkRanges::bytes(PIECE..PIECE + 17))));
    assert!(!proves_length(&order(ChunkRanges::bytes(0..PIECE))), "who has no end of the blob is not asked for it");
}

#[test]
fn a_source_is_asked_only_for_what_it_has() {
    let mut plan = plan(3 * PIECE, &[]);
    plan.join(id(1), true, Tier::Near);
    assert_eq!(plan.take(id(1), 0), Next::Starve);
    let second = ChunkRanges::bytes(PIECE..2 * PIECE);
    assert!(plan.learn(id(1), HASH, &second));
    assert!(!plan.learn(id(1), HASH, &second), "that was known");
    let order = fetch(plan.take(id(1), 0));
    assert_eq!(order.ranges, second);
    assert_eq!(plan.take(id(1), 0), Next::Wait, "what it has is being fetched");
    // Nobody has all of the first piece: a part of it is better than nothing.
    let begin = ChunkRanges::bytes(0..PIECE / 4);
    plan.learn(id(1), HASH, &begin);
    let part = fetch(plan.take(id(1), 0));
    assert_eq!(part.ranges, begin);
    plan.finish(part.number, 1);
    plan.finish(order.number, 1);
    assert!(!plan.has_all(id(1), HASH) && !plan.is_done());
    assert_eq!(plan.take(id(1), 1), Next::Starve);
    plan.learn(id(1), HASH, &ChunkRanges::all());
    assert!(plan.has_all(id(1), HASH));
    let rest: u64 = [1, 1].map(|now| fetch(plan.take(id(1), now)).bytes()).iter().sum();
    assert_eq!(rest, 2 * PIECE - PIECE / 4, "what is here is not asked for again");
}

#[test]
fn what_is_given_back_is_asked_of_somebody_else() {
    let mut plan = plan(2 * PIECE, &[(1, Tier::Near), (2, Tier::Near)]);
    let first = fetch(plan.take(id(1), 0));
    let other = fetch(plan.take(id(2), 0));
    assert!(first.ranges != other.ranges);
    assert_eq!(plan.take(id(2), 0), Next::Wait);
    plan.leave(id(1));
    plan.give_back(first.number, &ChunkRanges::bytes(0..PIECE / 2), 1);
    let again = fetch(plan.take(id(2), 1));
    assert_eq!(again.bytes(), PIECE / 2, "half of it had come");
    plan.finish(again.number, 2);
    plan.finish(other.number, 2);
    assert_eq!(plan.take(id(2), 2), Next::Done);
}

#[test]
fn near_sources_come_first_until_they_would_take_too_long() {
    let mut plan = plan(64 * PIECE, &[(1, Tier::Near), (2, Tier::Far), (3, Tier::Doubtful)]);
    assert_ne!(plan.take(id(2), 0), Next::Done);
    assert!(!matches!(plan.take(id(2), 0), Next::Fetch(_)), "the near one has all of it");
    let order = fetch(plan.take(id(1), 0));
    // A piece in a second: a minute more for what is missing.
    let now = deliver(&mut plan, &order, 0, PIECE / 1000);
    fetch(plan.take(id(1), now));
    assert!(matches!(plan.take(id(2), now), Next::Fetch(_)), "the near one alone would take too long");
    assert!(!matches!(plan.take(id(3), now), Next::Fetch(_)), "whom nobody trusts is asked last");
    plan.leave(id(1));
    plan.leave(id(2));
    assert!(matches!(plan.take(id(3), now), Next::Fetch(_)), "when there is nobody else");
}

#[test]
fn a_fast_source_is_asked_for_more_at_once() {
    let mut plan = plan(512 * PIECE, &[(1, Tier::Near)]);
    let order = fetch(plan.take(id(1), 0));
    assert_eq!(order.bytes(), PIECE, "its speed is not known yet");
    let mut now = deliver(&mut plan, &order, 0, PIECE / 250);
    let order = fetch(plan.take(id(1), now));
    assert_eq!(order.bytes(), PIECE, "a piece in the time of a request");
    for _ in 0..30 {
        let order = fetch(plan.take(id(1), now));
        now = deliver(&mut plan, &order, now, PIECE / 25);
    }
    plan.finish(order.number, now);
    let order = fetch(plan.take(id(1), now));
    assert!((4 * PIECE..=12 * PIECE).contains(&order.bytes()), "{} bytes at ten pieces in that time", order.bytes());
}

#[test]
fn what_a_slow_source_holds_up_is_moved_and_only_a_few_times() {
    let mut plan = plan(2 * PIECE, &[(1, Tier::Near), (2, Tier::Near)]);
    let slow = fetch(plan.take(id(1), 0));
    let fast = fetch(plan.take(id(2), 0));
    assert_eq!(plan.take(id(2), 10), Next::Wait, "nothing is known of its speed");
    let now = deliver(&mut plan, &fast, 0, PIECE / 500);
    plan.received(slow.number, 16 << 10, now);
    assert_eq!(plan.take(id(2), now), Next::TakeBack(slow.number));
    assert_eq!(plan.take(id(2), now), Next::Wait, "once is enough");
    plan.give_back(slow.number, &ChunkRanges::bytes(0..16 << 10), now);
    assert!(!matches!(plan.take(id(1), now), Next::Fetch(_)), "it is for the fast one");
    let again = fetch(plan.take(id(2), now));
    assert_eq!(again.bytes(), PIECE - (16 << 10));
    plan.leave(id(2));
    plan.give_back(again.number, &ChunkRanges::empty(), now);
    assert!(matches!(plan.take(id(1), now), Next::Fetch(_)), "better slow than never");
}

#[test]
fn a_source_that_says_nothing_does_not_hold_up_the_last_piece() {
    let mut plan = plan(2 * PIECE, &[(1, Tier::Near), (2, Tier::Near)]);
    let silent = fetch(plan.take(id(1), 0));
    let order = fetch(plan.take(id(2), 0));
    let now = deliver(&mut plan, &order, 0, PIECE / 400);
    assert_eq!(plan.take(id(2), now), Next::Wait, "it may just have begun");
    assert_eq!(plan.take(id(2), SILENCE_MS), Next::TakeBack(silent.number));
}

#[test]
fn receivers_share_a_whole_source_without_talking() {
    // Three receivers that fetch from source 1: what each takes first is nobody else's.
    let receivers = [101, 102, 103];
    let mut taken = Vec::new();
    for me in receivers {
        let mut plan = Plan::new(id(me), &[blob(60 * PIECE)], u64::from(me));
        plan.join(id(1), true, Tier::Near);
        plan.learn(id(1), HASH, &ChunkRanges::all());
        receivers.iter().filter(|other| **other != me).for_each(|other| plan.join(id(*other), false, Tier::Near));
        for _ in 0..10 {
            taken.push(fetch(plan.take(id(1), 0)).ranges);
        }
    }
    for (at, one) in taken.iter().enumerate() {
        assert!(taken[at + 1..].iter().all(|other| (one & other).is_empty()), "a piece goes out twice");
    }
}

#[test]
fn the_rarest_piece_comes_first() {
    let mut plan = Plan::new(id(100), &[blob(8 * PIECE)], 3);
    for (number, end) in [(1, 8), (2, 7), (3, 6)] {
        plan.join(id(number), false, Tier::Near);
        plan.learn(id(number), HASH, &ChunkRanges::bytes(0..end * PIECE));
    }
    assert_eq!(fetch(plan.take(id(1), 0)).ranges, ChunkRanges::bytes(7 * PIECE..8 * PIECE));
    assert_eq!(fetch(plan.take(id(1), 0)).ranges, ChunkRanges::bytes(6 * PIECE..7 * PIECE));
    plan.leave(id(3));
    plan.leave(id(2));
    assert!(matches!(plan.take(id(1), 0), Next::Fetch(_)));
}

/// Whatever sources do, what is asked of them is what they have, nothing is asked of two at once or again once it is here, and
/// all of it comes as long as somebody has it.
#[test]
fn nothing_is_asked_twice_or_in_vain_and_everything_comes() {
    for seed in 0..300u64 {
        let mut dice = seed;
        let mut roll = |sides: u64| {
            dice = dice.wrapping_add(1);
            mix(dice ^ (seed << 32)) % sides
        };
        let bytes = 1 + roll(12 * PIECE);
        let present = match roll(3) {
            0 => ChunkRanges::empty(),
            _ => {
                let start = roll(bytes);
                ChunkRanges::bytes(start..start + roll(bytes))
            }
        };
        let all = ChunkRanges::bytes(0..bytes);
        let mut here = &all & &present;
        let mut plan = Plan::new(id(100), &[Blob { present: present.clone(), ..blob(bytes) }], seed);
        let mut has: BTreeMap<u8, ChunkRanges> = BTreeMap::new();
        let mut orders: Vec<(u8, Order)> = Vec::new();
        let mut now = 0;
        for step in 0..2000 {
            now += roll(300);
            let source = 1 + u8::try_from(roll(5)).expect("it is small");
            // Somebody reads, or is about to.
            let some = [roll(bytes), roll(bytes)].map(|start| start..start + 1 + roll(bytes));
            match roll(20) {
                0 => plan.expect(&[ahead(step, some.clone())]),
                1 => plan.demand(some.into_iter().map(|range| (HASH, range)), now),
                _ => {}
            }
            // In the end one source has everything and stays.
            let is_ending = step > 400;
            let of_all = |orders: &[(u8, Order)]| {
                orders.iter().fold(ChunkRanges::empty(), |asked, (_, order)| &asked | &order.ranges)
            };
            match if is_ending { 5 + roll(5) } else { roll(10) } {
                0 if !has.contains_key(&source) => {
                    let tier = [Tier::Near, Tier::Far, Tier::Doubtful][usize::try_from(roll(3)).expect("it is small")];
                    plan.join(id(source), roll(2) == 0, tier);
                    has.insert(source, ChunkRanges::empty());
                }
                1 if has.remove(&source).is_some() => plan.leave(id(source)),
                2 | 3 => {
                    if let Some(held) = has.get_mut(&source) {
                        let start = roll(bytes);
                        *held |= ChunkRanges::bytes(start..start + roll(bytes));
                        plan.learn(id(source), HASH, held);
                    }
                }
                5 if is_ending => {
                    if has.insert(9, all.clone()).is_none() {
                        plan.join(id(9), true, Tier::Far);
                    }
                    plan.learn(id(9), HASH, &all);
                }
                6 if !orders.is_empty() => {
                    let at = usize::try_from(roll(orders.len() as u64)).expect("it is small");
                    let (_, order) = orders.swap_remove(at);
                    plan.received(order.number, order.bytes(), now);
                    plan.finish(order.number, now);
                    here |= order.ranges;
                }
                7 if !orders.is_empty() && roll(2) == 0 => {
                    let at = usize::try_from(roll(orders.len() as u64)).expect("it is small");
                    let (_, order) = orders.swap_remove(at);
                    let came = &order.ranges & &ChunkRanges::bytes(0..roll(bytes));
                    here |= came;
                    plan.give_back(order.number, &here, now);
                }
                _ => {
                    let source = if is_ending && roll(2) == 0 { 9 } else { source };
                    match plan.take(id(source), now) {
                        Next::Fetch(order) => {
                            let held = has.get(&source).expect("who has left is asked for nothing");
                            assert!(held.is_superset(&order.ranges), "seed {seed}: it has not all of that");
                            assert!((&order.ranges & &here).is_empty(), "seed {seed}: that is here");
                            assert!((&order.ranges & &of_all(&orders)).is_empty(), "seed {seed}: asked twice");
                            assert!(!order.ranges.is_empty());
                            orders.push((source, order));
                        }
                        Next::TakeBack(number) => {
                            let at = orders.iter().position(|(_, order)| order.number == number);
                            let (_, order) = orders.swap_remove(at.expect("it is in somebody's hands"));
                            plan.give_back(order.number, &here, now);
                        }
                        Next::Done => assert!(here.is_superset(&all), "seed {seed}: something is missing"),
                        Next::Starve => assert!(orders.is_empty()),
                        Next::Wait => {}
                    }
                }
            }
        }
        assert!(plan.is_done() && here.is_superset(&all), "seed {seed}: it never ends");
    }
}

#[test]
fn what_somebody_waits_for_goes_first_and_holds_the_rest_back_for_a_while() {
    let mut plan = plan(64 * PIECE, &[(1, Tier::Near)]);
    assert_eq!(plan.take_demanded(id(1), 0), None);
    let late = 40 * PIECE + 100..40 * PIECE + 5000;
    let later = 60 * PIECE..62 * PIECE;
    plan.demand([(HASH, late.clone()), (HASH, later.clone()), (BlobHash([9; 32]), 0..1)].into_iter(), 10);
    let first = plan.take_demanded(id(1), 10).expect("it has it");
    assert_eq!(first.ranges, ChunkRanges::bytes(late), "no more than is waited for");
    assert_eq!(fetch(plan.take(id(1), 10)).ranges, ChunkRanges::bytes(later.clone()), "by whoever is free");
    assert_eq!(plan.take(id(1), 11), Next::Wait, "the line is left to what may be asked for next");
    assert_eq!(plan.take_demanded(id(1), 11), None, "it is being fetched");
    let order = fetch(plan.take(id(1), 1_000));
    assert!(order.ranges.is_disjoint(&first.ranges), "nobody has asked for more");
    // The rest of the piece is fetched like any other.
    plan.finish(first.number, 1_000);
    plan.demand([(HASH, 40 * PIECE..41 * PIECE)].into_iter(), 1_100);
    let rest = plan.take_demanded(id(1), 1_100).expect("a part of the piece is missing");
    assert_eq!(rest.ranges, &ChunkRanges::bytes(40 * PIECE..41 * PIECE) - &first.ranges);
}

#[test]
fn who_reads_without_end_does_not_keep_the_rest_from_coming() {
    let mut plan = plan(1024 * PIECE, &[(1, Tier::Near)]);
    let mut begun = 0;
    for step in 0..1000 {
        let now_ms = step * 100;
        plan.demand([(HASH, step * 1024..step * 1024 + 1)].into_iter(), now_ms);
        if let Some(order) = plan.take_demanded(id(1), now_ms) {
            plan.finish(order.number, now_ms);
        }
        if let Next::Fetch(order) = plan.take(id(1), now_ms) {
            plan.finish(order.number, now_ms);
            begun += 1;
        }
    }
    assert!((100..=450).contains(&begun), "{begun} of 1000: none in the first minute, and then all the time");
}

#[test]
fn what_somebody_waits_for_comes_from_a_better_source_while_that_has_room() {
    let mut plan = plan(64 * PIECE, &[(1, Tier::Near), (2, Tier::Far), (3, Tier::Doubtful)]);
    plan.demand([(HASH, 0..64 * PIECE)].into_iter(), 0);
    assert_eq!(plan.take_demanded(id(2), 0), None);
    for _ in 0..4 {
        plan.take_demanded(id(1), 0).expect("it has it");
    }
    assert!(plan.take_demanded(id(2), 0).is_some(), "the near one has enough to do");
    assert_eq!(plan.take_demanded(id(3), 0), None, "there are others");
    plan.leave(id(1));
    plan.leave(id(2));
    assert!(plan.take_demanded(id(3), 0).is_some(), "a read waits for nobody better");
}

fn ahead(number: u64, ranges: impl IntoIterator<Item = Range<u64>>) -> Ahead {
    let ranges = ranges.into_iter().map(|Range { start, end }| ByteRange { start, end }).collect();
    Ahead { number, blob: HASH, ranges }
}

#[test]
fn what_is_about_to_be_waited_for_goes_behind_what_is_and_before_the_rest() {
    let mut plan = plan(64 * PIECE, &[(1, Tier::Near)]);
    let (late, early, far) = (50 * PIECE..50 * PIECE + 5000, 3 * PIECE..8 * PIECE, 60 * PIECE..60 * PIECE + 1);
    plan.expect(&[ahead(1, [late.clone(), early.clone(), far.clone()])]);
    plan.demand([(HASH, 40 * PIECE..40 * PIECE + 1)].into_iter(), 10);
    let demanded = fetch(plan.take(id(1), 10));
    assert_eq!((demanded.ranges, demanded.why), (ChunkRanges::bytes(40 * PIECE..40 * PIECE + 1), Why::Waited));
    // While something is waited for, too: whoever waits is about to wait for this.
    let first = fetch(plan.take(id(1), 10));
    let beginning = early.start..early.start + 4 * PIECE - 5 * 1024;
    assert_eq!(first.why, Why::Ahead);
    assert_eq!(
        first.ranges,
        ChunkRanges::bytes(late) | ChunkRanges::bytes(beginning.clone()),
        "a mebibyte, in its order"
    );
    assert_eq!(plan.take_demanded(id(1), 11), None, "nobody waits for that yet");
    // The piece of which the first order has a part is in its hands.
    let second = fetch(plan.take(id(1), 11));
    assert_eq!(second.ranges, ChunkRanges::bytes(7 * PIECE..8 * PIECE) | ChunkRanges::bytes(far));
    assert_eq!(plan.take(id(1), 12), Next::Wait, "the rest is held back");
    plan.finish(first.number, 20);
    assert_eq!(fetch(plan.take(id(1), 20)).ranges, ChunkRanges::bytes(beginning.end..7 * PIECE));
    let rest = fetch(plan.take(id(1), 1_000));
    assert_eq!((rest.why, rest.ranges.boundaries()[0].0), (Why::Rest, 0));
}

#[test]
fn what_is_about_to_be_waited_for_comes_from_whoever_has_it_and_is_forgotten_when_it_is_here() {
    let mut plan = plan(8 * PIECE, &[(1, Tier::Near), (2, Tier::Far)]);
    plan.join(id(3), false, Tier::Near);
    plan.learn(id(3), HASH, &ChunkRanges::bytes(6 * PIECE..7 * PIECE));
    plan.expect(&[
        ahead(1, iter::once(5 * PIECE..7 * PIECE)),
        Ahead { blob: BlobHash([9; 32]), ..ahead(2, iter::once(0..1)) },
    ]);
    let part = plan.take_ahead(id(3), 0).expect("it has a part");
    assert_eq!(part.ranges, ChunkRanges::bytes(6 * PIECE..7 * PIECE));
    assert_eq!(plan.take_ahead(id(2), 0), None, "a nearer one has time for it");
    let other = plan.take_ahead(id(1), 0).expect("it has the rest");
    assert_eq!(other.ranges, ChunkRanges::bytes(5 * PIECE..6 * PIECE));
    assert_eq!(plan.take_ahead(id(1), 0), None, "all of it is asked for");
    plan.finish(part.number, 10);
    plan.give_back(other.number, &ChunkRanges::bytes(5 * PIECE..5 * PIECE + (16 << 10)), 10);
    // The same wishes, as they are told again with each demand.
    plan.expect(&[
        ahead(1, iter::once(5 * PIECE..7 * PIECE)),
        Ahead { blob: BlobHash([9; 32]), ..ahead(2, iter::once(0..1)) },
    ]);
    let rest = plan.take_ahead(id(1), 10).expect("some is missing");
    assert_eq!(rest.ranges, ChunkRanges::bytes(5 * PIECE + (16 << 10)..6 * PIECE));
    plan.finish(rest.number, 20);
    assert_eq!(plan.take_ahead(id(1), 20), None);
    plan.expect(&[ahead(3, iter::once(0..1))]);
    assert!(plan.take_ahead(id(1), 30).is_some());
    plan.expect(&[]);
    assert_eq!(plan.take_ahead(id(1), 30), None, "nobody waits for it any more");
}
