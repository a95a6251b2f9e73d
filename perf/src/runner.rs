//! Runs rounds: the floor's between the engine's, so that both meet the same weather on the machine.
//!
//! ```text
//! group = one scenario without a floor, and all that are compared to it
//! round 1: floor, a, b   round 2: floor, a, b   …   then one counting round each, with the kernel's counters on
//! ```
//!
//! After the groups, open loops are swept over growing rates until they saturate, for the plot. Whatever ends the run
//! early, the rounds that were finished are kept.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use crate::catalog::Catalog;
use crate::options::Options;
use crate::report::Row;
use crate::rivals;
use crate::scenario::{Broken, Facts, Family, Pace, Round, RoundResult, Scenario, Stop};
use crate::tracepoint::Kernel;

/// Medians need at least three.
const ROUNDS_QUICK: usize = 3;
const ROUNDS_FULL: usize = 5;
/// Offered rates of the sweep, up to where the scenario saturates.
const SWEEP_RATES_PER_S: [u64; 12] = [
    100_000, 250_000, 500_000, 1_000_000, 1_500_000, 2_000_000, 3_000_000, 4_000_000, 6_000_000, 8_000_000,
    12_000_000, 16_000_000,
];
/// A sweep ends where less than this share of the offered rate is served.
const SATURATED_BELOW: f64 = 0.95;

/// What a run gave.
pub(crate) struct Run {
    /// In the order of the catalog.
    pub(crate) rows: Vec<Row>,
    /// Scenario and reason.
    pub(crate) skipped: Vec<(&'static str, String)>,
    /// One row for each rate of each sweep, in order.
    pub(crate) sweeps: Vec<Row>,
    /// How it ended.
    pub(crate) ending: Ending,
}

/// How a run ended.
pub(crate) enum Ending {
    /// All that was asked for.
    Complete,
    /// By Ctrl-C.
    Interrupted,
    /// By a wrong reply or a scenario that could not run; the message names it.
    Broken(String),
}

/// How long things take.
#[derive(Clone, Copy)]
struct Plan {
    rounds: usize,
    warm_up: Duration,
    span: Duration,
    /// Of the counting round and of each rate of a sweep; `None` leaves both out.
    extra: Option<Duration>,
}

impl Plan {
    fn of(options: &Options) -> Self {
        let milliseconds = Duration::from_millis;
        if let Some((_, span)) = options.scenario {
            Self { rounds: 1, warm_up: milliseconds(200), span, extra: None }
        } else if options.quick {
            let (warm_up, span, extra) = (milliseconds(60), milliseconds(330), Some(milliseconds(150)));
            Self { rounds: ROUNDS_QUICK, warm_up, span, extra }
        } else {
            let (warm_up, span, extra) = (milliseconds(100), milliseconds(750), Some(milliseconds(300)));
            Self { rounds: ROUNDS_FULL, warm_up, span, extra }
        }
    }
}

/// Runs what the options select. The error is about the selection; everything later is in the [`Run`].
pub(crate) fn run(options: &Options, catalog: Catalog, stop: &Stop) -> Result<Run, String> {
    let chosen = select(catalog.scenarios(options), options)?;
    let plan = Plan::of(options);
    let mut skipped = Vec::new();
    let mut entries = Vec::new();
    for scenario in chosen {
        match scenario.unavailable() {
            Some(why) => skipped.push((scenario.facts().name, why)),
            None => {
                entries.push(Entry { facts: scenario.facts(), scenario, rounds: Vec::new(), counted: None })
            }
        }
    }
    let kernel = plan.extra.and_then(|_| match Kernel::open() {
        // Only to see whether it is allowed: open counters slow the timed rounds.
        Ok(_) => Some(()),
        Err(problem) => {
            eprintln!("note     no count of system calls ({problem}): it takes root and a mounted tracefs");
            None
        }
    });
    let steps = entries.len() * (plan.rounds + usize::from(kernel.is_some()));
    let mut progress = Progress { step: 0, steps };
    let measured = measure(&mut entries, plan, kernel.is_some(), stop, &mut progress);
    let mut sweeps = Vec::new();
    let swept = measured.and_then(|()| match plan.extra {
        Some(span) => sweep(&entries, Plan { span, ..plan }, stop, &mut sweeps),
        None => Ok(()),
    });
    progress.end();
    let ending = match swept {
        Ok(()) => Ending::Complete,
        Err(Failure { broken: Broken::Interrupted, .. }) => Ending::Interrupted,
        Err(Failure { name, broken }) => Ending::Broken(format!("{name}: {broken}")),
    };
    Ok(Run { rows: rows(&entries, plan), skipped, sweeps, ending })
}

/// A scenario and what it has given so far.
struct Entry {
    facts: Facts,
    scenario: Box<dyn Scenario>,
    rounds: Vec<RoundResult>,
    counted: Option<RoundResult>,
}

struct Failure {
    name: &'static str,
    broken: Broken,
}

/// All groups, each with its rounds interleaved.
fn measure(
    entries: &mut [Entry],
    plan: Plan,
    counts: bool,
    stop: &Stop,
    progress: &mut Progress,
) -> Result<(), Failure> {
    for group in groups(entries) {
        for round in 0..plan.rounds {
            for &member in &group {
                progress.step(&format!(
                    "{} round {} of {}",
                    entries[member].facts.name,
                    round + 1,
                    plan.rounds
                ));
                let result = entries[member].run(plan, plan.span, stop, None)?;
                entries[member].rounds.push(result);
            }
        }
        let (Some(span), true) = (plan.extra, counts) else { continue };
        for &member in &group {
            progress.step(&format!("{} counting", entries[member].facts.name));
            // Opened and closed around each, so that it is off whenever time is measured.
            let kernel = Kernel::open().ok();
            entries[member].counted = Some(entries[member].run(plan, span, stop, kernel.as_ref())?);
        }
    }
    Ok(())
}

/// Each scenario without a floor, with those that are compared to it, as positions.
fn groups(entries: &[Entry]) -> Vec<Vec<usize>> {
    let heads = entries.iter().enumerate().filter(|(_, entry)| entry.facts.floor.is_none());
    let group = |(head, entry): (usize, &Entry)| {
        let compared = |other: &Entry| other.facts.floor == Some(entry.facts.name);
        std::iter::once(head).chain((0..entries.len()).filter(|&other| compared(&entries[other]))).collect()
    };
    let grouped: Vec<Vec<usize>> = heads.map(group).collect();
    // A scenario that runs alone has no floor beside it, and is a group of its own.
    let lone = (0..entries.len()).filter(|member| !grouped.iter().any(|group| group.contains(member)));
    let lone: Vec<_> = lone.map(|member| vec![member]).collect();
    [grouped, lone].concat()
}

impl Entry {
    fn run(
        &self,
        plan: Plan,
        span: Duration,
        stop: &Stop,
        kernel: Option<&Kernel>,
    ) -> Result<RoundResult, Failure> {
        let round = Round { pace: self.facts.pace, warm_up: plan.warm_up, span, stop, kernel };
        self.run_round(&round)
    }

