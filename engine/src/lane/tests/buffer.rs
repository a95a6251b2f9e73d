//! The buffers against a queue of bytes, and their promises about memory.

use std::collections::VecDeque;

use catga_codec::padded;
use proptest::prelude::*;

use crate::lane::buffer::{
    RECEIVE_BYTES, ReceiveBuffer, SEND_KEEP_BYTES, SEND_START_BYTES, SendBuffer, Unwritten,
};

/// A frame as far as a buffer knows: its length in front, then a pattern.
fn frame(into: &mut [u8], length: usize, fill: u8) -> Result<usize, ()> {
    into[..length].fill(fill);
    into[..4].copy_from_slice(&(length as u32).to_le_bytes());
    Ok(length)
}

fn push(buffer: &mut SendBuffer, length: usize, fill: u8) -> Result<u64, Unwritten<()>> {
    buffer.frame(length, length, |into| {
        assert_eq!(into.len(), length);
        assert!(into.as_ptr().addr().is_multiple_of(16));
        frame(into, length, fill)
    })
}

/// What a frame of `length` looks like on the wire.
fn wire(length: usize, fill: u8) -> Vec<u8> {
    let mut bytes = vec![0; padded(length)];
    frame(&mut bytes, length, fill).unwrap();
    bytes
}

fn read(buffer: &mut ReceiveBuffer, bytes: &[u8]) -> usize {
    let space = buffer.space();
    let taken = space.len().min(bytes.len());
    space[..taken].copy_from_slice(&bytes[..taken]);
    buffer.filled(taken);
    taken
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_send_buffer_is_a_queue_of_padded_frames(
        steps in proptest::collection::vec((48usize..6000, any::<u8>(), 0usize..9000), 1..200)
    ) {
        let mut buffer = SendBuffer::new(96 * 1024);
        let mut model: VecDeque<u8> = VecDeque::new();
        let (mut queued, mut sent) = (0u64, 0u64);
        for (length, fill, take) in steps {
            match push(&mut buffer, length, fill) {
                Ok(offset) => {
                    prop_assert_eq!(offset, queued);
                    model.extend(wire(length, fill));
                    queued += padded(length) as u64;
                }
                Err(error) => {
                    prop_assert_eq!(error, Unwritten::NoRoom);
                    prop_assert!(model.len() > 96 * 1024 - 3 * 6016, "room was refused too early");
                }
            }
            let take = take.min(model.len());
            prop_assert!(buffer.unsent().iter().eq(model.iter()));
            buffer.sent(take);
            model.drain(..take);
            sent += take as u64;
            prop_assert_eq!((buffer.queued_total(), buffer.sent_total()), (queued, sent));
            prop_assert!(buffer.capacity() <= 96 * 1024);
        }
    }

    #[test]
    fn withdrawing_keeps_the_begun_frame_and_the_wanted_ones(
        lengths in proptest::collection::vec(48usize..5000, 1..60), part in 0usize..100_000
    ) {
        let mut buffer = SendBuffer::new(1 << 20);
        let mut starts = Vec::new();
        for (index, length) in lengths.iter().enumerate() {
            starts.push(push(&mut buffer, *length, index as u8).unwrap() as usize);
        }
        let total = buffer.queued_total() as usize;
        let part = part % total;
        let stream = buffer.unsent().to_vec();
        buffer.sent(part);
        let withdrawn = buffer.withdraw(|frame| frame[4] % 2 == 0);
        let mut left = Vec::new();
        let mut gone = 0;
        for (index, start) in starts.iter().enumerate() {
            let end = starts.get(index + 1).copied().unwrap_or(total);
            if *start < part {
                left.extend_from_slice(&stream[part.min(end)..end]);
            } else if index % 2 == 0 {
                left.extend_from_slice(&stream[*start..end]);
            } else {
                gone += 1;
            }
        }
        prop_assert_eq!(buffer.unsent(), &left[..]);
        prop_assert_eq!(withdrawn, gone);
        prop_assert_eq!(buffer.sent_total(), part as u64);
    }

    #[test]
    fn a_receive_buffer_gives_back_what_was_read_in_any_pieces(
        lengths in proptest::collection::vec(prop_oneof![9 => 48usize..3000, 1 => 100_000usize..400_000], 1..20),
        pieces in proptest::collection::vec(1usize..50_000, 1..20)
    ) {
        let stream: Vec<u8> = lengths.iter().enumerate().flat_map(|(i, length)| wire(*length, i as u8)).collect();
        let mut buffer = ReceiveBuffer::new();
        let (mut rest, mut seen) = (&stream[..], Vec::new());
        let mut pieces = pieces.iter().cycle();
        while !rest.is_empty() {
            let piece = (*pieces.next().unwrap()).min(rest.len());
            let taken = read(&mut buffer, &rest[..piece]);
            prop_assert!(taken > 0);
            rest = &rest[taken..];
            let mut at = 0;
            let needed = loop {
                let bytes = &buffer.bytes()[at..];
                prop_assert!(bytes.as_ptr().addr().is_multiple_of(16));
                let Some(word) = bytes.first_chunk::<4>() else { break 48 };
                let needed = padded(u32::from_le_bytes(*word) as usize);
                if bytes.len() < needed {
                    break needed;
                }
                seen.extend_from_slice(&bytes[..needed]);
                at += needed;
            };
            buffer.consume(at);
            buffer.need(needed);
        }
        prop_assert!(seen == stream);
        prop_assert!(buffer.capacity() <= 400_016);
    }
}

