//! Broadcasts: one event to every shard and every node that listens, and one answer for all of them.
//!
//! ```text
//!   broadcast(event, to)         part: a call of its own, to shard 0 ──▶ listeners ──▶ Handled(2) ─┐
//!     = a fan-out, which answers part: a call of its own, to shard 1 ──▶ listeners ──▶ Handled(1) ─┴─ line: this node
//!       `to` exactly once        part: a call of its own, over a lane ──▶ node b's own fan-out ────── line: b
//!                                part: a call of its own, over a lane ──▶ node c's own fan-out ────── line: c
//! ```
//!
//! Each part is a forwarded call: it has a slot, a deadline, a credit for its answer, and it waits for a lane or for room
//! as any call does, so everything that ends a call ends a part too, in time, and touches no other part. What it is says
//! its [`Choice`]: `Local`, the shard in its header; `Node`, that node and no other, ever; `Usual`, all of them, of a
//! broadcast that waits until the first view is whole. The part of this shard goes through the shard's own queue, so that
//! no listener runs inside the handler that broadcasts. The fan-out counts its parts down and keeps the first failure of each
//! line; with the last part it answers: a call of this shard, a foreign thread, or another node.

use catga_codec::{CallId, Contract, Header, OwnedFrame};
use catga_discovery::NodeId;

use super::{Core, Destination, Try};
use crate::broadcast::Line;
use crate::call::table::{Ending, Target, Wake};
use crate::choice::Choice;
use crate::error::{NotSent, Unknown};
use crate::lane::events::Listener;
use crate::lane::ways::Way;
use crate::pool;
use crate::route::Recipients;
use crate::service::Incoming;
use crate::shard::reply_to::ReplyTo;
use crate::time::Time;

/// A fan-out of this shard: its place, and how often the place was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FanoutId {
    index: u32,
    generation: u32,
}

/// What one node has come to so far.
struct Tally {
    node: Option<NodeId>,
    listeners: u16,
    failure: Option<Ending>,
}

impl Tally {
    fn of(node: Option<NodeId>) -> Self {
        Self { node, listeners: 0, failure: None }
    }

    fn add(&mut self, ending: Ending) {
        match ending {
            Ending::Handled(listeners) => self.listeners = self.listeners.saturating_add(listeners),
            // These answer requests.
            Ending::Reply | Ending::Rejected => {
                self.failure.get_or_insert(Ending::Unknown(Unknown::Unreadable));
            }
            failure => {
                self.failure.get_or_insert(failure);
            }
        }
    }

    fn ending(&self) -> Ending {
        self.failure.unwrap_or(Ending::Handled(self.listeners))
    }
}

/// The line of this node itself.
const OWN: u16 = 0;

/// One broadcast under way. Its place and its lists are used again.
#[derive(Default)]
struct Fanout {
    generation: u32,
    to: ReplyTo,
    /// Parts without an ending, and one for the sending itself until all are sent. None: it has ended, and whoever made it
    /// on this shard has not taken the lines yet; or the place is free.
    pending: usize,
    /// This node first, the others in the order of their ids.
    lines: Vec<Tally>,
    parts: Vec<CallId>,
}

impl Fanout {
    /// What it came to as a whole: the first failure, or all who have handled it.
    fn whole(&self) -> Ending {
        let handled = self.lines.iter().fold(0, |sum: u16, line| sum.saturating_add(line.listeners));
        self.lines.iter().find_map(|line| line.failure).unwrap_or(Ending::Handled(handled))
    }

    fn take_lines(&mut self) -> Box<[Line]> {
        self.lines.drain(..).map(|line| Line::new(line.ending(), line.node)).collect()
    }
}

/// A broadcast that has ended, and whom to tell.
struct Ended {
    to: ReplyTo,
    whole: Ending,
    /// For a foreign thread.
    lines: Option<Box<[Line]>>,
}

