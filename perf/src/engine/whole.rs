//! Rows about an engine as a whole: how long it takes from its description to its first reply (`local/start`), and what it
//! holds in memory when it rests (`local/memory/N`, with N shards).
//!
//! Memory is measured in a fresh process, as the growth of its resident pages from before the start to some time after the
//! first reply: in this one, earlier rows would have left pages behind.

use std::time::{Duration, Instant};

use catga::Engine;

use crate::engine::exchange::answering;
use crate::engine::local::call_once;
use crate::engine::{DRAIN, idle, runtime, start};
use crate::histogram::Latency;
use crate::machine::Cores;
use crate::meter::{Spent, Window};
use crate::peer::{self, Peer};
use crate::scenario::{Broken, Facts, Family, Idle, Pace, Round, RoundResult, Scenario, Tried};

/// Tells the allocator of this program not to ask for huge pages: with them the first byte of each two MiB counts as all of
/// them, and the row would be about the allocator.
const PAGES: (&str, &str) = ("MIMALLOC_ALLOW_THP", "0");

/// As `catga-perf serve KIND SHARDS` names it.
pub(crate) const SERVE: &str = "at-rest";
/// From the first reply until the engine counts as idle.
const SETTLE: Duration = Duration::from_millis(200);

/// An engine of so many shards on the cores of all rows; the last one answers.
fn engine(shards: usize) -> Result<Engine, Broken> {
    let Cores { caller, server } = Cores::choose();
    let cores: Vec<usize> = [server, caller].into_iter().cycle().take(shards).collect();
    let builder = Engine::builder().idle(idle(Idle::Park)).cores(cores);
    start(answering(builder, shards.saturating_sub(1) as u16))
}

/// `local/start`: two shards, from the description to the first reply.
pub(crate) struct Start;

impl Scenario for Start {
    fn facts(&self) -> Facts {
        let (name, family, pace) = ("local/start", Family::Local, Pace::Closed { in_flight: 1 });
        Facts { name, family, pace, idle: Idle::Park, floor: None, sweeps: false, payload_bytes: None }
    }

    fn run(&self, round: &Round<'_>) -> Result<RoundResult, Broken> {
        let once = |number| {
            let began = Instant::now();
            let engine = engine(2)?;
            call_once(&engine.client(), number)?;
            Ok((began.elapsed(), runtime(&engine), engine.stop(DRAIN)))
        };
        let (_, runtime, _) = once(0)?;
        let mut latency = Latency::new();
        let window = Window::open(round, &mut [])?;
        let began = Instant::now();
        while latency.count() == 0 || began.elapsed() < round.span {
            if round.stop.requested() {
                return Err(Broken::Interrupted);
            }
            latency.record(once(latency.count() + 1)?.0.as_nanos() as u64);
        }
        let (requests, elapsed) = (latency.count(), began.elapsed());
        let bare = RoundResult::bare(requests, elapsed, window.close()?, runtime);
        Ok(RoundResult { latency: Some(latency), ..bare })
    }
}

/// `local/memory/N`.
pub(crate) struct Memory {
    /// Of the row.
    pub(crate) name: &'static str,
    /// Of the engine.
    pub(crate) shards: usize,
}

impl Scenario for Memory {
    fn facts(&self) -> Facts {
        let (name, family, pace) = (self.name, Family::Local, Pace::Closed { in_flight: 0 });
        Facts { name, family, pace, idle: Idle::Park, floor: None, sweeps: false, payload_bytes: None }
    }

    fn run(&self, _: &Round<'_>) -> Result<RoundResult, Broken> {
        let began = Instant::now();
        let peer = Peer::start_in(&[PAGES], SERVE, &[self.shards.to_string()])?;
        let said = || Broken::Peer(format!("it said 'ready {}'", peer.ready()));
        let resident_bytes = peer.ready().parse().map_err(|_| said())?;
        let bare = RoundResult::bare(0, began.elapsed(), Spent::default(), "none");
        Ok(RoundResult { resident_bytes: Some(resident_bytes), ..bare })
    }
}

/// The fresh process.
pub(crate) fn serve(arguments: &[String]) -> Result<(), Broken> {
    let shards = match arguments {
        [shards] => shards.parse().ok().filter(|shards| *shards > 0),
        _ => None,
    };
    let shards = shards.ok_or_else(|| Broken::Peer(format!("{SERVE} takes a number of shards")))?;
    let before = resident_bytes()?;
    let engine = engine(shards)?;
    call_once(&engine.client(), 0)?;
    std::thread::sleep(SETTLE);
    let grown = resident_bytes()?.saturating_sub(before);
    peer::stand_by(&grown.to_string()).tried("cannot answer the first process")?;
    loop {
        std::thread::park();
    }
}

/// Of this process, as the kernel counts them now.
fn resident_bytes() -> Result<u64, Broken> {
    let pages = std::fs::read_to_string("/proc/self/statm").tried("cannot read /proc/self/statm")?;
    let pages = pages.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    let pages = pages.ok_or_else(|| Broken::Peer("/proc/self/statm has no second number".into()))?;
    Ok(pages * rustix::param::page_size() as u64)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::scenario::Stop;

    #[test]
    fn every_start_ends_in_a_reply() {
        let (stop, pace) = (Stop::never(), Start.facts().pace);
        let round = Round { pace, warm_up: Duration::ZERO, span: Duration::ZERO, stop: &stop, kernel: None };
        let result = Start.run(&round).unwrap();
        assert_eq!((result.requests, result.latency.unwrap().count()), (1, 1));
    }

    /// In a process of its own, because other tests of this one may give back as much at the same moment.
    #[test]
    fn pages_that_are_written_to_are_resident() {
        const ALONE: &str = "CATGA_PERF_TEST_ALONE";
        if std::env::var_os(ALONE).is_some() {
            let before = resident_bytes().unwrap();
            let pages = std::hint::black_box(vec![1_u8; 64 << 20]);
            assert!(resident_bytes().unwrap() >= before + (32 << 20), "{}", pages.len());
            return;
        }
        let name = "engine::whole::tests::pages_that_are_written_to_are_resident";
        let mut alone = Command::new(std::env::current_exe().unwrap());
        let ran = alone.args(["--exact", name]).env(ALONE, "1").output().unwrap();
        let said = String::from_utf8_lossy(&ran.stdout);
        assert!(ran.status.success() && said.contains("1 passed"), "{said}");
    }
}
