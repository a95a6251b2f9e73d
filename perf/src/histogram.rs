//! Latencies: a high dynamic range histogram in nanoseconds, and the rule for when not every request is in it.
//!
//! A clock read costs about 25 ns here and a histogram entry a few more. At 5 M/s that is a fifth of a request's whole
//! time, so above [`SAMPLING_ABOVE_PER_S`], measured in the warm-up, one request in [`SAMPLED_ONE_IN`] has its latency
//! taken. The rule is the same for the floor and for the engine, and `sampled_one_in` is in every row.

use std::fmt::Write;

use hdrhistogram::Histogram;

/// At this rate and below every request is measured.
pub(crate) const SAMPLING_ABOVE_PER_S: f64 = 5_000_000.0;
/// Above it, one request in so many.
pub(crate) const SAMPLED_ONE_IN: u64 = 64;
const _: () = assert!(SAMPLED_ONE_IN.is_power_of_two());

/// A minute: longer than any round waits for a reply.
const LATENCY_MAX_NS: u64 = 60_000_000_000;
/// Values are kept to one part in a thousand.
const DIGITS: u8 = 3;

/// Which requests have their latency measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sampling {
    one_in: u64,
}

impl Sampling {
    /// Every request.
    pub(crate) const ALL: Self = Self { one_in: 1 };
    /// The sparse choice; also for the warm-up, which must not slow itself down before its rate is known.
    pub(crate) const SPARSE: Self = Self { one_in: SAMPLED_ONE_IN };

    /// The rule.
    pub(crate) fn at_rate(rate_per_s: f64) -> Self {
        if rate_per_s > SAMPLING_ABOVE_PER_S { Self::SPARSE } else { Self::ALL }
    }

    /// One request in so many.
    pub(crate) fn one_in(self) -> u64 {
        self.one_in
    }

    /// Whether this one is measured.
    #[inline]
    pub(crate) fn takes(self, number: u64) -> bool {
        // A power of two: a division would be a tenth of what is measured.
        number & (self.one_in - 1) == 0
    }

    /// The numbers among `first .. first + count` that are measured, in order.
    #[inline]
    pub(crate) fn within(self, first: u64, count: u64) -> impl Iterator<Item = u64> {
        (first.next_multiple_of(self.one_in)..first + count).step_by(self.one_in as usize)
    }

    /// Whether any of `first .. first + count` is measured.
    #[inline]
    pub(crate) fn any(self, first: u64, count: u64) -> bool {
        first.next_multiple_of(self.one_in) < first + count
    }
}

/// Latencies of a round, or of all rounds of a row.
#[derive(Clone, Debug)]
pub(crate) struct Latency {
    histogram: Histogram<u64>,
}

impl Latency {
    /// Empty.
    pub(crate) fn new() -> Self {
        match Histogram::new_with_bounds(1, LATENCY_MAX_NS, DIGITS) {
            Ok(histogram) => Self { histogram },
            Err(problem) => unreachable!("constant bounds are valid: {problem}"),
        }
    }

    /// Adds one; what is beyond a minute counts as a minute.
    #[inline]
    pub(crate) fn record(&mut self, nanoseconds: u64) {
        self.histogram.saturating_record(nanoseconds);
    }

    /// Adds all of another round.
    pub(crate) fn merge(&mut self, other: &Self) {
        if let Err(problem) = self.histogram.add(&other.histogram) {
            unreachable!("both have the same bounds: {problem}");
        }
    }

    /// How many were recorded.
    pub(crate) fn count(&self) -> u64 {
        self.histogram.len()
    }

    /// The latency that this share of the requests stayed at or under, in microseconds.
    pub(crate) fn quantile_us(&self, quantile: f64) -> f64 {
        self.histogram.value_at_quantile(quantile) as f64 / 1e3
    }

    /// The longest, in microseconds.
    pub(crate) fn max_us(&self) -> f64 {
        self.histogram.max() as f64 / 1e3
    }

    /// The distribution in the text form that HdrHistogram's plotters read, in microseconds.
    pub(crate) fn distribution(&self) -> String {
        let mut text = String::from("       Value     Percentile TotalCount 1/(1-Percentile)\n\n");
        let mut total = 0;
        for step in self.histogram.iter_quantiles(5) {
            total += step.count_since_last_iteration();
            let quantile = step.quantile_iterated_to();
            let value = step.value_iterated_to() as f64 / 1e3;
            let inverse =
                if quantile < 1.0 { format!("{:.2}", 1.0 / (1.0 - quantile)) } else { "inf".into() };
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{value:12.3} {quantile:2.12} {total:10} {inverse:>14}");
        }
        let (mean, max) = (self.histogram.mean() / 1e3, self.max_us());
        let _ = writeln!(text, "#[Mean = {mean:12.3}, Max = {max:12.3}, Total count = {}]", self.count());
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_request_is_measured_up_to_five_million_a_second() {
        assert_eq!(Sampling::at_rate(SAMPLING_ABOVE_PER_S), Sampling::ALL);
        assert_eq!(Sampling::at_rate(SAMPLING_ABOVE_PER_S + 1.0), Sampling::SPARSE);
    }

    #[test]
    fn sampled_numbers_do_not_depend_on_how_the_batches_fall() {
        let whole: Vec<_> = Sampling::SPARSE.within(0, 1_000).collect();
        let mut parts = Vec::new();
        let mut first = 0;
        for count in (0..).take_while(|count| count * (count + 1) / 2 < 1_000) {
            let count = count.min(1_000 - first);
            assert_eq!(Sampling::SPARSE.any(first, count), Sampling::SPARSE.within(first, count).count() > 0);
            parts.extend(Sampling::SPARSE.within(first, count));
            first += count;
        }
        assert_eq!(parts, whole.iter().copied().filter(|number| *number < first).collect::<Vec<_>>());
        assert_eq!(Sampling::ALL.within(7, 3).collect::<Vec<_>>(), [7, 8, 9]);
    }

    #[test]
    fn quantiles_are_microseconds() {
        let mut latency = Latency::new();
        (1..=1_000).for_each(|microsecond| latency.record(microsecond * 1_000));
        assert!((latency.quantile_us(0.5) - 500.0).abs() < 1.0);
        assert!((latency.quantile_us(0.99) - 990.0).abs() < 1.0);
        assert!((latency.max_us() - 1_000.0).abs() < 1.0);
        latency.record(u64::MAX);
        assert!(latency.max_us() <= LATENCY_MAX_NS as f64 / 1e3 * 1.001);
        assert!(latency.distribution().contains("Total count = 1001"));
    }
}
