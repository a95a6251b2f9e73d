//! A pair of lanes in memory, driven by bytes: one operation model for the property tests and for the fuzzer.
//!
//! Each operation is two bytes: what to do on which side, and how much of it. Beside the lanes runs a model that is too
//! simple to be wrong: a list of what was queued and a list of what arrived. After each operation the two must agree:
//!
//! - a lane goes from greeting to open to closed, and never back;
//! - what arrives is what was queued, in that order, and nothing of it twice;
//! - credits are conserved: unanswered here = asks on their way + owed there + answers on their way;
//! - unsent bytes stay within the bounds, offsets are where the stream says;
//! - only altered bytes make a lane call the other one faulty;
//! - of a greeting or proof no bit is altered that anyone opens a lane by;
//! - a frame whose fate is "not sent" or "not taken" never arrived and never will.

use std::collections::{HashSet, VecDeque};
use std::ops::Range;
use std::time::Duration;

use catga_codec::limits::HEADER_BYTES;
use catga_codec::{CallId, ContractKind, FieldPrint, Flags, Header, Kind, LayoutPrint, MessageId, padded};
use catga_discovery::{Incarnation, NodeId};

use super::buffer::ReceiveBuffer;
use super::close::CloseReason;
use super::config::{Bounds, LaneConfig, OPENING_FRAME_BYTES_MAX};
use super::credit::Class;
use super::greeting::{Greeting, Offer, PROTOCOL_VERSION};
use super::handshake::{Role, agree};
use super::key::ClusterKey;
use super::outcome::{Fate, SendError, Step};
use super::proof::PROOF_BYTES;
use super::protocol::Lane;
use crate::time::Time;

/// A greeting with two offers, of node `name`.
pub(crate) fn greeting(name: &str) -> Greeting {
    let layout = |name: &str, fingerprint| LayoutPrint {
        fingerprint,
        fields: vec![FieldPrint { path: format!("{name}.id"), fingerprint }],
    };
    let offer = |name: &str, kind, fingerprint| Offer {
        id: MessageId::of(name, 1),
        name: name.to_owned(),
        kind,
        serves: true,
        layouts: vec![layout(name, fingerprint)],
    };
    Greeting {
        version_min: PROTOCOL_VERSION,
        version_max: PROTOCOL_VERSION,
        cluster: "test".into(),
        node: NodeId::new(name).unwrap(),
        incarnation: Incarnation(7),
        shard: 0,
        shards: 2,
        wanted_shard: 1,
        frame_bytes_max: 8192,
        calls_max: 8,
        nonce: catga_codec::hash::hash64(name.as_bytes()).to_le_bytes().repeat(2).try_into().unwrap(),
        keyed: true,
        endpoint: "10.0.0.1:5001".into(),
        offers: [offer("place", ContractKind::Request, 1), offer("placed", ContractKind::Event, 2)].into(),
    }
}

/// A lane of node `name` with narrow bounds, in a cluster with a key.
pub(crate) fn config(name: &str) -> LaneConfig {
    let key = ClusterKey::new(b"the key of the tests").unwrap();
    LaneConfig { greeting: greeting(name), key, expected_peer: None, send_bytes_max: 16 * 1024 }
}

/// What `kind` of own frame with this payload looks like on the wire.
pub(crate) fn own_frame(kind: Kind, payload: &[u8]) -> Vec<u8> {
    let length = HEADER_BYTES + payload.len();
    let mut frame = vec![0; padded(length)];
    Header { length: length as u32, ..Header::new(kind) }.write(&mut frame);
    frame[HEADER_BYTES..length].copy_from_slice(payload);
    frame
}

/// Whether a lane is open after one frame.
fn opens(lane: &mut Lane, mut frame: &[u8]) -> bool {
    let mut input = ReceiveBuffer::new();
    while !frame.is_empty() {
        let space = input.space();
        let (now, rest) = frame.split_at(space.len().min(frame.len()));
        space[..now.len()].copy_from_slice(now);
        input.filled(now.len());
        frame = rest;
        if let Step::Incomplete { needed } = lane.next_frame(input.bytes()) {
            input.need(needed);
        }
    }
    lane.is_open()
}

