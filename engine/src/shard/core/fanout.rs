//! Broadcasts: one event to every shard that listens, and one answer for all of them.
//!
//! ```text
//!   broadcast(event, to)         part: a call of its own, to shard 0 ──▶ listeners ──▶ Handled(2) ─┐
//!     = a fan-out, which answers part: a call of its own, to shard 1 ──▶ listeners ──▶ Handled(1) ─┼─▶ to: Handled(3)
//!       `to` exactly once        part: a call of its own, to shard 2 ──▶ listeners ──▶ Handled(1) ─┘
//! ```
//!
//! Each part is a forwarded call: it has a slot, a deadline, a credit for its answer, and it waits for room as any call
//! does, so everything that ends a call ends a part too, in time. The part of this shard goes through the shard's own
//! queue, so that no listener runs inside the handler that broadcasts. The fan-out counts its parts down and keeps the
//! first failure; with the last part it answers: a call of this shard, a foreign thread, or another node.

use catga_codec::{CallId, OwnedFrame};

use super::{Core, Destination, Try};
use crate::call::table::{Ending, Target};
use crate::error::{NotSent, Unknown};
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

/// One broadcast under way. Its place and its list are used again.
#[derive(Default)]
struct Fanout {
    generation: u32,
    to: ReplyTo,
    /// Parts without an ending; none: the place is free.
    pending: usize,
    listeners: u16,
    failure: Option<Ending>,
    parts: Vec<CallId>,
}

/// The broadcasts of a shard. Each has calls in flight as its parts, so there are never more than calls.
#[derive(Default)]
pub(crate) struct Fanouts {
    places: Vec<Fanout>,
    free: Vec<u32>,
}

impl Fanouts {
    fn open(&mut self, to: ReplyTo, parts: usize) -> FanoutId {
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push(Fanout::default());
            self.places.len() as u32 - 1
        });
        let place = &mut self.places[index as usize];
        place.to = to;
        place.pending = parts;
        place.listeners = 0;
        place.failure = None;
        place.parts.clear();
        FanoutId { index, generation: place.generation }
    }

    fn get(&mut self, id: FanoutId) -> Option<&mut Fanout> {
        let place = self.places.get_mut(id.index as usize)?;
        (place.generation == id.generation && place.pending > 0).then_some(place)
    }

    /// Counts a part's ending. The last one gives back what the whole came to.
    fn part_ended(&mut self, id: FanoutId, ending: Ending) -> Option<(ReplyTo, Ending)> {
        let place = self.get(id)?;
        place.pending -= 1;
        match ending {
            Ending::Handled(listeners) => place.listeners = place.listeners.saturating_add(listeners),
            // These answer requests.
            Ending::Reply | Ending::Rejected => {
                place.failure.get_or_insert(Ending::Unknown(Unknown::Unreadable));
            }
            failure => {
                place.failure.get_or_insert(failure);
            }
        }
        if place.pending > 0 {
            return None;
        }
        let whole = place.failure.unwrap_or(Ending::Handled(place.listeners));
        let to = std::mem::take(&mut place.to);
        self.release(id.index);
        Some((to, whole))
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
    /// all have ended: with `Handled`, or with the first failure. The fan-out is for who wants to give it up.
    pub(crate) fn broadcast(&self, frame: OwnedFrame, to: ReplyTo, deadline: Time) -> Option<FanoutId> {
        let (incoming, reason) = match Incoming::of(&frame) {
            _ if self.stopping.get() => (None, NotSent::Stopping),
            _ if deadline <= self.now() => (None, NotSent::Deadline),
            // Without bytes there is no frame.
            incoming => (incoming, NotSent::Unarchivable),
        };
        let Some(incoming) = incoming else {
            pool::give(frame);
            self.broadcast_ended(to, Ending::NotSent(reason));
            return None;
        };
        let header = incoming.header();
        let listeners = self.index_of(&header, &incoming).and_then(|index| self.routes.listeners(index));
        let recipients = listeners.map(|listeners| listeners.place(header.key));
        let shards = recipients.as_ref().map_or(&[][..], Recipients::shards);
        if shards.is_empty() {
            pool::give(frame);
            self.broadcast_ended(to, Ending::Handled(0));
            return None;
        }
        let fanout = self.fanouts.borrow_mut().open(to, shards.len());
        for &shard in shards {
            self.send_part(fanout, shard, incoming.to_owned_in(pool::take()), deadline);
        }
        pool::give(frame);
        Some(fanout)
    }

    fn send_part(&self, fanout: FanoutId, shard: u16, mut frame: OwnedFrame, deadline: Time) {
        let opened = self.calls.borrow_mut().open_forward(deadline, ReplyTo::Part(fanout), None);
        let call = match opened {
            Ok(call) => call,
            Err(mut part) => {
                pool::give(frame);
                return self.end(&mut part, Ending::NotSent(NotSent::TooManyCalls));
            }
        };
        if let Some(fanout) = self.fanouts.borrow_mut().get(fanout) {
            fanout.parts.push(call);
        }
        frame.set_shard(shard);
        if shard == self.shard.0 {
            self.calls.borrow_mut().sent(call, Target::Here);
            self.queue(frame, ReplyTo::Here(call), deadline);
        } else {
            self.pass(Destination::Shard(shard), call, frame, deadline, Try::First);
        }
    }

    /// A part of a broadcast has ended.
    pub(crate) fn part_ended(&self, fanout: FanoutId, ending: Ending) {
        let ended = self.fanouts.borrow_mut().part_ended(fanout, ending);
        if let Some((to, whole)) = ended {
            self.broadcast_ended(to, whole);
        }
    }

    pub(crate) fn broadcast_ended(&self, mut to: ReplyTo, ending: Ending) {
        self.counters.broadcasts.add(1);
        if !matches!(ending, Ending::Handled(_)) {
            self.counters.broadcasts_failed.add(1);
        }
        self.end(&mut to, ending);
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

    /// Nobody waits for a broadcast any more: its slots are free at once, and what has not left does not leave. Shards
    /// that have got it are not told: a listener cannot be stopped.
    pub(crate) fn give_up_broadcast(&self, fanout: FanoutId) {
        let parts = self.fanouts.borrow_mut().give_up(fanout);
        let mut calls = self.calls.borrow_mut();
        for part in parts {
            calls.abandon(part);
        }
    }
}
