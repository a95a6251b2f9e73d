//! Where an answer goes.
//!
//! Every request that reaches a shard carries one of these, and it is used exactly once: whoever takes a request over
//! (a sync handler, a task, a forward) takes the `ReplyTo` with it. It is handed on by reference and taken only by who
//! keeps it: to copy it right after it was written costs more than to dispatch the frame.

use catga_codec::CallId;

use crate::call::table::LaneKey;
use crate::client::completion::Promise;
use crate::shard::core::fanout::FanoutId;
use crate::shard::window::WindowId;

/// Where an answer goes.
#[derive(Debug, Default)]
pub(crate) enum ReplyTo {
    /// To nobody: an event, or a call whose caller is gone.
    #[default]
    Nobody,
    /// To a call of this shard.
    Here(CallId),
    /// To a call of another shard.
    Shard { shard: u16, call: CallId },
    /// To a call of a shard on another node.
    Lane { lane: LaneKey, call: CallId },
    /// To a foreign thread.
    Client(Promise),
    /// To a broadcast of this shard, of which it is one part; it counts for that line.
    Part { fanout: FanoutId, line: u16 },
    /// To whoever last asked for this entry of the window, over a lane.
    Window(WindowId),
}

impl ReplyTo {
    /// Whether it is a foreign thread that does not wait any more.
    pub(crate) fn is_given_up(&self) -> bool {
        matches!(self, Self::Client(promise) if promise.is_given_up())
    }
}
