//! The encoder's bookkeeping memory: a stack on the stack, which spills to the heap.
//!
//! rkyv keeps the positions of a vector's nested parts here while it archives them, and frees them in reverse
//! order. Flat messages and vectors of plain structs need none of it. `push_alloc` takes the next aligned
//! bytes of the inline block, or asks the heap when they do not suffice; blocks from the heap are remembered,
//! so that an encoder given up half-way frees them when it drops.
//!
//! `unsafe` here: handing out and taking back raw memory as rkyv's `Allocator` asks.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::mem::MaybeUninit;
use std::ptr::NonNull;

use rkyv::ser::Allocator;

use crate::encode::Encoder;
use crate::error::EncodeError;
use crate::limits::{FRAME_ALIGN_BYTES, SCRATCH_BYTES};

/// The inline block; aligned to 16, as much as any resolver needs.
#[derive(Debug)]
#[repr(C, align(16))]
pub(crate) struct Inline([u8; SCRATCH_BYTES]);

const _: () = assert!(align_of::<Inline>() == FRAME_ALIGN_BYTES);

/// Memory handed out in stack order.
#[derive(Debug)]
pub(crate) struct Scratch<'a> {
    inline: &'a mut MaybeUninit<Inline>,
    /// Bytes of the inline block in use; in `0 ..= SCRATCH_BYTES`.
    used: usize,
    /// Blocks from the heap, oldest first.
    spilled: Vec<Spill>,
}

#[derive(Debug)]
struct Spill {
    block: NonNull<u8>,
    layout: Layout,
}

impl<'a> Scratch<'a> {
    #[inline]
    pub(crate) const fn new(inline: &'a mut MaybeUninit<Inline>) -> Self {
        Self { inline, used: 0, spilled: Vec::new() }
    }

    #[inline]
    fn push(&mut self, layout: Layout) -> NonNull<[u8]> {
        let start = self.used.next_multiple_of(layout.align());
        // Cannot overflow: a layout is at most isize::MAX bytes.
        let end = start + layout.size();
        if end > SCRATCH_BYTES || layout.align() > FRAME_ALIGN_BYTES {
            return self.spill(layout);
        }
        self.used = end;
        // SAFETY: `start <= end <= SCRATCH_BYTES`, so the pointer stays inside the inline block
        // (`nested_vectors_stay_inline_and_spill_alike` writes up to both ends).
        let block = unsafe { NonNull::from(&mut *self.inline).cast::<u8>().add(start) };
        NonNull::slice_from_raw_parts(block, layout.size())
    }

    #[cold]
    fn spill(&mut self, layout: Layout) -> NonNull<[u8]> {
        // SAFETY: rkyv never asks for zero bytes (the contract of `push_alloc`).
        let Some(block) = NonNull::new(unsafe { alloc(layout) }) else { handle_alloc_error(layout) };
        self.spilled.push(Spill { block, layout });
        NonNull::slice_from_raw_parts(block, layout.size())
    }

    #[inline]
    fn pop(&mut self, block: NonNull<u8>) {
        if self.spilled.last().is_some_and(|spill| spill.block == block) {
            self.spilled.pop();
            return;
        }
        // Not from the heap, so from the inline block: everything from here on is free again.
        self.used = block.addr().get() - NonNull::from(&mut *self.inline).addr().get();
        debug_assert!(self.used <= SCRATCH_BYTES);
    }
}

impl Drop for Spill {
    fn drop(&mut self) {
        // SAFETY: `block` came from `alloc` with this very layout, and each `Spill` owns its block alone
        // (`an_encoder_given_up_half_way_frees_what_it_spilled`, run under the address sanitizer, breaks
        // otherwise).
        unsafe { dealloc(self.block.as_ptr(), self.layout) };
    }
}

// SAFETY: `push` hands out either bytes of the inline block above all bytes in use, or a fresh block of the
// heap: never memory that is still handed out, and always of the layout asked for. rkyv pops in reverse
// order, so lowering `used` to a popped block frees only what was pushed after it
// (`nested_vectors_stay_inline_and_spill_alike` reads wrong values otherwise).
unsafe impl Allocator for Encoder<'_> {
    #[inline]
    unsafe fn push_alloc(&mut self, layout: Layout) -> Result<NonNull<[u8]>, EncodeError> {
        Ok(self.scratch.push(layout))
    }

    #[inline]
    unsafe fn pop_alloc(&mut self, block: NonNull<u8>, _layout: Layout) -> Result<(), EncodeError> {
        self.scratch.pop(block);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::limits::SCRATCH_BYTES;
    use crate::{EncodeError, Header, Kind, Message, OwnedFrame, encode_local};

    #[catga::message]
    #[derive(Debug, PartialEq)]
    struct Table {
        cells: Vec<Vec<Vec<String>>>,
    }

    fn table(rows: usize, columns: usize) -> Table {
        let cell = |i: usize| vec![format!("a cell with number {i}"), String::new()];
        Table {
            cells: (0..rows)
                .map(|row| (0..columns).map(|column| cell(row * columns + column)).collect())
                .collect(),
        }
    }

    #[test]
    fn nested_vectors_stay_inline_and_spill_alike() {
        // A row takes 4 bytes of scratch for each of its vectors, so these go from none to some times the
        // inline block.
        for rows in [0, 1, 2, 7, 31, SCRATCH_BYTES / 4, SCRATCH_BYTES / 4 + 1, SCRATCH_BYTES] {
            for columns in [0, 1, 3, 40] {
                let table = table(rows, columns);
                let mut frame = OwnedFrame::new();
                frame.encode(Header::new(Kind::Event), &table).unwrap();
                assert_eq!(Table::deserialize(frame.access::<Table>().unwrap()), table, "{rows} x {columns}");
            }
        }
    }

    #[repr(align(16))]
    struct Memory([u8; 40_000]);

    #[test]
    fn an_encoder_given_up_half_way_frees_what_it_spilled() {
        let table = table(SCRATCH_BYTES, 2);
        let mut memory = Memory([0; 40_000]);
        for room in (0..memory.0.len()).step_by(997) {
            let result = encode_local(Header::new(Kind::Event), &table, &mut memory.0[..room]);
            assert_eq!(result, Err(EncodeError::Full), "{room} bytes");
        }
    }
}
