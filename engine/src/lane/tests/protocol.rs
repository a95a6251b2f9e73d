//! The lane by itself: every way to end, and what that means for calls, bounds and counters.

use std::collections::HashSet;
use std::time::Duration;

use catga_codec::limits::{FRAME_INLINE_BYTES, HEADER_BYTES};
use catga_codec::{CallId, Fault, Flags, Header, Kind, padded};
use catga_discovery::NodeId;

use crate::lane::buffer::ReceiveBuffer;
use crate::lane::close::{CloseReason, Closed, Closer};
use crate::lane::config::{ANSWER_BYTES, Bounds, LaneConfig};
use crate::lane::greeting::{Greeting, PROTOCOL_VERSION};
use crate::lane::key::ClusterKey;
use crate::lane::model::{config, own_frame};
use crate::lane::outcome::{Fate, Queued, SendError, Step};
use crate::lane::protocol::Lane;
use crate::lane::pulse::{GREETING_TIMEOUT, HEARTBEAT, LINGER, SILENCE, STALL};
use crate::time::Time;

pub(super) const START: Time = Time::from_nanos(5_000_000_000);

/// What a lane made of some bytes: the headers of the frames, and how it ended.
pub(super) fn feed(lane: &mut Lane, bytes: &[u8], now: Time) -> (Vec<Header>, Option<Closed>) {
    let mut input = ReceiveBuffer::new();
    let mut headers = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let space = input.space();
        let taken = space.len().min(rest.len());
        space[..taken].copy_from_slice(&rest[..taken]);
        input.filled(taken);
        rest = &rest[taken..];
        lane.received(now);
        let mut at = 0;
        loop {
            match lane.next_frame(&input.bytes()[at..]) {
                Step::Incomplete { needed } => {
                    input.consume(at);
                    input.need(needed);
                    break;
                }
                Step::Frame { frame, consumed } => {
                    headers.push(frame.header());
                    at += consumed;
                }
                Step::Handled { consumed } | Step::Opened { consumed } => at += consumed,
                Step::Closed { closed, .. } => return (headers, Some(closed)),
            }
        }
    }
    (headers, None)
}

/// Moves all that one lane has queued to the other.
pub(super) fn pump(from: &mut Lane, to: &mut Lane, now: Time) -> (Vec<Header>, Option<Closed>) {
    let bytes = from.unsent().to_vec();
    from.sent(bytes.len(), now);
    feed(to, &bytes, now)
}

pub(super) fn open_with(here: LaneConfig, there: LaneConfig) -> (Lane, Lane) {
    let (mut dialer, mut acceptor) = (Lane::dial(here, START), Lane::accept(there, START));
    pump(&mut dialer, &mut acceptor, START);
    pump(&mut acceptor, &mut dialer, START);
    pump(&mut dialer, &mut acceptor, START);
    assert!(dialer.is_open() && acceptor.is_open());
    (dialer, acceptor)
}

pub(super) fn open() -> (Lane, Lane) {
    open_with(config("here"), config("there"))
}

fn header(kind: Kind, slot: u32) -> Header {
    Header { call: CallId::new(slot, 1), ..Header::new(kind) }
}

/// A frame without payload as it lies on the wire.
fn raw(header: Header) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_BYTES];
    header.write(&mut bytes);
    bytes
}

/// An acceptor that got these bytes after the greeting, if `open`, or instead of it.
fn acceptor_fed(open_first: bool, bytes: &[u8]) -> Lane {
    let mut acceptor = if open_first { open().1 } else { Lane::accept(config("there"), START) };
    feed(&mut acceptor, bytes, START);
    acceptor
}

/// An acceptor that was greeted like this.
fn greeted(change: impl FnOnce(&mut LaneConfig)) -> Lane {
    let mut theirs = config("here");
    change(&mut theirs);
    acceptor_fed(false, Lane::dial(theirs, START).unsent())
}

/// An acceptor that has welcomed a dialer, and got these bytes for a proof.
fn proven(bytes: &[u8]) -> Lane {
    let mut acceptor = greeted(|_| {});
    acceptor.sent(acceptor.unsent().len(), START);
    feed(&mut acceptor, bytes, START);
    acceptor
}

/// Ticks a lane as its driver would, until it ends.
fn wait(mut lane: Lane) -> Lane {
    while lane.closed().is_none() {
        let now = lane.next_tick();
        assert!(now <= START + 2 * GREETING_TIMEOUT);
        if lane.on_tick(now).is_none() && lane.unsent().len() == HEADER_BYTES {
            lane.sent(HEADER_BYTES, now);
        }
    }
    lane
}