/// The broadcasts of a shard. Each has calls in flight, so there are never more than calls.
#[derive(Default)]
pub(crate) struct Fanouts {
    places: Vec<Fanout>,
    free: Vec<u32>,
}

impl Fanouts {
    fn open(&mut self, to: ReplyTo, own: Option<NodeId>) -> FanoutId {
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push(Fanout::default());
            self.places.len() as u32 - 1
        });
        let place = &mut self.places[index as usize];
        place.to = to;
        place.pending = 1;
        place.parts.clear();
        place.lines.clear();
        place.lines.push(Tally::of(own));
        FanoutId { index, generation: place.generation }
    }

    fn get(&mut self, id: FanoutId) -> Option<&mut Fanout> {
        let place = self.places.get_mut(id.index as usize)?;
        (place.generation == id.generation).then_some(place)
    }

    /// There is a part more, of the line of this node or of a line of its own.
    fn expect(&mut self, id: FanoutId, node: Option<NodeId>) -> Option<ReplyTo> {
        let place = self.get(id)?;
        place.pending += 1;
        let line = match node {
            None => OWN,
            node => {
                place.lines.push(Tally::of(node));
                place.lines.len() as u16 - 1 // there are fewer nodes than that
            }
        };
        Some(ReplyTo::Part { fanout: id, line })
    }

    /// Counts a part's ending. The last one ends the whole.
    fn part_ended(&mut self, id: FanoutId, line: u16, ending: Ending) -> Option<Ended> {
        let place = self.get(id).filter(|place| place.pending > 0)?;
        place.pending -= 1;
        if let Some(line) = place.lines.get_mut(usize::from(line)) {
            line.add(ending);
        }
        if place.pending > 0 {
            return None;
        }
        let whole = place.whole();
        let to = std::mem::take(&mut place.to);
        let lines = matches!(to, ReplyTo::Client(_)).then(|| place.take_lines());
        // A call of this shard takes the lines when it is told.
        if !matches!(to, ReplyTo::Here(_)) {
            self.release(id.index);
        }
        Some(Ended { to, whole, lines })
    }

    /// The lines of one that has ended; its place is free afterwards.
    fn take_lines(&mut self, id: FanoutId) -> Option<Box<[Line]>> {
        let lines = self.get(id).filter(|place| place.pending == 0)?.take_lines();
        self.release(id.index);
        Some(lines)
    }

    /// Ends it without an answer. Gives the calls that are its parts.
    fn give_up(&mut self, id: FanoutId) -> Vec<CallId> {
        let Some(place) = self.get(id) else { return Vec::new() };
        place.pending = 0;
        place.to = ReplyTo::Nobody;
        let parts = std::mem::take(&mut place.parts);
        self.release(id.index);
        parts
    }

    /// Those whose answer `gone` says that nobody wants.
    fn given_up(&self, gone: impl Fn(&ReplyTo) -> bool) -> Vec<FanoutId> {
        let places = (0..).zip(&self.places).filter(|(_, place)| place.pending > 0 && gone(&place.to));
        places.map(|(index, place)| FanoutId { index, generation: place.generation }).collect()
    }

    /// How many are under way.
    #[cfg(test)]
    fn live(&self) -> usize {
        self.places.len() - self.free.len()
    }

    fn release(&mut self, index: u32) {
        let place = &mut self.places[index as usize];
        place.generation = place.generation.wrapping_add(1);
        self.free.push(index);
    }
}

