//! All lanes of a shard: a slab of connections, and lists of those that need something.
//!
//! A shard may hold a thousand lanes, most of them quiet, so a turn never walks over all. Each lane stands in a list
//! while it has something to do there, and every change goes through [`Lanes::with`], which puts it into them:
//!
//! ```text
//!   watched   read in the turn itself: it had traffic a moment ago, or the world reported it
//!   unsent    has bytes for the socket
//!   waited    calls wait for room on it
//!   closing   has ended, and its socket is kept a little so that the peer reads why
//! ```
//!
//! Time (heartbeats, silence) is looked at for all together, when the first of them is due and not more often than
//! [`TICK_INTERVAL`]. How lanes come to be is in [`connecting`], what is put into them in [`queueing`], and which node a request
//! goes to in [`ways`](super::ways).

mod connecting;
mod queueing;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use catga_codec::{EncodeError, MessageId};
use catga_discovery::{Contact, Contacts, Node, NodeId, View};

use crate::call::table::LaneKey;
use crate::call::waiting::Waiting;
use crate::choice::Served;
use crate::error::Refusal;
use crate::lane::buffer::ReceiveBuffer;
use crate::lane::close::{CloseReason, Closed, Traffic};
use crate::lane::events::Events;
use crate::lane::greeting::Greeting;
use crate::lane::handshake::Verdict;
use crate::lane::io::{LaneIo, Read};
use crate::lane::key::ClusterKey;
use crate::lane::outcome::{Fate, SendError};
use crate::lane::peers::{Missed, Peers};
use crate::lane::protocol::Lane;
use crate::lane::rivals::Rivals;
use crate::runtime::World;
use crate::shard::mesh::NoRoom;
use crate::time::Time;

/// Heartbeats and the like may be late by so much.
const TICK_INTERVAL: Duration = Duration::from_millis(2);

/// What a shard needs in order to have lanes.
#[derive(Clone, Debug)]
pub(crate) struct LaneSetup {
    /// What each greeting of this node says, apart from the shards and the nonce.
    pub(crate) greeting: Greeting,
    pub(crate) key: ClusterKey,
}

#[derive(Default)]
struct Place {
    generation: u32,
    lane: Option<Box<LaneIo>>,
}

/// All lanes of a shard.
pub(crate) struct Lanes {
    pub(super) setup: Option<LaneSetup>,
    pub(super) shard: u16,
    places: Vec<Place>,
    /// Places that are taken.
    held: usize,
    open: usize,
    watched: Vec<LaneKey>,
    unsent: Vec<LaneKey>,
    waited: Vec<LaneKey>,
    /// The oldest first.
    closing: VecDeque<LaneKey>,
    /// Of these, those that had to go early.
    cut: u64,
    /// Connections made to this shard, the oldest first: all that have not proven anything yet, and some that have since.
    greeting: VecDeque<LaneKey>,
    /// A lane has ended and nobody has taken note.
    news: bool,
    tick_at: Time,
    pub(super) peers: Peers,
    pub(super) view: Arc<View>,
    /// When it came.
    pub(super) view_at: Time,
    /// For each position of the view the peer there; this node itself is none.
    pub(super) positions: Vec<Option<u32>>,
    /// And the lane that most requests take there.
    pub(super) usual: Vec<Option<LaneKey>>,
    /// Who serves what, by type index, as far as it was asked since the view came.
    pub(super) served: Vec<Option<Served>>,
    /// Calls that wait for the next view, or for a moment.
    pub(super) unresolved: VecDeque<Waiting>,
    pub(super) retry_at: Time,
    /// Calls that shall look again for their way.
    pub(super) again: Vec<Waiting>,
    /// Events for other nodes.
    pub(super) events: Events,
    pub(super) contacts_changed: bool,
    /// Lives that come although a later one is here.
    rivals: Rivals,
    pub(super) draws: u64,
}

/// How a lane has ended, and what became of what it carried.
pub(crate) struct Ended {
    pub(crate) key: LaneKey,
    pub(crate) closed: Closed,
    pub(crate) traffic: Traffic,
    /// Whether there was a connection at all.
    pub(crate) connected: bool,
    /// What the socket said, if it was the socket that ended it.
    pub(crate) broke: Option<io::Error>,
    /// Whether anything can have hung on it.
    pub(crate) was_open: bool,
}

