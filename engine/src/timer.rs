//! Timers of one shard: sleeping handlers, and what a service does periodically.
//!
//! They use the turn's `now` and nothing else, so the simulator controls them: in virtual time a sleep of an hour costs
//! nothing. All timers of a shard are in one indexed min-heap:
//!
//! ```text
//!   order  [ at, number, due, slot ] …   a binary heap, the next one first; equal times in the order they were made
//!              ▲               │
//!        place └──── slots ◀───┘         where each timer is in the heap, so that a dropped sleep is taken out at once
//! ```
//!
//! So nothing is left of a sleep that was dropped: there are as many entries as there are futures that sleep. The time
//! of the first one is kept beside the heap: a turn in which no timer has come costs one comparison.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll, Waker};
use std::time::Duration;

use crate::context::Context;
use crate::time::{Time, nanoseconds};

/// What happens when a timer comes.
#[derive(Debug)]
pub(crate) enum Due {
    /// The shard's first turn: its instances are told what they own, and their periods begin.
    Begin,
    /// A sleep is over.
    Wake(Waker),
    /// A service's periodic work: which instance of the shard, and which of its periods.
    Tick { instance: usize, which: usize },
}

/// A timer that was set. Its number is never given twice, so the id of one that has come names none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TimerId {
    slot: usize,
    number: u64,
}

#[derive(Debug)]
struct Entry {
    at: Time,
    number: u64,
    slot: usize,
    due: Due,
}

impl Entry {
    fn is_before(&self, other: &Self) -> bool {
        (self.at, self.number) < (other.at, other.number)
    }
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    /// Where its timer is in the heap; [`FREE`] if it has none.
    place: usize,
    number: u64,
}

const FREE: usize = usize::MAX;

#[derive(Debug, Default)]
struct Heap {
    order: Vec<Entry>,
    slots: Vec<Slot>,
    free: Vec<usize>,
    made: u64,
}

/// The timers of one shard.
#[derive(Debug)]
pub(crate) struct Timers {
    next: Cell<Time>,
    heap: RefCell<Heap>,
}

impl Default for Timers {
    fn default() -> Self {
        Self { next: Cell::new(Time::NEVER), heap: RefCell::default() }
    }
}

impl Timers {
    /// When the next timer comes; [`Time::NEVER`] if none is set.
    #[inline]
    pub(crate) fn next(&self) -> Time {
        self.next.get()
    }

    /// How many are set.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.heap.borrow().order.len()
    }

    pub(crate) fn set(&self, at: Time, due: Due) -> TimerId {
        let mut heap = self.heap.borrow_mut();
        let id = heap.insert(at, due);
        self.next.set(heap.first());
        id
    }

    /// Takes a timer out, if it has not come yet.
    pub(crate) fn cancel(&self, id: TimerId) {
        let due = {
            let mut heap = self.heap.borrow_mut();
            let due = heap.place_of(id).map(|place| heap.remove(place));
            self.next.set(heap.first());
            due
        };
        // Outside of the borrow: dropping a waker may drop futures that sleep.
        drop(due);
    }

    /// Lets a sleep wake someone else, if it has not come yet. Says whether it has not.
    fn wake_instead(&self, id: TimerId, waker: &Waker) -> bool {
        let mut heap = self.heap.borrow_mut();
        let Some(place) = heap.place_of(id) else { return false };
        let before = match &mut heap.order[place].due {
            Due::Wake(known) if !known.will_wake(waker) => Some(std::mem::replace(known, waker.clone())),
            _ => None,
        };
        drop(heap);
        drop(before); // as in `cancel`
        true
    }

    /// Takes all of them out.
    pub(crate) fn take_all(&self) -> Vec<Due> {
        self.next.set(Time::NEVER);
        let order = self.heap.take().order;
        order.into_iter().map(|entry| entry.due).collect()
    }

    /// Takes out the next timer that has come by `now`, with when it was due.
    pub(crate) fn pop(&self, now: Time) -> Option<(Time, Due)> {
        let mut heap = self.heap.borrow_mut();
        let at = heap.first();
        if heap.order.is_empty() || at > now {
            return None;
        }
        let due = heap.remove(0);
        self.next.set(heap.first());
        Some((at, due))
    }
}