impl Core {
    /// Hands an event to every shard of this engine that listens (a keyed one: to its key's shard), and answers `to` when
    /// all have ended: with `Handled`, or with the first failure. With a contract, to compare with what they mean by the
    /// event, also to every other node that listens. The fan-out is for who wants to give it up, and for the lines.
    pub(crate) fn broadcast(
        &self,
        frame: OwnedFrame,
        to: ReplyTo,
        deadline: Time,
        others: Option<fn() -> Contract>,
    ) -> FanoutId {
        let own = self.lanes.borrow().id();
        let fanout = self.fanouts.borrow_mut().open(to, own);
        let ending = match others {
            // Another node's is taken for as long as this one serves its peers.
            Some(_) if self.stopping.get() => Ending::NotSent(NotSent::Stopping),
            _ if deadline <= self.now() => Ending::NotSent(NotSent::Deadline),
            Some(contract) if self.clustered && self.lanes.borrow().is_too_early() => {
                self.begin_later(fanout, frame, deadline, contract);
                return fanout;
            }
            others => {
                let ending = self.send_parts(fanout, &frame, deadline, others);
                pool::give(frame);
                ending
            }
        };
        self.part_ended(fanout, OWN, ending);
        fanout
    }

    /// It is too early to say who listens. The broadcast waits as a call does, so it begins or ends in time.
    fn begin_later(&self, fanout: FanoutId, frame: OwnedFrame, deadline: Time, contract: fn() -> Contract) {
        let part = ReplyTo::Part { fanout, line: OWN };
        if let Some(call) = self.open_part(part, deadline, Some(contract), Choice::Usual) {
            self.pass(Destination::Later, call, frame, deadline, Try::First);
        } else {
            pool::give(frame);
        }
    }

    /// The first whole view is there: a broadcast that waited for it begins.
    pub(super) fn begin_now(
        &self,
        call: CallId,
        frame: OwnedFrame,
        deadline: Time,
        contract: fn() -> Contract,
    ) {
        // Its own slot is free again; the broadcast holds on to its place with what the slot was for.
        let freed = self.calls.borrow_mut().complete(call, Ending::Handled(0), |_| ());
        let Some((_, Wake::Forward(ReplyTo::Part { fanout, line }, _, unused))) = freed else {
            return pool::give(frame);
        };
        pool::give(unused);
        let ending = self.send_parts(fanout, &frame, deadline, Some(contract));
        pool::give(frame);
        self.part_ended(fanout, line, ending);
    }

    fn send_parts(
        &self,
        fanout: FanoutId,
        frame: &OwnedFrame,
        deadline: Time,
        others: Option<fn() -> Contract>,
    ) -> Ending {
        // Without bytes there is no frame.
        let Some(incoming) = Incoming::of(frame) else { return Ending::NotSent(NotSent::Unarchivable) };
        let header = incoming.header();
        let index = self.index_of(&header, &incoming);
        if let (true, Some(contract), Some(index)) = (self.clustered, others, index) {
            let listeners = self.lanes.borrow_mut().listeners(index, header.message, contract);
            for listener in listeners {
                self.send_to_node(fanout, listener, frame, &header, deadline, contract);
            }
        }
        let recipients = index.and_then(|index| self.routes.listeners(index));
        let recipients = recipients.map(|listeners| listeners.place(header.key));
        for &shard in recipients.iter().flat_map(Recipients::shards) {
            self.send_to_shard(fanout, shard, incoming.to_owned_in(pool::take()), deadline);
        }
        Ending::Handled(0)
    }

    /// A slot for a part. Without one the part has ended.
    fn open_part(
        &self,
        part: ReplyTo,
        deadline: Time,
        contract: Option<fn() -> Contract>,
        choice: Choice,
    ) -> Option<CallId> {
        let ReplyTo::Part { fanout, .. } = part else { return None };
        let opened = self.calls.borrow_mut().open_forward(deadline, part, contract, choice);
        match opened {
            Ok(call) => {
                if let Some(fanout) = self.fanouts.borrow_mut().get(fanout) {
                    fanout.parts.push(call);
                }
                Some(call)
            }
            Err(mut part) => {
                self.end(&mut part, Ending::NotSent(NotSent::TooManyCalls));
                None
            }
        }
    }

