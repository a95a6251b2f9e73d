//! Rows: what the rounds of a scenario come to, as medians with their minimum and maximum, as JSON and as a table.

use std::time::Duration;

use crate::histogram::Latency;
use crate::json::Object;
use crate::load::lagged;
use crate::machine::Machine;
use crate::scenario::{Facts, Pace, RoundResult};

/// The widest line of the table; a common terminal's width and a bit.
#[cfg(test)]
const COLUMNS_MAX: usize = 100;

/// Of all names but those of rivals, which make the table wider by as much as they are longer.
const NAME_COLUMNS: usize = 24;

/// A figure over the rounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    /// Half of the rounds are at or below.
    pub(crate) median: f64,
    /// The smallest.
    pub(crate) min: f64,
    /// The largest.
    pub(crate) max: f64,
}

impl Spread {
    /// Of at least one figure; `None` of none.
    pub(crate) fn of(figures: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = figures.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median =
            if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 };
        Some(Self { median, min, max })
    }
}

/// Latencies in microseconds: each percentile's median over the rounds.
#[derive(Clone, Debug)]
pub(crate) struct Latencies {
    /// Median.
    pub(crate) p50: Spread,
    /// 99 %.
    pub(crate) p99: Spread,
    /// 99.9 %.
    pub(crate) p999: Spread,
    /// 99.99 %.
    pub(crate) p9999: Spread,
    /// The longest of each round.
    pub(crate) max: Spread,
    /// All rounds in one histogram, for the plots.
    pub(crate) merged: Latency,
}

/// How a row stands to its floor.
#[derive(Clone, Debug)]
pub(crate) struct Comparison {
    /// 1 is as good as the floor, 0.5 half as good.
    pub(crate) ratio: f64,
    /// What is compared: `rate`, `p50` or `p99`.
    pub(crate) of: &'static str,
}

/// One line of the table.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    /// The scenario.
    pub(crate) facts: Facts,
    /// Rounds that were finished.
    pub(crate) rounds: usize,
    /// Whether these are all that were planned.
    pub(crate) complete: bool,
    /// In all rounds.
    pub(crate) requests: u64,
    /// In all rounds.
    pub(crate) errors: u64,
    /// The generator fell behind.
    pub(crate) lagged: bool,
    /// Ended requests each second.
    pub(crate) rate_per_s: Spread,
    /// Where a latency was taken.
    pub(crate) latency: Option<Latencies>,
    /// One request in so many has its latency measured (of all rounds, the sparsest).
    pub(crate) sampled_one_in: u64,
    /// Where the row is about that.
    pub(crate) ns_per_op: Option<Spread>,
    /// Where the row is about that.
    pub(crate) bytes_per_s: Option<Spread>,
    /// Where the row is about that: memory of an idle engine.
    pub(crate) resident_bytes: Option<Spread>,
    /// Of all processes.
    pub(crate) allocations_per_request: f64,
    /// Of all processes.
    pub(crate) cpu_us_per_request: f64,
    /// CPU seconds each second, of all processes.
    pub(crate) cores_busy: f64,
    /// Where somebody counted.
    pub(crate) syscalls: Option<Calls>,
    /// What drives the shards.
    pub(crate) runtime: &'static str,
    /// Once the floor's row is known.
    pub(crate) comparison: Option<Comparison>,
}

/// System calls for each request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Calls {
    /// All kinds, or what the floor's own loops made.
    pub(crate) per_request: f64,
    /// Futex calls, where the kernel counted.
    pub(crate) futexes_per_request: Option<f64>,
    /// `kernel` or `loop`.
    pub(crate) counted_by: &'static str,
}