/// What is done with a lane that has just opened.
pub(crate) enum Opened {
    /// It is this shard's.
    Here,
    /// It is for another shard of this node.
    For(u16, Box<LaneIo>),
    /// It was closed again: the peer's life is over, or it has more lanes than it may.
    Closed,
}

impl Lanes {
    pub(crate) fn new(shard: u16, setup: Option<LaneSetup>) -> Self {
        let seed = setup
            .as_ref()
            .map_or(0, |setup| catga_codec::hash::hash64(setup.greeting.node.as_str().as_bytes()));
        let jitter = seed ^ u64::from(shard);
        // Even that it has none is news for the agent.
        let contacts_changed = setup.is_some();
        Self {
            setup,
            shard,
            places: Vec::new(),
            held: 0,
            open: 0,
            watched: Vec::new(),
            unsent: Vec::new(),
            waited: Vec::new(),
            closing: VecDeque::new(),
            cut: 0,
            greeting: VecDeque::new(),
            news: false,
            tick_at: Time::NEVER,
            peers: Peers::new(jitter),
            view: Arc::new(View::empty()),
            view_at: Time::ZERO,
            positions: Vec::new(),
            usual: Vec::new(),
            served: Vec::new(),
            unresolved: VecDeque::new(),
            retry_at: Time::NEVER,
            again: Vec::new(),
            events: Events::default(),
            contacts_changed,
            rivals: Rivals::default(),
            draws: jitter,
        }
    }

    /// Whether the shard has, or may get, lanes at all.
    pub(crate) fn any(&self) -> bool {
        self.setup.is_some()
    }

    /// The hash of this node's id.
    pub(crate) fn node(&self) -> u64 {
        self.setup.as_ref().map_or(0, |setup| setup.greeting.node.hash64())
    }

    /// The id of this node; none without a cluster.
    pub(crate) fn id(&self) -> Option<NodeId> {
        self.setup.as_ref().map(|setup| setup.greeting.node.clone())
    }

    pub(super) fn get(&self, key: LaneKey) -> Option<&LaneIo> {
        let place = self.places.get(key.index as usize)?;
        if place.generation == key.generation { place.lane.as_deref() } else { None }
    }

    /// Does something with a lane, and takes note of what it needs afterwards.
    #[inline]
    fn with<T>(&mut self, key: LaneKey, work: impl FnOnce(&mut LaneIo) -> T) -> Option<T> {
        let place = self.places.get_mut(key.index as usize)?;
        if place.generation != key.generation {
            return None;
        }
        let lane = place.lane.as_deref_mut()?;
        let done = work(lane);
        if !lane.is_unsent && !lane.machine.unsent().is_empty() {
            lane.is_unsent = true;
            self.unsent.push(key);
        }
        self.news |= lane.has_news();
        Some(done)
    }

