//! The engine's rows. The caller is a handler: a service on the first shard whose one request makes all the calls.
//!
//! ```text
//! runner's thread                    driver's shard
//! start the engine, ask it to drive → warm up
//! wait                              ← all quiet
//! open the window                   → measure, drain
//! close the window                  ← result
//! ```
//!
//! Signals go through a mutex and a condition variable at these four moments only; nothing of it is between them.

pub(crate) mod driver;
pub(crate) mod exchange;
pub(crate) mod lane;
pub(crate) mod local;
mod loops;
pub(crate) mod orders;
pub(crate) mod whole;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context as TaskContext, Poll, Waker};
use std::time::Duration;

use catga::prelude::*;
use catga::{Archived, Builder, RuntimeKind};

use crate::engine::driver::{How, Measured, Plan, yield_now};
use crate::engine::exchange::Exchange;
use crate::meter::{Spent, Window};
use crate::peer::Peer;
use crate::scenario::{self, Broken, Round, RoundResult};

/// How long a round may take beyond its plan.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long the engine may drain when a round is over; nothing should be in flight then.
pub(crate) const DRAIN: Duration = Duration::from_millis(100);

/// The engine's own word for it.
pub(crate) fn idle(idle: scenario::Idle) -> Idle {
    match idle {
        scenario::Idle::Spin => Idle::Spin,
        scenario::Idle::Park => Idle::Park,
    }
}

/// As in the rows.
pub(crate) fn runtime(engine: &Engine) -> &'static str {
    match engine.runtime() {
        RuntimeKind::Glommio => "io_uring",
        _ => "epoll",
    }
}

/// Starts it, or says why not.
pub(crate) fn start(builder: Builder) -> Result<Engine, Broken> {
    builder.start().map_err(|why| Broken::Engine(why.to_string()))
}

/// The plan of a round for a driver.
pub(crate) fn plan(round: &Round<'_>, how: How, clocked: bool) -> Plan {
    let Round { pace, warm_up, span, stop, .. } = *round;
    Plan { how, pace, warm_up, span, clocked, stop: stop.clone() }
}

/// Asks the driver to begin.
#[request]
struct Drive;

/// An engine whose first shard has a driver.
pub(crate) struct Driven {
    /// The engine.
    pub(crate) engine: Engine,
    stage: Arc<Stage>,
}

impl Driven {
    /// Starts the engine that `builder` describes, and a driver on its first shard.
    pub(crate) fn start<E: Exchange>(builder: Builder, exchange: Arc<E>, plan: Plan) -> Result<Self, Broken> {
        let stage = Arc::new(Stage::default());
        let driver = Driver { exchange, plan, stage: stage.clone() };
        let builder =
            builder.service_on([0], move |_| driver.clone(), |routes| routes.request_async(Driver::drive));
        Ok(Self { engine: start(builder)?, stage })
    }

    /// Drives one round.
    pub(crate) fn measure(&self, round: &Round<'_>, peers: &mut [Peer]) -> Result<(Measured, Spent), Broken> {
        let client = self.engine.client();
        let time = round.warm_up + round.span + PATIENCE;
        let mut drive = std::pin::pin!(client.send(&Drive).within(time));
        // The first poll sends it. Its own answer says nothing more than the stage, unless it is an error.
        let mut ask = || drive.as_mut().poll(&mut TaskContext::from_waker(Waker::noop()));
        if let Poll::Ready(Err(error)) = ask() {
            return Err(Broken::Engine(format!("the driver was not asked: {error}")));
        }
        let mut spent = None;
        if self.stage.wait_for(&[Scene::Quiet, Scene::Over], time) == Some(Scene::Quiet) {
            let window = Window::open(round, peers)?;
            self.stage.enter(Scene::Measuring);
            if self.stage.wait_for(&[Scene::Over], time).is_some() {
                spent = Some(window.close()?);
            }
        }
        match (self.stage.take(), spent) {
            (Some(Ok(measured)), Some(spent)) => Ok((measured, spent)),
            (Some(Err(broken)), _) => Err(broken),
            _ => Err(Broken::Engine(match ask() {
                Poll::Ready(Err(error)) => format!("the driver ended early: {error}"),
                _ => "the driver did not end in time".into(),
            })),
        }
    }

