//! The command line: from words to a [`Command`] that needs no further checks.
//!
//! A value that parses here is in range, files that must exist do exist, and options that exclude each other were
//! refused, so that a mistake costs a second and not a three-minute run.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use lexopt::prelude::*;

use crate::engine::orders;
use crate::scenario::Family;

/// Offered by default, and the rate of the project's oldest claim.
pub(crate) const RATE_DEFAULT_PER_S: u64 = 1_000_000;
/// Above this the generator's own clock reads would be the bottleneck on any machine we know.
const RATE_MAX_PER_S: u64 = 50_000_000;
/// Four times the longest row of the table; the floor's buffers hold several of these.
pub(crate) const PAYLOAD_MAX_BYTES: usize = 64 * 1_024;
const SECONDS_DEFAULT: u64 = 10;
const SECONDS_MAX: u64 = 3600;

/// Printed by `--help`.
pub(crate) const HELP: &str = "\
Measures Catga on this machine: each row beside the floor of the same run.

usage: catga-perf [OPTIONS]           run scenarios, print the table and the claims
       catga-perf fold                `perf script` output on stdin, flame graph (SVG) on stdout

  --quick             the same in about one minute: fewer and shorter rounds
  --only FAMILY       floor | local | lane | bus | view | orders | rivals (and the floors that they are compared to)
  --rate N            requests per second offered by open loops (default 1,000,000)
  --payload BYTES     payload of a request over TCP, lanes and buses (default: the 64-byte frame)
  --json FILE         also write one JSON object a line for each scenario
  --orders FILE       real orders for the order desk (CSV), instead of generated ones
  --rivals            also run the rivals (scripts/bench.sh builds them)
  --record-floor      keep this run's floors on record for this CPU model
  --list              print the names of the scenarios
  --scenario NAME     run one scenario alone, for profiling: no floor, no claims
  --seconds N         how long --scenario runs (default 10)
  -h, --help          this text

Exit status: 0 complete, 1 a wrong, lost or doubled reply or a scenario that cannot run, 2 bad options, 130 Ctrl-C.
";

/// What to do.
#[derive(Debug, PartialEq)]
pub(crate) enum Command {
    /// Print [`HELP`].
    Help,
    /// Print the scenarios' names.
    List,
    /// Draw a flame graph from standard input.
    Fold,
    /// Be the second process of a scenario. Started by this program itself, never by a reader.
    Serve {
        /// Which server.
        kind: String,
        /// Its own arguments.
        arguments: Vec<String>,
    },
    /// Run scenarios.
    Run(Box<Options>),
}

/// What to run, and how.
#[derive(Debug, PartialEq)]
pub(crate) struct Options {
    /// Fewer and shorter rounds.
    pub(crate) quick: bool,
    /// One family only.
    pub(crate) only: Option<Family>,
    /// One scenario alone, and for how long.
    pub(crate) scenario: Option<(String, Duration)>,
    /// What open loops offer.
    pub(crate) rate_per_s: u64,
    /// Payload of a request over sockets; `None` is whatever the 64-byte frame leaves.
    pub(crate) payload_bytes: Option<usize>,
    /// Where the rows go besides the table.
    pub(crate) json: Option<PathBuf>,
    /// Real orders.
    pub(crate) orders: Option<PathBuf>,
    /// Run the rivals too, where this program was built with them.
    pub(crate) rivals: bool,
    /// Keep the floors of this run on record.
    pub(crate) record_floor: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            quick: false,
            only: None,
            scenario: None,
            rate_per_s: RATE_DEFAULT_PER_S,
            payload_bytes: None,
            json: None,
            orders: None,
            rivals: false,
            record_floor: false,
        }
    }
}

/// Reads the arguments after the program's name. The error is one line for the reader.
pub(crate) fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Command, String> {
    let mut words = lexopt::Parser::from_args(arguments);
    parse_words(&mut words).map_err(|problem| problem.to_string())
}

fn parse_words(words: &mut lexopt::Parser) -> Result<Command, lexopt::Error> {
    let mut options = Options::default();
    let mut scenario: Option<String> = None;
    let mut seconds: Option<u64> = None;
    while let Some(word) = words.next()? {
        match word {
            Short('h') | Long("help") => return Ok(Command::Help),
            Long("list") => return Ok(Command::List),
            Long("quick") => options.quick = true,
            Long("rivals") => options.rivals = true,
            Long("record-floor") => options.record_floor = true,
            Long("only") => options.only = Some(words.value()?.parse_with(Family::parse)?),
            Long("rate") => {
                let value = words.value()?;
                options.rate_per_s = value.parse_with(|text| number("--rate", text, 1, RATE_MAX_PER_S))?;
            }
            Long("payload") => {
                let value = words.value()?;
                let bytes =
                    value.parse_with(|text| number("--payload", text, 1, PAYLOAD_MAX_BYTES as u64))?;
                options.payload_bytes = Some(bytes as usize);
            }
            Long("json") => options.json = Some(words.value()?.into()),
            Long("orders") => options.orders = Some(words.value()?.into()),
            Long("scenario") => scenario = Some(words.value()?.string()?),
            Long("seconds") => {
                let value = words.value()?;
                seconds = Some(value.parse_with(|text| number("--seconds", text, 1, SECONDS_MAX))?);
            }
            Value(name) if name == "fold" => return rest_is_empty(words, Command::Fold),
            Value(name) if name == "serve" => return serve(words),
            other => return Err(other.unexpected()),
        }
    }
    check(options, scenario, seconds)
        .map(|options| Command::Run(Box::new(options)))
        .map_err(lexopt::Error::from)
}

