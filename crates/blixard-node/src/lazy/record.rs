//! What a guest reads of its disk while it boots, put together to a record of it.
//!
//! A boot has no end that could be seen from here: it counts as over when nothing new has been read for a while, when it has gone on
//! for long, or when more was read than a record may hold. Reads near each other become one range, because guests read on nearby,
//! and each range costs a part of a request.

use std::ops::Range;

use blixard_core::limits::{BOOT_BYTES_MAX, BOOT_RANGES_MAX};
use blixard_core::{BootRecord, ByteRange};

/// Ranges begin and end where pieces do that are verified together: nothing shorter is ever fetched.
const STEP_BYTES: u64 = 16 << 10;
/// A gap of this length is taken along: on a slow line it takes about as long as a round trip.
const GAP_BYTES: u64 = 64 << 10;
/// The longest gap that is taken along when there are as many ranges as a record may have. What lies further apart is left out.
const GAP_BYTES_MAX: u64 = 1 << 20;
/// Without a new read for this long the boot is over, in milliseconds. Longer than a kernel takes to start on a busy host without
/// hardware for it, between the boot loader's last read and its own first one.
const QUIET_MS: u64 = 20_000;
/// From here on a guest works, whatever it reads: after its first read, in milliseconds.
const BOOT_MS_MAX: u64 = 5 * 60 * 1000;

/// Records one boot. Times are in milliseconds from any beginning.
#[derive(Debug)]
pub(super) struct Recorder {
    disk_bytes: u64,
    /// In the order of their first read; none overlaps another.
    ranges: Vec<Range<u64>>,
    /// When something was first read.
    began_ms: Option<u64>,
    /// When something new was last read.
    news_ms: u64,
    is_over: bool,
}

impl Recorder {
    /// For a disk whose guest is about to start.
    pub(super) fn new(disk_bytes: u64) -> Self {
        Self { disk_bytes, ranges: Vec::new(), began_ms: None, news_ms: 0, is_over: false }
    }

    /// For one whose guest has run for some time: it records nothing.
    pub(super) fn late() -> Self {
        Self { is_over: true, ..Self::new(0) }
    }

    /// Notes that a guest reads this.
    pub(super) fn note(&mut self, read: Range<u64>, now_ms: u64) {
        self.look(now_ms);
        let start = read.start / STEP_BYTES * STEP_BYTES;
        let end = read.end.saturating_add(STEP_BYTES - 1) / STEP_BYTES * STEP_BYTES;
        let read = start..end.min(self.disk_bytes);
        let is_known = self.ranges.iter().any(|range| range.start <= read.start && read.end <= range.end);
        if self.is_over || read.is_empty() || is_known {
            return;
        }
        self.began_ms.get_or_insert(now_ms);
        self.news_ms = now_ms;
        let Some(ranges) = with(&self.ranges, read) else { return };
        if bytes(&ranges) > BOOT_BYTES_MAX {
            self.is_over = true;
        } else {
            self.ranges = ranges;
        }
    }

    fn look(&mut self, now_ms: u64) {
        if let Some(began_ms) = self.began_ms {
            let is_quiet = now_ms.saturating_sub(self.news_ms) >= QUIET_MS;
            self.is_over |= is_quiet || now_ms.saturating_sub(began_ms) >= BOOT_MS_MAX;
        }
    }

    /// The record of a boot that is over, once.
    pub(super) fn take_whole(&mut self, now_ms: u64) -> Option<BootRecord> {
        self.look(now_ms);
        if self.is_over { self.take(true) } else { None }
    }

    /// The record of a boot that cannot be seen any further, once.
    pub(super) fn take_cut(&mut self, now_ms: u64) -> Option<BootRecord> {
        self.look(now_ms);
        let is_whole = std::mem::replace(&mut self.is_over, true);
        self.take(is_whole)
    }

    fn take(&mut self, is_whole: bool) -> Option<BootRecord> {
        let ranges: Vec<ByteRange> =
            self.ranges.drain(..).map(|Range { start, end }| ByteRange { start, end }).collect();
        (!ranges.is_empty()).then_some(BootRecord { ranges, is_whole })
    }
}

fn bytes(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|range| range.end - range.start).sum()
}