    /// Ends the engine, and makes the row of what was measured.
    pub(crate) fn finish(self, measured: Measured, spent: Spent) -> Result<RoundResult, Broken> {
        let runtime = runtime(&self.engine);
        let doubled = self.engine.stop(DRAIN).stats.sum(|shard| shard.answers_late);
        if measured.errors == 0 && doubled > 0 {
            return Err(Broken::Doubled { extra: doubled, sent: measured.sent_in_all });
        }
        Ok(result(measured, spent, runtime))
    }

    /// All of it.
    pub(crate) fn run(self, round: &Round<'_>, peers: &mut [Peer]) -> Result<RoundResult, Broken> {
        let (measured, spent) = self.measure(round, peers)?;
        self.finish(measured, spent)
    }
}

/// The row of a round.
pub(crate) fn result(measured: Measured, spent: Spent, runtime: &'static str) -> RoundResult {
    let Measured { requests, errors, first_error, late, elapsed, latency, sampling, .. } = measured;
    if let Some(error) = first_error {
        eprintln!("note     {errors} of {requests} requests failed, the first with: {error}");
    }
    let ns_per_op = latency.is_none().then(|| elapsed.as_nanos() as f64 / requests.max(1) as f64);
    let sampled_one_in = sampling.one_in();
    RoundResult {
        requests,
        errors,
        elapsed,
        latency,
        sampled_one_in,
        late,
        ns_per_op,
        spent,
        bytes: None,
        resident_bytes: None,
        runtime,
    }
}

/// The service that drives.
struct Driver<E> {
    exchange: Arc<E>,
    plan: Plan,
    stage: Arc<Stage>,
}

impl<E> Clone for Driver<E> {
    fn clone(&self) -> Self {
        Self { exchange: self.exchange.clone(), plan: self.plan.clone(), stage: self.stage.clone() }
    }
}

impl<E: Exchange> Driver<E> {
    async fn drive(state: &State<Self>, _: &Archived<Drive>, ctx: &Context) -> Result<(), Fault> {
        let Self { exchange, plan, stage } = state.with(|driver| driver.clone());
        let quiet = async || {
            stage.enter(Scene::Quiet);
            while !stage.is(Scene::Measuring) {
                yield_now().await;
            }
            Ok(())
        };
        let measured = match plan.how {
            How::Futures => driver::with_futures(ctx, &*exchange, &plan, quiet).await,
            How::Batch | How::BatchOf => driver::with_batch(ctx, &*exchange, &plan, quiet).await,
        };
        stage.end(measured.map(|(measured, ())| measured));
        Ok(())
    }
}

/// Where a round is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Scene {
    #[default]
    WarmUp,
    Quiet,
    Measuring,
    Over,
}

/// What the runner and the driver tell each other.
#[derive(Default)]
struct Stage {
    state: Mutex<(Scene, Option<Result<Measured, Broken>>)>,
    changed: Condvar,
}

impl Stage {
    /// A panic on the other side shows in the result that does not come.
    fn lock(&self) -> MutexGuard<'_, (Scene, Option<Result<Measured, Broken>>)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, scene: Scene) {
        self.lock().0 = scene;
        self.changed.notify_all();
    }

    fn end(&self, result: Result<Measured, Broken>) {
        *self.lock() = (Scene::Over, Some(result));
        self.changed.notify_all();
    }

    fn is(&self, scene: Scene) -> bool {
        self.lock().0 == scene
    }

    /// The scene that came, or `None` if none of them did in time.
    fn wait_for(&self, scenes: &[Scene], time: Duration) -> Option<Scene> {
        let waiting = self.changed.wait_timeout_while(self.lock(), time, |state| !scenes.contains(&state.0));
        let scene = waiting.unwrap_or_else(PoisonError::into_inner).0.0;
        scenes.contains(&scene).then_some(scene)
    }

    fn take(&self) -> Option<Result<Measured, Broken>> {
        self.lock().1.take()
    }
}

#[cfg(test)]
mod tests {
    use catga::List;

    use super::*;
    use crate::engine::exchange::{Frames, Payload, Ping, Pong, answering};
    use crate::machine::Cores;
    use crate::scenario::{Pace, Stop};