fn closed_by_peer(code: u16) -> Lane {
    acceptor_fed(true, &raw(Header { code, ..Header::new(Kind::Close) }))
}

/// Lanes that have ended, at least one for each reason that this side can have.
fn ended_lanes() -> Vec<(CloseReason, Lane)> {
    use CloseReason as R;
    let mut lanes = Vec::new();
    for reason in [R::Done, R::Stopping, R::Surplus, R::Superseded] {
        let (mut lane, _) = open();
        lane.close(reason);
        lanes.push((reason, lane));
    }
    let (mut lost, _) = open();
    lost.disconnected();
    let (mut full, mut asker) = open();
    for slot in 0..8 {
        asker.forward(header(Kind::Request, slot), &[]).unwrap();
    }
    pump(&mut asker, &mut full, START);
    // More than a shard has calls to cancel.
    while full.forward(header(Kind::Cancel, 0), &[]).is_ok() {}
    full.forward(header(Kind::Reply, 0), &[]).unwrap_err();
    let length = |bytes: u32| {
        let mut frame = raw(Header::new(Kind::Event));
        frame[..4].copy_from_slice(&bytes.to_le_bytes());
        frame
    };
    let with_byte = |at: usize, byte: u8| {
        let mut frame = raw(Header::new(Kind::Event));
        frame[at] = byte;
        frame
    };
    let newer = |theirs: &mut LaneConfig| {
        theirs.greeting.version_min = PROTOCOL_VERSION + 1;
        theirs.greeting.version_max = PROTOCOL_VERSION + 1;
    };
    let asks: Vec<u8> = (0..9).flat_map(|slot| raw(header(Kind::Request, slot))).collect();
    lanes.extend([
        (R::Disconnected, lost),
        (R::Silent, wait(open().0)),
        (R::GreetingTimeout, wait(Lane::accept(config("there"), START))),
        (R::SlowReader, full),
        (R::MalformedGreeting, acceptor_fed(false, &raw(Header::new(Kind::Hello)))),
        (R::VersionMismatch, greeted(newer)),
        (R::ClusterMismatch, greeted(|theirs| theirs.greeting.cluster = "other".into())),
        (R::ConnectedToSelf, greeted(|theirs| theirs.greeting.node = NodeId::new("there").unwrap())),
        (R::NoSuchShard, greeted(|theirs| theirs.greeting.wanted_shard = 7)),
        (R::FrameBeforeGreeting, acceptor_fed(false, &raw(Header::new(Kind::Event)))),
        (R::FrameBeforeGreeting, acceptor_fed(false, &raw(Header::new(Kind::Heartbeat)))),
        (R::SecondGreeting, acceptor_fed(true, &own_frame(Kind::Proof, &[0; 32]))),
        (R::SecondGreeting, acceptor_fed(true, Lane::dial(config("here"), START).unsent())),
        (R::WrongRole, acceptor_fed(false, &raw(Header::new(Kind::Welcome)))),
        (R::MalformedFrame, acceptor_fed(true, &length(47))),
        (R::MalformedFrame, acceptor_fed(true, &with_byte(38, 8))),
        (R::UnknownKind, acceptor_fed(true, &with_byte(4, 14))),
        (R::UnknownFlag, acceptor_fed(true, &with_byte(5, 128))),
        (R::UnknownFlag, acceptor_fed(true, &with_byte(5, Flags::LARGE.0))),
        (R::FrameTooLong, acceptor_fed(true, &length(8193))),
        (R::FrameTooLong, acceptor_fed(false, b"GET / HTTP/1.1\r\n")),
        (R::TooManyCalls, acceptor_fed(true, &asks)),
        (R::UnexpectedAnswer, acceptor_fed(true, &raw(header(Kind::Reply, 0)))),
        (R::Unrecognized, closed_by_peer(999)),
        (R::WrongKey, proven(&own_frame(Kind::Proof, &[0; 32]))),
        (R::MalformedGreeting, proven(&own_frame(Kind::Proof, &[0; 31]))),
        (R::FrameBeforeGreeting, proven(&raw(Header::new(Kind::Event)))),
        (R::FrameBeforeGreeting, proven(&raw(Header::new(Kind::Heartbeat)))),
        (R::SecondGreeting, proven(Lane::dial(config("here"), START).unsent())),
        (R::GreetingTimeout, wait(proven(&[]))),
        (R::KeyMissing, greeted(|theirs| theirs.key = ClusterKey::none())),
    ]);
    let mut greeting = config("here");
    greeting.expected_peer = Some(NodeId::new("third").unwrap());
    let (mut dialer, mut acceptor) = (Lane::dial(greeting, START), Lane::accept(config("there"), START));
    pump(&mut dialer, &mut acceptor, START);
    pump(&mut acceptor, &mut dialer, START);
    lanes.push((R::UnexpectedPeer, dialer));
    lanes
}

