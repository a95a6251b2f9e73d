//! The 48 bytes every frame begins with: little-endian, at fixed offsets, read and written without rkyv.
//!
//! ```text
//!   0 length u32           exact bytes of the frame: header + extensions + payload, padding excluded
//!   4 kind u8              what the frame is
//!   5 flags u8
//!   6 code u16             why (Refused, Failed, Close)
//!   8 message u64          id of the message in the payload: hash of its stable name and version
//!  16 call u32 + u32       the caller's slot, and the slot's generation
//!  24 key u64              hash of the key, 0 if there is none
//!  32 remaining u32        microseconds until the deadline
//!  36 shard u16            the target shard
//!  38 extension_bytes u16  size of the extension area behind the header, a multiple of 16
//!  40 context u64          on a lane: digest of the sender's view; inside a process: type index of the payload
//! ```
//!
//! Frames start at multiples of 16; the next one starts at [`padded`]`(length)`.

use crate::error::FrameError;
use crate::limits::{EXTENSIONS_MAX_BYTES, FRAME_ALIGN_BYTES, HEADER_BYTES};
use crate::message::MessageId;

/// The bytes that a frame of `length` occupies: rounded up to the next multiple of 16.
#[must_use]
#[inline]
pub const fn padded(length: usize) -> usize {
    (length + (FRAME_ALIGN_BYTES - 1)) & !(FRAME_ALIGN_BYTES - 1)
}

/// What a frame is. Values from 16 on are reserved for streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// A request: asks for exactly one answer.
    Request = 1,
    /// The reply of the handler.
    Reply = 2,
    /// The typed error of the handler.
    Rejected = 3,
    /// Arrived and was not executed; the code says why.
    Refused = 4,
    /// The handler panicked.
    Failed = 5,
    /// An event.
    Event = 6,
    /// The caller does not want the answer any more.
    Cancel = 7,
    /// Nothing but a sign of life.
    Heartbeat = 8,
    /// The first frame of whoever opened the lane.
    Hello = 9,
    /// The answer to it.
    Welcome = 10,
    /// The last frame; the code says why.
    Close = 11,
    /// All listeners of a broadcast event have returned.
    Handled = 12,
}

impl Kind {
    /// The kind with this number.
    #[must_use]
    #[inline]
    pub const fn from_u8(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Request,
            2 => Self::Reply,
            3 => Self::Rejected,
            4 => Self::Refused,
            5 => Self::Failed,
            6 => Self::Event,
            7 => Self::Cancel,
            8 => Self::Heartbeat,
            9 => Self::Hello,
            10 => Self::Welcome,
            11 => Self::Close,
            12 => Self::Handled,
            _ => return None,
        })
    }
}

/// The flags of a frame: a set of bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Flags(pub u8);

impl Flags {
    /// No flag.
    pub const NONE: Self = Self(0);
    /// The caller allows the request to run more than once.
    pub const IDEMPOTENT: Self = Self(1);
    /// The key field of the header counts.
    pub const KEYED: Self = Self(2);
    /// The payload lies in the side queue beside the ring. Means nothing outside this process.
    pub const LARGE: Self = Self(4);
    const KNOWN: u8 = Self::IDEMPOTENT.0 | Self::KEYED.0 | Self::LARGE.0;

    /// Whether all flags of `other` are set.
    #[must_use]
    #[inline]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// These flags and those of `other`.
    #[must_use]
    #[inline]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// These flags without those of `other`.
    #[must_use]
    #[inline]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

/// A call in flight, as its caller names it: a slot, and how often the slot has been used. A late answer
/// names an old generation and finds nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct CallId {
    /// The slot in the caller's table.
    pub slot: u32,
    /// How often the slot has been used.
    pub generation: u32,
}

/// The header of a frame; see the module for its layout in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Exact bytes of the frame, padding excluded. Filled in by whoever encodes the frame.
    pub length: u32,
    /// What the frame is.
    pub kind: Kind,
    /// Its flags.
    pub flags: Flags,
    /// Why, for the kinds that give a reason.
    pub code: u16,
    /// The message in the payload. Filled in by whoever encodes the frame.
    pub message: MessageId,
    /// The call that the frame belongs to.
    pub call: CallId,
    /// Hash of the key; counts if [`Flags::KEYED`] is set.
    pub key: u64,
    /// Microseconds until the deadline.
    pub remaining_us: u32,
    /// The target shard.
    pub shard: u16,
    /// Size of the extension area: a multiple of 16, at most 1024.
    pub extension_bytes: u16,
    /// On a lane the digest of the sender's view; inside a process the type index of the payload, 0 for none.
    pub context: u64,
}

impl Header {
    /// A header of a frame without payload; kind `Heartbeat`, everything else zero.
    pub const EMPTY: Self = Self::new(Kind::Heartbeat);

    /// A header of this kind, everything else zero.
    #[must_use]
    pub const fn new(kind: Kind) -> Self {
        Self {
            length: HEADER_BYTES as u32,
            kind,
            flags: Flags::NONE,
            code: 0,
            message: MessageId(0),
            call: CallId { slot: 0, generation: 0 },
            key: 0,
            remaining_us: 0,
            shard: 0,
            extension_bytes: 0,
            context: 0,
        }
    }