impl Heap {
    fn first(&self) -> Time {
        self.order.first().map_or(Time::NEVER, |entry| entry.at)
    }

    fn insert(&mut self, at: Time, due: Due) -> TimerId {
        let number = self.made;
        self.made += 1;
        let place = self.order.len();
        let filled = Slot { place, number };
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot] = filled;
                slot
            }
            None => {
                self.slots.push(filled);
                self.slots.len() - 1
            }
        };
        self.order.push(Entry { at, number, slot, due });
        self.rise(place);
        self.invariants();
        TimerId { slot, number }
    }

    fn place_of(&self, id: TimerId) -> Option<usize> {
        let slot = self.slots.get(id.slot)?;
        (slot.place != FREE && slot.number == id.number).then_some(slot.place)
    }

    fn remove(&mut self, place: usize) -> Due {
        let Entry { slot, due, .. } = self.order.swap_remove(place);
        self.slots[slot].place = FREE;
        self.free.push(slot);
        if let Some(moved) = self.order.get(place) {
            self.slots[moved.slot].place = place;
            self.rise(place);
            self.sink(place);
        }
        self.invariants();
        due
    }

    fn rise(&mut self, mut place: usize) {
        while place > 0 {
            let above = (place - 1) / 2;
            if !self.order[place].is_before(&self.order[above]) {
                return;
            }
            self.swap(place, above);
            place = above;
        }
    }

    fn sink(&mut self, mut place: usize) {
        loop {
            let below = 2 * place + 1;
            let mut first = place;
            for child in [below, below + 1] {
                if child < self.order.len() && self.order[child].is_before(&self.order[first]) {
                    first = child;
                }
            }
            if first == place {
                return;
            }
            self.swap(place, first);
            place = first;
        }
    }

    fn swap(&mut self, left: usize, right: usize) {
        self.order.swap(left, right);
        for place in [left, right] {
            self.slots[self.order[place].slot].place = place;
        }
    }

    fn invariants(&self) {
        debug_assert_eq!(self.order.len() + self.free.len(), self.slots.len(), "a slot is used or free");
        #[cfg(test)]
        for (place, entry) in self.order.iter().enumerate() {
            let slot = &self.slots[entry.slot];
            assert!(slot.place == place && slot.number == entry.number, "a timer knows its place");
            assert!(place == 0 || !entry.is_before(&self.order[(place - 1) / 2]), "a heap");
        }
    }
}

/// The first tick after `now` of those that come every `period`, one of which was `due`. What was missed is skipped.
pub(crate) fn tick_after(due: Time, period: Duration, now: Time) -> Time {
    let period = nanoseconds(period).max(1);
    let passed = now.as_nanos().saturating_sub(due.as_nanos()) / period;
    Time::from_nanos(due.as_nanos().saturating_add(period.saturating_mul(passed + 1)))
}

/// A future that is ready after some time. Made by [`Context::sleep`].
#[derive(Debug)]
#[must_use = "it sleeps when it is awaited"]
pub struct Sleep<'a> {
    ctx: &'a Context,
    at: Time,
    timer: Option<TimerId>,
}

impl<'a> Sleep<'a> {
    pub(crate) fn until(ctx: &'a Context, at: Time) -> Self {
        Self { ctx, at, timer: None }
    }
}

impl Future for Sleep<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<()> {
        let core = self.ctx.core();
        if core.now() >= self.at {
            return Poll::Ready(());
        }
        if !self.timer.is_some_and(|id| core.timers.wake_instead(id, cx.waker())) {
            let id = core.timers.set(self.at, Due::Wake(cx.waker().clone()));
            self.timer = Some(id);
        }
        Poll::Pending
    }
}

