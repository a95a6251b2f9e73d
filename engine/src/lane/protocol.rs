//! The state machine of a lane: one connection between a shard here and a shard on another node.
//!
//! It does no I/O and reads no clock. The driver owns the socket and the [`ReceiveBuffer`](super::buffer::ReceiveBuffer),
//! hands in bytes and `now`, and writes what [`Lane::unsent`] shows:
//!
//! ```text
//!   dial    ── Hello ──▶  accept          Opening ──agree, prove──▶ Open ──▶ Closed
//!           ◀─ Welcome ──                     └─── disagree, timeout ───────▶┘
//!           ── Proof ──▶
//!           ◀─ frames ─▶                  Request, Event ▶ answers ◀ Cancel ▶ Heartbeat ◀▶ Close ◀▶
//! ```
//!
//! **Opening.** Both sides prove that they have the cluster's key before anything else passes: see
//! [`opening`](super::opening).
//!
//! **Credits.** Each request is owed exactly one answer, and each side grants the other so many unanswered ones: see
//! [`credit`](super::credit).
//!
//! **Bounds.** Requests and events wait behind `send_bytes_max` unsent bytes. Answers never wait: they have room beyond
//! that bound (see [`config`](super::config)). Where even this fills up the peer's requests are refused, then large answers fail;
//! and a peer that takes nothing for a while does not read, and loses the lane.
//!
//! **Ends.** Whatever ends a lane takes back the requests and events of which no byte has left, so that `NotSent` is
//! true; answers already queued still go out before the Close frame. A Close tells how far its sender has read: what
//! lies behind that point was never looked at. [`Lane::fate`] answers for each frame.
//!
//! **Leaving.** A side that will end soon says so first ([`Lane::leave`]), in a heartbeat with a code: the lane works on, and
//! the peer has time to send what is new elsewhere.
//!
//! **Pauses.** A side that was not there for a while asks for an echo, in the same way: what comes before it is older than it
//! says. See [`lag`](super::lag).

use std::time::Duration;

use catga_codec::limits::{FRAME_MAX_BYTES, HEADER_BYTES};
use catga_codec::{EncodeError, Flags, ForeignFrame, FrameError, Header, Kind, Parsed};

use super::buffer::{SendBuffer, Unwritten};
use super::close::{CloseReason, Closed, Closer, Traffic};
use super::config::{Bounds, LaneConfig, OPENING_FRAME_BYTES_MAX};
use super::credit::{Class, Credits};
use super::handshake::Agreement;
use super::lag::Lag;
use super::opening::{Next, Opening};
use super::outcome::{Fate, Step};
use super::pulse::{Due, LINGER, Pulse};
use crate::time::Time;

/// The code of a heartbeat that says that its sender will leave. Other codes but 0 mean nothing yet.
pub(crate) const LEAVING: u16 = 1;
/// The code of a heartbeat that asks for one with the code [`ECHO`].
pub(crate) const PROBE: u16 = 2;
/// The answer to a [`PROBE`], behind all that was queued before it.
pub(crate) const ECHO: u16 = 3;

#[derive(Debug)]
pub(super) enum Phase {
    Opening(Box<Opening>),
    Open,
    Closed(Closed),
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(super) phase: Phase,
    /// The longest frame that either side may send: first a Welcome, then what was agreed.
    pub(super) frame_bytes_max: usize,
    pub(super) credits: Credits,
    pub(super) out: SendBuffer,
    pub(super) bounds: Bounds,
    /// Its `taken_bytes` are the stream bytes of the peer that were stepped over: what a Close tells the peer.
    pub(super) traffic: Traffic,
    pulse: Pulse,
    /// When the lane ended.
    ended: Time,
    /// The peer will send and take nothing more.
    peer_gone: bool,
    /// The peer has said that it will leave.
    peer_leaving: bool,
    /// This side has said so, or will as soon as the lane is open.
    leaving: bool,
    lag: Lag,
    /// Probes that wait: for the lane to open, or for room.
    probes: u32,
    /// Bytes sent when the lane ended, and how far the peer said that it read.
    sent_at_end: u64,
    taken_by_peer: u64,
    agreement: Option<Box<Agreement>>,
}

impl Lane {
    /// The lane of a connection that this side has made. Its Hello is queued; a greeting that no peer would accept
    /// (see [`Greeting::encode`]) makes a lane that has ended already.
    #[must_use]
    pub(crate) fn dial(config: LaneConfig, now: Time) -> Self {
        let mut opening = Opening::new(config);
        let hello = opening.hello().map_err(|error| error.close_reason());
        let mut lane = Self::new(opening, now);
        if let Err(reason) = hello.and_then(|payload| lane.greet(Kind::Hello, &payload)) {
            lane.end(reason, Closer::Here);
        }
        lane
    }

