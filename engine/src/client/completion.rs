//! Foreign calls in flight: where the answer is put, and what happens if nobody answers in time.
//!
//! Each call has a block ([`handover`](crate::ring::handover)) that goes to the shard with the request and comes back with the
//! answer. The shard's side of it is a [`Promise`], which cannot be lost: dropping it is an answer too.
//!
//! A shard can be stuck, so deadlines of foreign calls are kept by the watchdog's thread: it looks through all blocks of
//! its engine when the earliest deadline has come. Blocks are made as load asks for them, and kept: a caller gets the one that
//! was put back last, which its core still has. When the engine has gone, those of the process that come after use them.

use std::sync::{Arc, OnceLock, Weak};
use std::task::Waker;
use std::thread::Thread;
use std::time::Duration;

use catga_codec::{Contract, OwnedFrame};
use catga_discovery::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use crossbeam_queue::SegQueue;

use crate::broadcast::Line;
use crate::call::table::Ending;
use crate::choice::Choice;
use crate::error::{NotSent, Unknown};
use crate::limits::CLIENT_CALLS_MAX;
use crate::ring::handover::pile::Pile;
use crate::ring::handover::{self, Fulfilled};
use crate::time::Time;

/// A deadline that is missed by less is no reason to wake the watchdog early.
const LATE_MAX: Duration = Duration::from_millis(5);

/// A block for a call. All may see its deadline, in nanoseconds, for the watchdog: `NEVER` if it need not look.
type Block = handover::Block<AtomicU64, Parcel>;
/// One that serves no call.
pub(crate) type Spare = handover::Spare<AtomicU64, Parcel>;
/// The caller's side of a call.
pub(crate) type Wait = handover::Wait<AtomicU64, Parcel>;
/// What became of a call that its caller gave up.
pub(crate) type GivenUp = handover::GivenUp<AtomicU64, Parcel>;

/// Blocks of engines that have gone.
static LEFT_BEHIND: SegQueue<Spare> = SegQueue::new();

/// What travels: the request on the way there, the answer on the way back.
#[derive(Debug)]
pub(crate) struct Parcel {
    pub(crate) frame: Option<OwnedFrame>,
    pub(crate) ending: Ending,
    terms: Option<Terms>,
    report: Option<Box<Report>>,
    home: Weak<Completions>,
}

/// The answer to a broadcast; in a box, because few calls are one.
#[derive(Debug)]
struct Report {
    lines: Box<[Line]>,
}

// A block is a pair of lines.
const _: () = assert!(size_of::<Block>() == 128);

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
    /// The answer: how the call ended, the frame and a broadcast's lines.
    pub(crate) fn take_answer(&mut self) -> (Ending, Option<OwnedFrame>, Option<Box<[Line]>>) {
        (self.ending, self.frame.take(), self.report.take().map(|report| report.lines))
    }
}

/// The duty to answer a foreign call. Dropping it is an answer too.
#[derive(Debug)]
pub(crate) struct Promise {
    duty: Option<handover::Duty<AtomicU64, Parcel>>,
}

impl Promise {
    /// Takes the request out, if somebody still waits for the answer. From here on a lost promise means that the handler
    /// may have run.
    #[inline]
    pub(crate) fn take_request(&mut self) -> Option<(OwnedFrame, Terms)> {
        let duty = self.duty.as_mut()?;
        if !duty.take() {
            return None;
        }
        let parcel = duty.content();
        parcel.ending = Ending::Unknown(Unknown::Stopped);
        Some((parcel.frame.take()?, parcel.terms.take()?))
    }

    /// Whether nobody waits for the answer any more.
    pub(crate) fn is_given_up(&self) -> bool {
        self.duty.as_ref().is_some_and(handover::Duty::is_given_up)
    }

    /// Answers. Whoever this gives back is to be woken, when it suits.
    #[inline]
    #[must_use = "somebody may be waiting"]
    pub(crate) fn keep(mut self, ending: Ending, frame: Option<OwnedFrame>) -> Option<Answered> {
        self.answer(|parcel| (parcel.ending, parcel.frame) = (ending, frame))
    }

