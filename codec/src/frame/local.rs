//! Frames that this process encoded, read without checking.
//!
//! The argument: only `encode_local::<T>` puts the index of `T` into a context word (lanes write a digest
//! there, but frames from lanes are `ForeignFrame`s, and importing one sets the word to 0). Whoever makes a
//! `LocalFrame` vouches that the bytes came that way. So an equal index proves that the payload ends with a
//! valid archive of `T`.
#![allow(unsafe_code)]

use crate::error::{AccessError, EncodeError};
use crate::extension::Extensions;
use crate::header::{Flags, Header};
use crate::limits::{FRAME_ALIGN_BYTES, HEADER_BYTES};
use crate::message::Message;

/// Where the context word lies in a header.
const CONTEXT_OFFSET: usize = 40;

/// A frame whose bytes this process wrote.
#[derive(Debug, Clone, Copy)]
pub struct LocalFrame<'a> {
    bytes: &'a [u8],
}

impl<'a> LocalFrame<'a> {
    /// Vouches for a frame.
    ///
    /// # Safety
    ///
    /// `bytes` start at a multiple of 16 and are exactly one frame, unchanged since it was written in this
    /// process by [`encode_local`](crate::encode_local), [`encode_local_empty`](crate::encode_local_empty),
    /// [`ForeignFrame::import`](crate::ForeignFrame::import), or copied from another `LocalFrame`. Header
    /// fields other than length, message, extension bytes and context may have been changed.
    #[must_use]
    #[inline]
    pub unsafe fn assume(bytes: &'a [u8]) -> Self {
        debug_assert!(bytes.as_ptr().addr().is_multiple_of(FRAME_ALIGN_BYTES));
        debug_assert!(Header::read(bytes).is_ok_and(|header| header.length as usize == bytes.len()));
        Self { bytes }
    }

    /// The whole frame, without padding.
    #[must_use]
    #[inline]
    pub const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The header.
    #[must_use]
    #[inline]
    pub fn header(&self) -> Header {
        super::header_of(self.bytes)
    }

