//! One exchange between two threads: a block of memory that goes there with the request and comes back with the answer.
//!
//! The block is all that both sides touch: what travels, the bits that say whose it is, and whom to wake. So a call from
//! a foreign thread moves two adjacent cache lines there and back, and not one line each for a box, a cell, a counter of
//! references and a waker.
//!
//! ```text
//!            ┌──────────────────── Spare ◀──────────────┐
//!            │ open                                     │ whoever comes second
//!            ▼                                          │
//!   Duty (the one who answers)    fulfil ─▶ ANSWERED ───┤
//!   Wait (the one who asked)     give_up ─▶ GIVEN_UP ───┘
//! ```
//!
//! Two more bits: `TAKEN` is set by the one who answers when the request may have begun to run; it and `GIVEN_UP` decide
//! between themselves, by their order, whether a call that was given up ran. `EXPIRED` is set by anybody, and wakes the one who
//! waits, to look at the clock.
//!
//! **Ownership.** The content belongs to whoever holds the [`Spare`] or the [`Duty`], of which there is one at any time: `open`
//! makes one of the other, and the way back is made once, by whoever sets the second of the bits `ANSWERED` and `GIVEN_UP`.
//! **Ordering.** Both are set by read-modify-writes that acquire and release, so the second sees all that the first has
//! written.
//!
//! Blocks live for ever: then nobody has to count who still knows one. Whoever makes them uses them again.
#![allow(unsafe_code)] // two threads share the content by agreement

pub(crate) mod pile;

use std::cell::UnsafeCell;
use std::fmt;
use std::task::Waker;

use atomic_waker::AtomicWaker;
use catga_discovery::sync::AccessTracker;
use catga_discovery::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use crate::panics::guarded;

const TAKEN: u8 = 1;
const GIVEN_UP: u8 = 2;
const ANSWERED: u8 = 4;
const EXPIRED: u8 = 8;

/// A block: its content `T` belongs to one side at a time, `S` is everybody's.
// Two lines, which the processor fetches as a pair.
#[repr(C, align(128))]
pub(crate) struct Block<S, T> {
    state: AtomicU8,
    /// Its number in its pile, and the block that lies under it: see [`pile`].
    number: AtomicU32,
    below: AtomicU32,
    waker: AtomicWaker,
    shared: S,
    content: UnsafeCell<T>,
    tracker: AccessTracker,
}

// SAFETY: `content` is only reached through a `Spare` or a `Duty`, of which there is at most one for each block (see the
// module; `one_side_at_a_time_has_the_content` under loom breaks otherwise), so it is sent between threads and never shared.
unsafe impl<S: Sync, T: Send> Sync for Block<S, T> {}

impl<S, T> Block<S, T> {
    pub(crate) fn shared(&self) -> &S {
        &self.shared
    }

    /// Tells the one who waits, if there is one, to look at the clock.
    pub(crate) fn expire(&self) {
        self.state.fetch_or(EXPIRED, Ordering::AcqRel); // pairs with `Wait::is_expired`
        self.wake();
    }

    /// Wakes the one who waits, if there is one. The block may serve another exchange by now: then that one looks around once
    /// in vain.
    pub(crate) fn wake(&self) {
        guarded(|| self.waker.wake());
    }

    /// # Safety
    /// The caller holds the block's `Spare` or `Duty`, and lends it for as long as the content is borrowed.
    #[inline]
    unsafe fn content(&self) -> *mut T {
        self.tracker.write(0..1);
        self.content.get()
    }
}

impl<S, T> fmt::Debug for Block<S, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Block").field("state", &self.state).finish_non_exhaustive()
    }
}