    /// Answers a broadcast; otherwise as [`keep`](Self::keep).
    #[must_use = "somebody may be waiting"]
    pub(crate) fn report(mut self, ending: Ending, lines: Box<[Line]>) -> Option<Answered> {
        self.answer(|parcel| (parcel.ending, parcel.report) = (ending, Some(Box::new(Report { lines }))))
    }

    #[inline]
    fn answer(&mut self, write: impl FnOnce(&mut Parcel)) -> Option<Answered> {
        let mut duty = self.duty.take()?;
        write(duty.content());
        match duty.fulfil() {
            Fulfilled::Awaited(block) => Some(Answered(block)),
            Fulfilled::InVain(spare) => {
                put_back(spare);
                None
            }
        }
    }
}

impl Drop for Promise {
    #[inline]
    fn drop(&mut self) {
        if let Some(answered) = self.answer(|_| ()) {
            answered.wake();
        }
    }
}

/// A call whose caller has not been told of the answer yet.
#[derive(Debug)]
pub(crate) struct Answered(&'static Block);

impl Answered {
    /// Tells the caller.
    pub(crate) fn wake(self) {
        self.0.wake();
    }
}

/// Nobody waits for what is in it.
#[cold]
fn put_back(mut spare: Spare) {
    // Whoever gave up is not kept alive by a block that may lie for long.
    spare.will_wake_nobody();
    match spare.content().home.upgrade() {
        Some(home) => home.close(spare),
        None => LEFT_BEHIND.push(spare),
    }
}

fn new_block() -> Spare {
    let (ending, deadline) = (Ending::NotSent(NotSent::Stopping), AtomicU64::new(Time::NEVER.as_nanos()));
    Spare::new(deadline, Parcel { frame: None, ending, terms: None, report: None, home: Weak::new() })
}

/// All foreign calls of an engine.
pub(crate) struct Completions {
    blocks: Pile<AtomicU64, Parcel>,
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
        f.debug_struct("Completions").field("made", &self.blocks.count()).finish_non_exhaustive()
    }
}

