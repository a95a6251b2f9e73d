//! The life of a service on real threads: which keys it is told to own, what it does periodically, in which order its
//! messages leave, and starts that make no sense. What becomes of it after a panic is in `panics.rs`.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed helper is a failed test")]

mod common;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use catga::Unknown;
use catga::prelude::*;
use common::{call, eventually, panicked, poisoned, while_it_is_at_work};
use pollster::block_on;

const LONG: Duration = Duration::from_secs(60);

// ---- keys -----------------------------------------------------------------------------------------------------

#[request(reply = Told, key = customer)]
struct Whose {
    customer: String,
}
#[message]
struct Told {
    gained: u32,
    owns: bool,
}
#[event]
struct Opened {
    shard: u16,
}

type Ledger = Arc<Mutex<Vec<String>>>;

struct Keeper {
    owned: Option<Owned>,
    gained: u32,
    ledger: Ledger,
}
impl Keeper {
    fn new(ledger: &Ledger) -> impl Fn(ShardId) -> Self + use<> {
        let ledger = ledger.clone();
        move |_| Self { owned: None, gained: 0, ledger: ledger.clone() }
    }
    fn note(&self, what: &str, owned: &Owned, ctx: &Context) {
        self.ledger.lock().unwrap().push(format!("{} {what} {owned}", ctx.shard()));
    }
    fn gained(&mut self, owned: &Owned, ctx: &Context) {
        self.note("gained", owned, ctx);
        self.owned = Some(*owned);
        self.gained += 1;
        ctx.publish(&Opened { shard: ctx.shard().0 });
    }
    fn lost(&mut self, owned: &Owned, ctx: &Context) {
        self.note("lost", owned, ctx);
    }
    fn whose(&mut self, whose: &Archived<Whose>, _: &Context) -> Result<Told, Fault> {
        assert!(whose.customer.as_str() != "nobody", "as it was told");
        let owned = self.owned.ok_or_else(|| Fault::new("handles before it has gained"))?;
        Ok(Told { gained: self.gained, owns: owned.contains(whose.customer.as_str()) })
    }
    fn opened(&mut self, opened: &Archived<Opened>, _: &Context) {
        self.ledger.lock().unwrap().push(format!("opened {}", opened.shard));
    }
    fn fails(&mut self, _: &Owned, _: &Context) {
        panic!("in a hook");
    }
}

#[test]
fn each_instance_is_told_which_keys_it_owns_before_it_handles_them_and_when_it_owns_them_no_more() {
    let ledger = Ledger::default();
    let engine = Engine::builder()
        .shards(3)
        .service_on([2, 0, 0], Keeper::new(&ledger), |routes| {
            let routes = routes.request(Keeper::whose).on_panic(OnPanic::Rebuild);
            routes.gained(Keeper::gained).lost(Keeper::lost)
        })
        .service_on([1], Keeper::new(&ledger), |routes| routes.event(Keeper::opened))
        .start()
        .unwrap();
    let client = engine.client();
    let ask = |customer: &str| block_on(client.send(&Whose { customer: customer.into() }).within(LONG));
    for customer in 0..100 {
        let told = ask(&format!("customer {customer}")).unwrap();
        assert!(told.owns && told.gained == 1, "it handles a key that it was not told to own");
    }
    eventually("what a hook publishes leaves", || ledger.lock().unwrap().len() == 4);
    // Made anew, it is told again; before the next request.
    assert!(panicked(ask("nobody")));
    eventually("the new state's hook has published", || ledger.lock().unwrap().len() == 6);
    assert!(ask("customer 1").is_ok());
    drop(engine);
    let mut ledger = std::mem::take(&mut *ledger.lock().unwrap());
    let again = ledger[4..6].iter().find(|line| line.contains("gained")).unwrap().clone();
    assert!(again.ends_with("of 2 of the keys"), "{again}");
    ledger.drain(4..6);
    ledger.sort();
    let expected = [
        "opened 0",
        "opened 2",
        "shard 0 gained part 1 of 2 of the keys",
        "shard 0 lost part 1 of 2 of the keys",
        "shard 2 gained part 2 of 2 of the keys",
        "shard 2 lost part 2 of 2 of the keys",
    ];
    assert_eq!(ledger, expected);
}

