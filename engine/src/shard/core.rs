//! What the handlers of a shard, their calls, and the shard's turn share.
//!
//! All of it belongs to one thread, so it is cells and plain borrows; no borrow is held while a handler runs or a waker
//! is woken. A request finds its way here: [`Core::attempt`] resolves the handler and runs it, or puts the request into a
//! ring or a lane; [`Core::answer`] writes what a handler returned straight to where the caller waits.

use std::any::Any;
use std::cell::{Cell, OnceCell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use catga_codec::{
    CallId, Contract, Event, Header, Kind, LocalFrame, Message, MessageId, OwnedFrame, Request,
};

use crossbeam_utils::CachePadded;

use crate::call::table::{CallTable, Ending, LaneKey, Target, Wake};
use crate::client::{Promise, event_header, not_encoded, request_header};
use crate::context::{Context, ShardId};
use crate::error::{Failure, NotSent, Refusal, Unknown};
use crate::lane::io::Lanes;
use crate::limits::{LOCAL_QUEUE_MESSAGES, OUTBOX_EVENTS};
use crate::pool;
use crate::route::{Placement, RouteTable};
use crate::service::{Incoming, Listen, NotHeard, Serve};
use crate::shard::mesh::{Arrived, NoRoom, Outgoing};
use crate::shard::reply_to::ReplyTo;
use crate::stats::ShardCounters;
use crate::time::Time;

/// The handlers of one shard, by the type index of their message.
#[derive(Default)]
pub(crate) struct Handlers {
    pub(crate) requests: Vec<Option<Box<dyn Serve>>>,
    pub(crate) events: Vec<Vec<Box<dyn Listen>>>,
}

impl Handlers {
    #[inline]
    fn request(&self, index: u32) -> Option<&dyn Serve> {
        self.requests.get(index as usize)?.as_deref()
    }
}

/// A message for a handler of the same shard that could not be run at once.
struct Here {
    frame: OwnedFrame,
    to: ReplyTo,
    deadline: Time,
}

/// Where a request goes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Destination {
    Here,
    Shard(u16),
    Lane(LaneKey),
    /// To a node that has not been reached for the first time yet.
    Forming,
    Nowhere(NotSent),
}

/// How an attempt to send a request went.
pub(crate) enum Attempt {
    /// It is over: handled inside the attempt, or it cannot be sent.
    Ended(Ending, Option<OwnedFrame>),
    /// It is on its way; the answer comes to the slot.
    Sent(CallId),
    /// It waits for room; the slot's waiter is told when to try again.
    Waiting(CallId),
}

/// The shared part of a shard.
pub(crate) struct Core {
    pub(crate) shard: ShardId,
    pub(crate) routes: Arc<RouteTable>,
    pub(crate) counters: Arc<CachePadded<ShardCounters>>,
    pub(crate) calls: RefCell<CallTable<ReplyTo>>,
    pub(crate) mesh: RefCell<Vec<Option<Outgoing>>>,
    pub(crate) lanes: RefCell<Lanes>,
    pub(crate) deadline: Duration,
    handlers: OnceCell<Handlers>,
    now: Cell<Time>,
    /// Where requests to handlers of this shard are archived for the time that the handler runs.
    scratch: RefCell<OwnedFrame>,
    outbox: RefCell<VecDeque<OwnedFrame>>,
    here: RefCell<VecDeque<Here>>,
    /// Calls that wait for the first lane to a node; each has a slot, so they are bounded with the calls.
    forming: RefCell<VecDeque<(CallId, Option<OwnedFrame>)>>,
    cancelled_here: RefCell<Vec<CallId>>,
    next: Cell<usize>,
    stopping: Cell<bool>,
}

impl Core {
    pub(crate) fn new(
        shard: ShardId,
        routes: Arc<RouteTable>,
        counters: Arc<CachePadded<ShardCounters>>,
        mesh: Vec<Option<Outgoing>>,
        lanes: Lanes,
        calls_max: u32,
        deadline: Duration,
    ) -> Rc<Self> {
        Rc::new(Self {
            shard,
            routes,
            counters,
            calls: RefCell::new(CallTable::new(calls_max)),
            mesh: RefCell::new(mesh),
            lanes: RefCell::new(lanes),
            deadline,
            handlers: OnceCell::new(),
            now: Cell::new(Time::ZERO),
            scratch: RefCell::new(pool::take()),
            outbox: RefCell::new(VecDeque::new()),
            here: RefCell::new(VecDeque::new()),
            forming: RefCell::new(VecDeque::new()),
            cancelled_here: RefCell::new(Vec::new()),
            next: Cell::new(usize::from(shard.0)),
            stopping: Cell::new(false),
        })
    }

