//! The table of calls in flight: a bounded slab of slots, each with one outcome.
//!
//! A call is named by its slot and the slot's generation. The generation changes whenever the slot is freed, so an answer
//! that comes after its call ended finds no call and is counted, never given to the next user of the slot.
//! Generation 0 is never used: a call id of all zeros names nothing.
//!
//! The table decides *what* an ending is: a call that still waits for room ends as [`NotSent`], one that left as
//! [`Unknown`]. Who is told, and how, is the caller's business: endings return the [`Waiter`] to wake. A waker that is not
//! needed any more is handed out as well: the last one of a task drops its future, which may hold calls of this table.

mod again;
mod batches;
mod listing;

use std::task::Waker;
use std::time::Duration;

use catga_codec::{CallId, Contract, Kind, OwnedFrame};

use crate::call::journey::Journey;
use crate::call::table::listing::Listing;
use crate::call::waiting::Ticket;
use crate::choice::Choice;
use crate::error::{Failure, NotSent, Refusal, Unknown};
use crate::limits::EXPIRY_SWEEP;
use crate::pool;
use crate::time::Time;

/// How a call ended. `Reply` and `Rejected` have their frame in the slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Reply,
    Rejected,
    Refused(Refusal),
    Failed(Failure),
    NotSent(NotSent),
    Unknown(Unknown),
    /// Of a broadcast: so many listeners have handled it.
    Handled(u16),
}

/// Where a request went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// A handler of this shard.
    Here,
    /// Another shard of this engine.
    Shard(u16),
    /// A lane, with the offset in its stream at which the frame begins.
    Lane { lane: LaneKey, offset: u64 },
}

/// A lane of this shard: its place, and which of the lanes that had the place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct LaneKey {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

/// Who is told when the call ends. `F` is what a forwarded call answers to.
#[derive(Debug)]
pub(crate) enum Waiter<F> {
    /// Nobody yet; whoever asks will find the ending in the slot.
    Nobody,
    /// A future that was polled.
    Task(Waker),
    /// A batch, which collects the slots that are done.
    Batch(BatchId),
    /// The call is made on behalf of someone else, who gets the answer as it is.
    Forward(F),
}

/// A batch of this table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatchId(u32);

impl Target {
    /// In two words that are written and read whole. (An enum of this size is written in pieces and copied as one,
    /// which stalls the processor until the pieces have left its store buffer: at these rates that shows.)
    #[inline]
    const fn pack(self) -> [u64; 2] {
        match self {
            Self::Here => [HERE, 0],
            Self::Shard(shard) => [SHARD | shard as u64, 0],
            Self::Lane { lane, offset } => {
                [LANE | (lane.index as u64 & 0xffff) | (lane.generation as u64) << 16, offset]
            }
        }
    }

    #[inline]
    const fn unpack([word, offset]: [u64; 2]) -> Self {
        match word & KIND {
            HERE => Self::Here,
            SHARD => Self::Shard(word as u16),
            _ => Self::Lane {
                lane: LaneKey { index: word as u32 & 0xffff, generation: (word >> 16) as u32 },
                offset,
            },
        }
    }
}

// The upper two bits of a packed target's first word say what it is; 48 bits below are enough for a lane's key.
const KIND: u64 = 3 << 62;
const HERE: u64 = 0;
const SHARD: u64 = 1 << 62;
const LANE: u64 = 2 << 62;
const _: () = assert!(crate::limits::CONNECTIONS_MAX <= 1 << 16);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Free,
    Waiting,
    Sent,
    Done,
}

struct Slot<F> {
    generation: u32,
    /// A batch's own number for the call.
    token: u64,
    phase: Phase,
    /// Counts while `Done`.
    ending: Ending,
    /// Counts while `Free`.
    next: u32,
    /// Counts while `Sent`: a packed [`Target`].
    to: [u64; 2],
    deadline: Time,
    waiter: Waiter<F>,
    answer: Option<OwnedFrame>,
    /// What a forwarded call's sender means by its message, if it waits to be sent again.
    contract: Sense,
    /// How its node is chosen, for one that went to another node or was passed on.
    choice: Choice,
    /// It may run more than once.
    idempotent: bool,
    listing: Listing,
    /// Counts if it has waited in a queue.
    ticket: Ticket,
    /// `answer` holds the request until there is an answer, so that it can be sent again.
    keeps_request: bool,
    /// Where it went was told that nobody waits for it.
    is_cancelled: bool,
    /// The peer that it was to go to, while it waits for a lane there.
    bound_for: Option<u32>,
    /// Where it has been, if it has moved on.
    journey: Option<Box<Journey>>,
}