#[test]
fn every_reason_ends_a_lane_and_reaches_the_peer() {
    let mut seen = HashSet::new();
    for (reason, mut lane) in ended_lanes() {
        let closed = lane.closed().unwrap();
        assert_eq!(closed.reason, reason);
        assert_eq!(lane.forward(Header::new(Kind::Event), &[]), Err(SendError::Closed(closed)));
        assert!(matches!(lane.next_frame(&[]), Step::Closed { consumed: 0, .. }));
        assert_eq!(lane.close(CloseReason::Done), closed, "a lane ends once");
        if closed.by == Closer::Here && reason != CloseReason::Disconnected {
            let farewell = &lane.unsent()[lane.unsent().len() - HEADER_BYTES..];
            let header = Header::read(farewell).unwrap();
            assert_eq!((header.kind, CloseReason::from_code(header.code)), (Kind::Close, reason));
        } else {
            assert!(lane.unsent().is_empty());
        }
        seen.insert(reason);
    }
    assert_eq!(seen.len(), CloseReason::ALL.len());
}

#[test]
fn each_reason_has_a_number_a_label_and_a_text_of_its_own() {
    let mut texts = HashSet::new();
    for (index, reason) in CloseReason::ALL.into_iter().enumerate() {
        assert_eq!(usize::from(reason.code()), index + 1);
        assert_eq!(CloseReason::from_code(reason.code()), reason);
        assert!(texts.insert(reason.to_string()) && texts.insert(reason.label().to_owned()));
        let closed = closed_by_peer(reason.code()).closed();
        assert_eq!(closed, Some(Closed { reason, by: Closer::Peer }));
    }
    assert_eq!(CloseReason::from_code(0), CloseReason::Unrecognized);
}

#[test]
fn a_call_takes_credit_and_its_answer_gives_it_back() {
    let (mut here, mut there) = open();
    let mut offset = here.sent_total();
    for slot in 0..8 {
        assert!(here.may_call_after(0, 0));
        let queued = here.send(header(Kind::Request, slot), &Fault::new("x".repeat(slot as usize))).unwrap();
        assert_eq!(queued, Queued { offset });
        offset = here.sent_total() + here.unsent().len() as u64;
    }
    assert_eq!(here.send(header(Kind::Request, 8), &Fault::new("")), Err(SendError::NoCredit));
    assert!(here.forward(Header::new(Kind::Event), &[]).is_ok(), "an event needs no credit");
    assert_eq!(here.forward(header(Kind::Event, 9), &[]), Err(SendError::NoCredit), "a broadcast does");
    assert_eq!(there.forward(header(Kind::Reply, 0), &[]), Err(SendError::NotOwed));
    assert_eq!(pump(&mut here, &mut there, START).0.len(), 9);
    assert_eq!((here.unanswered(), there.owed()), (8, 8));
    for (slot, kind) in
        [Kind::Reply, Kind::Rejected, Kind::Refused, Kind::Failed, Kind::Handled].into_iter().enumerate()
    {
        there.forward(header(kind, slot as u32), &[]).unwrap();
    }
    assert_eq!(pump(&mut there, &mut here, START).0.len(), 5);
    assert_eq!((here.unanswered(), there.owed()), (3, 3));
    assert!(here.may_call_after(0, 0) && !here.is_idle());
}

#[test]
fn frames_reach_the_agreed_limit_and_not_further() {
    let (mut here, mut there) = open();
    let sizes = [0, 1, 4000, 4200, 8000, 8192 - 64];
    for size in sizes {
        here.send(Header::new(Kind::Event), &Fault::new("x".repeat(size))).unwrap();
        let (headers, closed) = pump(&mut here, &mut there, START);
        assert!(headers.len() == 1 && closed.is_none() && headers[0].length as usize >= HEADER_BYTES + size);
    }
    let too_long = Err(SendError::TooLong { bytes_max: 8192 });
    assert_eq!(here.send(Header::new(Kind::Event), &Fault::new("x".repeat(8192))), too_long);
    assert_eq!(here.forward(Header::new(Kind::Event), &[0; 8192 - HEADER_BYTES + 1]), too_long);
    assert!(here.forward(Header::new(Kind::Event), &[0; 8192 - HEADER_BYTES]).is_ok());
    assert_eq!(here.forward(Header::new(Kind::Close), &[]), Err(SendError::OwnKind(Kind::Close)));
    assert_eq!(here.traffic().too_long, 2);
    assert!(proven(&[]).agreement().is_none(), "a lane is open by its proof");
}