    /// Binds the handlers, once, before the first turn.
    pub(crate) fn install(&self, handlers: Handlers) {
        let fresh = self.handlers.set(handlers).is_ok();
        debug_assert!(fresh, "handlers are installed once");
    }

    pub(crate) fn handlers(&self) -> Option<&Handlers> {
        self.handlers.get()
    }

    #[inline]
    pub(crate) fn now(&self) -> Time {
        self.now.get()
    }

    pub(crate) fn set_now(&self, now: Time) {
        self.now.set(now);
    }

    pub(crate) fn set_stopping(&self) {
        self.stopping.set(true);
    }

    #[inline]
    fn handler(&self, index: u32) -> Option<&dyn Serve> {
        self.handlers.get()?.request(index)
    }

    // ---- sending ----------------------------------------------------------------------------------------------

    #[inline]
    fn destination(
        &self,
        index: u32,
        id: MessageId,
        key: u64,
        contract: Option<fn() -> Contract>,
    ) -> Destination {
        match self.routes.request(index).map(|shards| shards.place(key)) {
            Some(Placement::Owner(shard)) if shard == self.shard.0 => Destination::Here,
            Some(Placement::Owner(shard)) => Destination::Shard(shard),
            Some(Placement::AnyOf(_)) if self.handler(index).is_some() => Destination::Here,
            Some(Placement::AnyOf(shards)) => Destination::Shard(shards[self.turn() % shards.len()]),
            None => contract
                .map_or(Destination::Nowhere(NotSent::NoHandler), |contract| self.lane_for(id, contract)),
        }
    }

    fn lane_for(&self, id: MessageId, contract: fn() -> Contract) -> Destination {
        let mut lanes = self.lanes.borrow_mut();
        match lanes.candidate(id, contract) {
            Ok(lane) => Destination::Lane(lane),
            // Not every peer has been reached for the first time: too early to say that nobody handles it.
            Err(_) if lanes.is_forming() => Destination::Forming,
            Err(reason) => Destination::Nowhere(reason),
        }
    }

    /// A ticket for round robin.
    fn turn(&self) -> usize {
        let turn = self.next.get();
        self.next.set(turn.wrapping_add(1));
        turn
    }

    /// Tries to send a request. `slot` is the call's slot if it waited before; else one is opened with `open` if the
    /// call outlives the attempt.
    #[inline(always)] // as `run_inline`
    pub(crate) fn attempt<R: Request>(
        self: &Rc<Self>,
        request: &R,
        deadline: Time,
        slot: Option<CallId>,
        open: impl FnOnce(&mut CallTable<ReplyTo>) -> Option<CallId>,
    ) -> Attempt {
        let now = self.now();
        if deadline <= now || self.stopping.get() {
            let reason = if self.stopping.get() { NotSent::Stopping } else { NotSent::Deadline };
            return self.give_up(slot, reason);
        }
        let index = R::type_index().get();
        let destination = self.destination(index, R::ID, request.key(), Some(Contract::of_request::<R>));
        if destination == Destination::Here
            && slot.is_none()
            && self.here.borrow().is_empty()
            && let Some(handler) = self.handler(index)
            && let Some(ended) = self.run_inline(handler, request, deadline)
        {
            return ended;
        }
        if let Destination::Nowhere(reason) = destination {
            return self.give_up(slot, reason);
        }
        let granted = slot.is_some();
        let opened = slot.or_else(|| open(&mut self.calls.borrow_mut()));
        let Some(call) = opened else {
            return Attempt::Ended(Ending::NotSent(NotSent::TooManyCalls), None);
        };
        let header = request_header(request, call, now.micros_until(deadline));
        let no_room = match destination {
            Destination::Shard(shard) => {
                let header = Header { shard, ..header };
                match self.with_peer(shard, |peer| peer.request(header, request, granted)) {
                    Ok(()) => return self.sent(call, Target::Shard(shard)),
                    Err(no_room) => no_room,
                }
            }
            Destination::Lane(lane) => {
                let queued = self.lanes.borrow_mut().request(lane, header, request, granted);
                match queued {
                    Ok(offset) => return self.sent(call, Target::Lane { lane, offset }),
                    Err(no_room) => no_room,
                }
            }
            Destination::Forming => NoRoom::Wait,
            Destination::Here | Destination::Nowhere(_) => {
                match self.send_here(header, request, call, deadline) {
                    Ok(()) => return self.sent(call, Target::Here),
                    Err(no_room) => no_room,
                }
            }
        };
        match no_room {
            NoRoom::Wait => {
                self.wait_for_room(destination, call, None, granted);
                Attempt::Waiting(call)
            }
            NoRoom::Never(error) => self.give_up(Some(call), not_encoded(error)),
        }
    }

