//! The watchdog: a thread off the shards that sees what a stuck shard cannot say itself.
//!
//! Each shard notes when its turn began, and which message it is at, in a [`Pulse`]: plain stores into a line of its own.
//! The watchdog looks at all of them a few times in 100 ms. It names in the log the message that holds a shard up, while it
//! still does; after a second the shard gets no new work, and other shards of its node take over what they can; when the
//! turn has ended, all is as before. The node is not to blame for one long handler, so nothing else changes.
//!
//! The same thread keeps the deadlines of foreign calls (see [`completion`](crate::client::completion)), so that they end in
//! time even if their shard does not take turns.

use std::sync::Arc;
use std::time::Duration;

use catga_discovery::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use crossbeam_utils::CachePadded;

use crate::client::ClientShared;
use crate::limits::{STALL, STUCK, WATCH_INTERVAL};
use crate::rounds::Rounds;
use crate::time::Time;

/// Between two looks for the sake of a deadline there is at least this.
const LOOK_MIN: Duration = Duration::from_millis(1);

/// What a shard is at.
#[derive(Debug, Default)]
pub(crate) struct Pulse {
    /// When the running turn began, in nanoseconds; 0 while the shard sleeps.
    began: AtomicU64,
    /// The type index of the message that is handled.
    message: AtomicU32,
    /// When the last turn began that the watchdog has found too long.
    long: AtomicU64,
}

// All Relaxed: one writer (the shard; of `long` the watchdog), and neither side minds to be a moment late.
impl Pulse {
    /// A turn begins.
    #[inline]
    pub(crate) fn begin(&self, now: Time) {
        self.began.store(now.as_nanos(), Ordering::Relaxed);
        self.message.store(0, Ordering::Relaxed);
    }

    /// The shard goes to sleep, or has ended.
    pub(crate) fn rest(&self) {
        self.began.store(0, Ordering::Relaxed);
    }

    /// Whether the running turn is too long already, as far as the watchdog has seen: its time is an old one.
    #[inline]
    pub(crate) fn is_long(&self) -> bool {
        self.long.load(Ordering::Relaxed) == self.began.load(Ordering::Relaxed)
    }

    /// A handler of this message is about to run. Returns what ran before, to be put back.
    #[inline]
    pub(crate) fn at(&self, message: u32) -> u32 {
        let before = self.message.load(Ordering::Relaxed);
        self.message.store(message, Ordering::Relaxed);
        before
    }
}

/// The watchdog of an engine. Dropping it ends its thread.
pub(crate) struct Watchdog {
    _rounds: Rounds,
}

impl Watchdog {
    pub(crate) fn start(
        shared: Arc<ClientShared>,
        pulses: Vec<Arc<CachePadded<Pulse>>>,
    ) -> std::io::Result<Self> {
        let calls = shared.calls.clone();
        let mut shards: Vec<Watched> = pulses.iter().map(|_| Watched::default()).collect();
        let rounds = Rounds::start("catga-watch", move || {
            let now = Time::read();
            for (shard, (pulse, watched)) in pulses.iter().zip(&mut shards).enumerate() {
                watched.look(now, shard as u16, pulse, &shared);
            }
            shared.calls.expire(now);
            let next = shared.calls.plan(now + WATCH_INTERVAL);
            next.since(Time::read()).max(LOOK_MIN)
        })?;
        calls.watched_by(rounds.waker().clone());
        Ok(Self { _rounds: rounds })
    }
}

/// What the watchdog knows of one shard.
#[derive(Debug, Default)]
struct Watched {
    /// The turn that was found too long, if it has not ended.
    stalled: Option<Stalled>,
}

#[derive(Debug)]
struct Stalled {
    began: u64,
    message: String,
    stuck: bool,
}

impl Watched {
    fn look(&mut self, now: Time, shard: u16, pulse: &Pulse, shared: &ClientShared) {
        let began = pulse.began.load(Ordering::Relaxed);
        if let Some(stalled) = self.stalled.take_if(|stalled| stalled.began != began) {
            tracing::warn!(shard, handling = stalled.message, "the shard goes on, or has died");
            if stalled.stuck {
                shared.routes.stuck.set(shard, false);
            }
        }
        let lasted = now.since(Time::from_nanos(began));
        if began == 0 || lasted < STALL {
            return;
        }
        pulse.long.store(began, Ordering::Relaxed);
        let stalled = self.stalled.get_or_insert_with(|| {
            let message = shared.routes.name_of(pulse.message.load(Ordering::Relaxed));
            let message = message.unwrap_or("(no message)").to_owned();
            tracing::warn!(
                shard,
                handling = message,
                lasted_ms = lasted.as_millis(),
                "a message holds its shard up"
            );
            Stalled { began, message, stuck: false }
        });
        if lasted >= STUCK && !stalled.stuck {
            stalled.stuck = true;
            shared.routes.stuck.set(shard, true);
            tracing::error!(
                shard,
                handling = stalled.message,
                lasted_ms = lasted.as_millis(),
                "the shard is stuck; it gets no new work until the message's handler has returned"
            );
        }
    }
}
