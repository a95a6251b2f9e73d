//! A shard's lanes: their sockets, buffers and cadence, and the choice of one for a request.
//!
//! The protocol is in [`protocol`](super::protocol); this file moves bytes between it and the stream, and knows which lane
//! leads to a node that handles a message.
//!
//! **Cadence.** A system call costs as much as dispatching a dozen frames, so a busy lane is read and written at
//! intervals in which a few dozen frames gather, at most [`IO_GAP_MAX`]. A quiet one (one call in flight, say) is read in
//! every turn while its shard spins, and after [`HOT`] without traffic only when the world reports it ready.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use catga_codec::limits::HEADER_BYTES;
use catga_codec::{CallId, Contract, EncodeError, Header, Kind, Message, MessageId, OwnedFrame};
use catga_discovery::{Endpoint, NodeId};

use crate::call::table::LaneKey;
use crate::error::NotSent;
use crate::lane::buffer::ReceiveBuffer;
use crate::lane::close::{CloseReason, Closed, LaneStats};
use crate::lane::config::{LaneConfig, SEND_BYTES_MAX};
use crate::lane::greeting::Greeting;
use crate::lane::handshake::Verdict;
use crate::lane::outcome::{Fate, SendError};
use crate::lane::protocol::Lane;
use crate::limits::{CONNECT_TIMEOUT, LANES_MAX, REDIAL_MAX, REDIAL_MIN};
use crate::pool;
use crate::route::ByMessage;
use crate::runtime::{Stream, Token, World};
use crate::shard::mesh::NoRoom;
use crate::time::Time;

/// The longest pause between two reads, or two writes, of a busy lane. It is what coalescing may add to a latency.
const IO_GAP_MAX: Duration = Duration::from_micros(20);
/// As many frames should gather for one system call.
const IO_BATCH_FRAMES: u64 = 64;
/// Below this many nanoseconds between two frames a lane is busy.
const BUSY_INTERVAL_NS: u64 = 2_000;
/// Unsent bytes that are written without waiting for the gap to end.
const WRITE_BYTES: usize = 32 * 1024;
/// A lane without traffic for so long is not polled any more.
const HOT: Duration = Duration::from_millis(1);

/// One connection of this shard.
pub(crate) struct LaneIo {
    stream: Box<dyn Stream>,
    machine: Lane,
    /// Out while its frames are handled.
    receive: Option<ReceiveBuffer>,
    /// The dial that made it, if this side did.
    dial: Option<usize>,
    connected: bool,
    /// The connection attempt is given up then.
    connect_by: Time,
    /// The world reported it readable.
    ready: bool,
    write_blocked: bool,
    finished_writing: bool,
    /// Its calls have been ended.
    settled: bool,
    refuses_some: bool,
    cadence: Cadence,
    /// Calls that wait for room, in order.
    waiting: VecDeque<(CallId, Option<OwnedFrame>)>,
}

/// When to read and write next.
#[derive(Debug)]
struct Cadence {
    last_traffic: Time,
    last_read: Time,
    last_write: Time,
    /// Nanoseconds between two frames, a moving average.
    interval_ns: u64,
}

impl Cadence {
    fn new(now: Time) -> Self {
        Self { last_traffic: now, last_read: now, last_write: now, interval_ns: u64::MAX / 2 }
    }

    fn gap(&self) -> Duration {
        if self.interval_ns >= BUSY_INTERVAL_NS {
            return Duration::ZERO;
        }
        IO_GAP_MAX.min(Duration::from_nanos(self.interval_ns * IO_BATCH_FRAMES))
    }

    fn is_hot(&self, now: Time) -> bool {
        now.since(self.last_traffic) < HOT
    }

    fn read_due(&self, now: Time) -> bool {
        // The longer nothing has come, the less often it is looked for: that costs an eighth of the wait at most.
        let pause = now.since(self.last_traffic) / 8;
        now.since(self.last_read) >= pause.max(self.gap())
    }

    fn write_due(&self, now: Time, unsent: usize) -> bool {
        unsent >= WRITE_BYTES || now.since(self.last_write) >= self.gap()
    }

