//! What a lane is made of, and how many bytes may wait on it.
//!
//! ```text
//!   0 ....... asks ............... congested ............. large ............. answers .............. held
//!   requests and events      the peer's requests     an answer that is   answers end the lane   memory never
//!   wait beyond it           are refused beyond it   not small fails     beyond it              exceeds this
//! ```
//!
//! Answers never wait, so what is let in must find room: the peer may have asked for more than it can read in a moment. Beyond
//! `large` there is room for one small answer to each call that this side has granted: for who was promised one, it is said
//! that the answer itself was too much.

use catga_codec::limits::{FRAME_INLINE_BYTES, FRAME_MAX_BYTES, HEADER_BYTES, REPLY_INLINE_BYTES};
use catga_codec::padded;
use catga_discovery::NodeId;

use super::greeting::{CALLS_MAX, GREETING_BYTES_MAX, Greeting};
use super::key::ClusterKey;
use super::proof::PROOF_BYTES;

/// The longest frame before a lane is open: a Welcome.
pub(crate) const OPENING_FRAME_BYTES_MAX: usize = HEADER_BYTES + GREETING_BYTES_MAX + PROOF_BYTES;

/// Unsent bytes beyond which requests and events wait, unless configured otherwise.
pub(crate) const SEND_BYTES_MAX: usize = 1024 * 1024;

/// So many times the bytes behind which requests wait, the peer's requests are refused: 32 MiB, what a burst of ordinary
/// answers comes to before the peer had the time to read.
const CONGESTED_TIMES: usize = 32;
/// And so many times, only small answers are sent: 64 MiB. More can come of requests that were let in before anything waited.
const LARGE_TIMES: usize = 64;

/// Room for one answer in line.
pub(crate) const ANSWER_BYTES: usize = padded(HEADER_BYTES + REPLY_INLINE_BYTES);
/// Room for the lane's own frames: at most a greeting and its proof, a proof in a frame of its own, a heartbeat, a notice
/// and a Close wait at a time.
const OWN_BYTES: usize =
    padded(OPENING_FRAME_BYTES_MAX) + padded(HEADER_BYTES + PROOF_BYTES) + 4 * HEADER_BYTES;

/// What a lane is made of.
#[derive(Clone, Debug)]
pub(crate) struct LaneConfig {
    /// What this side says of itself. Its nonce has not been used before; whether it is `keyed`, the lane fills in.
    pub(crate) greeting: Greeting,
    /// What the peer has to prove that it has, too.
    pub(crate) key: ClusterKey,
    /// The only peer to agree with, if the dialer knows whom it dials.
    pub(crate) expected_peer: Option<NodeId>,
    /// Unsent bytes beyond which requests and events wait; [`SEND_BYTES_MAX`] by custom, 1 GiB at most.
    pub(crate) send_bytes_max: usize,
}

/// How many bytes may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// Requests and events are queued while less than this waits.
    pub(crate) asks: usize,
    /// The peer's requests are served while less than this waits.
    pub(crate) congested: usize,
    /// Answers that are not small are queued while less than this waits.
    pub(crate) large: usize,
    /// Answers are queued while less than this waits.
    pub(crate) answers: usize,
    /// Memory for frames that wait, and for one of which a part has left.
    pub(crate) held: usize,
}

impl Bounds {
    /// The bounds of a lane that is made of this.
    #[must_use]
    pub(crate) fn of(config: &LaneConfig) -> Self {
        let frame =
            padded((config.greeting.frame_bytes_max as usize).clamp(FRAME_INLINE_BYTES, FRAME_MAX_BYTES));
        let asks = config.send_bytes_max.min(1 << 30);
        let (congested, large) = (CONGESTED_TIMES * asks, LARGE_TIMES * asks);
        let answers = large + config.greeting.calls_max.min(CALLS_MAX) as usize * ANSWER_BYTES + frame;
        // The frame that passes the bound, and one of which a part has left.
        Self { asks, congested, large, answers, held: answers + 2 * frame + OWN_BYTES }
    }
}
