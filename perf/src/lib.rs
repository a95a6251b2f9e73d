//! `catga-perf` makes the numbers of Catga's README on the machine it runs on. [`main`] is all of the program; the crate
//! `perf/rivals` calls it with more rows.
//!
//! How the files fit together, in the order of a run:
//!
//! ```text
//! options   what the reader asked for        scenario  what one row of the table is
//! catalog   every row, one line each         runner    rounds, interleaved with the floor's
//! load      closed and open loops            floor/    the same exchange without an engine
//! engine/   the engine's rows, their driver    rest      calls to a server that sleeps
//! rivals    other libraries in the same run
//! peer      the second process of a row      meter     CPU, allocations, system calls
//! report    rows, medians, the table         claims    held, or missed and by how much
//! record    floors on record per CPU model   results   the files of a run: rows, histograms, plots
//! ```
//!
//! Exit status: 0 the run is complete (claims may still be missed: read them), 1 a reply was wrong, lost or doubled
//! or a scenario could not run, 2 bad options, 130 interrupted.

mod alloc;
mod catalog;
mod claims;
mod engine;
mod flame;
mod floor;
mod frame;
mod histogram;
mod json;
mod load;
mod machine;
mod meter;
mod options;
mod peer;
mod plot;
mod record;
mod report;
mod rest;
mod results;
pub mod rivals;
mod runner;
mod scenario;
mod tracepoint;

use std::io::Write;
use std::process::ExitCode;

use catalog::Catalog;
use options::{Command, Options};
use rivals::Row;
use runner::{Ending, Run};
use scenario::Stop;

#[global_allocator]
static ALLOCATOR: alloc::Counting = alloc::Counting;

const EXIT_FAILED: u8 = 1;
const EXIT_USAGE: u8 = 2;
const EXIT_INTERRUPTED: u8 = 130;

/// The program: reads its arguments, runs what they select of its own rows and of the rivals', and reports.
#[must_use]
pub fn main(rivals: Vec<Row>) -> ExitCode {
    let catalog = Catalog { rivals };
    let command = match options::parse(std::env::args_os().skip(1)) {
        Ok(command) => command,
        Err(problem) => {
            eprintln!("catga-perf: {problem}\nTry 'catga-perf --help'.");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    let outcome = match command {
        Command::Help => print(options::HELP),
        Command::List => print(&catalog.names(&Options::default())),
        Command::Fold => flame::fold_stdin(),
        Command::Serve { kind, arguments } => {
            catalog::serve(&kind, &arguments).map_err(|why| why.to_string())
        }
        Command::Run(options) if options.rivals && catalog.rivals.is_empty() => {
            Err("the rivals are a program of their own: scripts/bench.sh --rivals".into())
        }
        Command::Run(options) => return measure(&options, catalog),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("catga-perf: {problem}");
            ExitCode::from(EXIT_FAILED)
        }
    }
}

/// Writes to standard output; a reader who closed it early (`| head`) is no error.
fn print(text: &str) -> Result<(), String> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(problem) if problem.kind() != std::io::ErrorKind::BrokenPipe => Err(problem.to_string()),
        _ => Ok(()),
    }
}

/// Runs what was asked for, and reports whatever was finished, however the run ended.
fn measure(options: &Options, catalog: Catalog) -> ExitCode {
    let stop = match Stop::on_signals() {
        Ok(stop) => stop,
        Err(problem) => {
            eprintln!("catga-perf: cannot watch for Ctrl-C: {problem}");
            return ExitCode::from(EXIT_FAILED);
        }
    };
    let machine = machine::Machine::here();
    for line in machine.lines() {
        eprintln!("{line}");
    }
    let run = match runner::run(options, catalog, &stop) {
        Ok(run) => run,
        Err(problem) => {
            eprintln!("catga-perf: {problem}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    let reported = report_run(options, &machine, &run);
    match (&run.ending, reported) {
        (Ending::Broken(problem), _) => {
            eprintln!("catga-perf: FAILED: {problem}");
            ExitCode::from(EXIT_FAILED)
        }
        (_, Err(problem)) => {
            eprintln!("catga-perf: {problem}");
            ExitCode::from(EXIT_FAILED)
        }
        (Ending::Interrupted, Ok(())) => {
            eprintln!("catga-perf: interrupted; the rows above are the ones that finished");
            ExitCode::from(EXIT_INTERRUPTED)
        }
        (Ending::Complete, Ok(())) => ExitCode::SUCCESS,
    }
}

/// Prints the table, the state of the floors and the claims, and writes the files.
fn report_run(options: &Options, machine: &machine::Machine, run: &Run) -> Result<(), String> {
    let mut record = record::Record::load()?;
    let floors = record.judge(&machine.model(), &run.rows);
    let mut text = report::table(&run.rows);
    for (name, why) in &run.skipped {
        text.push_str(&format!("skipped {name}: {why}\n"));
    }
    text.push_str(&floors.lines());
    if options.scenario.is_none() {
        text.push_str(&claims::lines(&run.rows, &floors));
    }
    print(&text)?;
    if options.record_floor && matches!(run.ending, Ending::Complete) {
        let path = record.keep(&machine.model(), &run.rows)?;
        eprintln!("floors recorded for {} in {}", machine.model(), path.display());
    }
    if let Some(path) = &options.json {
        results::write_rows(path, &run.rows, machine)?;
    }
    if !run.rows.is_empty() {
        let folder = results::keep(run, machine)?;
        eprintln!("rows, histograms and plots: {}", folder.display());
    }
    Ok(())
}
