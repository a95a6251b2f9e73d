//! The two byte buffers of a lane: what the socket has given, and what it shall take.
//!
//! Both keep frames in one contiguous run that starts at a multiple of 16, so a frame is archived straight into the
//! buffer the socket is written from, and is read straight out of the buffer the socket was read into:
//!
//! ```text
//!   receive   [ consumed | unread frames, partial frame | space ]      begin ..= end
//!   send      [ sent     | part sent, whole frames      | room  ]      first ..= begin ..= end
//! ```
//!
//! Bytes move only when the move is paid for by bytes that left (a constant number of moved bytes for each byte that
//! passes), or when nothing else makes room. Memory grows with what really arrived or was really queued, never with
//! what a length word claims, and shrinks again after a calm while. In steady state neither buffer allocates.

use catga_codec::limits::{FRAME_ALIGN_BYTES, HEADER_BYTES};
use catga_codec::padded;
use catga_codec::rkyv::util::AlignedVec;

/// Where a [`ReceiveBuffer`] starts and what it returns to: one read of a busy socket, and small enough for L2.
pub(crate) const RECEIVE_BYTES: usize = 128 * 1024;
/// Where a [`SendBuffer`] starts: the frames of an ordinary turn.
pub(crate) const SEND_START_BYTES: usize = 64 * 1024;
/// What a [`SendBuffer`] keeps however calm it is.
pub(crate) const SEND_KEEP_BYTES: usize = 1024 * 1024;
/// How many times a grown buffer must run empty without having needed its size before it shrinks.
const CALM_MAX: u32 = 64;

const _: () = assert!(RECEIVE_BYTES.is_multiple_of(FRAME_ALIGN_BYTES));
const _: () = assert!(SEND_START_BYTES.is_multiple_of(FRAME_ALIGN_BYTES));
const _: () = assert!(SEND_START_BYTES <= SEND_KEEP_BYTES);
const _: () = assert!(catga_codec::limits::FRAME_INLINE_BYTES + FRAME_ALIGN_BYTES <= SEND_START_BYTES);

/// `bytes` zeros that start at a multiple of 16.
fn zeroed(bytes: usize) -> AlignedVec {
    let mut memory = AlignedVec::with_capacity(bytes);
    memory.resize(bytes, 0);
    memory
}

/// Bytes read from a socket, until whole frames of them have been consumed.
///
/// The driver's loop: read into [`space`](Self::space) and say how much came ([`filled`](Self::filled)); step through
/// [`bytes`](Self::bytes) frame by frame; [`consume`](Self::consume) what was stepped over, and pass on what the next
/// frame [`need`](Self::need)s.
#[derive(Debug)]
pub(crate) struct ReceiveBuffer {
    memory: AlignedVec,
    /// First unread byte: a multiple of 16 or, once a lane has ended and takes all there is, `end`.
    begin: usize,
    /// End of what was read, at most `memory.len()`.
    end: usize,
    /// Bytes from `begin` on that make the frame there whole, or 0.
    needed: usize,
    /// Times the buffer ran empty since it last used more than [`RECEIVE_BYTES`].
    calm: u32,
}

impl ReceiveBuffer {
    /// An empty buffer of [`RECEIVE_BYTES`].
    #[must_use]
    pub(crate) fn new() -> Self {
        Self { memory: zeroed(RECEIVE_BYTES), begin: 0, end: 0, needed: 0, calm: 0 }
    }

    /// Where the next read goes. Empty only while whole frames wait to be consumed.
    #[must_use]
    pub(crate) fn space(&mut self) -> &mut [u8] {
        self.make_space();
        self.invariants();
        &mut self.memory[self.end..]
    }

    /// The first `bytes` of [`space`](Self::space) now hold what the socket gave.
    pub(crate) fn filled(&mut self, bytes: usize) {
        self.end += bytes;
        self.invariants();
    }