/// Takes any bytes as each part of a handshake: who does not have the key opens no lane. Reads them as a greeting too;
/// what is accepted must survive a round trip, and any comparison.
pub(crate) fn fuzz_handshake(data: &[u8]) {
    if data.len() <= OPENING_FRAME_BYTES_MAX - HEADER_BYTES {
        let (mut dialer, mut acceptor) =
            (Lane::dial(config("here"), Time::ZERO), Lane::accept(config("there"), Time::ZERO));
        let hello = dialer.unsent().to_vec();
        assert!(!opens(&mut dialer, &own_frame(Kind::Welcome, data)));
        assert!(!opens(&mut acceptor, &own_frame(Kind::Hello, data)));
        // Whatever it welcomed, it was no dialer with the key that said hello.
        assert!(!opens(&mut acceptor, &own_frame(Kind::Proof, data)));
        let mut welcomed = Lane::accept(config("there"), Time::ZERO);
        assert!(!opens(&mut welcomed, &hello) && welcomed.closed().is_none());
        assert!(!opens(&mut welcomed, &own_frame(Kind::Proof, data)) && welcomed.closed().is_some());
    }
    let Ok(theirs) = Greeting::decode(data) else { return };
    // Only the greeting's size as such may be what this version cannot write: extensions are skipped, not kept.
    let again = Greeting::decode(&theirs.encode().unwrap()).unwrap();
    assert_eq!(again, theirs);
    for role in [Role::Dialer, Role::Acceptor] {
        if let Ok(agreement) = agree(role, &greeting("here"), &theirs, None) {
            assert!(agreement.verdicts().is_sorted_by_key(|(id, _)| *id));
            assert!(agreement.frame_bytes_max <= 8192 && agreement.peer == theirs.node);
        }
    }
}

/// Drives a pair of lanes by any bytes.
pub(crate) fn fuzz_lane(data: &[u8]) {
    let mut pair = Pair::new();
    for operation in data.chunks_exact(2).take(4096) {
        pair.operate(operation[0], operation[1]);
        pair.check();
    }
    pair.finish();
}

/// A frame as the model knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Record {
    offset: u64,
    kind: Kind,
    call: CallId,
    bytes: usize,
}

/// One side, and all that it has sent.
struct Side {
    lane: Lane,
    input: ReceiveBuffer,
    /// Bytes that this side's socket took and the other's has not given yet.
    wire: VecDeque<u8>,
    /// Frames queued here that have not arrived there, oldest first.
    queued: VecDeque<Record>,
    /// Asks queued here and not answered, wherever they are.
    asked: Vec<Record>,
    /// Asks queued here that have arrived there.
    arrived: HashSet<CallId>,
    /// Asks that arrived here and are not answered.
    to_answer: VecDeque<CallId>,
    opened: bool,
    /// It has begun to leave, and heard that the other one does.
    leaves: bool,
    /// Where in this side's stream its greeting and proofs lie, as offsets of their bytes.
    proven: [Range<u64>; 2],
    /// Bits of these that are not as they were sent: place, and which one.
    forged: HashSet<(u64, u8)>,
    bounds: Bounds,
}

impl Side {
    fn new(lane: Lane, config: &LaneConfig, proven: [Range<u64>; 2]) -> Self {
        Self {
            leaves: false,
            proven,
            forged: HashSet::new(),
            lane,
            input: ReceiveBuffer::new(),
            wire: VecDeque::new(),
            queued: VecDeque::new(),
            asked: Vec::new(),
            arrived: HashSet::new(),
            to_answer: VecDeque::new(),
            opened: false,
            bounds: Bounds::of(config),
        }
    }

    fn queue(&mut self, header: Header, body: &[u8]) -> Result<(), SendError> {
        let queued = self.lane.forward(header, body)?;
        let record =
            Record { offset: queued.offset, kind: header.kind, call: header.call, bytes: body.len() };
        assert!(self.queued.back().is_none_or(|last| last.offset < record.offset));
        assert!(record.offset.is_multiple_of(16) && record.offset >= self.lane.sent_total());
        self.queued.push_back(record);
        if Class::of(&header) == Class::Ask {
            self.asked.push(record);
        }
        Ok(())
    }

    /// The oldest frame that has not arrived: of a lane that has ended, the oldest that was not withdrawn.
    fn next_record(&mut self, arrived: &Header) -> Record {
        loop {
            let record = self.queued.pop_front().unwrap();
            if record.call == arrived.call && record.kind == arrived.kind || self.lane.closed().is_none() {
                return record;
            }
            assert_eq!(self.lane.fate(record.offset), Fate::NotSent);
        }
    }

    fn on_way(&self, class: Class) -> u32 {
        let of =
            |record: &&Record| Class::of(&Header { call: record.call, ..Header::new(record.kind) }) == class;
        self.queued.iter().filter(of).count() as u32
    }
}

/// Two sides and the time.
pub(crate) struct Pair {
    sides: [Side; 2],
    now: Time,
    serial: u32,
    /// Bytes on the wire were altered: nothing that arrives can be relied on.
    altered: bool,
}