    /// `frames` came since the last time that some came.
    fn took(&mut self, frames: u64, now: Time) {
        if frames == 0 {
            return;
        }
        let elapsed = now.since(self.last_traffic).as_nanos() as u64;
        let interval = (elapsed / frames).min(1_000_000);
        self.interval_ns =
            if self.interval_ns > 1_000_000 { interval } else { (self.interval_ns * 7 + interval) / 8 };
        self.last_traffic = now;
    }
}

/// A node to keep a lane to.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) id: NodeId,
    pub(crate) endpoint: Endpoint,
}

/// What a shard needs in order to have lanes.
#[derive(Clone, Debug)]
pub(crate) struct LaneSetup {
    /// What each greeting of this node says, apart from the shards.
    pub(crate) greeting: Greeting,
    pub(crate) peers: Arc<[Peer]>,
}

/// The keeping up of one lane to one peer.
struct Dial {
    peer: Peer,
    lane: Option<LaneKey>,
    at: Time,
    pause: Duration,
    /// The first attempt has not come to an end yet.
    fresh: bool,
    /// How many shards the peer has, once known.
    shards: u16,
}

#[derive(Default)]
struct Place {
    generation: u32,
    lane: Option<Box<LaneIo>>,
}

/// The lanes over which one message can go.
struct Candidates {
    lanes: Vec<LaneKey>,
    next: usize,
    /// A node that is connected handles it, with another layout.
    other_layout: bool,
}

/// All lanes of a shard.
pub(crate) struct Lanes {
    setup: Option<LaneSetup>,
    shard: u16,
    places: Vec<Place>,
    dials: Vec<Dial>,
    known: ByMessage<Candidates>,
    pub(crate) stats: LaneStats,
    /// For jitter: a seed of its own for each shard.
    jitter: u64,
}

/// How a lane has ended, and what became of what it carried.
pub(crate) struct Ended {
    pub(crate) key: LaneKey,
    pub(crate) closed: Closed,
}

impl Lanes {
    pub(crate) fn new(shard: u16, setup: Option<LaneSetup>) -> Self {
        let dial = |peer: &Peer| Dial {
            peer: peer.clone(),
            lane: None,
            at: Time::ZERO,
            pause: REDIAL_MIN,
            fresh: true,
            shards: 1,
        };
        let dials = setup.iter().flat_map(|setup| setup.peers.iter().map(dial)).collect();
        let seed = setup
            .as_ref()
            .map_or(0, |setup| catga_codec::hash::hash64(setup.greeting.node.as_str().as_bytes()));
        Self {
            setup,
            shard,
            places: Vec::new(),
            dials,
            known: ByMessage::default(),
            stats: LaneStats::default(),
            jitter: seed ^ u64::from(shard),
        }
    }

    /// Whether the shard has, or may get, lanes at all.
    pub(crate) fn any(&self) -> bool {
        self.setup.is_some()
    }

    fn get(&mut self, key: LaneKey) -> Option<&mut LaneIo> {
        let place = self.places.get_mut(key.index as usize)?;
        if place.generation == key.generation { place.lane.as_deref_mut() } else { None }
    }

    fn all(&self) -> impl Iterator<Item = (LaneKey, &LaneIo)> {
        self.places.iter().enumerate().filter_map(|(index, place)| {
            let key = LaneKey { index: index as u32, generation: place.generation };
            place.lane.as_deref().map(|lane| (key, lane))
        })
    }

    fn insert(&mut self, lane: Box<LaneIo>) -> LaneKey {
        let index = self.places.iter().position(|place| place.lane.is_none()).unwrap_or_else(|| {
            self.places.push(Place::default());
            self.places.len() - 1
        });
        let place = &mut self.places[index];
        place.lane = Some(lane);
        LaneKey { index: index as u32, generation: place.generation }
    }

    fn remove(&mut self, key: LaneKey) -> Option<Box<LaneIo>> {
        self.get(key)?;
        let place = &mut self.places[key.index as usize];
        place.generation = place.generation.wrapping_add(1);
        place.lane.take()
    }

    // ---- choosing ---------------------------------------------------------------------------------------------

