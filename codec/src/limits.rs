//! Every bound of the codec in one place: named, with its unit last, and its relations checked when this
//! compiles.
//!
//! The sizes hang together. A frame starts at a multiple of `FRAME_ALIGN_BYTES` because that is the largest
//! alignment an archived value can ask for, and the header is a multiple of it too, so the payload is aligned
//! without padding. What fits `FRAME_INLINE_BYTES` lies in line in a ring between two shards; what is larger
//! travels by handle.

/// Frames, and the payloads in them, start at multiples of this: the alignment of an archived `u128`, the
/// largest there is.
pub const FRAME_ALIGN_BYTES: usize = 16;

/// The size of the header that every frame begins with.
pub const HEADER_BYTES: usize = 48;

/// The largest payload of a reply that lies in line in the reply ring, so that a call can take credit for it
/// in advance.
pub const REPLY_INLINE_BYTES: usize = 256;

/// The largest frame, header included, that lies in line in a ring between shards.
pub const FRAME_INLINE_BYTES: usize = 4096 + HEADER_BYTES;

/// The largest frame there is, header included. A lane may agree on less, never on more.
pub const FRAME_MAX_BYTES: usize = 16 * 1024 * 1024;

/// The largest extension area of a frame.
pub const EXTENSIONS_MAX_BYTES: usize = 1024;

/// How deep the fields of a message may nest: each struct, enum, `Vec`, `Option`, `Box` and array around a
/// plain value is one level. It bounds the stack that checking and reading foreign bytes can take.
pub const NESTING_MAX: u32 = 16;

/// The longest stable name of a message.
pub const MESSAGE_NAME_MAX_BYTES: usize = 128;

/// How many fields a [`Contract`](crate::Contract) lists to explain a difference. Fields beyond it still
/// count in the fingerprint.
pub const CONTRACT_FIELDS_MAX: usize = 512;

/// How many layouts of one message a node may say that it accepts, each a fingerprint: its present one, and
/// those by former names. This version says two at most.
pub const CONTRACT_LAYOUTS_MAX: usize = 8;

/// Memory on the stack for an encoder's bookkeeping; what nests more vectors than fit here spills to the
/// heap.
pub const SCRATCH_BYTES: usize = 512;

const _: () = {
    assert!(FRAME_ALIGN_BYTES.is_power_of_two());
    assert!(HEADER_BYTES.is_multiple_of(FRAME_ALIGN_BYTES), "the payload must start aligned");
    assert!(FRAME_INLINE_BYTES.is_multiple_of(FRAME_ALIGN_BYTES), "frames in line must end aligned");
    assert!(REPLY_INLINE_BYTES + HEADER_BYTES <= FRAME_INLINE_BYTES, "a reply in line is a frame in line");
    assert!(FRAME_INLINE_BYTES <= FRAME_MAX_BYTES);
    assert!(FRAME_MAX_BYTES <= u32::MAX as usize, "a length is a u32");
    assert!(
        EXTENSIONS_MAX_BYTES.is_multiple_of(FRAME_ALIGN_BYTES) && EXTENSIONS_MAX_BYTES <= u16::MAX as usize
    );
    assert!(
        HEADER_BYTES + EXTENSIONS_MAX_BYTES <= FRAME_INLINE_BYTES,
        "extensions alone must not push a frame out of line"
    );
    assert!(CONTRACT_LAYOUTS_MAX >= 2 && CONTRACT_LAYOUTS_MAX <= u8::MAX as usize, "a count is a byte");
    assert!(SCRATCH_BYTES.is_multiple_of(FRAME_ALIGN_BYTES));
};
