//! Counters: what happened on each shard, read from outside at no cost to the shard.
//!
//! Each counter has one writer, its shard, so counting is a plain load and store (no locked instruction). Readers see each
//! counter as it was a moment ago; two counters need not be of the same moment. The labels are an interface: they do not
//! change their meaning.

use std::sync::Arc;

use catga_discovery::sync::atomic::{AtomicU64, Ordering};
use crossbeam_utils::CachePadded;

/// A count with one writer.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    /// Counts. Only the shard that owns the counter may.
    #[inline]
    pub(crate) fn add(&self, count: u64) {
        // Relaxed, and no read-modify-write: there is one writer; it partners with the Relaxed load in `read`.
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
    }

    pub(crate) fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed); // as in `add`
    }

    /// Keeps the greatest value.
    #[inline]
    pub(crate) fn raise(&self, value: u64) {
        if value > self.read() {
            self.set(value);
        }
    }

    #[inline]
    fn read(&self) -> u64 {
        self.0.load(Ordering::Relaxed) // partners with `add` and `set`
    }
}

macro_rules! counters {
    ($($(#[$meta:meta])* $name:ident,)*) => {
        /// The counters of one shard, as the shard writes them.
        #[derive(Debug, Default)]
        pub(crate) struct ShardCounters { $(pub(crate) $name: Counter,)* }

        /// The counters of one shard at some moment; see the fields for what each counts.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct ShardStats { $($(#[$meta])* pub $name: u64,)* }

        impl ShardCounters {
            pub(crate) fn read(&self) -> ShardStats {
                ShardStats { $($name: self.$name.read(),)* }
            }
        }

        impl ShardStats {
            /// Every label with its count.
            #[must_use]
            pub fn labelled(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name),)*]
            }
        }
    };
}

counters! {
    /// Turns of the shard's loop.
    turns,
    /// Times the shard went to sleep.
    parks,
    /// Times this shard had to wake another one.
    doorbells,
    /// Requests given to a handler of this shard, from elsewhere or queued.
    handled,
    /// Calls to a handler of the same shard, run inside the caller.
    calls_here,
    /// Times a call had to wait for room.
    waits,
    /// Calls that ended at their deadline.
    calls_expired,
    /// Answers that came after their call had ended, or to a call that was never made.
    answers_late,
    /// Calls that were given up by their caller.
    cancels,
    /// Of these, how often there was no room to tell the other side.
    cancels_untold,
    /// Requests turned away before a handler ran.
    refused,
    /// Of these, how many came too late to be worth looking at.
    expired,
    /// Handlers, hooks and ticks that panicked, and handlers whose answer did not fit.
    failed,
    /// Async handlers that were ended before they came to an answer.
    cut,
    /// Events handed to another shard, queued for this one, or sent to another node.
    events_sent,
    /// Events given to a listener.
    events_handled,
    /// Events that were dropped: a full bound, a node that could not be reached, a poisoned listener, or a handler that panicked
    /// after publishing.
    events_dropped,
    /// Lanes that were opened, in both directions.
    lanes_opened,
    /// Lanes that have ended, for whatever reason.
    lanes_ended,
    /// Lanes that are open now.
    lanes_open,
    /// Frames taken from lanes.
    lane_frames,
    /// Reads from sockets.
    lane_reads,
    /// Writes to sockets.
    lane_writes,
    /// Connections that were turned away or broke a rule of the protocol.
    lanes_refused,
    /// Calls in flight now.
    calls_live,
    /// Async handlers running now.
    tasks_running,
    /// Calls of this shard's handlers, and calls passed on for others, that ended with a reply; without those of
    /// `calls_here`.
    calls_replied,
    /// Of these calls, those that the handler rejected.
    calls_rejected,
    /// Those that never left.
    calls_not_sent,
    /// Those that were turned away where they arrived.
    calls_refused,
    /// Those that left and had no answer.
    calls_unknown,
    /// Those whose handler failed.
    calls_failed,
    /// Turns of 100 ms and more.
    stalls,
    /// The longest turn, in microseconds; as long as the shard does not sleep in between.
    turn_us_max,
    /// The most bytes that waited in one ring into this shard.
    ring_bytes_max,
    /// The most calls and events of foreign threads that waited for this shard.
    inbox_calls_max,
    /// Calls of `try_send` that ended at once because there was no room on the way.
    sends_full,
    /// Broadcasts that this shard made, for its own handlers, foreign threads or other nodes.
    broadcasts,
    /// Of these, how many were not handled by every listener, as far as is known.
    broadcasts_failed,
    /// Calls that a stop ended before their answer came.
    calls_stopped,
    /// Async handlers that a stop ended before they came to an answer; they are in `cut` too.
    tasks_stopped,
    /// Stops whose time was over while this shard still had something to do.
    drains_cut,
    /// Service instances that are out of use since a panic.
    poisoned,
    /// Times a service instance was made anew after a panic.
    rebuilt,
    /// Connections that ended because one side did not prove that it has the cluster's key; they are in `lanes_refused` too.
    lanes_unproven,
    /// Times a call went on after an attempt that came to nothing: to another node, or to look for the right one again.
    calls_moved,
    /// Calls that would have gone on, but had done so often enough, or there was no budget for it.
    moves_denied,
    /// Connections that could not be taken: there was no descriptor or no memory, or they broke first.
    accepts_failed,
    /// Idempotent requests that came again, over another lane, while the first was still running: they get its answer.
    repeats_joined,
    /// Idempotent requests that came again after the first had ended: answered as that was, without running again.
    repeats_answered,
    /// Idempotent requests that were forgotten for want of room, before their time or from the start, or because the answer
    /// was too large to keep: sent again, they run again.
    window_evicted,
    /// Times the shard was not there for 100 ms and more longer than it meant to: held up by a handler, or by the machine.
    pauses,
    /// Events that were not sent to a node because it has another layout of them; once for each such node.
    events_other_layout,
    /// Connections that had ended, and were closed for want of room before their peer had the time to read why.
    farewells_cut,
}

