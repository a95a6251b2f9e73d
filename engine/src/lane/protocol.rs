//! The state machine of a lane: one connection between a shard here and a shard on another node.
//!
//! It does no I/O and reads no clock. The driver owns the socket and the [`ReceiveBuffer`](super::buffer::ReceiveBuffer),
//! hands in bytes and `now`, and writes what [`Lane::unsent`] shows:
//!
//! ```text
//!   dial    ── Hello ──▶  accept          Greeting ──agree──▶ Open ──▶ Closed
//!           ◀─ Welcome ──                     └── disagree, timeout ──▶┘
//!           ◀─ frames ─▶                  Request, Event ▶ answers ◀ Cancel ▶ Heartbeat ◀▶ Close ◀▶
//! ```
//!
//! **Credits.** Each request is owed exactly one answer, and each side grants the other so many unanswered ones: see
//! [`credit`](super::credit).
//!
//! **Bounds.** Requests and events wait behind `send_bytes_max` unsent bytes. Answers never wait: they have room beyond
//! that bound (see [`config`](super::config)), and a peer that lets even this fill up does not read, and loses the lane.
//!
//! **Ends.** Whatever ends a lane takes back the requests and events of which no byte has left, so that `NotSent` is
//! true; answers already queued still go out before the Close frame. A Close tells how far its sender has read: what
//! lies behind that point was never looked at. [`Lane::fate`] answers for each frame.

use catga_codec::limits::{FRAME_INLINE_BYTES, FRAME_MAX_BYTES, HEADER_BYTES};
use catga_codec::{
    EncodeError, Flags, ForeignFrame, FrameError, Header, Kind, Message, Parsed, encode_frame,
};

use super::buffer::{SendBuffer, Unwritten};
use super::close::{CloseReason, Closed, Closer, LaneStats, Traffic};
use super::config::{Bounds, LaneConfig};
use super::credit::{Class, Credits};
use super::greeting::{GREETING_BYTES_MAX, Greeting};
use super::handshake::{Agreement, Role, agree};
use super::outcome::{Fate, Queued, SendError, Step};
use super::pulse::{Due, LINGER, Pulse};
use crate::time::Time;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Greeting,
    Open,
    Closed(Closed),
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Lane {
    phase: Phase,
    role: Role,
    /// The longest frame that either side may send: first a greeting, then what was agreed.
    frame_bytes_max: usize,
    credits: Credits,
    out: SendBuffer,
    bounds: Bounds,
    /// Its `taken_bytes` are the stream bytes of the peer that were stepped over: what a Close tells the peer.
    traffic: Traffic,
    pulse: Pulse,
    /// When the lane ended.
    ended: Time,
    /// The peer will send and take nothing more.
    peer_gone: bool,
    /// Bytes sent when the lane ended, and how far the peer said that it read.
    sent_at_end: u64,
    taken_by_peer: u64,
    config: Box<LaneConfig>,
    agreement: Option<Box<Agreement>>,
}

impl Lane {
    /// The lane of a connection that this side has made. Its Hello is queued; a greeting that no peer would accept
    /// (see [`Greeting::encode`]) makes a lane that has ended already.
    #[must_use]
    pub(crate) fn dial(config: LaneConfig, now: Time) -> Self {
        let mut lane = Self::new(Role::Dialer, config, now);
        if let Err(reason) = lane.greet(Kind::Hello) {
            lane.end(reason, Closer::Here);
        }
        lane
    }

    /// The lane of a connection that was made to this side. Waits for a Hello.
    #[must_use]
    pub(crate) fn accept(config: LaneConfig, now: Time) -> Self {
        Self::new(Role::Acceptor, config, now)
    }

    fn new(role: Role, config: LaneConfig, now: Time) -> Self {
        let bounds = Bounds::of(&config);
        Self {
            phase: Phase::Greeting,
            role,
            frame_bytes_max: HEADER_BYTES + GREETING_BYTES_MAX,
            credits: Credits::new(config.greeting.calls_max),
            out: SendBuffer::new(bounds.held),
            bounds,
            traffic: Traffic::default(),
            pulse: Pulse::new(now),
            ended: now,
            peer_gone: false,
            sent_at_end: 0,
            taken_by_peer: u64::MAX,
            config: Box::new(config),
            agreement: None,
        }
    }

    // ---- reading