impl<F> Slot<F> {
    #[inline]
    fn sent_to(&self) -> Option<Target> {
        (self.phase == Phase::Sent).then(|| Target::unpack(self.to))
    }

    /// Where it went, if that does not know yet that nobody waits any more.
    fn to_cancel(&self) -> Option<Target> {
        if self.is_cancelled { None } else { self.sent_to() }
    }
}

/// What the sender of a forwarded call means by its message; without it the call stays in its engine.
pub(crate) type Sense = Option<fn() -> Contract>;

/// What counts when a call may move on.
pub(crate) struct Movable {
    pub(crate) target: Target,
    pub(crate) deadline: Time,
    pub(crate) choice: Choice,
    pub(crate) idempotent: bool,
    pub(crate) moves: usize,
}

#[derive(Default)]
struct BatchQueue {
    done: Vec<u32>,
    /// Calls that have come to nothing on one node and may be sent again.
    again: Vec<CallId>,
    waker: Option<Waker>,
    open: bool,
}

/// What has to be done about a call that ended.
#[derive(Debug)]
pub(crate) enum Wake<F> {
    /// The slot waits to be asked.
    Nobody,
    /// Wake this task.
    Task(Waker),
    /// Pass the ending and its frame on. The slot is free already.
    Forward(F, Ending, OwnedFrame),
}

/// The slab. `F` is what a forwarded call answers to.
pub(crate) struct CallTable<F> {
    slots: Vec<Slot<F>>,
    free: u32,
    live: u32,
    limit: u32,
    /// Of those, how many are made on behalf of someone else.
    forwards: u32,
    /// No live call expires before this.
    earliest: Time,
    swept: Time,
    /// The next call that begins to wait gets this one.
    ticket: Ticket,
    batches: Vec<BatchQueue>,
}

const END: u32 = u32::MAX;

fn is_event(frame: &OwnedFrame) -> bool {
    frame.header().is_some_and(|header| header.kind == Kind::Event)
}

impl<F> CallTable<F> {
    pub(crate) fn new(limit: u32) -> Self {
        assert!(limit > 0 && limit < END, "a table of calls holds at least one");
        Self {
            slots: Vec::with_capacity(limit as usize),
            free: END,
            live: 0,
            limit,
            forwards: 0,
            earliest: Time::NEVER,
            swept: Time::ZERO,
            ticket: Ticket(0),
            batches: Vec::new(),
        }
    }

    /// How many calls may hold a slot.
    pub(crate) fn limit(&self) -> u32 {
        self.limit
    }

    /// Calls that hold a slot.
    pub(crate) fn live(&self) -> u32 {
        self.live
    }

    /// A slot for a call of a future, or none if the table is full.
    pub(crate) fn open_for(&mut self, deadline: Time, waker: &Waker) -> Option<CallId> {
        let waker = waker.clone(); // somebody else's code: if it panics there is no slot yet
        let call = self.open(deadline)?;
        self.slots[call.slot() as usize].waiter = Waiter::Task(waker);
        Some(call)
    }

    /// A slot for a call of a batch, which knows it by `token`.
    #[inline(always)] // as `open`
    pub(crate) fn open_in(&mut self, deadline: Time, batch: BatchId, token: u64) -> Option<CallId> {
        let call = self.open(deadline)?;
        let slot = &mut self.slots[call.slot() as usize];
        slot.waiter = Waiter::Batch(batch);
        slot.token = token;
        Some(call)
    }