/// The ranges with one more: those that it touches, or nearly, are joined at the place of the first of them. Nothing when there
/// is no room for it.
fn with(ranges: &[Range<u64>], mut new: Range<u64>) -> Option<Vec<Range<u64>>> {
    // Each range that is joined may bring the next one near.
    let is_near = |one: &Range<u64>, other: &Range<u64>| {
        one.start <= other.end.saturating_add(GAP_BYTES) && other.start <= one.end.saturating_add(GAP_BYTES)
    };
    let mut rest: Vec<(usize, &Range<u64>)> = ranges.iter().enumerate().collect();
    let mut place = ranges.len();
    while let Some(at) = rest.iter().position(|(_, range)| is_near(range, &new)) {
        let (index, joined) = rest.remove(at);
        new = new.start.min(joined.start)..new.end.max(joined.end);
        place = place.min(index);
    }
    let at = rest.partition_point(|(index, _)| *index < place);
    let mut all: Vec<Range<u64>> = rest.into_iter().map(|(_, range)| range.clone()).collect();
    all.insert(at, new);
    if all.len() > BOOT_RANGES_MAX { closed_up(all) } else { Some(all) }
}

/// The ranges with the shortest gap between any two of them taken along, if it is short enough.
fn closed_up(mut ranges: Vec<Range<u64>>) -> Option<Vec<Range<u64>>> {
    let mut order: Vec<usize> = (0..ranges.len()).collect();
    order.sort_by_key(|index| ranges[*index].start);
    let gap = |pair: &[usize]| ranges[pair[1]].start - ranges[pair[0]].end;
    let pair = order.windows(2).min_by_key(|pair| gap(pair)).filter(|pair| gap(pair) <= GAP_BYTES_MAX)?;
    let (first, second) = (pair[0].min(pair[1]), pair[0].max(pair[1]));
    let joined = ranges[pair[0]].start..ranges[pair[1]].end;
    ranges[first] = joined;
    ranges.remove(second);
    Some(ranges)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KIB: u64 = 1 << 10;
    const MIB: u64 = 1 << 20;
    const DISK: u64 = 8 << 40;

    fn ranges(record: Option<BootRecord>) -> Vec<(u64, u64)> {
        record.map(|record| record.ranges.iter().map(|range| (range.start, range.end)).collect()).unwrap_or_default()
    }

    fn recorded(reads: &[Range<u64>]) -> Vec<(u64, u64)> {
        let mut recorder = Recorder::new(DISK);
        reads.iter().for_each(|read| recorder.note(read.clone(), 0));
        ranges(recorder.take_cut(1))
    }

    #[test]
    fn reads_nearby_become_one_range_at_the_place_of_the_first() {
        let late = 100 * MIB;
        // Out to what is verified together, and in the order in which it was read.
        assert_eq!(recorded(&[late + 100..late + 612, 0..512]), [(late, late + 16 * KIB), (0, 16 * KIB)]);
        assert_eq!(recorded(&[0..512, 80 * KIB..81 * KIB]), [(0, 96 * KIB)], "the gap is taken along");
        assert_eq!(recorded(&[0..512, 96 * KIB..97 * KIB]).len(), 2, "that one is too long");
        let between = [late..late + KIB, 0..KIB, 144 * KIB..145 * KIB, 80 * KIB..81 * KIB];
        assert_eq!(recorded(&between), [(late, late + 16 * KIB), (0, 160 * KIB)], "one may join two");
        assert_eq!(recorded(&[0..KIB, 0..0, 5..5, 512..KIB]), [(0, 16 * KIB)]);
        let mut end = Recorder::new(20 * KIB + 7);
        end.note(17 * KIB..20 * KIB + 7, 0);
        assert_eq!(ranges(end.take_cut(0)), [(16 * KIB, 20 * KIB + 7)], "a disk ends where it ends");
    }

    #[test]
    fn a_boot_is_over_when_it_is_quiet_long_or_large() {
        let mut quiet = Recorder::new(DISK);
        assert_eq!(quiet.take_whole(u64::MAX), None, "it has not begun");
        quiet.note(0..KIB, 1_000);
        quiet.note(MIB..2 * MIB, 15_000);
        // To read the same again is no news.
        quiet.note(0..KIB, 30_000);
        assert_eq!(quiet.take_whole(34_999), None);
        quiet.note(5 * MIB..6 * MIB, 35_000);
        let record = quiet.take_whole(35_000);
        assert!(record.as_ref().is_some_and(|record| record.is_whole));
        assert_eq!(ranges(record), [(0, 16 * KIB), (MIB, 2 * MIB)]);
        assert_eq!(quiet.take_whole(90_000), None, "it is told once");

        let mut long = Recorder::new(DISK);
        (0..=300).for_each(|second| long.note(second * 10 * MIB..second * 10 * MIB + 1, second * 1_000));
        assert!(long.take_whole(300_000).is_some_and(|record| record.is_whole && record.bytes() < 301 * 16 * KIB));

        let mut large = Recorder::new(DISK);
        (0..300).for_each(|at| large.note(at * MIB..(at + 1) * MIB, at));
        assert_eq!(ranges(large.take_whole(300)), [(0, BOOT_BYTES_MAX)]);

        let mut cut = Recorder::new(DISK);
        cut.note(0..KIB, 0);
        assert!(cut.take_cut(19_999).is_some_and(|record| !record.is_whole));
        let mut seen_through = Recorder::new(DISK);
        seen_through.note(0..KIB, 0);
        assert!(seen_through.take_cut(20_000).is_some_and(|record| record.is_whole));
        let mut late = Recorder::late();
        late.note(0..KIB, 0);
        assert_eq!(late.take_cut(0), None);
    }

    #[test]
    fn of_more_places_than_a_record_has_the_nearest_are_joined_and_far_ones_left_out() {
        let far: Vec<Range<u64>> = (0..300).map(|at| at * 10 * MIB..at * 10 * MIB + 1).collect();
        let record = recorded(&far);
        assert_eq!(record.len(), BOOT_RANGES_MAX);
        assert_eq!(record[255].0, 255 * 10 * MIB, "the first ones stay");
        let near: Vec<Range<u64>> = (0..300).map(|at| at * 512 * KIB..at * 512 * KIB + 1).collect();
        let record = recorded(&near);
        assert_eq!(record.len(), BOOT_RANGES_MAX);
        let covers = |read: &Range<u64>| record.iter().any(|(start, end)| *start <= read.start && read.end <= *end);
        assert!(near.iter().all(covers), "nothing is left out");
    }

    proptest! {
        /// Whatever is read, the record is one that the cluster takes, has all that was read but what it had no room for, and
        /// little else.
        #[test]
        fn a_record_has_what_was_read_and_little_else(
            reads in proptest::collection::vec((0_u64..4000, 0_u64..(1 << 20)), 1..600),
            step in prop_oneof![Just(1_u64), Just(40 * KIB), Just(3 * MIB)],
        ) {
            let reads: Vec<Range<u64>> = reads.into_iter().map(|(at, bytes)| at * step..at * step + bytes).collect();
            let mut recorder = Recorder::new(DISK);
            reads.iter().for_each(|read| recorder.note(read.clone(), 0));
            let is_over = recorder.is_over;
            let mut record = ranges(recorder.take_cut(0));
            let covers = |read: &Range<u64>| record.iter().any(|(start, end)| *start <= read.start && read.end <= *end);
            let mut covered = 0;
            for read in reads.iter().filter(|read| !read.is_empty()) {
                let has_it = covers(read);
                prop_assert!(has_it || is_over || record.len() == BOOT_RANGES_MAX, "{read:?} is missing");
                covered += u64::from(has_it) * (read.end - read.start + 2 * STEP_BYTES + GAP_BYTES_MAX);
            }
            prop_assert!(record.len() <= BOOT_RANGES_MAX);
            let bytes: u64 = record.iter().map(|(start, end)| end - start).sum();
            prop_assert!(bytes <= BOOT_BYTES_MAX.min(covered));
            record.sort_unstable();
            prop_assert!(record.windows(2).all(|pair| pair[0].1 <= pair[1].0), "they overlap: {record:?}");
            prop_assert!(record.iter().all(|(start, end)| start < end && *end <= DISK));
        }
    }
}
