//! What can be wrong with bytes and with messages, one enum for each door.
//!
//! `FrameError`: bytes of another process are not a frame. `AccessError`: a frame does not hold the message
//! that was asked for. `EncodeError`: a message does not fit where it should be archived. All are small,
//! `Copy` and made without allocating: hostile peers and full rings produce them at line rate.

use crate::limits::{EXTENSIONS_MAX_BYTES, FRAME_ALIGN_BYTES, FRAME_MAX_BYTES, HEADER_BYTES};
use crate::message::MessageId;

/// These bytes are not a frame. Nothing was read from them; the stream they came from cannot be followed any
/// further, so close it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The bytes do not start at a multiple of 16: read them into an aligned buffer.
    #[error(
        "the frame does not start at a multiple of {FRAME_ALIGN_BYTES} bytes; read it into an aligned buffer"
    )]
    Misaligned,
    /// Fewer bytes than a header has.
    #[error("{bytes} bytes are too few for a header of {HEADER_BYTES}")]
    Truncated {
        /// How many bytes there were.
        bytes: usize,
    },
    /// The length in the header is smaller than the header and its extensions: the peer speaks another
    /// protocol.
    #[error(
        "the frame claims a length of {length} bytes, less than its own header and extensions; is the peer a Catga node?"
    )]
    TooShort {
        /// The length that the header claims.
        length: u32,
    },
    /// The length in the header is over the limit. Nothing was allocated for it.
    #[error(
        "the frame claims {length} bytes, the limit is {max}; send less, or raise the limit on both sides"
    )]
    TooLarge {
        /// The length that the header claims.
        length: u32,
        /// The limit.
        max: usize,
    },
    /// A kind this version does not know.
    #[error("unknown frame kind {0}; the peer may run a newer version")]
    UnknownKind(u8),
    /// Flag bits this version does not know.
    #[error("unknown frame flags {0:#010b}; the peer may run a newer version")]
    UnknownFlags(u8),
    /// The flag that only means something inside one process.
    #[error("the frame says that its payload lies in a queue of another process")]
    LocalOnly,
    /// The extension area is not a multiple of 16 or too large.
    #[error(
        "an extension area of {bytes} bytes; it must be a multiple of {FRAME_ALIGN_BYTES}, at most {EXTENSIONS_MAX_BYTES}"
    )]
    ExtensionArea {
        /// The size that the header claims.
        bytes: u16,
    },
    /// An entry of the extension area runs past its end.
    #[error("the extension with tag {tag} runs past the end of the extension area")]
    Extension {
        /// The tag of the entry.
        tag: u16,
    },
}

/// The frame does not hold the message that was asked for. The frame itself is sound: refuse the message,
/// keep the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AccessError {
    /// The frame carries another message.
    #[error("the frame carries message {found}, not `{name}` ({expected})")]
    OtherMessage {
        /// The stable name of the message that was asked for.
        name: &'static str,
        /// Its id.
        expected: MessageId,
        /// The id in the frame.
        found: MessageId,
    },
    /// The payload is not a valid archive of this message: the peer has another layout, or means harm.
    #[error("the payload is not a valid archive of `{name}`; compare the fingerprints of both sides")]
    Invalid {
        /// The stable name of the message that was asked for.
        name: &'static str,
    },
    /// The owned frame holds nothing.
    #[error("the frame is empty; encode or copy something into it first")]
    Empty,
}

/// The message was not archived. The memory it was to go to holds no frame; the message is unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// The memory given is too small: try again with more, or when there is room.
    #[error("the memory given is too small for the frame")]
    Full,
    /// The frame would be larger than any frame may be.
    #[error("the frame would be larger than {FRAME_MAX_BYTES} bytes; split the message")]
    TooLarge,
    /// A string or list is longer than the archive can describe.
    #[error("a string or list is longer than an archive can describe; split the message")]
    Unrepresentable,
}

// What rkyv itself reports while it archives (a string over 2^30 bytes) becomes one variant, without boxing
// the cause.
impl rkyv::rancor::Trace for EncodeError {
    fn trace<R>(self, _: R) -> Self {
        self
    }
}

impl rkyv::rancor::Source for EncodeError {
    fn new<T: std::error::Error + Send + Sync + 'static>(_: T) -> Self {
        Self::Unrepresentable
    }
}
