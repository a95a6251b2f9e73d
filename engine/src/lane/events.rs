//! Events for other nodes: who listens there, and what waits until they can be reached.
//!
//! A published event goes to each node of the view that listens, over one lane of this shard; the shard at its other end
//! spreads it over its node, and sends it no further. It was archived once: what is left is a copy into each lane's buffer.
//! Nothing waits for an event, so where it cannot go it is dropped and counted:
//!
//! ```text
//!   the view is forming             it waits for the first whole view      at most EVENTS_WAITING of them
//!   its lane is being dialled       it waits with the peer for the dial    at most EVENTS_WAITING for each node
//!   the dial takes long, or fails   it takes any other lane to the node
//!   there is none and the dial fails, a bound is full, the layout there is another one     it is dropped for that node
//! ```
//!
//! One without a key takes any lane to begin with.
//!
//! Broadcasts ask here who listens; their parts are calls and wait as such.

use std::collections::VecDeque;

use catga_codec::limits::HEADER_BYTES;
use catga_codec::{Contract, Flags, Header, MessageId, OwnedFrame};
use catga_discovery::NodeId;

use crate::lane::lanes::Lanes;
use crate::lane::ways::Way;
use crate::limits::EVENTS_WAITING;
use crate::pool;
use crate::route::part_of;
use crate::time::Time;

/// What became of published events, once for each node that should have had one.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Told {
    pub(crate) sent: u64,
    pub(crate) dropped: u64,
    /// Dropped because the node has another layout of it.
    pub(crate) other_layout: u64,
}

/// An event that this process has archived, and what its publisher means by it: that is compared with what a node means by it.
pub(crate) struct Publication {
    pub(crate) frame: OwnedFrame,
    pub(crate) contract: fn() -> Contract,
}

/// Events on their way, as a shard's lanes know them.
#[derive(Default)]
pub(super) struct Events {
    /// From before the first whole view.
    early: VecDeque<Publication>,
    told: Told,
}

impl Events {
    pub(super) fn dropped(&mut self, events: u64) {
        self.told.dropped += events;
    }

    /// Whether some wait for a view.
    pub(super) fn are_early(&self) -> bool {
        !self.early.is_empty()
    }
}

/// A node that listens for an event.
pub(crate) struct Listener {
    pub(crate) node: NodeId,
    /// Whether it means the same by the event.
    pub(crate) same_layout: bool,
}

/// What came of an attempt to tell one node.
enum Telling {
    Sent,
    /// A lane there is being made.
    Waits,
    Dropped,
}

impl Lanes {
    /// Whether an event may be for other nodes as well: a look at what the view says of its message.
    #[inline]
    pub(crate) fn is_heard_elsewhere(&mut self, index: u32, contract: fn() -> Contract) -> bool {
        if self.is_too_early() {
            return true;
        }
        self.prepare(index, contract);
        let Some(Some(served)) = self.served.get(index as usize) else { return false };
        served.other_layout
            || match served.nodes() {
                [] => false,
                [only] => Some(*only) != self.view.own(),
                _ => true,
            }
    }

    /// Whether nobody can say yet who listens.
    pub(crate) fn is_too_early(&self) -> bool {
        self.view.forming()
    }

    /// Sends an event, which this process archived, to every other node that listens.
    pub(crate) fn publish(&mut self, event: &OwnedFrame, contract: fn() -> Contract, now: Time) {
        let Some(local) = event.local() else { return };
        let index = index_of(&local.header());
        if !self.is_heard_elsewhere(index, contract) {
            return;
        }
        if !self.is_too_early() && self.events.early.is_empty() {
            return self.tell_all(contract, event, now);
        }
        if self.events.early.len() >= EVENTS_WAITING {
            return self.events.dropped(1);
        }
        let mut copy = pool::take();
        copy.copy_local(local);
        self.events.early.push_back(Publication { frame: copy, contract });
    }

    /// Sends what was published before there was a whole view, if there is one now.
    pub(crate) fn publish_early(&mut self, now: Time) {
        if !self.events.are_early() || self.is_too_early() {
            return;
        }
        for Publication { frame, contract } in std::mem::take(&mut self.events.early) {
            self.tell_all(contract, &frame, now);
            pool::give(frame);
        }
    }

    fn tell_all(&mut self, contract: fn() -> Contract, event: &OwnedFrame, now: Time) {
        let Some(header) = event.header() else { return };
        let index = index_of(&header);
        self.prepare(index, contract);
        let Some(served) = self.served[index as usize].take() else { return };
        if served.other_layout {
            let differ = self.view.candidates(header.message).len() - served.nodes().len();
            self.events.told.other_layout += differ as u64;
        }
        for &position in served.nodes() {
            if let Some(&Some(peer)) = self.positions.get(position as usize) {
                self.tell(peer, event, &header, now);
            }
        }
        self.served[index as usize] = Some(served);
    }