impl Completions {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            blocks: Pile::new(CLIENT_CALLS_MAX as u32),
            earliest: AtomicU64::new(Time::NEVER.as_nanos()),
            planned: AtomicU64::new(Time::NEVER.as_nanos()),
            watchdog: OnceLock::new(),
            abandoned: AtomicBool::new(false),
        })
    }

    /// A block for a call of who has this waker; none if as many are in flight as may be.
    #[inline]
    pub(crate) fn spare(self: &Arc<Self>, waker: &Waker) -> Option<Spare> {
        let mut spare = self.blocks.pop().or_else(|| self.one_more())?;
        spare.will_wake(waker);
        Some(spare)
    }

    #[cold]
    fn one_more(self: &Arc<Self>) -> Option<Spare> {
        let mut spare = self.blocks.adopt(|| LEFT_BEHIND.pop().unwrap_or_else(new_block))?;
        spare.content().home = Arc::downgrade(self);
        Some(spare)
    }

    /// Begins a call with this request. Its caller is woken by the answer, and at `deadline`.
    #[inline]
    pub(crate) fn open(mut spare: Spare, frame: OwnedFrame, terms: Terms, deadline: Time) -> (Promise, Wait) {
        let parcel = spare.content();
        parcel.frame = Some(frame);
        parcel.ending = Ending::NotSent(NotSent::Stopping);
        parcel.terms = Some(terms);
        let (duty, wait) = spare.open();
        // Release: pairs with the Acquire in `expire`, so that nobody says that a call has expired before it has begun.
        wait.block().shared().store(deadline.as_nanos(), Ordering::Release);
        (Promise { duty: Some(duty) }, wait)
    }

    /// Puts a block back that both sides have done with.
    #[inline]
    pub(crate) fn close(&self, mut spare: Spare) {
        let parcel = spare.content();
        if let Some(frame) = parcel.frame.take() {
            crate::pool::give(frame);
        }
        parcel.report = None;
        // Relaxed: a hint that spares the watchdog a look.
        spare.block().shared().store(Time::NEVER.as_nanos(), Ordering::Relaxed);
        if let Err(stranger) = self.blocks.push(spare) {
            LEFT_BEHIND.push(stranger);
        }
    }

    /// Sees to it that the watchdog looks when this deadline has come. Behind a SeqCst fence after [`open`](Self::open), such
    /// as a push has: that pairs with the fence in `expire`. Either it sees the call's deadline, or this sees that it
    /// has begun to look for the earliest one anew.
    #[inline]
    pub(crate) fn watch(&self, deadline: Time) {
        if deadline.as_nanos() < self.earliest.load(Ordering::Relaxed) {
            self.hurry(deadline);
        }
    }

    /// The caller of this call waits no longer.
    pub(crate) fn watch_no_longer(&self, call: &Wait) {
        // Relaxed: a hint that spares the watchdog a look.
        call.block().shared().store(Time::NEVER.as_nanos(), Ordering::Relaxed);
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
        for block in self.blocks.all() {
            let deadline = block.shared().load(Ordering::Acquire); // pairs with `open`
            let never = Time::NEVER.as_nanos();
            if deadline > now.as_nanos() {
                earliest = earliest.min(deadline);
            } else if block
                .shared()
                .compare_exchange(deadline, never, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
            {
                block.expire();
            }
        }
        self.earliest.fetch_min(earliest, Ordering::SeqCst);
    }

    /// The engine has stopped. Calls that are still open were taken by a shard whose handler does not return: their callers
    /// are told, because nobody else will.
    pub(crate) fn abandon(&self) {
        // Release: pairs with the Acquire in `are_abandoned`. The fence pairs with the one of a push: either that call is found
        // here, or its caller sees what was stored.
        self.abandoned.store(true, Ordering::Release);
        fence(Ordering::SeqCst);
        self.blocks.all().for_each(Block::expire);
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

impl Drop for Completions {
    fn drop(&mut self) {
        // Those that still serve a call are put back by its promise.
        while let Some(mut spare) = self.blocks.pop() {
            spare.content().home = Weak::new();
            LEFT_BEHIND.push(spare);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn open(spare: Spare, deadline: Time) -> (Promise, Wait) {
        let contract = || unreachable!("nobody asks");
        let terms = Terms { contract, deadline, at_once: false, choice: Choice::Usual };
        Completions::open(spare, OwnedFrame::new(), terms, deadline)
    }

    /// A call that was answered; its caller, who has this waker, waits.
    pub(crate) fn answered(calls: &Arc<Completions>, waker: &Waker) -> Option<Answered> {
        let (promise, _wait) = open(calls.spare(waker).unwrap(), Time::NEVER);
        promise.keep(Ending::Reply, None)
    }

    #[test]
    fn a_deadline_that_is_looked_at_while_its_call_begins_is_not_lost() {
        let calls = Completions::new();
        let spare = calls.spare(Waker::noop()).unwrap();
        // Another call's deadline makes the watchdog look, whenever it likes.
        let look = |now| {
            calls.watch(Time::from_nanos(500));
            calls.expire(Time::from_nanos(now));
        };
        look(2_000);
        let (promise, wait) = open(spare, Time::from_nanos(1_000));
        look(3_000);
        assert!(wait.take_expired());
        assert!(matches!(wait.give_up(), GivenUp::Unsent));
        drop(promise);
    }

    /// Other tests of this process take blocks that were left behind, too: of many rounds one is not disturbed.
    #[test]
    fn blocks_of_an_engine_that_has_gone_serve_the_next_one() {
        assert!((0..1_000).any(|_| the_next_engine_uses_what_one_left()));
    }

    fn the_next_engine_uses_what_one_left() -> bool {
        let calls = Completions::new();
        let spares: Vec<_> = (0..10).map_while(|_| calls.spare(Waker::noop())).collect();
        let blocks: Vec<_> = spares.iter().map(|spare| std::ptr::from_ref(spare.block())).collect();
        let mut spares = spares.into_iter();
        // One is with a shard that outlives it.
        let late = spares.next().map(|spare| open(spare, Time::NEVER));
        spares.for_each(|spare| calls.close(spare));
        let (promise, wait) = late.unwrap();
        assert!(matches!(wait.give_up(), GivenUp::Unsent));
        drop(calls);
        drop(promise);
        let next = Completions::new();
        let again: Vec<_> = (0..1_000).map_while(|_| next.spare(Waker::noop())).collect();
        let used_again = again.iter().any(|spare| blocks.contains(&std::ptr::from_ref(spare.block())));
        again.into_iter().for_each(|spare| next.close(spare));
        used_again
    }
}
