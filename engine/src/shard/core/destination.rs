//! Where a request goes next: to a handler here, to another shard, over a lane, or nowhere.
//!
//! Without a cluster that is a question to the table of routes. In a cluster the node comes first: the one that the route
//! asks for, by the shard's view ([`ways`](crate::lane::ways)); if it is this one, the table says the shard.

use catga_codec::{CallId, Contract, MessageId};

use super::Core;
use crate::call::table::LaneKey;
use crate::choice::Choice;
use crate::error::NotSent;
use crate::lane::ways::{Ask, Chosen, Way};
use crate::route::Recipients;

/// Where a request goes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Destination {
    Here,
    Shard(u16),
    Lane(LaneKey),
    /// To a peer, as soon as a lane leads there.
    Opening(u32),
    /// Nobody knows yet: it is asked again with the next view.
    Later,
    Nowhere(NotSent),
}

/// A request that looks for its way.
#[derive(Clone, Copy)]
pub(super) struct Traveller {
    /// The type index of its message.
    pub(super) index: u32,
    pub(super) id: MessageId,
    pub(super) key: u64,
    pub(super) keyed: bool,
    pub(super) choice: Choice,
    /// What its sender means by the message; without that it stays in this engine.
    pub(super) contract: Option<fn() -> Contract>,
    /// Its slot, if it has been on its way before.
    pub(super) call: Option<CallId>,
}

impl Core {
    #[inline(always)] // without a cluster it is a look into a table
    pub(super) fn destination(&self, traveller: &Traveller) -> Destination {
        match traveller.contract {
            Some(contract) if self.clustered => self.destination_in_cluster(*traveller, contract),
            _ if matches!(traveller.choice, Choice::Node(_)) => Destination::Nowhere(NotSent::NoSuchNode),
            _ => self.destination_in_engine(traveller),
        }
    }

    #[inline(always)] // as above
    fn destination_in_engine(&self, traveller: &Traveller) -> Destination {
        match self.routes.request(traveller.index).map(|shards| shards.place(traveller.key)) {
            Some(Recipients::Owner(shard)) if shard == self.shard.0 => Destination::Here,
            Some(Recipients::AnyOf(_)) if self.handler(traveller.index).is_some() => Destination::Here,
            Some(Recipients::Owner(shard)) if self.routes.stuck.contains(shard) => {
                Destination::Nowhere(NotSent::Stuck)
            }
            Some(Recipients::Owner(shard)) => Destination::Shard(shard),
            Some(Recipients::AnyOf(shards)) => self
                .routes
                .stuck
                .next_of(shards, self.turn())
                .map_or(Destination::Nowhere(NotSent::Stuck), Destination::Shard),
            None => Destination::Nowhere(NotSent::NoHandler),
        }
    }

    #[inline(never)] // and by value: who makes one for an engine alone then has it in registers
    fn destination_in_cluster(&self, traveller: Traveller, contract: fn() -> Contract) -> Destination {
        let traveller = &traveller;
        let choice = traveller.choice.of(traveller.keyed);
        let takes = self.takes_now(traveller);
        match choice {
            Choice::LocalFirst if takes && traveller.call.is_none() => {
                return self.destination_in_engine(traveller);
            }
            Choice::LocalFirst if traveller.call.is_none() => {
                if let Some(lane) = self.lanes.borrow_mut().next_lane(traveller.index) {
                    return Destination::Lane(lane);
                }
            }
            Choice::Local => return self.destination_in_engine(traveller),
            _ => {}
        }
        let waited_for = traveller.call.and_then(|call| self.calls.borrow_mut().take_bound(call));
        let calls = self.calls.borrow();
        let journey = traveller.call.and_then(|call| calls.journey(call));
        let at_work = journey
            .and_then(|journey| journey.again)
            .and_then(|spot| Some((self.lanes.borrow().same(spot)?, spot)));
        // Not where it may be running, unless it is by the lane that it came by: see below.
        if let (Some(peer), None) = (waited_for, at_work)
            && let Some(lane) = self.lane_waited_for(peer, traveller.index, choice, contract)
        {
            return Destination::Lane(lane);
        }
        let own_serves = takes && !journey.is_some_and(|journey| journey.has_tried(self.node));
        if choice == Choice::LocalFirst && own_serves {
            return self.destination_in_engine(traveller);
        }
        let (mut lanes, now) = (self.lanes.borrow_mut(), self.now());
        if let Some((peer, spot)) = at_work {
            match lanes.way_back(peer, spot.shard, now) {
                Way::Lane(lane) => return Destination::Lane(lane),
                Way::Opening => return Destination::Opening(peer),
                Way::Away => {}
            }
        }
        let Traveller { index, id, key, .. } = *traveller;
        match lanes.choose(&Ask { index, id, key, choice }, contract, own_serves, journey, now) {
            // Over another lane of the node that may be at work on it, it could run there a second time.
            Chosen::Peer { peer, .. } if at_work.is_some_and(|(at, _)| at == peer) => {
                Destination::Opening(peer)
            }
            Chosen::Peer { peer, shard } => match lanes.way(peer, shard, now) {
                Way::Lane(lane) => Destination::Lane(lane),
                // There is nobody else: it waits until the next attempt to get there.
                Way::Away if choice.has_alternatives() => Destination::Nowhere(NotSent::OutOfReach),
                Way::Opening | Way::Away => Destination::Opening(peer),
            },
            Chosen::Own => self.destination_in_engine(traveller),
            Chosen::Later => Destination::Later,
            // With nobody else to ask, the handler here says itself why it does not take it.
            Chosen::Nobody(_) if choice == Choice::LocalFirst && journey.is_none() && self.serves(index) => {
                self.destination_in_engine(traveller)
            }
            Chosen::Nobody(reason) => Destination::Nowhere(reason),
        }
    }

    /// The lane to a peer that a call has waited for: it keeps the turn that it had.
    fn lane_waited_for(
        &self,
        peer: u32,
        index: u32,
        choice: Choice,
        contract: fn() -> Contract,
    ) -> Option<LaneKey> {
        let mut lanes = self.lanes.borrow_mut();
        if !choice.has_alternatives() || !lanes.serves(peer, index, contract) {
            return None;
        }
        match lanes.way(peer, None, self.now()) {
            Way::Lane(lane) => Some(lane),
            Way::Opening | Way::Away => None,
        }
    }

    /// Whether this engine has a handler of the message.
    fn serves(&self, index: u32) -> bool {
        self.routes.request(index).is_some()
    }

    /// Whether a handler of this engine would take it just now, as far as this shard can tell.
    fn takes_now(&self, traveller: &Traveller) -> bool {
        match self.routes.request(traveller.index).map(|shards| shards.place(traveller.key)) {
            None => false,
            Some(Recipients::Owner(shard)) => !self.routes.stuck.contains(shard),
            Some(Recipients::AnyOf(shards)) => match self.handler(traveller.index) {
                Some(handler) => handler.takes_more(),
                None => shards.iter().any(|&shard| !self.routes.stuck.contains(shard)),
            },
        }
    }
}