    #[inline]
    fn sent(&self, call: CallId, target: Target) -> Attempt {
        self.calls.borrow_mut().sent(call, target);
        Attempt::Sent(call)
    }

    fn give_up(&self, slot: Option<CallId>, reason: NotSent) -> Attempt {
        if let Some(call) = slot {
            self.calls.borrow_mut().abandon(call);
        }
        Attempt::Ended(Ending::NotSent(reason), None)
    }

    /// Runs a handler of this shard inside its caller, if it can run at once.
    #[inline(always)] // what it returns is taken apart at once: a call would only carry it through memory
    fn run_inline<R: Request>(
        self: &Rc<Self>,
        handler: &dyn Serve,
        request: &R,
        deadline: Time,
    ) -> Option<Attempt> {
        // Borrowed only while a handler runs that polls a call by hand: such a call goes by the queue.
        let mut scratch = self.scratch.try_borrow_mut().ok()?;
        // Nobody reads the time left from this header: the context has the deadline.
        if let Err(error) = scratch.encode(request_header(request, CallId::default(), 0), request) {
            return Some(Attempt::Ended(Ending::NotSent(not_encoded(error)), None));
        }
        let mut answer = pool::take();
        let ctx = Context::new(self.clone(), deadline);
        let ending = handler.serve_inline(Incoming::of(&scratch)?, &ctx, &mut answer)?;
        drop(scratch);
        self.counters.calls_here.add(1);
        self.after_handler();
        Some(Attempt::Ended(ending, Some(answer)))
    }

    fn send_here<R: Request>(
        &self,
        header: Header,
        request: &R,
        call: CallId,
        deadline: Time,
    ) -> Result<(), NoRoom> {
        let mut here = self.here.borrow_mut();
        if here.len() >= LOCAL_QUEUE_MESSAGES {
            return Err(NoRoom::Wait);
        }
        let mut frame = pool::take();
        frame.encode(header, request).map_err(NoRoom::Never)?;
        here.push_back(Here { frame, to: ReplyTo::Here(call), deadline });
        Ok(())
    }

    fn with_peer<T>(&self, shard: u16, f: impl FnOnce(&mut Outgoing) -> T) -> T {
        match self.mesh.borrow_mut().get_mut(usize::from(shard)) {
            Some(Some(peer)) => f(peer),
            _ => unreachable!("routes name other shards of this engine only"),
        }
    }

    fn wait_for_room(&self, destination: Destination, call: CallId, frame: Option<OwnedFrame>, again: bool) {
        self.counters.waits.add(1);
        let live = |call| self.calls.borrow_mut().waiting(call).is_some();
        let lost = match destination {
            Destination::Shard(shard) => {
                self.with_peer(shard, |peer| {
                    if again { peer.wait_again(call, frame) } else { peer.wait(call, frame, live) }
                });
                None
            }
            Destination::Lane(lane) => {
                let waits = self.lanes.borrow_mut().wait(lane, call, frame, again, live);
                waits.is_err().then_some(Ending::NotSent(NotSent::LaneLost))
            }
            Destination::Forming => {
                let mut forming = self.forming.borrow_mut();
                if forming.len() == forming.capacity() {
                    forming.retain(|(call, _)| live(*call));
                }
                forming.push_back((call, frame));
                None
            }
            // The queue of this shard is full: refuse, rather than let a shard wait for itself.
            Destination::Here | Destination::Nowhere(_) => Some(Ending::Refused(Refusal::Overloaded)),
        };
        if let Some(ending) = lost {
            self.complete(call, ending, |_| ());
        }
    }