    /// The lane of a connection that was made to this side. Waits for a Hello.
    #[must_use]
    pub(crate) fn accept(config: LaneConfig, now: Time) -> Self {
        Self::new(Opening::new(config), now)
    }

    fn new(opening: Opening, now: Time) -> Self {
        let config = opening.config();
        let bounds = Bounds::of(config);
        Self {
            frame_bytes_max: OPENING_FRAME_BYTES_MAX,
            credits: Credits::new(config.greeting.calls_max),
            out: SendBuffer::new(bounds.held),
            bounds,
            traffic: Traffic::default(),
            pulse: Pulse::new(now),
            ended: now,
            peer_gone: false,
            peer_leaving: false,
            leaving: false,
            lag: Lag::default(),
            probes: 0,
            sent_at_end: 0,
            taken_by_peer: u64::MAX,
            agreement: None,
            phase: Phase::Opening(Box::new(opening)),
        }
    }

    // ---- reading

    /// Looks at the front of `bytes`, which must start at a multiple of 16. Call it again behind what was consumed,
    /// until it says [`Step::Incomplete`] or [`Step::Closed`]. A frame borrows `bytes` only, so the lane is free to
    /// send the answer while the frame is being read. No allocation while open.
    #[inline]
    pub(crate) fn next_frame<'b>(&mut self, bytes: &'b [u8]) -> Step<'b> {
        if !self.is_open() {
            return self.next_outside(bytes);
        }
        let (frame, consumed) = match ForeignFrame::parse(bytes, self.frame_bytes_max) {
            Ok(Parsed::Frame(frame, consumed)) => (frame, consumed),
            Ok(Parsed::Incomplete { needed }) => return Step::Incomplete { needed },
            Err(error) => return self.broken(bytes, error),
        };
        let header = frame.header();
        let class = Class::of(&header);
        if class == Class::Own {
            return self.own_frame(bytes, &header, consumed);
        }
        if let Err(reason) = self.credits.arrived(class) {
            return self.end_reading(bytes, reason);
        }
        self.traffic.taken_bytes += consumed as u64;
        Step::Frame { frame, consumed }
    }

    /// The lane's own frames while it is open.
    #[cold]
    fn own_frame<'b>(&mut self, bytes: &'b [u8], header: &Header, consumed: usize) -> Step<'b> {
        match header.kind {
            Kind::Heartbeat => {
                match header.code {
                    LEAVING => self.peer_leaving = true,
                    PROBE => self.beat(ECHO),
                    ECHO => self.lag.echoed(),
                    _ => {}
                }
                self.traffic.taken_bytes += consumed as u64;
                Step::Handled { consumed }
            }
            Kind::Close => self.peer_closed(bytes, header),
            _ => self.end_reading(bytes, CloseReason::SecondGreeting),
        }
    }

    /// Before the lane is open, and after it has ended.
    #[cold]
    fn next_outside<'b>(&mut self, bytes: &'b [u8]) -> Step<'b> {
        if let Phase::Closed(closed) = self.phase {
            return Step::Closed { consumed: bytes.len(), closed };
        }
        let (frame, consumed) = match ForeignFrame::parse(bytes, self.frame_bytes_max) {
            Ok(Parsed::Frame(frame, consumed)) => (frame, consumed),
            Ok(Parsed::Incomplete { needed }) => return Step::Incomplete { needed },
            Err(error) => return self.broken(bytes, error),
        };
        let header = frame.header();
        if header.kind == Kind::Close {
            return self.peer_closed(bytes, &header);
        }
        match self.open(header.kind, frame.payload()) {
            Ok(()) => {
                self.traffic.taken_bytes += consumed as u64;
                if self.is_open() { Step::Opened { consumed } } else { Step::Handled { consumed } }
            }
            Err(reason) => self.end_reading(bytes, reason),
        }
    }

    /// One step towards an open lane.
    fn open(&mut self, kind: Kind, payload: &[u8]) -> Result<(), CloseReason> {
        let Phase::Opening(opening) = &mut self.phase else { return Ok(()) };
        let (agreement, proof) = match opening.take(kind, payload)? {
            Next::Welcome(payload) => return self.greet(Kind::Welcome, &payload),
            Next::Open { agreement, proof } => (agreement, proof),
        };
        if let Some(proof) = proof {
            self.greet(Kind::Proof, &proof)?;
        }
        self.frame_bytes_max = agreement.frame_bytes_max.min(FRAME_MAX_BYTES);
        self.credits.grant(agreement.calls_max);
        self.agreement = Some(agreement);
        self.phase = Phase::Open;
        if self.leaving {
            self.beat(LEAVING);
        }
        self.probe();
        Ok(())
    }

    fn greet(&mut self, kind: Kind, payload: &[u8]) -> Result<(), CloseReason> {
        self.append(Header::new(kind), payload).map_err(|_| CloseReason::MalformedGreeting)?;
        Ok(())
    }

    fn beat(&mut self, code: u16) {
        // The buffer has room for it; and without, the peer does not read, and this lane will end by that.
        self.traffic.heartbeats += u64::from(self.append(Header { code, ..Header::EMPTY }, &[]).is_ok());
    }

    #[cold]
    fn broken<'b>(&mut self, bytes: &'b [u8], error: FrameError) -> Step<'b> {
        let reason = match error {
            FrameError::TooLarge { .. } => CloseReason::FrameTooLong,
            FrameError::UnknownKind(_) => CloseReason::UnknownKind,
            FrameError::UnknownFlags(_) | FrameError::LocalOnly => CloseReason::UnknownFlag,
            _ => CloseReason::MalformedFrame,
        };
        self.end_reading(bytes, reason)
    }

    fn peer_closed<'b>(&mut self, bytes: &'b [u8], header: &Header) -> Step<'b> {
        self.taken_by_peer = header.key;
        self.peer_gone = true;
        let closed = self.end(CloseReason::from_code(header.code), Closer::Peer);
        Step::Closed { consumed: bytes.len(), closed }
    }

    #[cold]
    fn end_reading<'b>(&mut self, bytes: &'b [u8], reason: CloseReason) -> Step<'b> {
        Step::Closed { consumed: bytes.len(), closed: self.end(reason, Closer::Here) }
    }

    /// Queues a frame of this header and of what follows it.
    #[inline]
    pub(super) fn append(&mut self, header: Header, body: &[u8]) -> Result<u64, Unwritten<EncodeError>> {
        let length = HEADER_BYTES + body.len();
        let header = Header { length: length as u32, flags: header.flags.without(Flags::LARGE), ..header };
        self.out.frame(length, length, |into| {
            header.write(into);
            into[HEADER_BYTES..length].copy_from_slice(body);
            Ok(length)
        })
    }

    // ---- the socket

    /// What the socket shall take next.
    #[inline]
    #[must_use]
    pub(crate) fn unsent(&self) -> &[u8] {
        self.out.unsent()
    }

    /// The socket took the first `bytes` of [`unsent`](Self::unsent).
    #[inline]
    pub(crate) fn sent(&mut self, bytes: usize, now: Time) {
        if bytes > 0 {
            self.pulse.moved(now);
            self.out.sent(bytes);
        }
    }

    /// The socket gave some bytes.
    #[inline]
    pub(crate) fn received(&mut self, now: Time) {
        self.pulse.heard(now);
    }

    /// The connection has ended, by the peer's end of stream or an error. All that is unsent never leaves.
    pub(crate) fn disconnected(&mut self) -> Closed {
        self.peer_gone = true;
        let closed = self.end(CloseReason::Disconnected, Closer::Here);
        self.out.abandon();
        closed
    }

    // ---- time

    /// Call it at [`next_tick`](Self::next_tick) or earlier, after reading what the socket has. Returns how the lane
    /// ended, if it did so now.
    pub(crate) fn on_tick(&mut self, now: Time) -> Option<Closed> {
        self.probe();
        let waiting = self.out.unsent_bytes() > 0;
        let due = match self.phase {
            Phase::Opening(_) => self.pulse.tick_greeting(now),
            Phase::Open => self.pulse.tick_open(now, waiting),
            Phase::Closed(_) => Due::Nothing,
        };
        match due {
            Due::Nothing => None,
            Due::Heartbeat => {
                self.beat(0);
                None
            }
            Due::End(reason) => Some(self.end(reason, Closer::Here)),
        }
    }

    /// When [`on_tick`](Self::on_tick) wants to be called next; of an ended lane, when it is finished at the latest.
    #[must_use]
    pub(crate) fn next_tick(&self) -> Time {
        match self.phase {
            Phase::Opening(_) => self.pulse.next_greeting(),
            Phase::Open => self.pulse.next_open(self.out.unsent_bytes() > 0),
            Phase::Closed(_) => self.ended + LINGER,
        }
    }

    /// For so long nobody has read: what was sent meanwhile is as much older than it says, at worst.
    pub(crate) fn paused(&mut self, pause: Duration) {
        self.lag.paused(pause);
        self.probes += 1;
        self.probe();
    }

    /// Asks for the echoes that have not been asked for.
    fn probe(&mut self) {
        while self.is_open() && self.probes > 0 {
            if self.append(Header { code: PROBE, ..Header::EMPTY }, &[]).is_err() {
                return;
            }
            self.traffic.heartbeats += 1;
            self.probes -= 1;
        }
    }

    /// By how much the frame that was just taken may be older than it says, in nanoseconds.
    #[inline]
    pub(crate) fn lag_ns(&self) -> u64 {
        self.lag.ns()
    }

    // ---- the end

    /// Tells the peer, once, that this side will leave: the lane works on, but the peer should send new calls elsewhere. On a
    /// lane that is not open yet it is told as soon as it is.
    pub(crate) fn leave(&mut self) {
        if self.is_open() && !self.leaving {
            self.beat(LEAVING);
        }
        self.leaving = true;
    }

    /// Ends the lane: what is queued but not begun is withdrawn, answers excepted, and the peer is told the reason.
    /// Calls without an answer end by their [`fate`](Self::fate); to leave none behind, close when
    /// [`is_idle`](Self::is_idle). Does nothing to a lane that has ended before.
    pub(crate) fn close(&mut self, reason: CloseReason) -> Closed {
        self.end(reason, Closer::Here)
    }

    #[cold]
    pub(super) fn end(&mut self, reason: CloseReason, by: Closer) -> Closed {
        if let Phase::Closed(closed) = self.phase {
            return closed;
        }
        let closed = Closed { reason, by };
        self.phase = Phase::Closed(closed);
        self.ended = self.pulse.latest();
        self.sent_at_end = self.out.sent_total();
        let gone = self.peer_gone;
        let withdrawn = self.out.withdraw(|frame| {
            Header::read(frame)
                .is_ok_and(|header| !gone && matches!(Class::of(&header), Class::Answer | Class::Own))
        });
        self.traffic.withdrawn += withdrawn as u64;
        if gone {
            self.out.abandon();
        } else {
            let farewell =
                Header { code: reason.code(), key: self.traffic.taken_bytes, ..Header::new(Kind::Close) };
            // Without room for it the peer does not read anyway, and sees the connection end.
            let _ = self.append(farewell, &[]);
        }
        closed
    }

    /// Whether an ended lane needs its socket no longer. Until then the driver writes what is unsent, then shuts down
    /// its sending half and reads on, discarding: to drop a socket with unread bytes would reset the connection, and
    /// could destroy the Close before the peer has read it.
    #[must_use]
    pub(crate) fn is_finished(&self, now: Time) -> bool {
        matches!(self.phase, Phase::Closed(_)) && (self.peer_gone || now.since(self.ended) >= LINGER)
    }

    /// What became of a frame that was queued at `offset` and not answered.
    #[must_use]
    pub(crate) fn fate(&self, offset: u64) -> Fate {
        let ended = matches!(self.phase, Phase::Closed(_));
        let sent = if ended { self.sent_at_end } else { self.out.sent_total() };
        if offset >= sent {
            Fate::NotSent
        } else if offset >= self.taken_by_peer {
            Fate::NotTaken
        } else {
            Fate::Unknown
        }
    }

    // ---- looking

    /// How the lane ended, if it has.
    #[must_use]
    pub(crate) fn closed(&self) -> Option<Closed> {
        match self.phase {
            Phase::Closed(closed) => Some(closed),
            _ => None,
        }
    }

    /// Whether frames may pass.
    #[inline]
    #[must_use]
    pub(crate) fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open)
    }

    /// Whether the peer has said that it will leave: it still answers, but should get nothing new.
    #[inline]
    #[must_use]
    pub(crate) fn peer_is_leaving(&self) -> bool {
        self.peer_leaving
    }

    /// Whether neither side owes the other an answer and all is sent.
    #[must_use]
    pub(crate) fn is_idle(&self) -> bool {
        self.credits.unanswered() == 0 && self.credits.owed() == 0 && self.out.unsent_bytes() == 0
    }

    /// What the greeting led to, once the lane has been open.
    #[inline]
    #[must_use]
    pub(crate) fn agreement(&self) -> Option<&Agreement> {
        self.agreement.as_deref()
    }

    /// Calls of this side that wait for the peer's answer.
    #[inline]
    #[must_use]
    pub(crate) fn unanswered(&self) -> u32 {
        self.credits.unanswered()
    }

    /// Calls of the peer that wait for this side's answer.
    #[inline]
    #[must_use]
    #[cfg_attr(not(test), allow(dead_code, reason = "what tests and the fuzzer compare with their model"))]
    pub(crate) fn owed(&self) -> u32 {
        self.credits.owed()
    }

    /// Bytes that the socket has ever taken.
    #[inline]
    #[must_use]
    #[cfg_attr(not(test), allow(dead_code, reason = "what tests and the fuzzer compare with their model"))]
    pub(crate) fn sent_total(&self) -> u64 {
        self.out.sent_total()
    }

    /// What has moved so far.
    pub(crate) fn traffic(&self) -> Traffic {
        Traffic { sent_bytes: self.out.sent_total(), ..self.traffic }
    }
}