    /// All that is unread, from the start of a frame.
    #[inline]
    #[must_use]
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.memory[self.begin..self.end]
    }

    /// Whole frames of `bytes` in sum have been dealt with, or all there is.
    #[inline]
    pub(crate) fn consume(&mut self, bytes: usize) {
        self.begin += bytes;
        self.needed = 0;
        self.invariants();
    }

    /// The frame at the front needs `bytes` to be whole. The length behind it must have been checked against the
    /// lane's limit; even so no more than twice what has arrived is allocated for it.
    pub(crate) fn need(&mut self, bytes: usize) {
        self.needed = bytes;
    }

    /// Bytes of memory held.
    #[must_use]
    #[cfg_attr(not(test), allow(dead_code, reason = "what tests and the fuzzer compare with their model"))]
    pub(crate) fn capacity(&self) -> usize {
        self.memory.len()
    }

    fn make_space(&mut self) {
        let unread = self.end - self.begin;
        if unread == 0 {
            self.rest();
            (self.begin, self.end) = (0, 0);
            return;
        }
        let behind = self.memory.len() - self.end;
        let lacks = self.begin + self.needed > self.memory.len() || behind < self.memory.len() / 4;
        // Moving fewer bytes than were consumed keeps reads in the cache-warm front at a bounded price.
        if self.begin > 0 && (unread <= self.begin || lacks) {
            self.memory.copy_within(self.begin..self.end, 0);
            (self.begin, self.end) = (0, unread);
        }
        if self.end == self.memory.len() && self.needed > self.memory.len() {
            let bytes = padded(self.needed).min(2 * self.memory.len());
            let mut memory = AlignedVec::with_capacity(bytes);
            memory.extend_from_slice(&self.memory[..self.end]);
            memory.resize(bytes, 0);
            self.memory = memory;
        }
    }

    /// Gives back what one large frame needed, once the buffer has run empty often enough without using it.
    fn rest(&mut self) {
        if self.memory.len() > RECEIVE_BYTES && self.end > 0 {
            self.calm = if self.end > RECEIVE_BYTES { 0 } else { self.calm + 1 };
            if self.calm >= CALM_MAX {
                self.memory = zeroed(RECEIVE_BYTES);
                self.calm = 0;
            }
        }
    }

    #[inline]
    fn invariants(&self) {
        debug_assert!(self.begin <= self.end && self.end <= self.memory.len());
        debug_assert!(self.begin.is_multiple_of(FRAME_ALIGN_BYTES) || self.begin == self.end);
    }
}

/// Why [`SendBuffer::frame`] queued nothing.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Unwritten<E> {
    /// The buffer has reached the bytes it may hold.
    NoRoom,
    /// The writer gave up.
    Writer(E),
}

/// Frames on their way to a socket.
///
/// Positions in the byte stream are `u64` and never start over: a frame's offset, compared with
/// [`sent_total`](Self::sent_total), says whether any byte of it has left.
#[derive(Debug)]
pub(crate) struct SendBuffer {
    memory: AlignedVec,
    /// Stream offset of `memory[0]`.
    base: u64,
    /// Start of some frame at or before `begin`; walked forward only when it is asked for.
    first: usize,
    /// First byte that the socket has not taken, at most `end`.
    begin: usize,
    /// End of the last frame: a multiple of 16.
    end: usize,
    /// Bytes of memory that this buffer may hold at most.
    bytes_max: usize,
    /// Times the buffer ran empty since it last used more than [`SEND_KEEP_BYTES`].
    calm: u32,
}

impl SendBuffer {
    /// An empty buffer that may grow to `bytes_max`.
    #[must_use]
    pub(crate) fn new(bytes_max: usize) -> Self {
        let bytes_max = padded(bytes_max.max(SEND_START_BYTES));
        // Memory comes with the first frame: a connection that says nothing costs none.
        Self { memory: zeroed(0), base: 0, first: 0, begin: 0, end: 0, bytes_max, calm: 0 }
    }

