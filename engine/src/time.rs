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

    /// The time from this moment to `deadline`, as a header carries it: zero if it has passed. Rounded down, to microseconds,
    /// or to milliseconds if it is more than 36 minutes; at most 24 days and 20 hours.
    #[must_use]
    #[inline]
    pub(crate) const fn left_until(self, deadline: Self) -> u32 {
        let micros = deadline.0.saturating_sub(self.0) / 1_000;
        if micros < IN_MILLIS as u64 { micros as u32 } else { left_in_millis(micros) }
    }

    /// The deadline that a header means that says that so much was left, and was read `late_ns` nanoseconds too late.
    #[must_use]
    #[inline]
    pub(crate) const fn after_left(self, left: u32, late_ns: u64) -> Self {
        let nanos =
            if left < IN_MILLIS { left as u64 * 1_000 } else { (left - IN_MILLIS) as u64 * 1_000_000 };
        Self(self.0.saturating_add(nanos.saturating_sub(late_ns)))
    }

    /// This moment and `duration` more, at most [`Time::NEVER`].
    #[must_use]
    #[inline]
    pub(crate) fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(nanoseconds(duration)))
    }
}

/// As many as there is room for.
#[inline]
pub(crate) fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// The top bit of what a header says is left: the others are milliseconds.
const IN_MILLIS: u32 = 1 << 31;

/// The longest time that a header can say is left: 24 days and 20 hours.
#[cfg(test)]
pub(crate) const TRAVELS_MAX: Duration = Duration::from_millis(IN_MILLIS as u64 - 1);

/// Calls of more than half an hour are rare: out of the way of the others.
#[cold]
const fn left_in_millis(micros: u64) -> u32 {
    let millis = micros / 1_000;
    if millis >= IN_MILLIS as u64 { u32::MAX } else { IN_MILLIS | millis as u32 }
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
        assert_eq!(now.left_until(Time::NEVER), u32::MAX);
        assert_eq!(now.left_until(Time::ZERO), 0);
        assert_eq!(now.after_left(3, 0), Time::from_nanos(8_000));
        assert_eq!(now.after_left(3, 2_000), Time::from_nanos(6_000));
        assert_eq!(now.after_left(3, u64::MAX), now);
    }

    #[test]
    fn what_a_header_says_is_left_is_never_more_than_that_and_hardly_less() {
        let now = Time::from_nanos(123_456_789);
        let second = Duration::from_secs(1);
        let half_an_hour = Duration::from_micros(u64::from(IN_MILLIS));
        let near = |time: Duration| [time - second, time - Duration::from_nanos(1), time, time + second];
        let times =
            [Duration::from_micros(1), second, Duration::from_secs(4_294), Duration::from_secs(3 * 3600)];
        for time in times.into_iter().chain(near(half_an_hour)).chain(near(TRAVELS_MAX)) {
            let heard = now.after_left(now.left_until(now + time), 0).since(now);
            let unit = if time < half_an_hour { Duration::from_micros(1) } else { Duration::from_millis(1) };
            assert!(heard <= time && heard + unit > time.min(TRAVELS_MAX), "{time:?} is heard as {heard:?}");
            let late = now.after_left(now.left_until(now + time), 300_000_000).since(now);
            assert_eq!(late, heard.saturating_sub(Duration::from_millis(300)), "{time:?}");
        }
        let hour = Duration::from_secs(3600);
        let late = now.after_left(now.left_until(now + 2 * hour), nanoseconds(3 * hour));
        assert_eq!(late, now, "it waited for longer than it had time");
        for time in [Duration::MAX, TRAVELS_MAX + second] {
            let heard = now.after_left(now.left_until(now + time), 0).since(now);
            assert_eq!(heard, TRAVELS_MAX, "again and again");
        }
    }
}
