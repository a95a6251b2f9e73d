//! The two loops that offer requests, over any [`Link`]: closed (a new request when a reply came) and open (requests
//! are due on a schedule, and latency counts from the *due* time, so that a stall is charged to all it delayed).
//!
//! **Clock.** Requests sent in one pass share the clock read before the first of them, and replies taken in one pass
//! share the one read after the last: both err towards longer. Passes without a sampled request read no clock in the
//! closed loop, so the floor is not measured by its own yardstick.
//!
//! **Lag.** An open loop has lagged if more than [`LATE_SHARE_MAX`] of its sends were over [`LATE_AFTER_NS`] late.
//! Nothing is lost by it, since latency counts from the due time, but the generator was then part of what was measured.
//!
//! **Checks.** Links of the floor are first in, first out, so request *n*'s answer must be reply *n*: one comparison
//! finds wrong, lost and doubled replies.

use std::time::{Duration, Instant};

use crate::histogram::{Latency, Sampling};
use crate::meter::Window;
use crate::peer::Peer;
use crate::scenario::{Broken, Pace, Round, RoundResult, Stop};

/// A send that is later than this after its due time is late.
pub(crate) const LATE_AFTER_NS: u64 = 1_000_000;
/// More late sends than this, and the generator lagged.
pub(crate) const LATE_SHARE_MAX: f64 = 0.01;
/// An open loop holds back beyond so many unanswered requests; what it holds back is late by then, and says so.
const OUTSTANDING_MAX: u64 = 65_536;
/// Silence that means that the replies in flight are lost.
pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(3);
/// Passes between two looks at the clock where nothing else needs it.
pub(crate) const PASSES_PER_LOOK: u32 = 64;
/// Empty passes after which the closed loop looks at the clock, so that a dead link ends the round.
const IDLE_PASSES_PER_LOOK: u32 = 4_096;

/// A way to a server and back: first in, first out.
pub(crate) trait Link {
    /// Sends requests `first ..`, at most `wanted` of them, as many as there is room for now, and moves on whatever an
    /// earlier call could not push out. Returns how many were taken; never waits.
    fn send(&mut self, first: u64, wanted: u64) -> Result<u64, Broken>;

    /// Takes the replies that are here, checks that they answer `expected ..`, and returns how many there were.
    fn receive(&mut self, expected: u64) -> Result<u64, Broken>;
}

/// One round over a link: warm up, then measure, with the spending of this process and of its peers in between.
pub(crate) fn drive(
    link: &mut impl Link,
    round: &Round<'_>,
    peers: &mut [Peer],
) -> Result<RoundResult, Broken> {
    // All that the loops allocate is here, before the window opens.
    let in_flight = if let Pace::Closed { in_flight } = round.pace { in_flight as u64 } else { 1 };
    let (mut warm_up_latency, mut latency) = (Latency::new(), Latency::new());
    let mut loops = Loops { link, stop: round.stop, stamps: Stamps::new(in_flight), sent: 0, answered: 0 };
    let warm_up = loops.phase(round.pace, round.warm_up, Sampling::SPARSE, &mut warm_up_latency)?;
    let sampling = Sampling::at_rate(warm_up.rate_per_s());
    let window = Window::open(round, peers)?;
    let phase = loops.phase(round.pace, round.span, sampling, &mut latency)?;
    let spent = window.close()?;
    Ok(RoundResult {
        requests: phase.requests,
        errors: 0,
        elapsed: phase.elapsed,
        late: phase.late,
        latency: Some(latency),
        sampled_one_in: sampling.one_in(),
        ns_per_op: None,
        spent,
        bytes: None,
        resident_bytes: None,
        runtime: "none",
    })
}

/// The rule for an open loop that fell behind.
pub(crate) fn lagged(late: u64, requests: u64) -> bool {
    late as f64 > requests as f64 * LATE_SHARE_MAX
}

struct Phase {
    requests: u64,
    late: u64,
    elapsed: Duration,
}

impl Phase {
    fn rate_per_s(&self) -> f64 {
        self.requests as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }
}

struct Loops<'a, L> {
    link: &'a mut L,
    stop: &'a Stop,
    stamps: Stamps,
    sent: u64,
    answered: u64,
}

