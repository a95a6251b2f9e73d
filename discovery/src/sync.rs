//! The one door through which atomics, shared ownership and threads come.
//!
//! Three small structures of the engine are lock-free: the ring between two shards, the doorbell that wakes a shard
//! and the mailbox that swaps its view. Their arguments are about orderings, and orderings cannot be tested by
//! running. So they take every atomic from here, and under `--cfg catga_loom` here means loom, which runs a test
//! once for every schedule, and every stale value, that the memory model allows. In all other builds this is `std`
//! by its own names, and costs nothing.
//!
//! The cfg is not the customary `loom`, because that one would switch the atomics of dependencies as well.
#![forbid(unsafe_code)]

#[cfg(not(catga_loom))]
pub use std::{
    hint,
    sync::{Arc, atomic},
    thread,
};

#[cfg(catga_loom)]
pub use loom::{
    hint,
    sync::{Arc, atomic},
    thread,
};

/// Watches who touches memory that several threads share by agreement, so that loom can find a race in it.
///
/// loom sees only its own cells, and a cell of its own for each byte could not be lent as a slice. This is an array
/// of cells without content beside the memory, one for each unit of it: whoever is about to touch a range of the
/// memory says so here first. Outside of loom it is empty and its methods do nothing.
#[derive(Debug)]
pub struct AccessTracker {
    #[cfg(catga_loom)]
    units: Box<[loom::cell::UnsafeCell<()>]>,
}

impl AccessTracker {
    /// A tracker for `units` units of memory, which nobody has touched yet.
    #[must_use]
    pub fn new(units: usize) -> Self {
        let _ = units;
        Self {
            #[cfg(catga_loom)]
            units: (0..units).map(|_| loom::cell::UnsafeCell::new(())).collect(),
        }
    }

    /// The calling thread reads these units now.
    #[inline]
    pub fn read(&self, units: std::ops::Range<usize>) {
        let _ = &units;
        #[cfg(catga_loom)]
        self.units[units].iter().for_each(|unit| unit.with(|_| ()));
    }

    /// The calling thread writes these units now, or may.
    #[inline]
    pub fn write(&self, units: std::ops::Range<usize>) {
        let _ = &units;
        #[cfg(catga_loom)]
        self.units[units].iter().for_each(|unit| unit.with_mut(|_| ()));
    }
}