impl Row {
    /// Of at least one round; `counted` is the counting round.
    pub(crate) fn new(
        facts: &Facts,
        rounds: &[RoundResult],
        counted: Option<&RoundResult>,
        complete: bool,
    ) -> Self {
        let sum = |count: fn(&RoundResult) -> u64| rounds.iter().map(count).sum::<u64>();
        let requests = sum(|round| round.requests);
        // Not a number where there were no requests: null in JSON, a dash in the table.
        let each = if requests == 0 { f64::NAN } else { 1.0 / requests as f64 };
        let cpu: Duration = rounds.iter().map(|round| round.spent.cpu).sum();
        let elapsed: Duration = rounds.iter().map(|round| round.elapsed).sum();
        let rate = |amount: u64, round: &RoundResult| amount as f64 / round.elapsed.as_secs_f64().max(1e-9);
        let rates = rounds.iter().map(|round| rate(round.requests, round));
        Self {
            facts: facts.clone(),
            rounds: rounds.len(),
            complete,
            requests,
            errors: sum(|round| round.errors),
            lagged: lagged(sum(|round| round.late), requests),
            rate_per_s: Spread::of(rates).unwrap_or(Spread { median: 0.0, min: 0.0, max: 0.0 }),
            latency: latencies(rounds),
            sampled_one_in: rounds.iter().map(|round| round.sampled_one_in).max().unwrap_or(1),
            ns_per_op: Spread::of(rounds.iter().filter_map(|round| round.ns_per_op)),
            bytes_per_s: Spread::of(rounds.iter().filter_map(|round| Some(rate(round.bytes?, round)))),
            resident_bytes: Spread::of(rounds.iter().filter_map(|round| Some(round.resident_bytes? as f64))),
            allocations_per_request: sum(|round| round.spent.allocations) as f64 * each,
            cpu_us_per_request: cpu.as_secs_f64() * 1e6 * each,
            cores_busy: cpu.as_secs_f64() / elapsed.as_secs_f64().max(1e-9),
            syscalls: calls(rounds, counted),
            runtime: rounds.first().map_or("none", |round| round.runtime),
            comparison: None,
        }
    }

    /// Sets the ratio to the floor's row: of the rate, of P50 where one is in flight, of P99 where both are open loops.
    pub(crate) fn compare(&mut self, floor: &Self) {
        let latency = |pick: fn(&Latencies) -> Spread| {
            Some(pick(floor.latency.as_ref()?).median / pick(self.latency.as_ref()?).median)
        };
        let rate = || Some(self.rate_per_s.median / floor.rate_per_s.median);
        let (ratio, of) = match (self.facts.pace, floor.facts.pace) {
            (Pace::Open { .. }, Pace::Open { .. }) => (latency(|all| all.p99), "p99"),
            (Pace::Closed { in_flight: 1 }, Pace::Closed { in_flight: 1 }) => (latency(|all| all.p50), "p50"),
            _ => (rate(), "rate"),
        };
        self.comparison = ratio.filter(|ratio| ratio.is_finite()).map(|ratio| Comparison { ratio, of });
    }

    /// The row of `--json`.
    pub(crate) fn json(&self, machine: &Machine) -> Object {
        let mut object = Object::new();
        let (kind, offered, in_flight) = match self.facts.pace {
            Pace::Open { rate_per_s } => ("open", Some(rate_per_s as f64), None),
            Pace::Closed { in_flight } => ("closed", None, Some(in_flight as f64)),
        };
        object.text("scenario", self.facts.name).text("loop", kind).text("idle", self.facts.idle.name());
        object.number("offered_per_s", offered).number("in_flight", in_flight);
        spread(&mut object, "rate_per_s", Some(self.rate_per_s));
        object.number("requests", Some(self.requests as f64)).number("errors", Some(self.errors as f64));
        let latency = |pick: fn(&Latencies) -> Spread| self.latency.as_ref().map(pick);
        spread(&mut object, "p50_us", latency(|all| all.p50));
        spread(&mut object, "p99_us", latency(|all| all.p99));
        spread(&mut object, "p999_us", latency(|all| all.p999));
        spread(&mut object, "p9999_us", latency(|all| all.p9999));
        spread(&mut object, "max_us", latency(|all| all.max));
        object
            .number("sampled_one_in", Some(self.sampled_one_in as f64))
            .flag("generator_lagged", self.lagged);
        object.number("rounds", Some(self.rounds as f64)).flag("complete", self.complete);
        object.text_or_null("floor", self.facts.floor);
        object.number("floor_ratio", self.comparison.as_ref().map(|floor| floor.ratio));
        object.text_or_null("floor_ratio_of", self.comparison.as_ref().map(|floor| floor.of));
        spread(&mut object, "ns_per_op", self.ns_per_op);
        object.number("allocations_per_request", Some(self.allocations_per_request));
        object.number("syscalls_per_request", self.syscalls.map(|calls| calls.per_request));
        object.number("futexes_per_request", self.syscalls.and_then(|calls| calls.futexes_per_request));
        object.text_or_null("syscalls_counted_by", self.syscalls.map(|calls| calls.counted_by));
        object
            .number("cpu_us_per_request", Some(self.cpu_us_per_request))
            .number("cores_busy", Some(self.cores_busy));
        object.number("payload_bytes", self.facts.payload_bytes.map(|bytes| bytes as f64));
        spread(&mut object, "bytes_per_s", self.bytes_per_s);
        spread(&mut object, "resident_bytes", self.resident_bytes);
        object.text("runtime", self.runtime).object("machine", &machine.json());
        object
    }
}