    /// A slot that nobody waits for yet.
    #[inline(always)] // its result is taken apart at once
    pub(crate) fn open(&mut self, deadline: Time) -> Option<CallId> {
        let index = if self.free != END {
            self.free
        } else if self.slots.len() < self.limit as usize {
            self.slots.push(Slot {
                generation: 1,
                token: 0,
                phase: Phase::Free,
                ending: Ending::Reply,
                next: END,
                to: [0; 2],
                deadline: Time::NEVER,
                waiter: Waiter::Nobody,
                answer: None,
                contract: None,
                choice: Choice::Usual,
                idempotent: false,
                listing: Listing::Never,
                ticket: Ticket::NONE,
                keeps_request: false,
                is_cancelled: false,
                bound_for: None,
                journey: None,
            });
            self.slots.len() as u32 - 1
        } else {
            return None;
        };
        let slot = &mut self.slots[index as usize];
        self.free = slot.next;
        slot.next = END;
        slot.phase = Phase::Waiting;
        slot.deadline = deadline;
        // One that does not leave this engine says nothing about these: it must not be taken for the call before it.
        (slot.choice, slot.idempotent, slot.listing) = (Choice::Usual, false, Listing::Never);
        slot.is_cancelled = false;
        self.live += 1;
        self.earliest = self.earliest.min(deadline);
        Some(CallId::new(index, slot.generation))
    }

    /// A slot for a call that is made on behalf of someone else; gives that one back if the table is full.
    pub(crate) fn open_forward(
        &mut self,
        deadline: Time,
        to: F,
        contract: Sense,
        choice: Choice,
    ) -> Result<CallId, F> {
        let Some(call) = self.open(deadline) else { return Err(to) };
        let slot = &mut self.slots[call.slot() as usize];
        slot.waiter = Waiter::Forward(to);
        slot.contract = contract;
        slot.choice = choice;
        self.forwards += 1;
        Ok(call)
    }

    /// The contract and the choice that a forwarded call was opened with.
    pub(crate) fn terms(&mut self, id: CallId) -> Option<(Sense, Choice)> {
        let slot = self.find(id)?;
        Some((slot.contract, slot.choice))
    }

    /// The calls that are under way over this lane, and where in its stream each began.
    pub(crate) fn over(&self, over: LaneKey) -> Vec<(CallId, u64)> {
        let slots = (0u32..).zip(&self.slots);
        let sent = slots.filter_map(|(index, slot)| match slot.sent_to()? {
            Target::Lane { lane, offset } if lane == over => {
                Some((CallId::new(index, slot.generation), offset))
            }
            _ => None,
        });
        sent.collect()
    }

    /// Those who are meant do not wait any more for what was passed on for them: says which calls these are, and where each went
    /// if it has left. Such a call moves on no more, and is not named again.
    pub(crate) fn cancel_passed_on(&mut self, meant: impl Fn(&F) -> bool) -> Vec<(CallId, Option<Target>)> {
        if self.forwards == 0 {
            return Vec::new();
        }
        let slots = (0u32..).zip(&mut self.slots);
        let passed_on = slots.filter(|(_, slot)| {
            !slot.is_cancelled && matches!(&slot.waiter, Waiter::Forward(to) if meant(to))
        });
        let cancelled = passed_on.map(|(index, slot)| {
            slot.is_cancelled = true;
            (CallId::new(index, slot.generation), slot.sent_to())
        });
        cancelled.collect()
    }

    /// Whether a call went over this lane, so that an answer from there is an answer to it.
    #[inline]
    pub(crate) fn went_over(&mut self, id: CallId, over: LaneKey) -> bool {
        self.find(id)
            .is_some_and(|slot| matches!(slot.sent_to(), Some(Target::Lane { lane, .. }) if lane == over))
    }

    /// The request is on its way.
    #[inline(always)] // most targets are known where this is compiled
    pub(crate) fn sent(&mut self, id: CallId, target: Target) {
        if let Some(slot) = self.find(id) {
            debug_assert_eq!(slot.phase, Phase::Waiting);
            slot.phase = Phase::Sent;
            slot.to = target.pack();
        }
    }

    #[inline]
    fn find(&mut self, id: CallId) -> Option<&mut Slot<F>> {
        let slot = self.slots.get_mut(id.slot() as usize)?;
        (slot.generation == id.generation() && slot.phase != Phase::Free).then_some(slot)
    }

    fn find_index(&mut self, id: CallId) -> Option<usize> {
        self.find(id).map(|_| id.slot() as usize)
    }

