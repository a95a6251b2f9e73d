//! Every bound of the engine, in one place, units last.
//!
//! Nothing in the engine grows past a number on this page. What a full bound does is written beside it; relations
//! between bounds are asserted when the crate is compiled.

use std::time::Duration;

use catga_codec::limits::{FRAME_ALIGN_BYTES, FRAME_INLINE_BYTES, HEADER_BYTES, REPLY_INLINE_BYTES};

/// Shards of one engine. More is a start error.
pub const SHARDS_MAX: usize = 256;

/// Calls that one shard may have in flight, unless configured. One more ends at once as `NotSent(TooManyCalls)`.
/// A slot costs about 130 bytes, and 320 more from the first reply that it held.
pub const CALLS_MAX: u32 = 4096;

/// Bytes of the ring that carries requests from one shard to another. A full ring makes a call wait within its deadline.
///
/// Rings are cycled through from end to end, so all of them should fit the cores' second-level caches together.
pub const REQUEST_RING_BYTES: usize = 128 * 1024;

/// Bytes of the ring that carries the answers back. It bounds the calls in flight to one shard: each takes a credit for
/// an answer by handle, which is a bare header, out of two fifths of it, so an answer always finds room; while there is more,
/// it goes in line.
pub const REPLY_RING_BYTES: usize = 128 * 1024;

/// The largest answer that travels in line, header included; a larger one goes by handle.
pub const REPLY_FRAME_BYTES: usize = HEADER_BYTES + REPLY_INLINE_BYTES;

/// Room for all rings into one shard; with many shards each ring gets its part of this. Rings of the full size for eight
/// shards, and what an idle engine may hold for each of many.
pub const RINGS_BYTES_PER_SHARD: usize = 2816 * 1024;

/// The smallest ring: a few of the largest in-line frames.
pub const RING_BYTES_MIN: usize = 16 * 1024;

/// Frames taken from one ring in one turn, so that no neighbour can starve the rest of the turn.
pub const RING_BATCH_FRAMES: usize = 512;

/// Calls from foreign threads that may wait for one shard. A full inbox makes a call wait within its deadline; as many may wait.
pub const INBOX_CALLS: usize = 4096;

/// Calls from foreign threads in flight, of one engine; one more ends at once as `NotSent(TooManyCalls)`. Each that was ever
/// in flight at once costs about 500 bytes, which are kept for the next.
pub const CLIENT_CALLS_MAX: usize = 16 * 1024;

/// Messages that a shard's own handlers may have queued for handlers of the same shard.
/// A full queue refuses a request as overloaded and drops an event with a count.
pub const LOCAL_QUEUE_MESSAGES: usize = 4096;

/// Events that one handler may publish before it returns. One more is dropped with a count.
pub const OUTBOX_EVENTS: usize = 1024;

/// Async handlers that may run at once for one route of one shard. One more is refused as overloaded.
pub const TASKS_PER_ROUTE: usize = 1024;

/// Bytes of a frame that threads keep for reuse: room for any answer in line, header included.
pub const POOLED_SMALL_BYTES: usize = 320;

/// Frames that each thread keeps for reuse, of each size.
pub const POOLED_FRAMES: usize = 4096;

/// Calls that may fail at once in one turn of a shard. After so many, and so many more, one tells its caller in the next
/// turn only, so that a handler that tries again for ever gives its shard back in between.
pub const FAILURES_AT_ONCE: u32 = 256;

/// The time a call may take unless it says otherwise.
pub const DEADLINE: Duration = Duration::from_secs(5);

/// Calls are looked over for expiry at most this often, so a deadline is kept to within this and one turn.
pub const EXPIRY_SWEEP: Duration = Duration::from_micros(500);

/// Lanes that one shard may hold, in both directions together. One more connection is closed at once, and counted.
pub const LANES_MAX: usize = 1024;

/// Connections to one shard that have not proven yet who they are. One more closes the oldest of them, so that connections
/// that say nothing keep nobody out.
pub const GREETINGS_MAX: usize = 256;

/// Connections that one shard holds at once: its lanes, those that have not proven yet who they are, and those that have ended and
/// are kept for half a second so that the peer reads why. For one more, the oldest of the last kind is closed at once, and counted.
pub const CONNECTIONS_MAX: usize = LANES_MAX + GREETINGS_MAX;

/// Lanes from one shard to one other node. A request for another shard of that node takes one of them, and one more ring hop.
/// Only an idempotent call that is sent again to the shard that has it brings back the lane that it had, whatever its number.
pub const LANES_PER_PEER: u16 = 8;

/// Lanes between the same two shards of two nodes: one for each side that dialled, and room for some that are ending. One more
/// is closed.
pub const LANES_PER_SHARD_PAIR: usize = 4;