    /// Where the payload starts in the frame.
    #[must_use]
    #[inline]
    pub const fn payload_offset(&self) -> usize {
        HEADER_BYTES + self.extension_bytes as usize
    }

    /// Writes the header into the first 48 bytes: plain stores, a few nanoseconds.
    ///
    /// # Panics
    ///
    /// If `into` is shorter than a header.
    #[inline]
    pub fn write(&self, into: &mut [u8]) {
        // One slice of known length, so that one comparison covers all the stores below.
        let out = &mut into[..HEADER_BYTES];
        out[0..4].copy_from_slice(&self.length.to_le_bytes());
        out[4] = self.kind as u8;
        out[5] = self.flags.0;
        out[6..8].copy_from_slice(&self.code.to_le_bytes());
        out[8..16].copy_from_slice(&self.message.0.to_le_bytes());
        out[16..20].copy_from_slice(&self.call.slot.to_le_bytes());
        out[20..24].copy_from_slice(&self.call.generation.to_le_bytes());
        out[24..32].copy_from_slice(&self.key.to_le_bytes());
        out[32..36].copy_from_slice(&self.remaining_us.to_le_bytes());
        out[36..38].copy_from_slice(&self.shard.to_le_bytes());
        out[38..40].copy_from_slice(&self.extension_bytes.to_le_bytes());
        out[40..48].copy_from_slice(&self.context.to_le_bytes());
    }

    /// Reads a header and checks what can be checked without the rest of the frame: kind, flags, the
    /// extension area, and that the length covers both. The upper bound of the length is the reader's
    /// business.
    ///
    /// # Errors
    ///
    /// [`FrameError`] names the field that is wrong.
    #[inline]
    pub fn read(bytes: &[u8]) -> Result<Self, FrameError> {
        let Some(bytes) = bytes.first_chunk::<HEADER_BYTES>() else {
            return Err(FrameError::Truncated { bytes: bytes.len() });
        };
        let Some(kind) = Kind::from_u8(bytes[4]) else {
            return Err(FrameError::UnknownKind(bytes[4]));
        };
        let header = Self {
            length: u32_at::<0>(bytes),
            kind,
            flags: Flags(bytes[5]),
            code: u16_at::<6>(bytes),
            message: MessageId(u64_at::<8>(bytes)),
            call: CallId { slot: u32_at::<16>(bytes), generation: u32_at::<20>(bytes) },
            key: u64_at::<24>(bytes),
            remaining_us: u32_at::<32>(bytes),
            shard: u16_at::<36>(bytes),
            extension_bytes: u16_at::<38>(bytes),
            context: u64_at::<40>(bytes),
        };
        header.check()?;
        Ok(header)
    }

    #[inline]
    fn check(&self) -> Result<(), FrameError> {
        if self.flags.0 & !Flags::KNOWN != 0 {
            return Err(FrameError::UnknownFlags(self.flags.0));
        }
        let extension_bytes = self.extension_bytes as usize;
        if !extension_bytes.is_multiple_of(FRAME_ALIGN_BYTES) || extension_bytes > EXTENSIONS_MAX_BYTES {
            return Err(FrameError::ExtensionArea { bytes: self.extension_bytes });
        }
        if (self.length as usize) < self.payload_offset() {
            return Err(FrameError::TooShort { length: self.length });
        }
        Ok(())
    }
}

#[inline]
fn u16_at<const AT: usize>(bytes: &[u8; HEADER_BYTES]) -> u16 {
    u16::from_le_bytes([bytes[AT], bytes[AT + 1]])
}

#[inline]
fn u32_at<const AT: usize>(bytes: &[u8; HEADER_BYTES]) -> u32 {
    u32::from_le_bytes([bytes[AT], bytes[AT + 1], bytes[AT + 2], bytes[AT + 3]])
}

#[inline]
fn u64_at<const AT: usize>(bytes: &[u8; HEADER_BYTES]) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[AT..AT + 8]);
    u64::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_start_at_multiples_of_sixteen() {
        assert_eq!([0, 1, 15, 16, 17, 48].map(padded), [0, 16, 16, 16, 32, 48]);
    }

    #[test]
    fn a_header_comes_back_as_written() {
        for number in 0..=u8::MAX {
            let Some(kind) = Kind::from_u8(number) else { continue };
            assert_eq!(kind as u8, number);
            let header = Header { length: 500, key: u64::MAX, extension_bytes: 32, ..Header::new(kind) };
            let mut bytes = [0xaa; 64];
            header.write(&mut bytes);
            assert_eq!(Header::read(&bytes), Ok(header));
            assert_eq!(bytes[HEADER_BYTES..], [0xaa; 16], "nothing behind the header is touched");
        }
    }

    #[test]
    fn a_header_cut_short_is_an_error() {
        assert_eq!(Header::read(&[1; 47]), Err(FrameError::Truncated { bytes: 47 }));
    }
}