impl Drop for Sleep<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.timer {
            self.ctx.core().timers.cancel(id);
        }
    }
}

/// Ticks at equal distances. Made by [`Context::every`].
#[derive(Debug)]
pub struct Every<'a> {
    ctx: &'a Context,
    next: Time,
    period: Duration,
}

impl<'a> Every<'a> {
    pub(crate) fn new(ctx: &'a Context, period: Duration) -> Self {
        // Less than the clock's grain would be a tick that is always there.
        let period = period.max(Duration::from_nanos(1));
        Self { ctx, next: ctx.core().now() + period, period }
    }

    /// Waits for the next tick: the first comes one period after [`Context::every`]. At most one comes in each turn.
    ///
    /// Ticks that were missed, because the handler did something else or the shard was busy, are skipped and not made
    /// up: the next one comes at the next multiple of the period. Dropping the future loses no tick.
    pub async fn tick(&mut self) {
        Sleep::until(self.ctx, self.next).await;
        self.next = tick_after(self.next, self.period, self.ctx.core().now());
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::runtime::simulated::rng::Rng;

    fn tick(which: usize) -> Due {
        Due::Tick { instance: 0, which }
    }

    /// Against a sorted map, under random operations.
    #[test]
    fn timers_come_in_order_and_cancelled_ones_do_not_come() {
        let mut rng = Rng::new(7);
        let timers = Timers::default();
        let mut model = BTreeMap::new();
        let mut ids = Vec::new();
        let mut now = 0;
        for which in 0..20_000 {
            match rng.below(5) {
                0 | 1 => {
                    let at = Time::from_nanos(now + rng.below(200));
                    ids.push((at, which, timers.set(at, tick(which))));
                    model.insert((at, which), ());
                }
                2 if !ids.is_empty() => {
                    // Also of timers that have come, whose slots are used again.
                    let (at, which, id) = ids[rng.below(ids.len() as u64) as usize];
                    timers.cancel(id);
                    model.remove(&(at, which));
                }
                _ => {
                    now += rng.below(30);
                    let expected = model.first_key_value().map(|(key, ())| *key);
                    let expected = expected.filter(|(at, _)| *at <= Time::from_nanos(now));
                    let popped = timers.pop(Time::from_nanos(now)).map(|(at, due)| match due {
                        Due::Tick { which, .. } => (at, which),
                        other => panic!("{other:?}"),
                    });
                    assert_eq!(popped, expected);
                    expected.map(|key| model.remove(&key));
                }
            }
            let first = model.first_key_value().map_or(Time::NEVER, |((at, _), ())| *at);
            assert_eq!((timers.next(), timers.len()), (first, model.len()));
        }
    }

    #[test]
    fn what_is_cancelled_leaves_no_growth() {
        let timers = Timers::default();
        for at in 0..10_000 {
            let id = timers.set(Time::from_nanos(at), tick(0));
            let other = timers.set(Time::from_nanos(at / 2), tick(0));
            timers.cancel(id);
            timers.cancel(other);
        }
        let heap = timers.heap.borrow();
        assert_eq!((heap.order.len(), heap.slots.len(), heap.free.len()), (0, 2, 2));
    }

    #[test]
    fn missed_ticks_are_skipped_and_the_next_keeps_the_beat() {
        let (due, period) = (Time::from_nanos(100), Duration::from_nanos(10));
        let after = |now| tick_after(due, period, Time::from_nanos(now)).as_nanos();
        assert_eq!([after(90), after(100), after(109), after(110), after(135)], [110, 110, 110, 120, 140]);
        assert_eq!(tick_after(due, Duration::MAX, Time::from_nanos(100)), Time::NEVER);
        assert_eq!(tick_after(due, Duration::ZERO, Time::from_nanos(100)), Time::from_nanos(101));
    }
}