impl<L: Link> Loops<'_, L> {
    /// Offers for `span`, then waits for the last reply.
    fn phase(
        &mut self,
        pace: Pace,
        span: Duration,
        sampling: Sampling,
        latency: &mut Latency,
    ) -> Result<Phase, Broken> {
        let first = self.sent;
        let clock = Clock::start();
        let late = match pace {
            Pace::Closed { in_flight } => {
                self.closed(in_flight as u64, &clock, span, sampling, latency)?;
                0
            }
            Pace::Open { rate_per_s } => self.open(rate_per_s, &clock, span, sampling, latency)?,
        };
        let elapsed = Duration::from_nanos(clock.now());
        let extra = self.link.receive(self.answered)?;
        if extra > 0 {
            return Err(Broken::Doubled { extra, sent: self.sent });
        }
        Ok(Phase { requests: self.sent - first, late, elapsed })
    }

    fn closed(
        &mut self,
        in_flight: u64,
        clock: &Clock,
        span: Duration,
        sampling: Sampling,
        latency: &mut Latency,
    ) -> Result<(), Broken> {
        let end = span.as_nanos() as u64;
        let (mut passes, mut idle_passes) = (0_u32, 0_u32);
        let mut offering = true;
        let mut last_reply = 0;
        while offering || self.answered < self.sent {
            let room = if offering { in_flight - (self.sent - self.answered) } else { 0 };
            let stamp = if sampling.any(self.sent, room) { clock.now() } else { 0 };
            let sent = self.link.send(self.sent, room)?;
            self.stamps.put(sampling.within(self.sent, sent), stamp);
            self.sent += sent;
            let replies = self.take(self.sent)?;
            if replies > 0 {
                let first = self.answered - replies;
                if sampling.any(first, replies) {
                    let now = clock.now();
                    sampling
                        .within(first, replies)
                        .for_each(|number| latency.record(now - self.stamps.at(number)));
                }
                passes += 1;
                idle_passes = 0;
            } else {
                idle_passes += 1;
            }
            if passes >= PASSES_PER_LOOK || idle_passes >= IDLE_PASSES_PER_LOOK {
                let now = clock.now();
                offering &= now < end;
                if self.stop.requested() {
                    return Err(Broken::Interrupted);
                }
                if passes > 0 {
                    last_reply = now;
                }
                self.expect_replies(now - last_reply)?;
                (passes, idle_passes) = (0, 0);
            }
        }
        Ok(())
    }

    fn open(
        &mut self,
        rate_per_s: u64,
        clock: &Clock,
        span: Duration,
        sampling: Sampling,
        latency: &mut Latency,
    ) -> Result<u64, Broken> {
        let schedule = Schedule { rate_per_s };
        let base = self.sent;
        let total = schedule.due_by(span.as_nanos() as u64);
        let mut late = 0;
        let mut last_reply = 0;
        while self.answered - base < total {
            let now = clock.now();
            let offered = self.sent - base;
            let due = schedule.due_by(now).min(total) - offered;
            let wanted = due.min(OUTSTANDING_MAX - (self.sent - self.answered));
            let sent = self.link.send(self.sent, wanted)?;
            late += schedule.late(offered, sent, now);
            self.sent += sent;
            let replies = self.take(self.sent)?;
            if replies > 0 {
                let now = clock.now();
                let first = self.answered - replies;
                sampling.within(first, replies).for_each(|number| {
                    latency.record(now.saturating_sub(schedule.due_at(number - base)));
                });
                last_reply = now;
            } else if self.sent > self.answered {
                self.expect_replies(now.saturating_sub(last_reply))?;
            } else {
                last_reply = now;
            }
            if self.stop.requested() {
                return Err(Broken::Interrupted);
            }
        }
        Ok(late)
    }

    /// Takes replies; more of them than requests is an error at once.
    #[inline]
    fn take(&mut self, sent: u64) -> Result<u64, Broken> {
        let replies = self.link.receive(self.answered)?;
        self.answered += replies;
        if self.answered > sent {
            return Err(Broken::Doubled { extra: self.answered - sent, sent });
        }
        Ok(replies)
    }

    /// Silence while requests are unanswered means that replies are lost.
    fn expect_replies(&self, silent_ns: u64) -> Result<(), Broken> {
        if silent_ns < SILENCE_MAX.as_nanos() as u64 || self.sent == self.answered {
            return Ok(());
        }
        let missing = self.sent - self.answered;
        Err(Broken::Lost { missing, sent: self.sent, waited_s: SILENCE_MAX.as_secs() })
    }
}

/// When open-loop requests are due, in nanoseconds since the phase began.
pub(crate) struct Schedule {
    /// Requests each second, evenly.
    pub(crate) rate_per_s: u64,
}

impl Schedule {
    /// When request `number` is due, counted from 0.
    #[inline]
    pub(crate) fn due_at(&self, number: u64) -> u64 {
        (u128::from(number) * 1_000_000_000 / u128::from(self.rate_per_s)) as u64
    }

    /// How many requests were due before `now`.
    #[inline]
    pub(crate) fn due_by(&self, now: u64) -> u64 {
        (u128::from(now) * u128::from(self.rate_per_s)).div_ceil(1_000_000_000) as u64
    }

    /// Of `count` requests from `first` on, sent at `now`, the ones that were late.
    #[inline]
    pub(crate) fn late(&self, first: u64, count: u64, now: u64) -> u64 {
        match now.checked_sub(LATE_AFTER_NS) {
            Some(limit) => self.due_by(limit).clamp(first, first + count) - first,
            None => 0,
        }
    }
}

/// Nanoseconds since the phase began.
#[derive(Clone, Copy)]
pub(crate) struct Clock(Instant);

impl Clock {
    /// From now.
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    /// So many have passed.
    #[inline]
    pub(crate) fn now(&self) -> u64 {
        self.0.elapsed().as_nanos() as u64
    }
}