/// A block that serves no exchange.
#[must_use = "a block that is dropped is never used again"]
pub(crate) struct Spare<S: 'static, T: 'static>(&'static Block<S, T>);

impl<S, T> Spare<S, T> {
    /// Makes a block, for ever.
    pub(crate) fn new(shared: S, content: T) -> Self {
        Self(Box::leak(Box::new(Block {
            state: AtomicU8::new(0),
            number: AtomicU32::new(u32::MAX),
            below: AtomicU32::new(0),
            waker: AtomicWaker::new(),
            shared,
            content: UnsafeCell::new(content),
            tracker: AccessTracker::new(1),
        })))
    }

    pub(crate) fn block(&self) -> &'static Block<S, T> {
        self.0
    }

    pub(crate) fn content(&mut self) -> &mut T {
        // SAFETY: this is the block's `Spare`, borrowed for as long.
        unsafe { &mut *self.0.content() }
    }

    /// Whom to wake in the exchange that begins next.
    #[inline]
    pub(crate) fn will_wake(&mut self, waker: &Waker) {
        self.0.waker.register(waker);
    }

    /// There will be none: wakes nobody.
    pub(crate) fn will_wake_nobody(&mut self) {
        drop(self.0.waker.take());
    }

    /// Begins an exchange.
    #[inline]
    pub(crate) fn open(self) -> (Duty<S, T>, Wait<S, T>) {
        // Relaxed: whatever brings the duty to another thread synchronises. Nobody else writes now but who is late with
        // `EXPIRED`, and that wakes once in vain.
        self.0.state.store(0, Ordering::Relaxed);
        (Duty(self.0), Wait(self.0))
    }
}

