//! Foreign calls in flight: where the answer is put, and what happens if nobody answers in time.
//!
//! The caller and the shard share a [`Completion`]. The shard's side of it is a [`Promise`], which travels with the
//! request and cannot be lost: dropping it is an answer too. Each side says once that it has done with the call, by a bit
//! in `state`; whoever comes second puts the completion back for the next call.
//!
//! ```text
//!            TAKEN      the shard has taken the request: from here on it may have run
//!            ANSWERED   the promise is kept, or dropped: the answer is in its cell
//!            GIVEN_UP   the caller does not wait any more: its deadline came, or the future was dropped
//!            EXPIRED    the watchdog has seen the deadline pass, and has woken the caller
//! ```
//!
//! `TAKEN` and `GIVEN_UP` decide between themselves, by the order in which they were set, whether a call that was given up
//! ran: a request that is taken out of the inbox after its call was given up goes nowhere.
//!
//! A shard can be stuck, so deadlines of foreign calls are kept by the watchdog's thread: it looks through all
//! completions when the earliest deadline has come. Completions are made as load asks for them, and kept.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock, Weak};
use std::thread::Thread;
use std::time::Duration;

use atomic_waker::AtomicWaker;
use catga_codec::{Contract, OwnedFrame};
use catga_discovery::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering, fence};
use crossbeam_queue::ArrayQueue;
use crossbeam_utils::CachePadded;
use crossbeam_utils::atomic::AtomicCell;

use crate::broadcast::Line;
use crate::call::table::Ending;
use crate::choice::Choice;
use crate::error::{NotSent, Unknown};
use crate::limits::CLIENT_CALLS_MAX;
use crate::time::Time;

const TAKEN: u8 = 1;
const GIVEN_UP: u8 = 2;
const ANSWERED: u8 = 4;
const EXPIRED: u8 = 8;

/// A deadline that is missed by less is no reason to wake the watchdog early.
const LATE_MAX: Duration = Duration::from_millis(5);

/// What travels: the request on the way there, the answer on the way back.
#[derive(Debug)]
pub(crate) struct Parcel {
    pub(crate) ending: Ending,
    pub(crate) frame: Option<OwnedFrame>,
    /// The answer to a broadcast.
    pub(crate) lines: Option<Box<[Line]>>,
    terms: Terms,
}

/// On what terms a request was sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    /// What the sender means by the message, to be compared with what a node means by it.
    pub(crate) contract: fn() -> Contract,
    pub(crate) deadline: Time,
    /// Whether it ends at once where there is no room on the way.
    pub(crate) at_once: bool,
    /// How its node is chosen.
    pub(crate) choice: Choice,
}

impl Parcel {
    /// A request that has not been sent.
    pub(crate) fn new(frame: OwnedFrame, terms: Terms) -> Self {
        Self { ending: Ending::NotSent(NotSent::Stopping), frame: Some(frame), lines: None, terms }
    }
}

/// Where the answer to one foreign call is put.
pub(crate) struct Completion {
    state: AtomicU8,
    /// Nanoseconds, for the watchdog; `NEVER` if it need not look.
    deadline: AtomicU64,
    answer: AtomicCell<Option<Box<Parcel>>>,
    waker: AtomicWaker,
    home: Weak<Completions>,
}

impl std::fmt::Debug for Completion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Completion").field("state", &self.state).finish_non_exhaustive()
    }
}

/// What became of a call that its caller gave up.
#[derive(Debug)]
pub(crate) enum GivenUp {
    /// It had been answered just before.
    Answered(Box<Parcel>),
    /// Nobody had taken the request, and nobody will.
    Unsent,
    /// The request may run, or have run.
    Taken,
}

impl Completion {
    /// The answer, if it is there. The caller then gives both back by [`Completions::close`].
    #[inline]
    pub(crate) fn take_answer(&self) -> Option<Box<Parcel>> {
        // Acquire: pairs with the AcqRel in `Promise::deliver`, which has put the answer there before. The bit and not the
        // cell is asked, because the promise lets go of the completion with the bit.
        if self.state.load(Ordering::Acquire) & ANSWERED == 0 {
            return None;
        }
        self.answer.take()
    }

    /// Notes whom to wake. Look for an answer, and whether the call has expired, afterwards.
    pub(crate) fn register(&self, waker: &std::task::Waker) {
        self.waker.register(waker);
    }

    /// Whether the watchdog has found the deadline passed. It may have meant the call before; then the bit is cleared by
    /// [`not_expired`](Self::not_expired).
    pub(crate) fn is_expired(&self) -> bool {
        self.state.load(Ordering::Acquire) & EXPIRED != 0 // pairs with the AcqRel in `expire`
    }

    pub(crate) fn not_expired(&self) {
        self.state.fetch_and(!EXPIRED, Ordering::AcqRel); // as `is_expired`
    }

