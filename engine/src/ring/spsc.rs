//! A bounded ring of bytes between two threads: one produces frames, one consumes them, in order.
//!
//! Frames lie in line, each at a multiple of 16, and are read where they lie. The first four bytes of a
//! frame are its exact length. Cursors count bytes since the start and never go back; where a cursor points is its
//! remainder by the capacity, its *offset*. There are no markers for the wrap: a frame may begin anywhere below the
//! capacity and run on into the slack behind it, and whoever follows such a frame begins a new lap at offset 0.
//! Both sides compute that from the frame's length, in `Geometry::end`.
//!
//! ```text
//!        head, of the consumer      tail, of the producer      capacity   slack: one frame more
//!            ▼                          ▼                          ▼           ▼
//! ├──────────┬──────┬─────────┬─────────┬──────────────────────────┬───────────┤
//!   free     │ frame│ frame   │ frame   │ free                     ┊ only the last frame of a lap reaches here
//! ├──────────┴──────┴─────────┴─────────┴──────────────────────────┴───────────┤
//! ```
//!
//! **Ordering.** The producer writes frames, then stores `tail` (Release); the consumer that loads it (Acquire) sees
//! them. The consumer reads frames, then stores `head` (Release); the producer that loads it (Acquire) may write
//! there again. The producer writes only below `head + capacity`, so what it writes has been given back a lap ago,
//! and that holds for the slack too: it belongs to the lap's last frame, which ends at the next lap's start.
//!
//! **Speed.** Each side keeps its own cursor in plain memory and a copy of the other's, which it renews only when the
//! copy says full or empty; `publish` and `release` store once for a whole batch. Cursors and memory share no cache
//! line. The idea is FastForward's and MCRingBuffer's; `rtrb` is the same for elements of one size.
//!
//! Frames are written into a *stage* first, a few lines in the producer's own cache, and copied into the ring together. Every
//! line of the ring was last read by the other core, so the first store to it waits until that core has let go, and stores
//! retire in order: with a frame's worth of other stores in between, each line would be waited for on its own (60 ns, and
//! 170 where the cores share no cache; asking for the line beforehand changes nothing). In one copy the waits overlap.
#![allow(unsafe_code)] // both sides lend out slices of memory that they share

use std::{cell::UnsafeCell, ops::Range, slice};

use catga_discovery::sync::{
    AccessTracker, Arc,
    atomic::{
        AtomicU64,
        Ordering::{Acquire, Release},
    },
};
use crossbeam_utils::CachePadded;

/// Frames begin at multiples of this.
const ALIGN_BYTES: usize = 16;
/// The word at the start of a frame that says how long the frame is.
const LENGTH_BYTES: usize = size_of::<u32>();
/// What two cores hand each other at a time.
const LINE_BYTES: usize = 64;
/// What is copied into the ring at once, at least, if so much is pushed before a `publish`.
const STAGE_BYTES: usize = 4096;
const _: () = assert!(LINE_BYTES.is_multiple_of(ALIGN_BYTES) && LENGTH_BYTES <= ALIGN_BYTES);

/// Makes a ring of `capacity_bytes` for frames of at most `frame_bytes_max` bytes: its two sides, both `Send`.
///
/// Allocates the capacity and one longest frame more, and touches all of it. However small the capacity, an empty ring
/// takes any one frame. A side that is dropped takes nothing with it: the consumer still gets what was published, the
/// producer sees a ring that no longer empties.
///
/// # Panics
///
/// If the capacity is no power of two of at least 16, or a frame of `frame_bytes_max` could not carry its length.
#[must_use]
pub(crate) fn ring(capacity_bytes: usize, frame_bytes_max: usize) -> (Producer, Consumer) {
    assert!(capacity_bytes.is_power_of_two() && capacity_bytes >= ALIGN_BYTES, "a power of two, 16 or more");
    assert!(
        frame_bytes_max >= LENGTH_BYTES && u32::try_from(frame_bytes_max).is_ok(),
        "a length in four bytes"
    );
    let geometry = Geometry { capacity: capacity_bytes as u64, frame_bytes_max };
    let shared = Arc::new(Shared {
        tail: CachePadded::new(AtomicU64::new(0)),
        head: CachePadded::new(AtomicU64::new(0)),
        memory: Memory::zeroed(capacity_bytes + frame_bytes_max),
    });
    (
        Producer {
            shared: shared.clone(),
            geometry,
            stage: Stage::new(STAGE_BYTES + frame_bytes_max),
            staged_at: 0,
            tail: 0,
            published: 0,
            head_seen: 0,
        },
        Consumer { shared, geometry, head: 0, released: 0, tail_seen: 0 },
    )
}

