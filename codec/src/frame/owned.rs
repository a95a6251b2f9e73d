//! A frame on the heap: what waits longer than a turn, is too large for a ring, or is held by a user.
//!
//! The memory is allocated once at its capacity, zeroed and 16-aligned, and reused; only a message that does
//! not fit makes it grow. It remembers where its bytes come from, because that decides how they may be read.
//! Fields that a reader's trust hangs on (length, message, extension bytes, context) can only be set by
//! encoding or copying.
#![allow(unsafe_code)]

use std::fmt;

use crate::encode::{encode_local, encode_local_empty};
use crate::error::{AccessError, EncodeError};
use crate::frame::{ForeignFrame, LocalFrame};
use crate::header::{CallId, Header};
use crate::limits::{FRAME_ALIGN_BYTES, FRAME_MAX_BYTES, HEADER_BYTES};
use crate::message::Message;

/// The smallest memory worth allocating: a header and a small message.
const CAPACITY_MIN_BYTES: usize = 256;

/// A frame in memory of its own: a pointer and a length, so that moving it about costs next to nothing.
#[derive(Default)]
pub struct OwnedFrame {
    /// The first block says what the others hold. None at all: an empty frame without memory.
    blocks: Box<[Block]>,
}

/// As many bytes as frames are aligned to.
#[derive(Clone, Copy)]
#[repr(C, align(16))]
struct Block([u8; FRAME_ALIGN_BYTES]);

const _: () = assert!(size_of::<Block>() == FRAME_ALIGN_BYTES && align_of::<Block>() == FRAME_ALIGN_BYTES);

/// What the memory holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holds {
    Nothing,
    /// A frame of this length that this process encoded, or certified.
    Local(usize),
    /// A frame of this length that another process sent, and that parsed.
    Foreign(usize),
}

impl fmt::Debug for OwnedFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnedFrame")
            .field("capacity", &self.capacity())
            .field("holds", &self.holds())
            .finish()
    }
}

impl OwnedFrame {
    /// An empty frame without memory.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty frame with room for a frame of this size.
    #[must_use]
    pub fn with_capacity(bytes: usize) -> Self {
        let mut frame = Self::new();
        frame.reserve(bytes);
        frame
    }

    /// The size of the largest frame that fits without growing.
    #[must_use]
    #[inline]
    pub fn capacity(&self) -> usize {
        self.blocks.len().saturating_sub(1) * FRAME_ALIGN_BYTES
    }

