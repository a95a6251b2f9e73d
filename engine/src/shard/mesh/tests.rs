//! What goes into the rings of two shards comes out at the other side as it was: in line, by handle, or passed on.

use std::sync::Arc;

use catga_codec::limits::FRAME_MAX_BYTES;
use catga_codec::{CallId, Flags, ForeignFrame, Header, Kind, Message, OwnedFrame, Parsed, padded};

use super::{Arrived, Ends, mesh};
use crate::prelude::*;
use crate::ring::doorbell::{Doorbell, EventFd};
use crate::rkyv::util::AlignedVec;
use crate::service::Incoming;

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

#[test]
fn frames_arrive_as_they_left() {
    let doorbells = [(); 2].map(|()| Arc::new(Doorbell::new(EventFd::new().unwrap())));
    let Ok([mut asks, mut answers]) = <[Ends; 2]>::try_from(mesh(&doorbells)) else { panic!("two shards") };
    let (there, here) = (asks.outgoing[1].as_mut().unwrap(), answers.arrivals[0].as_mut().unwrap());
    let flags = Flags::KEYED.with(Flags::IDEMPOTENT);
    for (place, kind) in [Kind::Request, Kind::Event].into_iter().cycle().take(24).enumerate() {
        let (bytes, way) = ([0, 100, 50_000][place / 2 % 3], place / 6 % 3);
        let call = CallId::new(place as u32, 7);
        let header = Header { flags, call, key: 12, remaining_us: 9, shard: 1, ..Header::new(kind) };
        let credits = there.unanswered();
        match way {
            0 => there.request(header, &Filler { bytes: vec![5; bytes] }, false).unwrap(),
            way => there.forward(frame(header, bytes, way == 2), false).unwrap(),
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