    /// A lane to a node that handles the message, by round robin. `contract` is what this side means by it.
    pub(crate) fn candidate(
        &mut self,
        id: MessageId,
        contract: fn() -> Contract,
    ) -> Result<LaneKey, NotSent> {
        if self.setup.is_none() {
            return Err(NotSent::NoHandler);
        }
        if !self.known.contains_key(&id) {
            let found = self.find(&contract());
            self.known.insert(id, found);
        }
        let Some(candidates) = self.known.get_mut(&id) else { return Err(NotSent::NoHandler) };
        if candidates.lanes.is_empty() {
            return Err(if candidates.other_layout { NotSent::Layout } else { NotSent::NoHandler });
        }
        candidates.next = if candidates.next + 1 < candidates.lanes.len() { candidates.next + 1 } else { 0 };
        Ok(candidates.lanes[candidates.next])
    }

    /// One open lane to each node that handles the message with the same layout.
    fn find(&self, contract: &Contract) -> Candidates {
        let mut nodes: Vec<(NodeId, LaneKey)> = Vec::new();
        let mut other_layout = false;
        for (key, lane) in self.all().filter(|(_, lane)| lane.machine.is_open()) {
            let Some(agreement) = lane.machine.agreement() else { continue };
            match agreement.judge(contract) {
                Some(Verdict::Accepted { peer_serves: true })
                    if !nodes.iter().any(|(node, _)| *node == agreement.peer) =>
                {
                    nodes.push((agreement.peer.clone(), key));
                }
                Some(Verdict::Refused { difference }) => {
                    tracing::warn!(name = contract.name, peer = %agreement.peer, difference, "layouts differ");
                    other_layout = true;
                }
                _ => {}
            }
        }
        Candidates { lanes: nodes.into_iter().map(|(_, key)| key).collect(), next: 0, other_layout }
    }

    /// Whether a peer has not been reached for the first time yet, so that it is too early to say that nobody handles
    /// a message.
    pub(crate) fn is_forming(&self) -> bool {
        self.dials.iter().any(|dial| dial.fresh)
    }

    // ---- sending ----------------------------------------------------------------------------------------------

    /// Queues a request. Returns the offset in the lane's stream at which it begins.
    #[inline]
    pub(crate) fn request<M: Message>(
        &mut self,
        key: LaneKey,
        header: Header,
        message: &M,
        granted: bool,
    ) -> Result<u64, NoRoom> {
        let Some(lane) = self.get(key) else { return Err(NoRoom::Wait) };
        if !granted && !lane.waiting.is_empty() {
            return Err(NoRoom::Wait);
        }
        lane.machine.send(header, message).map(|queued| queued.offset).map_err(no_room)
    }

    /// Queues a request that was archived elsewhere. Gives the frame back with what there is no room for: now, or ever.
    pub(crate) fn forward(
        &mut self,
        key: LaneKey,
        frame: OwnedFrame,
        granted: bool,
    ) -> Result<u64, (OwnedFrame, NoRoom)> {
        let Some(lane) = self.get(key) else { return Err((frame, NoRoom::Wait)) };
        if !granted && !lane.waiting.is_empty() {
            return Err((frame, NoRoom::Wait));
        }
        let Some(header) = frame.header() else { return Err((frame, NoRoom::Wait)) };
        match lane.machine.forward(header, &frame.bytes()[HEADER_BYTES..]) {
            Ok(queued) => {
                pool::give(frame);
                Ok(queued.offset)
            }
            Err(error) => Err((frame, no_room(error))),
        }
    }