/// The side that writes frames.
#[derive(Debug)]
pub(crate) struct Producer {
    shared: Arc<Shared>,
    geometry: Geometry,
    /// Frames on their way into the ring; they fit before its end, or reach into the slack with the last of them.
    stage: Stage,
    /// Where the stage's first byte goes, in `published ..= tail`.
    staged_at: u64,
    /// Where the next frame begins, in `published ..= head_seen + capacity`.
    tail: u64,
    /// What `shared.tail` says.
    published: u64,
    /// What `shared.head` said last; it may be further by now.
    head_seen: u64,
}

/// The side that reads frames.
#[derive(Debug)]
pub(crate) struct Consumer {
    shared: Arc<Shared>,
    geometry: Geometry,
    /// Where the next frame begins, in `released ..= tail_seen`.
    head: u64,
    /// What `shared.head` says.
    released: u64,
    /// What `shared.tail` said last; it may be further by now.
    tail_seen: u64,
}

/// Why a frame is not in the ring. The ring is as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PushError<E> {
    /// There is no room now for a frame of the length asked for: try again when the consumer has released some.
    #[error("the ring is full")]
    Full,
    /// The writer of the frame failed.
    #[error(transparent)]
    Writer(E),
}

impl Producer {
    /// Has `write` write one frame of at most `max` bytes, and returns its length. The frame is seen after `publish`.
    ///
    /// `write` gets `max` bytes, 16-aligned, with any content, and returns how many of them the frame takes. They must
    /// begin with that number, a `u32` little-endian. If it fails or panics, the ring is as it was.
    ///
    /// # Panics
    ///
    /// If `max` is over the ring's `frame_bytes_max`, or the frame does not begin with the length that `write` returns.
    #[inline]
    pub(crate) fn push<E>(
        &mut self,
        max: usize,
        write: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<usize, PushError<E>> {
        let room = self.room(max).ok_or(PushError::Full)?;
        let written = write(room).map_err(PushError::Writer)?;
        self.wrote(max, written);
        Ok(written)
    }

    /// The first half of a [`push`](Self::push), for who writes without a closure: `max` bytes to write one frame into, if
    /// there is room. Nothing is pushed before [`wrote`](Self::wrote) says so.
    #[inline(always)] // a dozen instructions
    pub(crate) fn room(&mut self, max: usize) -> Option<&mut [u8]> {
        self.invariants();
        assert!(
            (LENGTH_BYTES..=self.geometry.frame_bytes_max).contains(&max),
            "no frame of the ring has this length"
        );
        if self.has_room(max) { Some(self.stage.room(max)) } else { None }
    }

    /// The second half: the [`room`](Self::room) of `max` bytes holds a frame of `written` bytes.
    #[inline(always)] // as `room`
    pub(crate) fn wrote(&mut self, max: usize, written: usize) {
        // The consumer trusts the length without a look at bounds, hence this is asserted in every build.
        assert!(
            (LENGTH_BYTES..=max).contains(&written) && frame_bytes(self.stage.room(max)) == written,
            "a frame begins with its length"
        );
        self.stage.bytes += written.next_multiple_of(ALIGN_BYTES);
        self.tail = self.geometry.end(self.tail, written);
        debug_assert!(self.tail - self.head_seen <= self.geometry.capacity, "there was room for it");
        // Behind the last frame of a lap the next one begins elsewhere.
        if self.stage.bytes >= STAGE_BYTES || self.geometry.offset(self.tail) == 0 {
            self.unstage();
        }
    }

    /// Copies what is staged into the ring.
    #[inline]
    fn unstage(&mut self) {
        let start = self.geometry.offset(self.staged_at);
        let staged = self.stage.take();
        // SAFETY: the range lies in the memory, for `start` is below the capacity, and of what is staged only the last frame
        // reaches over the capacity, by at most the slack. From `staged_at` to there nothing is published, and all is
        // released: `has_room` saw to it for each frame, through an Acquire of `head`. So the consumer has no reference
        // there, and the only one of this producer ends here. `two_threads_move_frames_in_order` under loom breaks without.
        unsafe { self.shared.memory.writable(start..start + staged.len()) }.copy_from_slice(staged);
        self.staged_at = self.tail;
    }

    /// Makes all frames pushed so far visible to the consumer; once for a batch. Returns whether there were any.
    #[inline]
    pub(crate) fn publish(&mut self) -> bool {
        self.invariants();
        if !self.has_unpublished() {
            return false;
        }
        self.unstage();
        // Release: pairs with the Acquire in `Consumer::refresh`.
        self.shared.tail.store(self.tail, Release);
        self.published = self.tail;
        true
    }

    /// Whether frames wait for `publish`.
    #[inline]
    #[must_use]
    pub(crate) fn has_unpublished(&self) -> bool {
        self.tail != self.published
    }

    /// Whether frames of this many bytes in sum, each rounded up to 16, have room; as [`has_room`](Self::has_room).
    #[inline]
    pub(crate) fn has_bytes(&mut self, bytes: usize) -> bool {
        // Each frame moves the cursor by its rounded length at most, wherever it wraps.
        self.has_room_until(self.tail + bytes as u64)
    }

    /// Whether the next `push` of at most `max` bytes finds room. Looks at the consumer's cursor only if it must.
    #[inline(always)] // as `room`
    pub(crate) fn has_room(&mut self, max: usize) -> bool {
        self.has_room_until(self.geometry.end(self.tail, max))
    }

    #[inline(always)] // as `room`
    fn has_room_until(&mut self, end: u64) -> bool {
        if end <= self.head_seen + self.geometry.capacity {
            return true;
        }
        // Acquire: pairs with the Release in `Consumer::release`.
        self.head_seen = self.shared.head.load(Acquire);
        end <= self.head_seen + self.geometry.capacity
    }

    #[inline]
    fn invariants(&self) {
        debug_assert!(self.head_seen <= self.tail && self.published <= self.staged_at);
        debug_assert!(
            self.staged_at <= self.tail && (self.staged_at == self.tail) == (self.stage.bytes == 0)
        );
        debug_assert!(self.tail <= self.head_seen + self.geometry.capacity);
        debug_assert!(
            [self.tail, self.staged_at, self.published, self.head_seen]
                .iter()
                .all(|c| c % ALIGN_BYTES as u64 == 0)
        );
    }
}

impl Consumer {
    /// Learns what the producer has published since. Returns whether there is a frame to read.
    #[inline]
    pub(crate) fn refresh(&mut self) -> bool {
        self.invariants();
        // Acquire: pairs with the Release in `Producer::publish`.
        self.tail_seen = self.shared.tail.load(Acquire);
        self.head != self.tail_seen
    }