    /// The deadline of a call that still waits for room.
    pub(crate) fn waiting(&mut self, id: CallId) -> Option<Time> {
        let slot = self.find(id)?;
        (slot.phase == Phase::Waiting).then_some(slot.deadline)
    }

    /// Whether a future's call has a waker that wakes the same task as this one.
    #[inline]
    pub(crate) fn wakes(&mut self, id: CallId, waker: &Waker) -> bool {
        let slot = self.find(id);
        slot.is_some_and(|slot| matches!(&slot.waiter, Waiter::Task(known) if known.will_wake(waker)))
    }

    /// Notes whom to wake when a future's call ends; nobody, without a waker. Gives the waker that is not needed any more.
    #[must_use = "it is dropped when the table is not borrowed"]
    pub(crate) fn register(&mut self, id: CallId, waker: Option<Waker>) -> Option<Waker> {
        let Some(slot) = self.find(id) else { return waker };
        if !matches!(slot.waiter, Waiter::Nobody | Waiter::Task(_)) {
            return waker;
        }
        match std::mem::replace(&mut slot.waiter, waker.map_or(Waiter::Nobody, Waiter::Task)) {
            Waiter::Task(before) => Some(before),
            _ => None,
        }
    }

    /// Whom to wake because there is room for a waiting call. The call keeps its slot.
    pub(crate) fn room_for(&mut self, id: CallId) -> Option<Waker> {
        let index = self.find_index(id)?;
        match &self.slots[index].waiter {
            Waiter::Task(waker) => Some(waker.clone()),
            Waiter::Batch(batch) => {
                let queue = &mut self.batches[batch.0 as usize];
                if self.slots[index].journey.is_some() {
                    queue.again.push(id);
                }
                queue.waker.clone()
            }
            _ => None,
        }
    }

    /// Ends a call. `fill` writes the answer's frame; it runs only if the call is still open. Gives the outcome, which for a
    /// call that has moved on is that of all its attempts together.
    /// `None`: there is no such call any more, or it has its ending.
    #[inline]
    pub(crate) fn complete(
        &mut self,
        id: CallId,
        ending: Ending,
        fill: impl FnOnce(&mut OwnedFrame),
    ) -> Option<(Ending, Wake<F>)> {
        let slot = self.find(id)?;
        if slot.phase == Phase::Done {
            return None;
        }
        let ending = match &slot.journey {
            Some(journey) => journey.conclude(ending),
            None => ending,
        };
        slot.keeps_request = false;
        if matches!(ending, Ending::Reply | Ending::Rejected) {
            fill(slot.answer.get_or_insert_with(pool::take));
        }
        slot.phase = Phase::Done;
        slot.ending = ending;
        match slot.waiter {
            Waiter::Batch(batch) => {
                let queue = &mut self.batches[batch.0 as usize];
                queue.done.push(id.slot());
                return Some((ending, queue.waker.take().map_or(Wake::Nobody, Wake::Task)));
            }
            Waiter::Nobody => return Some((ending, Wake::Nobody)),
            Waiter::Task(_) | Waiter::Forward(_) => {}
        }
        let wake = match std::mem::replace(&mut slot.waiter, Waiter::Nobody) {
            Waiter::Task(waker) => Wake::Task(waker),
            Waiter::Forward(forward) => {
                let answer = slot.answer.take().unwrap_or_else(pool::take);
                self.forwards -= 1;
                self.release(id.slot());
                Wake::Forward(forward, ending, answer)
            }
            Waiter::Nobody | Waiter::Batch(_) => Wake::Nobody,
        };
        Some((ending, wake))
    }

    /// The ending of a call, if it has one; the slot is free afterwards.
    #[inline]
    pub(crate) fn take(&mut self, id: CallId) -> Option<(Ending, OwnedFrame)> {
        let slot = self.find(id)?;
        if slot.phase != Phase::Done {
            return None;
        }
        let (ending, answer) = (slot.ending, slot.answer.take().unwrap_or_else(pool::take));
        self.release(id.slot());
        Some((ending, answer))
    }

