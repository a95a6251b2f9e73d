//! The engine's clock.
//!
//! A [`Time`] counts nanoseconds from a process-wide start, so it fits a register, compares with one instruction, and
//! means nothing outside the process: between nodes only *remaining* time travels. A shard reads the clock once a turn
//! (a read costs about 25 ns) and hands the same `now` to all that happens in that turn; in the simulator the same
//! type carries virtual time.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// A moment: nanoseconds since the process first asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time(u64);

impl Time {
    /// The start of the clock.
    pub const ZERO: Self = Self(0);
    /// Later than any moment that a clock will show.
    pub const NEVER: Self = Self(u64::MAX);

    /// The moment `nanoseconds` after the start.
    #[must_use]
    pub const fn from_nanos(nanoseconds: u64) -> Self {
        Self(nanoseconds)
    }

    /// Nanoseconds since the start.
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Reads the real clock.
    #[must_use]
    pub fn read() -> Self {
        static START: OnceLock<Instant> = OnceLock::new();
        let elapsed = START.get_or_init(Instant::now).elapsed();
        Self(elapsed.as_secs() * 1_000_000_000 + u64::from(elapsed.subsec_nanos()))
    }

    /// How long after `earlier` this is; zero if it is not after it.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// This moment and `duration` more, at most [`Time::NEVER`].
    #[must_use]
    pub const fn after(self, duration: Duration) -> Self {
        let nanoseconds = duration.as_nanos();
        if nanoseconds > (u64::MAX - self.0) as u128 {
            Self::NEVER
        } else {
            Self(self.0 + nanoseconds as u64)
        }
    }
}

impl std::ops::Add<Duration> for Time {
    type Output = Self;
    fn add(self, duration: Duration) -> Self {
        self.after(duration)
    }
}
