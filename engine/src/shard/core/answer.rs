//! The ends of calls: answers that go out, answers that come in, and what is said instead of one.
//!
//! An answer is written once, straight to where its caller waits: into a ring, a lane, or a frame of its own for a call of
//! this shard or of a foreign thread. An ending without a message travels as a bare header with a code.

use super::Core;

use std::task::Waker;

use catga_codec::{CallId, Header, Kind, Message, OwnedFrame, Request};

use crate::call::table::{BatchId, Ending, LaneKey, Target, Wake};
use crate::error::{Failure, NotSent, Refusal, Unknown};
use crate::panics::guarded;
use crate::pool;
use crate::shard::mesh::{Arrived, peer};
use crate::shard::reply_to::ReplyTo;
use crate::shard::window::WindowId;

impl Core {
    // ---- of calls that this shard made ------------------------------------------------------------------------

    /// Ends a call of this shard and tells whoever waits.
    #[inline]
    pub(crate) fn complete(&self, call: CallId, ending: Ending, fill: impl FnOnce(&mut OwnedFrame)) {
        if self.clustered
            && !matches!(ending, Ending::Reply | Ending::Rejected)
            && self.moves_on(call, ending)
        {
            return;
        }
        self.conclude(call, ending, fill);
    }

    /// Ends a call, whatever the ending: it goes nowhere else.
    #[inline]
    pub(crate) fn conclude(&self, call: CallId, ending: Ending, fill: impl FnOnce(&mut OwnedFrame)) {
        let woken = self.calls.borrow_mut().complete(call, ending, fill);
        match woken {
            Some((ending, wake)) => self.ended(ending, wake),
            None => self.counters.answers_late.add(1),
        }
    }

    /// A call has ended: counts it, and tells whoever waits.
    #[inline]
    pub(crate) fn ended(&self, ending: Ending, wake: Wake<ReplyTo>) {
        self.count_ending(ending);
        self.wake(wake);
    }

    /// Ends every call for which `lost` names an ending, by where it went.
    pub(crate) fn end_calls(&self, lost: impl FnMut(Option<Target>) -> Option<Ending>) {
        let mut ended = Vec::new();
        self.calls.borrow_mut().end_where(lost, |ending, wake| ended.push((ending, wake)));
        for (ending, wake) in ended {
            self.ended(ending, wake);
        }
    }

    #[inline]
    pub(crate) fn count_ending(&self, ending: Ending) {
        let counters = &self.counters;
        match ending {
            Ending::Reply | Ending::Handled(_) => counters.calls_replied.add(1),
            Ending::Rejected => counters.calls_rejected.add(1),
            Ending::NotSent(_) => counters.calls_not_sent.add(1),
            Ending::Refused(_) => counters.calls_refused.add(1),
            Ending::Unknown(_) => counters.calls_unknown.add(1),
            Ending::Failed(_) => counters.calls_failed.add(1),
        }
    }

    #[inline]
    pub(crate) fn wake(&self, wake: Wake<ReplyTo>) {
        match wake {
            Wake::Nobody => {}
            Wake::Task(waker) => guarded(|| waker.wake()),
            Wake::Forward(to, ending, frame) => self.pass_on(to, ending, frame),
        }
    }

    /// Notes whom to wake when a future's call ends.
    pub(crate) fn register(&self, call: CallId, waker: &Waker) {
        let known = self.calls.borrow_mut().wakes(call, waker);
        if !known {
            let waker = waker.clone();
            let unused = self.calls.borrow_mut().register(call, Some(waker));
            drop(unused); // outside of the borrow: it may take calls with it
        }
    }

    /// The caller does not want the answer any more. Says where the request went, if it left and no answer came.
    pub(crate) fn abandon(&self, call: CallId) -> Option<Target> {
        let unused = self.calls.borrow_mut().register(call, None);
        drop(unused); // as in `register`
        self.calls.borrow_mut().abandon(call)
    }

    /// Exchanges a batch's list of done slots for the given empty one, and notes whom to wake next.
    pub(crate) fn batch_done(&self, batch: BatchId, done: &mut Vec<u32>, waker: &Waker) {
        let known = self.calls.borrow_mut().batch_done(batch, done, waker);
        if !known {
            let waker = waker.clone();
            let unused = self.calls.borrow_mut().batch_wakes(batch, waker);
            drop(unused); // as in `register`
        }
    }

    /// An answer out of a ring.
    #[inline(always)] // the header is in registers where this is called
    pub(crate) fn take_answer(&self, shard: u16, header: &Header, arrived: Arrived<'_>) {
        peer(&mut self.mesh.borrow_mut(), shard).credit();
        match arrived {
            // Most are replies: where that is known, nothing is left to decide about the ending.
            Arrived::InLine(frame) if header.kind == Kind::Reply => {
                self.complete(header.call, Ending::Reply, |answer| answer.copy_local(frame));
            }
            Arrived::InLine(frame) => {
                self.complete(header.call, ending_of(header), |answer| answer.copy_local(frame));
            }
            Arrived::ByHandle(frame) => {
                self.complete(header.call, ending_of(header), |answer| *answer = frame);
            }
        }
    }

