//! When to take what others have written.
//!
//! Two cores that read each other's writes as soon as they are made hand every cache line over on its own, at the price of
//! a miss each. So a shard leaves its answers, and what comes from foreign threads, alone until some have gathered: what
//! it then does in return comes to the other side as one batch too.
//!
//! Some may be long in coming. So it waits a few turns at most, and expects no more than it has got lately.

/// The most turns to wait, about two microseconds.
const TURNS_MAX: u32 = 32;
/// While it waits, one turn of so many is spent on looking.
const TURNS_PER_LOOK: u32 = 8;
/// After a wait in vain as many batches pass until more is waited for again: one in a thousand may come late.
const CONTENT: u32 = 1_000;

/// Decides when a batch is taken. Counts in whatever unit it is asked in: bytes, calls.
#[derive(Debug)]
pub(crate) struct Gather {
    /// Turns that have passed since something was there.
    turns: u32,
    /// What to wait for at most, in sixteenths. Grows slowly while that comes in time.
    most: u64,
    /// In sixteenths.
    limit: u64,
    /// So many batches are taken as they are before more is tried again.
    content: u32,
}

impl Gather {
    /// Waits for no more than `limit`, and at first for `one`: the least that can come.
    pub(crate) fn up_to(limit: u64, one: u64) -> Self {
        Self { turns: 0, most: 16 * one, limit: 16 * limit, content: 0 }
    }

    /// Whether this turn goes by without a look, because the last one found too few: each look takes a cache line away from
    /// who is writing.
    #[inline]
    pub(crate) fn rests(&mut self) -> bool {
        let rests = !self.turns.is_multiple_of(TURNS_PER_LOOK);
        self.turns += u32::from(rests);
        rests
    }

    /// Whether to take what is there now, `wanted` being what would be worth it.
    #[inline]
    pub(crate) fn is_due(&mut self, pending: u64, wanted: u64) -> bool {
        if pending == 0 {
            return false;
        }
        self.turns += 1;
        if pending >= wanted.min(self.most / 16) {
            match self.content.checked_sub(1) {
                Some(content) => self.content = content,
                None => self.most = (self.most + self.most / 16 + 1).min(self.limit),
            }
        } else if self.turns > TURNS_MAX {
            self.most = 16 * pending;
            self.content = CONTENT;
        } else {
            return false;
        }
        self.turns = 0;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Turns until what is pending is taken.
    fn turns(gather: &mut Gather, pending: u64, wanted: u64) -> u32 {
        (1..).find(|_| gather.is_due(pending, wanted)).expect("it is taken some time")
    }

    #[test]
    fn one_alone_is_taken_at_once_and_nothing_waits_for_long() {
        let mut gather = Gather::up_to(100, 1);
        assert!(!gather.is_due(0, 100), "there is nothing to take");
        assert_eq!(turns(&mut gather, 1, 0), 1);
        for pending in [1, 2, 50, 1_000] {
            assert!(turns(&mut gather, pending, u64::MAX) <= TURNS_MAX + 1);
        }
    }

    #[test]
    fn what_comes_one_by_one_is_hardly_ever_waited_with() {
        let mut gather = Gather::up_to(100, 1);
        let late = (0..10_000).filter(|_| turns(&mut gather, 1, u64::MAX) > 1).count();
        assert!(late <= 10, "{late} of 10,000 were waited with");
    }

    #[test]
    fn while_it_waits_it_looks_now_and_then_and_else_in_every_turn() {
        let mut gather = Gather::up_to(100, 100);
        assert!((0..100).all(|_| !gather.rests() && !gather.is_due(0, 100)), "nothing is there to wait with");
        let (mut looks, mut turns) = (0, 0);
        loop {
            turns += 1;
            if !gather.rests() {
                looks += 1;
                if gather.is_due(1, 100) {
                    break;
                }
            }
        }
        assert_eq!((looks, turns), (5, TURNS_MAX + 1));
        assert!(!gather.rests(), "it begins anew");
    }

    #[test]
    fn batches_grow_while_they_come_in_time_and_shrink_at_once_when_they_do_not() {
        let mut gather = Gather::up_to(100, 1);
        let mut size = 1;
        while gather.most < gather.limit {
            assert_eq!(turns(&mut gather, size, u64::MAX), 1);
            size = gather.most / 16;
        }
        assert_eq!(turns(&mut gather, 99, u64::MAX), TURNS_MAX + 1, "for the limit it waits");
        assert_eq!(turns(&mut gather, 1, u64::MAX), TURNS_MAX + 1);
        assert_eq!(turns(&mut gather, 1, u64::MAX), 1, "and now it expects as little as it got");
    }
}
