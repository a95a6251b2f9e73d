//! A doorbell: how a sender wakes a receiver that sleeps, and pays almost nothing if it does not.
//!
//! A receiver that found nothing to do for a while says that it sleeps, looks into its rings once more, and waits
//! for the [`Signal`] (for a shard an [`EventFd`] among its sockets). A sender that has published rings; only if the
//! receiver said that it sleeps does that raise the signal, and only the first sender to notice does.
//!
//! ```text
//! receiver                                 sender
//!   prepare_sleep: sleeping = true           publish a frame
//!                  ── fence ──               ring: ── fence ──
//!   look into the rings once more                  if sleeping and swap(false): raise the signal
//!   nothing: wait for the signal
//!   awake: sleeping = false
//! ```
//!
//! **No wake-up is lost.** The two SeqCst fences are in one total order. If the sender's is first, the receiver's look
//! comes after it and finds the frame. If the receiver's is first, the sender's load comes after it and finds
//! `sleeping`, or a later value of it: then another sender has swapped it and raises the signal, or the receiver is
//! awake again and will look once more behind another fence before it sleeps. That is Dekker's argument; Release and
//! Acquire alone do not make it, for each side could still read the other's old value.
//!
//! A signal may come when the receiver no longer waits for it: it then wakes once for nothing, and loses nothing.
#![forbid(unsafe_code)]

use catga_discovery::sync::atomic::{
    AtomicBool,
    Ordering::{Relaxed, SeqCst},
    fence,
};
use crossbeam_utils::CachePadded;

/// What ends the receiver's wait.
pub(crate) trait Signal {
    /// Ends the wait that is going on, or else the next one. Never waits itself.
    fn raise(&self);
}

/// The bell of one receiver, shared by it and all its senders in an `Arc`.
#[derive(Debug)]
pub(crate) struct Doorbell<S> {
    /// The receiver waits for the signal, or is about to, and nobody has raised it yet.
    sleeping: CachePadded<AtomicBool>,
    /// The receiver never sleeps, so nobody need ring.
    sleepless: bool,
    signal: S,
}

impl<S: Signal> Doorbell<S> {
    /// A doorbell whose receiver is awake.
    #[must_use]
    pub(crate) fn new(signal: S) -> Self {
        Self { sleeping: CachePadded::new(AtomicBool::new(false)), sleepless: false, signal }
    }

    /// The doorbell of a receiver that spins and never sleeps: ringing it costs nothing. (The fence in `ring` waits
    /// until all that was written into rings has left the store buffer, which costs more than the rest of a turn.)
    #[must_use]
    pub(crate) fn of_sleepless(signal: S) -> Self {
        Self { sleepless: true, ..Self::new(signal) }
    }

    /// What the receiver waits for.
    #[must_use]
    pub(crate) fn signal(&self) -> &S {
        &self.signal
    }

    /// Whether a receiver that sleeps has been rung, so that its signal is raised. For a runtime that asks many of them.
    #[cfg(test)]
    pub(crate) fn is_rung(&self) -> bool {
        !self.sleeping.load(Relaxed) // one thread runs them all
    }

    /// Of the receiver: asks to be woken from now on. Look into every ring after this, before you wait.
    #[inline]
    pub(crate) fn prepare_sleep(&self) {
        debug_assert!(!self.sleepless, "nobody would ring");
        // Relaxed: pairs with the load and the swap in `ring`, by the fences.
        self.sleeping.store(true, Relaxed);
        // SeqCst: pairs with the fence in `ring`; what was published before that one is found after this one.
        fence(SeqCst);
    }

    /// Of the receiver: it has stopped waiting, or does not wait after all, and needs no signal until it next sleeps.
    #[inline]
    pub(crate) fn awake(&self) {
        // Relaxed: has no partner that must see it; a sender that still reads `true` raises a signal for nothing.
        self.sleeping.store(false, Relaxed);
    }