    /// Tells the other side that a call was given up.
    pub(crate) fn cancel(&self, call: CallId, target: Target) {
        let told = match target {
            // Its task is ended in this turn, outside of whatever runs just now.
            Target::Here => {
                self.cancelled_here.borrow_mut().push(call);
                true
            }
            Target::Shard(shard) => peer(&mut self.mesh.borrow_mut(), shard).cancel(call),
            Target::Lane { lane, .. } => self.lanes.borrow_mut().cancel(lane, call),
        };
        // The receiver's own deadline ends the handler where there was no room to tell it.
        self.counters.cancels.add(1);
        if !told {
            self.counters.cancels_untold.add(1);
        }
    }

    // ---- of requests that this shard handled ------------------------------------------------------------------

    /// Answers with what a handler returned, written straight to where the caller waits.
    #[inline]
    pub(crate) fn answer<R: Request>(&self, to: &mut ReplyTo, answer: &Result<R::Reply, R::Error>) {
        match answer {
            Ok(reply) => self.write_answer(to, Kind::Reply, reply),
            Err(error) => self.write_answer(to, Kind::Rejected, error),
        }
    }

    #[inline]
    fn write_answer<M: Message>(&self, to: &mut ReplyTo, kind: Kind, message: &M) {
        let ending = if kind == Kind::Reply { Ending::Reply } else { Ending::Rejected };
        let fits = match *to {
            ReplyTo::Nobody => true,
            ReplyTo::Shard { shard, call } => {
                let header = Header { call, ..Header::new(kind) };
                peer(&mut self.mesh.borrow_mut(), shard).answer(header, message).is_ok()
            }
            ReplyTo::Lane { lane, call } => {
                let header = Header { call, ..Header::new(kind) };
                self.lanes.borrow_mut().answer(lane, header, message).is_ok()
            }
            ReplyTo::Here(_) | ReplyTo::Client(_) | ReplyTo::Part { .. } | ReplyTo::Window(_) => {
                let mut frame = pool::take();
                let fits = frame.encode(Header::new(kind), message).is_ok();
                if fits {
                    self.deliver(to, ending, frame);
                }
                fits
            }
        };
        if !fits {
            self.fail(to, Failure::ReplyTooLarge);
        }
    }

    /// Gives an answer in a frame of its own to whoever waits on this shard, to a foreign thread, or to the window.
    fn deliver(&self, to: &mut ReplyTo, ending: Ending, frame: OwnedFrame) {
        match std::mem::take(to) {
            ReplyTo::Here(call) => self.complete(call, ending, |answer| *answer = frame),
            ReplyTo::Client(promise) => self.callers.add(promise.keep(ending, Some(frame))),
            ReplyTo::Part { fanout, line } => {
                pool::give(frame);
                self.part_ended(fanout, line, ending);
            }
            ReplyTo::Window(entry) => self.window_ended(entry, ending, Some(frame)),
            _ => pool::give(frame),
        }
    }

    /// Answers without a message: an ending other than a reply or a rejection.
    pub(crate) fn end(&self, to: &mut ReplyTo, ending: Ending) {
        match *to {
            ReplyTo::Nobody => {}
            ReplyTo::Here(call) => self.complete(call, ending, |_| ()),
            ReplyTo::Shard { shard, call } => {
                peer(&mut self.mesh.borrow_mut(), shard).answer_empty(header_of(ending, call));
            }
            ReplyTo::Lane { lane, call } => {
                self.lanes.borrow_mut().answer_empty(lane, header_of(ending, call));
            }
            ReplyTo::Client(_) => {
                if let ReplyTo::Client(promise) = std::mem::take(to) {
                    self.callers.add(promise.keep(ending, None));
                }
            }
            ReplyTo::Part { fanout, line } => self.part_ended(fanout, line, ending),
            ReplyTo::Window(entry) => self.window_ended(entry, ending, None),
        }
    }