/// The rules between options, and the files that must be there.
fn check(mut options: Options, scenario: Option<String>, seconds: Option<u64>) -> Result<Options, String> {
    if seconds.is_some() && scenario.is_none() {
        return Err("--seconds goes with --scenario NAME".into());
    }
    if scenario.is_some() && (options.only.is_some() || options.quick || options.record_floor) {
        return Err("--scenario runs one scenario alone: without --only, --quick and --record-floor".into());
    }
    options.scenario = scenario.map(|name| (name, Duration::from_secs(seconds.unwrap_or(SECONDS_DEFAULT))));
    options.rivals |= options.only == Some(Family::Rivals);
    if let Some(path) = &options.orders {
        orders::read(path).map_err(|problem| format!("--orders: {problem}"))?;
    }
    if let Some(path) = &options.json {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        if path.is_dir() || folder.is_some_and(|folder| !folder.is_dir()) {
            return Err(format!("--json: cannot write a file at {}", path.display()));
        }
    }
    Ok(options)
}

fn serve(words: &mut lexopt::Parser) -> Result<Command, lexopt::Error> {
    let kind = words.value()?.string()?;
    let arguments = words.raw_args()?.map(ValueExt::string).collect::<Result<_, _>>()?;
    Ok(Command::Serve { kind, arguments })
}

fn rest_is_empty(words: &mut lexopt::Parser, command: Command) -> Result<Command, lexopt::Error> {
    match words.next()? {
        Some(extra) => Err(extra.unexpected()),
        None => Ok(command),
    }
}

/// A whole number in a range; `1,000,000` and `1_000_000` are read as people write them.
fn number(option: &str, text: &str, min: u64, max: u64) -> Result<u64, String> {
    let digits: String = text.chars().filter(|symbol| !matches!(symbol, '_' | ',')).collect();
    match digits.parse() {
        Ok(value) if (min..=max).contains(&value) => Ok(value),
        _ => Err(format!("{option} takes a whole number from {min} to {max}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Command, String> {
        parse(line.split_whitespace().map(OsString::from))
    }

    fn options(line: &str) -> Options {
        match read(line).unwrap() {
            Command::Run(options) => *options,
            other => panic!("not a run: {other:?}"),
        }
    }

    #[test]
    fn no_option_means_everything_at_a_million_a_second() {
        assert_eq!(options(""), Options::default());
    }

    #[test]
    fn every_option_is_read() {
        let read = options(
            "--quick --only lane --rate 2,000,000 --payload 1024 --json rows.json --rivals --record-floor",
        );
        assert!(read.quick && read.rivals && read.record_floor);
        assert_eq!(read.only, Some(Family::Lane));
        assert_eq!((read.rate_per_s, read.payload_bytes), (2_000_000, Some(1024)));
        assert_eq!(read.json, Some(PathBuf::from("rows.json")));
    }

    #[test]
    fn one_scenario_has_its_seconds() {
        assert_eq!(options("--scenario lane/1").scenario, Some(("lane/1".into(), Duration::from_secs(10))));
        assert_eq!(
            options("--scenario=lane/1 --seconds=3").scenario,
            Some(("lane/1".into(), Duration::from_secs(3)))
        );
    }

    #[test]
    fn only_rivals_asks_for_the_rivals() {
        assert!(options("--only rivals").rivals);
    }

    #[test]
    fn commands_are_told_apart() {
        assert_eq!(read("--help"), Ok(Command::Help));
        assert_eq!(read("--list"), Ok(Command::List));
        assert_eq!(read("fold"), Ok(Command::Fold));
        let serve = Command::Serve { kind: "tcp".into(), arguments: vec!["spin".into(), "--raw".into()] };
        assert_eq!(read("serve tcp spin --raw"), Ok(serve));
    }

    #[test]
    fn mistakes_are_refused_with_a_remedy() {
        for (line, hint) in [
            ("--qiuck", "--qiuck"),
            ("extra", "extra"),
            ("fold extra", "extra"),
            ("--only", "--only"),
            ("--only lanes", "lane"),
            ("--rate 0", "from 1 to"),
            ("--rate fast", "--rate takes"),
            ("--rate 99999999999", "50000000"),
            ("--payload 0", "--payload takes"),
            ("--seconds 3", "--scenario"),
            ("--scenario a --only lane", "alone"),
            ("--orders /nowhere/orders.csv", "cannot read"),
            ("--json /nowhere/rows.json", "cannot write"),
        ] {
            let problem = read(line).expect_err(line);
            assert!(problem.contains(hint), "{line}: {problem}");
        }
    }
}