/// The counters of the thread that knows who is in the cluster. All 0 without one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DiscoveryStats {
    /// Views that were made: one at the start, and one for each change.
    pub views: u64,
    /// Times that the name of the cluster's nodes was asked for.
    pub lookups: u64,
    /// Of these, how many had no answer. The last one stands.
    pub lookups_failed: u64,
    /// Targets that cannot have a lane, such as one with another key; once for each and for each reason.
    pub targets_refused: u64,
    /// Nodes that live under the id of another one, each once; this one is counted too, if peers turn it away for a later one.
    pub ids_shared: u64,
    /// Nodes that were not taken because there are too many, each once.
    pub nodes_ignored: u64,
}

impl DiscoveryStats {
    /// Every label with its count.
    #[must_use]
    pub fn labelled(&self) -> Vec<(&'static str, u64)> {
        let Self { views, lookups, lookups_failed, targets_refused, ids_shared, nodes_ignored } = *self;
        vec![
            ("views", views),
            ("lookups", lookups),
            ("lookups_failed", lookups_failed),
            ("targets_refused", targets_refused),
            ("ids_shared", ids_shared),
            ("nodes_ignored", nodes_ignored),
        ]
    }
}

/// The counters of an engine, one set for each shard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// In the order of the shards.
    pub shards: Vec<ShardStats>,
    /// Of the thread that knows who is in the cluster.
    pub discovery: DiscoveryStats,
}

impl Stats {
    pub(crate) fn of(counters: &[Arc<CachePadded<ShardCounters>>], discovery: DiscoveryStats) -> Self {
        Self { shards: counters.iter().map(|shard| shard.read()).collect(), discovery }
    }

    /// The sum of one counter over all shards.
    #[must_use]
    pub fn sum(&self, counter: impl Fn(&ShardStats) -> u64) -> u64 {
        self.shards.iter().map(counter).sum()
    }
}