    fn send_to_shard(&self, fanout: FanoutId, shard: u16, mut frame: OwnedFrame, deadline: Time) {
        let part = self.fanouts.borrow_mut().expect(fanout, None);
        let opened = part.and_then(|part| self.open_part(part, deadline, None, Choice::Local));
        let Some(call) = opened else { return pool::give(frame) };
        frame.set_shard(shard);
        if shard == self.shard.0 {
            self.calls.borrow_mut().sent(call, Target::Here);
            self.queue(frame, ReplyTo::Here(call), deadline);
        } else {
            self.pass(Destination::Shard(shard), call, frame, deadline, Try::First);
        }
    }

    fn send_to_node(
        &self,
        fanout: FanoutId,
        listener: Listener,
        frame: &OwnedFrame,
        header: &Header,
        deadline: Time,
        contract: fn() -> Contract,
    ) {
        let node = listener.node.hash64();
        let part = self.fanouts.borrow_mut().expect(fanout, Some(listener.node));
        let Some(mut part) = part else { return };
        if !listener.same_layout {
            return self.end(&mut part, Ending::NotSent(NotSent::Layout));
        }
        let opened = self.open_part(part, deadline, Some(contract), Choice::Node(node));
        let Some(call) = opened else { return };
        let Some(incoming) = Incoming::of(frame) else { return };
        let copy = incoming.to_owned_in(pool::take());
        self.pass(self.way_to_node(node, header), call, copy, deadline, Try::First);
    }

    /// The way of a part to the node that it is for, as long as that one is up and listens.
    pub(super) fn way_to_node(&self, node: u64, header: &Header) -> Destination {
        let mut lanes = self.lanes.borrow_mut();
        let Some(peer) = lanes.listening(node, header.message) else {
            return Destination::Nowhere(NotSent::OutOfReach);
        };
        match lanes.way_of_event(peer, header, self.now()) {
            Way::Lane(lane) => Destination::Lane(lane),
            // Nobody else will do: it waits until the next attempt to get there.
            Way::Opening | Way::Away => Destination::Opening(peer),
        }
    }

    /// A part of a broadcast has ended.
    pub(crate) fn part_ended(&self, fanout: FanoutId, line: u16, ending: Ending) {
        let ended = self.fanouts.borrow_mut().part_ended(fanout, line, ending);
        let Some(Ended { to, whole, lines }) = ended else { return };
        self.count_broadcast(whole);
        match (to, lines) {
            (ReplyTo::Client(promise), Some(lines)) => self.callers.add(promise.report(whole, lines)),
            // What its parts came to is what the broadcast came to: it is no call that could go elsewhere.
            (ReplyTo::Here(call), _) => self.conclude(call, whole, |_| ()),
            (mut to, _) => self.end(&mut to, whole),
        }
    }

    pub(crate) fn count_broadcast(&self, whole: Ending) {
        self.counters.broadcasts.add(1);
        if !matches!(whole, Ending::Handled(_)) {
            self.counters.broadcasts_failed.add(1);
        }
    }

    /// The lines of a broadcast that a handler of this shard made, and that has ended.
    pub(crate) fn take_lines(&self, fanout: FanoutId) -> Option<Box<[Line]>> {
        self.fanouts.borrow_mut().take_lines(fanout)
    }

    #[cfg(test)]
    pub(crate) fn fanouts_live(&self) -> usize {
        self.fanouts.borrow().live()
    }

    /// Gives up the broadcasts whose answer `gone` says that nobody wants.
    pub(crate) fn give_up_broadcasts_for(&self, gone: impl Fn(&ReplyTo) -> bool) {
        let given_up = self.fanouts.borrow().given_up(gone);
        for fanout in given_up {
            self.give_up_broadcast(fanout);
        }
    }

    /// Nobody waits for a broadcast any more: its slots are free at once, and what has not left does not leave. Who
    /// has got it is not told: a listener cannot be stopped.
    pub(crate) fn give_up_broadcast(&self, fanout: FanoutId) {
        let parts = self.fanouts.borrow_mut().give_up(fanout);
        let mut calls = self.calls.borrow_mut();
        for part in parts {
            calls.abandon(part);
        }
    }
}
