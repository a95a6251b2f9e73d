//! The loop around the turn: turn, then spin or wait.
//!
//! One loop for both real runtimes. A shard that spins never waits. A shard that parks spins a little first, for as long as
//! spinning has lately paid off, then says that it sleeps, looks once more, and waits for its doorbell, its sockets or its
//! next timer.

use std::os::fd::OwnedFd;
use std::time::Duration;

use crate::runtime::epoll::wait;
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

/// The longest spin before a park: twice what parking and waking cost, for both sides of an exchange may park.
const SPIN_MAX: Duration = Duration::from_micros(100);
/// The shortest: even a shard that mostly sleeps looks around once more.
const SPIN_MIN: Duration = Duration::from_micros(2);

/// How long to spin before parking: longer when the last wait, spun or slept, was short enough to be spun through, shorter
/// when it was not. It goes by the whole wait and not by whether the spin found work: else a shard that has parked once
/// would be woken later each time for having parked, and never learn that it need not.
#[derive(Debug)]
struct AdaptiveSpin {
    length: Duration,
    idle_since: Option<Time>,
}

impl AdaptiveSpin {
    fn new() -> Self {
        Self { length: SPIN_MAX, idle_since: None }
    }

    /// There is work again.
    fn busy(&mut self, now: Time) {
        let Some(since) = self.idle_since.take() else { return };
        self.length = if now.since(since) <= SPIN_MAX {
            (self.length * 2).min(SPIN_MAX)
        } else {
            (self.length * 3 / 4).max(SPIN_MIN)
        };
    }

    /// There is none; whether to park now.
    fn idle(&mut self, now: Time) -> bool {
        let since = *self.idle_since.get_or_insert(now);
        now.since(since) >= self.length
    }
}

/// Runs a shard until it has stopped.
pub(crate) fn drive(mut shard: Shard, idle: Idle, epoll: &OwnedFd) {
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
        park(&mut shard, now, epoll);
    }
}

fn park(shard: &mut Shard, now: Time, epoll: &OwnedFd) {
    shard.flush_all(now);
    let doorbell = shard.doorbell().clone();
    doorbell.prepare_sleep();
    // Whoever published before `prepare_sleep` is found here; whoever publishes after it rings.
    if shard.may_sleep() {
        let timeout = shard.sleep_max(now);
        if !timeout.is_zero() {
            shard.rest(now + timeout);
            if let Err(error) = wait(epoll, timeout) {
                tracing::error!(%error, "a shard cannot wait; it spins instead");
            }
        }
    }
    doorbell.awake();
    let now = shard.world().now();
    shard.look_at_sockets(now);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait_of(spin: &mut AdaptiveSpin, at: Time, length: Duration) -> Duration {
        spin.idle(at);
        spin.busy(at + length);
        spin.length
    }

    #[test]
    fn long_waits_shorten_the_spin_and_short_ones_bring_it_back() {
        let mut spin = AdaptiveSpin::new();
        let mut at = Time::ZERO;
        for _ in 0..100 {
            at = at + Duration::from_secs(1);
            wait_of(&mut spin, at, Duration::from_millis(5));
        }
        assert_eq!(spin.length, SPIN_MIN);
        assert!(!spin.idle(at) && spin.idle(at + SPIN_MIN), "it parks after the shortest spin");
        spin.idle_since = None;
        // Woken from parks that were shorter than the longest spin: it learns to spin through them.
        for _ in 0..10 {
            at = at + Duration::from_secs(1);
            wait_of(&mut spin, at, SPIN_MAX * 9 / 10);
        }
        assert_eq!(spin.length, SPIN_MAX);
    }
}