    const CLOSED: Pace = Pace::Closed { in_flight: 32 };
    const OPEN: Pace = Pace::Open { rate_per_s: 20_000 };

    fn round(pace: Pace, stop: &Stop) -> Round<'_> {
        let (warm_up, span) = (Duration::from_millis(5), Duration::from_millis(50));
        Round { pace, warm_up, span, stop, kernel: None }
    }

    /// Parked, because tests share the machine.
    fn two_shards() -> Builder {
        let Cores { caller, server } = Cores::choose();
        Engine::builder().cores([caller, server])
    }

    fn run<E: Exchange>(builder: Builder, exchange: E, how: How, pace: Pace) -> Result<RoundResult, Broken> {
        let stop = Stop::never();
        let round = round(pace, &stop);
        Driven::start(builder, Arc::new(exchange), plan(&round, how, true))?.run(&round, &mut [])
    }

    #[test]
    fn every_way_to_call_measures_what_it_should() {
        let one = Pace::Closed { in_flight: 1 };
        for (how, pace) in [
            (How::Futures, one),
            (How::Futures, CLOSED),
            (How::Futures, OPEN),
            (How::Batch, CLOSED),
            (How::BatchOf, CLOSED),
        ] {
            let result = run(answering(two_shards(), 1), Frames, how, pace).unwrap();
            let measured = result.latency.unwrap().count();
            assert!(result.requests > 0 && result.errors == 0, "{how:?} {pace:?}");
            assert!(measured.abs_diff(result.requests / result.sampled_one_in) <= 1, "{how:?} {pace:?}");
            // An open loop sends exactly what was due, however late.
            assert!(pace != OPEN || result.requests == 1_000);
        }
    }

    #[test]
    fn calls_that_never_wait_end_in_time() {
        let stop = Stop::never();
        let round = round(Pace::Closed { in_flight: 1 }, &stop);
        let builder = answering(two_shards(), 0);
        let driven = Driven::start(builder, Arc::new(Frames), plan(&round, How::Futures, false)).unwrap();
        let result = driven.run(&round, &mut []).unwrap();
        assert!(result.latency.is_none() && result.ns_per_op.unwrap() > 0.0);
    }

    #[test]
    fn payloads_cross_a_lane() {
        let nobody = List::of(Vec::<String>::new()).node("server", "127.0.0.1:0");
        let Cores { caller, server } = Cores::choose();
        let node = start(answering(Engine::builder().cores([server]).cluster(nobody), 0)).unwrap();
        let servers =
            List::of([format!("server={}", node.endpoint().unwrap())]).node("caller", "127.0.0.1:0");
        let builder = || Engine::builder().cores([caller]).cluster(servers.clone());
        for how in [How::Futures, How::BatchOf] {
            let result = run(builder(), Payload { bytes: 1_024 }, how, CLOSED).unwrap();
            assert!(result.requests > 0 && result.errors == 0, "{how:?}");
        }
    }

    /// Expects something else from every fiftieth request.
    struct Suspicious;

    impl Exchange for Suspicious {
        type Request = Ping;

        fn request(&self, number: u64) -> Ping {
            Frames.request(number)
        }

        fn check(&self, number: u64, pong: &Archived<Pong>) -> Result<(), String> {
            Frames.check(if number % 50 == 49 { 0 } else { number }, pong)
        }
    }

    #[test]
    fn a_wrong_reply_breaks_the_round() {
        for how in [How::Futures, How::Batch, How::BatchOf] {
            let broken = run(answering(two_shards(), 1), Suspicious, how, CLOSED);
            assert!(matches!(broken, Err(Broken::WrongReply(_))), "{how:?}");
        }
    }

    #[test]
    fn errors_that_the_engine_reports_are_counted() {
        // Nobody answers.
        let result = run(two_shards(), Frames, How::Futures, OPEN).unwrap();
        assert_eq!((result.errors, result.requests), (1_000, 1_000));
    }

    #[test]
    fn ctrl_c_ends_a_round() {
        let stop = Stop::at_once();
        let round = round(CLOSED, &stop);
        let plan = plan(&round, How::Futures, true);
        let driven = Driven::start(answering(two_shards(), 1), Arc::new(Frames), plan).unwrap();
        assert!(matches!(driven.run(&round, &mut []), Err(Broken::Interrupted)));
    }
}
