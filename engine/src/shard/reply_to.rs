//! Where an answer goes.
//!
//! Every request that reaches a shard carries one of these, and it is used exactly once: whoever takes a request over
//! (a sync handler, a task, a forward) takes the `ReplyTo` with it.

use catga_codec::{CallId, OwnedFrame};

use crate::call::table::{Ending, LaneKey};
use crate::client::Promise;

/// Where an answer goes.
#[derive(Debug)]
pub(crate) enum ReplyTo {
    /// To nobody: an event, or a call whose caller is gone.
    Nobody,
    /// Back to the caller that runs the handler inside its own poll.
    Inline,
    /// To a call of this shard.
    Here(CallId),
    /// To a call of another shard.
    Shard { shard: u16, call: CallId },
    /// To a call of a shard on another node.
    Lane { lane: LaneKey, call: CallId },
    /// To a foreign thread.
    Client(Promise),
}

/// The answer to an inline call, on its way out of the handler.
#[derive(Debug)]
pub(crate) struct InlineAnswer {
    pub(crate) ending: Ending,
    pub(crate) frame: OwnedFrame,
}