#[test]
fn a_hook_that_panics_is_followed_by_the_policy() {
    for (policy, works) in [(OnPanic::Poison, false), (OnPanic::Keep, true), (OnPanic::Rebuild, false)] {
        let ledger = Ledger::default();
        let engine = Engine::builder()
            .shards(1)
            .service(Keeper::new(&ledger), move |routes| {
                let routes = routes.request(Keeper::whose).on_panic(policy);
                routes.gained(Keeper::fails).lost(Keeper::lost)
            })
            .start()
            .unwrap();
        let outcome = block_on(engine.client().send(&Whose { customer: String::new() }).within(LONG));
        assert_eq!(poisoned(outcome), !works, "{policy:?}");
        let stats = engine.stop(LONG).stats;
        assert_eq!(stats.sum(|shard| shard.failed), 1, "{policy:?}");
        assert_eq!(ledger.lock().unwrap().len(), usize::from(works), "a poisoned instance is told nothing");
    }
    let engine = Engine::builder()
        .shards(1)
        .service(Keeper::new(&Ledger::default()), |routes| {
            routes.request(Keeper::whose).lost(Keeper::fails).on_panic(OnPanic::Rebuild)
        })
        .start()
        .unwrap();
    let stats = engine.stop(LONG).stats;
    assert_eq!((stats.sum(|shard| shard.failed), stats.sum(|shard| shard.rebuilt)), (1, 0), "it is over");
}

// ---- time -----------------------------------------------------------------------------------------------------

#[request(reply = Slept)]
struct Nap {
    micros: u64,
}
/// Ticks so often.
#[request(reply = Slept)]
struct Beat {
    ticks: u32,
    micros: u64,
}
#[message]
struct Slept {
    micros: u64,
}
#[request]
struct Forever {}
#[request]
struct Again {}
#[request]
struct Stubborn {}