    fn run_round(&self, round: &Round<'_>) -> Result<RoundResult, Failure> {
        let name = self.facts.name;
        if round.stop.requested() {
            return Err(Failure { name, broken: Broken::Interrupted });
        }
        self.scenario.run(round).map_err(|broken| Failure { name, broken })
    }
}

/// P99 against the offered rate, for the plot.
fn sweep(entries: &[Entry], plan: Plan, stop: &Stop, rows: &mut Vec<Row>) -> Result<(), Failure> {
    for entry in entries.iter().filter(|entry| entry.facts.sweeps) {
        for rate_per_s in SWEEP_RATES_PER_S {
            Progress::say(&format!("{} at {rate_per_s}/s", entry.facts.name));
            let pace = Pace::Open { rate_per_s };
            let round = Round { pace, warm_up: plan.warm_up, span: plan.span, stop, kernel: None };
            let result = entry.run_round(&round)?;
            let row = Row::new(&Facts { pace, ..entry.facts.clone() }, &[result], None, true);
            let saturated = row.lagged || row.rate_per_s.median < SATURATED_BELOW * rate_per_s as f64;
            rows.push(row);
            if saturated {
                break;
            }
        }
    }
    Ok(())
}

/// A row for each scenario that finished a round, compared to its floor's.
fn rows(entries: &[Entry], plan: Plan) -> Vec<Row> {
    let finished = entries.iter().filter(|entry| !entry.rounds.is_empty());
    let mut rows: Vec<_> = finished
        .map(|entry| {
            let complete = entry.rounds.len() == plan.rounds;
            Row::new(&entry.facts, &entry.rounds, entry.counted.as_ref(), complete)
        })
        .collect();
    let floors = rows.clone();
    for row in &mut rows {
        if let Some(floor) = floors.iter().find(|floor| row.facts.floor == Some(floor.facts.name)) {
            row.compare(floor);
        }
    }
    rows
}

/// What `--scenario` or `--only` leaves, with the floors that it needs, in the order of the catalog.
fn select(all: Vec<Box<dyn Scenario>>, options: &Options) -> Result<Vec<Box<dyn Scenario>>, String> {
    if let Some((name, _)) = &options.scenario {
        let one: Vec<_> = all.into_iter().filter(|scenario| scenario.facts().name == name).collect();
        return if one.is_empty() {
            Err(format!("there is no scenario '{name}'; see --list"))
        } else {
            Ok(one)
        };
    }
    let Some(family) = options.only else { return Ok(all) };
    // Rivals come with the rows that answer them, and with whatever else was asked for if they were, too.
    let wanted = |facts: &Facts| match facts.family {
        Family::Rivals => options.rivals || family == Family::Rivals,
        _ => facts.family == family || family == Family::Rivals && rivals::is_answer_to_rivals(facts),
    };
    let wanted: Vec<_> = all.iter().map(|scenario| scenario.facts()).filter(|facts| wanted(facts)).collect();
    if !wanted.iter().any(|facts| facts.family == family) {
        return Err("--only names a family without scenarios in this version; see --list".into());
    }
    let chosen =
        |facts: &Facts| wanted.iter().any(|one| one.name == facts.name || one.floor == Some(facts.name));
    Ok(all.into_iter().filter(|scenario| chosen(&scenario.facts())).collect())
}

/// Where a run is, on standard error: one line that is written over, or a line each where it is not a terminal.
struct Progress {
    step: usize,
    steps: usize,
}

impl Progress {
    fn step(&mut self, what: &str) {
        self.step += 1;
        Self::say(&format!("[{:3}/{}] {what}", self.step, self.steps));
    }