    /// Of a sender: what it has published so far will be found. Returns whether that took a signal.
    ///
    /// One fence and one load of a line that rarely changes, unless the receiver sleeps. Ring once for all that a
    /// turn has published into a ring.
    #[inline]
    pub(crate) fn ring(&self) -> bool {
        if self.sleepless {
            return false;
        }
        // SeqCst: pairs with the fence in `prepare_sleep`; who slept before that one is found sleeping after this one.
        fence(SeqCst);
        self.ring_behind_fence()
    }

    /// As [`ring`](Self::ring), for a sender that has a SeqCst fence of its own between what it has published and this.
    #[inline]
    pub(crate) fn ring_behind_fence(&self) -> bool {
        // Relaxed: pairs with the store in `prepare_sleep`, by the fences.
        self.sleeping.load(Relaxed) && self.wake()
    }

    /// Raises the signal unless another sender is faster.
    #[cold]
    fn wake(&self) -> bool {
        // Relaxed: only decides which sender raises the signal; the signal itself orders what it must.
        let first = self.sleeping.swap(false, Relaxed);
        if first {
            self.signal.raise();
        }
        first
    }
}

#[cfg(not(catga_loom))]
pub(crate) use event_fd::EventFd;

#[cfg(not(catga_loom))]
mod event_fd {
    use std::{
        io,
        os::fd::{AsFd, BorrowedFd, OwnedFd},
    };

    use rustix::{
        event::{EventfdFlags, eventfd},
        io::{Errno, read, write},
    };

    use super::Signal;

    /// A signal that epoll and io_uring can wait for: a counter in the kernel, readable while it is not 0.
    #[derive(Debug)]
    pub(crate) struct EventFd(OwnedFd);

    impl EventFd {
        /// A signal that is not raised.
        ///
        /// # Errors
        ///
        /// The system's, if it has no file descriptor or no memory left.
        pub(crate) fn new() -> io::Result<Self> {
            Ok(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
        }

        /// Takes the signal back, so that the next wait really waits. Returns whether it was raised.
        pub(crate) fn drain(&self) -> bool {
            let mut count = [0; 8];
            loop {
                match read(&self.0, &mut count) {
                    Err(Errno::INTR) => {}
                    // The only other error of a valid descriptor is `AGAIN`: the counter is 0.
                    result => return result.is_ok(),
                }
            }
        }
    }

    impl Signal for EventFd {
        fn raise(&self) {
            // The only other error of a valid descriptor is `AGAIN`: the counter is at its end, hence raised.
            while write(&self.0, &1u64.to_ne_bytes()) == Err(Errno::INTR) {}
        }
    }

    impl AsFd for EventFd {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.0.as_fd()
        }
    }
}

#[cfg(test)]
#[cfg(not(catga_loom))]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering::SeqCst},
        },
        thread,
    };

    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    /// Waits at most a while, so that a lost wake-up fails the test and does not hang it.
    fn wait(signal: &EventFd, seconds: i64) -> bool {
        let patience = Timespec { tv_sec: seconds, tv_nsec: 0 };
        poll(&mut [PollFd::new(signal, PollFlags::IN)], Some(&patience)).unwrap() == 1
    }

    #[test]
    fn only_the_first_ring_of_a_sleep_signals() {
        let bell = Doorbell::new(EventFd::new().unwrap());
        assert!(!bell.ring(), "awake at first");
        bell.prepare_sleep();
        assert!(bell.ring());
        assert!(!bell.ring(), "the signal is already on its way");
        assert!(wait(bell.signal(), 0) && bell.signal().drain());
        bell.prepare_sleep();
        bell.awake();
        assert!(!bell.ring(), "it did not sleep after all");
        assert!(!wait(bell.signal(), 0));
    }

    #[test]
    fn a_signal_stays_until_it_is_drained() {
        let signal = EventFd::new().unwrap();
        assert!(!signal.drain() && !wait(&signal, 0));
        signal.raise();
        signal.raise();
        assert!(wait(&signal, 0) && wait(&signal, 0));
        assert!(signal.drain() && !signal.drain());
    }

    #[test]
    fn no_wake_up_is_lost_between_threads() {
        const EACH: usize = 20_000;
        let shared = Arc::new((Doorbell::new(EventFd::new().unwrap()), AtomicUsize::new(0)));
        let senders = [(); 2].map(|()| {
            let shared = shared.clone();
            thread::spawn(move || {
                for number in 0..EACH {
                    shared.1.fetch_add(1, SeqCst);
                    shared.0.ring();
                    if number % 64 == 0 {
                        thread::yield_now(); // let it fall asleep now and then
                    }
                }
            })
        });
        let (bell, published) = &*shared;
        let mut seen = 0;
        while seen < 2 * EACH {
            bell.prepare_sleep();
            if published.load(SeqCst) == seen {
                assert!(wait(bell.signal(), 10), "asleep with {seen} seen of {}", published.load(SeqCst));
            }
            bell.awake();
            bell.signal().drain();
            seen = published.load(SeqCst);
        }
        senders.into_iter().for_each(|sender| sender.join().unwrap());
    }
}