/// The median under the name itself, and the ends beside it.
fn spread(object: &mut Object, name: &str, figures: Option<Spread>) {
    object.number(name, figures.map(|spread| spread.median));
    object.number(&format!("{name}_min"), figures.map(|spread| spread.min));
    object.number(&format!("{name}_max"), figures.map(|spread| spread.max));
}

fn latencies(rounds: &[RoundResult]) -> Option<Latencies> {
    let taken: Vec<&Latency> = rounds
        .iter()
        .filter_map(|round| round.latency.as_ref())
        .filter(|latency| latency.count() > 0)
        .collect();
    let over = |pick: &dyn Fn(&Latency) -> f64| Spread::of(taken.iter().map(|latency| pick(latency)));
    let mut merged = Latency::new();
    taken.iter().for_each(|latency| merged.merge(latency));
    Some(Latencies {
        p50: over(&|latency| latency.quantile_us(0.5))?,
        p99: over(&|latency| latency.quantile_us(0.99))?,
        p999: over(&|latency| latency.quantile_us(0.999))?,
        p9999: over(&|latency| latency.quantile_us(0.9999))?,
        max: over(&Latency::max_us)?,
        merged,
    })
}

/// The kernel's count where there is one, else what the loops counted, else nothing.
fn calls(rounds: &[RoundResult], counted: Option<&RoundResult>) -> Option<Calls> {
    let counted = counted.filter(|round| round.requests > 0);
    let kernel = counted.and_then(|round| Some((round.spent.kernel?, round.requests as f64)));
    if let Some((reading, requests)) = kernel {
        let futexes_per_request = Some(reading.futexes as f64 / requests);
        return Some(Calls {
            per_request: reading.calls as f64 / requests,
            futexes_per_request,
            counted_by: "kernel",
        });
    }
    let own: u64 = rounds.iter().map(|round| round.spent.own_calls).sum();
    let requests: u64 = rounds.iter().map(|round| round.requests).sum();
    let per_request = own as f64 / requests.max(1) as f64;
    (own > 0).then_some(Calls { per_request, futexes_per_request: None, counted_by: "loop" })
}

/// The table: one header, one line for each row, a legend. Latencies are microseconds.
pub(crate) fn table(rows: &[Row]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let longest = rows.iter().map(|row| row.facts.name.len()).max();
    let width = longest.unwrap_or_default().max(NAME_COLUMNS);
    let mut text = format!(
        "\n{:width$} {:>6} {:>8} {:>7} {:>7} {:>7} {:>7} {:>6} {:>5} {:>6} {:>6}\n",
        "scenario", "loop", "rate/s", "p50 µs", "p99", "p99.9", "max", "×floor", "alloc", "calls", "cpu µs"
    );
    for row in rows {
        text.push_str(&line(row, width));
    }
    text.push_str(
        "\nloop: closed with so many in flight, or open. ×floor: 1 is as good as the floor, by rate, by p50\n\
         (one in flight) or by p99 (open). alloc, calls (system calls) and cpu: a request, all processes.\n\
         A row without requests shows its share of a core, or what it holds in memory.\n",
    );
    if rows.iter().any(|row| row.sampled_one_in > 1) {
        text.push_str("Above 5 M/s latency is that of one request in 64, for floor and engine alike.\n");
    }
    text
}