#[test]
fn requests_wait_where_answers_still_pass() {
    let (mut here, mut there) = open();
    for slot in 0..8 {
        there.forward(header(Kind::Request, slot), &[]).unwrap();
    }
    pump(&mut there, &mut here, START);
    while here.forward(Header::new(Kind::Event), &[0; 1000]).is_ok() {}
    assert!(!here.is_congested() && !here.may_call_after(0, 0) && here.is_open());
    assert_eq!(here.forward(header(Kind::Request, 1), &[]), Err(SendError::Full));
    assert!(here.forward(header(Kind::Cancel, 1), &[]).is_ok(), "a cancel takes work off the peer");
    for slot in 0..8 {
        here.forward(header(Kind::Reply, slot), &[0; 256]).unwrap();
    }
    assert!(here.unsent().len() > Bounds::of(&config("here")).asks);
    let (headers, closed) = pump(&mut here, &mut there, START);
    assert!(closed.is_none() && headers.iter().filter(|header| header.kind == Kind::Reply).count() == 8);
    assert!(here.may_call_after(0, 0));
}

#[test]
fn an_answer_for_which_there_is_no_room_fails_and_the_lane_goes_on() {
    let (mut here, mut there) = open();
    for slot in 0..8 {
        there.forward(header(Kind::Request, slot), &[]).unwrap();
    }
    pump(&mut there, &mut here, START);
    let bounds = Bounds::of(&config("here"));
    let fill = |here: &mut Lane, bytes: usize| {
        while here.unsent().len() < bytes {
            here.forward(header(Kind::Cancel, 0), &[]).unwrap();
        }
    };
    fill(&mut here, bounds.congested);
    assert!(here.is_congested(), "what comes now is refused");
    here.forward(header(Kind::Reply, 0), &[0; 8000]).unwrap();
    fill(&mut here, bounds.large);
    let too_long = here.forward(header(Kind::Reply, 1), &[0; 257]).unwrap_err();
    assert_eq!(too_long, SendError::TooLong { bytes_max: ANSWER_BYTES });
    let too_long = here.send(header(Kind::Reply, 1), &Fault::new("x".repeat(300))).unwrap_err();
    assert_eq!(too_long, SendError::TooLong { bytes_max: ANSWER_BYTES });
    // Each of the others still gets what is small: at least that it failed.
    for slot in 1..8 {
        here.forward(header(Kind::Reply, slot), &[0; 256]).unwrap();
    }
    assert!(here.unsent().len() <= bounds.answers && here.is_open());
    let (headers, closed) = pump(&mut here, &mut there, START);
    assert!(closed.is_none() && headers.iter().filter(|header| header.kind == Kind::Reply).count() == 8);
    assert!(!here.is_congested());
}

#[test]
fn an_ended_lane_knows_the_fate_of_each_call() {
    let (mut here, mut there) = open();
    let offsets: Vec<u64> =
        (0..4).map(|slot| here.forward(header(Kind::Request, slot), &[7; 100]).unwrap().offset).collect();
    let frame = padded(HEADER_BYTES + 100);
    // Two frames and a byte leave; the peer sees the first whole, ends the lane, and says how far it got.
    let bytes = here.unsent()[..2 * frame + 1].to_vec();
    here.sent(bytes.len(), START);
    let (headers, _) = feed(&mut there, &bytes[..frame], START);
    assert_eq!(headers.len(), 1);
    there.close(CloseReason::Stopping);
    let (_, closed) = pump(&mut there, &mut here, START);
    assert_eq!(closed, Some(Closed { reason: CloseReason::Stopping, by: Closer::Peer }));
    let fates: Vec<Fate> = offsets.into_iter().map(|offset| here.fate(offset)).collect();
    assert_eq!(fates, [Fate::Unknown, Fate::NotTaken, Fate::NotTaken, Fate::NotSent]);
    assert!(here.unsent().is_empty() && here.is_finished(START));
}

