//! The claims, and whether this run held them: one line each, with by how much.
//!
//! A claim is a bound on one figure of one row. It is judged only on a complete row of a run whose floors were healthy;
//! errors or a generator that lagged make it missed, whatever the figure says.

use crate::record::Floors;
use crate::report::{Row, digits, scaled};
use crate::scenario::Pace;

/// A figure of a row.
#[derive(Clone, Copy, Debug)]
enum Figure {
    RatePerS,
    BytesPerS,
    P50Us,
    P99Us,
    NsPerOp,
    Allocations,
    Syscalls,
    Futexes,
    /// Of an idle engine, in bytes.
    Resident,
    /// CPU seconds each second, as a percentage of one core.
    CorePercent,
    /// The same, of all cores that the process may use.
    MachinePercent,
}

/// What the figure must be.
#[derive(Clone, Copy, Debug)]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
    Under(f64),
    /// Of the floor's figure in the same run.
    AtLeastOfFloor(f64),
    /// The same.
    AtMostOfFloor(f64),
    /// Of another row's figure in the same run.
    AtLeastOf(f64, &'static str),
    /// The same.
    AtMostOf(f64, &'static str),
}

struct Claim {
    scenario: &'static str,
    figure: Figure,
    bound: Bound,
    /// For open loops: claimed at this rate or above.
    offered_min_per_s: Option<u64>,
}

const fn claim(scenario: &'static str, figure: Figure, bound: Bound) -> Claim {
    Claim { scenario, figure, bound, offered_min_per_s: None }
}

const fn claim_open(scenario: &'static str, offered_min_per_s: u64, figure: Figure, bound: Bound) -> Claim {
    Claim { scenario, figure, bound, offered_min_per_s: Some(offered_min_per_s) }
}

const MEBIBYTE: f64 = (1 << 20) as f64;

/// What the project says it reaches.
const CLAIMS: &[Claim] = &[
    claim("local/same-shard", Figure::NsPerOp, Bound::AtMost(40.0)),
    claim("local/cross-shard/1024", Figure::RatePerS, Bound::AtLeast(5e6)),
    claim("local/cross-shard/batch", Figure::RatePerS, Bound::AtLeast(15e6)),
    claim("local/cross-shard/1", Figure::P50Us, Bound::AtMost(0.5)),
    claim("lane/1024", Figure::RatePerS, Bound::AtLeast(3e6)),
    claim("lane/batch", Figure::RatePerS, Bound::AtLeast(5e6)),
    claim("lane/1", Figure::P50Us, Bound::AtMost(15.0)),
    claim("lane/park/1", Figure::P50Us, Bound::AtMostOfFloor(1.2)),
    claim_open("lane/open", 1_000_000, Figure::P99Us, Bound::AtMost(1_000.0)),
    claim_open("lane/cpu", 500_000, Figure::MachinePercent, Bound::AtMost(30.0)),
    claim_open("bus/nats/open", 1_000_000, Figure::P99Us, Bound::AtMost(5_000.0)),
    claim_open("bus/redis/open", 1_000_000, Figure::P99Us, Bound::AtMost(5_000.0)),
    claim("view/read", Figure::NsPerOp, Bound::AtMost(1.0)),
    claim("local/cross-shard/1024", Figure::Allocations, Bound::AtMost(0.0)),
    claim("lane/1024", Figure::Allocations, Bound::AtMost(0.0)),
    claim("local/cross-shard/1024", Figure::Futexes, Bound::AtMost(0.0)),
    claim("lane/1024", Figure::Futexes, Bound::AtMost(0.0)),
    claim("local/cross-shard/1024", Figure::Syscalls, Bound::Under(0.05)),
    claim("lane/1024", Figure::Syscalls, Bound::Under(0.05)),
    claim("local/idle", Figure::CorePercent, Bound::Under(1.0)),
    claim("local/client/64", Figure::RatePerS, Bound::AtLeastOf(2.0, "rivals/tokio-channel/64")),
    claim("local/client/park/1", Figure::P50Us, Bound::AtMostOf(1.2, "rivals/tokio-channel/park/1")),
    claim("local/start", Figure::P50Us, Bound::Under(50_000.0)),
    claim("local/memory/1", Figure::Resident, Bound::Under((16 + 4) as f64 * MEBIBYTE)),
    claim("local/memory/2", Figure::Resident, Bound::Under((16 + 2 * 4) as f64 * MEBIBYTE)),
    claim("lane/payload/1024", Figure::BytesPerS, Bound::AtLeastOfFloor(0.6)),
    claim("lane/payload/16384", Figure::BytesPerS, Bound::AtLeastOfFloor(0.6)),
];

/// An open loop that served less than this share of what was offered did not hold the rate.
const SERVED_SHARE_MIN: f64 = 0.99;
/// Figures for each request that a few events outside the requests (a timer, a heartbeat) would otherwise spoil.
const NOUGHT_PER_REQUEST: f64 = 0.001;

#[derive(Debug, PartialEq)]
enum Verdict {
    Held(String),
    Missed(String),
    Unproven(String),
}

/// One line for each claim whose row was run; the others are counted at the end.
pub(crate) fn lines(rows: &[Row], floors: &Floors) -> String {
    let mut text = String::from("\n");
    let mut absent = 0;
    for claim in CLAIMS {
        let row = |name: &str| rows.iter().find(|row| row.facts.name == name);
        let other = match claim.bound {
            Bound::AtLeastOf(_, other) | Bound::AtMostOf(_, other) => Some(row(other)),
            _ => None,
        };
        let (Some(measured), None | Some(Some(_))) = (row(claim.scenario), other) else {
            absent += 1;
            continue;
        };
        let floor = other.flatten().or_else(|| measured.facts.floor.and_then(row));
        let (word, detail) = match claim.judge(measured, floor, floors) {
            Verdict::Held(detail) => ("held", detail),
            Verdict::Missed(detail) => ("MISSED", detail),
            Verdict::Unproven(detail) => ("unproven", detail),
        };
        text.push_str(&format!("{word:8} {:24} {}: {detail}\n", claim.scenario, claim.text()));
    }
    if absent > 0 {
        text.push_str(&format!("not judged: {absent} claims on rows that were not part of this run\n"));
    }
    text
}

impl Claim {
    /// `floor` is what the row is compared to: its floor, or the row that the claim names.
    fn judge(&self, row: &Row, floor: Option<&Row>, floors: &Floors) -> Verdict {
        let unproven = |why: &str| Verdict::Unproven(why.to_owned());
        if floors.prove_nothing() {
            return unproven("floors fell under their record");
        }
        if !row.complete {
            return unproven("interrupted");
        }
        if row.errors > 0 {
            return Verdict::Missed(format!("{} requests ended in an error", row.errors));
        }
        if let Pace::Open { rate_per_s } = row.facts.pace {
            let offered = rate_per_s as f64;
            if self.offered_min_per_s.is_some_and(|min| rate_per_s < min) {
                return unproven(&format!("only {}/s were offered", scaled(offered)));
            }
            if row.lagged {
                return Verdict::Missed("generator lagged".into());
            }
            if row.rate_per_s.median < SERVED_SHARE_MIN * offered {
                let served = scaled(row.rate_per_s.median);
                return Verdict::Missed(format!("{served}/s of {}/s were served", scaled(offered)));
            }
        }
        let Some(measured) = self.figure.of(row) else { return unproven("not counted on this machine") };
        let (bound, least) = match (self.bound, floor.and_then(|floor| self.figure.of(floor))) {
            (Bound::AtLeast(bound), _) => (bound, true),
            (Bound::AtMost(bound) | Bound::Under(bound), _) => (bound, false),
            (Bound::AtLeastOfFloor(share) | Bound::AtLeastOf(share, _), Some(floor)) => (share * floor, true),
            (Bound::AtMostOfFloor(share) | Bound::AtMostOf(share, _), Some(floor)) => (share * floor, false),
            (_, None) => return unproven("its floor was not run"),
        };
        self.verdict(measured, bound, least)
    }

    fn verdict(&self, measured: f64, bound: f64, least: bool) -> Verdict {
        let nought = bound == 0.0;
        let held = match self.bound {
            _ if nought => measured < NOUGHT_PER_REQUEST,
            Bound::Under(_) => measured < bound,
            _ if least => measured >= bound,
            _ => measured <= bound,
        };
        let figure = self.figure.text(measured);
        if nought {
            return if held { Verdict::Held(figure) } else { Verdict::Missed(figure) };
        }
        // By how much: the factor between figure and bound, always above 1.
        let (factor, side) =
            if measured >= bound { (measured / bound, "above") } else { (bound / measured, "under") };
        let detail = format!("{figure}, {}x {side} {}", digits(factor), self.figure.text(bound));
        if held { Verdict::Held(detail) } else { Verdict::Missed(detail) }
    }

    /// What is claimed.
    fn text(&self) -> String {
        let name = self.figure.name();
        let rate =
            self.offered_min_per_s.map_or_else(String::new, |rate| format!(" at {}/s", scaled(rate as f64)));
        match self.bound {
            Bound::AtLeast(bound) => format!("{name} >= {}{rate}", self.figure.text(bound)),
            Bound::AtMost(bound) => format!("{name} <= {}{rate}", self.figure.text(bound)),
            Bound::Under(bound) => format!("{name} < {}{rate}", self.figure.text(bound)),
            Bound::AtLeastOfFloor(share) => format!("{name} >= {} x floor", digits(share)),
            Bound::AtMostOfFloor(share) => format!("{name} <= {} x floor", digits(share)),
            Bound::AtLeastOf(share, other) => format!("{name} >= {} x {other}", digits(share)),
            Bound::AtMostOf(share, other) => format!("{name} <= {} x {other}", digits(share)),
        }
    }
}

impl Figure {
    fn of(self, row: &Row) -> Option<f64> {
        let latency = row.latency.as_ref();
        match self {
            Self::RatePerS => Some(row.rate_per_s.median),
            Self::BytesPerS => row.bytes_per_s.map(|spread| spread.median),
            Self::P50Us => latency.map(|latency| latency.p50.median),
            Self::P99Us => latency.map(|latency| latency.p99.median),
            Self::NsPerOp => row.ns_per_op.map(|spread| spread.median),
            Self::Allocations => Some(row.allocations_per_request),
            Self::Syscalls => row.syscalls.map(|calls| calls.per_request),
            Self::Futexes => row.syscalls.and_then(|calls| calls.futexes_per_request),
            Self::Resident => row.resident_bytes.map(|spread| spread.median),
            Self::CorePercent => Some(row.cores_busy * 100.0),
            Self::MachinePercent => {
                let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
                Some(row.cores_busy * 100.0 / cores as f64)
            }
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::RatePerS => "rate",
            Self::BytesPerS => "bandwidth",
            Self::P50Us => "p50",
            Self::P99Us => "p99",
            Self::NsPerOp => "one",
            Self::Allocations => "allocations",
            Self::Syscalls => "system calls",
            Self::Futexes => "futex calls",
            Self::Resident => "memory",
            Self::CorePercent => "of a core",
            Self::MachinePercent => "of the machine",
        }
    }

    fn text(self, value: f64) -> String {
        match self {
            Self::RatePerS => format!("{}/s", scaled(value)),
            Self::BytesPerS => format!("{}B/s", scaled(value)),
            Self::P50Us | Self::P99Us => format!("{} µs", digits(value)),
            Self::NsPerOp => format!("{} ns", digits(value)),
            Self::Allocations | Self::Syscalls | Self::Futexes => digits(value),
            Self::Resident => format!("{} MiB", digits(value / MEBIBYTE)),
            Self::CorePercent | Self::MachinePercent => format!("{} %", digits(value)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::{facts, row};
    use crate::scenario::{Facts, Family};

    fn verdict(claim: &Claim, row: &Row, floor: Option<&Row>) -> Verdict {
        claim.judge(row, floor, &Floors::default())
    }

    const RATE: Claim = claim("lane/1024", Figure::RatePerS, Bound::AtLeast(3e6));
    const OPEN: Claim = claim_open("lane/open", 1_000_000, Figure::P99Us, Bound::AtMost(1_000.0));

    fn open_row(offered: u64, served: u64, latency_us: f64) -> Row {
        row(&Facts { pace: Pace::Open { rate_per_s: offered }, ..facts("lane/open") }, served, latency_us)
    }

    #[test]
    fn a_claim_is_held_or_missed_by_a_factor() {
        let held = verdict(&RATE, &row(&facts("lane/1024"), 6_000_000, 1.0), None);
        assert_eq!(held, Verdict::Held("6.00M/s, 2.00x above 3.00M/s".into()));
        let missed = verdict(&RATE, &row(&facts("lane/1024"), 1_500_000, 1.0), None);
        assert_eq!(missed, Verdict::Missed("1.50M/s, 2.00x under 3.00M/s".into()));
        let held = verdict(&OPEN, &open_row(1_000_000, 1_000_000, 100.0), None);
        assert!(matches!(held, Verdict::Held(detail) if detail.contains("x under 1000 µs")));
    }

    #[test]
    fn a_claim_about_a_million_a_second_needs_a_million_a_second() {
        let slow = verdict(&OPEN, &open_row(10_000, 10_000, 1.0), None);
        assert!(matches!(slow, Verdict::Unproven(_)));
        let short = verdict(&OPEN, &open_row(1_000_000, 900_000, 1.0), None);
        assert!(matches!(short, Verdict::Missed(_)));
    }

    #[test]
    fn lag_and_errors_miss_whatever_the_figure() {
        let mut lagged = open_row(1_000_000, 1_000_000, 1.0);
        lagged.lagged = true;
        assert_eq!(verdict(&OPEN, &lagged, None), Verdict::Missed("generator lagged".into()));
        let mut failed = row(&facts("lane/1024"), 6_000_000, 1.0);
        failed.errors = 1;
        assert!(matches!(verdict(&RATE, &failed, None), Verdict::Missed(_)));
    }

    #[test]
    fn unfinished_rows_and_weak_floors_prove_nothing() {
        let mut unfinished = row(&facts("lane/1024"), 6_000_000, 1.0);
        unfinished.complete = false;
        assert!(matches!(verdict(&RATE, &unfinished, None), Verdict::Unproven(_)));
        let record = "[\"m\"]\n\"floor/tcp/1024\" = 100\n";
        let weak = row(&Facts { family: Family::Floor, ..facts("floor/tcp/1024") }, 10, 1.0);
        let floors = crate::record::tests::judge(record, "m", &[weak]);
        let judged = RATE.judge(&row(&facts("lane/1024"), 6_000_000, 1.0), None, &floors);
        assert!(matches!(judged, Verdict::Unproven(_)));
    }

    #[test]
    fn a_share_of_the_floor_needs_the_floor() {
        let parked = claim("lane/park/1", Figure::P50Us, Bound::AtMostOfFloor(1.2));
        let (engine, floor) = (row(&facts("a"), 1, 11.0), row(&facts("b"), 1, 10.0));
        assert!(matches!(verdict(&parked, &engine, Some(&floor)), Verdict::Held(_)));
        assert!(matches!(verdict(&parked, &row(&facts("a"), 1, 13.0), Some(&floor)), Verdict::Missed(_)));
        assert!(matches!(verdict(&parked, &engine, None), Verdict::Unproven(_)));
    }

    #[test]
    fn a_claim_against_a_rival_is_judged_only_beside_it() {
        let engine = row(&facts("local/client/64"), 2_000_000, 1.0);
        let alone = lines(std::slice::from_ref(&engine), &Floors::default());
        assert!(!alone.contains("local/client/64"), "{alone}");
        for (rate, verdict) in [(900_000, "held"), (1_100_000, "MISSED")] {
            let rival = row(&facts("rivals/tokio-channel/64"), rate, 1.0);
            let text = lines(&[engine.clone(), rival], &Floors::default());
            let line = text.lines().find(|line| line.contains("local/client/64")).unwrap();
            assert!(line.starts_with(verdict) && line.contains("2.00 x rivals/tokio-channel/64"), "{line}");
        }
    }

    #[test]
    fn nought_is_nought_but_for_rounding() {
        let claim = claim("lane/1024", Figure::Allocations, Bound::AtMost(0.0));
        let mut measured = row(&facts("lane/1024"), 1_000, 1.0);
        assert_eq!(verdict(&claim, &measured, None), Verdict::Held("0".into()));
        measured.allocations_per_request = 0.01;
        assert_eq!(verdict(&claim, &measured, None), Verdict::Missed("0.010".into()));
    }

    #[test]
    fn what_was_not_run_is_counted() {
        let text = lines(&[row(&facts("view/read"), 1, 1.0)], &Floors::default());
        assert!(text.contains(&format!("{} claims", CLAIMS.len() - 1)), "{text}");
    }
}
