//! What a lane answers to its driver: the steps of reading, the outcomes of sending, and the fate of what was sent.

use catga_codec::{EncodeError, ForeignFrame, Kind};

use super::close::Closed;

/// One step of reading; see [`Lane::next_frame`](super::protocol::Lane::next_frame).
#[derive(Debug)]
pub(crate) enum Step<'b> {
    /// No whole frame is there; the one at the front needs this many bytes. Its length has been checked.
    Incomplete {
        /// From the start of the bytes given.
        needed: usize,
    },
    /// A frame for the engine: a request, an event, an answer or a cancel.
    Frame {
        /// Borrows the bytes given, and nothing of the lane.
        frame: ForeignFrame<'b>,
        /// Bytes to step over.
        consumed: usize,
    },
    /// The lane's own business.
    Handled {
        /// Bytes to step over.
        consumed: usize,
    },
    /// The greeting is agreed on, and the lane open: see [`Lane::agreement`](super::protocol::Lane::agreement).
    Opened {
        /// Bytes to step over.
        consumed: usize,
    },
    /// The lane has ended.
    Closed {
        /// Bytes to step over: all that were given.
        consumed: usize,
        /// Why.
        #[cfg_attr(not(test), allow(dead_code, reason = "a driver may as well ask the lane"))]
        closed: Closed,
    },
}

/// A frame has been queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Queued {
    /// Where in the stream the frame starts; for [`Lane::fate`](super::protocol::Lane::fate).
    pub(crate) offset: u64,
}

/// Why a frame was not queued. In each case nothing was, and no credit was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum SendError {
    /// The greeting is not done.
    #[error("the lane is not open yet; wait for the greeting or take another lane")]
    NotOpen,
    /// The lane has ended, perhaps by this very frame.
    #[error("the lane has ended: {0}")]
    Closed(Closed),
    /// Too many bytes wait for the socket.
    #[error("the lane has as many unsent bytes as it may hold; wait, or take another node")]
    Full,
    /// The peer has granted no more unanswered calls.
    #[error("the peer has as many unanswered calls as it accepts; wait, or take another node")]
    NoCredit,
    /// There is no request that this could be the answer to.
    #[error("an answer without a request; each request is answered exactly once")]
    NotOwed,
    /// The lane sends frames of this kind itself.
    #[error("frames of kind {0:?} are the lane's own")]
    OwnKind(Kind),
    /// The frame is longer than the two sides agreed on; or it is an answer, and so much is unsent that only small ones pass.
    #[error(
        "the frame is longer than the {bytes_max} bytes that pass now; split it, or see whether the peer reads its answers"
    )]
    TooLong {
        /// The longest that would have passed.
        bytes_max: usize,
    },
    /// The message cannot be archived.
    #[error(transparent)]
    Encode(EncodeError),
}

/// What became of a frame that was queued, and not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// No byte of it has left. Once the lane has ended: it was not and will not be executed.
    NotSent,
    /// It has left, and the peer said that it ended the lane before looking at it: not executed.
    NotTaken,
    /// It has left: it may or may not have been executed.
    Unknown,
}