    /// What waited for the first lanes is tried again: one came up, or the first attempts are over.
    pub(crate) fn retry_forming(&self) {
        let waiting = std::mem::take(&mut *self.forming.borrow_mut());
        for (call, frame) in waiting {
            self.granted(call, frame);
        }
    }

    pub(crate) fn has_forming(&self) -> bool {
        !self.forming.borrow().is_empty()
    }

    /// There may be room now for a call that waited: a future is woken to try again, a forwarded frame goes at once.
    pub(crate) fn granted(&self, call: CallId, frame: Option<OwnedFrame>) {
        let Some(frame) = frame else {
            let waker = self.calls.borrow_mut().room_for(call);
            if let Some(waker) = waker {
                waker.wake();
            }
            return;
        };
        let deadline = self.calls.borrow_mut().waiting(call);
        let contract = self.calls.borrow_mut().contract(call);
        let Some(deadline) = deadline else { return pool::give(frame) };
        match self.destination_of(&frame, contract) {
            Destination::Nowhere(reason) => {
                pool::give(frame);
                self.complete(call, Ending::NotSent(reason), |_| ());
            }
            destination => self.pass(destination, call, frame, deadline, true),
        }
    }

    fn destination_of(&self, frame: &OwnedFrame, contract: Option<fn() -> Contract>) -> Destination {
        let Some(header) = frame.header() else { return Destination::Nowhere(NotSent::Unarchivable) };
        // The context word of a frame from another node counts that process's types: only the id says what it is here.
        let index = match frame.local() {
            Some(_) if header.context != 0 => u32::try_from(header.context).ok(),
            _ => self.routes.index_of(header.message),
        };
        self.destination(index.unwrap_or(0), header.message, header.key, contract)
    }

    /// Sends a request on behalf of someone else (a foreign thread, another node), who gets the answer as it is.
    /// Without a contract, to compare with what other nodes mean by the message, it stays in this engine.
    pub(crate) fn forward(
        &self,
        frame: OwnedFrame,
        mut to: ReplyTo,
        deadline: Time,
        contract: Option<fn() -> Contract>,
    ) {
        if deadline <= self.now() {
            return self.end(&mut to, Ending::NotSent(NotSent::Deadline));
        }
        let destination = match self.destination_of(&frame, contract) {
            Destination::Nowhere(reason) => return self.end(&mut to, Ending::NotSent(reason)),
            Destination::Here => return self.queue(frame, to, deadline),
            destination => destination,
        };
        let opened = self.calls.borrow_mut().open_forward(deadline, to, contract);
        match opened {
            Ok(call) => self.pass(destination, call, frame, deadline, false),
            Err(mut to) => self.end(&mut to, Ending::NotSent(NotSent::TooManyCalls)),
        }
    }

    fn pass(
        &self,
        destination: Destination,
        call: CallId,
        mut frame: OwnedFrame,
        deadline: Time,
        granted: bool,
    ) {
        frame.set_call(call);
        frame.set_remaining_us(self.now().micros_until(deadline));
        let passed = match destination {
            Destination::Shard(shard) => {
                self.with_peer(shard, |peer| peer.forward(frame, granted)).map(|()| Target::Shard(shard))
            }
            Destination::Lane(lane) => {
                let forwarded = self.lanes.borrow_mut().forward(lane, frame, granted);
                match forwarded {
                    Ok(offset) => Ok(Target::Lane { lane, offset }),
                    Err((frame, NoRoom::Wait)) => Err(frame),
                    Err((frame, NoRoom::Never(error))) => {
                        pool::give(frame);
                        return self.complete(call, Ending::NotSent(not_encoded(error)), |_| ());
                    }
                }
            }
            Destination::Forming => Err(frame),
            Destination::Here | Destination::Nowhere(_) => {
                pool::give(frame);
                return self.complete(call, Ending::Refused(Refusal::NoHandler), |_| ());
            }
        };
        match passed {
            Ok(target) => self.calls.borrow_mut().sent(call, target),
            Err(frame) => self.wait_for_room(destination, call, Some(frame), granted),
        }
    }

    // ---- ending calls -----------------------------------------------------------------------------------------