    /// Archives an answer into the lane. An answer to a lane that has ended is for nobody.
    #[inline]
    pub(crate) fn answer<M: Message>(
        &mut self,
        key: LaneKey,
        header: Header,
        message: &M,
    ) -> Result<(), EncodeError> {
        let Some(lane) = self.get(key) else { return Ok(()) };
        match lane.machine.send(header, message) {
            Err(SendError::TooLong { .. }) => Err(EncodeError::TooLarge),
            Err(SendError::Encode(error)) => Err(error),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Answers with a code and no payload.
    pub(crate) fn answer_empty(&mut self, key: LaneKey, header: Header) {
        if let Some(lane) = self.get(key) {
            // A lane that has ended needs no answer.
            let _ = lane.machine.forward(header, &[]);
        }
    }

    /// Answers with a frame that came from elsewhere. Says whether it fits a frame of this lane.
    pub(crate) fn answer_with(&mut self, key: LaneKey, frame: OwnedFrame) -> Result<(), EncodeError> {
        let outcome = match (self.get(key), frame.header()) {
            (Some(lane), Some(header)) => lane.machine.forward(header, &frame.bytes()[HEADER_BYTES..]),
            _ => return Ok(()),
        };
        pool::give(frame);
        if matches!(outcome, Err(SendError::TooLong { .. })) { Err(EncodeError::TooLarge) } else { Ok(()) }
    }

    /// Tells the peer that an answer is not wanted. Says whether it will be told.
    pub(crate) fn cancel(&mut self, key: LaneKey, call: CallId) -> bool {
        let header = Header { call, ..Header::new(Kind::Cancel) };
        self.get(key).is_some_and(|lane| lane.machine.forward(header, &[]).is_ok())
    }

    /// Puts a call among those that wait for this lane. Gives it back if there is no such lane any more.
    pub(crate) fn wait(
        &mut self,
        key: LaneKey,
        call: CallId,
        frame: Option<OwnedFrame>,
        again: bool,
        live: impl Fn(CallId) -> bool,
    ) -> Result<(), CallId> {
        let Some(lane) = self.get(key).filter(|lane| lane.machine.closed().is_none()) else {
            return Err(call);
        };
        if again {
            lane.waiting.push_front((call, frame));
            return Ok(());
        }
        if lane.waiting.len() == lane.waiting.capacity() {
            lane.waiting.retain(|(call, _)| live(*call));
        }
        lane.waiting.push_back((call, frame));
        Ok(())
    }

    /// The call that has waited longest for this lane, if there is room for it now.
    pub(crate) fn grant(&mut self, key: LaneKey) -> Option<(CallId, Option<OwnedFrame>)> {
        let lane = self.get(key)?;
        if lane.waiting.is_empty() || !lane.machine.may_call() {
            return None;
        }
        lane.waiting.pop_front()
    }

    // ---- opening ----------------------------------------------------------------------------------------------

    /// Dials what is due.
    pub(crate) fn dial_due(&mut self, world: &mut dyn World, now: Time) {
        let Some(setup) = self.setup.clone() else { return };
        for index in 0..self.dials.len() {
            let dial = &self.dials[index];
            if dial.lane.is_some() || now < dial.at {
                continue;
            }
            let peer = dial.peer.clone();
            let wanted = self.shard % dial.shards.max(1);
            let greeting = Greeting { shard: self.shard, wanted_shard: wanted, ..setup.greeting.clone() };
            let dialled = world.nonce().and_then(|nonce| Ok((nonce, world.dial(&peer.endpoint)?)));
            let (nonce, stream) = match dialled {
                Ok(dialled) => dialled,
                Err(error) => {
                    tracing::debug!(peer = %peer.id, endpoint = %peer.endpoint, %error, "could not dial");
                    self.redial(index, now);
                    continue;
                }
            };
            let config = LaneConfig {
                greeting: Greeting { nonce, ..greeting },
                expected_peer: Some(peer.id.clone()),
                send_bytes_max: SEND_BYTES_MAX,
            };
            let lane = LaneIo::new(stream, Lane::dial(config, now), Some(index), now);
            let key = self.install(lane, world);
            self.dials[index].lane = key;
        }
    }

    /// Takes a connection that was made to this node. Says whether there was room for it; else it is closed.
    pub(crate) fn accept(&mut self, stream: Box<dyn Stream>, world: &mut dyn World, now: Time) -> bool {
        let Some(setup) = &self.setup else { return false };
        let config = LaneConfig {
            greeting: Greeting { shard: self.shard, ..setup.greeting.clone() },
            expected_peer: None,
            send_bytes_max: SEND_BYTES_MAX,
        };
        let mut lane = LaneIo::new(stream, Lane::accept(config, now), None, now);
        lane.connected = true;
        self.install(lane, world).is_some()
    }

    /// Takes over a lane that another shard greeted for this one. Says whether there was room for it; else it is closed.
    pub(crate) fn adopt(&mut self, lane: Box<LaneIo>, world: &mut dyn World) -> bool {
        self.known.clear();
        self.install(*lane, world).is_some()
    }

    fn install(&mut self, lane: LaneIo, world: &mut dyn World) -> Option<LaneKey> {
        if self.places.iter().filter(|place| place.lane.is_some()).count() >= LANES_MAX {
            tracing::warn!(
                lanes_max = LANES_MAX,
                "closed a connection: this shard has as many lanes as it may"
            );
            return None;
        }
        let write = !lane.connected;
        let key = self.insert(Box::new(lane));
        let lane = self.get(key)?;
        if let Err(error) = world.watch(&*lane.stream, Token::Lane(key), write) {
            tracing::warn!(%error, "could not watch a connection; it is closed");
            self.remove(key);
            return None;
        }
        Some(key)
    }

    /// Plans the next attempt, later than the last.
    fn redial(&mut self, index: usize, now: Time) {
        self.jitter = catga_codec::hash::hash_u64(self.jitter.wrapping_add(1));
        let dial = &mut self.dials[index];
        dial.lane = None;
        dial.fresh = false;
        // Between half and all of the pause, so that many who lost the same node do not come back in step.
        let half = dial.pause / 2;
        dial.at = now + half + Duration::from_nanos(self.jitter % (half.as_nanos() as u64).max(1));
        dial.pause = (dial.pause * 2).min(REDIAL_MAX);
    }

    // ---- moving bytes -----------------------------------------------------------------------------------------

    /// The world says that this lane can be read or written.
    pub(crate) fn mark_ready(&mut self, key: LaneKey) {
        if let Some(lane) = self.get(key) {
            lane.ready = true;
        }
    }

    /// The lanes that are to be read in this turn, into `due`.
    pub(crate) fn due_for_reading(&self, now: Time, due: &mut Vec<LaneKey>) {
        due.clear();
        for (key, lane) in self.all() {
            if lane.ready || (lane.cadence.is_hot(now) && lane.cadence.read_due(now)) {
                due.push(key);
            }
        }
    }

    /// Reads once. Gives the buffer out, so that its frames can be handled without borrowing the lanes.
    pub(crate) fn read(&mut self, key: LaneKey, world: &mut dyn World, now: Time) -> Option<ReceiveBuffer> {
        let lane = self.get(key)?;
        lane.ready = false;
        if !lane.connected {
            match lane.stream.connected() {
                Ok(true) => {
                    lane.connected = true;
                    let _ = world.watch(&*lane.stream, Token::Lane(key), false);
                }
                Ok(false) => return None,
                Err(error) => {
                    tracing::debug!(peer = lane.stream.peer(), %error, "could not connect");
                    lane.machine.disconnected();
                    return None;
                }
            }
        }
        lane.cadence.last_read = now;
        let mut receive = lane.receive.take().unwrap_or_else(ReceiveBuffer::new);
        match lane.stream.read(receive.space()) {
            Ok(0) => {
                lane.machine.disconnected();
            }
            Ok(bytes) => {
                receive.filled(bytes);
                lane.machine.received(now);
                return Some(receive);
            }
            Err(error) if would_block(&error) => {}
            Err(error) => {
                tracing::debug!(peer = lane.stream.peer(), %error, "a lane was lost");
                lane.machine.disconnected();
            }
        }
        lane.receive = Some(receive);
        None
    }

    /// Puts the buffer back after its frames were handled.
    pub(crate) fn put_back(&mut self, key: LaneKey, receive: ReceiveBuffer, frames: u64, now: Time) {
        if let Some(lane) = self.get(key) {
            lane.receive = Some(receive);
            lane.cadence.took(frames, now);
        }
    }

    pub(crate) fn machine(&mut self, key: LaneKey) -> Option<&mut Lane> {
        self.get(key).map(|lane| &mut lane.machine)
    }

    /// Whether a request on this lane must be turned away before it is looked at, and why.
    pub(crate) fn turns_away(&mut self, key: LaneKey, message: MessageId) -> Option<crate::error::Refusal> {
        let lane = self.get(key)?;
        if lane.machine.is_congested() {
            return Some(crate::error::Refusal::Overloaded);
        }
        let differs = lane.refuses_some
            && lane
                .machine
                .agreement()
                .is_some_and(|agreed| matches!(agreed.verdict(message), Some(Verdict::Refused { .. })));
        differs.then_some(crate::error::Refusal::Layout)
    }

    /// The greeting is agreed on. Says which shard of this node the lane is for, if it is not this one; then the lane
    /// is taken out, to be handed over.
    pub(crate) fn opened(
        &mut self,
        key: LaneKey,
        receive: &mut Option<ReceiveBuffer>,
        world: &mut dyn World,
    ) -> Option<(u16, Box<LaneIo>)> {
        self.known.clear();
        let own = self.shard;
        let lane = self.get(key)?;
        let agreement = lane.machine.agreement()?;
        lane.refuses_some = false;
        for (id, verdict) in agreement.verdicts() {
            if let Verdict::Refused { difference } = verdict {
                lane.refuses_some = true;
                tracing::warn!(peer = %agreement.peer, id = %id, difference, "layouts differ: refused by name");
            }
        }
        tracing::info!(
            peer = %agreement.peer, incarnation = %agreement.incarnation, shard = agreement.peer_shard, "lane open"
        );
        let (wanted, shards) = (agreement.shard, agreement.peer_shards);
        if let Some(index) = lane.dial {
            let dial = &mut self.dials[index];
            dial.fresh = false;
            dial.pause = REDIAL_MIN;
            dial.shards = shards;
            return None;
        }
        if wanted == own {
            return None;
        }
        world.forget(&*lane.stream);
        lane.receive = receive.take();
        // Bytes read past the greeting are looked at there even if no more come.
        lane.ready = true;
        self.remove(key).map(|lane| (wanted, lane))
    }

    /// Writes what is due. `all`: whatever the cadence says, because the shard is about to sleep.
    /// Returns how many writes it made.
    pub(crate) fn flush(&mut self, world: &mut dyn World, now: Time, all: bool) -> u64 {
        let mut writes = 0;
        for index in 0..self.places.len() {
            let place = &mut self.places[index];
            let key = LaneKey { index: index as u32, generation: place.generation };
            let Some(lane) = place.lane.as_deref_mut() else { continue };
            let unsent = lane.machine.unsent().len();
            if unsent == 0 || !lane.connected {
                continue;
            }
            if !(all || lane.write_blocked || lane.cadence.write_due(now, unsent)) {
                continue;
            }
            lane.cadence.last_write = now;
            writes += 1;
            match lane.stream.write(lane.machine.unsent()) {
                Ok(bytes) => {
                    lane.machine.sent(bytes, now);
                    lane.set_write_blocked(bytes < unsent, key, world);
                }
                Err(error) if would_block(&error) => lane.set_write_blocked(true, key, world),
                Err(error) => {
                    tracing::debug!(peer = lane.stream.peer(), %error, "a lane was lost");
                    lane.machine.disconnected();
                }
            }
        }
        writes
    }

    /// Lets time pass: heartbeats, silence, greetings that take too long. Reports each lane that has ended since.
    pub(crate) fn tick(&mut self, now: Time, ended: &mut Vec<Ended>) {
        for index in 0..self.places.len() {
            let place = &mut self.places[index];
            let key = LaneKey { index: index as u32, generation: place.generation };
            let Some(lane) = place.lane.as_deref_mut() else { continue };
            if now >= lane.machine.next_tick() {
                lane.machine.on_tick(now);
            }
            if !lane.connected && now >= lane.connect_by {
                lane.machine.disconnected();
            }
            let Some(closed) = lane.machine.closed() else { continue };
            if !lane.settled {
                lane.settled = true;
                ended.push(Ended { key, closed });
                self.known.clear();
                self.stats.ended(closed);
            }
            let place = &mut self.places[index];
            let Some(lane) = place.lane.as_deref_mut() else { continue };
            if lane.machine.unsent().is_empty() && !lane.finished_writing {
                lane.finished_writing = true;
                lane.stream.finish();
            }
        }
    }

    /// Lets go of lanes that have ended and need their sockets no longer. Their calls have been ended before: until then
    /// the lane is asked for the [`fate`](Self::fate) of each.
    pub(crate) fn bury(&mut self, world: &mut dyn World, now: Time) {
        for index in 0..self.places.len() {
            let place = &mut self.places[index];
            let key = LaneKey { index: index as u32, generation: place.generation };
            let Some(lane) = place.lane.as_deref_mut() else { continue };
            if lane.settled && lane.machine.is_finished(now) {
                world.forget(&*lane.stream);
                lane.machine.report(&mut self.stats);
                let dial = lane.dial;
                self.remove(key);
                if let Some(dial) = dial {
                    self.redial(dial, now);
                }
            }
        }
    }

    /// What became of a request that was queued at `offset` of a lane that has ended.
    pub(crate) fn fate(&mut self, key: LaneKey, offset: u64) -> Fate {
        self.get(key).map_or(Fate::Unknown, |lane| lane.machine.fate(offset))
    }

    /// The calls that waited for a lane that has ended.
    pub(crate) fn take_waiting(&mut self, key: LaneKey) -> VecDeque<(CallId, Option<OwnedFrame>)> {
        self.get(key).map(|lane| std::mem::take(&mut lane.waiting)).unwrap_or_default()
    }

    /// The lanes that calls wait for.
    pub(crate) fn waited_for(&self) -> impl Iterator<Item = LaneKey> + use<> {
        let keys: Vec<LaneKey> =
            self.all().filter(|(_, lane)| !lane.waiting.is_empty()).map(|(key, _)| key).collect();
        keys.into_iter()
    }

    /// When a lane or a dial next wants something.
    pub(crate) fn next_tick(&self) -> Time {
        let lanes = self.all().map(|(_, lane)| {
            let tick = lane.machine.next_tick();
            if lane.connected { tick } else { tick.min(lane.connect_by) }
        });
        let dials = self.dials.iter().filter(|dial| dial.lane.is_none()).map(|dial| dial.at);
        lanes.chain(dials).min().unwrap_or(Time::NEVER)
    }

    /// Closes all lanes in order.
    pub(crate) fn close_all(&mut self, reason: CloseReason) {
        for place in &mut self.places {
            if let Some(lane) = place.lane.as_deref_mut() {
                lane.machine.close(reason);
            }
        }
        self.dials.clear();
    }

    /// Whether neither side of any lane owes the other an answer, and all is written.
    pub(crate) fn are_idle(&self) -> bool {
        self.all().all(|(_, lane)| !lane.machine.is_open() || lane.machine.is_idle())
    }

    /// Whether every Close that was said has been written.
    pub(crate) fn are_written(&self) -> bool {
        self.all().all(|(_, lane)| lane.machine.unsent().is_empty() || !lane.connected)
    }

    /// Lanes that are open.
    pub(crate) fn open(&self) -> usize {
        self.all().filter(|(_, lane)| lane.machine.is_open()).count()
    }
}

impl LaneIo {
    fn new(stream: Box<dyn Stream>, machine: Lane, dial: Option<usize>, now: Time) -> Self {
        Self {
            stream,
            machine,
            receive: Some(ReceiveBuffer::new()),
            dial,
            connected: false,
            connect_by: now + CONNECT_TIMEOUT,
            ready: true,
            write_blocked: false,
            finished_writing: false,
            settled: false,
            refuses_some: false,
            cadence: Cadence::new(now),
            waiting: VecDeque::new(),
        }
    }

    fn set_write_blocked(&mut self, blocked: bool, key: LaneKey, world: &mut dyn World) {
        if self.write_blocked != blocked {
            self.write_blocked = blocked;
            let _ = world.watch(&*self.stream, Token::Lane(key), blocked);
        }
    }
}

fn no_room(error: SendError) -> NoRoom {
    match error {
        SendError::TooLong { .. } => NoRoom::Never(EncodeError::TooLarge),
        SendError::Encode(error) => NoRoom::Never(error),
        _ => NoRoom::Wait,
    }
}

fn would_block(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
