//! The mesh: from each shard to each other one, a ring of requests and a ring of answers.
//!
//! ```text
//!   shard a                                      shard b
//!   Outgoing[b].requests  ====================>  Arrivals[a].requests     (a's calls, cancels, events)
//!   Arrivals[b].answers   <====================  Outgoing[a].answers      (b's answers to them)
//! ```
//!
//! **Two shards that call each other at full rings cannot deadlock.** A call takes a credit before it goes into the
//! request ring. There are as many credits to one peer as bare headers fit two fifths of the answer ring, and as handles
//! fit its side queue. An answer goes in line only while that leaves a header's room for every credit, also for those
//! whose requests are still on their way; else it goes by handle. So an answer always finds room, and a shard never waits
//! in order to answer; every shard empties its request rings in every turn, whatever the state of its own outgoing ones; so
//! every request ring empties, and those who wait for room get it, in the order in which they began to wait.
//!
//! What this does not cover: handlers of two shards that await calls to *each other*, more of them at once than there are
//! credits. Then every credit is held by a call that waits for one. Such calls end at their deadlines.
//!
//! The credit returns with the answer, even if the call has ended meanwhile: each request gets exactly one answer.
//!
//! Frames over [`FRAME_INLINE_BYTES`], and frames of other nodes that change shards, go by handle: the frame moves into
//! the side queue, and a header with the `LARGE` flag takes its place in the ring, so order is kept.
//!
//! This is the one place where bytes out of a ring are taken for local frames.
#![allow(unsafe_code)]

use std::sync::Arc;

use catga_codec::limits::{FRAME_ALIGN_BYTES, FRAME_INLINE_BYTES, HEADER_BYTES};
use catga_codec::{
    CallId, EncodeError, Flags, Header, LocalFrame, Message, OwnedFrame, encode_local, encode_local_empty,
    padded,
};
use crossbeam_queue::ArrayQueue;

use crate::call::waiting::{Line, Ticket, Waiting};
use crate::limits::{
    REPLY_FRAME_BYTES, REPLY_RING_BYTES, REQUEST_RING_BYTES, RING_BYTES_MIN, RINGS_BYTES_PER_SHARD,
};
use crate::ring::doorbell::{Doorbell, EventFd};
use crate::ring::spsc::{Consumer, Producer, ring};
use crate::shard::gather::Gather;
use crate::time::Time;

/// The size of a small answer.
const ANSWER_BYTES: u64 = padded(HEADER_BYTES + FRAME_ALIGN_BYTES) as u64;
/// The most bytes to wait for: a part of the ring.
const GATHER_BYTES_MAX: u64 = REPLY_RING_BYTES as u64 / 4;

type SideQueue = Arc<ArrayQueue<OwnedFrame>>;

/// Why a request did not go into a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoRoom {
    /// No credit, a full ring, or others that wait already: try again when told.
    Wait,
    /// It can never go.
    Never(EncodeError),
}

/// The way to one other shard.
pub(crate) struct Outgoing {
    requests: Producer,
    answers: Producer,
    large_requests: SideQueue,
    large_answers: SideQueue,
    /// In `0 ..= credits_max`: how many more requests may go before an answer comes back.
    credits: u32,
    credits_max: u32,
    /// Calls that wait for room. A forwarded one has its frame with it.
    line: Line,
    doorbell: Arc<Doorbell<EventFd>>,
}

/// What comes from one other shard.
pub(crate) struct Arrivals {
    requests: Consumer,
    answers: Consumer,
    gather: Gather,
    /// The most that was found waiting in one of the rings.
    bytes_max: u64,
    large_requests: SideQueue,
    large_answers: SideQueue,
}

/// A frame out of a ring. The header that was in the ring comes beside it.
pub(crate) enum Arrived<'a> {
    InLine(LocalFrame<'a>),
    ByHandle(OwnedFrame),
}

/// One shard's ends of all its rings; `None` at its own place.
pub(crate) struct Ends {
    pub(crate) outgoing: Vec<Option<Outgoing>>,
    pub(crate) arrivals: Vec<Option<Arrivals>>,
}

/// Builds the rings between as many shards as there are doorbells.
pub(crate) fn mesh(doorbells: &[Arc<Doorbell<EventFd>>]) -> Vec<Ends> {
    let shards = doorbells.len();
    let mut ends: Vec<Ends> =
        (0..shards).map(|_| Ends { outgoing: none(shards), arrivals: none(shards) }).collect();
    for low in 0..shards {
        for high in low + 1..shards {
            let (low_asks, high_answers) = Way::new(shards).split();
            let (high_asks, low_answers) = Way::new(shards).split();
            let (low_out, low_in) = hold(low_asks, low_answers, &doorbells[high]);
            let (high_out, high_in) = hold(high_asks, high_answers, &doorbells[low]);
            ends[low].outgoing[high] = Some(low_out);
            ends[low].arrivals[high] = Some(low_in);
            ends[high].outgoing[low] = Some(high_out);
            ends[high].arrivals[low] = Some(high_in);
        }
    }
    ends
}