    /// Ends a call of this shard and tells whoever waits.
    #[inline]
    pub(crate) fn complete(&self, call: CallId, ending: Ending, fill: impl FnOnce(&mut OwnedFrame)) {
        let woken = self.calls.borrow_mut().complete(call, ending, fill);
        match woken {
            Some(wake) => self.wake(wake),
            None => self.counters.answers_late.add(1),
        }
    }

    #[inline]
    pub(crate) fn wake(&self, wake: Wake<ReplyTo>) {
        match wake {
            Wake::Nobody => {}
            Wake::Task(waker) => waker.wake(),
            Wake::Forward(to, ending, frame) => self.pass_on(to, ending, frame),
        }
    }

    /// An answer out of a ring.
    #[inline]
    pub(crate) fn take_answer(&self, shard: u16, arrived: Arrived<'_>) {
        self.with_peer(shard, Outgoing::credit);
        match arrived {
            Arrived::InLine(frame) => {
                let header = frame.header();
                self.complete(header.call, ending_of(&header), |answer| answer.copy_local(frame));
            }
            Arrived::ByHandle(header, frame) => {
                self.complete(header.call, ending_of(&header), |answer| *answer = frame);
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
            Target::Shard(shard) => self.with_peer(shard, |peer| peer.cancel(call)),
            Target::Lane { lane, .. } => self.lanes.borrow_mut().cancel(lane, call),
        };
        // The receiver's own deadline ends the handler where there was no room to tell it.
        self.counters.cancels.add(1);
        if !told {
            self.counters.cancels_untold.add(1);
        }
    }

    // ---- answering --------------------------------------------------------------------------------------------

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
                self.with_peer(shard, |peer| peer.answer(header, message)).is_ok()
            }
            ReplyTo::Lane { lane, call } => {
                let header = Header { call, ..Header::new(kind) };
                self.lanes.borrow_mut().answer(lane, header, message).is_ok()
            }
            ReplyTo::Here(_) | ReplyTo::Client(_) => {
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

    /// Gives an answer in a frame of its own to a call of this shard or of a foreign thread.
    fn deliver(&self, to: &mut ReplyTo, ending: Ending, frame: OwnedFrame) {
        match std::mem::take(to) {
            ReplyTo::Here(call) => self.complete(call, ending, |answer| *answer = frame),
            ReplyTo::Client(promise) => promise.keep(ending, Some(frame)),
            _ => pool::give(frame),
        }
    }

    /// Answers without a message: an ending other than a reply or a rejection.
    pub(crate) fn end(&self, to: &mut ReplyTo, ending: Ending) {
        match *to {
            ReplyTo::Nobody => {}
            ReplyTo::Here(call) => self.complete(call, ending, |_| ()),
            ReplyTo::Shard { shard, call } => {
                self.with_peer(shard, |peer| peer.answer_empty(header_of(ending, call)));
            }
            ReplyTo::Lane { lane, call } => {
                self.lanes.borrow_mut().answer_empty(lane, header_of(ending, call));
            }
            ReplyTo::Client(_) => {
                if let ReplyTo::Client(promise) = std::mem::take(to) {
                    promise.keep(ending, None);
                }
            }
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
                let fits = self.lanes.borrow_mut().answer_with(lane, frame);
                if fits.is_err() {
                    self.fail(&mut to, Failure::ReplyTooLarge);
                }
            }
            ReplyTo::Shard { shard, call } => {
                frame.set_call(call);
                self.with_peer(shard, |peer| peer.answer_by_handle(frame));
            }
            ReplyTo::Here(_) | ReplyTo::Client(_) | ReplyTo::Nobody => self.deliver(&mut to, ending, frame),
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

    /// Logs a handler's panic. What it had published does not leave.
    #[cold]
    pub(crate) fn panicked(&self, message: &str, panic: &(dyn Any + Send)) {
        let text = panic
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("(a panic without text)");
        tracing::error!(
            shard = self.shard.0,
            message,
            panic = text,
            "a handler panicked; its service instance refuses from now on"
        );
        let mut outbox = self.outbox.borrow_mut();
        self.counters.events_dropped.add(outbox.len() as u64);
        outbox.clear();
    }

    // ---- receiving --------------------------------------------------------------------------------------------

    /// A request for a handler of this shard, or of another one if this shard has none.
    #[inline]
    pub(crate) fn serve(
        &self,
        header: &Header,
        incoming: Incoming<'_>,
        ctx: &mut Context,
        to: &mut ReplyTo,
        deadline: Time,
    ) {
        let index = self.index_of(header, &incoming);
        if deadline <= self.now() {
            self.counters.expired.add(1);
            return self.refuse(to, Refusal::Expired);
        }
        let Some(handler) = index.and_then(|index| self.handler(index)) else {
            return self.refuse(to, Refusal::NoHandler);
        };
        ctx.set_deadline(deadline);
        self.counters.handled.add(1);
        handler.serve(incoming, ctx, to);
        self.after_handler();
    }

    /// The type index of a frame's message: its context word if this process archived it, else by the message's id.
    #[inline]
    fn index_of(&self, header: &Header, incoming: &Incoming<'_>) -> Option<u32> {
        match incoming {
            Incoming::Local(_) if header.context != 0 => u32::try_from(header.context).ok(),
            _ => self.routes.index_of(header.message),
        }
    }

    /// Whether a frame from elsewhere is for a handler of this shard.
    pub(crate) fn is_ours(&self, header: &Header) -> bool {
        let Some(index) = self.routes.index_of(header.message) else { return false };
        match self.routes.request(index).map(|shards| shards.place(header.key)) {
            Some(Placement::Owner(shard)) => shard == self.shard.0,
            _ => self.handler(index).is_some(),
        }
    }

    /// Queues a frame whose handler's state is borrowed just now.
    #[cold]
    pub(crate) fn queue_here(&self, incoming: Incoming<'_>, to: &mut ReplyTo, deadline: Time) {
        self.queue(incoming.to_owned_in(pool::take()), std::mem::take(to), deadline);
    }

    fn queue(&self, frame: OwnedFrame, mut to: ReplyTo, deadline: Time) {
        if self.here.borrow().len() >= LOCAL_QUEUE_MESSAGES {
            pool::give(frame);
            return self.refuse(&mut to, Refusal::Overloaded);
        }
        self.here.borrow_mut().push_back(Here { frame, to, deadline });
    }

    /// Runs what waits for handlers of this shard, at most `limit` messages. Returns how many.
    pub(crate) fn run_here(&self, limit: usize, ctx: &mut Context) -> usize {
        for done in 0..limit {
            let next = self.here.borrow_mut().pop_front();
            let Some(Here { frame, mut to, deadline }) = next else { return done };
            if let Some(incoming) = Incoming::of(&frame) {
                let header = incoming.header();
                if header.kind == Kind::Event {
                    self.listen(incoming, ctx);
                } else {
                    self.serve(&header, incoming, ctx, &mut to, deadline);
                }
            }
            pool::give(frame);
        }
        limit
    }

    pub(crate) fn has_work_here(&self) -> bool {
        !self.here.borrow().is_empty()
    }

    // ---- events -----------------------------------------------------------------------------------------------

    /// Hands an event to this shard's listeners.
    pub(crate) fn listen(&self, incoming: Incoming<'_>, ctx: &mut Context) {
        let listeners = self
            .index_of(&incoming.header(), &incoming)
            .zip(self.handlers.get())
            .and_then(|(index, handlers)| handlers.events.get(index as usize))
            .map_or(&[][..], Vec::as_slice);
        ctx.set_deadline(self.now() + self.deadline);
        for listener in listeners {
            let outcome = listener.listen(incoming, ctx);
            self.after_handler();
            match outcome {
                Ok(()) => self.counters.events_handled.add(1),
                Err(NotHeard::Refused) => self.counters.events_dropped.add(1),
                Err(NotHeard::Panicked) => self.counters.failed.add(1),
            }
        }
    }

    /// Queues an event until the handler that publishes it has returned.
    pub(crate) fn publish<E: Event>(&self, event: &E) {
        if self.routes.listeners(E::type_index().get()).is_none() {
            return;
        }
        let mut outbox = self.outbox.borrow_mut();
        if outbox.len() >= OUTBOX_EVENTS {
            return self.counters.events_dropped.add(1);
        }
        let mut frame = pool::take();
        match frame.encode(event_header(event), event) {
            Ok(()) => outbox.push_back(frame),
            Err(_) => self.counters.events_dropped.add(1),
        }
    }

    /// Sends what the handler that has just returned had published.
    #[inline]
    pub(crate) fn after_handler(&self) {
        if !self.outbox.borrow().is_empty() {
            self.empty_outbox();
        }
    }

    fn empty_outbox(&self) {
        loop {
            let next = self.outbox.borrow_mut().pop_front();
            let Some(frame) = next else { return };
            if let Some(local) = frame.local() {
                let header = local.header();
                let index = u32::try_from(header.context).unwrap_or(0);
                match self.routes.listeners(index).map(|shards| shards.place(header.key)) {
                    Some(Placement::Owner(shard)) => self.send_event(local, shard),
                    Some(Placement::AnyOf(shards)) => {
                        for &shard in shards {
                            self.send_event(local, shard);
                        }
                    }
                    None => {}
                }
            }
            pool::give(frame);
        }
    }

    fn send_event(&self, event: LocalFrame<'_>, shard: u16) {
        let mut frame = pool::take();
        frame.copy_local(event);
        let sent = if shard == self.shard.0 {
            let mut here = self.here.borrow_mut();
            if here.len() >= LOCAL_QUEUE_MESSAGES {
                Err(frame)
            } else {
                here.push_back(Here { frame, to: ReplyTo::Nobody, deadline: Time::NEVER });
                Ok(())
            }
        } else {
            self.with_peer(shard, |peer| peer.event(frame))
        };
        match sent {
            Ok(()) => self.counters.events_sent.add(1),
            Err(frame) => {
                pool::give(frame);
                self.counters.events_dropped.add(1);
            }
        }
    }

    // ---- ends of things ---------------------------------------------------------------------------------------

    /// Ends the running tasks that `gone` picks out by whom they answer and by when.
    pub(crate) fn end_tasks(&self, ctx: &Context, mut gone: impl FnMut(&ReplyTo, Time) -> bool) {
        for handler in self.handlers.get().map_or(&[][..], |handlers| &handlers.requests).iter().flatten() {
            handler.end_tasks(ctx, &mut gone);
        }
    }

    /// Writes the counters that go up and down. A few times in a millisecond is often enough for who reads them.
    pub(crate) fn publish_gauges(&self) {
        self.counters.calls_live.set(u64::from(self.calls.borrow().live()));
        self.counters.tasks_running.set(self.tasks_running() as u64);
    }

    /// Async handlers that have not ended.
    pub(crate) fn tasks_running(&self) -> usize {
        let running =
            |handler: &Option<Box<dyn Serve>>| handler.as_ref().map_or(0, |handler| handler.running());
        self.handlers.get().map_or(0, |handlers| handlers.requests.iter().map(running).sum())
    }

    /// Ends the tasks whose callers on this shard gave them up.
    pub(crate) fn end_cancelled(&self, ctx: &Context) {
        let cancelled = std::mem::take(&mut *self.cancelled_here.borrow_mut());
        if !cancelled.is_empty() {
            self.end_tasks(ctx, |to, _| matches!(to, ReplyTo::Here(id) if cancelled.contains(id)));
        }
    }

    /// A foreign call, taken out of the inbox.
    pub(crate) fn take_call(&self, mut promise: Promise, ctx: &mut Context) {
        let Some((frame, contract)) = promise.take_request() else { return };
        let Some(header) = frame.header() else { return };
        let deadline = self.now().after_micros(header.remaining_us);
        let mut to = ReplyTo::Client(promise);
        match frame.local() {
            Some(local) if self.is_ours(&header) => {
                self.serve(&header, Incoming::Local(local), ctx, &mut to, deadline);
                pool::give(frame);
            }
            _ => self.forward(frame, to, deadline, Some(contract)),
        }
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
        // What did not leave a node in the middle was, for the one before it, turned away.
        Ending::NotSent(NotSent::NoHandler | NotSent::Layout) => (Kind::Refused, Refusal::NoHandler.code()),
        Ending::NotSent(NotSent::Stopping) => (Kind::Refused, Refusal::Stopping.code()),
        Ending::NotSent(NotSent::Deadline) => (Kind::Refused, Refusal::Expired.code()),
        Ending::NotSent(_) => (Kind::Refused, Refusal::Overloaded.code()),
        Ending::Reply | Ending::Rejected => unreachable!("these have a message"),
    };
    Header { call, code, ..Header::new(kind) }
}

/// Notes the waker of a future in the slot of its call.
pub(crate) fn register(core: &Core, call: CallId, waker: &Waker) {
    core.calls.borrow_mut().register(call, waker);
}