fn line(row: &Row, width: usize) -> String {
    let dash = || "-".to_owned();
    let latency = |pick: fn(&Latencies) -> Spread| {
        row.latency.as_ref().map_or_else(dash, |latencies| microseconds(pick(latencies).median))
    };
    let first = match (row.ns_per_op, row.resident_bytes) {
        (Some(operation), _) => format!("{}ns", digits(operation.median)),
        (None, Some(resident)) => format!("{}B", scaled(resident.median)),
        _ if row.requests == 0 => format!("{}%", digits(row.cores_busy * 100.0)),
        _ => latency(|all| all.p50),
    };
    let rate = match row.bytes_per_s {
        Some(bytes) => format!("{}B/s", scaled(bytes.median)),
        None if row.requests == 0 => dash(),
        None => scaled(row.rate_per_s.median),
    };
    let pace = match row.facts.pace {
        Pace::Closed { in_flight } => in_flight.to_string(),
        Pace::Open { .. } => "open".into(),
    };
    let mut line = format!(
        "{:width$} {:>6} {:>8} {:>7} {:>7} {:>7} {:>7} {:>6} {:>5} {:>6} {:>6}\n",
        row.facts.name,
        pace,
        rate,
        first,
        latency(|all| all.p99),
        latency(|all| all.p999),
        latency(|all| all.max),
        row.comparison.as_ref().map_or_else(dash, |floor| digits(floor.ratio)),
        digits(row.allocations_per_request),
        row.syscalls.map_or_else(dash, |calls| digits(calls.per_request)),
        digits(row.cpu_us_per_request),
    );
    for (holds, remark) in [
        (row.lagged, "generator lagged: over 1 % of the sends were more than 1 ms late".to_owned()),
        (row.errors > 0, format!("{} of {} requests ended in an error", row.errors, row.requests)),
        (!row.complete, format!("interrupted: {} finished", row.rounds)),
    ] {
        if holds {
            line.push_str(&format!("  ^ {remark}\n"));
        }
    }
    line
}

/// Three digits that matter; nothing below a thousandth.
pub(crate) fn digits(value: f64) -> String {
    match value.abs() {
        size if size.is_nan() => "-".into(),
        size if size >= 100.0 || size == 0.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        size if size >= 0.0005 => format!("{value:.3}"),
        _ => "<.001".into(),
    }
}

/// Microseconds, in a cell that holds a minute too.
fn microseconds(value: f64) -> String {
    if value < 1e6 { digits(value) } else { format!("{:.2}s", value / 1e6) }
}

