//! What the handlers of a shard, their calls, and the shard's turn share.
//!
//! All of it belongs to one thread, so it is cells and plain borrows; no borrow is held while a handler runs or a waker
//! is woken. A request finds its way here: [`Core::attempt`] resolves the handler and runs it, or puts the request into a
//! ring or a lane; how it is handled is in [`serve`], how it ends in [`answer`].

pub(crate) mod answer;
pub(crate) mod fanout;
mod serve;

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use catga_codec::{CallId, Contract, Flags, Header, Kind, MessageId, OwnedFrame, Request, TypeIndex};

use crossbeam_utils::CachePadded;

use crate::call::table::{CallTable, Ending, LaneKey, Target};
use crate::client::{not_encoded, request_header};
use crate::context::{Context, ShardId};
use crate::error::{NotSent, Refusal};
use crate::instance::Instance;
use crate::lane::io::Lanes;
use crate::limits::{FAILURES_AT_ONCE, LOCAL_QUEUE_MESSAGES};
use crate::pool;
use crate::route::{Recipients, RouteTable};
use crate::service::{Bound, Incoming, Listen, Serve};
use crate::shard::Seed;
use crate::shard::core::fanout::Fanouts;
use crate::shard::mesh::{NoRoom, Outgoing};
use crate::shard::reply_to::ReplyTo;
use crate::stats::ShardCounters;
use crate::time::Time;
use crate::timer::{Due, Timers};
use crate::watchdog::Pulse;

/// The handlers of one shard, by the type index of their message.
#[derive(Default)]
pub(crate) struct Handlers {
    pub(crate) requests: Vec<Option<Box<dyn Serve>>>,
    pub(crate) events: Vec<Vec<Box<dyn Listen>>>,
    /// The service instances behind them.
    pub(crate) instances: Vec<Rc<dyn Instance>>,
}

impl Handlers {
    /// Takes up a handler of the messages with this type index.
    pub(crate) fn add(&mut self, index: TypeIndex, bound: Bound) {
        let index = index.get() as usize;
        match bound {
            Bound::Request(handler) => {
                if self.requests.len() <= index {
                    self.requests.resize_with(index + 1, || None);
                }
                self.requests[index] = Some(handler);
            }
            Bound::Event(listener) => {
                if self.events.len() <= index {
                    self.events.resize_with(index + 1, Vec::new);
                }
                self.events[index].push(listener);
            }
        }
    }

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

/// What an attempt does when there is no room on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Try {
    /// It waits, behind those that wait already.
    First,
    /// It has waited, and was told that there is room; without any it waits again, before the others.
    Granted,
    /// It ends as `NotSent(Full)`.
    Once,
}

/// How a request is sent.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Manner {
    /// Flags of the request's header, besides `KEYED`.
    pub(crate) flags: Flags,
    /// Whether it ends as `NotSent(Full)` instead of waiting for room.
    pub(crate) at_once: bool,
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
    /// For the watchdog.
    pub(crate) pulse: Arc<CachePadded<Pulse>>,
    pub(crate) calls: RefCell<CallTable<ReplyTo>>,
    pub(crate) mesh: RefCell<Vec<Option<Outgoing>>>,
    pub(crate) lanes: RefCell<Lanes>,
    pub(crate) deadline: Duration,
    pub(crate) timers: Timers,
    handlers: OnceCell<Handlers>,
    now: Cell<Time>,
    /// Where requests to handlers of this shard are archived for the time that the handler runs.
    scratch: RefCell<OwnedFrame>,
    outbox: RefCell<VecDeque<OwnedFrame>>,
    here: RefCell<VecDeque<Here>>,
    /// Calls that wait for the first lane to a node; each has a slot, so they are bounded with the calls.
    forming: RefCell<VecDeque<(CallId, Option<OwnedFrame>)>>,
    fanouts: RefCell<Fanouts>,
    cancelled_here: RefCell<Vec<CallId>>,
    next: Cell<usize>,
    stopping: Cell<bool>,
    /// Calls of this turn that failed inside their first poll.
    failed_at_once: Cell<u32>,
}

impl Core {
    pub(crate) fn new(seed: &Seed, mesh: Vec<Option<Outgoing>>, lanes: Lanes) -> Rc<Self> {
        Rc::new(Self {
            shard: seed.id,
            routes: seed.routes.clone(),
            counters: seed.counters.clone(),
            pulse: seed.pulse.clone(),
            calls: RefCell::new(CallTable::new(seed.calls_max)),
            mesh: RefCell::new(mesh),
            lanes: RefCell::new(lanes),
            deadline: seed.deadline,
            timers: Timers::default(),
            handlers: OnceCell::new(),
            now: Cell::new(Time::ZERO),
            scratch: RefCell::new(pool::take()),
            outbox: RefCell::new(VecDeque::new()),
            here: RefCell::new(VecDeque::new()),
            forming: RefCell::new(VecDeque::new()),
            fanouts: RefCell::default(),
            cancelled_here: RefCell::new(Vec::new()),
            next: Cell::new(usize::from(seed.id.0)),
            stopping: Cell::new(false),
            failed_at_once: Cell::new(0),
        })
    }

    /// Binds the handlers, once, before the first turn.
    pub(crate) fn install(&self, handlers: Handlers) {
        let fresh = self.handlers.set(handlers).is_ok();
        debug_assert!(fresh, "handlers are installed once");
        self.timers.set(Time::ZERO, Due::Begin);
    }

