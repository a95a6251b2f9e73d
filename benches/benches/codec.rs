//! The codec: archiving a message behind a header, reading it back in place, checking foreign bytes.
//!
//! Every request pays for one archive, one access, and the same for its reply; bytes of another process are parsed and
//! checked besides. Figures are nanoseconds for one message.
#![allow(clippy::expect_used, reason = "a benchmark whose set-up fails has nothing to say")]

use std::hint::black_box;

use catga_benches::{Flat, Order, Small};
use catga_codec::limits::FRAME_INLINE_BYTES;
use catga_codec::rkyv::util::AlignedVec;
use catga_codec::{ForeignFrame, Header, Kind, Message, OwnedFrame, Parsed, encode_frame, encode_local};
use criterion::{Criterion, criterion_group, criterion_main};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const SMALL: Small = Small { id: 7, value: 41 };
const FLAT: Flat = Flat { words: [1, 2, 3, 4, 5, 6, 7] };

/// Memory as a ring lends it: initialised, starting at a multiple of 16.
fn memory() -> AlignedVec<16> {
    let mut memory = AlignedVec::new();
    memory.resize(FRAME_INLINE_BYTES, 0);
    memory
}

fn archive<M: Message>(criterion: &mut Criterion, name: &str, message: &M) {
    let mut into = memory();
    let header = Header::new(Kind::Request);
    criterion.bench_function(&format!("codec/archive/{name}"), |bencher| {
        bencher.iter(|| encode_local(black_box(header), black_box(message), black_box(&mut into[..])));
    });
}

/// Bytes of this process: the context word proves the type, nothing is checked.
fn read_local<M: Message>(criterion: &mut Criterion, name: &str, message: &M, read: fn(&M::Archived) -> u64) {
    let mut frame = OwnedFrame::with_capacity(FRAME_INLINE_BYTES);
    frame.encode(Header::new(Kind::Request), message).expect("it fits");
    criterion.bench_function(&format!("codec/read-local/{name}"), |bencher| {
        bencher.iter(|| black_box(&frame).access::<M>().map(read));
    });
}

/// Bytes of another process, as a lane reads them: parse the header, check the archive, then read.
fn read_foreign<M: Message>(
    criterion: &mut Criterion,
    name: &str,
    message: &M,
    read: fn(&M::Archived) -> u64,
) {
    let mut bytes = memory();
    let length = encode_frame(Header::new(Kind::Request), message, &mut bytes).expect("it fits");
    criterion.bench_function(&format!("codec/read-foreign/{name}"), |bencher| {
        bencher.iter(|| {
            match ForeignFrame::parse(black_box(&bytes[..length.next_multiple_of(16)]), FRAME_INLINE_BYTES) {
                Ok(Parsed::Frame(frame, _)) => frame.access::<M>().map(read).ok(),
                _ => None,
            }
        });
    });
}

fn codec(criterion: &mut Criterion) {
    let order = Order::of_four_lines();
    archive(criterion, "16-bytes", &SMALL);
    archive(criterion, "56-bytes", &FLAT);
    archive(criterion, "order-of-4", &order);
    read_local(criterion, "16-bytes", &SMALL, |small| small.value.to_native());
    read_local(criterion, "order-of-4", &order, |order| {
        order.lines.iter().map(|line| line.cents.to_native()).sum()
    });
    read_foreign(criterion, "16-bytes", &SMALL, |small| small.value.to_native());
    read_foreign(criterion, "56-bytes", &FLAT, |flat| flat.words[6].to_native());
    read_foreign(criterion, "order-of-4", &order, |order| {
        order.lines.iter().map(|line| line.cents.to_native()).sum()
    });
}

criterion_group!(suite, codec);
criterion_main!(suite);
