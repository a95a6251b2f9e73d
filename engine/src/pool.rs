//! Frames for reuse: each thread keeps a bounded list of small ones.
//!
//! A reply that a caller holds, a request that an async handler keeps, a call from a foreign thread: each is an
//! [`OwnedFrame`] that lives a few microseconds. Taking one from the thread's list and giving it back costs about two
//! nanoseconds and no allocation. A frame may be given back on another thread than it came from; in a request and its
//! reply the two directions balance. Lists are bounded, so what comes back to a full one is freed.

use std::cell::{Cell, RefCell};

use catga_codec::OwnedFrame;

use crate::limits::{POOLED_FRAMES, POOLED_SMALL_BYTES};

/// The frames of one thread.
struct Pool {
    /// The one that was given back last: a call and its reply take turns with it.
    last: Cell<Option<OwnedFrame>>,
    rest: RefCell<Vec<OwnedFrame>>,
}

thread_local! {
    static SMALL: Pool = const { Pool { last: Cell::new(None), rest: RefCell::new(Vec::new()) } };
}

/// A small, empty frame: it holds any in-line reply, and grows if more is put in.
#[inline]
pub(crate) fn take() -> OwnedFrame {
    match SMALL.try_with(|small| small.last.take()) {
        Ok(Some(frame)) => frame,
        _ => take_rest(),
    }
}

fn take_rest() -> OwnedFrame {
    let pooled = SMALL.try_with(|small| small.rest.borrow_mut().pop());
    pooled.ok().flatten().unwrap_or_else(|| OwnedFrame::with_capacity(POOLED_SMALL_BYTES))
}

/// Whether a frame is worth keeping: one that grew is freed instead, so that what is kept stays small in bytes too.
#[inline]
pub(crate) fn keeps(frame: &OwnedFrame) -> bool {
    frame.capacity() == POOLED_SMALL_BYTES
}

/// Gives a frame back, if it is one to [keep](keeps).
#[inline]
pub(crate) fn give(frame: OwnedFrame) {
    if !keeps(&frame) {
        return;
    }
    // A thread that is ending has no list any more: the frame is freed with it.
    let _ = SMALL.try_with(|small| {
        if let Some(before) = small.last.replace(Some(frame)) {
            give_rest(small, before);
        }
    });
}

fn give_rest(small: &Pool, frame: OwnedFrame) {
    let mut rest = small.rest.borrow_mut();
    if rest.len() < POOLED_FRAMES {
        rest.push(frame);
    }
}