    /// The caller waits no longer. After `Answered` it closes the completion; otherwise the promise does that.
    pub(crate) fn give_up(&self) -> GivenUp {
        // Relaxed: only a hint that spares the watchdog a look.
        self.deadline.store(Time::NEVER.as_nanos(), Ordering::Relaxed);
        // AcqRel: pairs with the ones in `Promise::take_request` and `deliver`; their order decides.
        let before = self.state.fetch_or(GIVEN_UP, Ordering::AcqRel);
        if before & ANSWERED != 0
            && let Some(parcel) = self.answer.take()
        {
            return GivenUp::Answered(parcel);
        }
        if before & TAKEN != 0 { GivenUp::Taken } else { GivenUp::Unsent }
    }

    /// Tells the caller to look at the clock.
    fn expire(&self) {
        self.state.fetch_or(EXPIRED, Ordering::AcqRel); // pairs with `is_expired`
        self.wake();
    }

    fn wake(&self) {
        guarded(|| self.waker.wake());
    }

    fn is_given_up(&self) -> bool {
        self.state.load(Ordering::Acquire) & GIVEN_UP != 0 // pairs with the AcqRel in `give_up`
    }
}

/// Wakes a foreign caller. Its waker is somebody else's code: a panic in it ends neither a shard nor the watchdog.
pub(crate) fn guarded(wake: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(wake)).is_err() {
        tracing::error!("the waker of a caller panicked");
    }
}

/// The duty to answer a foreign call. Dropping it is an answer too.
#[derive(Debug)]
pub(crate) struct Promise {
    parcel: Option<Box<Parcel>>,
    completion: Arc<CachePadded<Completion>>,
}

impl Promise {
    /// Takes the request out, if somebody still waits for the answer. From here on a lost promise means that the handler
    /// may have run.
    pub(crate) fn take_request(&mut self) -> Option<(OwnedFrame, Terms)> {
        // AcqRel: pairs with the one in `Completion::give_up`; their order decides whether the request runs.
        if self.completion.state.fetch_or(TAKEN, Ordering::AcqRel) & GIVEN_UP != 0 {
            return None;
        }
        let parcel = self.parcel.as_mut()?;
        parcel.ending = Ending::Unknown(Unknown::Stopped);
        Some((parcel.frame.take()?, parcel.terms))
    }

    /// Whether nobody waits for the answer any more.
    pub(crate) fn is_given_up(&self) -> bool {
        self.completion.is_given_up()
    }

    /// Answers.
    pub(crate) fn keep(mut self, ending: Ending, frame: Option<OwnedFrame>) {
        if let Some(parcel) = self.parcel.as_mut() {
            parcel.ending = ending;
            parcel.frame = frame;
        }
        self.deliver();
    }

    /// Answers a broadcast.
    pub(crate) fn report(mut self, ending: Ending, lines: Box<[Line]>) {
        if let Some(parcel) = self.parcel.as_mut() {
            parcel.ending = ending;
            parcel.lines = Some(lines);
        }
        self.deliver();
    }

    fn deliver(&mut self) {
        let Some(parcel) = self.parcel.take() else { return };
        let completion = &self.completion;
        completion.answer.store(Some(parcel));
        // AcqRel: pairs with the loads and read-modify-writes of the caller's side.
        if completion.state.fetch_or(ANSWERED, Ordering::AcqRel) & GIVEN_UP == 0 {
            // The completion may serve another call already: then that one looks around once in vain.
            completion.wake();
        } else if let Some(parcel) = completion.answer.take()
            && let Some(home) = completion.home.upgrade()
        {
            home.close(parcel, self.completion.clone());
        }
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.deliver();
    }
}

/// All foreign calls of an engine.
pub(crate) struct Completions {
    /// Those that were made, up to `count`; each place is filled once, by who drew its number.
    made: Box<[OnceLock<Arc<CachePadded<Completion>>>]>,
    count: AtomicUsize,
    idle: ArrayQueue<(Box<Parcel>, Arc<CachePadded<Completion>>)>,
    /// No call in flight has a deadline before this: nanoseconds.
    earliest: AtomicU64,
    /// When the watchdog looks next: nanoseconds.
    planned: AtomicU64,
    watchdog: OnceLock<Thread>,
    /// The engine has stopped, and nobody keeps deadlines any more.
    abandoned: AtomicBool,
}

impl std::fmt::Debug for Completions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Completions").field("made", &self.count).finish_non_exhaustive()
    }
}

