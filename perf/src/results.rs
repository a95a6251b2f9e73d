//! The files of a run: `perf/results/local/DATE/` holds the rows, a histogram for each row and two plots.
//!
//! The folder is ignored by git: a run is the reader's own. Histograms are in the text form of HdrHistogram, which its
//! plotters read; `rows.jsonl` is the same as `--json` writes, and `sweep.jsonl` holds the rates of the second plot.

use std::fs;
use std::path::{Path, PathBuf};

use crate::machine::Machine;
use crate::plot::{Axis, Chart, Series};
use crate::report::Row;
use crate::runner::Run;
use crate::scenario::Pace;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/results/local");
/// Percentiles of the first plot: fine enough for a smooth line, in nines.
const STEPS_PER_NINE: usize = 16;
const NINES: usize = 5;
/// More lines than this in one plot cannot be told apart.
const LINES_MAX: usize = 12;

/// Writes one JSON object a line.
pub(crate) fn write_rows(path: &Path, rows: &[Row], machine: &Machine) -> Result<(), String> {
    let text: String = rows.iter().map(|row| format!("{}\n", row.json(machine).line())).collect();
    write(path, &text)
}

/// Writes everything, and returns the folder.
pub(crate) fn keep(run: &Run, machine: &Machine) -> Result<PathBuf, String> {
    let folder = Path::new(FOLDER).join(machine.date().replace(':', ""));
    fs::create_dir_all(&folder).map_err(|problem| format!("cannot make {}: {problem}", folder.display()))?;
    write_rows(&folder.join("rows.jsonl"), &run.rows, machine)?;
    for row in &run.rows {
        if let Some(latency) = &row.latency {
            let file = folder.join(format!("{}.hgrm", row.facts.name.replace('/', "-")));
            write(&file, &latency.merged.distribution())?;
        }
    }
    let title = format!("{} · {}", machine.model(), machine.date());
    if let Some(svg) = by_percentile(&run.rows, &title) {
        write(&folder.join("latency.svg"), &svg)?;
    }
    if !run.sweeps.is_empty() {
        write_rows(&folder.join("sweep.jsonl"), &run.sweeps, machine)?;
        write(&folder.join("saturation.svg"), &by_rate(&run.sweeps, &title))?;
    }
    Ok(folder)
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|problem| format!("cannot write {}: {problem}", path.display()))
}

/// Latency by percentile: open loops, and closed ones with one in flight, where latency is the point.
fn by_percentile(rows: &[Row], title: &str) -> Option<String> {
    let about_latency = |row: &&Row| !matches!(row.facts.pace, Pace::Closed { in_flight: 2.. });
    let line = |row: &Row| {
        let merged = &row.latency.as_ref()?.merged;
        // Beyond one in as many as were taken there is only the longest one.
        let beyond = (merged.count() as f64).log10();
        let steps = (0..=NINES * STEPS_PER_NINE).map(|step| step as f64 / STEPS_PER_NINE as f64);
        let points = steps.take_while(|nines| *nines <= beyond).map(|nines| {
            let inverse = 10_f64.powf(nines);
            (inverse, merged.quantile_us(1.0 - 1.0 / inverse))
        });
        Some(Series { name: row.facts.name.to_owned(), points: points.collect() })
    };
    let series: Vec<_> = rows.iter().filter(about_latency).filter_map(line).take(LINES_MAX).collect();
    if series.is_empty() {
        return None;
    }
    let percentiles = ["0", "90", "99", "99.9", "99.99", "99.999"];
    let ticks =
        (0..).zip(percentiles).map(|(nines, label)| (10_f64.powi(nines), format!("{label} %"))).collect();
    let x = Axis { label: "percentile of requests".into(), ticks: Some(ticks) };
    let y = Axis { label: "latency, µs".into(), ticks: None };
    Some(Chart { title: format!("Latency by percentile · {title}"), x, y, series }.svg())
}

/// P99 against the offered rate.
fn by_rate(sweeps: &[Row], title: &str) -> String {
    let mut series: Vec<Series> = Vec::new();
    for row in sweeps {
        let (Pace::Open { rate_per_s }, Some(latency)) = (row.facts.pace, &row.latency) else { continue };
        let point = (rate_per_s as f64, latency.p99.median);
        match series.last_mut() {
            Some(last) if last.name == row.facts.name => last.points.push(point),
            _ => series.push(Series { name: row.facts.name.to_owned(), points: vec![point] }),
        }
    }
    let x = Axis { label: "offered requests per second, up to saturation".into(), ticks: None };
    let y = Axis { label: "P99, µs".into(), ticks: None };
    Chart { title: format!("P99 against offered rate · {title}"), x, y, series }.svg()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::{facts, row};
    use crate::scenario::Facts;

    #[test]
    fn latency_is_plotted_where_it_is_the_point() {
        let one = Facts { pace: Pace::Closed { in_flight: 1 }, ..facts("lane/1") };
        let svg =
            by_percentile(&[row(&one, 1_000, 10.0), row(&facts("lane/1024"), 1_000, 10.0)], "t").unwrap();
        assert!(svg.contains("lane/1<") && !svg.contains("lane/1024"));
        assert!(by_percentile(&[], "t").is_none());
    }

    #[test]
    fn a_sweep_is_one_line_for_each_scenario() {
        let at = |name, rate_per_s| {
            row(&Facts { pace: Pace::Open { rate_per_s }, ..facts(name) }, rate_per_s, 10.0)
        };
        let svg = by_rate(&[at("a", 1_000), at("a", 2_000), at("b", 1_000)], "t");
        assert_eq!(svg.matches("<polyline").count(), 2);
    }
}