#[test]
fn closing_withdraws_requests_and_delivers_answers() {
    let (mut here, mut there) = open();
    there.forward(header(Kind::Request, 5), &[]).unwrap();
    pump(&mut there, &mut here, START);
    let ask = here.forward(header(Kind::Request, 1), &[1; 40]).unwrap();
    here.forward(header(Kind::Reply, 5), &[2; 40]).unwrap();
    here.forward(Header::new(Kind::Event), &[3; 40]).unwrap();
    here.close(CloseReason::Stopping);
    assert_eq!(here.fate(ask.offset), Fate::NotSent);
    assert!(!here.is_finished(START));
    assert_eq!(here.next_tick(), START + LINGER);
    let (headers, closed) = pump(&mut here, &mut there, START);
    assert_eq!(headers.iter().map(|header| header.kind).collect::<Vec<_>>(), [Kind::Reply]);
    assert_eq!(closed.unwrap().reason, CloseReason::Stopping);
    assert!(here.is_finished(START + LINGER) && !here.is_finished(START));
    here.disconnected();
    assert!(here.is_finished(START), "once the peer has gone there is nothing to wait for");
    assert_eq!(here.closed().unwrap().reason, CloseReason::Stopping, "the first reason stands");
    assert_eq!(here.traffic().withdrawn, 2);
}

#[test]
fn a_lane_that_only_one_side_uses_stays_open() {
    let (mut here, mut there) = open();
    let mut now = START;
    let mut heartbeats = 0;
    while now < START + 20 * SILENCE {
        now = now + Duration::from_millis(10);
        here.forward(Header::new(Kind::Event), &[]).unwrap();
        for lane in [&mut here, &mut there] {
            if lane.next_tick() <= now {
                assert_eq!(lane.on_tick(now), None);
            }
        }
        assert!(pump(&mut here, &mut there, now).1.is_none());
        heartbeats += usize::from(!there.unsent().is_empty());
        assert!(pump(&mut there, &mut here, now).1.is_none());
    }
    let expected = (20 * SILENCE).as_millis() / HEARTBEAT.as_millis();
    assert!((expected / 2..=expected).contains(&(heartbeats as u128)), "{heartbeats}");
}

#[test]
fn a_peer_that_never_reads_is_closed_though_it_beats() {
    let (mut here, mut there) = open();
    here.forward(Header::new(Kind::Event), &[]).unwrap();
    let mut now = START;
    while here.closed().is_none() {
        now = now + HEARTBEAT;
        there.on_tick(now);
        pump(&mut there, &mut here, now);
        here.on_tick(now);
        there.received(now);
    }
    assert_eq!((here.closed().unwrap().reason, now), (CloseReason::SlowReader, START + STALL));
}

#[test]
fn a_greeting_that_no_peer_would_accept_ends_its_own_lane() {
    let mut bad = config("here");
    bad.greeting.frame_bytes_max = FRAME_INLINE_BYTES as u32 - 1;
    let lane = Lane::dial(bad, START);
    assert_eq!(lane.closed().unwrap().reason, CloseReason::MalformedGreeting);
}

#[test]
fn a_lane_can_be_handed_to_another_thread() {
    fn is_send<T: Send>() {}
    is_send::<(Lane, ReceiveBuffer)>();
    is_send::<Greeting>();
}

#[test]
fn frames_are_stepped_over_in_any_pieces() {
    let (mut here, mut there) = open();
    for size in [0, 3, 700, 16, 4000, 1] {
        here.forward(Header::new(Kind::Event), &vec![9; size]).unwrap();
    }
    let bytes = here.unsent().to_vec();
    for split in (0..bytes.len()).step_by(7) {
        let (mut lane, mut peer) = open();
        let (first, _) = feed_pieces(&mut peer, [&bytes[..split], &bytes[split..]]);
        assert_eq!(first, 6);
        lane.disconnected();
    }
    assert_eq!(pump(&mut here, &mut there, START).0.len(), 6);
}

/// Counts the frames of pieces that are read one by one into the same buffer.
fn feed_pieces(lane: &mut Lane, pieces: [&[u8]; 2]) -> (usize, usize) {
    let mut input = ReceiveBuffer::new();
    let (mut frames, mut consumed_total) = (0, 0);
    for piece in pieces {
        input.space()[..piece.len()].copy_from_slice(piece);
        input.filled(piece.len());
        let mut at = 0;
        while let Step::Frame { consumed, .. } = lane.next_frame(&input.bytes()[at..]) {
            frames += 1;
            at += consumed;
        }
        input.consume(at);
        consumed_total += at;
    }
    (frames, consumed_total)
}
