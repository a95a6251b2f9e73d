//! Rivals: the same exchange through other libraries, as rows of the same run, between the engine's rounds.
//!
//! They are a crate of their own (`perf/rivals`, outside of the workspace), because their trees are heavy and no reader
//! should build them unasked; `scripts/bench.sh --rivals` does. That crate says how each is started and called. What is
//! sent, how often, from which core, and how the answers are checked is here, and is what the rows `local/client/*` do.

use std::marker::PhantomData;
use std::ops::Deref;

use catga::Archived;

use crate::engine::driver::{self, How};
use crate::engine::exchange::{Caller, Frames};
pub use crate::engine::exchange::{Ping, Pong};
use crate::engine::local::{self, spin_on};
use crate::engine::{plan, result};
use crate::machine::{self, Cores, on_core};
use crate::meter::Window;
use crate::rest;
use crate::scenario::{Broken, Facts, Family, Idle, Pace, Round, RoundResult, Scenario};

/// A library's way to ask a server on another thread. Dropping it ends the server.
pub trait Rival: Sized + 'static {
    /// Starts the server, on a thread that it pins to `core`. The error says what was refused.
    fn start(core: usize) -> Result<Self, String>;

    /// Asks [`Ping::answer`] of the server. The error says why there is none.
    fn call(&self, ping: Ping) -> impl Future<Output = Result<Pong, String>>;
}

/// Pins the calling thread. The error says what was refused.
pub fn pin(core: usize) -> Result<(), String> {
    machine::pin(core).map_err(|why| why.to_string())
}

/// A row of the table.
pub struct Row(Box<dyn Scenario>);

impl std::fmt::Debug for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Row").field(&self.0.facts().name).finish()
    }
}

impl Row {
    /// The rows of a rival: `rivals/NAME/1`, `/64`, `/1024` and `/park/1`, each beside `local/client/…` of the same end.
    #[must_use]
    pub fn all<R: Rival>(name: &str) -> Vec<Self> {
        let row = |load: Load, floor: &'static str| {
            let end = match load {
                Load::Steady(in_flight) => in_flight.to_string(),
                Load::FromRest => "park/1".to_owned(),
            };
            // Names of rows live as long as the program.
            let name = format!("rivals/{name}/{end}").leak();
            Self(Box::new(Asked::<R> { name, load, floor, _rival: PhantomData }))
        };
        vec![
            row(Load::Steady(1), "floor/ring/1"),
            row(Load::Steady(64), "floor/ring/64"),
            row(Load::Steady(1_024), "floor/ring/1024"),
            row(Load::FromRest, rest::FLOOR),
        ]
    }

    pub(crate) fn into_scenario(self) -> Box<dyn Scenario> {
        self.0
    }
}

/// Whether a row is among those that rivals are compared to.
pub(crate) fn is_answer_to_rivals(facts: &Facts) -> bool {
    facts.name.starts_with("local/client/")
}

#[derive(Clone, Copy)]
enum Load {
    Steady(usize),
    FromRest,
}

struct Asked<R> {
    name: &'static str,
    load: Load,
    floor: &'static str,
    _rival: PhantomData<fn() -> R>,
}

impl<R: Rival> Scenario for Asked<R> {
    fn facts(&self) -> Facts {
        // Servers wait as their library has them wait: none of them spins.
        let (name, family, idle) = (self.name, Family::Rivals, Idle::Park);
        let in_flight = if let Load::Steady(in_flight) = self.load { in_flight } else { 1 };
        let pace = Pace::Closed { in_flight };
        Facts { name, family, pace, idle, floor: Some(self.floor), sweeps: false, payload_bytes: None }
    }

    fn run(&self, round: &Round<'_>) -> Result<RoundResult, Broken> {
        let Cores { caller, server } = Cores::choose();
        on_core(caller, "rival-caller", || {
            let rival = Called(R::start(server).map_err(Broken::Rival)?);
            match self.load {
                Load::Steady(_) => {
                    let plan = plan(round, How::Futures, true);
                    let open_window = async || Window::open(round, &mut []);
                    let driven = spin_on(driver::with_futures(&rival, &Frames, &plan, open_window));
                    let (measured, window) = driven?;
                    Ok(result(measured, window.close()?, "none"))
                }
                Load::FromRest => rest::drive(round, "none", |number| local::call_once(&rival, number)),
            }
        })
    }
}

struct Called<R>(R);

/// Where the checks look for the archive.
struct Held(Archived<Pong>);

impl Deref for Held {
    type Target = Archived<Pong>;

    fn deref(&self) -> &Archived<Pong> {
        &self.0
    }
}

impl<R: Rival> Caller<Ping> for Called<R> {
    type Reply = Held;
    type Error = String;

    #[inline]
    async fn call(&self, ping: &Ping) -> Result<Held, String> {
        self.0.call(*ping).await.map(|pong| Held(pong.archived()))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::scenario::Stop;

    /// Answers in the caller's thread; an honest one, or one that answers the ping before.
    struct Here<const HONEST: bool>(std::cell::Cell<Ping>);

    impl<const HONEST: bool> Rival for Here<HONEST> {
        fn start(_: usize) -> Result<Self, String> {
            Ok(Self(std::cell::Cell::new(crate::engine::exchange::Exchange::request(&Frames, 7))))
        }

        async fn call(&self, ping: Ping) -> Result<Pong, String> {
            let earlier = self.0.replace(ping);
            Ok(if HONEST { ping } else { earlier }.answer())
        }
    }

    fn run<const HONEST: bool>(row: usize) -> Result<RoundResult, Broken> {
        let stop = Stop::never();
        let (warm_up, span) = (Duration::from_millis(2), Duration::from_millis(10));
        let scenario = Row::all::<Here<HONEST>>("here").remove(row).into_scenario();
        let pace = scenario.facts().pace;
        scenario.run(&Round { pace, warm_up, span, stop: &stop, kernel: None })
    }

    #[test]
    fn every_row_of_a_rival_is_checked_as_the_engines_are() {
        for row in 0..4 {
            assert!(run::<true>(row).is_ok_and(|result| result.requests > 0), "{row}");
            assert!(matches!(run::<false>(row), Err(Broken::WrongReply(_))), "{row}");
        }
    }
}
