//! The 48 bytes every frame begins with: little-endian, at fixed offsets, read and written without rkyv.
//!
//! ```text
//!   0 length u32           exact bytes of the frame: header + extensions + payload, padding excluded
//!   4 kind u8              what the frame is
//!   5 flags u8
//!   6 code u16             why (Refused, Failed, Close), or how many listeners (Handled)
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
    /// All listeners of a broadcast event have returned; the code says how many.
    Handled = 12,
    /// What whoever opened the lane answers to the Welcome: its proof of the cluster's key.
    Proof = 13,
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
            13 => Self::Proof,
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
///
/// One word, slot below and generation above: written in two halves and read as a whole it would have to wait for the
/// processor's store buffer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct CallId(u64);

impl CallId {
    /// The call in a slot that has been used so often.
    #[must_use]
    #[inline]
    pub const fn new(slot: u32, generation: u32) -> Self {
        Self(slot as u64 | (generation as u64) << 32)
    }

    /// The slot in the caller's table.
    #[must_use]
    #[inline]
    pub const fn slot(self) -> u32 {
        self.0 as u32
    }

    /// How often the slot has been used.
    #[must_use]
    #[inline]
    pub const fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

impl std::fmt::Debug for CallId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CallId({}#{})", self.slot(), self.generation())
    }
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
    /// Time until the deadline: in microseconds below 2^31 (36 minutes); with the top bit set, in milliseconds in the other 31
    /// bits (24 days). All ones is that or more.
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
            call: CallId(0),
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
        // Six words, each stored once: who reads a header back soon reads words, and need not wait until halves of them have
        // left the store buffer.
        let words = [
            u64::from(self.length)
                | (self.kind as u64) << 32
                | u64::from(self.flags.0) << 40
                | u64::from(self.code) << 48,
            self.message.0,
            self.call.0,
            self.key,
            u64::from(self.remaining_us)
                | u64::from(self.shard) << 32
                | u64::from(self.extension_bytes) << 48,
            self.context,
        ];
        for (place, word) in into[..HEADER_BYTES].chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
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
        let header = Self::read_again(bytes)?;
        header.check()?;
        Ok(header)
    }

    /// Reads a header that [`read`](Self::read) has checked before, or [`write`](Self::write) has written. Of what it says
    /// only the kind is looked at, because it must have a name.
    #[inline]
    pub(crate) fn read_again(bytes: &[u8]) -> Result<Self, FrameError> {
        let Some(bytes) = bytes.first_chunk::<HEADER_BYTES>() else {
            return Err(FrameError::Truncated { bytes: bytes.len() });
        };
        let first = word::<0>(bytes);
        let number = (first >> 32) as u8;
        let Some(kind) = Kind::from_u8(number) else {
            return Err(FrameError::UnknownKind(number));
        };
        let fifth = word::<4>(bytes);
        Ok(Self {
            length: first as u32,
            kind,
            flags: Flags((first >> 40) as u8),
            code: (first >> 48) as u16,
            message: MessageId(word::<1>(bytes)),
            call: CallId(word::<2>(bytes)),
            key: word::<3>(bytes),
            remaining_us: fifth as u32,
            shard: (fifth >> 32) as u16,
            extension_bytes: (fifth >> 48) as u16,
            context: word::<5>(bytes),
        })
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

/// One of the six words of a header.
#[inline]
fn word<const PLACE: usize>(bytes: &[u8; HEADER_BYTES]) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[8 * PLACE..8 * PLACE + 8]);
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
