//! What the handlers of a shard, their calls, and the shard's turn share.
//!
//! All of it belongs to one thread, so it is cells and plain borrows; while a handler runs or a waker is woken none is held that
//! anybody might ask for: only `handlers`, which change when the shard begins and ends, and an inline call's own `scratch`.
//!
//! A request finds its way here: [`Core::attempt`] resolves the handler and runs it, or puts the request into a
//! ring or a lane. Where it goes is in [`destination`], what is sent for others in [`passing`], how it is handled in
//! [`serve`], how it ends in [`answer`], and whether it then goes on in [`failover`]. All ends with [`close`].

pub(crate) mod answer;
mod close;
mod destination;
mod failover;
pub(crate) mod fanout;
mod passing;
mod serve;

use std::cell::{Cell, Ref, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use catga_codec::{CallId, Contract, Flags, Header, OwnedFrame, Request, TypeIndex};

use crossbeam_utils::CachePadded;

use crate::call::table::{CallTable, Ending, Target};
use crate::call::waiting::Ticket;
use crate::choice::Choice;
use crate::client::callers::Callers;
use crate::client::{not_encoded, request_header};
use crate::context::{Context, ShardId};
use crate::error::{NotSent, Refusal};
use crate::instance::Instance;
use crate::lane::events::Publication;
use crate::lane::lanes::Lanes;
use crate::limits::{FAILURES_AT_ONCE, LOCAL_QUEUE_MESSAGES, WINDOW_BYTES};
use crate::panics::drop_guarded;
use crate::pool;
use crate::route::RouteTable;
use crate::service::{Bound, Incoming, Listen, Serve};
use crate::shard::Seed;
use crate::shard::core::destination::{Destination, Traveller};
use crate::shard::core::failover::Budget;
use crate::shard::core::fanout::Fanouts;
use crate::shard::mesh::{NoRoom, Outgoing, peer};
use crate::shard::reply_to::ReplyTo;
use crate::shard::window::Window;
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
    fn request(&self, index: u32) -> Option<&(dyn Serve + 'static)> {
        self.requests.get(index as usize)?.as_deref()
    }

    /// Drops the handlers, then the instances: users' code, each behind a guard of its own. `panicked` is told of each that did.
    fn drop_each(&mut self, panicked: impl Fn()) {
        let tell = |dropped: bool| {
            if !dropped {
                panicked()
            }
        };
        self.requests.drain(..).flatten().for_each(|handler| tell(drop_guarded(handler)));
        self.events.drain(..).flatten().for_each(|listener| tell(drop_guarded(listener)));
        self.instances.drain(..).for_each(|instance| tell(drop_guarded(instance)));
    }
}

impl Drop for Handlers {
    fn drop(&mut self) {
        self.drop_each(|| ());
    }
}

/// A message for a handler of the same shard that could not be run at once.
struct Here {
    frame: OwnedFrame,
    to: ReplyTo,
    deadline: Time,
}

/// What an attempt does when there is no room on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Try {
    /// It waits, behind those that wait already.
    First,
    /// It has waited, and was told that there is room; without any it waits again, where it was.
    Granted,
    /// It ends as `NotSent(Full)`.
    Once,
}