/// Three digits and a letter: `19.1M`.
pub(crate) fn scaled(value: f64) -> String {
    match value {
        large if large >= 1e9 => format!("{}G", digits(large / 1e9)),
        large if large >= 1e6 => format!("{}M", digits(large / 1e6)),
        large if large >= 1e3 => format!("{}k", digits(large / 1e3)),
        small => digits(small),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::meter::Spent;
    use crate::scenario::{Family, Idle};
    use crate::tracepoint::Reading;

    /// Facts for tests of other modules too.
    pub(crate) fn facts(name: &'static str) -> Facts {
        let (family, pace, idle) = (Family::Lane, Pace::Closed { in_flight: 1_024 }, Idle::Spin);
        Facts { name, family, pace, idle, floor: None, sweeps: false, payload_bytes: None }
    }

    /// A second in which so many requests took so many microseconds each.
    pub(crate) fn result(requests: u64, latency_us: f64) -> RoundResult {
        let mut latency = Latency::new();
        (0..100).for_each(|_| latency.record((latency_us * 1e3) as u64));
        RoundResult {
            requests,
            errors: 0,
            elapsed: Duration::from_secs(1),
            latency: Some(latency),
            sampled_one_in: 1,
            late: 0,
            ns_per_op: None,
            spent: Spent::default(),
            bytes: None,
            resident_bytes: None,
            runtime: "none",
        }
    }

    /// A row of three such rounds.
    pub(crate) fn row(facts: &Facts, requests: u64, latency_us: f64) -> Row {
        let rounds = [1, 2, 3].map(|_| result(requests, latency_us));
        Row::new(facts, &rounds, None, true)
    }

    #[test]
    fn medians_of_odd_and_even_counts() {
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 3.0]), Some(Spread { median: 2.5, min: 1.0, max: 4.0 }));
        assert_eq!(Spread::of([]), None);
    }

    #[test]
    fn a_row_is_made_of_medians_and_keeps_the_ends() {
        let rounds = [result(100, 10.0), result(300, 30.0), result(200, 20.0)];
        let row = Row::new(&facts("a"), &rounds, None, true);
        assert_eq!(row.rate_per_s, Spread { median: 200.0, min: 100.0, max: 300.0 });
        let p50 = row.latency.unwrap().p50;
        assert!(
            (p50.median - 20.0).abs() < 0.1 && (p50.min - 10.0).abs() < 0.1 && (p50.max - 30.0).abs() < 0.1
        );
    }

    #[test]
    fn the_lag_rule_is_about_the_sends_of_all_rounds() {
        let mut late = result(1_000, 1.0);
        late.late = 20;
        let on_time = result(1_000, 1.0);
        assert!(Row::new(&facts("a"), &[late.clone()], None, true).lagged);
        assert!(!Row::new(&facts("a"), &[late, on_time], None, true).lagged);
    }

    #[test]
    fn the_kernels_count_goes_before_the_loops_own() {
        let mut own = result(100, 1.0);
        own.spent.own_calls = 50;
        let mut counted = result(10, 1.0);
        counted.spent.kernel = Some(Reading { calls: 20, futexes: 5 });
        let by_loop = Row::new(&facts("a"), &[own.clone()], None, true).syscalls.unwrap();
        assert_eq!((by_loop.per_request, by_loop.counted_by), (0.5, "loop"));
        let by_kernel = Row::new(&facts("a"), &[own], Some(&counted), true).syscalls.unwrap();
        assert_eq!((by_kernel.per_request, by_kernel.futexes_per_request), (2.0, Some(0.5)));
        assert_eq!(Row::new(&facts("a"), &[result(1, 1.0)], None, true).syscalls, None);
    }

    #[test]
    fn what_is_compared_follows_the_loop() {
        let open = Facts { pace: Pace::Open { rate_per_s: 1_000 }, ..facts("open") };
        let one = Facts { pace: Pace::Closed { in_flight: 1 }, ..facts("one") };
        for (facts, of, ratio) in [(facts("many"), "rate", 0.5), (one, "p50", 0.25), (open, "p99", 0.25)] {
            let mut engine = row(&facts, 500, 40.0);
            engine.compare(&row(&facts, 1_000, 10.0));
            let comparison = engine.comparison.unwrap();
            assert_eq!(comparison.of, of);
            assert!((comparison.ratio - ratio).abs() < 0.01, "{of} {}", comparison.ratio);
        }
    }

    #[test]
    fn a_json_row_has_the_documented_names() {
        let line = row(&facts("lane/1024"), 1_000, 10.0).json(&Machine::here()).line();
        for name in [
            "scenario",
            "loop",
            "idle",
            "offered_per_s",
            "rate_per_s",
            "requests",
            "errors",
            "p50_us",
            "p99_us",
            "p999_us",
            "p9999_us",
            "max_us",
            "generator_lagged",
            "rounds",
            "floor",
            "floor_ratio",
            "ns_per_op",
            "allocations_per_request",
            "syscalls_per_request",
            "cpu_us_per_request",
        ] {
            assert_eq!(line.matches(&format!("\"{name}\":")).count(), 1, "{name} in {line}");
        }
        assert!(line.contains("\"offered_per_s\":null") && line.contains("\"floor\":null"));
        assert!(!line.contains('\n'));
    }

    #[test]
    fn the_table_fits() {
        let mut wide = row(&facts("floor/tcp/payload/16384"), 123_456_789, 59_999_999.9);
        wide.lagged = true;
        wide.errors = 123_456_789;
        wide.complete = false;
        for line in table(&[wide.clone(), wide]).lines() {
            assert!(line.chars().count() <= COLUMNS_MAX, "{line}");
        }
        assert!(table(&[]).is_empty());
    }

    #[test]
    fn figures_are_short() {
        for (value, text) in
            [(0.0, "0"), (0.0001, "<.001"), (0.0123, "0.012"), (9.71, "9.71"), (84.04, "84.0")]
        {
            assert_eq!(digits(value), text);
        }
        assert_eq!((scaled(19_123_456.0).as_str(), scaled(999.0).as_str()), ("19.1M", "999"));
    }
}