impl Pair {
    /// A lane that has just been dialed.
    pub(crate) fn new() -> Self {
        let now = Time::from_nanos(1_000_000);
        let (here, there) = (config("here"), config("there"));
        let payload = |start: usize, bytes: usize| {
            let start = (start + HEADER_BYTES) as u64;
            start..start + bytes as u64
        };
        let hello = here.greeting.encode().unwrap().len();
        let welcome = there.greeting.encode().unwrap().len() + PROOF_BYTES;
        let dialer = [payload(0, hello), payload(padded(HEADER_BYTES + hello), PROOF_BYTES)];
        let sides = [
            Side::new(Lane::dial(here.clone(), now), &here, dialer),
            Side::new(Lane::accept(there.clone(), now), &there, [payload(0, welcome), 0..0]),
        ];
        Self { sides, now, serial: 0, altered: false }
    }

    /// Does what `what` says, on the side of its lowest bit, `much` of it.
    pub(crate) fn operate(&mut self, what: u8, much: u8) {
        let (side, size) = (usize::from(what & 1), usize::from(much) * 24);
        match (what >> 1) % 16 {
            0..=2 => self.ask(side, Kind::Request, size),
            3 => self.ask(side, Kind::Event, size),
            4 => self.tell(side, Kind::Event, size),
            5 => self.tell(side, Kind::Cancel, 0),
            6 | 7 => self.answer(side, much, size),
            8 | 9 => self.flush(side, 1 + size),
            10 | 11 => self.deliver(side, 1 + size),
            12 => self.pass(Duration::from_millis(u64::from(much))),
            13 if much >= 250 => drop(self.sides[side].lane.close(CloseReason::Done)),
            14 if much >= 250 => self.disconnect(),
            15 if much >= 128 => self.alter(side, usize::from(much)),
            15 if much >= 120 => {
                self.sides[side].lane.leave();
                self.sides[side].leaves = true;
            }
            _ => self.flush(side, usize::MAX),
        }
    }

    fn header(&mut self, kind: Kind) -> Header {
        self.serial += 1;
        Header { flags: Flags::LARGE, call: CallId::new(self.serial, 1), ..Header::new(kind) }
    }

    fn ask(&mut self, side: usize, kind: Kind, size: usize) {
        let header = self.header(kind);
        let side = &mut self.sides[side];
        let may = side.lane.may_call_after(0, 0);
        assert_eq!(side.queue(header, &vec![header.call.slot() as u8; size]).is_ok(), may);
    }

    fn tell(&mut self, side: usize, kind: Kind, size: usize) {
        let mut header = self.header(kind);
        if kind == Kind::Event {
            header.call = CallId::default();
        }
        let _ = self.sides[side].queue(header, &vec![1; size]);
    }

    fn answer(&mut self, side: usize, which: u8, size: usize) {
        let kinds = [Kind::Reply, Kind::Rejected, Kind::Refused, Kind::Failed, Kind::Handled];
        let side = &mut self.sides[side];
        let call = side.to_answer.front().copied().unwrap_or_default();
        let header = Header { call, ..Header::new(kinds[usize::from(which) % kinds.len()]) };
        let owed = side.lane.is_open() && side.lane.owed() > 0;
        let outcome = side.queue(header, &vec![2; size]);
        match outcome {
            Ok(()) => assert!(side.to_answer.pop_front().is_some() && owed),
            Err(error) => {
                assert!(!owed || matches!(error, SendError::Closed(_)), "an answer had to wait: {error}")
            }
        }
    }

    fn flush(&mut self, side: usize, bytes: usize) {
        let Side { lane, wire, .. } = &mut self.sides[side];
        let bytes = bytes.min(lane.unsent().len());
        wire.extend(&lane.unsent()[..bytes]);
        lane.sent(bytes, self.now);
    }

    fn deliver(&mut self, to: usize, bytes: usize) {
        let wire = &mut self.sides[1 - to].wire;
        let chunk: Vec<u8> = wire.drain(..bytes.min(wire.len())).collect();
        let mut chunk = &chunk[..];
        while !chunk.is_empty() {
            let space = self.sides[to].input.space();
            let taken = space.len().min(chunk.len());
            assert!(taken > 0, "a driver that steps over all frames always has space");
            space[..taken].copy_from_slice(&chunk[..taken]);
            chunk = &chunk[taken..];
            self.sides[to].input.filled(taken);
            self.sides[to].lane.received(self.now);
            self.step_over(to);
        }
    }