#[test]
fn a_claimed_length_alone_allocates_nothing() {
    let mut buffer = ReceiveBuffer::new();
    let taken = read(&mut buffer, &[1; 4096]);
    buffer.need(16 << 20);
    let _ = buffer.space();
    assert_eq!(buffer.capacity(), RECEIVE_BYTES);
    let rest = vec![1; RECEIVE_BYTES];
    assert_eq!(read(&mut buffer, &rest), RECEIVE_BYTES - taken);
    let _ = buffer.space();
    assert_eq!(buffer.capacity(), 2 * RECEIVE_BYTES, "twice what has arrived");
}

#[test]
fn grown_buffers_shrink_after_a_calm_while() {
    let mut receive = ReceiveBuffer::new();
    let large = wire(3 * RECEIVE_BYTES, 1);
    let mut rest = &large[..];
    while !rest.is_empty() {
        rest = &rest[read(&mut receive, rest)..];
        receive.need(large.len());
    }
    receive.consume(large.len());
    assert_eq!(receive.capacity(), large.len());
    let mut send = SendBuffer::new(8 << 20);
    push(&mut send, 2 << 20, 1).unwrap();
    send.sent(2 << 20);
    assert!(send.capacity() > SEND_KEEP_BYTES);
    for _ in 0..100 {
        read(&mut receive, &wire(64, 1));
        receive.consume(64);
        push(&mut send, 64, 1).unwrap();
        send.sent(64);
    }
    assert_eq!(receive.capacity(), RECEIVE_BYTES);
    assert_eq!(send.capacity(), SEND_KEEP_BYTES);
}

#[test]
fn a_steady_send_buffer_keeps_its_memory() {
    let mut buffer = SendBuffer::new(1 << 20);
    for round in 0..10_000usize {
        for _ in 0..20 {
            push(&mut buffer, 64, round as u8).unwrap();
        }
        // The socket lags a little behind and never takes whole frames.
        buffer.sent(buffer.unsent_bytes() - 7);
    }
    assert_eq!(buffer.capacity(), SEND_START_BYTES);
}

#[test]
fn a_failed_writer_leaves_no_trace() {
    let mut buffer = SendBuffer::new(1 << 20);
    push(&mut buffer, 50, 9).unwrap();
    assert_eq!(buffer.frame(64, 128, |_| Err("no")), Err(Unwritten::Writer("no")));
    assert_eq!(buffer.unsent(), &wire(50, 9)[..], "padding is zero, and nothing follows");
    buffer.sent(10);
    buffer.abandon();
    assert_eq!((buffer.unsent().len(), buffer.sent_total()), (0, 10));
}