    /// Bytes that wait to be read, as of the last `refresh`. Looks at no frame.
    #[inline]
    #[must_use]
    pub(crate) fn pending_bytes(&self) -> u64 {
        self.tail_seen - self.head
    }

    /// The next frame, exactly as long as it says, if `refresh` has seen one. Stays the next until `advance`.
    #[inline]
    #[must_use]
    pub(crate) fn peek(&self) -> Option<&[u8]> {
        (self.head != self.tail_seen).then(|| self.next_frame())
    }

    /// Goes on to the frame behind the next one. Its room is given back by `release`.
    ///
    /// # Panics
    ///
    /// If there is no next frame.
    #[inline]
    pub(crate) fn advance(&mut self) {
        self.invariants();
        assert!(self.head != self.tail_seen, "there is a frame to go past");
        self.head = self.geometry.end(self.head, self.next_frame().len());
    }

    /// Gives the room of all frames gone past back to the producer; once for a batch. Returns whether there were any.
    #[inline]
    pub(crate) fn release(&mut self) -> bool {
        self.invariants();
        if self.head == self.released {
            return false;
        }
        // Release: pairs with the Acquire in `Producer::has_room`.
        self.shared.head.store(self.head, Release);
        self.released = self.head;
        true
    }

    /// Hands the next frames, at most `limit`, to `visit`, then releases all read so far. Returns how many there were.
    ///
    /// Looks for new ones only if none is left of the last look. A frame at which `visit` panics counts as read.
    #[inline]
    pub(crate) fn drain(&mut self, limit: usize, mut visit: impl FnMut(&[u8])) -> usize {
        if self.head == self.tail_seen {
            self.refresh();
        }
        let mut taken = 0;
        while taken < limit && self.head != self.tail_seen {
            let start = self.head;
            self.advance();
            taken += 1;
            visit(self.frame_at(start));
        }
        self.release();
        taken
    }

