//! Frames that another process sent: nothing in them is believed before it is checked.
//!
//! The order matters. The length is held against the limit before anyone waits or allocates for it; the
//! header and the extension area are checked before a frame exists; the archive is checked each time a
//! message is read from it. None of it panics or allocates, whatever the bytes.

use crate::error::{AccessError, EncodeError, FrameError};
use crate::extension::Extensions;
use crate::header::{Flags, Header, padded};
use crate::limits::{FRAME_ALIGN_BYTES, FRAME_MAX_BYTES, HEADER_BYTES};
use crate::message::Message;

/// What the start of some foreign bytes is.
#[derive(Debug, Clone, Copy)]
pub enum Parsed<'a> {
    /// The frame is not all there.
    Incomplete {
        /// How many bytes, counted from the start of the frame, are needed to get any further. Never over the
        /// limit's padded size.
        needed: usize,
    },
    /// A frame, and the bytes it occupies with its padding: the next one starts there.
    Frame(ForeignFrame<'a>, usize),
}

/// A frame whose bytes another process wrote.
#[derive(Debug, Clone, Copy)]
pub struct ForeignFrame<'a> {
    /// Exactly one frame; starts at a multiple of 16, covers header and extension area.
    /// The whole frame; its header has been read once without an error.
    bytes: &'a [u8],
}

impl<'a> ForeignFrame<'a> {
    /// Parses the frame at the start of `bytes`, which start at a multiple of 16. `max_bytes` is the largest
    /// frame to accept; it cannot raise [`FRAME_MAX_BYTES`].
    ///
    /// # Errors
    ///
    /// [`FrameError`] if these bytes can never become a frame: close the stream.
    #[inline]
    pub fn parse(bytes: &'a [u8], max_bytes: usize) -> Result<Parsed<'a>, FrameError> {
        if !bytes.as_ptr().addr().is_multiple_of(FRAME_ALIGN_BYTES) {
            return Err(FrameError::Misaligned);
        }
        let Some(length) = bytes.first_chunk().map(|word| u32::from_le_bytes(*word)) else {
            return Ok(Parsed::Incomplete { needed: HEADER_BYTES });
        };
        let max = max_bytes.min(FRAME_MAX_BYTES);
        if length as usize > max {
            return Err(FrameError::TooLarge { length, max });
        }
        if (length as usize) < HEADER_BYTES {
            return Err(FrameError::TooShort { length });
        }
        let occupied = padded(length as usize);
        if bytes.len() < HEADER_BYTES {
            return Ok(Parsed::Incomplete { needed: occupied });
        }
        // The header alone is checked before the rest is waited for.
        let header = Header::read(bytes)?;
        if header.flags.contains(Flags::LARGE) {
            return Err(FrameError::LocalOnly);
        }
        if bytes.len() < occupied {
            return Ok(Parsed::Incomplete { needed: occupied });
        }
        let frame = Self { bytes: &bytes[..length as usize] };
        if header.extension_bytes != 0 {
            frame.check_extensions()?;
        }
        Ok(Parsed::Frame(frame, occupied))
    }

    /// A whole frame that was [parsed](Self::parse), now elsewhere.
    #[inline]
    pub(super) fn parsed_before(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    #[cold]
    fn check_extensions(&self) -> Result<(), FrameError> {
        self.extensions().try_for_each(|entry| entry.map(drop))
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

    /// The extension area, entry by entry; parsing has checked that all of them are well formed.
    #[must_use]
    pub fn extensions(&self) -> Extensions<'a> {
        Extensions::new(&self.bytes[HEADER_BYTES..self.header().payload_offset()])
    }

    /// The payload: bytes that claim to be an archive.
    #[must_use]
    #[inline]
    pub fn payload(&self) -> &'a [u8] {
        &self.bytes[self.header().payload_offset()..]
    }

    /// The message in place, checked: linear in the payload, no allocation.
    ///
    /// # Errors
    ///
    /// [`AccessError`] if the frame carries another message, or bytes that are none.
    #[inline]
    pub fn access<T: Message>(&self) -> Result<&'a T::Archived, AccessError> {
        super::access_checked::<T>(&self.header(), self.payload())
    }

    /// Copies the frame into memory of this process that [`LocalFrame`](crate::LocalFrame)s are read from:
    /// with the context word 0, so that reading it still checks. Returns its length.
    ///
    /// # Errors
    ///
    /// [`EncodeError::Full`] if `into` is too small.
    pub fn import(&self, into: &mut [u8]) -> Result<usize, EncodeError> {
        super::copy_frame(self.bytes, Header { context: 0, ..self.header() }, into)
    }
}