    /// The lane in a place, if there is one. All places together are walked over seldom, and without a list of them.
    fn at(&self, index: usize) -> Option<LaneKey> {
        let place = self.places.get(index)?;
        place.lane.as_ref().map(|_| LaneKey { index: index as u32, generation: place.generation })
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &LaneIo> {
        self.places.iter().filter_map(|place| place.lane.as_deref())
    }

    fn insert(&mut self, lane: LaneIo) -> LaneKey {
        let index = self.places.iter().position(|place| place.lane.is_none()).unwrap_or_else(|| {
            self.places.push(Place::default());
            self.places.len() - 1
        });
        self.held += 1;
        self.tick_at = self.tick_at.min(lane.next_tick());
        let place = &mut self.places[index];
        place.lane = Some(Box::new(lane));
        LaneKey { index: index as u32, generation: place.generation }
    }

    fn remove(&mut self, key: LaneKey) -> Option<Box<LaneIo>> {
        self.get(key)?;
        let place = &mut self.places[key.index as usize];
        place.generation = place.generation.wrapping_add(1);
        self.held -= 1;
        place.lane.take()
    }

    fn watch(&mut self, key: LaneKey) {
        let newly = self.with(key, |lane| !std::mem::replace(&mut lane.is_watched, true));
        if newly == Some(true) {
            self.watched.push(key);
        }
    }

    // ---- moving bytes -----------------------------------------------------------------------------------------

    /// The world says that this lane can be read or written.
    pub(crate) fn mark_ready(&mut self, key: LaneKey) {
        let _ = self.with(key, |lane| lane.ready = true);
        self.watch(key);
    }

    /// The lanes that are to be read in this turn, into `due`.
    pub(crate) fn due_for_reading(&mut self, now: Time, due: &mut Vec<LaneKey>) {
        due.clear();
        let mut place = 0;
        while let Some(&key) = self.watched.get(place) {
            let looked = self.with(key, |lane| {
                let hot = lane.cadence.is_hot(now);
                let reads = lane.ready || (hot && lane.cadence.read_due(now));
                lane.is_watched = lane.ready || hot;
                (reads, lane.is_watched)
            });
            let (reads, stays) = looked.unwrap_or((false, false));
            if reads {
                due.push(key);
            }
            if stays {
                place += 1;
            } else {
                self.watched.swap_remove(place);
            }
        }
    }

    /// Reads once. Gives the buffer out, so that its frames can be handled without borrowing the lanes.
    pub(crate) fn read(&mut self, key: LaneKey, world: &mut dyn World, now: Time) -> Option<ReceiveBuffer> {
        match self.with(key, |lane| lane.read(key, world, now))? {
            Read::Some(receive) => Some(receive),
            // Of a lane that was handed over, what was read past the greeting.
            Read::Nothing => self.with(key, LaneIo::take_unread)?,
        }
    }

    /// The shard was paused, and nobody has read any lane meanwhile.
    #[cold]
    pub(crate) fn paused(&mut self, pause: Duration) {
        for index in 0..self.places.len() {
            let Some(key) = self.at(index) else { continue };
            let _ = self.with(key, |lane| lane.machine.paused(pause));
        }
    }

    /// Puts the buffer back after its frames were handled.
    pub(crate) fn put_back(&mut self, key: LaneKey, receive: ReceiveBuffer, frames: u64, now: Time) {
        let leaving = self.with(key, |lane| {
            lane.receive = Some(receive);
            lane.cadence.took(frames, now);
            lane.takes_leave()
        });
        self.contacts_changed |= leaving == Some(true);
        self.watch(key);
    }

    pub(crate) fn machine<T>(&mut self, key: LaneKey, work: impl FnOnce(&mut Lane) -> T) -> Option<T> {
        self.with(key, |lane| work(&mut lane.machine))
    }

    /// Whether a request on this lane must be turned away before it is looked at, and why.
    pub(crate) fn turns_away(&self, key: LaneKey, message: MessageId) -> Option<Refusal> {
        if self.get(key)?.machine.is_congested() {
            return Some(Refusal::Overloaded);
        }
        self.refuses_layout(key, message).then_some(Refusal::Layout)
    }

    /// Whether the peer means something else by this message.
    pub(crate) fn refuses_layout(&self, key: LaneKey, message: MessageId) -> bool {
        let Some(lane) = self.get(key).filter(|lane| lane.refuses_some) else { return false };
        let agreement = lane.machine.agreement();
        agreement.is_some_and(|agreed| matches!(agreed.verdict(message), Some(Verdict::Refused { .. })))
    }

    /// Writes what is due. `all`: whatever the cadence says, because the shard is about to sleep.
    /// Returns how many writes it made.
    pub(crate) fn flush(&mut self, world: &mut dyn World, now: Time, all: bool) -> u64 {
        let (mut writes, mut place) = (0, 0);
        while let Some(&key) = self.unsent.get(place) {
            let left = self.with(key, |lane| {
                writes += u64::from(lane.write(key, world, now, all));
                lane.is_unsent = !lane.machine.unsent().is_empty();
                lane.is_unsent
            });
            if left == Some(true) {
                place += 1;
            } else {
                self.unsent.swap_remove(place);
            }
        }
        writes
    }

    // ---- time and the end -------------------------------------------------------------------------------------

    /// Lets time pass: heartbeats, silence, greetings that take too long. Reports each lane that has ended since.
    pub(crate) fn tick(&mut self, now: Time, ended: &mut Vec<Ended>) {
        if !self.news && now < self.tick_at {
            return;
        }
        self.news = false;
        let mut next = Time::NEVER;
        for index in 0..self.places.len() {
            let Some(key) = self.at(index) else { continue };
            let closed = self.with(key, |lane| {
                if now >= lane.machine.next_tick() {
                    lane.machine.on_tick(now);
                }
                if !lane.connected && now >= lane.connect_by {
                    lane.break_off(io::ErrorKind::TimedOut.into());
                }
                next = next.min(lane.next_tick());
                let closed = lane.machine.closed().filter(|_| !lane.settled);
                lane.settled |= closed.is_some();
                let (connected, broke) = (lane.connected, closed.and_then(|_| lane.broke.take()));
                let was_open = false;
                let traffic = lane.machine.traffic();
                closed.map(|closed| Ended { key, closed, traffic, connected, broke, was_open })
            });
            if let Some(Some(lane)) = closed {
                let was_open = self.settle(key, lane.closed, now);
                ended.push(Ended { was_open, ..lane });
            }
        }
        self.tick_at = next.max(now + TICK_INTERVAL);
    }

    /// A lane has ended: nothing leads over it any more. Says whether it was open.
    fn settle(&mut self, key: LaneKey, closed: Closed, now: Time) -> bool {
        self.closing.push_back(key);
        let Some(lane) = self.get(key) else { return false };
        let (was_open, dial) = (lane.is_open, lane.dial);
        let peer = lane.node.as_ref().and_then(|node| self.peers.find(&node.id));
        if let Some(node) = lane.node.clone() {
            self.rivals.lane_ended(&node, closed, was_open, now);
        }
        let _ = self.with(key, |lane| (lane.is_open, lane.receive) = (false, None));
        self.open -= usize::from(was_open);
        if let Some(peer) = peer.and_then(|peer| self.peers.get_mut(peer)) {
            peer.lanes.retain(|(_, lane)| *lane != key);
            self.contacts_changed = true;
            self.find_usual();
        }
        if let Some(dial) = dial {
            let why = self.peers.target(dial).and_then(|target| Missed::by(closed, was_open, target));
            self.missed(dial, why, now);
        }
        was_open
    }

    /// Lets go of lanes that have ended and need their sockets no longer. Their calls have been ended before: until then
    /// the lane is asked for the [`fate`](Self::fate) of each.
    pub(crate) fn bury(&mut self, world: &mut dyn World, now: Time) {
        let mut closing = std::mem::take(&mut self.closing);
        closing.retain(|&key| {
            let done = self.with(key, |lane| {
                if lane.machine.unsent().is_empty() && !lane.finished_writing {
                    lane.finished_writing = true;
                    lane.stream.finish();
                }
                lane.machine.is_finished(now)
            });
            if done != Some(false) {
                self.drop_now(key, world);
            }
            done == Some(false)
        });
        self.closing = closing;
    }

    /// How many ended connections had to go early since the last look.
    pub(crate) fn take_cut(&mut self) -> u64 {
        std::mem::take(&mut self.cut)
    }

    /// What became of a request that was queued at `offset` of a lane that has ended.
    pub(crate) fn fate(&self, key: LaneKey, offset: u64) -> Fate {
        self.get(key).map_or(Fate::Unknown, |lane| lane.machine.fate(offset))
    }

    /// Whom a lane leads to, for logs: the address of the connection, and the id of the node if it has said so and was believed.
    pub(crate) fn who(&self, key: LaneKey) -> (Option<String>, Option<String>) {
        let lane = self.get(key);
        let node = lane.and_then(|lane| lane.node.as_ref());
        (lane.map(|lane| lane.stream.peer()), node.map(|node| node.id.to_string()))
    }

    /// The node and shard at the other end of a lane.
    pub(crate) fn other_end(&self, key: LaneKey) -> Option<(&Arc<Node>, u16)> {
        let lane = self.get(key)?;
        Some((lane.node.as_ref()?, lane.machine.agreement()?.peer_shard))
    }

    /// The calls that waited for a lane that has ended look for another way.
    pub(crate) fn take_waiting(&mut self, key: LaneKey) {
        let waiting = self.with(key, |lane| lane.line.dissolve());
        self.again.extend(waiting.into_iter().flatten());
    }

    /// When a lane or a dial next wants something.
    pub(crate) fn next_tick(&self) -> Time {
        if self.news || !self.again.is_empty() || self.contacts_changed {
            return Time::ZERO;
        }
        let closing = if self.closing.is_empty() { Time::NEVER } else { self.tick_at };
        self.tick_at.min(closing).min(self.peers.next_due()).min(self.retry_at)
    }

    /// Tells all peers that this node leaves: they stop sending it calls.
    pub(crate) fn leave(&mut self) {
        for index in 0..self.places.len() {
            let Some(key) = self.at(index) else { continue };
            let _ = self.with(key, |lane| lane.machine.leave());
        }
    }

    /// Closes all lanes in order.
    pub(crate) fn close_all(&mut self, reason: CloseReason) {
        for index in 0..self.places.len() {
            let Some(key) = self.at(index) else { continue };
            let _ = self.with(key, |lane| lane.machine.close(reason));
        }
        self.peers.rest();
    }

    /// Whether neither side of any lane owes the other an answer, and all is written.
    pub(crate) fn are_idle(&self) -> bool {
        self.all().all(|lane| !lane.machine.is_open() || lane.machine.is_idle())
    }

    /// Whether every Close that was said has been written.
    pub(crate) fn are_written(&self) -> bool {
        self.all().all(|lane| lane.machine.unsent().is_empty() || !lane.connected)
    }

    /// Connections, open or not.
    pub(crate) fn held(&self) -> usize {
        self.held
    }

    /// Lanes that are open.
    pub(crate) fn open(&self) -> usize {
        self.open
    }

    /// Whom each open lane leads to, and whether it has said there that it leaves.
    fn met(&self) -> impl Iterator<Item = (&Arc<Node>, bool)> {
        let lanes = self.peers.all().flat_map(|peer| &peer.lanes).filter_map(|(_, key)| self.get(*key));
        lanes.filter_map(|lane| Some((lane.node.as_ref()?, lane.machine.peer_is_leaving())))
    }

    /// What this shard knows by its lanes, if that has changed since it was last asked.
    pub(crate) fn new_contacts(&mut self, now: Time) -> Option<Contacts> {
        if !std::mem::take(&mut self.contacts_changed) {
            return None;
        }
        // By what each lane's own greeting said: while a node comes back there may be lanes to two lives of it, and that the
        // old one leaves says nothing about the new one.
        let mut nodes: Vec<Contact> = Vec::new();
        for (node, leaving) in self.met() {
            match nodes
                .iter_mut()
                .find(|known| known.node.id == node.id && known.node.incarnation == node.incarnation)
            {
                Some(known) => known.leaving |= leaving,
                None => nodes.push(Contact { node: node.clone(), leaving }),
            }
        }
        let (refused, settled) = (self.peers.refused().collect(), self.peers.are_settled());
        Some(Contacts { nodes, refused, superseded: self.rivals.lasting(now), settled })
    }
}

#[cfg(test)]
impl Lanes {
    /// For tests that look from outside whether bounds are kept.
    pub(crate) fn census(&self) -> super::peers::Census {
        let of_peers = self.peers.census();
        let lanes = self.all().map(|lane| lane.line.len()).max().unwrap_or(0);
        let waiting_max = of_peers.waiting_max.max(lanes).max(self.unresolved.len()).max(self.again.len());
        let opening = self.all().filter(|lane| !lane.is_open && lane.machine.closed().is_none()).count();
        let unread = self.all().filter(|lane| lane.settled).filter_map(|lane| lane.receive.as_ref());
        let ended_bytes = unread.map(ReceiveBuffer::capacity).sum();
        super::peers::Census { open: self.open, opening, waiting_max, ended_bytes, ..of_peers }
    }
}

fn no_room(error: SendError) -> NoRoom {
    match error {
        SendError::TooLong { .. } => NoRoom::Never(EncodeError::TooLarge),
        SendError::Encode(error) => NoRoom::Never(error),
        _ => NoRoom::Wait,
    }
}
