//! Foreign callers whose answers are there are woken a batch at a time: while a shard answers, a caller that runs already would
//! read the lines that it is about to write.
//!
//! Their wakers stay in the blocks, where the watchdog finds them too: a caller whose deadline comes before the batch is full is
//! woken by that, and finds the answer.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use crate::client::completion::Answered;

/// The foreign callers of a shard whose answers are there.
#[derive(Debug)]
pub(crate) struct Callers {
    answered: RefCell<Vec<Answered>>,
    /// The size of a batch just now.
    batch: Cell<usize>,
    /// How many were added since [`paced`](Self::paced) was told last.
    added: Cell<u32>,
}

/// A larger batch makes the first of them wait, and gains nothing more.
const CALLERS_MAX: usize = 32;
/// So long should the first of a batch wait at most.
const CALLERS_WAIT: Duration = Duration::from_micros(20);

impl Callers {
    pub(crate) fn new() -> Self {
        Self { answered: RefCell::default(), batch: Cell::new(CALLERS_MAX), added: Cell::new(0) }
    }

    #[inline]
    pub(crate) fn add(&self, answered: Option<Answered>) {
        let mut list = self.answered.borrow_mut();
        list.extend(answered);
        self.added.set(self.added.get() + 1);
        if list.len() >= self.batch.get() {
            drop(list);
            self.wake();
        }
    }

    /// The last turn took so long: where handlers take their time, callers are woken one by one.
    #[inline]
    pub(crate) fn paced(&self, turn: Duration) {
        let added = self.added.take();
        if added > 0 {
            let batch = CALLERS_WAIT.as_nanos() as u64 * u64::from(added) / (turn.as_nanos() as u64).max(1);
            self.batch.set((batch as usize).clamp(1, CALLERS_MAX));
        }
    }

    #[inline]
    pub(crate) fn wake(&self) {
        if !self.answered.borrow().is_empty() {
            self.wake_some();
        }
    }

    fn wake_some(&self) {
        loop {
            // Not borrowed meanwhile: a waker is somebody else's code.
            let mut answered = self.answered.take();
            answered.drain(..).for_each(Answered::wake);
            let mut place = self.answered.borrow_mut();
            if place.is_empty() {
                *place = answered; // for its memory
                return;
            }
        }
    }
}

impl Drop for Callers {
    fn drop(&mut self) {
        self.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};
    use std::task::{Wake, Waker};

    use super::*;
    use crate::client::completion::Completions;
    use crate::client::completion::tests::answered;

    /// Writes down that it was woken.
    struct Woken(usize, Arc<Mutex<Vec<usize>>>);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.1.lock().unwrap().push(self.0);
        }
    }

    #[test]
    fn where_handlers_take_their_time_callers_are_woken_one_by_one() {
        let (callers, calls) = (Callers::new(), Completions::new());
        let turn = |count: usize, each: Duration| {
            (0..count).for_each(|_| callers.add(answered(&calls, Waker::noop())));
            callers.paced(each * count as u32);
            callers.batch.get()
        };
        assert_eq!(turn(10, Duration::from_micros(100)), 1);
        assert_eq!(turn(0, Duration::from_micros(100)), 1, "a turn without answers says nothing");
        assert_eq!(turn(10, Duration::from_micros(2)), 10);
        assert_eq!(turn(10, Duration::from_nanos(100)), CALLERS_MAX);
        callers.wake();
    }

    #[test]
    fn callers_are_woken_in_the_order_of_their_answers_a_batch_at_a_time_and_nobody_is_forgotten() {
        let woken = Arc::new(Mutex::new(Vec::new()));
        let count = || woken.lock().unwrap().len();
        let callers = Callers::new();
        let calls = Completions::new();
        let add = |n| callers.add(answered(&calls, &Waker::from(Arc::new(Woken(n, woken.clone())))));
        (0..CALLERS_MAX - 1).for_each(add);
        callers.add(None);
        assert_eq!(count(), 0);
        add(CALLERS_MAX - 1);
        assert_eq!(count(), CALLERS_MAX, "no batch is larger");
        add(CALLERS_MAX);
        callers.wake();
        assert_eq!(count(), CALLERS_MAX + 1);
        add(CALLERS_MAX + 1);
        drop(callers);
        assert_eq!(*woken.lock().unwrap(), (0..CALLERS_MAX + 2).collect::<Vec<_>>());
    }
}
