//! The watchdog: a thread off the shards that sees what a stuck shard cannot say itself.
//!
//! Each shard notes when its turn began, and which message it is at, in a [`Pulse`]: plain stores into a line of its own.
//! The watchdog looks at all of them a few times in 100 ms. It names in the log the message that holds a shard up, while it
//! still does; after a second the shard gets no new work, and other shards of its node take over what they can; when the
//! turn has ended, all is as before. The node is not to blame for one long handler, so nothing else changes.
//!
//! Time in which the watchdog did not look either is charged to no turn: then the machine stood still, or the process was
//! stopped, and when it goes on there is no handler to name and no shard to keep work from.
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

/// Of the time since the look before, at most this is time in which a shard could have run.
const SEEN_MAX: Duration = WATCH_INTERVAL.saturating_mul(2);

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
        let mut looked = Time::read();
        let rounds = Rounds::start("catga-watch", move || {
            let now = Time::read();
            let seen = now.since(looked).min(SEEN_MAX);
            looked = now;
            for (shard, (pulse, watched)) in pulses.iter().zip(&mut shards).enumerate() {
                watched.look(now, seen, shard as u16, pulse, &shared);
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
    /// When the turn began that was running at the last look; 0 if none was.
    began: u64,
    /// For how long it has been seen running.
    lasted: Duration,
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
    /// For how long the turn that began then has been seen running, and nobody slept: by `seen` more than at the last look.
    fn seen_running(&mut self, began: u64, now: Time, seen: Duration) -> Duration {
        let before = if began == self.began { self.lasted } else { Duration::ZERO };
        self.began = began;
        self.lasted = now.since(Time::from_nanos(began)).min(before + seen);
        self.lasted
    }

    fn look(&mut self, now: Time, seen: Duration, shard: u16, pulse: &Pulse, shared: &ClientShared) {
        let began = pulse.began.load(Ordering::Relaxed);
        if let Some(stalled) = self.stalled.take_if(|stalled| stalled.began != began) {
            tracing::warn!(shard, handling = stalled.message, "the shard goes on, or has died");
            if stalled.stuck {
                shared.routes.stuck.set(shard, false);
            }
        }
        let lasted = self.seen_running(began, now, seen);
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

#[cfg(test)]
mod tests {
    use super::*;

    const BEGAN: Time = Time::from_nanos(1_000_000_000);

    fn look(watched: &mut Watched, began: Time, after: Duration, seen: Duration) -> Duration {
        watched.seen_running(began.as_nanos(), began + after, seen)
    }

    #[test]
    fn a_turn_lasts_for_as_long_as_it_is_seen_running() {
        let mut watched = Watched::default();
        // It began between two looks.
        assert_eq!(look(&mut watched, BEGAN, WATCH_INTERVAL / 2, WATCH_INTERVAL), WATCH_INTERVAL / 2);
        for looks in 1..50 {
            let after = WATCH_INTERVAL / 2 + WATCH_INTERVAL * looks;
            assert_eq!(look(&mut watched, BEGAN, after, WATCH_INTERVAL), after);
        }
        let next = BEGAN + WATCH_INTERVAL * 100;
        assert_eq!(look(&mut watched, next, WATCH_INTERVAL / 5, WATCH_INTERVAL), WATCH_INTERVAL / 5);
    }

    #[test]
    fn time_in_which_nobody_looked_is_charged_to_no_turn() {
        let mut watched = Watched::default();
        let stopped = STUCK * 5;
        assert_eq!(look(&mut watched, BEGAN, stopped, SEEN_MAX), SEEN_MAX);
        assert_eq!(look(&mut watched, BEGAN, stopped * 2, SEEN_MAX), SEEN_MAX * 2);
        assert!(SEEN_MAX * 2 <= STALL, "two stops in one turn name nobody");
    }
}
