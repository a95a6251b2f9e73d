//! What goes into the rings of two shards comes out at the other side as it was: in line, by handle, or passed on.

use std::sync::Arc;

use catga_codec::limits::FRAME_MAX_BYTES;
use catga_codec::{CallId, Flags, ForeignFrame, Header, Kind, Message, OwnedFrame, Parsed, padded};

use super::{Arrived, Ends, NoRoom, Outgoing, mesh};
use crate::call::waiting::Ticket;
use crate::prelude::*;
use crate::ring::doorbell::{Doorbell, EventFd};
use crate::rkyv::util::AlignedVec;
use crate::service::Incoming;
use crate::time::Time;

#[message]
struct Filler {
    bytes: Vec<u8>,
}

/// Frames that another shard may get: small and large, archived here or on another node.
fn frame(header: Header, bytes: usize, foreign: bool) -> OwnedFrame {
    let mut frame = OwnedFrame::new();
    frame.encode(header, &Filler { bytes: vec![5; bytes] }).unwrap();
    if !foreign {
        return frame;
    }
    let mut copy = OwnedFrame::new();
    // As it lies in a stream: padded.
    let mut stream = AlignedVec::<16>::new();
    stream.extend_from_slice(frame.bytes());
    stream.resize(padded(stream.len()), 0);
    match ForeignFrame::parse(&stream, FRAME_MAX_BYTES) {
        Ok(Parsed::Frame(parsed, _)) => copy.copy_foreign(parsed),
        other => panic!("a whole frame: {other:?}"),
    }
    copy
}

fn two_shards() -> [Ends; 2] {
    let doorbells = [(); 2].map(|()| Arc::new(Doorbell::new(EventFd::new().unwrap())));
    <[Ends; 2]>::try_from(mesh(&doorbells)).unwrap_or_else(|_| panic!("two shards"))
}

#[test]
fn frames_arrive_as_they_left() {
    let [mut asks, mut answers] = two_shards();
    let (there, here) = (asks.outgoing[1].as_mut().unwrap(), answers.arrivals[0].as_mut().unwrap());
    let flags = Flags::KEYED.with(Flags::IDEMPOTENT);
    for (place, kind) in [Kind::Request, Kind::Event].into_iter().cycle().take(24).enumerate() {
        let (bytes, way) = ([0, 100, 50_000][place / 2 % 3], place / 6 % 3);
        let call = CallId::new(place as u32, 7);
        let header = Header { flags, call, key: 12, remaining_us: 9, shard: 1, ..Header::new(kind) };
        let credits = there.unanswered();
        match way {
            0 => there.request(header, &Filler { bytes: vec![5; bytes] }, Ticket::NONE).unwrap(),
            way => there.forward(frame(header, bytes, way == 2), Ticket::NONE).unwrap(),
        }
        assert_eq!(there.unanswered(), credits + 1, "it takes a credit for its answer");
        there.publish();
        let mut taken = 0;
        here.requests(10, |_, arrived| {
            taken += 1;
            let incoming = match &arrived {
                Arrived::InLine(frame) => Incoming::Local(*frame),
                Arrived::ByHandle(frame) => Incoming::of(frame).unwrap(),
            };
            let came = incoming.header();
            let expected =
                Header { length: came.length, message: Filler::ID, context: came.context, ..header };
            assert_eq!(came, expected, "{bytes} bytes, way {way}");
            assert_eq!(incoming.access::<Filler>().unwrap().bytes.len(), bytes);
        });
        assert_eq!(taken, 1);
    }
}

/// Calls to one shard whose way is full: by their number, which is their ticket as well.
struct Full {
    way: Outgoing,
    bytes: usize,
}

impl Full {
    /// Nothing more of so many bytes goes.
    fn of(mut way: Outgoing, bytes: usize) -> Self {
        while way.request(header(9999), &Filler { bytes: vec![5; bytes] }, Ticket::NONE).is_ok() {}
        way.publish();
        Self { way, bytes }
    }

    fn send(&mut self, number: u32, ticket: Ticket) -> Result<(), NoRoom> {
        self.way.request(header(number), &Filler { bytes: vec![5; self.bytes] }, ticket)
    }

    fn wait(&mut self, number: u32) {
        self.way.wait(ticket(number), (header(number).call, None), |_| true);
    }

    /// A turn's round. Of those who were called before only these are still to come.
    fn granted(&mut self, to_come: &[u32]) -> Vec<u32> {
        self.way.begin_round(Time::ZERO, |call| to_come.contains(&call.slot()));
        let granted = std::iter::from_fn(|| self.way.grant(Time::ZERO, |_| true));
        granted.map(|(call, _)| call.slot()).collect()
    }
}

fn header(number: u32) -> Header {
    Header { call: CallId::new(number, 1), ..Header::new(Kind::Request) }
}

fn ticket(number: u32) -> Ticket {
    Ticket(number.into())
}

#[test]
fn as_many_are_granted_as_there_are_credits_and_they_keep_their_order() {
    let [mut asks, _answers] = two_shards();
    let mut full = Full::of(asks.outgoing[1].take().unwrap(), 0);
    assert_eq!(full.way.credits, 0);
    (0..6).for_each(|number| full.wait(number));
    assert!(full.granted(&[]).is_empty());
    (0..2).for_each(|_| full.way.credit());
    assert_eq!(full.granted(&[]), [0, 1], "two answers, two calls");
    assert!(full.granted(&[0, 1]).is_empty(), "their room is kept for them");
    assert_eq!(full.send(77, Ticket::NONE), Err(NoRoom::Wait), "nobody overtakes");
    assert_eq!(full.send(2, ticket(2)), Err(NoRoom::Wait), "nor does who waits and was not told to come");
    full.send(0, ticket(0)).unwrap();
    assert_eq!(full.granted(&[]), [2], "another one comes in the stead of who does not");
    full.wait(2);
    assert_eq!(full.granted(&[]), [2], "who finds no room after all is where it was");
    full.send(2, ticket(2)).unwrap();
    (0..4).for_each(|_| full.way.credit());
    assert_eq!(full.granted(&[]), [3, 4, 5]);
    // Called first, but polled last: it has its room all the same.
    for number in [5, 3, 4] {
        full.send(number, ticket(number)).unwrap();
    }
    assert!(!full.way.is_waited_for());
    full.send(77, Ticket::NONE).unwrap();
    assert_eq!(full.way.credits, 0);
}

#[test]
fn as_many_are_granted_as_the_ring_has_room_for() {
    for bytes in [500, 4000] {
        let [mut asks, mut answers] = two_shards();
        let here = answers.arrivals[0].as_mut().unwrap();
        let mut full = Full::of(asks.outgoing[1].take().unwrap(), bytes);
        assert!(full.way.credits > 100, "the ring is full, not the account");
        (0..100).for_each(|number| full.wait(number));
        let (mut went, mut turns) = (0, 0);
        while full.way.is_waited_for() {
            assert!(turns < 100, "nobody starves");
            turns += 1;
            here.requests(8, |_, _| ());
            let granted = full.granted(&[]);
            for number in granted {
                assert_eq!(number, went, "in order");
                went += 1;
                full.send(number, ticket(number)).unwrap();
            }
            full.way.publish();
        }
        assert_eq!(went, 100);
    }
}