fn none<T>(count: usize) -> Vec<Option<T>> {
    (0..count).map(|_| None).collect()
}

/// The largest rings, up to the defaults, that keep to the room for all rings into one shard.
fn ring_sizes(shards: usize) -> (usize, usize) {
    let part = RINGS_BYTES_PER_SHARD / shards.saturating_sub(1).max(1);
    let fit = |wanted: usize, share: usize| {
        let largest = 1 << share.max(RING_BYTES_MIN).ilog2();
        wanted.min(largest).max(RING_BYTES_MIN)
    };
    (fit(REQUEST_RING_BYTES, part / 3), fit(REPLY_RING_BYTES, part / 3 * 2))
}

/// Both ends of the two rings that carry one shard's requests to another and the answers back.
struct Way {
    requests: (Producer, Consumer),
    answers: (Producer, Consumer),
    large_requests: SideQueue,
    large_answers: SideQueue,
    credits: u32,
}

impl Way {
    fn new(shards: usize) -> Self {
        let (request_bytes, answer_bytes) = ring_sizes(shards);
        // Some more than a batch has in flight, and room for as many small answers in line.
        let credits = (answer_bytes * 2 / 5 / padded(HEADER_BYTES)) as u32;
        Self {
            requests: ring(request_bytes, FRAME_INLINE_BYTES),
            answers: ring(answer_bytes, REPLY_FRAME_BYTES),
            large_requests: Arc::new(ArrayQueue::new(credits as usize)),
            large_answers: Arc::new(ArrayQueue::new(credits as usize)),
            credits,
        }
    }

    /// The end of the shard that asks, and the end of the one that answers.
    fn split(self) -> (Asking, Answering) {
        let Self { requests, answers, large_requests, large_answers, credits } = self;
        let asking = Asking {
            requests: requests.0,
            answers: answers.1,
            large_requests: large_requests.clone(),
            large_answers: large_answers.clone(),
            credits,
        };
        (asking, Answering { requests: requests.1, answers: answers.0, large_requests, large_answers })
    }
}

/// The end of a way at the shard that asks.
struct Asking {
    requests: Producer,
    answers: Consumer,
    large_requests: SideQueue,
    large_answers: SideQueue,
    credits: u32,
}

/// The end of a way at the shard that answers.
struct Answering {
    requests: Consumer,
    answers: Producer,
    large_requests: SideQueue,
    large_answers: SideQueue,
}

/// What one shard holds of both ways between it and another, whose doorbell this is.
fn hold(asks: Asking, answers: Answering, doorbell: &Arc<Doorbell<EventFd>>) -> (Outgoing, Arrivals) {
    let outgoing = Outgoing {
        requests: asks.requests,
        answers: answers.answers,
        large_requests: asks.large_requests,
        large_answers: answers.large_answers,
        credits: asks.credits,
        credits_max: asks.credits,
        line: Line::default(),
        doorbell: doorbell.clone(),
    };
    let arrivals = Arrivals {
        requests: answers.requests,
        answers: asks.answers,
        gather: Gather::up_to(GATHER_BYTES_MAX, ANSWER_BYTES),
        bytes_max: 0,
        large_requests: answers.large_requests,
        large_answers: asks.large_answers,
    };
    (outgoing, arrivals)
}

/// The way to another shard. No closure does something with it: what one holds, a header mostly, would go through memory, and
/// be read there before it has arrived.
#[inline(always)]
pub(crate) fn peer(mesh: &mut [Option<Outgoing>], shard: u16) -> &mut Outgoing {
    match mesh.get_mut(usize::from(shard)) {
        Some(Some(peer)) => peer,
        _ => unreachable!("routes name other shards of this engine only"),
    }
}

impl Outgoing {
    /// Archives a request into the ring, or moves it into the side queue if it is large.
    ///
    /// `ticket`: of a call that has waited; it goes if it has been told that there is room.
    #[inline(always)] // the header is in registers where this is called; out of line it would go through memory
    pub(crate) fn request<M: Message>(
        &mut self,
        header: Header,
        message: &M,
        ticket: Ticket,
    ) -> Result<(), NoRoom> {
        self.may_send(ticket)?;
        let Some(room) = self.requests.room(FRAME_INLINE_BYTES) else { return Err(NoRoom::Wait) };
        match encode_local(header, message, room) {
            Ok(written) => {
                self.requests.wrote(FRAME_INLINE_BYTES, written);
                self.went(ticket, written);
            }
            Err(EncodeError::Full) => {
                self.large_request(header, message)?;
                self.went(ticket, HEADER_BYTES);
            }
            Err(error) => return Err(NoRoom::Never(error)),
        }
        Ok(())
    }

