//! Frames for reuse: each thread keeps a bounded list of small ones.
//!
//! A reply that a caller holds, a request that an async handler keeps, a call from a foreign thread: each is an
//! [`OwnedFrame`] that lives a few microseconds. Taking one from the thread's list and giving it back costs about two
//! nanoseconds and no allocation. A frame may be given back on another thread than it came from; in a request and its
//! reply the two directions balance. Lists are bounded, so what comes back to a full one is freed.

use std::cell::RefCell;

use catga_codec::OwnedFrame;

use crate::limits::{POOLED_FRAMES, POOLED_SMALL_BYTES};

thread_local! {
    static SMALL: RefCell<Vec<OwnedFrame>> = const { RefCell::new(Vec::new()) };
}

/// A small, empty frame: it holds any in-line reply, and grows if more is put in.
#[inline]
pub(crate) fn take() -> OwnedFrame {
    match SMALL.try_with(|small| small.borrow_mut().pop()) {
        Ok(Some(frame)) => frame,
        _ => fresh(),
    }
}

#[cold]
fn fresh() -> OwnedFrame {
    OwnedFrame::with_capacity(POOLED_SMALL_BYTES)
}

/// Gives a frame back. One that grew is freed instead: the list stays small in bytes too.
#[inline]
pub(crate) fn give(frame: OwnedFrame) {
    if frame.capacity() != POOLED_SMALL_BYTES {
        return;
    }
    // A thread that is ending has no list any more: the frame is freed with it.
    let _ = SMALL.try_with(|small| {
        let mut small = small.borrow_mut();
        if small.len() < POOLED_FRAMES {
            small.push(frame);
        }
    });
}
