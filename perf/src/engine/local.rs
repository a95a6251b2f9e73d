//! `local/…`: one process. Callers on the first core; the handler beside them, or on the second core.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context as TaskContext, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use catga::Engine;

use crate::engine::driver::{self, How};
use crate::engine::exchange::{Caller, Exchange, Frames, Ping, answering};
use crate::engine::{Driven, idle, plan, result, runtime, start};
use crate::machine::{Cores, on_core};
use crate::meter::Window;
use crate::rest;
use crate::scenario::{Broken, Facts, Family, Idle, Pace, Round, RoundResult, Scenario};

/// How long nobody looks at Ctrl-C.
const SLEEP: Duration = Duration::from_millis(10);
/// Spins between two polls of a client's driver that nothing woke, so that it sees Ctrl-C and silence.
const SPINS_PER_POLL: u32 = 1 << 16;

/// Where the caller and the handler are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Where {
    SameShard,
    CrossShard(How),
    Client,
}

/// A scenario of one engine with work.
pub(crate) struct Local {
    name: &'static str,
    place: Where,
    in_flight: usize,
    floor: Option<&'static str>,
}

impl Local {
    /// Caller and handler on one shard.
    pub(crate) fn same_shard(name: &'static str) -> Self {
        Self { name, place: Where::SameShard, in_flight: 1, floor: None }
    }

    /// Caller on one shard, handler on another.
    pub(crate) fn cross_shard(name: &'static str, how: How, in_flight: usize, floor: &'static str) -> Self {
        Self { name, place: Where::CrossShard(how), in_flight, floor: Some(floor) }
    }

    /// Caller on a thread outside.
    pub(crate) fn client(name: &'static str, in_flight: usize, floor: &'static str) -> Self {
        Self { name, place: Where::Client, in_flight, floor: Some(floor) }
    }
}

impl Scenario for Local {
    fn facts(&self) -> Facts {
        let (name, family, idle) = (self.name, Family::Local, Idle::Spin);
        let pace = Pace::Closed { in_flight: self.in_flight };
        Facts { name, family, pace, idle, floor: self.floor, sweeps: false, payload_bytes: None }
    }

    fn run(&self, round: &Round<'_>) -> Result<RoundResult, Broken> {
        let Cores { caller, server } = Cores::choose();
        let builder = Engine::builder().idle(catga::Idle::Spin);
        match self.place {
            Where::SameShard => {
                let builder = answering(builder.cores([caller]), 0);
                let plan = plan(round, How::Futures, false);
                Driven::start(builder, Arc::new(Frames), plan)?.run(round, &mut [])
            }
            Where::CrossShard(how) => {
                let builder = answering(builder.cores([caller, server]), 1);
                Driven::start(builder, Arc::new(Frames), plan(round, how, true))?.run(round, &mut [])
            }
            Where::Client => {
                let engine = start(answering(builder.cores([server]), 0))?;
                on_core(caller, "client", || from_outside(&engine, round))
            }
        }
    }
}

/// A driver on this thread, which spins as the shard does.
fn from_outside(engine: &Engine, round: &Round<'_>) -> Result<RoundResult, Broken> {
    let (client, plan) = (engine.client(), plan(round, How::Futures, true));
    let open_window = async || Window::open(round, &mut []);
    let (measured, window) = spin_on(driver::with_futures(&client, &Frames, &plan, open_window))?;
    Ok(result(measured, window.close()?, runtime(engine)))
}

/// Polls a future whenever it is woken, and never sleeps.
pub(crate) fn spin_on<F: Future>(future: F) -> F::Output {
    struct Woken(AtomicBool);
    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            // Release: pairs with the Acquire below.
            self.0.store(true, Ordering::Release);
        }
    }
    let woken = Arc::new(Woken(AtomicBool::new(true)));
    let waker = Waker::from(woken.clone());
    let mut future = std::pin::pin!(future);
    let mut spins = 0;
    loop {
        // Acquire: what was done before the wake-up is seen by the poll. The flag is cleared before it.
        if woken.0.load(Ordering::Acquire) || spins >= SPINS_PER_POLL {
            (spins, _) = (0, woken.0.swap(false, Ordering::Acquire));
            if let Poll::Ready(output) = future.as_mut().poll(&mut TaskContext::from_waker(&waker)) {
                return output;
            }
        }
        spins += 1;
        std::hint::spin_loop();
    }
}

/// One call from this thread, checked.
pub(crate) fn call_once(caller: &impl Caller<Ping>, number: u64) -> Result<(), Broken> {
    let request = Frames.request(number);
    match spin_on(caller.call(&request)) {
        Ok(reply) => Frames.check(number, &reply).map_err(Broken::WrongReply),
        Err(error) => Err(Broken::Engine(error.to_string())),
    }
}

/// `local/client/park/1`: a foreign thread calls a shard that sleeps.
pub(crate) struct FromRest;

impl Scenario for FromRest {
    fn facts(&self) -> Facts {
        let (name, family, pace) = ("local/client/park/1", Family::Local, Pace::Closed { in_flight: 1 });
        let floor = Some(rest::FLOOR);
        Facts { name, family, pace, idle: Idle::Park, floor, sweeps: false, payload_bytes: None }
    }

    fn run(&self, round: &Round<'_>) -> Result<RoundResult, Broken> {
        let Cores { caller, server } = Cores::choose();
        let engine = start(answering(Engine::builder().idle(idle(Idle::Park)).cores([server]), 0))?;
        let client = engine.client();
        let result = on_core(caller, "client", || {
            rest::drive(round, runtime(&engine), |number| call_once(&client, number))
        })?;
        let parks = engine.stats().sum(|shard| shard.parks);
        if parks < result.requests / 2 {
            let why =
                format!("it slept {parks} times before {} calls: they were not from rest", result.requests);
            return Err(Broken::Engine(why));
        }
        Ok(result)
    }
}

/// `local/idle`: a parked engine without work.
pub(crate) struct AtRest;

impl Scenario for AtRest {
    fn facts(&self) -> Facts {
        let (name, family, pace) = ("local/idle", Family::Local, Pace::Closed { in_flight: 0 });
        Facts { name, family, pace, idle: Idle::Park, floor: None, sweeps: false, payload_bytes: None }
    }

    fn run(&self, round: &Round<'_>) -> Result<RoundResult, Broken> {
        let Cores { caller, server } = Cores::choose();
        let builder = Engine::builder().idle(idle(Idle::Park)).cores([caller, server]);
        let engine = start(answering(builder, 1))?;
        sleep(round.warm_up, round)?;
        let window = Window::open(round, &mut [])?;
        let began = Instant::now();
        sleep(round.span, round)?;
        let elapsed = began.elapsed();
        Ok(RoundResult::bare(0, elapsed, window.close()?, runtime(&engine)))
    }
}

fn sleep(time: Duration, round: &Round<'_>) -> Result<(), Broken> {
    let end = Instant::now() + time;
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        if round.stop.requested() {
            return Err(Broken::Interrupted);
        }
        std::thread::sleep(left.min(SLEEP));
    }
    Ok(())
}