/// How a request is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Manner {
    /// Flags of the request's header, besides `KEYED`.
    pub(crate) flags: Flags,
    /// Whether it ends as `NotSent(Full)` instead of waiting for room.
    pub(crate) at_once: bool,
    /// How its node is chosen.
    pub(crate) choice: Choice,
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
    /// Whether there are other nodes, or may be.
    clustered: bool,
    /// The hash of this node's id.
    node: u64,
    budget: Budget,
    pub(crate) deadline: Duration,
    pub(crate) timers: Timers,
    /// Borrowed while one of them runs.
    handlers: RefCell<Handlers>,
    now: Cell<Time>,
    /// Where requests to handlers of this shard are archived for the time that the handler runs.
    scratch: RefCell<OwnedFrame>,
    /// Foreign callers who are answered and not woken yet.
    pub(crate) callers: Callers,
    /// What handlers have published.
    outbox: RefCell<VecDeque<Publication>>,
    here: RefCell<VecDeque<Here>>,
    fanouts: RefCell<Fanouts>,
    pub(crate) window: RefCell<Window>,
    cancelled_here: RefCell<Vec<CallId>>,
    next: Cell<usize>,
    stopping: Cell<bool>,
    /// Until then peers are still served, although this node stops: they have just been told that it leaves.
    leaves_at: Cell<Time>,
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
            clustered: lanes.any(),
            node: lanes.node(),
            budget: Budget::new(),
            lanes: RefCell::new(lanes),
            deadline: seed.deadline,
            timers: Timers::default(),
            handlers: RefCell::default(),
            now: Cell::new(Time::ZERO),
            scratch: RefCell::new(pool::take()),
            callers: Callers::new(),
            outbox: RefCell::new(VecDeque::new()),
            here: RefCell::new(VecDeque::new()),
            fanouts: RefCell::default(),
            window: RefCell::new(Window::new(WINDOW_BYTES)),
            cancelled_here: RefCell::new(Vec::new()),
            next: Cell::new(usize::from(seed.id.0)),
            stopping: Cell::new(false),
            leaves_at: Cell::new(Time::NEVER),
            failed_at_once: Cell::new(0),
        })
    }

    /// Binds the handlers, once, before the first turn.
    pub(crate) fn install(&self, handlers: Handlers) {
        self.handlers.replace(handlers);
        self.timers.set(Time::ZERO, Due::Begin);
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

    /// Whether there are other nodes, or may be.
    #[inline]
    pub(crate) fn is_clustered(&self) -> bool {
        self.clustered
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.get()
    }

    pub(crate) fn set_stopping(&self, leaves_at: Time) {
        self.leaves_at.set(leaves_at);
        self.stopping.set(true);
    }

    pub(crate) fn leaves_at(&self) -> Time {
        self.leaves_at.get()
    }

    /// The handler of requests with this type index. It cannot go while it is held.
    #[inline]
    pub(crate) fn handler(&self, index: u32) -> Option<Ref<'_, dyn Serve + 'static>> {
        Ref::filter_map(self.handlers.borrow(), |handlers| handlers.request(index)).ok()
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
        let destination = self.destination(&Traveller {
            index,
            id: R::ID,
            key: request.key(),
            keyed: R::KEYED,
            choice: manner.choice,
            contract: Some(Contract::of_request::<R>),
            call: slot,
        });
        if destination == Destination::Here
            && slot.is_none()
            && self.here.borrow().is_empty()
            && let Some(handler) = self.handler(index)
            && let Some(ended) = self.run_inline(&*handler, request, deadline)
        {
            return ended;
        }
        if let Destination::Nowhere(reason) = destination {
            return self.give_up(slot, reason);
        }
        let ticket = slot.map_or(Ticket::NONE, |call| self.calls.borrow_mut().ticket(call));
        let opened = slot.or_else(|| open(&mut self.calls.borrow_mut()));
        let Some(call) = opened else { return self.give_up(None, NotSent::TooManyCalls) };
        // Of the others the slot knows that any node will do, and that they may run once.
        if self.clustered && (R::KEYED || manner != Manner::default()) {
            self.travels(call, manner.choice.of(R::KEYED), manner.flags);
        }
        let header = request_header(request, manner.flags, call, now.left_until(deadline));
        let no_room = match destination {
            Destination::Shard(shard) => {
                let header = Header { shard, ..header };
                let outcome = peer(&mut self.mesh.borrow_mut(), shard).request(header, request, ticket);
                match outcome {
                    Ok(()) => return self.sent(call, Target::Shard(shard)),
                    Err(no_room) => no_room,
                }
            }
            Destination::Lane(lane) => {
                let mut lanes = self.lanes.borrow_mut();
                let header = to_another_node(header, manner.choice, lanes.digest());
                let queued = lanes.request(lane, header, request, ticket);
                drop(lanes);
                match queued {
                    Ok(offset) => {
                        self.budget.earn();
                        return self.sent(call, Target::Lane { lane, offset });
                    }
                    Err(no_room) => no_room,
                }
            }
            Destination::Opening(_) | Destination::Later => NoRoom::Wait,
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
                self.wait_for_room(destination, call, None);
                Attempt::Waiting(call)
            }
            NoRoom::Never(error) => self.give_up(Some(call), not_encoded(error)),
        }
    }

    /// What has to be known of a call if it comes to nothing where it goes.
    #[inline]
    fn travels(&self, call: CallId, choice: Choice, flags: Flags) {
        self.calls.borrow_mut().travels(call, choice, flags.contains(Flags::IDEMPOTENT));
    }

    #[inline(always)]
    fn sent(&self, call: CallId, target: Target) -> Attempt {
        self.calls.borrow_mut().sent(call, target);
        Attempt::Sent(call)
    }

    fn give_up(&self, slot: Option<CallId>, reason: NotSent) -> Attempt {
        let mut ending = Ending::NotSent(reason);
        if let Some(call) = slot {
            // What the attempts before came to is not hidden by one that got nowhere.
            ending = self.calls.borrow().journey(call).map_or(ending, |journey| journey.conclude(ending));
            self.abandon(call);
        }
        self.count_ending(ending);
        Attempt::Ended(ending, None)
    }

    /// Why a request that may not wait for room is not sent.
    #[cold]
    fn no_room_at_once(&self, destination: Destination) -> NotSent {
        self.counters.sends_full.add(1);
        match destination {
            // Before the first lane is up nothing is full: there is nobody yet.
            Destination::Later | Destination::Opening(_) => NotSent::OutOfReach,
            _ => NotSent::Full,
        }
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

    fn wait_for_room(&self, destination: Destination, call: CallId, frame: Option<OwnedFrame>) {
        // A batch tries again whenever it is polled, and then stands in a queue already.
        let enlisted = self.calls.borrow_mut().enlist(call);
        let Some(ticket) = enlisted else { return };
        self.counters.waits.add(1);
        let live = |call| self.calls.borrow_mut().waiting(call).is_some();
        let lost = match destination {
            Destination::Shard(shard) => {
                peer(&mut self.mesh.borrow_mut(), shard).wait(ticket, (call, frame), live);
                None
            }
            Destination::Lane(lane) => self.lanes.borrow_mut().wait(lane, ticket, (call, frame), live).err(),
            Destination::Opening(peer) => {
                self.calls.borrow_mut().bind(call, peer);
                self.lanes.borrow_mut().wait_for_lane(peer, (call, frame), live).err()
            }
            Destination::Later => {
                self.lanes.borrow_mut().wait_for_view((call, frame), self.now(), live);
                None
            }
            // The queue of this shard is full: refuse, rather than let a shard wait for itself.
            Destination::Here | Destination::Nowhere(_) => {
                return self.complete(call, Ending::Refused(Refusal::Overloaded), |_| ());
            }
        };
        // The lane or the peer is gone: it looks for another way.
        if let Some(waiting) = lost {
            self.lanes.borrow_mut().look_again(waiting);
        }
    }
}

/// The header of a request for another node: it says by which view it comes, and has no mark of a key that does not
/// decide about the node.
#[inline]
fn to_another_node(header: Header, choice: Choice, digest: u64) -> Header {
    let decides = matches!(choice, Choice::Usual | Choice::Owner);
    let flags = if decides { header.flags } else { header.flags.without(Flags::KEYED) };
    Header { flags, context: digest, ..header }
}
