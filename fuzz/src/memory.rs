//! Measures how much memory something takes at most, by an allocator that counts.
#![allow(unsafe_code, reason = "an allocator is unsafe by its trait; this one passes every call on to the system's")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

thread_local! {
    // Constants without a destructor, so that counting never allocates itself.
    static NOW: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    NOW.set(NOW.get() + bytes);
    PEAK.set(PEAK.get().max(NOW.get()));
}

// SAFETY: each call is the system allocator's, with the same arguments; counting touches numbers of this thread only.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        unsafe { System.dealloc(place, layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, new_bytes: usize) -> *mut u8 {
        count(new_bytes as isize - layout.size() as isize);
        unsafe { System.realloc(place, layout, new_bytes) }
    }
}

/// Does something, and says how many bytes this thread held at most beyond what it held before.
pub(crate) fn measured<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = NOW.get();
    PEAK.set(before);
    let done = work();
    (done, usize::try_from(PEAK.get() - before).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_that_was_held_is_told() {
        let (_, peak) = measured(|| {
            drop(vec![1_u8; 1 << 20]);
            vec![1_u8; 1 << 10]
        });
        assert!((1 << 20..(1 << 20) + 4096).contains(&peak), "{peak}");
        let (kept, _) = measured(|| vec![1_u8; 1 << 16]);
        let (_, peak) = measured(|| drop(kept));
        assert_eq!(peak, 0);
    }
}