/// Every schedule. A lost wake-up is a receiver that waits for ever, which loom reports as a deadlock.
#[cfg(test)]
#[cfg(catga_loom)]
mod model {
    use catga_discovery::sync::{Arc, atomic::AtomicUsize, thread};
    use loom::{
        model::Builder,
        sync::{Condvar, Mutex},
    };

    use super::*;
    use crate::ring::spsc::ring;

    /// As an eventfd: stays raised until a wait takes it back.
    #[derive(Default)]
    struct Flag(Mutex<bool>, Condvar);

    impl Signal for Flag {
        fn raise(&self) {
            *self.0.lock().unwrap() = true;
            self.1.notify_one();
        }
    }

    impl Flag {
        fn wait(&self) {
            let mut raised = self.0.lock().unwrap();
            while !*raised {
                raised = self.1.wait(raised).unwrap();
            }
            *raised = false;
        }
    }

    fn explore(model: impl Fn() + Sync + Send + 'static) {
        let mut builder = Builder::new();
        builder.preemption_bound = Some(4);
        builder.check(model);
    }

    /// Sleeps until `look` has found what it wants.
    fn sleep_until(bell: &Doorbell<Flag>, mut look: impl FnMut() -> bool) {
        loop {
            bell.prepare_sleep();
            let found = look();
            if !found {
                bell.signal().wait();
            }
            bell.awake();
            if found {
                return;
            }
        }
    }

    #[test]
    fn a_receiver_that_sleeps_gets_every_frame() {
        explore(|| {
            let bell = Arc::new(Doorbell::new(Flag::default()));
            let (mut producer, mut consumer) = ring(64, 16);
            let senders_bell = bell.clone();
            let sender = thread::spawn(move || {
                for number in 0u32..2 {
                    let write = |into: &mut [u8]| {
                        into[..4].copy_from_slice(&8u32.to_le_bytes());
                        into[4..8].copy_from_slice(&number.to_le_bytes());
                        Ok::<_, ()>(8)
                    };
                    assert_eq!(producer.push(16, write), Ok(8));
                    producer.publish();
                    senders_bell.ring();
                }
            });
            let mut received = 0u32;
            sleep_until(&bell, || {
                consumer.drain(9, |frame| {
                    assert_eq!(frame[4..8], received.to_le_bytes());
                    received += 1;
                });
                received == 2
            });
            sender.join().unwrap();
        });
    }

    #[test]
    fn of_two_senders_neither_is_overheard() {
        explore(|| {
            // Relaxed throughout: the bell alone must see to it that the receiver finds both.
            let shared =
                Arc::new((Doorbell::new(Flag::default()), [AtomicUsize::new(0), AtomicUsize::new(0)]));
            let senders = [0, 1].map(|index| {
                let shared = shared.clone();
                thread::spawn(move || {
                    shared.1[index].store(1, Relaxed);
                    shared.0.ring();
                })
            });
            sleep_until(&shared.0, || shared.1.iter().all(|published| published.load(Relaxed) == 1));
            senders.into_iter().for_each(|sender| sender.join().unwrap());
        });
    }
}
