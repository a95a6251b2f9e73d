//! The floor's frame: as many bytes as the engine's, with as little in them as an honest check needs.
//!
//! ```text
//! 0 u32 length   8 u64 number   16 u64 value   … payload …   last 8 bytes: the value's complement
//! ```
//!
//! A request's value follows from its number; a reply's value follows from the request's value *and* its last bytes.
//! So a checked reply proves that both ends of the payload came through and that the answer is for that number.

/// A request without a payload of its own, and every reply: header included.
pub(crate) const FRAME_BYTES: usize = 64;
/// What of a frame is header; the rest is payload.
pub(crate) const HEADER_BYTES: usize = 48;
/// Frames start at multiples of this, as the engine's do.
const ALIGN_BYTES: usize = 16;
const TRAILER_BYTES: usize = 8;
const _: () = assert!(FRAME_BYTES >= HEADER_BYTES + TRAILER_BYTES && FRAME_BYTES.is_multiple_of(ALIGN_BYTES));

/// A whole reply, or a request of the default size.
pub(crate) type Frame = [u8; FRAME_BYTES];

/// The size of a request that carries this payload.
pub(crate) fn request_bytes(payload_bytes: usize) -> usize {
    (HEADER_BYTES + payload_bytes).next_multiple_of(ALIGN_BYTES).max(FRAME_BYTES)
}

/// Writes request `number` over a buffer of the request's exact size; bytes between header and trailer stay.
#[inline]
pub(crate) fn write_request(number: u64, into: &mut [u8]) {
    let value = value_of(number);
    let length = into.len();
    into[0..8].copy_from_slice(&(length as u64).to_le_bytes());
    into[8..16].copy_from_slice(&number.to_le_bytes());
    into[16..24].copy_from_slice(&value.to_le_bytes());
    into[length - TRAILER_BYTES..].copy_from_slice(&(!value).to_le_bytes());
}

/// Request `number` of the default size.
#[inline]
pub(crate) fn request(number: u64) -> Frame {
    let mut frame = [0; FRAME_BYTES];
    write_request(number, &mut frame);
    frame
}

/// What the server says to a request of any size.
#[inline]
pub(crate) fn reply(request: &[u8]) -> Frame {
    let mut frame = [0; FRAME_BYTES];
    let (value, trailer) = (word(request, 16), word(request, request.len() - TRAILER_BYTES));
    frame[0..8].copy_from_slice(&(FRAME_BYTES as u64).to_le_bytes());
    frame[8..16].copy_from_slice(&request[8..16]);
    frame[16..24].copy_from_slice(&answer(value, trailer).to_le_bytes());
    frame
}

/// Whether this is the answer to request `number`.
#[inline]
pub(crate) fn is_reply_to(reply: &[u8], number: u64) -> bool {
    let value = value_of(number);
    (word(reply, 8) ^ number) | (word(reply, 16) ^ answer(value, !value)) == 0
}

/// For the message about a wrong reply.
pub(crate) fn describe(reply: &[u8], number: u64) -> String {
    format!(
        "expected the answer to request {number}, got number {} with value {:#x}",
        word(reply, 8),
        word(reply, 16)
    )
}

/// What request `number` says.
#[inline]
pub(crate) fn value_of(number: u64) -> u64 {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// What the reply to it says; `trailer` is the last word of the payload, or the value's complement without one.
#[inline]
pub(crate) fn answer(value: u64, trailer: u64) -> u64 {
    value.rotate_left(17).wrapping_sub(trailer)
}

#[inline]
fn word(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_answers_its_own_request_only() {
        for bytes in [request_bytes(0), request_bytes(1_024)] {
            let mut frame = vec![7; bytes];
            write_request(42, &mut frame);
            let answer = reply(&frame);
            assert!(is_reply_to(&answer, 42));
            assert!(!is_reply_to(&answer, 41) && !is_reply_to(&answer, 43));
        }
    }

    #[test]
    fn damage_at_either_end_of_the_payload_shows() {
        let mut frame = vec![7; request_bytes(1_024)];
        write_request(42, &mut frame);
        let last = frame.len() - 1;
        for at in [8, 16, 23, last - 7, last] {
            let mut damaged = frame.clone();
            damaged[at] ^= 1;
            assert!(!is_reply_to(&reply(&damaged), 42), "byte {at}");
        }
    }

    #[test]
    fn sizes_are_the_engines() {
        assert_eq!((request_bytes(0), request_bytes(16), request_bytes(17)), (64, 64, 80));
        assert_eq!(request_bytes(1_024), 1_072);
    }
}