    /// Passes the answer to a forwarded call on to whom it was made for.
    fn pass_on(&self, mut to: ReplyTo, ending: Ending, mut frame: OwnedFrame) {
        if !matches!(ending, Ending::Reply | Ending::Rejected) {
            pool::give(frame);
            return self.end(&mut to, ending);
        }
        match to {
            ReplyTo::Lane { lane, call } => {
                frame.set_call(call);
                let fits = self.lanes.borrow_mut().answer_with(lane, &frame);
                pool::give(frame);
                if fits.is_err() {
                    self.fail(&mut to, Failure::ReplyTooLarge);
                }
            }
            ReplyTo::Shard { shard, call } => {
                frame.set_call(call);
                peer(&mut self.mesh.borrow_mut(), shard).answer_by_handle(frame);
            }
            ReplyTo::Here(_)
            | ReplyTo::Client(_)
            | ReplyTo::Part { .. }
            | ReplyTo::Window(_)
            | ReplyTo::Nobody => {
                self.deliver(&mut to, ending, frame);
            }
        }
    }

    /// Answers an idempotent request over the lane that it last came over, and keeps the answer for when it comes again. A
    /// lane that has ended needs none.
    fn window_ended(&self, entry: WindowId, ending: Ending, mut frame: Option<OwnedFrame>) {
        let Some((lane, call)) = self.window.borrow().asker(entry) else { return };
        if let Some(frame) = &mut frame {
            frame.set_call(call);
        }
        self.say_again(lane, call, ending, frame.as_ref());
        let mut window = self.window.borrow_mut();
        window.ends(entry, ending, frame, self.now());
        self.counters.window_evicted.add(window.take_evicted());
    }

    /// Answers a request on a lane with an answer that is kept.
    pub(crate) fn say_again(&self, lane: LaneKey, call: CallId, ending: Ending, frame: Option<&OwnedFrame>) {
        let mut lanes = self.lanes.borrow_mut();
        match frame {
            Some(frame) if lanes.answer_with(lane, frame).is_ok() => {}
            Some(_) => {
                drop(lanes);
                self.fail(&mut ReplyTo::Lane { lane, call }, Failure::ReplyTooLarge);
            }
            None => lanes.answer_empty(lane, header_of(ending, call)),
        }
    }

    pub(crate) fn refuse(&self, to: &mut ReplyTo, refusal: Refusal) {
        self.counters.refused.add(1);
        self.end(to, Ending::Refused(refusal));
    }

    pub(crate) fn fail(&self, to: &mut ReplyTo, failure: Failure) {
        self.counters.failed.add(1);
        self.end(to, Ending::Failed(failure));
    }

    /// Answers for a handler that was ended part of the way through.
    pub(crate) fn cut(&self, to: &mut ReplyTo) {
        self.counters.cut.add(1);
        self.end(to, Ending::Unknown(Unknown::Cut));
    }

    /// What was published and has not left yet does not leave: who published it has panicked.
    #[cold]
    pub(crate) fn withdraw_published(&self) {
        let withdrawn = std::mem::take(&mut *self.outbox.borrow_mut());
        self.counters.events_dropped.add(withdrawn.len() as u64);
    }
}

/// `Failed` carries the reasons of [`Unknown`] as well, from here on.
const UNKNOWN_CODES: u16 = 256;

/// What the header of an answer says about the call.
#[inline]
pub(crate) fn ending_of(header: &Header) -> Ending {
    match header.kind {
        Kind::Reply => Ending::Reply,
        Kind::Rejected => Ending::Rejected,
        Kind::Handled => Ending::Handled(header.code),
        Kind::Refused => {
            Refusal::from_code(header.code).map_or(Ending::Unknown(Unknown::Unreadable), Ending::Refused)
        }
        _ => match header.code.checked_sub(UNKNOWN_CODES) {
            Some(code) => Ending::Unknown(Unknown::from_code(code).unwrap_or(Unknown::Unreadable)),
            None => {
                Failure::from_code(header.code).map_or(Ending::Unknown(Unknown::Unreadable), Ending::Failed)
            }
        },
    }
}

/// The header that tells another shard or node about an ending without a message.
fn header_of(ending: Ending, call: CallId) -> Header {
    let (kind, code) = match ending {
        Ending::Refused(refusal) => (Kind::Refused, refusal.code()),
        Ending::Failed(failure) => (Kind::Failed, failure.code()),
        Ending::Unknown(unknown) => (Kind::Failed, UNKNOWN_CODES + unknown.code()),
        Ending::Handled(listeners) => (Kind::Handled, listeners),
        // What did not leave a node in the middle was, for the one before it, turned away.
        Ending::NotSent(NotSent::NoHandler | NotSent::Layout | NotSent::OutOfReach) => {
            (Kind::Refused, Refusal::NoHandler.code())
        }
        Ending::NotSent(NotSent::Stopping) => (Kind::Refused, Refusal::Stopping.code()),
        Ending::NotSent(NotSent::Deadline) => (Kind::Refused, Refusal::Expired.code()),
        Ending::NotSent(_) => (Kind::Refused, Refusal::Overloaded.code()),
        Ending::Reply | Ending::Rejected => unreachable!("these have a message"),
    };
    Header { call, code, ..Header::new(kind) }
}