    #[inline]
    fn next_frame(&self) -> &[u8] {
        self.frame_at(self.head)
    }

    /// The frame that begins at `cursor`, which must be the start of one in `released .. tail_seen`.
    #[inline]
    fn frame_at(&self, cursor: u64) -> &[u8] {
        debug_assert!((self.released..self.tail_seen).contains(&cursor));
        let start = self.geometry.offset(cursor);
        // SAFETY: a frame that the producer pushed begins here, published, as an Acquire of `tail` showed. It is not
        // released, and cannot be while the result borrows `self`, so the producer does not write there. `push`
        // asserted that it begins with its length, and that so many bytes lie in the memory.
        // `two_threads_move_frames_in_order` under loom breaks without.
        unsafe {
            let length = self.shared.memory.readable(start..start + LENGTH_BYTES);
            self.shared.memory.readable(start..start + frame_bytes(length))
        }
    }

    #[inline]
    fn invariants(&self) {
        debug_assert!(self.released <= self.head && self.head <= self.tail_seen);
        debug_assert!(self.tail_seen <= self.released + self.geometry.capacity);
        debug_assert!([self.head, self.released, self.tail_seen].iter().all(|c| c % ALIGN_BYTES as u64 == 0));
    }
}

/// How cursors and memory belong together. The same on both sides.
#[derive(Debug, Clone, Copy)]
struct Geometry {
    /// A power of two, a multiple of 16.
    capacity: u64,
    frame_bytes_max: usize,
}

impl Geometry {
    /// Where in the memory a cursor points, in `0 .. capacity`.
    #[inline]
    fn offset(self, cursor: u64) -> usize {
        (cursor & (self.capacity - 1)) as usize
    }

    /// The cursor behind a frame that begins at `cursor`: behind its padding, or at the next lap if it reached the end.
    #[inline]
    fn end(self, cursor: u64, frame_bytes: usize) -> u64 {
        let offset = cursor & (self.capacity - 1);
        let padded = frame_bytes.next_multiple_of(ALIGN_BYTES) as u64;
        cursor - offset + (offset + padded).min(self.capacity)
    }
}

/// The producer's memory for frames on their way into the ring.
#[derive(Debug)]
struct Stage {
    lines: Box<[StageLine]>,
    /// Bytes in use, a multiple of 16.
    bytes: usize,
}

#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct StageLine([u8; LINE_BYTES]);

impl Stage {
    fn new(bytes: usize) -> Self {
        let lines = bytes.next_multiple_of(ALIGN_BYTES).div_ceil(LINE_BYTES);
        Self { lines: vec![StageLine([0; LINE_BYTES]); lines].into(), bytes: 0 }
    }

    /// The next `max` bytes, 16-aligned.
    #[inline(always)]
    fn room(&mut self, max: usize) -> &mut [u8] {
        let start = self.bytes;
        &mut self.memory()[start..start + max]
    }

    /// What is staged; the stage is empty afterwards.
    #[inline]
    fn take(&mut self) -> &[u8] {
        let bytes = std::mem::take(&mut self.bytes);
        &self.memory()[..bytes]
    }