    pub(crate) fn handlers(&self) -> Option<&Handlers> {
        self.handlers.get()
    }

    #[inline]
    pub(crate) fn now(&self) -> Time {
        self.now.get()
    }

    /// A turn begins.
    pub(crate) fn set_now(&self, now: Time) {
        self.now.set(now);
        self.failed_at_once.set(0);
    }

    /// Whether a call that fails at once should let the turn go on before it says so. A handler that calls again and again
    /// until it succeeds would else never give its shard back, and its own deadline would never come.
    #[cold]
    pub(crate) fn must_yield(&self) -> bool {
        let failed = self.failed_at_once.get() + 1;
        self.failed_at_once.set(failed);
        failed.is_multiple_of(FAILURES_AT_ONCE)
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.get()
    }

    pub(crate) fn set_stopping(&self) {
        self.stopping.set(true);
    }

    #[inline]
    fn handler(&self, index: u32) -> Option<&dyn Serve> {
        self.handlers.get()?.request(index)
    }

    #[inline]
    fn destination(
        &self,
        index: u32,
        id: MessageId,
        key: u64,
        contract: Option<fn() -> Contract>,
    ) -> Destination {
        match self.routes.request(index).map(|shards| shards.place(key)) {
            Some(Recipients::Owner(shard)) if shard == self.shard.0 => Destination::Here,
            Some(Recipients::AnyOf(_)) if self.handler(index).is_some() => Destination::Here,
            Some(Recipients::Owner(shard)) if self.routes.stuck.contains(shard) => {
                Destination::Nowhere(NotSent::Stuck)
            }
            Some(Recipients::Owner(shard)) => Destination::Shard(shard),
            Some(Recipients::AnyOf(shards)) => self
                .routes
                .stuck
                .next_of(shards, self.turn())
                .map_or(Destination::Nowhere(NotSent::Stuck), Destination::Shard),
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
    #[inline]
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
        manner: Manner,
        deadline: Time,
        slot: Option<CallId>,
        open: impl FnOnce(&mut CallTable<ReplyTo>) -> Option<CallId>,
    ) -> Attempt {
        // What the caller has published so far leaves before its request.
        self.after_handler();
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
        let Some(call) = opened else { return self.give_up(None, NotSent::TooManyCalls) };
        let header = request_header(request, manner.flags, call, now.micros_until(deadline));
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
            NoRoom::Wait if manner.at_once => {
                let reason = self.no_room_at_once(destination);
                self.give_up(Some(call), reason)
            }
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
        self.counters.calls_not_sent.add(1);
        Attempt::Ended(Ending::NotSent(reason), None)
    }

    /// Why a request that may not wait for room is not sent.
    #[cold]
    fn no_room_at_once(&self, destination: Destination) -> NotSent {
        self.counters.sends_full.add(1);
        // Before the first lane is up nothing is full: there is nobody yet.
        if destination == Destination::Forming { NotSent::NoHandler } else { NotSent::Full }
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
        if let Err(error) =
            scratch.encode(request_header(request, Flags::NONE, CallId::default(), 0), request)
        {
            return Some(Attempt::Ended(Ending::NotSent(not_encoded(error)), None));
        }
        let mut answer = pool::take();
        let ctx = Context::new(self.clone(), deadline);
        let before = self.pulse.at(R::type_index().get());
        let ended = handler.serve_inline(Incoming::of(&scratch)?, &ctx, &mut answer);
        self.pulse.at(before);
        let ending = ended?;
        drop(scratch);
        self.counters.calls_here.add(1);
        if ending != Ending::Reply {
            self.count_ending(ending);
        }
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

    pub(crate) fn with_peer<T>(&self, shard: u16, f: impl FnOnce(&mut Outgoing) -> T) -> T {
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
        if self.stopping.get() {
            pool::give(frame);
            return self.complete(call, Ending::NotSent(NotSent::Stopping), |_| ());
        }
        match self.destination_of(&frame, contract) {
            Destination::Nowhere(reason) => {
                pool::give(frame);
                self.complete(call, Ending::NotSent(reason), |_| ());
            }
            destination => self.pass(destination, call, frame, deadline, Try::Granted),
        }
    }

    fn destination_of(&self, frame: &OwnedFrame, contract: Option<fn() -> Contract>) -> Destination {
        let Some(header) = frame.header() else { return Destination::Nowhere(NotSent::Unarchivable) };
        if header.kind == Kind::Event {
            // A part of a broadcast, on its way to the other shard that it is for.
            return Destination::Shard(header.shard);
        }
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
        go: Try,
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
            Ok(call) => self.pass(destination, call, frame, deadline, go),
            Err(mut to) => self.end(&mut to, Ending::NotSent(NotSent::TooManyCalls)),
        }
    }

    fn pass(&self, destination: Destination, call: CallId, mut frame: OwnedFrame, deadline: Time, go: Try) {
        let granted = go == Try::Granted;
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
            Err(frame) if go == Try::Once => {
                pool::give(frame);
                let reason = self.no_room_at_once(destination);
                self.complete(call, Ending::NotSent(reason), |_| ());
            }
            Err(frame) => self.wait_for_room(destination, call, Some(frame), granted),
        }
    }
}