    fn say(text: &str) {
        let mut output = std::io::stderr();
        // Progress that cannot be shown is no reason to end a run.
        let _ =
            if output.is_terminal() { write!(output, "\r\x1b[K{text}") } else { writeln!(output, "{text}") };
    }

    fn end(&self) {
        if std::io::stderr().is_terminal() {
            eprint!("\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fake {
        facts: Facts,
        fails_in_round: Option<usize>,
        runs: std::cell::Cell<usize>,
    }

    fn fake(name: &'static str, floor: Option<&'static str>) -> Entry {
        failing(name, floor, None)
    }

    fn failing(name: &'static str, floor: Option<&'static str>, fails_in_round: Option<usize>) -> Entry {
        let facts = Facts { name, floor, ..crate::report::tests::facts(name) };
        let scenario = Box::new(Fake { facts: facts.clone(), fails_in_round, runs: Default::default() });
        Entry { facts, scenario, rounds: Vec::new(), counted: None }
    }

    impl Scenario for Fake {
        fn facts(&self) -> Facts {
            self.facts.clone()
        }

        fn run(&self, _: &Round<'_>) -> Result<RoundResult, Broken> {
            self.runs.set(self.runs.get() + 1);
            match self.fails_in_round {
                Some(round) if round == self.runs.get() => Err(Broken::WrongReply("on purpose".into())),
                _ => Ok(crate::report::tests::result(1_000_000, 10.0)),
            }
        }
    }

    fn plan() -> Plan {
        Plan { rounds: 3, warm_up: Duration::ZERO, span: Duration::ZERO, extra: None }
    }

    #[test]
    fn a_floor_and_all_that_is_compared_to_it_are_one_group() {
        let entries = [
            fake("floor/a", None),
            fake("x", Some("floor/b")),
            fake("floor/b", None),
            fake("y", Some("floor/b")),
        ];
        assert_eq!(groups(&entries), [vec![0], vec![2, 1, 3]]);
        assert_eq!(groups(&[fake("alone", Some("floor/absent"))]), [vec![0]]);
    }

    #[test]
    fn a_failure_keeps_the_rounds_before_it() {
        let mut entries = [fake("floor", None), failing("engine", Some("floor"), Some(2))];
        let mut progress = Progress { step: 0, steps: 0 };
        let failure = measure(&mut entries, plan(), false, &Stop::never(), &mut progress).err().unwrap();
        assert_eq!(failure.name, "engine");
        let rows = rows(&entries, plan());
        assert_eq!(
            rows.iter().map(|row| (row.rounds, row.complete)).collect::<Vec<_>>(),
            [(2, false), (1, false)]
        );
    }

    #[test]
    fn rows_know_their_ratio_to_the_floor() {
        let mut entries = [fake("floor", None), fake("engine", Some("floor"))];
        let mut progress = Progress { step: 0, steps: 0 };
        assert!(measure(&mut entries, plan(), false, &Stop::never(), &mut progress).is_ok());
        let rows = rows(&entries, plan());
        assert!(rows[0].comparison.is_none() && rows[1].comparison.is_some() && rows[1].complete);
    }

    #[test]
    fn a_family_brings_the_floors_that_it_needs() {
        let names = |options: &Options| -> Vec<_> {
            select(Catalog::default().scenarios(options), options)
                .unwrap()
                .iter()
                .map(|one| one.facts().name)
                .collect()
        };
        let local = names(&Options { only: Some(Family::Local), ..Options::default() });
        assert!(local.contains(&"local/locked") && local.contains(&"floor/ring/1024"));
        assert!(!local.contains(&"floor/tcp/1"));
        let unknown = Options { scenario: Some(("nothing".into(), Duration::ZERO)), ..Options::default() };
        assert!(select(Catalog::default().scenarios(&unknown), &unknown).is_err());
        let nobody = Options { only: Some(Family::Rivals), ..Options::default() };
        assert!(select(Catalog::default().scenarios(&nobody), &nobody).is_err());
    }
}