struct Guard(Arc<AtomicU64>);
impl Drop for Guard {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[derive(Default)]
struct Sleeper(Arc<AtomicU64>);
impl Sleeper {
    async fn nap(_: &State<Self>, nap: &Archived<Nap>, ctx: &Context) -> Result<Slept, Fault> {
        // By the clock of the turns: by another one a sleep may be shorter by what its first turn had taken.
        let before = ctx.remaining();
        ctx.sleep(Duration::from_micros(nap.micros.to_native())).await;
        Ok(Slept { micros: (before - ctx.remaining()).as_micros() as u64 })
    }
    async fn beat(_: &State<Self>, beat: &Archived<Beat>, ctx: &Context) -> Result<Slept, Fault> {
        let before = ctx.remaining();
        let mut every = ctx.every(Duration::from_micros(beat.micros.to_native()));
        for _ in 0..beat.ticks.to_native() {
            every.tick().await;
        }
        Ok(Slept { micros: (before - ctx.remaining()).as_micros() as u64 })
    }
    async fn forever(this: &State<Self>, _: &Archived<Forever>, _: &Context) -> Result<(), Fault> {
        let _guard = Guard(this.with(|this| this.0.clone()));
        std::future::pending().await
    }
    async fn again(this: &State<Self>, _: &Archived<Again>, ctx: &Context) -> Result<(), Fault> {
        this.with(|this| this.0.fetch_add(1, Ordering::SeqCst));
        match ctx.send(&Again {}).await {
            Err(CallError::Rejected(fault)) => Err(fault),
            outcome => Ok(outcome.map(|_| ())?),
        }
    }
    async fn stubborn(this: &State<Self>, _: &Archived<Stubborn>, ctx: &Context) -> Result<(), Fault> {
        let _guard = Guard(this.with(|this| this.0.clone()));
        while ctx.send(&Stubborn {}).await.is_err() {}
        Ok(())
    }
    fn tick(&mut self, ctx: &Context) {
        ctx.publish(&Opened { shard: ctx.shard().0 });
        self.0.fetch_add(1, Ordering::SeqCst);
    }
    fn bad_tick(&mut self, _: &Context) {
        self.0.fetch_add(1, Ordering::SeqCst);
        panic!("in a tick");
    }
}

fn sleeper(count: &Arc<AtomicU64>, calls: u32, tasks: usize) -> Engine {
    let count = count.clone();
    let new = move |_| Sleeper(count.clone());
    let builder = Engine::builder().shards(1).calls_max(calls).tasks_max(tasks);
    let started = builder.service(new, |routes| {
        let routes = routes.request_async(Sleeper::nap).request_async(Sleeper::beat);
        let routes = routes.request_async(Sleeper::forever).request_async(Sleeper::again);
        routes.request_async(Sleeper::stubborn)
    });
    started.start().unwrap()
}

#[test]
fn a_shard_that_is_parked_wakes_for_its_sleepers() {
    let engine = sleeper(&Arc::default(), 64, 64);
    let client = engine.client();
    for micros in [0, 50, 5_000, 50_000] {
        let slept = block_on(client.send(&Nap { micros }).within(LONG)).unwrap().micros.to_native();
        assert!(slept >= micros, "slept {slept} of {micros} us");
    }
    let beat = block_on(client.send(&Beat { ticks: 10, micros: 2_000 }).within(LONG)).unwrap();
    assert!(beat.micros.to_native() >= 20_000, "ten ticks in {} us", beat.micros);
    let zero = block_on(client.send(&Beat { ticks: 10, micros: 0 }).within(LONG));
    assert!(zero.is_ok(), "a period of zero is a tick in each turn");
}

#[test]
fn a_handler_that_never_returns_is_dropped_at_its_deadline() {
    let dropped = Arc::default();
    let engine = sleeper(&dropped, 64, 64);
    let client = engine.client();
    let ends = |one: &dyn Fn(Duration) -> Result<(), CallError<Fault>>| {
        while_it_is_at_work(|within| {
            let start = Instant::now();
            let outcome = one(within);
            assert!(start.elapsed() >= within, "before its deadline");
            outcome
        })
    };
    let outcomes = [
        ends(&|within| block_on(client.send(&Forever {}).within(within)).map(drop)),
        ends(&|within| block_on(client.send(&Nap { micros: 1 << 40 }).within(within)).map(drop)),
    ];
    for outcome in outcomes {
        assert!(matches!(outcome, Err(CallError::Unknown(Unknown::Cut | Unknown::Deadline))), "{outcome:?}");
    }
    eventually("its guard runs", || dropped.load(Ordering::SeqCst) == 1);
    let stats = engine.stop(LONG).stats;
    assert_eq!((stats.sum(|shard| shard.cut), stats.sum(|shard| shard.tasks_running)), (2, 0));
}

#[test]
fn a_handler_that_sends_to_itself_for_ever_ends_at_a_bound() {
    // Tasks run out first, or calls do.
    for (calls, tasks, bound) in
        [(4096, 100, "receiver is at a bound"), (100, 4096, "as many calls in flight")]
    {
        let ran = Arc::default();
        let engine = sleeper(&ran, calls, tasks);
        let outcome = block_on(engine.client().send(&Again {}).within(LONG)).map(|_| ());
        assert!(
            matches!(&outcome, Err(CallError::Rejected(fault)) if fault.to_string().contains(bound)),
            "{outcome:?}"
        );
        assert!((100..=101).contains(&ran.load(Ordering::SeqCst)));
        assert!(call(&engine.client(), &Nap { micros: 0 }).is_ok(), "the shard goes on");
    }
}

#[test]
fn handlers_that_send_to_themselves_until_it_succeeds_end_at_their_deadlines() {
    for (calls, tasks) in [(4096, 50), (50, 4096)] {
        let dropped = Arc::default();
        let engine = sleeper(&dropped, calls, tasks);
        // Long enough for a machine that stops meanwhile to have them all begin.
        let outcome = block_on(engine.client().send(&Stubborn {}).within(Duration::from_secs(2)));
        assert!(outcome.is_err(), "it cannot succeed");
        eventually("all of them are dropped", || {
            engine.stats().sum(|shard| shard.tasks_running) == 0 && dropped.load(Ordering::SeqCst) >= 50
        });
        assert!(call(&engine.client(), &Nap { micros: 0 }).is_ok(), "the shard goes on");
    }
}

#[test]
fn what_is_done_periodically_happens_on_each_instance_and_its_events_leave() {
    let (ticks, ledger) = (Arc::new(AtomicU64::new(0)), Ledger::default());
    let count = ticks.clone();
    let start = Instant::now();
    let _engine = Engine::builder()
        .shards(2)
        .service(
            move |_| Sleeper(count.clone()),
            |routes| routes.request_async(Sleeper::nap).every(Duration::from_millis(3), Sleeper::tick),
        )
        .service_on([1], Keeper::new(&ledger), |routes| routes.event(Keeper::opened))
        .start()
        .unwrap();
    eventually("each instance has ticked three times", || {
        let opened = ledger.lock().unwrap();
        [0, 1]
            .iter()
            .all(|shard| opened.iter().filter(|line| **line == format!("opened {shard}")).count() >= 3)
    });
    // The ticks first: what passes after they are read makes room for more of them.
    let ticked = ticks.load(Ordering::SeqCst);
    let passed = start.elapsed().as_millis() as u64;
    assert!(ticked <= 2 * (passed / 3 + 2), "more ticks than periods");
}

#[test]
fn a_tick_that_panics_is_followed_by_the_policy() {
    for (policy, once) in [(OnPanic::Poison, true), (OnPanic::Keep, false), (OnPanic::Rebuild, false)] {
        let ticks = Arc::new(AtomicU64::new(0));
        let count = ticks.clone();
        let engine = Engine::builder()
            .shards(1)
            .service(
                move |_| Sleeper(count.clone()),
                move |routes| {
                    let routes = routes.request_async(Sleeper::nap).on_panic(policy);
                    routes.every(Duration::from_micros(100), Sleeper::bad_tick)
                },
            )
            .start()
            .unwrap();
        let most = if once { 1 } else { 3 };
        eventually("it ticks", || ticks.load(Ordering::SeqCst) >= most);
        assert_eq!(poisoned(block_on(engine.client().send(&Nap { micros: 2_000 }).within(LONG))), once);
        let stats = engine.stop(LONG).stats;
        let ticks = ticks.load(Ordering::SeqCst);
        assert!(if once { ticks == 1 } else { ticks > 3 }, "{policy:?}: {ticks}");
        assert_eq!(stats.sum(|shard| shard.failed), ticks);
    }
}

// ---- order ----------------------------------------------------------------------------------------------------

#[request(reply = Told)]
struct Ordered {
    rounds: u32,
}
#[event]
struct Before {
    round: u32,
}
#[request(reply = Told)]
struct After {
    round: u32,
}

#[derive(Default)]
struct Listener {
    heard: u32,
}
impl Listener {
    async fn ordered(_: &State<Self>, ordered: &Archived<Ordered>, ctx: &Context) -> Result<Told, Fault> {
        for round in 1..=ordered.rounds.to_native() {
            ctx.publish(&Before { round });
            if !ctx.send(&After { round }).await?.owns {
                return Err(Fault::new(format!("the request overtook the event in round {round}")));
            }
        }
        Ok(Told { gained: 0, owns: true })
    }
    fn before(&mut self, before: &Archived<Before>, _: &Context) {
        self.heard = before.round.to_native();
    }
    fn after(&mut self, after: &Archived<After>, _: &Context) -> Result<Told, Fault> {
        Ok(Told { gained: 0, owns: self.heard == after.round.to_native() })
    }
}

#[test]
fn what_is_published_before_a_request_arrives_before_it() {
    for listener in [0, 1] {
        let engine = Engine::builder()
            .shards(2)
            .service_on([0], |_| Listener::default(), |routes| routes.request_async(Listener::ordered))
            .service_on(
                [listener],
                |_| Listener::default(),
                |routes| routes.event(Listener::before).request(Listener::after),
            )
            .start()
            .unwrap();
        let outcome = block_on(engine.client().send(&Ordered { rounds: 300 }).within(LONG)).map(|_| ());
        assert_eq!(outcome, Ok(()), "with the listener on shard {listener}");
        assert_eq!(engine.stop(LONG).stats.sum(|shard| shard.events_dropped), 0);
    }
}

// ---- starts ---------------------------------------------------------------------------------------------------

#[test]
fn a_service_on_no_shard_is_a_start_error_that_names_it_and_a_message() {
    let builder = Engine::builder().shards(1);
    let started =
        builder.service_on([], |_| Sleeper::default(), |routes| routes.request_async(Sleeper::nap)).start();
    let text = started.unwrap_err().to_string();
    assert!(text.contains("services::Sleeper") && text.contains("Nap"), "{text}");
}

#[test]
fn a_hook_about_keys_without_keys_is_a_start_error() {
    let ledger = Ledger::default();
    let hooks = |hook: fn(Routes<Keeper>) -> Routes<Keeper>| {
        let builder = Engine::builder().shards(1);
        builder.service(Keeper::new(&ledger), move |routes| hook(routes.event(Keeper::opened))).start()
    };
    for (name, started) in [
        ("`gained`", hooks(|routes| routes.gained(Keeper::gained))),
        ("`lost`", hooks(|routes| routes.lost(Keeper::lost))),
    ] {
        let error = started.unwrap_err();
        assert!(matches!(error, StartError::HookWithoutKeys { .. }), "{error}");
        assert!(error.to_string().contains("Keeper") && error.to_string().contains(name), "{error}");
    }
}

#[event(key = customer)]
struct Moved {
    customer: String,
}
impl Keeper {
    fn moved(&mut self, _: &Archived<Moved>, _: &Context) {}
}

#[test]
fn a_hook_about_keys_that_are_divided_in_two_ways_is_a_start_error() {
    let ledger = Ledger::default();
    let started = |other| {
        Engine::builder()
            .shards(2)
            .service_on([0], Keeper::new(&ledger), |routes| {
                routes.request(Keeper::whose).event(Keeper::moved).gained(Keeper::gained)
            })
            .service_on([other], Keeper::new(&ledger), |routes| routes.event(Keeper::moved))
            .start()
    };
    assert!(started(0).is_ok());
    let error = started(1).unwrap_err();
    assert!(matches!(error, StartError::KeysDivided { .. }), "{error}");
    assert!(error.to_string().contains("Whose") && error.to_string().contains("Moved"), "{error}");
}

#[test]
fn a_period_of_zero_is_a_start_error() {
    let builder = Engine::builder().shards(1);
    let started = builder.service(
        |_| Sleeper::default(),
        |routes| routes.request_async(Sleeper::nap).every(Duration::ZERO, Sleeper::tick),
    );
    let error = started.start().unwrap_err();
    assert!(matches!(error, StartError::NoPeriod { .. }) && error.to_string().contains("Sleeper"), "{error}");
}