    #[inline]
    fn memory(&mut self) -> &mut [u8] {
        // SAFETY: a line is 64 initialised bytes without padding, so this many lines in a row are 64 times as many bytes; any
        // bytes make a line; the borrow is the same (`it_is_a_queue` reads through it).
        unsafe { slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), size_of_val(&*self.lines)) }
    }
}

/// What both sides hold.
#[derive(Debug)]
struct Shared {
    /// The end of what the consumer may read. Written by the producer alone.
    tail: CachePadded<AtomicU64>,
    /// The start of what the producer must not overwrite. Written by the consumer alone.
    head: CachePadded<AtomicU64>,
    /// Written by the producer outside of `head .. tail`, read by the consumer within it.
    memory: Memory,
}

/// A cache line of the memory, so that a frame of 64 bytes is one transfer between two cores and not two.
#[derive(Debug)]
#[repr(C, align(64))]
struct Line(UnsafeCell<[u8; LINE_BYTES]>);

/// The bytes of a ring. Who may touch which of them is decided by the cursors.
#[derive(Debug)]
struct Memory {
    lines: Box<[Line]>,
    tracker: AccessTracker,
}

// SAFETY: the two methods that reach the bytes through a shared reference are unsafe, and their callers, one producer
// and one consumer, keep to ranges that do not overlap at any time. loom checks it through `tracker`.
unsafe impl Sync for Memory {}

impl Memory {
    fn zeroed(bytes: usize) -> Self {
        let lines = bytes.next_multiple_of(ALIGN_BYTES).div_ceil(LINE_BYTES);
        Self {
            lines: (0..lines).map(|_| Line(UnsafeCell::new([0; LINE_BYTES]))).collect(),
            tracker: AccessTracker::new(lines * (LINE_BYTES / ALIGN_BYTES)),
        }
    }

    /// # Safety
    ///
    /// The range lies in the memory, and nobody holds or takes any other reference into it while the result lives.
    #[inline]
    #[allow(clippy::mut_from_ref)] // the cells are what makes it right, the callers' cursors what makes it sound
    unsafe fn writable(&self, range: Range<usize>) -> &mut [u8] {
        self.tracker.write(units(&range));
        // SAFETY: initialised when it was allocated, in one piece, within cells; the rest is the caller's promise.
        unsafe { slice::from_raw_parts_mut(self.start().add(range.start), range.len()) }
    }

    /// # Safety
    ///
    /// The range lies in the memory, and nobody holds or takes an exclusive reference into it while the result lives.
    #[inline]
    unsafe fn readable(&self, range: Range<usize>) -> &[u8] {
        self.tracker.read(units(&range));
        // SAFETY: initialised when it was allocated, in one piece, within cells; the rest is the caller's promise.
        unsafe { slice::from_raw_parts(self.start().add(range.start), range.len()) }
    }

    /// The first byte, by a pointer that may reach and write all of them: it comes from all lines, which are cells.
    #[inline]
    fn start(&self) -> *mut u8 {
        self.lines.as_ptr().cast::<u8>().cast_mut()
    }
}

/// The tracker's units that a range of bytes touches.
#[inline]
fn units(bytes: &Range<usize>) -> Range<usize> {
    bytes.start / ALIGN_BYTES..bytes.end.div_ceil(ALIGN_BYTES)
}

/// What a frame says its length is; 0, which no frame says, if there is no room for the word. One load: byte by byte
/// it would be four, on the path from each frame to the next.
#[inline]
fn frame_bytes(frame: &[u8]) -> usize {
    frame.first_chunk().map_or(0, |word| u32::from_le_bytes(*word) as usize)
}

#[cfg(test)]
#[cfg(catga_loom)]
mod model;
#[cfg(test)]
#[cfg(not(catga_loom))]
mod tests;

/// For tests: writes a frame of `bytes` bytes, the rest of them `fill`.
#[cfg(test)]
fn write_frame(into: &mut [u8], bytes: usize, fill: u8) -> usize {
    into[..LENGTH_BYTES].copy_from_slice(&(bytes as u32).to_le_bytes());
    into[LENGTH_BYTES..bytes].fill(fill);
    bytes
}