    /// Queues one frame: `write` gets at least `room` and at most `max` bytes from an aligned start and returns the
    /// exact length of the frame, which it has also put into the frame's first four bytes. Returns the offset in the
    /// stream at which the frame starts. The frame is padded with zeros to a multiple of 16.
    ///
    /// # Errors
    /// [`Unwritten`]: nothing was queued. Costs one bounds check beside the writing; allocates only to grow.
    #[inline]
    pub(crate) fn frame<E>(
        &mut self,
        room: usize,
        max: usize,
        write: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<u64, Unwritten<E>> {
        self.invariants();
        if self.memory.len() - self.end < room + FRAME_ALIGN_BYTES && !self.make_room(room) {
            return Err(Unwritten::NoRoom);
        }
        let begin = self.end;
        // The last 16 bytes stay back, so that padding can be one store of constant size behind any frame.
        let end = (self.memory.len() - FRAME_ALIGN_BYTES).min(begin + max);
        let length = write(&mut self.memory[begin..end]).map_err(Unwritten::Writer)?;
        debug_assert!(length <= end - begin, "a writer claims more than it was given");
        self.memory[begin + length..begin + length + FRAME_ALIGN_BYTES]
            .copy_from_slice(&[0; FRAME_ALIGN_BYTES]);
        self.end = begin + padded(length);
        Ok(self.base + begin as u64)
    }

    /// What the socket shall take next.
    #[inline]
    #[must_use]
    pub(crate) fn unsent(&self) -> &[u8] {
        &self.memory[self.begin..self.end]
    }

    /// How many bytes wait.
    #[inline]
    #[must_use]
    pub(crate) fn unsent_bytes(&self) -> usize {
        self.end - self.begin
    }

    /// The socket took the first `bytes` of [`unsent`](Self::unsent).
    pub(crate) fn sent(&mut self, bytes: usize) {
        self.begin += bytes;
        self.invariants();
        if self.begin == self.end {
            self.rest();
            self.base += self.end as u64;
            (self.first, self.begin, self.end) = (0, 0, 0);
        }
    }

    /// Bytes ever queued: the offset that the next frame gets.
    #[inline]
    #[must_use]
    #[cfg_attr(not(test), allow(dead_code, reason = "what tests and the fuzzer compare with their model"))]
    pub(crate) fn queued_total(&self) -> u64 {
        self.base + self.end as u64
    }

    /// Bytes that the socket has ever taken.
    #[inline]
    #[must_use]
    pub(crate) fn sent_total(&self) -> u64 {
        self.base + self.begin as u64
    }

    /// Bytes of memory held.
    #[must_use]
    #[cfg_attr(not(test), allow(dead_code, reason = "what tests and the fuzzer compare with their model"))]
    pub(crate) fn capacity(&self) -> usize {
        self.memory.len()
    }

    /// Takes back each frame of which no byte has left and that `keep` does not want; returns how many. For the end of
    /// a lane: offsets handed out for frames behind the sent part mean nothing afterwards.
    pub(crate) fn withdraw(&mut self, mut keep: impl FnMut(&[u8]) -> bool) -> usize {
        self.walk();
        let mut from =
            if self.first < self.begin { self.first + self.frame_bytes(self.first) } else { self.first };
        let mut to = from;
        let mut withdrawn = 0;
        while from < self.end {
            let bytes = self.frame_bytes(from);
            if keep(&self.memory[from..from + bytes]) {
                self.memory.copy_within(from..from + bytes, to);
                to += bytes;
            } else {
                withdrawn += 1;
            }
            from += bytes;
        }
        self.end = to;
        self.invariants();
        withdrawn
    }

    /// Forgets what is unsent: the connection is gone.
    pub(crate) fn abandon(&mut self) {
        self.base += self.begin as u64;
        (self.first, self.begin, self.end) = (0, 0, 0);
    }

    /// Padded bytes of the frame at `position`.
    fn frame_bytes(&self, position: usize) -> usize {
        let mut length = [0; 4];
        length.copy_from_slice(&self.memory[position..position + 4]);
        // No frame is shorter than its header; the bound keeps a walk over frames going, whatever a writer claimed.
        padded(u32::from_le_bytes(length) as usize).max(HEADER_BYTES)
    }

    /// Moves `first` to the frame that `begin` lies in. Each frame is walked over once.
    fn walk(&mut self) {
        while self.first < self.begin {
            let next = self.first + self.frame_bytes(self.first);
            if next > self.begin {
                break;
            }
            self.first = next;
        }
    }

    /// Makes at least `room` bytes, and the padding store's, available behind `end`, or says that it must not.
    #[cold]
    #[inline(never)]
    fn make_room(&mut self, room: usize) -> bool {
        self.walk();
        let live = self.end - self.first;
        let wanted = live + room + FRAME_ALIGN_BYTES;
        let fits = wanted <= self.memory.len();
        if wanted > self.bytes_max {
            return false;
        }
        // Moving three bytes for each one that left is cheap; else growing is, as long as it is allowed.
        if fits && (live <= 3 * self.first || self.memory.len() >= self.bytes_max) {
            self.memory.copy_within(self.first..self.end, 0);
        } else {
            let bytes = padded(wanted).max(SEND_START_BYTES).max(2 * self.memory.len()).min(self.bytes_max);
            let mut memory = AlignedVec::with_capacity(bytes);
            memory.extend_from_slice(&self.memory[self.first..self.end]);
            memory.resize(bytes, 0);
            self.memory = memory;
        }
        self.base += self.first as u64;
        self.begin -= self.first;
        self.end = live;
        self.first = 0;
        self.invariants();
        true
    }

    /// Gives back what a backlog needed, once the buffer has run empty often enough without one.
    fn rest(&mut self) {
        if self.memory.len() > SEND_KEEP_BYTES {
            self.calm = if self.end > SEND_KEEP_BYTES { 0 } else { self.calm + 1 };
            if self.calm >= CALM_MAX {
                self.memory = zeroed(SEND_KEEP_BYTES.min(self.bytes_max));
                self.calm = 0;
            }
        }
    }

    #[inline]
    fn invariants(&self) {
        debug_assert!(self.first <= self.begin && self.begin <= self.end && self.end <= self.memory.len());
        debug_assert!((self.first | self.end).is_multiple_of(FRAME_ALIGN_BYTES));
        debug_assert!(self.memory.len() <= self.bytes_max);
    }
}