    #[cold]
    fn large_request<M: Message>(&mut self, header: Header, message: &M) -> Result<(), NoRoom> {
        let mut frame = OwnedFrame::with_capacity(2 * FRAME_INLINE_BYTES);
        frame.encode(header, message).map_err(NoRoom::Never)?;
        by_handle(&mut self.requests, &self.large_requests, header, frame).map_err(|_| NoRoom::Wait)
    }

    /// Passes on a request that was archived elsewhere. Gives the frame back if there is no room.
    pub(crate) fn forward(&mut self, frame: OwnedFrame, ticket: Ticket) -> Result<(), OwnedFrame> {
        if self.may_send(ticket).is_err() {
            return Err(frame);
        }
        let bytes = frame.bytes().len();
        pass(&mut self.requests, &self.large_requests, frame)?;
        self.went(ticket, if bytes <= FRAME_INLINE_BYTES { bytes } else { HEADER_BYTES });
        Ok(())
    }

    #[inline(always)] // as `request`
    fn may_send(&self, ticket: Ticket) -> Result<(), NoRoom> {
        if self.credits > 0 && self.line.admits(ticket) { Ok(()) } else { Err(NoRoom::Wait) }
    }

    #[inline(always)] // as `request`; most have no ticket, which is known where this is compiled
    fn went(&mut self, ticket: Ticket, bytes: usize) {
        self.credits -= 1;
        if ticket != Ticket::NONE {
            self.line.gone(ticket, padded(bytes));
        }
    }

    /// Passes an event on. It takes no credit, because nobody answers it; where there is no room it is lost.
    pub(crate) fn event(&mut self, frame: OwnedFrame) -> Result<(), OwnedFrame> {
        pass(&mut self.requests, &self.large_requests, frame)
    }

    /// Tells the other shard that the answer is not wanted any more. Says whether there was room to tell.
    pub(crate) fn cancel(&mut self, call: CallId) -> bool {
        let mut header = Header::new(catga_codec::Kind::Cancel);
        header.call = call;
        self.requests.push(HEADER_BYTES, |into| encode_local_empty(header, into)).is_ok()
    }

    /// Archives an answer. There is room by the credit that its request took.
    #[inline]
    pub(crate) fn answer<M: Message>(&mut self, header: Header, message: &M) -> Result<(), EncodeError> {
        // In line only if each other answer can still go by handle: also those to requests that have not come yet.
        let reserved = self.credits_max as usize * padded(HEADER_BYTES);
        if self.answers.has_bytes(reserved + REPLY_FRAME_BYTES)
            && let Some(room) = self.answers.room(REPLY_FRAME_BYTES)
        {
            match encode_local(header, message, room) {
                Ok(written) => {
                    self.answers.wrote(REPLY_FRAME_BYTES, written);
                    return Ok(());
                }
                Err(EncodeError::Full) => {}
                Err(error) => return Err(error),
            }
        }
        self.large_answer(header, message)
    }

    #[cold]
    fn large_answer<M: Message>(&mut self, header: Header, message: &M) -> Result<(), EncodeError> {
        let mut frame = OwnedFrame::with_capacity(2 * REPLY_FRAME_BYTES);
        frame.encode(header, message)?;
        self.answer_by_handle(frame);
        Ok(())
    }

    /// Answers with a code and no payload.
    pub(crate) fn answer_empty(&mut self, header: Header) {
        let pushed = self.answers.push(HEADER_BYTES, |into| encode_local_empty(header, into));
        assert!(pushed.is_ok(), "an answer has room by the credit of its request");
    }

    /// Answers with a frame that came from elsewhere.
    pub(crate) fn answer_by_handle(&mut self, frame: OwnedFrame) {
        let Some(header) = frame.header() else { return debug_assert!(false, "an answer is a frame") };
        let pushed = by_handle(&mut self.answers, &self.large_answers, header, frame);
        assert!(pushed.is_ok(), "an answer has room by the credit of its request");
    }

    /// Puts a call among those that wait. `live` says which of them are still open.
    pub(crate) fn wait(&mut self, ticket: Ticket, waiting: Waiting, live: impl Fn(CallId) -> bool) {
        self.line.wait(ticket, waiting, live);
    }

    /// A round of [`grant`](Self::grant) begins: room is kept no longer for those who do not come.
    pub(crate) fn begin_round(&mut self, now: Time, comes: impl FnMut(CallId) -> bool) {
        self.line.begin_round(now, comes);
    }

    /// The call that has waited longest, if there is room for it now, besides the room that is kept for those granted before.
    pub(crate) fn grant(&mut self, now: Time, live: impl FnMut(CallId) -> bool) -> Option<Waiting> {
        let (calls, bytes) = self.line.kept();
        if self.credits <= calls || !self.requests.has_bytes(bytes + FRAME_INLINE_BYTES) {
            return None;
        }
        self.line.grant(now, live)
    }