    /// Sends an event to a peer, or lets it wait for a lane there.
    fn tell(&mut self, peer: u32, event: &OwnedFrame, header: &Header, now: Time) {
        match self.try_to_tell(peer, event, header, now) {
            Telling::Sent => self.events.told.sent += 1,
            Telling::Dropped => self.events.dropped(1),
            Telling::Waits => match (self.peers.get_mut(peer), event.local()) {
                (Some(peer), Some(local)) if peer.events.len() < EVENTS_WAITING => {
                    let mut copy = pool::take();
                    copy.copy_local(local);
                    peer.events.push_back(copy);
                }
                _ => self.events.dropped(1),
            },
        }
    }

    fn try_to_tell(&mut self, peer: u32, event: &OwnedFrame, header: &Header, now: Time) -> Telling {
        let lane = match self.way_of_event(peer, header, now) {
            Way::Lane(lane) => lane,
            Way::Opening => return Telling::Waits,
            Way::Away => return Telling::Dropped,
        };
        let travels = Header { context: self.digest(), ..*header };
        // Past the calls that wait there: what cannot wait is not kept from room that there is.
        let body = &event.bytes()[HEADER_BYTES..];
        let queued = self.machine(lane, |machine| machine.forward(travels, body).is_ok());
        if queued == Some(true) { Telling::Sent } else { Telling::Dropped }
    }

    /// How an event gets to a peer: one with a key to the shard that its key has there, as far as can be told from here.
    pub(crate) fn way_of_event(&mut self, peer: u32, header: &Header, now: Time) -> Way {
        let shards = self.peers.get(peer).map_or(1, |peer| peer.node.shards);
        let keyed = header.flags.contains(Flags::KEYED);
        self.way(peer, keyed.then(|| part_of(header.key, usize::from(shards.max(1))) as u16), now)
    }

    /// A lane to a peer has opened, takes long, or could not be, or the peer has begun another life: the events that waited for it
    /// leave, wait on, or are dropped.
    pub(super) fn send_events(&mut self, peer: u32, now: Time) {
        let waiting =
            self.peers.get_mut(peer).map(|peer| std::mem::take(&mut peer.events)).unwrap_or_default();
        for event in waiting {
            let telling = event.header().map(|header| self.try_to_tell(peer, &event, &header, now));
            match (telling, self.peers.get_mut(peer)) {
                (Some(Telling::Waits), Some(peer)) => {
                    peer.events.push_back(event);
                    continue;
                }
                (Some(Telling::Sent), _) => self.events.told.sent += 1,
                _ => self.events.dropped(1),
            }
            pool::give(event);
        }
    }

    /// The other nodes that listen for a message, in the order of their ids.
    pub(crate) fn listeners(
        &mut self,
        index: u32,
        message: MessageId,
        contract: fn() -> Contract,
    ) -> Vec<Listener> {
        self.prepare(index, contract);
        let Some(Some(served)) = self.served.get(index as usize) else { return Vec::new() };
        let others = self.view.candidates(message).iter().filter(|&&at| Some(at) != self.view.own());
        let listener = |&position: &u32| Listener {
            node: self.view.members()[position as usize].node.id.clone(),
            same_layout: served.contains(position),
        };
        others.map(listener).collect()
    }

    /// The peer whose id has this hash, as long as it is up and listens for the message.
    pub(crate) fn listening(&self, node: u64, message: MessageId) -> Option<u32> {
        let is_it = |position: &u32| self.view.members()[*position as usize].node.id.hash64() == node;
        let position = self.view.candidates(message).iter().copied().find(is_it)?;
        *self.positions.get(position as usize)?
    }

    /// Nothing more leaves: what waits is dropped.
    pub(crate) fn drop_events(&mut self) {
        let early = std::mem::take(&mut self.events.early).len();
        let waiting: usize = self.peers.all_mut().map(|peer| std::mem::take(&mut peer.events).len()).sum();
        self.events.dropped((early + waiting) as u64);
    }

    /// What became of events since the last look.
    pub(crate) fn take_told(&mut self) -> Told {
        std::mem::take(&mut self.events.told)
    }
}

/// The type index of an event that this process has archived.
fn index_of(header: &Header) -> u32 {
    u32::try_from(header.context).unwrap_or(0)
}