    /// The extension area, entry by entry.
    #[must_use]
    pub fn extensions(&self) -> Extensions<'a> {
        Extensions::new(&self.bytes[HEADER_BYTES..self.header().payload_offset()])
    }

    /// The payload: an archive, its root at the end.
    #[must_use]
    #[inline]
    pub fn payload(&self) -> &'a [u8] {
        &self.bytes[self.header().payload_offset()..]
    }

    /// The message in place, if it is a `T` that this process encoded; else `None`. One comparison, about a
    /// nanosecond.
    #[must_use]
    #[inline]
    pub fn access<T: Message>(&self) -> Option<&'a T::Archived> {
        let context = self.bytes.get(CONTEXT_OFFSET..)?.first_chunk()?;
        if u64::from_le_bytes(*context) != T::type_index().context() {
            return None;
        }
        // A header alone (its payload lies in the side queue) has a type and no archive.
        let root = self.bytes.len().checked_sub(size_of::<T::Archived>())?;
        if root < HEADER_BYTES {
            return None;
        }
        // SAFETY: the context word is the index of `T`, which belongs to `T` alone (contract of `Message`),
        // and only `encode_local::<T>` writes it; `assume`'s caller vouches that the bytes are as that wrote
        // them. It ends the frame with the root of a valid archive, aligned since the frame starts at a
        // multiple of 16 (`a_local_frame_is_read_only_as_the_type_that_wrote_it` breaks without the
        // comparison).
        Some(unsafe { rkyv::api::access_pos_unchecked::<T::Archived>(self.bytes, root) })
    }

    /// The message in place, whoever encoded it: trusted if this process did, checked if the frame was
    /// imported from another.
    ///
    /// # Errors
    ///
    /// [`AccessError`] if the frame carries another message, or bytes that are none.
    #[inline]
    pub fn access_or_check<T: Message>(&self) -> Result<&'a T::Archived, AccessError> {
        match self.access::<T>() {
            Some(archived) => Ok(archived),
            None => super::access_checked::<T>(&self.header(), self.payload()),
        }
    }

    /// Copies the frame for another process: with `context` (the digest of the view) in place of the type
    /// index, which means nothing there. Returns its length.
    ///
    /// # Errors
    ///
    /// [`EncodeError::Full`] if `into` is too small.
    pub fn export(&self, context: u64, into: &mut [u8]) -> Result<usize, EncodeError> {
        let header = self.header();
        let flags = header.flags.without(Flags::LARGE);
        super::copy_frame(self.bytes, Header { context, flags, ..header }, into)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ForeignFrame, Kind, MessageId, Parsed, encode_empty, encode_frame, encode_local, encode_local_empty,
    };

    /// Two types with the same layout: only the context word tells them apart.
    #[catga::message]
    #[derive(Debug, PartialEq)]
    struct Apples(u64);
    #[catga::message(name = "Apples")]
    #[derive(Debug, PartialEq)]
    struct Pears(u64);

    #[repr(align(16))]
    struct Memory([u8; 128]);

    fn local(bytes: &[u8]) -> LocalFrame<'_> {
        // SAFETY: the tests pass what `encode_local`, `encode_local_empty` or `import` wrote to the start of
        // a `Memory`.
        unsafe { LocalFrame::assume(bytes) }
    }

    #[test]
    fn a_local_frame_is_read_only_as_the_type_that_wrote_it() {
        let mut memory = Memory([0; 128]);
        let length = encode_local(Header::new(Kind::Request), &Apples(7), &mut memory.0).unwrap();
        let frame = local(&memory.0[..length]);
        assert_eq!(frame.access::<Apples>().map(|apples| apples.0.to_native()), Some(7));
        assert_eq!(
            (Apples::ID, frame.access::<Pears>().is_none()),
            (Pears::ID, true),
            "even with the same id"
        );
        assert!(frame.access::<()>().is_none() && frame.access::<crate::Fault>().is_none());
        // The same id and a payload that checks out: readable as the other type, after checking.
        assert!(frame.access_or_check::<Pears>().is_ok());
        assert!(matches!(frame.access_or_check::<crate::Fault>(), Err(AccessError::OtherMessage { .. })));
    }

    #[test]
    fn a_frame_without_payload_has_no_message() {
        let mut memory = Memory([0; 128]);
        let context = Apples::type_index().context();
        let length =
            encode_local_empty(Header { context, ..Header::new(Kind::Cancel) }, &mut memory.0).unwrap();
        assert!(local(&memory.0[..length]).access::<Apples>().is_none());
        // Even a header that names a type (its payload lies elsewhere) does not become a reference past its
        // end.
        let length = encode_empty(Header { context, ..Header::new(Kind::Request) }, &mut memory.0).unwrap();
        assert!(local(&memory.0[..length]).access::<Apples>().is_none());
    }

    #[test]
    fn an_imported_frame_is_checked_whatever_its_sender_wrote_into_the_context() {
        let mut memory = Memory([0; 128]);
        // A peer that guesses the type index of a type with a pointer, and sends one that points anywhere.
        let header = Header { context: crate::Fault::type_index().context(), ..Header::new(Kind::Rejected) };
        let text_of_18_bytes_20_before_here = u64::from_le_bytes([0x92, 0, 0, 0, 0xec, 0xff, 0xff, 0xff]);
        let length = encode_frame(header, &Apples(text_of_18_bytes_20_before_here), &mut memory.0).unwrap();
        Header { length: length as u32, message: crate::Fault::ID, ..header }.write(&mut memory.0);

        let Ok(Parsed::Frame(foreign, _)) = ForeignFrame::parse(&memory.0, 128) else { panic!() };
        let mut ring = Memory([0; 128]);
        let length = foreign.import(&mut ring.0).unwrap();
        let frame = local(&ring.0[..length]);
        assert!(frame.access::<crate::Fault>().is_none());
        assert_eq!(
            frame.access_or_check::<crate::Fault>().map(|_| ()),
            Err(AccessError::Invalid { name: "fault" })
        );
    }

    #[test]
    fn export_replaces_the_context_and_drops_what_is_local() {
        let mut memory = Memory([0; 128]);
        let header = Header { flags: Flags::LARGE.with(Flags::KEYED), ..Header::new(Kind::Event) };
        let length = encode_local(header, &Apples(7), &mut memory.0).unwrap();
        let mut lane = Memory([0; 128]);
        assert_eq!(local(&memory.0[..length]).export(99, &mut lane.0), Ok(length));
        let sent = Header::read(&lane.0).unwrap();
        assert_eq!((sent.context, sent.flags, sent.message), (99, Flags::KEYED, MessageId::of("Apples", 1)));
        assert_eq!(local(&memory.0[..length]).export(99, &mut lane.0[..8]), Err(EncodeError::Full));
    }
}