impl Completions {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            made: (0..CLIENT_CALLS_MAX).map(|_| OnceLock::new()).collect(),
            count: AtomicUsize::new(0),
            idle: ArrayQueue::new(CLIENT_CALLS_MAX),
            earliest: AtomicU64::new(Time::NEVER.as_nanos()),
            planned: AtomicU64::new(Time::NEVER.as_nanos()),
            watchdog: OnceLock::new(),
            abandoned: AtomicBool::new(false),
        })
    }

    /// A call with this request, whose caller is woken at `deadline`; none if as many are in flight as may be.
    #[inline]
    pub(crate) fn open(
        self: &Arc<Self>,
        request: Parcel,
        deadline: Time,
    ) -> Option<(Promise, Arc<CachePadded<Completion>>)> {
        let (parcel, completion) = match self.idle.pop() {
            Some((mut parcel, completion)) => {
                *parcel = request;
                (parcel, completion)
            }
            None => (Box::new(request), self.make()?),
        };
        // Relaxed: `watch` comes later, with a fence.
        completion.deadline.store(deadline.as_nanos(), Ordering::Relaxed);
        Some((Promise { parcel: Some(parcel), completion: completion.clone() }, completion))
    }

    #[cold]
    fn make(self: &Arc<Self>) -> Option<Arc<CachePadded<Completion>>> {
        // A ticket: partners with the Acquire in `all`.
        let place = self.count.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |count| {
            (count < self.made.len()).then_some(count + 1)
        });
        let completion = Arc::new(CachePadded::new(Completion {
            state: AtomicU8::new(0),
            deadline: AtomicU64::new(Time::NEVER.as_nanos()),
            answer: AtomicCell::new(None),
            waker: AtomicWaker::new(),
            home: Arc::downgrade(self),
        }));
        Some(self.made[place.ok()?].get_or_init(|| completion).clone())
    }

    /// Puts a completion back that both sides have done with.
    pub(crate) fn close(&self, mut parcel: Box<Parcel>, completion: Arc<CachePadded<Completion>>) {
        if let Some(frame) = parcel.frame.take() {
            crate::pool::give(frame);
        }
        parcel.lines = None;
        // Relaxed: the queue synchronises with whoever opens it next, and a hint to the watchdog needs no order.
        completion.deadline.store(Time::NEVER.as_nanos(), Ordering::Relaxed);
        completion.state.store(0, Ordering::Relaxed);
        // There are never more completions than the queue has places.
        let pushed = self.idle.push((parcel, completion));
        debug_assert!(pushed.is_ok(), "a completion was put back twice");
    }

    /// Sees to it that the watchdog looks when this deadline has come. Behind a SeqCst fence after [`open`](Self::open), such
    /// as a push has: that pairs with the fence in `expire`. Either it sees the completion's deadline, or this sees that it
    /// has begun to look for the earliest one anew.
    #[inline]
    pub(crate) fn watch(&self, deadline: Time) {
        if deadline.as_nanos() < self.earliest.load(Ordering::Relaxed) {
            self.hurry(deadline);
        }
    }

    #[cold]
    fn hurry(&self, deadline: Time) {
        self.earliest.fetch_min(deadline.as_nanos(), Ordering::SeqCst);
        // SeqCst, both: pairs with `plan`. Either it sees the new earliest deadline, or this sees what it has planned.
        if (deadline + LATE_MAX).as_nanos() < self.planned.load(Ordering::SeqCst)
            && let Some(watchdog) = self.watchdog.get()
        {
            watchdog.unpark();
        }
    }

    /// Wakes the callers whose deadline has passed.
    pub(crate) fn expire(&self, now: Time) {
        if self.earliest.load(Ordering::Relaxed) > now.as_nanos() {
            return;
        }
        self.earliest.store(Time::NEVER.as_nanos(), Ordering::Relaxed);
        fence(Ordering::SeqCst); // pairs with the one before `watch`
        let mut earliest = Time::NEVER.as_nanos();
        for completion in self.all() {
            let deadline = completion.deadline.load(Ordering::Relaxed);
            if deadline > now.as_nanos() {
                earliest = earliest.min(deadline);
            } else if completion
                .deadline
                .compare_exchange(deadline, Time::NEVER.as_nanos(), Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
            {
                completion.expire();
            }
        }
        self.earliest.fetch_min(earliest, Ordering::SeqCst);
    }

    /// The engine has stopped. Calls that are still open were taken by a shard whose handler does not return: their callers
    /// are told, because nobody else will.
    pub(crate) fn abandon(&self) {
        // Release: pairs with the Acquire in `are_abandoned`; the bits below come after it.
        self.abandoned.store(true, Ordering::Release);
        for completion in self.all() {
            completion.expire();
        }
    }

    /// All that were made so far.
    fn all(&self) -> impl Iterator<Item = &Arc<CachePadded<Completion>>> {
        // Acquire: pairs with the AcqRel in `make`.
        self.made[..self.count.load(Ordering::Acquire)].iter().filter_map(OnceLock::get)
    }

    pub(crate) fn are_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Acquire) // pairs with `abandon`
    }

    /// The watchdog looks again at `latest`, or before if a deadline comes first. Says when.
    pub(crate) fn plan(&self, latest: Time) -> Time {
        // SeqCst, both: pairs with `hurry`.
        self.planned.store(latest.as_nanos(), Ordering::SeqCst);
        let earliest = self.earliest();
        if earliest < latest {
            self.planned.store(earliest.as_nanos(), Ordering::SeqCst);
        }
        earliest.min(latest)
    }

    /// No call in flight has a deadline before this.
    pub(crate) fn earliest(&self) -> Time {
        Time::from_nanos(self.earliest.load(Ordering::SeqCst))
    }

    /// From now on this thread is woken when a deadline comes before what it has planned.
    pub(crate) fn watched_by(&self, watchdog: Thread) {
        let first = self.watchdog.set(watchdog).is_ok();
        debug_assert!(first, "an engine has one watchdog");
    }
}
