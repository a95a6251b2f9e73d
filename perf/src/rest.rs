//! Calls to a server that sleeps: one at a time, with pauses in which whoever answers goes to sleep. Latency is that of the
//! call alone. The caller is awake: it slept, woke, and only then looked at the clock.
//!
//! `floor/wake/1` is what waking a thread costs without anything around it: the number in one word, `unpark`, and the
//! answer in another word, on which the caller spins.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::frame;
use crate::histogram::Latency;
use crate::machine::{Cores, on_core, pin};
use crate::meter::Window;
use crate::scenario::{Broken, Facts, Family, Idle, Pace, Round, RoundResult, Scenario};

/// The floor of all such rows.
pub(crate) const FLOOR: &str = "floor/wake/1";

/// Ten times the longest spin before a shard parks.
const PAUSE: Duration = Duration::from_millis(1);
/// Asks the floor's server to end; no request says this before half a thousand years are over.
const END: u64 = u64::MAX;

/// One round of calls from rest. `call` makes the call of this number and checks its answer.
pub(crate) fn drive(
    round: &Round<'_>,
    runtime: &'static str,
    mut call: impl FnMut(u64) -> Result<(), Broken>,
) -> Result<RoundResult, Broken> {
    let (mut unused, mut latency) = (Latency::new(), Latency::new());
    let mut number = 0;
    let mut phase = |span: Duration, latency: &mut Latency| {
        let (first, end) = (number, Instant::now() + span);
        while Instant::now() < end {
            if round.stop.requested() {
                return Err(Broken::Interrupted);
            }
            std::thread::sleep(PAUSE);
            let asked = Instant::now();
            call(number)?;
            latency.record(asked.elapsed().as_nanos() as u64);
            number += 1;
        }
        Ok(number - first)
    };
    phase(round.warm_up, &mut unused)?;
    let window = Window::open(round, &mut [])?;
    let began = Instant::now();
    let requests = phase(round.span, &mut latency)?;
    let elapsed = began.elapsed();
    Ok(RoundResult {
        latency: Some(latency),
        ..RoundResult::bare(requests, elapsed, window.close()?, runtime)
    })
}

/// The floor.
pub(crate) struct Wake;

impl Scenario for Wake {
    fn facts(&self) -> Facts {
        let (name, family, pace) = (FLOOR, Family::Floor, Pace::Closed { in_flight: 1 });
        Facts { name, family, pace, idle: Idle::Park, floor: None, sweeps: false, payload_bytes: None }
    }

    fn run(&self, round: &Round<'_>) -> Result<RoundResult, Broken> {
        let cores = Cores::choose();
        // Numbers from 1, so that 0 is none.
        let (asked, answered) = (AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            let server = scope.spawn(|| {
                pin(cores.server)?;
                let mut last = 0;
                loop {
                    // Acquire: pairs with the caller's Release. `park` returns at once if `unpark` came before it.
                    match asked.load(Ordering::Acquire) {
                        END => return Ok(()),
                        same if same == last => std::thread::park(),
                        // Release: pairs with the caller's Acquire.
                        new => {
                            last = new;
                            answered.store(frame::value_of(new), Ordering::Release);
                        }
                    }
                }
            });
            let thread = server.thread();
            let ask = |number| {
                asked.store(number, Ordering::Release);
                thread.unpark();
            };
            let result = on_core(cores.caller, "wake-caller", || {
                drive(round, "none", |number| {
                    ask(number + 1);
                    while answered.load(Ordering::Acquire) != frame::value_of(number + 1) {
                        if server.is_finished() {
                            return Err(Broken::Peer("the floor's server ended early".into()));
                        }
                        std::hint::spin_loop();
                    }
                    Ok(())
                })
            });
            ask(END);
            match server.join() {
                Ok(ended) => ended.and(result),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::Stop;

    #[test]
    fn every_call_from_rest_is_measured() {
        let (stop, pace) = (Stop::never(), Wake.facts().pace);
        let (warm_up, span) = (Duration::from_millis(3), Duration::from_millis(20));
        let result = Wake.run(&Round { pace, warm_up, span, stop: &stop, kernel: None }).unwrap();
        assert!(result.requests > 0 && result.latency.unwrap().count() == result.requests);
        assert!(result.elapsed >= PAUSE * result.requests as u32, "there was no pause");
    }
}