    fn step_over(&mut self, to: usize) {
        let (left, right) = self.sides.split_at_mut(1);
        let (side, peer) =
            if to == 0 { (&mut left[0], &mut right[0]) } else { (&mut right[0], &mut left[0]) };
        let mut at = 0;
        let needed = loop {
            match side.lane.next_frame(&side.input.bytes()[at..]) {
                Step::Incomplete { needed } => break needed,
                Step::Handled { consumed } => at += consumed,
                Step::Opened { consumed } => {
                    assert!(!std::mem::replace(&mut side.opened, true), "a lane opens once");
                    at += consumed;
                }
                Step::Closed { consumed, closed } => {
                    assert_eq!(side.lane.closed(), Some(closed));
                    at += consumed;
                    break 0;
                }
                Step::Frame { frame, consumed } => {
                    at += consumed;
                    let header = frame.header();
                    assert!(!header.flags.contains(Flags::LARGE), "a local flag has left the process");
                    let class = Class::of(&header);
                    if class == Class::Ask {
                        side.to_answer.push_back(header.call);
                    }
                    if !self.altered {
                        let record = peer.next_record(&header);
                        assert_eq!((record.kind, record.call), (header.kind, header.call));
                        assert_eq!(record.bytes, frame.payload().len());
                        if class == Class::Ask {
                            assert!(peer.arrived.insert(header.call), "a frame arrives once");
                        }
                        if class == Class::Answer {
                            side.asked.retain(|ask| ask.call != header.call);
                        }
                    }
                }
            }
        };
        side.input.consume(at);
        side.input.need(needed);
        assert!(side.input.capacity() <= 2 * super::buffer::RECEIVE_BYTES);
    }

    fn pass(&mut self, duration: Duration) {
        self.now = self.now + duration;
        for side in &mut self.sides {
            if side.lane.next_tick() <= self.now {
                side.lane.on_tick(self.now);
            }
        }
    }

    fn disconnect(&mut self) {
        for side in &mut self.sides {
            side.lane.disconnected();
            side.wire.clear();
        }
    }

    fn alter(&mut self, side: usize, place: usize) {
        let Side { lane, wire, proven, forged, .. } = &mut self.sides[side];
        let place = place * 7 % wire.len().max(1);
        let offset = lane.sent_total() - wire.len() as u64 + place as u64;
        if let Some(byte) = wire.get_mut(place) {
            let bit = (place % 8) as u8;
            *byte ^= 1 << bit;
            self.altered = true;
            // The same bit altered twice is what it was.
            if proven.iter().any(|range| range.contains(&offset)) && !forged.remove(&(offset, bit)) {
                forged.insert((offset, bit));
            }
        }
    }

    /// What holds after each operation.
    pub(crate) fn check(&self) {
        for (side, peer) in [(&self.sides[0], &self.sides[1]), (&self.sides[1], &self.sides[0])] {
            assert!(side.lane.unsent().len() <= side.bounds.held);
            assert_eq!(side.lane.is_open(), side.opened && side.lane.closed().is_none());
            assert!(!side.opened || peer.forged.is_empty(), "a lane opened by what was altered");
            if side.lane.is_open() {
                assert_eq!(side.lane.owed() as usize, side.to_answer.len());
            }
            if self.altered {
                continue;
            }
            let acceptor_first = side.opened && !peer.opened && side.proven[1].is_empty();
            assert!(!acceptor_first, "the acceptor opens last");
            assert!(!side.lane.peer_is_leaving() || peer.leaves, "a peer that stays was said to leave");
            if side.lane.is_open() && peer.lane.is_open() {
                let travelling = side.on_way(Class::Ask) + peer.on_way(Class::Answer);
                assert_eq!(side.lane.unanswered(), travelling + peer.lane.owed(), "credits are conserved");
                assert_eq!(side.lane.unanswered() as usize, side.asked.len());
            }
            if let Some(closed) = side.lane.closed() {
                use CloseReason as R;
                let honest = [R::Done, R::Disconnected, R::Silent, R::GreetingTimeout, R::SlowReader];
                assert!(honest.contains(&closed.reason), "{closed} without cause");
            }
        }
    }

    /// Ends both lanes, lets everything arrive that still can, and compares each open call's fate with the truth.
    pub(crate) fn finish(&mut self) {
        self.sides[0].lane.close(CloseReason::Done);
        for _ in 0..2 {
            for side in [0, 1] {
                self.flush(side, usize::MAX);
                self.deliver(1 - side, usize::MAX);
            }
        }
        self.disconnect();
        for side in &self.sides {
            assert!(side.lane.closed().is_some() && side.lane.unsent().is_empty());
            assert!(side.lane.is_finished(self.now));
            for ask in side.asked.iter().filter(|_| !self.altered) {
                let arrived = side.arrived.contains(&ask.call);
                let fate = side.lane.fate(ask.offset);
                assert!(fate == Fate::Unknown || !arrived, "{ask:?} arrived, its fate is {fate:?}");
            }
        }
    }
}
