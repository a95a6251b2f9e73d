//! The way into a shard from outside: an MPMC queue, bounded, with a doorbell.
//!
//! Foreign threads push calls and events, other shards push lanes that they accepted. Who finds the queue full may leave a
//! waker; the shard wakes as many as it has taken things out. A shard that stops closes its inbox before it empties it;
//! whoever pushed too late finds it closed and empties it.

use std::sync::Arc;
use std::task::Waker;

use catga_codec::OwnedFrame;
use catga_discovery::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use crossbeam_queue::ArrayQueue;

use crate::client::completion::Promise;
use crate::lane::events::Publication;
use crate::lane::io::LaneIo;
use crate::panics::guarded;
use crate::ring::doorbell::{Doorbell, EventFd};

/// What comes into a shard from outside its engine's shards.
pub(crate) enum Inbound {
    /// A call, with its request still in the promise's block.
    Call(Promise),
    /// An event.
    Event(OwnedFrame),
    /// An event for other nodes. In a box, so that this stays small.
    Publication(Box<Publication>),
    /// A lane that another shard accepted and greeted for this one.
    Lane(Box<LaneIo>),
}

/// The MPMC way into a shard.
pub(crate) struct Inbox {
    queue: ArrayQueue<Inbound>,
    /// Whom to wake when there is room again.
    waiters: ArrayQueue<Waker>,
    closed: AtomicBool,
    /// Somebody has given up a call whose request the shard had taken.
    given_up: AtomicBool,
    doorbell: Arc<Doorbell<EventFd>>,
    calls_turned_away: AtomicUsize,
    events_turned_away: AtomicUsize,
}

impl Inbox {
    pub(crate) fn new(capacity: usize, doorbell: Arc<Doorbell<EventFd>>) -> Self {
        Self {
            queue: ArrayQueue::new(capacity),
            waiters: ArrayQueue::new(capacity),
            closed: AtomicBool::new(false),
            given_up: AtomicBool::new(false),
            doorbell,
            calls_turned_away: AtomicUsize::new(0),
            events_turned_away: AtomicUsize::new(0),
        }
    }

    /// Pushes, and wakes the shard if it sleeps. Gives the thing back if the inbox is full. There is a SeqCst fence between
    /// the push and the return.
    pub(crate) fn push(&self, inbound: Inbound) -> Result<(), Inbound> {
        self.queue.push(inbound)?;
        // SeqCst: pairs with the one in `close`: either the closing shard's last look sees what was pushed, or the load below
        // sees that it is closed. And with the one of the doorbell, and of the watchdog. One for all: it waits until the
        // queue's line has come.
        fence(Ordering::SeqCst);
        self.doorbell.ring_behind_fence();
        if self.closed.load(Ordering::Relaxed) {
            drop(self.empty()); // the peer of a lane sees the connection end
        }
        Ok(())
    }

    pub(crate) fn pop(&self) -> Option<Inbound> {
        self.queue.pop()
    }

    /// Has `waker` woken when there is room, or says that too many wait already. Push once more afterwards: room that was
    /// made before wakes nobody.
    pub(crate) fn wait(&self, waker: &Waker) -> bool {
        self.waiters.push(waker.clone()).is_ok()
    }

    /// There is room for so many more: wakes as many of those who wait.
    pub(crate) fn made_room(&self, mut count: usize) {
        if self.waiters.is_empty() {
            return; // looking is cheaper than popping from an empty queue, which takes a fence
        }
        while count > 0
            && let Some(waiter) = self.waiters.pop()
        {
            guarded(|| waiter.wake());
            count -= 1;
        }
    }

    /// Tells the shard that there is a call which nobody waits for any more.
    pub(crate) fn give_up(&self) {
        // Release: pairs with the Acquire in `take_given_up`. What says which call it is was written before.
        self.given_up.store(true, Ordering::Release);
        self.doorbell.ring();
    }

    /// Whether calls were given up since this was asked last.
    pub(crate) fn take_given_up(&self) -> bool {
        // Most of the time nobody has; looking takes no locked instruction.
        self.has_given_up() && self.given_up.swap(false, Ordering::Acquire) // pairs with `give_up`
    }

    /// Whether calls were given up.
    pub(crate) fn has_given_up(&self) -> bool {
        self.given_up.load(Ordering::Relaxed) // `take_given_up` synchronises
    }

    pub(crate) fn len(&self) -> usize {
        self.queue.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub(crate) fn is_closed(&self) -> bool {
        // Acquire: pairs with the Release in `close`.
        self.closed.load(Ordering::Acquire)
    }

    /// No more: calls that are in the queue, or come too late, are told that the engine is stopping. Gives the lanes that were
    /// in it: what their peers have sent is still served.
    pub(crate) fn close(&self) -> Vec<LaneIo> {
        // Release: pairs with the Acquire in `is_closed`; the fence pairs with the one in `push`.
        self.closed.store(true, Ordering::Release);
        fence(Ordering::SeqCst);
        self.empty()
    }

    fn empty(&self) -> Vec<LaneIo> {
        let mut lanes = Vec::new();
        // Dropping a promise tells its caller.
        while let Some(inbound) = self.queue.pop() {
            let turned_away = match inbound {
                Inbound::Call(_) => &self.calls_turned_away,
                Inbound::Event(_) | Inbound::Publication(_) => &self.events_turned_away,
                Inbound::Lane(lane) => {
                    lanes.push(*lane);
                    continue;
                }
            };
            turned_away.fetch_add(1, Ordering::Relaxed); // a count: partners with `turned_away`
        }
        self.made_room(usize::MAX);
        lanes
    }

    /// Calls and events that came in and were not taken, because the shard stopped.
    pub(crate) fn turned_away(&self) -> (u64, u64) {
        let read = |count: &AtomicUsize| count.load(Ordering::Relaxed) as u64; // partners with `empty`
        (read(&self.calls_turned_away), read(&self.events_turned_away))
    }
}

impl std::fmt::Debug for Inbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inbox").field("waiting", &self.queue.len()).finish_non_exhaustive()
    }
}
