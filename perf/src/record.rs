//! The floors on record for each CPU model: `perf/results/floors.toml`.
//!
//! A comparison is only worth something if the floor itself was healthy. So each closed floor's rate is held against
//! the one on record for this CPU model; under [`HEALTHY_SHARE`] of it, something else used the machine (or the floor
//! got slower, which is worse), and the run proves nothing. `--record-floor` keeps the rates of a run.
//!
//! The file is the part of TOML that this needs: `["cpu model"]` tables of `"scenario" = requests_per_s`.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use crate::report::Row;
use crate::scenario::{Family, Pace};

/// A floor below this share of its record was not measured on a quiet machine.
pub(crate) const HEALTHY_SHARE: f64 = 0.7;
const OPENING: &str = "\
# Floors on record, in requests a second: what a quiet machine of each model reached.
# Kept by `scripts/bench.sh --only floor --record-floor`; read by every run (perf/src/record.rs).
";

/// The file's contents.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Record {
    models: BTreeMap<String, BTreeMap<String, f64>>,
}

/// How the floors of a run stand to the record.
#[derive(Debug, Default)]
pub(crate) struct Floors {
    /// Name, share of the record.
    weak: Vec<(&'static str, f64)>,
    judged: usize,
    unrecorded: usize,
}

impl Record {
    /// Reads the file; an absent one is empty.
    pub(crate) fn load() -> Result<Self, String> {
        match fs::read_to_string(path()) {
            Ok(text) => Self::parse(&text),
            Err(problem) if problem.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(problem) => Err(format!("cannot read {}: {problem}", path().display())),
        }
    }

    /// Holds the floors of a run against the record.
    pub(crate) fn judge(&self, model: &str, rows: &[Row]) -> Floors {
        let record = self.models.get(model);
        let mut floors = Floors::default();
        for row in recordable(rows) {
            let Some(best) = record.and_then(|record| record.get(row.facts.name)) else {
                floors.unrecorded += 1;
                continue;
            };
            floors.judged += 1;
            let share = row.rate_per_s.median / best;
            if share < HEALTHY_SHARE {
                floors.weak.push((row.facts.name, share));
            }
        }
        floors
    }

    /// Puts the floors of a complete run on record, and returns the file's path.
    pub(crate) fn keep(&mut self, model: &str, rows: &[Row]) -> Result<PathBuf, String> {
        let record = self.models.entry(model.to_owned()).or_default();
        for row in recordable(rows) {
            record.insert(row.facts.name.to_owned(), row.rate_per_s.median.round());
        }
        let path = path();
        let written =
            path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(&path, self.text()));
        written
            .map(|()| path.clone())
            .map_err(|problem| format!("cannot write {}: {problem}", path.display()))
    }

    fn parse(text: &str) -> Result<Self, String> {
        let mut models: BTreeMap<String, BTreeMap<String, f64>> = BTreeMap::new();
        let mut model: Option<String> = None;
        for (index, line) in text.lines().map(str::trim).enumerate() {
            let problem = || format!("{} line {}: cannot read '{line}'", path().display(), index + 1);
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if let Some(name) = line.strip_prefix("[\"").and_then(|line| line.strip_suffix("\"]")) {
                model = Some(name.to_owned());
                continue;
            }
            let (name, rate) = line.split_once('=').ok_or_else(problem)?;
            let rate = rate.trim().parse::<f64>().ok().filter(|rate| *rate > 0.0).ok_or_else(problem)?;
            let record = models.entry(model.clone().ok_or_else(problem)?).or_default();
            record.insert(name.trim().trim_matches('"').to_owned(), rate);
        }
        Ok(Self { models })
    }

    fn text(&self) -> String {
        let mut text = OPENING.to_owned();
        for (model, record) in &self.models {
            text.push_str(&format!("\n[\"{}\"]\n", model.replace(['"', '\\'], "'")));
            for (name, rate) in record {
                text.push_str(&format!("\"{name}\" = {rate}\n"));
            }
        }
        text
    }
}

impl Floors {
    /// Whether the run's comparisons and claims are worth nothing.
    pub(crate) fn prove_nothing(&self) -> bool {
        !self.weak.is_empty()
    }

    /// What to say of them under the table.
    pub(crate) fn lines(&self) -> String {
        let mut text = String::new();
        for (name, share) in &self.weak {
            text.push_str(&format!("floor   {name} reached only {:.0} % of its record\n", share * 100.0));
        }
        if self.prove_nothing() {
            text.push_str("floor   THIS RUN PROVES NOTHING: its floors fell under 70 % of the record. Quiet the machine.\n");
        } else if self.judged > 0 {
            text.push_str(&format!("floor   {} floors at 70 % of their record or better\n", self.judged));
        } else if self.unrecorded > 0 {
            text.push_str(
                "floor   no record for this CPU model yet: keep one with --only floor --record-floor\n",
            );
        }
        text
    }
}

/// Closed floors that finished; an open loop's rate is the offered one and says nothing.
fn recordable(rows: &[Row]) -> impl Iterator<Item = &Row> {
    rows.iter().filter(|row| {
        row.facts.family == Family::Floor && matches!(row.facts.pace, Pace::Closed { .. }) && row.complete
    })
}

fn path() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/results/floors.toml"))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::report::tests::{facts, row};
    use crate::scenario::Facts;

    /// For tests of other modules: the judgement by a record's text.
    pub(crate) fn judge(record: &str, model: &str, rows: &[Row]) -> Floors {
        Record::parse(record).unwrap().judge(model, rows)
    }

    fn floor(requests: u64) -> Row {
        row(&Facts { family: Family::Floor, ..facts("floor/tcp/1") }, requests, 10.0)
    }

    fn record() -> Record {
        Record::parse("# comment\n\n[\"AMD EPYC, 2 cores\"]\n\"floor/tcp/1\" = 100000\n").unwrap()
    }

    #[test]
    fn what_is_written_is_read_again() {
        assert_eq!(Record::parse(&record().text()), Ok(record()));
    }

    #[test]
    fn a_damaged_file_names_its_line() {
        for text in ["[\"a\"]\nfloor", "\"floor\" = 1", "[\"a\"]\n\"floor\" = fast", "[\"a\"]\n\"floor\" = 0"]
        {
            assert!(Record::parse(text).unwrap_err().contains("line"), "{text}");
        }
    }

    #[test]
    fn a_floor_under_seventy_percent_makes_the_run_worthless() {
        let model = "AMD EPYC, 2 cores";
        let healthy = record().judge(model, &[floor(71_000)]);
        assert!(!healthy.prove_nothing() && healthy.lines().contains("1 floors at"));
        let weak = record().judge(model, &[floor(69_000)]);
        assert!(
            weak.prove_nothing() && weak.lines().contains("PROVES NOTHING") && weak.lines().contains("69 %")
        );
    }

    #[test]
    fn without_a_record_nothing_is_judged() {
        let floors = record().judge("another", &[floor(1)]);
        assert!(!floors.prove_nothing() && floors.lines().contains("no record"));
        assert!(record().judge("another", &[]).lines().is_empty());
    }
}