/// The side that answers.
#[must_use = "a duty that is dropped leaves somebody waiting"]
pub(crate) struct Duty<S: 'static, T: 'static>(&'static Block<S, T>);

impl<S, T> Duty<S, T> {
    pub(crate) fn content(&mut self) -> &mut T {
        // SAFETY: this is the block's `Duty`, borrowed for as long.
        unsafe { &mut *self.0.content() }
    }

    /// From here on the request may run. Says no if it was given up before.
    #[inline]
    pub(crate) fn take(&self) -> bool {
        // AcqRel: pairs with `give_up`; the order of the two decides whether the request runs.
        self.0.state.fetch_or(TAKEN, Ordering::AcqRel) & GIVEN_UP == 0
    }

    /// Whether nobody waits any more.
    pub(crate) fn is_given_up(&self) -> bool {
        self.0.state.load(Ordering::Acquire) & GIVEN_UP != 0 // pairs with `give_up`
    }

    /// The content is the answer now. If nobody waits for it, the block comes back here; else whoever waits is to be woken.
    #[inline]
    pub(crate) fn fulfil(self) -> Fulfilled<S, T> {
        // AcqRel: pairs with the caller's side. From here on the content is not ours, unless the other one was first.
        if self.0.state.fetch_or(ANSWERED, Ordering::AcqRel) & GIVEN_UP != 0 {
            return Fulfilled::InVain(Spare(self.0));
        }
        Fulfilled::Awaited(self.0)
    }
}

/// What came of an answer.
#[must_use = "somebody may be waiting"]
pub(crate) enum Fulfilled<S: 'static, T: 'static> {
    /// Somebody waits for it.
    Awaited(&'static Block<S, T>),
    /// Nobody waits.
    InVain(Spare<S, T>),
}

impl<S, T> fmt::Debug for Duty<S, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The side that asked.
#[must_use = "an exchange that is not waited for must be given up"]
pub(crate) struct Wait<S: 'static, T: 'static>(&'static Block<S, T>);

/// What became of an exchange that was given up.
pub(crate) enum GivenUp<S: 'static, T: 'static> {
    /// It had been answered just before.
    Answered(Spare<S, T>),
    /// Nobody had taken the request, and nobody will.
    Unsent,
    /// The request may run, or have run.
    Taken,
}

impl<S, T> Wait<S, T> {
    pub(crate) fn block(&self) -> &'static Block<S, T> {
        self.0
    }

    /// Whether the answer is there.
    #[inline]
    pub(crate) fn is_answered(&self) -> bool {
        self.0.state.load(Ordering::Acquire) & ANSWERED != 0 // pairs with `fulfil`
    }

    /// The block with the answer, if it is there.
    #[inline]
    pub(crate) fn answer(self) -> Result<Spare<S, T>, Self> {
        // The duty has ended with the bit, and this side ends here without having given up.
        if self.is_answered() { Ok(Spare(self.0)) } else { Err(self) }
    }

    /// Notes anew whom to wake. Look for an answer, and whether it has expired, afterwards.
    pub(crate) fn register(&self, waker: &Waker) {
        self.0.waker.register(waker);
    }

    /// Whether somebody has found the time over since this was asked last. That may have been meant for the exchange before.
    pub(crate) fn take_expired(&self) -> bool {
        // AcqRel, both: pairs with `expire`. Cleared before the clock is read: who sets it from now on finds the clock further.
        self.0.state.load(Ordering::Acquire) & EXPIRED != 0
            && self.0.state.fetch_and(!EXPIRED, Ordering::AcqRel) & EXPIRED != 0
    }

    /// Does not wait any longer.
    pub(crate) fn give_up(self) -> GivenUp<S, T> {
        // AcqRel: pairs with `take` and `fulfil`; their order decides.
        let before = self.0.state.fetch_or(GIVEN_UP, Ordering::AcqRel);
        if before & ANSWERED != 0 {
            GivenUp::Answered(Spare(self.0))
        } else if before & TAKEN != 0 {
            GivenUp::Taken
        } else {
            GivenUp::Unsent
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;
    #[cfg(not(catga_loom))]
    use std::thread;

    #[cfg(catga_loom)]
    use loom::thread;

    use super::*;

    pub(super) fn explored(check: impl Fn() + Send + Sync + 'static) {
        #[cfg(catga_loom)]
        loom::model(check);
        #[cfg(not(catga_loom))]
        (0..1_000).for_each(|_| check());
    }

    fn begin() -> (Duty<(), u32>, Wait<(), u32>) {
        let mut spare = Spare::new((), 0);
        *spare.content() = 1;
        spare.will_wake(Waker::noop());
        spare.open()
    }

    fn left<S, T>(fulfilled: Fulfilled<S, T>) -> Option<Spare<S, T>> {
        match fulfilled {
            Fulfilled::InVain(spare) => Some(spare),
            Fulfilled::Awaited(_) => None,
        }
    }

    #[test]
    fn one_side_at_a_time_has_the_content() {
        explored(|| {
            let (mut duty, wait) = begin();
            let answering = thread::spawn(move || {
                duty.take();
                *duty.content() += 1;
                left(duty.fulfil()).map(|mut spare| *spare.content())
            });
            let kept = match wait.answer() {
                Ok(mut spare) => Some(*spare.content()),
                Err(wait) => match wait.give_up() {
                    GivenUp::Answered(mut spare) => Some(*spare.content()),
                    GivenUp::Unsent | GivenUp::Taken => None,
                },
            };
            let given_back = answering.join().unwrap();
            assert_eq!([kept, given_back].into_iter().flatten().collect::<Vec<_>>(), [2], "to one of them");
        });
    }

    #[test]
    fn a_request_that_was_given_up_unsent_is_not_taken() {
        explored(|| {
            let (duty, wait) = begin();
            let answering = thread::spawn(move || {
                let taken = duty.take();
                let _ = left(duty.fulfil());
                taken
            });
            let unsent = matches!(wait.give_up(), GivenUp::Unsent);
            let taken = answering.join().unwrap();
            assert!(!(unsent && taken), "it ran although its caller was told that it had not");
        });
    }

    #[test]
    fn a_block_is_used_again_by_either_side() {
        explored(|| {
            let (duty, wait) = begin();
            let answering = thread::spawn(move || {
                let mut duty = duty;
                *duty.content() += 1;
                left(duty.fulfil()).map(Spare::open)
            });
            let again = match wait.give_up() {
                GivenUp::Answered(spare) => Some(spare.open()),
                GivenUp::Unsent | GivenUp::Taken => None,
            };
            let there = answering.join().unwrap();
            let (mut duty, wait) = again.or(there).expect("one of them has it");
            assert_eq!(*duty.content(), 2);
            *duty.content() = 3;
            assert!(left(duty.fulfil()).is_none());
            assert_eq!(wait.answer().map(|mut spare| *spare.content()).ok(), Some(3));
        });
    }

    #[test]
    fn expiry_is_told_once() {
        explored(|| {
            let (duty, wait) = begin();
            let block = wait.block();
            let watchdog = thread::spawn(move || block.expire());
            let early = wait.take_expired();
            watchdog.join().unwrap();
            assert_eq!([early, wait.take_expired()].into_iter().filter(|told| *told).count(), 1);
            assert!(!wait.take_expired());
            assert!(left(duty.fulfil()).is_none());
            assert!(wait.is_answered());
        });
    }
}