/// Send times of the requests in flight, by number.
struct Stamps {
    times: Vec<u64>,
    mask: u64,
}

impl Stamps {
    fn new(in_flight: u64) -> Self {
        let places = in_flight.next_power_of_two();
        Self { times: vec![0; places as usize], mask: places - 1 }
    }

    #[inline]
    fn put(&mut self, numbers: impl Iterator<Item = u64>, time: u64) {
        numbers.for_each(|number| self.times[(number & self.mask) as usize] = time);
    }

    #[inline]
    fn at(&self, number: u64) -> u64 {
        self.times[(number & self.mask) as usize]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    /// A server in the same thread that answers at once, and can be told to misbehave.
    #[derive(Default)]
    struct Echo {
        queue: VecDeque<u64>,
        lose: Option<u64>,
        double: Option<u64>,
        stall_once: Option<Duration>,
    }

    impl Link for Echo {
        fn send(&mut self, first: u64, wanted: u64) -> Result<u64, Broken> {
            for number in first..first + wanted {
                if self.lose != Some(number) {
                    self.queue.push_back(number);
                }
                if self.double == Some(number) {
                    self.queue.push_back(number);
                }
            }
            Ok(wanted)
        }

        fn receive(&mut self, expected: u64) -> Result<u64, Broken> {
            if expected > 100 {
                self.stall_once.take().into_iter().for_each(std::thread::sleep);
            }
            let count = self.queue.len() as u64;
            for (number, reply) in (expected..).zip(self.queue.drain(..)) {
                if reply != number {
                    return Err(Broken::WrongReply(format!("{reply} for {number}")));
                }
            }
            Ok(count)
        }
    }

    fn run(mut link: Echo, pace: Pace) -> Result<RoundResult, Broken> {
        let stop = Stop::never();
        let (warm_up, span) = (Duration::from_millis(1), Duration::from_millis(30));
        drive(&mut link, &Round { pace, warm_up, span, stop: &stop, kernel: None }, &mut [])
    }

    const OPEN: Pace = Pace::Open { rate_per_s: 100_000 };

    #[test]
    fn a_closed_loop_measures_every_reply_or_the_sampled_ones() {
        let result = run(Echo::default(), Pace::Closed { in_flight: 8 }).unwrap();
        let recorded = result.latency.unwrap().count();
        assert!(result.requests > 0 && recorded.abs_diff(result.requests / result.sampled_one_in) <= 1);
    }

    #[test]
    fn an_open_loop_sends_exactly_what_was_due() {
        let result = run(Echo::default(), OPEN).unwrap();
        assert_eq!(result.requests, 3_000);
        assert_eq!(result.latency.unwrap().count(), 3_000);
    }

    #[test]
    fn a_stall_is_charged_to_every_request_that_it_delayed() {
        let stall = Some(Duration::from_millis(10));
        let result = run(Echo { stall_once: stall, ..Echo::default() }, OPEN).unwrap();
        assert!(lagged(result.late, result.requests));
        assert!(result.latency.unwrap().quantile_us(0.9) > 1_000.0);
    }

    #[test]
    fn a_reply_too_many_or_out_of_place_breaks_the_round() {
        for pace in [OPEN, Pace::Closed { in_flight: 4 }] {
            let doubled = run(Echo { double: Some(50), ..Echo::default() }, pace);
            assert!(matches!(doubled, Err(Broken::WrongReply(_) | Broken::Doubled { .. })));
            let lost = run(Echo { lose: Some(50), ..Echo::default() }, pace);
            assert!(matches!(lost, Err(Broken::WrongReply(_) | Broken::Lost { .. })));
        }
    }

    #[test]
    fn due_times_and_counts_agree() {
        for rate_per_s in [1, 3, 999_983, 1_000_000, 7_000_000] {
            let schedule = Schedule { rate_per_s };
            for number in [0, 1, 2, 1_000, 999_999] {
                let due = schedule.due_at(number);
                assert!(schedule.due_by(due) <= number + 1, "{rate_per_s} {number}");
                assert!(schedule.due_by(due + 1) > number, "{rate_per_s} {number}");
            }
            assert_eq!(schedule.due_by(1_000_000_000), rate_per_s);
        }
    }

    #[test]
    fn a_send_is_late_after_a_millisecond() {
        let schedule = Schedule { rate_per_s: 1_000_000 };
        assert_eq!(schedule.late(0, 1_000, LATE_AFTER_NS), 0);
        assert_eq!(schedule.late(0, 3_000, LATE_AFTER_NS + 500_000), 500);
        assert_eq!(schedule.late(400, 1_000, LATE_AFTER_NS + 500_000), 100);
        assert_eq!(schedule.late(600, 1_000, LATE_AFTER_NS + 500_000), 0);
    }

    #[test]
    fn one_in_a_hundred_late_is_allowed() {
        assert!(!lagged(10, 1_000));
        assert!(lagged(11, 1_000));
        assert!(!lagged(0, 0));
    }
}
