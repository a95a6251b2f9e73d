//! The loop around the turn: turn, then spin or wait.
//!
//! One loop for all runtimes. A shard that spins never waits. A shard that parks spins a little first, for as long as
//! spinning has lately paid off, then says that it sleeps, looks once more, and waits for its doorbell, its sockets or its
//! next timer.

use std::time::Duration;

use crate::runtime::Wait;
use crate::shard::Shard;
use crate::time::Time;

/// What a shard does when there is nothing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Idle {
    /// Sleeps until it is woken, after a short spin. The default.
    #[default]
    Park,
    /// Never sleeps: the lowest latency, at the price of a whole core for each shard.
    Spin,
}

/// The longest spin before a park: about what parking and waking cost.
const SPIN_MAX: Duration = Duration::from_micros(50);
/// The shortest: even a shard that mostly sleeps looks around once more.
const SPIN_MIN: Duration = Duration::from_micros(2);

/// How long to spin before parking: longer while spins end with work, shorter while they end with a park.
#[derive(Debug)]
struct AdaptiveSpin {
    length: Duration,
    idle_since: Option<Time>,
}

impl AdaptiveSpin {
    fn new() -> Self {
        Self { length: SPIN_MAX, idle_since: None }
    }

    fn busy(&mut self, now: Time) {
        if let Some(since) = self.idle_since.take()
            && now.since(since) < self.length
        {
            self.length = (self.length * 2).min(SPIN_MAX);
        }
    }

    /// Whether to park now.
    fn idle(&mut self, now: Time) -> bool {
        let since = *self.idle_since.get_or_insert(now);
        now.since(since) >= self.length
    }

    fn parked(&mut self) {
        self.length = (self.length * 3 / 4).max(SPIN_MIN);
        self.idle_since = None;
    }
}

/// Runs a shard until it has stopped.
pub(crate) async fn drive(mut shard: Shard, idle: Idle, mut wait: impl Wait) {
    let mut spin = AdaptiveSpin::new();
    while !shard.is_stopped() {
        let now = shard.world().now();
        if shard.turn(now) == crate::shard::Turn::Busy {
            spin.busy(now);
            shard.poll_sockets(now);
            continue;
        }
        if idle == Idle::Spin || !spin.idle(now) {
            shard.poll_sockets(now);
            std::hint::spin_loop();
            continue;
        }
        spin.parked();
        park(&mut shard, now, &mut wait).await;
    }
}

async fn park(shard: &mut Shard, now: Time, wait: &mut impl Wait) {
    shard.flush_all(now);
    let doorbell = shard.doorbell().clone();
    doorbell.prepare_sleep();
    // Whoever published before `prepare_sleep` is found here; whoever publishes after it rings.
    if shard.may_sleep() {
        let timeout = shard.sleep_max(now);
        if !timeout.is_zero() {
            shard.count_park();
            if let Err(error) = wait.wait(timeout).await {
                tracing::error!(%error, "a shard cannot wait; it spins instead");
            }
        }
    }
    doorbell.awake();
    let now = shard.world().now();
    shard.look_at_sockets(now);
}
