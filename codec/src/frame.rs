//! Frames as their readers see them, by where the bytes come from.
//!
//! `LocalFrame` borrows bytes that this process encoded: reading is one comparison (the context word proves
//! the type). `ForeignFrame` borrows bytes that another process sent: the length is held against the limit
//! first, then the header is parsed, then, when a message is asked for, the archive is checked. `OwnedFrame`
//! keeps a copy of either and remembers which. A foreign frame that moves on through a ring of this process
//! is imported: its context word becomes 0, so nobody trusts it.

mod foreign;
mod local;
mod owned;

pub use foreign::{ForeignFrame, Parsed};
pub use local::LocalFrame;
pub use owned::OwnedFrame;

use crate::error::{AccessError, EncodeError};
use crate::header::Header;
use crate::message::Message;

/// Reads a payload that nobody vouches for: the message must be the one named in the header, and the archive
/// is checked.
#[inline]
fn access_checked<'a, T: Message>(
    header: &Header,
    payload: &'a [u8],
) -> Result<&'a T::Archived, AccessError> {
    if header.message != T::ID {
        let (name, expected, found) = (T::NAME, T::ID, header.message);
        return Err(AccessError::OtherMessage { name, expected, found });
    }
    T::check(payload).ok_or(AccessError::Invalid { name: T::NAME })
}

/// The header of bytes that are known to be a frame. Reading it again is cheaper than carrying it along.
#[inline]
fn header_of(frame: &[u8]) -> Header {
    match Header::read_again(frame) {
        Ok(header) => header,
        Err(error) => unreachable!("the header of a frame was read before: {error}"),
    }
}

/// Copies a frame to the start of `into` under another header.
#[inline]
fn copy_frame(bytes: &[u8], header: Header, into: &mut [u8]) -> Result<usize, EncodeError> {
    let place = into.get_mut(..bytes.len()).ok_or(EncodeError::Full)?;
    place.copy_from_slice(bytes);
    header.write(place);
    Ok(bytes.len())
}
