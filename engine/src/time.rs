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
pub(crate) struct Time(u64);

impl Time {
    /// The start of the clock.
    pub(crate) const ZERO: Self = Self(0);
    /// Later than any moment that a clock will show.
    pub(crate) const NEVER: Self = Self(u64::MAX);

    /// The moment `nanoseconds` after the start.
    #[must_use]
    pub(crate) const fn from_nanos(nanoseconds: u64) -> Self {
        Self(nanoseconds)
    }

    /// Nanoseconds since the start.
    #[must_use]
    pub(crate) const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Reads the real clock.
    #[must_use]
    #[inline]
    pub(crate) fn read() -> Self {
        static START: OnceLock<Instant> = OnceLock::new();
        let elapsed = START.get_or_init(Instant::now).elapsed();
        Self(elapsed.as_secs() * 1_000_000_000 + u64::from(elapsed.subsec_nanos()))
    }

    /// How long after `earlier` this is; zero if it is not after it.
    #[must_use]
    #[inline]
    pub(crate) const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// Whole microseconds from this moment to `deadline`, as a header carries them: zero if it has passed.
    #[must_use]
    #[inline]
    pub(crate) const fn micros_until(self, deadline: Self) -> u32 {
        let micros = deadline.0.saturating_sub(self.0) / 1_000;
        if micros > u32::MAX as u64 { u32::MAX } else { micros as u32 }
    }

    /// The deadline that a header with so many microseconds left means.
    #[must_use]
    #[inline]
    pub(crate) const fn after_micros(self, micros: u32) -> Self {
        Self(self.0.saturating_add(micros as u64 * 1_000))
    }

    /// This moment and `duration` more, at most [`Time::NEVER`].
    #[must_use]
    #[inline]
    pub(crate) fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// What foreign threads take the time from.
#[derive(Clone, Debug, Default)]
pub(crate) enum Clock {
    /// The real one.
    #[default]
    Real,
    /// The simulation's: nanoseconds.
    #[cfg(test)]
    Virtual(std::sync::Arc<std::sync::atomic::AtomicU64>),
}

impl Clock {
    #[inline]
    pub(crate) fn now(&self) -> Time {
        match self {
            Self::Real => Time::read(),
            #[cfg(test)]
            Self::Virtual(nanoseconds) => Time(nanoseconds.load(std::sync::atomic::Ordering::Relaxed)),
        }
    }
}

impl std::ops::Add<Duration> for Time {
    type Output = Self;
    #[inline]
    fn add(self, duration: Duration) -> Self {
        self.after(duration)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_saturate_at_both_ends() {
        let now = Time::from_nanos(5_000);
        assert_eq!(Time::ZERO.since(now), Duration::ZERO);
        assert_eq!(Time::NEVER + Duration::from_secs(1), Time::NEVER);
        assert_eq!(now + Duration::MAX, Time::NEVER);
        assert_eq!(now.micros_until(Time::NEVER), u32::MAX);
        assert_eq!(now.micros_until(Time::ZERO), 0);
        assert_eq!(now.after_micros(3), Time::from_nanos(8_000));
    }
}