    /// The caller does not want the answer any more. Says where the request went, if it left and no answer came. A future's
    /// waker is taken out before, with [`register`](Self::register).
    pub(crate) fn abandon(&mut self, id: CallId) -> Option<Target> {
        let target = self.find(id)?.to_cancel();
        self.release(id.slot());
        target
    }

    #[inline]
    fn release(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        slot.generation = slot.generation.wrapping_add(1).max(1);
        slot.phase = Phase::Free;
        slot.next = self.free;
        self.forwards -= u32::from(matches!(slot.waiter, Waiter::Forward(_)));
        slot.waiter = Waiter::Nobody;
        slot.keeps_request = false;
        // One that has grown would be kept for as long as the engine lives.
        if slot.answer.as_ref().is_some_and(|answer| !pool::keeps(answer)) {
            slot.answer = None;
        }
        slot.bound_for = None;
        if slot.journey.is_some() {
            slot.journey = None;
        }
        self.free = index;
        self.live -= 1;
    }

    /// When the next sweep could find something.
    pub(crate) fn next_expiry(&self) -> Time {
        if self.live == 0 { Time::NEVER } else { self.earliest.max(self.swept + EXPIRY_SWEEP) }
    }

    /// Ends every call whose deadline has passed. Reading the bounded table costs a few microseconds, so it happens
    /// only when some deadline may have passed, and not more often than [`EXPIRY_SWEEP`].
    pub(crate) fn expire(
        &mut self,
        now: Time,
        mut ended: impl FnMut(Ending, Wake<F>, Option<(CallId, Target)>),
    ) {
        if now < self.next_expiry() {
            return;
        }
        self.swept = now;
        self.earliest = Time::NEVER;
        for index in 0..self.slots.len() {
            let slot = &self.slots[index];
            let (ending, target) = match slot.phase {
                Phase::Waiting => (Ending::NotSent(NotSent::Deadline), None),
                Phase::Sent => (Ending::Unknown(Unknown::Deadline), slot.to_cancel()),
                Phase::Free | Phase::Done => continue,
            };
            if slot.deadline > now {
                self.earliest = self.earliest.min(slot.deadline);
                continue;
            }
            let id = CallId::new(index as u32, slot.generation);
            if let Some((ending, wake)) = self.complete(id, ending, |_| ()) {
                ended(ending, wake, target.map(|target| (id, target)));
            }
        }
    }

    /// Gives up every forwarded call whose answer `gone` says that nobody wants. Says where those went that have left.
    pub(crate) fn give_up_where(
        &mut self,
        mut gone: impl FnMut(&F) -> bool,
        given_up: impl FnMut(CallId, Target),
    ) {
        self.abandon_where(|waiter| matches!(waiter, Waiter::Forward(to) if gone(to)), given_up);
    }

    /// Frees the slots with such waiters. Says where the calls went that left and have no answer.
    fn abandon_where(
        &mut self,
        mut gone: impl FnMut(&Waiter<F>) -> bool,
        mut given_up: impl FnMut(CallId, Target),
    ) {
        for index in 0..self.slots.len() {
            let slot = &self.slots[index];
            if gone(&slot.waiter) {
                let (id, sent) = (CallId::new(index as u32, slot.generation), slot.to_cancel());
                self.release(index as u32);
                if let Some(target) = sent {
                    given_up(id, target);
                }
            }
        }
    }

    /// Ends every call for which `lost` names an ending.
    pub(crate) fn end_where(
        &mut self,
        mut lost: impl FnMut(Option<Target>) -> Option<Ending>,
        mut ended: impl FnMut(Ending, Wake<F>),
    ) {
        for index in 0..self.slots.len() {
            let slot = &self.slots[index];
            let ending = match slot.phase {
                Phase::Waiting | Phase::Sent => lost(slot.sent_to()),
                Phase::Free | Phase::Done => None,
            };
            let Some(ending) = ending else { continue };
            let id = CallId::new(index as u32, slot.generation);
            if let Some((ending, wake)) = self.complete(id, ending, |_| ()) {
                ended(ending, wake);
            }
        }
    }
}

const _: () =
    assert!(EXPIRY_SWEEP.as_nanos() <= Duration::from_millis(1).as_nanos(), "promise 1: deadline + 1 ms");