    /// Whether it holds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.holds() == Holds::Nothing
    }

    /// Forgets the frame and keeps the memory.
    #[inline]
    pub fn clear(&mut self) {
        self.set_holds(Holds::Nothing);
    }

    /// Archives a message, in the form of this process, without extensions. Grows if it must, up to
    /// [`FRAME_MAX_BYTES`].
    ///
    /// # Errors
    ///
    /// [`EncodeError`]; the frame is then empty.
    #[inline(always)] // the header is in registers where this is called; out of line it would go through memory
    pub fn encode<T: Message>(&mut self, header: Header, message: &T) -> Result<(), EncodeError> {
        let header = Header { extension_bytes: 0, ..header };
        match encode_local(header, message, self.memory_mut()) {
            Ok(length) => {
                self.set_holds(Holds::Local(length));
                Ok(())
            }
            Err(error) => self.encode_larger(header, message, error),
        }
    }

    #[cold]
    fn encode_larger<T: Message>(
        &mut self,
        header: Header,
        message: &T,
        mut error: EncodeError,
    ) -> Result<(), EncodeError> {
        self.clear();
        while error == EncodeError::Full {
            self.reserve((2 * self.capacity()).max(CAPACITY_MIN_BYTES));
            match encode_local(header, message, self.memory_mut()) {
                Ok(length) => {
                    self.set_holds(Holds::Local(length));
                    return Ok(());
                }
                Err(next) => error = next,
            }
        }
        Err(error)
    }

    /// Makes it a frame without payload.
    pub fn encode_empty(&mut self, header: Header) {
        self.clear();
        self.reserve(CAPACITY_MIN_BYTES);
        if let Ok(length) = encode_local_empty(header, self.memory_mut()) {
            self.set_holds(Holds::Local(length));
        }
    }

    /// Copies a frame of this process.
    #[inline]
    pub fn copy_local(&mut self, frame: LocalFrame<'_>) {
        self.copy(frame.bytes());
        self.set_holds(Holds::Local(frame.bytes().len()));
    }

    /// Copies a frame of another process, as it is.
    #[inline]
    pub fn copy_foreign(&mut self, frame: ForeignFrame<'_>) {
        self.copy(frame.bytes());
        self.set_holds(Holds::Foreign(frame.bytes().len()));
    }

    /// The frame, if this process encoded it.
    #[must_use]
    #[inline]
    pub fn local(&self) -> Option<LocalFrame<'_>> {
        let Holds::Local(length) = self.holds() else { return None };
        // SAFETY: `Local` is only set after `encode_local` (or its empty form) wrote, or a `LocalFrame` was
        // copied to, the start of the memory, which is 16-aligned; the setters below touch no field that
        // counts (`an_owned_frame_knows_where_its_bytes_come_from` breaks otherwise).
        Some(unsafe { LocalFrame::assume(&self.memory()[..length]) })
    }

    /// The frame, if another process sent it.
    #[must_use]
    #[inline]
    pub fn foreign(&self) -> Option<ForeignFrame<'_>> {
        let Holds::Foreign(length) = self.holds() else { return None };
        // `Foreign` is only set after a parsed frame was copied to the start of the memory; setters change nothing that
        // parsing looks at but the kind, for another, and flags, for such as this process knows.
        Some(ForeignFrame::parsed_before(&self.memory()[..length]))
    }

    /// The bytes of the frame, none if it is empty.
    #[must_use]
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        match self.holds() {
            Holds::Nothing => &[],
            Holds::Local(length) | Holds::Foreign(length) => &self.memory()[..length],
        }
    }

    /// The header, if it holds a frame.
    #[must_use]
    #[inline]
    pub fn header(&self) -> Option<Header> {
        Header::read(self.bytes()).ok()
    }

    /// The message in place: trusted if this process encoded it, else checked.
    ///
    /// # Errors
    ///
    /// [`AccessError`] if it holds another message, bytes that are none, or nothing.
    #[inline]
    pub fn access<T: Message>(&self) -> Result<&T::Archived, AccessError> {
        if let Some(frame) = self.local() {
            return frame.access_or_check::<T>();
        }
        self.foreign().ok_or(AccessError::Empty)?.access::<T>()
    }

    /// Checks once that it holds a `T`, so that reading it again costs one comparison: bytes of another process that
    /// pass are trusted from here on, as if this process had encoded them.
    ///
    /// # Errors
    ///
    /// [`AccessError`] as from [`access`](Self::access); the frame is as it was.
    #[inline]
    pub fn certify<T: Message>(&mut self) -> Result<(), AccessError> {
        if self.local().is_some_and(|frame| frame.access::<T>().is_some()) {
            return Ok(());
        }
        self.check::<T>()
    }

    #[cold]
    fn check<T: Message>(&mut self) -> Result<(), AccessError> {
        self.access::<T>()?;
        let (Holds::Local(length) | Holds::Foreign(length)) = self.holds() else {
            return Err(AccessError::Empty);
        };
        let Some(header) = self.header() else { return Err(AccessError::Empty) };
        // The word that `LocalFrame::access` goes by. It is true now: the bytes were just found to be an archive of `T`,
        // and no setter touches them (`what_is_certified_is_trusted` reads them so).
        Header { context: T::type_index().context(), ..header }.write(self.memory_mut());
        self.set_holds(Holds::Local(length));
        Ok(())
    }

    /// Sets the call that the frame belongs to. Does nothing to an empty frame, like the other setters.
    #[inline]
    pub fn set_call(&mut self, call: CallId) {
        self.restamp(|header| header.call = call);
    }

    /// Sets the target shard.
    pub fn set_shard(&mut self, shard: u16) {
        self.restamp(|header| header.shard = shard);
    }

    /// Sets the time until the deadline.
    pub fn set_remaining_us(&mut self, remaining_us: u32) {
        self.restamp(|header| header.remaining_us = remaining_us);
    }

    /// Changes the header, except for the fields that describe the payload: length, message, extension bytes
    /// and context stay.
    #[inline]
    pub fn restamp(&mut self, change: impl FnOnce(&mut Header)) {
        let Some(before) = self.header() else { return };
        let mut after = before;
        change(&mut after);
        let Header { length, message, extension_bytes, context, .. } = before;
        Header { length, message, extension_bytes, context, ..after }.write(self.memory_mut());
    }

    #[inline]
    fn copy(&mut self, bytes: &[u8]) {
        self.clear();
        self.reserve(bytes.len());
        self.memory_mut()[..bytes.len()].copy_from_slice(bytes);
    }

    #[inline]
    fn holds(&self) -> Holds {
        let Some(Block(word)) = self.blocks.first() else { return Holds::Nothing };
        let word = u128::from_le_bytes(*word);
        let length = (word >> 64) as usize;
        match word as u64 {
            LOCAL => Holds::Local(length),
            FOREIGN => Holds::Foreign(length),
            _ => Holds::Nothing,
        }
    }

    #[inline]
    fn set_holds(&mut self, holds: Holds) {
        let (tag, length) = match holds {
            Holds::Nothing => (NOTHING, 0),
            Holds::Local(length) => (LOCAL, length),
            Holds::Foreign(length) => (FOREIGN, length),
        };
        if let Some(Block(word)) = self.blocks.first_mut() {
            *word = (u128::from(tag) | (length as u128) << 64).to_le_bytes();
        }
    }

    /// The memory for the frame: all of the capacity.
    #[inline]
    fn memory(&self) -> &[u8] {
        let blocks = self.blocks.get(1..).unwrap_or_default();
        // SAFETY: a block is 16 initialised bytes without padding (asserted above), so this many blocks in a row are
        // 16 times as many bytes; the borrow is the same (`encoding_again_reuses_the_memory` reads through it).
        unsafe { std::slice::from_raw_parts(blocks.as_ptr().cast(), size_of_val(blocks)) }
    }

    /// As [`memory`](Self::memory), to write.
    #[inline]
    fn memory_mut(&mut self) -> &mut [u8] {
        let blocks = self.blocks.get_mut(1..).unwrap_or_default();
        // SAFETY: as in `memory`; any bytes make a block.
        unsafe { std::slice::from_raw_parts_mut(blocks.as_mut_ptr().cast(), size_of_val(blocks)) }
    }

    /// Makes room for a frame of this size; what the memory held is lost to nobody, since frames are only
    /// written whole.
    #[inline]
    fn reserve(&mut self, bytes: usize) {
        if bytes > self.capacity() {
            self.grow(bytes);
        }
    }

    #[cold]
    fn grow(&mut self, bytes: usize) {
        let bytes = crate::padded(bytes.clamp(HEADER_BYTES, FRAME_MAX_BYTES));
        if bytes > self.capacity() {
            self.blocks =
                vec![Block([0; FRAME_ALIGN_BYTES]); 1 + bytes / FRAME_ALIGN_BYTES].into_boxed_slice();
        }
    }
}