    /// Looks at the front of `bytes`, which must start at a multiple of 16. Call it again behind what was consumed,
    /// until it says [`Step::Incomplete`] or [`Step::Closed`]. A frame borrows `bytes` only, so the lane is free to
    /// send the answer while the frame is being read. No allocation while open.
    #[inline]
    pub(crate) fn next_frame<'b>(&mut self, bytes: &'b [u8]) -> Step<'b> {
        if self.phase != Phase::Open {
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
        match (header.kind, self.role) {
            (Kind::Hello, Role::Acceptor) | (Kind::Welcome, Role::Dialer) => {}
            (Kind::Hello | Kind::Welcome, _) => return self.end_reading(bytes, CloseReason::WrongRole),
            (Kind::Close, _) => return self.peer_closed(bytes, &header),
            _ => return self.end_reading(bytes, CloseReason::FrameBeforeGreeting),
        }
        match self.agree(frame.payload()) {
            Ok(()) => {
                self.traffic.taken_bytes += consumed as u64;
                Step::Opened { consumed }
            }
            Err(reason) => self.end_reading(bytes, reason),
        }
    }

    fn agree(&mut self, payload: &[u8]) -> Result<(), CloseReason> {
        let LaneConfig { greeting, expected_peer, .. } = &*self.config;
        let agreement = Greeting::decode(payload)
            .and_then(|theirs| agree(self.role, greeting, &theirs, expected_peer.as_ref()))
            .map_err(|error| error.close_reason())?;
        if self.role == Role::Acceptor {
            self.config.greeting.shard = agreement.shard;
            self.config.greeting.wanted_shard = agreement.peer_shard;
            self.greet(Kind::Welcome)?;
        }
        self.frame_bytes_max = agreement.frame_bytes_max.min(FRAME_MAX_BYTES);
        self.credits.grant(agreement.calls_max);
        self.agreement = Some(Box::new(agreement));
        self.phase = Phase::Open;
        Ok(())
    }

    fn greet(&mut self, kind: Kind) -> Result<(), CloseReason> {
        let payload = self.config.greeting.encode().map_err(|error| error.close_reason())?;
        self.append(Header::new(kind), &payload).map_err(|_| CloseReason::MalformedGreeting)?;
        Ok(())
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

    // ---- sending

    /// Archives `message` into the send buffer, behind `header`, without extensions. Costs the archiving and a few
    /// compares.
    ///
    /// # Errors
    /// [`SendError`]: nothing was queued and no credit taken. An answer that no longer fits ends the lane.
    #[inline]
    pub(crate) fn send<T: Message>(&mut self, header: Header, message: &T) -> Result<Queued, SendError> {
        let class = self.admit(&header)?;
        let header = Header { flags: header.flags.without(Flags::LARGE), extension_bytes: 0, ..header };
        let mut room = FRAME_INLINE_BYTES;
        let offset = loop {
            let mut given = 0;
            let outcome = self.out.frame(room, self.frame_bytes_max, |into| {
                given = into.len();
                encode_frame(header, message, into)
            });
            match outcome {
                Ok(offset) => break offset,
                // What the message needs is only known once it is archived: try again with more than before.
                Err(Unwritten::Writer(EncodeError::Full)) if given < self.frame_bytes_max => {
                    room = (2 * given).min(self.frame_bytes_max);
                }
                Err(error) => return Err(self.unwritten(error)),
            }
        };
        Ok(self.queued(class, offset))
    }

    /// Queues a frame that is archived already, or has no payload: `body` is what follows the header, extensions and
    /// payload. Of the header all is taken as it is, but for the length and local flags.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    #[inline]
    pub(crate) fn forward(&mut self, header: Header, body: &[u8]) -> Result<Queued, SendError> {
        debug_assert!(usize::from(header.extension_bytes) <= body.len(), "the body holds the extensions");
        let class = self.admit(&header)?;
        if HEADER_BYTES + body.len() > self.frame_bytes_max {
            return Err(self.unwritten(Unwritten::Writer(EncodeError::Full)));
        }
        match self.append(header, body) {
            Ok(offset) => Ok(self.queued(class, offset)),
            Err(error) => Err(self.unwritten(error)),
        }
    }

    /// Whether a request would be queued now.
    #[inline]
    #[must_use]
    pub(crate) fn may_call(&self) -> bool {
        self.phase == Phase::Open && self.credits.may_ask() && self.out.unsent_bytes() < self.bounds.asks
    }

    /// Whether so much waits for the socket that new requests of the peer should be refused as overload. Reading must
    /// go on all the same: two sides that stop reading would wait for each other.
    #[inline]
    #[must_use]
    pub(crate) fn is_congested(&self) -> bool {
        self.out.unsent_bytes() >= self.bounds.asks
    }

    #[inline]
    fn admit(&mut self, header: &Header) -> Result<Class, SendError> {
        let class = Class::of(header);
        let unsent = self.out.unsent_bytes();
        let admitted = self.phase == Phase::Open
            && match class {
                Class::Ask => self.credits.may_ask() && unsent < self.bounds.asks,
                Class::Tell => unsent < self.bounds.asks,
                Class::Answer => self.credits.owed() > 0 && unsent < self.bounds.answers,
                // A full lane needs nothing more than less work; there is one cancel at most for a call.
                Class::Cancel => unsent < self.bounds.answers,
                Class::Own => false,
            };
        if admitted { Ok(class) } else { Err(self.refusal(class, header.kind)) }
    }

    #[cold]
    fn refusal(&mut self, class: Class, kind: Kind) -> SendError {
        match (self.phase, class) {
            (_, Class::Own) => SendError::OwnKind(kind),
            (Phase::Closed(closed), _) => SendError::Closed(closed),
            (Phase::Greeting, _) => SendError::NotOpen,
            (Phase::Open, Class::Ask) if !self.credits.may_ask() => {
                self.traffic.no_credit += 1;
                SendError::NoCredit
            }
            (Phase::Open, Class::Answer) if self.credits.owed() == 0 => SendError::NotOwed,
            (Phase::Open, Class::Answer) => {
                SendError::Closed(self.end(CloseReason::SlowReader, Closer::Here))
            }
            (Phase::Open, _) => {
                self.traffic.full += 1;
                SendError::Full
            }
        }
    }

    #[cold]
    fn unwritten(&mut self, error: Unwritten<EncodeError>) -> SendError {
        match error {
            Unwritten::Writer(EncodeError::Full | EncodeError::TooLarge) => {
                self.traffic.too_long += 1;
                SendError::TooLong { bytes_max: self.frame_bytes_max }
            }
            Unwritten::Writer(error) => SendError::Encode(error),
            // The buffer holds all that the bounds admit, so that this does not happen.
            Unwritten::NoRoom => SendError::Closed(self.end(CloseReason::SlowReader, Closer::Here)),
        }
    }

    #[inline]
    fn queued(&mut self, class: Class, offset: u64) -> Queued {
        self.credits.queued(class);
        Queued { offset }
    }

    #[inline]
    fn append(&mut self, header: Header, body: &[u8]) -> Result<u64, Unwritten<EncodeError>> {
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
        let waiting = self.out.unsent_bytes() > 0;
        let due = match self.phase {
            Phase::Greeting => self.pulse.tick_greeting(now),
            Phase::Open => self.pulse.tick_open(now, waiting),
            Phase::Closed(_) => Due::Nothing,
        };
        match due {
            Due::Nothing => None,
            Due::Heartbeat => {
                self.traffic.heartbeats += u64::from(self.append(Header::EMPTY, &[]).is_ok());
                None
            }
            Due::End(reason) => Some(self.end(reason, Closer::Here)),
        }
    }

    /// When [`on_tick`](Self::on_tick) wants to be called next; of an ended lane, when it is finished at the latest.
    #[must_use]
    pub(crate) fn next_tick(&self) -> Time {
        match self.phase {
            Phase::Greeting => self.pulse.next_greeting(),
            Phase::Open => self.pulse.next_open(self.out.unsent_bytes() > 0),
            Phase::Closed(_) => self.ended + LINGER,
        }
    }

    // ---- the end

    /// Ends the lane: what is queued but not begun is withdrawn, answers excepted, and the peer is told the reason.
    /// Calls without an answer end by their [`fate`](Self::fate); to leave none behind, close when
    /// [`is_idle`](Self::is_idle). Does nothing to a lane that has ended before.
    pub(crate) fn close(&mut self, reason: CloseReason) -> Closed {
        self.end(reason, Closer::Here)
    }

    #[cold]
    fn end(&mut self, reason: CloseReason, by: Closer) -> Closed {
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
        self.phase == Phase::Open
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
    #[cfg_attr(not(test), allow(dead_code, reason = "what tests and the fuzzer compare with their model"))]
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

    /// Adds this lane to a shard's counters. Once, when the driver lets go of it.
    pub(crate) fn report(&self, stats: &mut LaneStats) {
        stats.opened += u64::from(self.agreement.is_some());
        if let Phase::Closed(closed) = self.phase {
            stats.ended(closed);
        }
        stats.traffic += Traffic { sent_bytes: self.out.sent_total(), ..self.traffic };
    }
}
