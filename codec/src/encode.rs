//! From a message to a frame: archived once, straight into the memory that will travel.
//!
//! The memory is a slice of a ring, of a socket's send buffer or of the stack. It is initialised and starts
//! at a multiple of 16; the payload is written behind the header, the header last, when its length is known.
//! Nothing is allocated unless vectors nest deeper than the scratch on the stack holds. If the memory is too
//! small nothing is lost: `Full`, and the caller decides.

use std::mem::MaybeUninit;

use rkyv::rancor::Fallible;
use rkyv::ser::{Positional, Writer};

use crate::error::EncodeError;
use crate::header::Header;
use crate::limits::{FRAME_ALIGN_BYTES, FRAME_MAX_BYTES, HEADER_BYTES};
use crate::message::Message;
use crate::scratch::{Inline, Scratch};

/// Archives one message into the memory behind a header.
#[derive(Debug)]
pub struct Encoder<'a> {
    out: &'a mut [u8],
    /// In `0 ..= out.len()`.
    position: usize,
    pub(crate) scratch: Scratch<'a>,
}

impl Fallible for Encoder<'_> {
    type Error = EncodeError;
}

impl Positional for Encoder<'_> {
    #[inline]
    fn pos(&self) -> usize {
        self.position
    }
}

impl Writer for Encoder<'_> {
    #[inline]
    fn write(&mut self, bytes: &[u8]) -> Result<(), EncodeError> {
        // Cannot overflow: both are lengths of slices in memory.
        let end = self.position + bytes.len();
        let Some(place) = self.out.get_mut(self.position..end) else {
            return Err(EncodeError::Full);
        };
        place.copy_from_slice(bytes);
        self.position = end;
        Ok(())
    }
}

/// Archives `message` behind `header` into `into`, and returns the exact length of the frame. This is the
/// form for lanes and buses: `header.context` is written as given.
///
/// Length and message id are filled in. If `header.extension_bytes` is not zero,
/// [`write_extensions`](crate::write_extensions) has written the area behind the header before. `into` starts
/// at a multiple of 16. A few nanoseconds; allocates nothing for flat messages.
///
/// # Errors
///
/// [`EncodeError`]; `into` then holds no frame.
///
/// # Panics
///
/// If `header.extension_bytes` is not a multiple of 16.
#[inline(always)] // the header is in registers at the caller
pub fn encode_frame<T: Message>(header: Header, message: &T, into: &mut [u8]) -> Result<usize, EncodeError> {
    const { assert!(align_of::<T::Archived>() <= FRAME_ALIGN_BYTES, "archived types align to 16 bytes at most") };
    // The payload must keep the alignment of the frame: readers that trust it rely on that.
    assert!(
        header.extension_bytes.is_multiple_of(FRAME_ALIGN_BYTES as u16),
        "take the size from `write_extensions`"
    );
    debug_assert!(into.as_ptr().addr().is_multiple_of(FRAME_ALIGN_BYTES), "frames start at multiples of 16");

    let room = into.len().min(FRAME_MAX_BYTES);
    let start = header.payload_offset();
    let Some(out) = into.get_mut(start..room) else {
        return Err(EncodeError::Full);
    };
    let payload_bytes = match archive(message, out) {
        Ok(bytes) => bytes,
        Err(EncodeError::Full) if room == FRAME_MAX_BYTES => return Err(EncodeError::TooLarge),
        Err(error) => return Err(error),
    };
    let length = start + payload_bytes;
    Header { length: length as u32, message: T::ID, ..header }.write(into);
    Ok(length)
}

/// The same as [`encode_frame`] for rings inside this process: the context word becomes the type index of
/// `T`, so that [`LocalFrame::access`](crate::LocalFrame::access) may trust the bytes.
///
/// # Errors
///
/// [`EncodeError`]; `into` then holds no frame.
#[inline(always)] // the header is in registers at the caller
pub fn encode_local<T: Message>(header: Header, message: &T, into: &mut [u8]) -> Result<usize, EncodeError> {
    encode_frame(Header { context: T::type_index().context(), ..header }, message, into)
}

/// Writes a frame without payload for a lane (a heartbeat, a refusal): the header alone, its message and
/// context as given.
///
/// # Errors
///
/// [`EncodeError::Full`] if there is no room for a header.
#[inline]
pub fn encode_empty(header: Header, into: &mut [u8]) -> Result<usize, EncodeError> {
    if into.len() < HEADER_BYTES {
        return Err(EncodeError::Full);
    }
    Header { length: HEADER_BYTES as u32, extension_bytes: 0, ..header }.write(into);
    Ok(HEADER_BYTES)
}

/// The same as [`encode_empty`] for rings inside this process: the context word becomes 0, "no type".
///
/// # Errors
///
/// [`EncodeError::Full`] if there is no room for a header.
#[inline]
pub fn encode_local_empty(header: Header, into: &mut [u8]) -> Result<usize, EncodeError> {
    encode_empty(Header { context: 0, ..header }, into)
}

/// Archives a message at the start of `out`; its root ends where the returned length ends.
#[inline]
fn archive<T: Message>(message: &T, out: &mut [u8]) -> Result<usize, EncodeError> {
    let mut inline = MaybeUninit::<Inline>::uninit();
    let mut encoder = Encoder { out, position: 0, scratch: Scratch::new(&mut inline) };
    rkyv::SerializeUnsized::serialize_unsized(message, &mut encoder)?;
    Ok(encoder.position)
}
