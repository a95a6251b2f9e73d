#![allow(unsafe_code)] // A global allocator cannot be written without it; it only forwards.

//! Counts what the hot loops should do rarely or never: allocations, and the floor's own system calls.
//!
//! A [`Tally`] is 64 counters, each on its own cache line; a thread takes the next one at its first count. So threads
//! do not share a line and a count is one uncontended `fetch_add`, about 4 ns here, paid only by what is counted: a
//! loop that allocates nothing pays nothing. Relaxed throughout: a total is read while the loops are quiet.
//!
//! [`Counting`] is mimalloc with such a tally in front. `realloc` counts as one; freeing is not counted.

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use mimalloc::MiMalloc;

/// More threads than this share counters, which stay right but get slower.
const COUNTERS: usize = 64;

/// Allocations of this process.
pub(crate) static ALLOCATIONS: Tally = Tally::new();
/// System calls that the floor's loops made and counted themselves.
pub(crate) static CALLS: Tally = Tally::new();

#[repr(align(128))] // Two lines: the prefetcher of x86 pulls lines in pairs.
struct Counter(AtomicU64);

/// A count that many threads add to.
pub(crate) struct Tally([Counter; COUNTERS]);

static NEXT_COUNTER: AtomicUsize = AtomicUsize::new(0);
thread_local! {
    // Constant and without a destructor, so that reading it inside the allocator cannot allocate.
    static COUNTER: Cell<usize> = const { Cell::new(usize::MAX) };
}

impl Tally {
    const fn new() -> Self {
        Self([const { Counter(AtomicU64::new(0)) }; COUNTERS])
    }

    /// Adds to this thread's counter.
    #[inline]
    pub(crate) fn add(&self, count: u64) {
        let index = COUNTER.with(|own| {
            if own.get() == usize::MAX {
                own.set(NEXT_COUNTER.fetch_add(1, Ordering::Relaxed) % COUNTERS);
            }
            own.get()
        });
        self.0[index].0.fetch_add(count, Ordering::Relaxed);
    }

    /// The sum over all threads, exited ones included.
    pub(crate) fn total(&self) -> u64 {
        self.0.iter().map(|counter| counter.0.load(Ordering::Relaxed)).sum()
    }
}

/// mimalloc, counted.
pub(crate) struct Counting;

// SAFETY: every method forwards its arguments unchanged to mimalloc, whose contract is the same, and returns what it
// returned; counting touches neither the layout nor the memory. `allocations_are_counted` runs through all of them.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.add(1);
        // SAFETY: the caller's promise is passed on as it is.
        unsafe { MiMalloc.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.add(1);
        // SAFETY: the caller's promise is passed on as it is.
        unsafe { MiMalloc.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        ALLOCATIONS.add(1);
        // SAFETY: the caller's promise is passed on as it is.
        unsafe { MiMalloc.realloc(pointer, layout, bytes) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on as it is.
        unsafe { MiMalloc.dealloc(pointer, layout) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocations_are_counted() {
        let before = ALLOCATIONS.total();
        let mut bytes = std::hint::black_box(vec![0_u8; 100]);
        bytes.reserve_exact(10_000);
        let boxed = std::hint::black_box(Box::new(1_u64));
        assert!(ALLOCATIONS.total() >= before + 3);
        drop((bytes, boxed));
    }

    #[test]
    fn threads_add_up() {
        static TALLY: Tally = Tally::new();
        std::thread::scope(|scope| {
            (0..100).for_each(|_| {
                scope.spawn(|| TALLY.add(3));
            });
        });
        assert_eq!(TALLY.total(), 300);
    }
}
