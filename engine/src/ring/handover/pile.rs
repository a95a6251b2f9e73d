//! Blocks that serve no exchange, to be used again: a stack, so that the one put back last comes first, whose lines are
//! still in that core's cache.
//!
//! Who pushes or pops swings `top` from one block to another. Who was about to pop, and meanwhile the same block was popped and
//! pushed again, would leave the wrong one on top: so `top` also counts its changes.

use std::sync::OnceLock;

use catga_discovery::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::{Block, Spare};

/// A bounded number of blocks, made as they are asked for.
pub(crate) struct Pile<S: 'static, T: 'static> {
    /// Those that belong here, up to `count`; each place is filled once, by who drew its number.
    blocks: Box<[OnceLock<&'static Block<S, T>>]>,
    count: AtomicUsize,
    /// The number, plus one, of the block on top; 0 if there is none. In the upper half the count of the changes.
    top: AtomicU64,
}

const CHANGE: u64 = 1 << 32;

/// A new state of the top: this block is it, or none.
const fn top_with(before: u64, block: u32) -> u64 {
    (before & !(CHANGE - 1)).wrapping_add(CHANGE) | block as u64
}

impl<S, T> Pile<S, T> {
    /// Empty; so many blocks may belong to it.
    pub(crate) fn new(blocks_max: u32) -> Self {
        let blocks = (0..blocks_max).map(|_| OnceLock::new()).collect();
        Self { blocks, count: AtomicUsize::new(0), top: AtomicU64::new(0) }
    }

    /// All blocks that belong to it, spare or not.
    pub(crate) fn all(&self) -> impl Iterator<Item = &'static Block<S, T>> {
        // Acquire: pairs with the AcqRel in `adopt`.
        self.blocks[..self.count.load(Ordering::Acquire)].iter().filter_map(OnceLock::get).copied()
    }

    /// How many belong to it.
    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed) // for people
    }

    /// A block that belongs to it from now on, if it may have one more.
    #[cold]
    pub(crate) fn adopt(&self, find: impl FnOnce() -> Spare<S, T>) -> Option<Spare<S, T>> {
        let place = self.count.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |count| {
            (count < self.blocks.len()).then_some(count + 1)
        });
        let (place, spare) = (place.ok()?, find());
        // Relaxed: read by who holds the block.
        spare.0.number.store(place as u32, Ordering::Relaxed);
        self.blocks[place].get_or_init(|| spare.0);
        Some(spare)
    }

    /// The block that was put back last.
    #[inline]
    pub(crate) fn pop(&self) -> Option<Spare<S, T>> {
        let mut top = self.top.load(Ordering::Acquire);
        loop {
            let block = *self.blocks.get((top as u32).checked_sub(1)? as usize)?.get()?;
            // If somebody else pops the block meanwhile this may be anything; but then the top has changed.
            let below = block.below.load(Ordering::Relaxed);
            // Acquire: pairs with the Release in `push`.
            let changed = self.top.compare_exchange_weak(
                top,
                top_with(top, below),
                Ordering::Acquire,
                Ordering::Acquire,
            );
            match changed {
                // A block lies here once, by its `Spare`, and this took it out.
                Ok(_) => return Some(Spare(block)),
                Err(other) => top = other,
            }
        }
    }

    /// Puts a block back. Gives it back to the caller if it does not belong here.
    #[inline]
    pub(crate) fn push(&self, spare: Spare<S, T>) -> Result<(), Spare<S, T>> {
        let number = spare.0.number.load(Ordering::Relaxed);
        let own = self.blocks.get(number as usize).and_then(OnceLock::get);
        if !own.is_some_and(|own| std::ptr::eq(*own, spare.0)) {
            return Err(spare);
        }
        let mut top = self.top.load(Ordering::Relaxed);
        loop {
            spare.0.below.store(top as u32, Ordering::Relaxed);
            // Release: who pops the block sees what was done with it. That also holds for those below, because every change in
            // between is a read-modify-write.
            let changed = self.top.compare_exchange_weak(
                top,
                top_with(top, number + 1),
                Ordering::Release,
                Ordering::Relaxed,
            );
            match changed {
                Ok(_) => return Ok(()),
                Err(other) => top = other,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use catga_discovery::sync::Arc;
    #[cfg(not(catga_loom))]
    use std::thread;

    #[cfg(catga_loom)]
    use loom::thread;

    use super::super::tests::explored;
    use super::*;

    fn pile(blocks: u32) -> Arc<Pile<(), u32>> {
        let pile = Pile::new(blocks);
        let spares: Vec<_> = (0..blocks).filter_map(|n| pile.adopt(|| Spare::new((), n))).collect();
        assert!(spares.into_iter().all(|spare| pile.push(spare).is_ok()));
        Arc::new(pile)
    }

    #[test]
    fn the_last_that_was_put_back_comes_first_and_no_more_than_there_may_be() {
        explored(|| {
            let pile = pile(2);
            let (mut one, mut zero) = (pile.pop().unwrap(), pile.pop().unwrap());
            assert_eq!((*one.content(), *zero.content()), (1, 0));
            assert!(pile.pop().is_none());
            assert!(pile.adopt(|| unreachable!("there is no room")).is_none());
            assert!(pile.push(zero).is_ok());
            assert_eq!(*pile.pop().unwrap().content(), 0);
            drop(one);
        });
    }

    #[test]
    fn a_block_of_another_pile_does_not_lie_here() {
        explored(|| {
            let (here, there) = (pile(1), pile(1));
            let (own, other) = (here.pop().unwrap(), there.pop().unwrap());
            assert!(here.push(other).is_err());
            assert!(here.push(own).is_ok());
        });
    }

    #[test]
    fn two_threads_never_hold_the_same_block() {
        explored(|| {
            let pile = pile(2);
            let use_one = |pile: &Pile<(), u32>| {
                if let Some(mut spare) = pile.pop() {
                    *spare.content() += 10; // loom finds whoever else does so
                    assert!(pile.push(spare).is_ok());
                }
            };
            let other = pile.clone();
            let thread = thread::spawn(move || {
                use_one(&other);
                use_one(&other);
            });
            let (first, second) = (pile.pop(), pile.pop());
            for spare in [first, second].into_iter().flatten() {
                assert!(pile.push(spare).is_ok());
            }
            thread.join().unwrap();
            assert!(pile.pop().is_some() && pile.pop().is_some() && pile.pop().is_none());
        });
    }
}