    pub(crate) fn is_waited_for(&self) -> bool {
        !self.line.is_empty()
    }

    /// An answer came back.
    #[inline]
    pub(crate) fn credit(&mut self) {
        debug_assert!(self.credits < self.credits_max, "an answer without a request");
        self.credits += 1;
    }

    /// Requests that have no answer yet.
    pub(crate) fn unanswered(&self) -> u32 {
        self.credits_max - self.credits
    }

    /// Shows the other shard what was written in this turn, and wakes it if it sleeps. Says whether it had to be woken.
    #[inline]
    pub(crate) fn publish(&mut self) -> bool {
        // Not `||`: both rings are to be published.
        let news = self.requests.publish() | self.answers.publish();
        news && self.doorbell.ring()
    }
}

/// Moves a frame into the ring: in line if it fits and is local, else by handle.
fn pass(ring: &mut Producer, side: &SideQueue, frame: OwnedFrame) -> Result<(), OwnedFrame> {
    let Some(local) = frame.local().filter(|local| local.bytes().len() <= FRAME_INLINE_BYTES) else {
        return match frame.header() {
            Some(header) => by_handle(ring, side, header, frame),
            None => Err(frame),
        };
    };
    let bytes = local.bytes();
    let pushed = ring.push(bytes.len(), |into| {
        into[..bytes.len()].copy_from_slice(bytes);
        Ok::<_, EncodeError>(bytes.len())
    });
    if pushed.is_err() {
        return Err(frame);
    }
    crate::pool::give(frame);
    Ok(())
}

/// Moves a frame into the side queue and its header, marked `LARGE`, into the ring. The side queue comes first: who sees
/// the header finds the frame.
fn by_handle(
    ring: &mut Producer,
    side: &SideQueue,
    header: Header,
    frame: OwnedFrame,
) -> Result<(), OwnedFrame> {
    if !ring.has_room(HEADER_BYTES) {
        return Err(frame);
    }
    side.push(frame)?;
    let header = Header { flags: header.flags.with(Flags::LARGE), extension_bytes: 0, ..header };
    let pushed = ring.push(HEADER_BYTES, |into| encode_local_empty(header, into));
    assert!(pushed.is_ok(), "there was room just now, and nobody else writes here");
    Ok(())
}

impl Arrivals {
    /// Hands each answer that has come to `take`, at most `limit` of them. Returns how many.
    pub(crate) fn answers(
        &mut self,
        unanswered: u32,
        limit: usize,
        take: impl FnMut(Header, Arrived<'_>),
    ) -> usize {
        self.answers.refresh();
        let pending = self.answers.pending_bytes();
        self.bytes_max = self.bytes_max.max(pending);
        // As many small answers as a quarter of what is still to come: then there are four such batches on their way.
        if !self.gather.is_due(pending, u64::from(unanswered / 4) * ANSWER_BYTES) {
            return 0;
        }
        drain(&mut self.answers, &self.large_answers, limit, take)
    }

    /// Hands each request, cancel and event that has come to `take`, at most `limit` of them. Returns how many.
    pub(crate) fn requests(&mut self, limit: usize, take: impl FnMut(Header, Arrived<'_>)) -> usize {
        self.requests.refresh();
        self.bytes_max = self.bytes_max.max(self.requests.pending_bytes());
        drain(&mut self.requests, &self.large_requests, limit, take)
    }

    /// The most bytes that waited in one of the two rings when it was looked at.
    pub(crate) fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    /// Whether something waits in one of the rings; looks at the other side's cursors.
    pub(crate) fn pending(&mut self) -> bool {
        self.requests.refresh();
        self.answers.refresh();
        self.requests.peek().is_some() || self.answers.peek().is_some()
    }
}

#[inline]
fn drain(
    ring: &mut Consumer,
    side: &SideQueue,
    limit: usize,
    mut take: impl FnMut(Header, Arrived<'_>),
) -> usize {
    ring.drain(limit, |bytes| {
        // SAFETY: only `Outgoing` writes into these rings, and all it writes are whole frames of `encode_local`,
        // `encode_local_empty` or copies of local frames, made in this process. The ring hands out exactly what was
        // written, 16-aligned (the model test in `ring::spsc` fails otherwise; `tests::frames_arrive_as_they_left` here).
        let frame = unsafe { LocalFrame::assume(bytes) };
        let header = frame.header();
        if header.flags.contains(Flags::LARGE) {
            if let Some(large) = side.pop() {
                take(header, Arrived::ByHandle(large));
            } else {
                debug_assert!(false, "a handle without its frame");
            }
        } else {
            take(header, Arrived::InLine(frame));
        }
    })
}

#[cfg(test)]
mod tests;