const NOTHING: u64 = 0;
const LOCAL: u64 = 1;
const FOREIGN: u64 = 2;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Parsed;
    use crate::{Fault, Flags, Kind, MessageId};

    #[test]
    fn an_owned_frame_knows_where_its_bytes_come_from() {
        let mut ours = OwnedFrame::new();
        assert_eq!(ours.access::<Fault>().map(|_| ()), Err(AccessError::Empty));
        ours.encode(Header::new(Kind::Rejected), &Fault::new("no shelf")).unwrap();
        assert!(ours.local().is_some() && ours.foreign().is_none());

        let Ok(Parsed::Frame(sent, _)) = ForeignFrame::parse(ours.memory(), 256) else { panic!() };
        let mut theirs = OwnedFrame::with_capacity(16);
        theirs.copy_foreign(sent);
        assert!(theirs.local().is_none() && theirs.foreign().is_some());
        assert_eq!(theirs.access::<Fault>().unwrap().text, "no shelf");
        assert!(matches!(theirs.access::<()>(), Err(AccessError::OtherMessage { .. })));

        theirs.copy_local(ours.local().unwrap());
        assert!(theirs.local().is_some() && theirs.foreign().is_none());
        theirs.clear();
        assert!(theirs.is_empty() && theirs.bytes().is_empty() && theirs.header().is_none());
    }

    #[test]
    fn what_is_certified_is_trusted() {
        let mut ours = OwnedFrame::new();
        ours.encode(Header::new(Kind::Rejected), &Fault::new("no shelf holds as many as were asked for"))
            .unwrap();
        let Ok(Parsed::Frame(sent, _)) = ForeignFrame::parse(ours.memory(), 512) else { panic!() };
        let mut theirs = OwnedFrame::new();
        theirs.copy_foreign(sent);
        assert!(
            theirs.certify::<()>().is_err() && theirs.local().is_none(),
            "another message is not certified"
        );
        theirs.certify::<Fault>().unwrap();
        assert_eq!(
            theirs.local().unwrap().access::<Fault>().unwrap().text,
            "no shelf holds as many as were asked for"
        );

        // Bytes that are no archive stay what they are.
        let mut broken = OwnedFrame::new();
        broken.copy_foreign(sent);
        let length = broken.bytes().len();
        broken.memory_mut()[length - 8..length].fill(0x90);
        assert!(broken.certify::<Fault>().is_err() && broken.local().is_none());
    }

    #[test]
    fn setters_leave_what_describes_the_payload_alone() {
        let mut frame = OwnedFrame::new();
        frame.encode(Header::new(Kind::Request), &Fault::new("x")).unwrap();
        let before = frame.header().unwrap();
        frame.restamp(|header| {
            *header = Header {
                length: 1,
                message: MessageId(2),
                extension_bytes: 3,
                context: 4,
                ..Header::new(Kind::Event)
            };
            header.flags = Flags::KEYED;
        });
        frame.set_call(CallId::new(5, 6));
        frame.set_shard(7);
        frame.set_remaining_us(8);
        let call = CallId::new(5, 6);
        let after =
            Header { kind: Kind::Event, flags: Flags::KEYED, call, shard: 7, remaining_us: 8, ..before };
        assert_eq!(frame.header(), Some(after));
        assert_eq!(frame.access::<Fault>().unwrap().text, "x");
    }

    #[test]
    fn it_grows_to_the_largest_frame_and_no_further() {
        let mut frame = OwnedFrame::new();
        for bytes in [10, 1_000, 300_000, FRAME_MAX_BYTES - 1_000] {
            let fault = Fault::new("x".repeat(bytes));
            frame.encode(Header::new(Kind::Rejected), &fault).unwrap();
            assert_eq!(frame.access::<Fault>().unwrap().text.len(), bytes);
        }
        let fault = Fault::new("x".repeat(FRAME_MAX_BYTES));
        assert_eq!(frame.encode(Header::new(Kind::Rejected), &fault), Err(EncodeError::TooLarge));
        assert!(frame.is_empty() && frame.capacity() == FRAME_MAX_BYTES);
    }

    #[test]
    fn encoding_again_reuses_the_memory() {
        let mut frame = OwnedFrame::with_capacity(4096);
        let memory = frame.memory().as_ptr();
        for text in ["one", "two"] {
            frame.encode(Header::new(Kind::Rejected), &Fault::new(text)).unwrap();
            frame.encode_empty(Header::new(Kind::Cancel));
            assert_eq!(frame.header().map(|header| header.kind), Some(Kind::Cancel));
        }
        assert_eq!(frame.memory().as_ptr(), memory);
    }
}