/// Events that wait in one shard for a lane to one node to be opened, and events that wait there for the first whole view. One
/// more is dropped with a count.
pub const EVENTS_WAITING: usize = 1024;

/// A foreign thread waits so much longer than its broadcast's deadline for the lines, of which those that have come to nothing
/// end at the deadline.
pub const REPORT_GRACE: Duration = Duration::from_millis(4);

/// A call that was refused because its key has another owner looks again with the next view, or after this.
pub const RESOLVE_AGAIN: Duration = Duration::from_millis(50);

/// After the last node that handles a message was lost, calls wait for it so long before they end as out of reach: a lane that
/// was reset is up again in much less.
pub const REACH_AGAIN: Duration = Duration::from_millis(100);

/// A node that stops goes on serving its peers for so long after it has told them that it leaves.
pub const LEAVE_GRACE: Duration = Duration::from_millis(50);

/// Unanswered calls that a lane accepts from its peer, unless configured otherwise.
pub const LANE_CALLS_MAX: u32 = 8192;

/// The longest frame that a lane accepts from its peer.
pub const LANE_FRAME_BYTES_MAX: u32 = 1024 * 1024;

/// Bytes of idempotent requests' answers, and of what is noted with each, that a shard keeps for callers that may send the
/// request again. The oldest make room for new ones; an answer larger than a quarter of it is not kept.
pub const WINDOW_BYTES: usize = 4 * 1024 * 1024;

/// The answer to an idempotent request is kept for so long at most.
pub const WINDOW_TIME: Duration = Duration::from_secs(30);

/// The first pause before a lost lane is dialled again; it doubles, with jitter, up to [`REDIAL_MAX`], until a lane opens that the
/// peer keeps.
pub const REDIAL_MIN: Duration = Duration::from_millis(20);

/// The longest pause before a lost lane is dialled again.
pub const REDIAL_MAX: Duration = Duration::from_secs(2);

/// Room that was granted to a call that waited for it is kept so long if the call does not come; then others get it.
pub const GRANT_PATIENCE: Duration = Duration::from_millis(1);

/// After so long an attempt to connect counts as one that may fail: calls that can go elsewhere do.
pub const DIAL_PATIENCE: Duration = Duration::from_millis(50);

/// How long one attempt to connect may take.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// A turn that takes longer is a stall: it is counted, and the watchdog logs which message it is about.
pub const STALL: Duration = Duration::from_millis(100);

/// A shard whose turn begins so much later than it should was paused: what its sockets hold is as old as the pause, at worst.
pub const PAUSE: Duration = Duration::from_millis(100);

/// After a turn as long as this its shard gets no new work, until it has ended.
pub const STUCK: Duration = Duration::from_secs(1);

/// The watchdog looks at the shards this often.
pub const WATCH_INTERVAL: Duration = Duration::from_millis(25);

/// How long `run` drains after a signal, unless configured: then what is left is refused.
pub const DRAIN: Duration = Duration::from_secs(5);

/// How long a stop waits, after draining is over, for handlers that have not returned. Their shards are left behind.
pub const STOP_GRACE: Duration = Duration::from_secs(2);

/// How long a dropped engine drains before what is left is refused.
pub const DROP_DRAIN: Duration = Duration::from_millis(500);

/// Nodes that a node knows at once. One more is ignored, and counted.
pub use catga_discovery::members::NODES_MAX;

/// A node with which no shard has had a lane for so long is forgotten, unless it is in the list or behind the name.
pub use catga_discovery::members::GONE_AFTER;

/// The pause between two lookups of the name of the cluster's nodes, while one of them is not up, nobody else is known, or the
/// last had no answer.
pub const LOOKUP_SOON: Duration = Duration::from_secs(5);

/// The pause between two lookups of the name of the cluster's nodes, while all of them are up.
pub const LOOKUP_REST: Duration = Duration::from_secs(30);

/// Lines that a shard logs in a second about connections that ended before they were known to be a node's. The rest is counted.
pub const STRANGER_LINES_MAX: u32 = 100;

const _: () = assert!(LOOKUP_SOON.as_nanos() < LOOKUP_REST.as_nanos());
const _: () =
    assert!(WATCH_INTERVAL.as_nanos() * 2 < STALL.as_nanos() && STALL.as_nanos() < STUCK.as_nanos());
const _: () = assert!(POOLED_SMALL_BYTES >= REPLY_FRAME_BYTES);
const _: () = assert!(POOLED_SMALL_BYTES.is_multiple_of(FRAME_ALIGN_BYTES));
const _: () = assert!(RING_BYTES_MIN >= 2 * FRAME_INLINE_BYTES && RING_BYTES_MIN.is_power_of_two());
const _: () = assert!(REQUEST_RING_BYTES.is_power_of_two() && REPLY_RING_BYTES.is_power_of_two());
