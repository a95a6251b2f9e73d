//! Services that panic, sleep, tick and are given up, from many seeds, against what they write down about themselves.
//!
//! What a handler finds wrong it writes into the journal: an assertion in it would be one more panic of the service.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::pin::pin;
use std::time::Duration;

use futures_util::future::{Either, select};
use futures_util::stream::{FuturesUnordered, StreamExt};

use super::{A, Simulation, for_seeds, ms};
use crate::prelude::*;
use crate::runtime::simulated::HOLD_UP_MAX;
use crate::runtime::simulated::rng::Rng;
use crate::time::Time;
use crate::{Builder, Failure, Message, Refusal, Unknown};

/// Shorter than a hold-up, so that ticks are missed.
const PERIOD: Duration = Duration::from_micros(700);
/// A shard that is awake is late by no more than this.
const SLACK: Duration = Duration::from_millis(2 * HOLD_UP_MAX.as_millis() as u64);

/// Makes many of the calls below.
#[request(reply = Lived)]
struct Fan {
    seed: u64,
    calls: u32,
}
/// Handled at once; panics if it is told to.
#[request(reply = Lived, key = key)]
struct Poke {
    key: u64,
    panics: bool,
    fuse: bool,
}
/// Handled after a sleep; panics then, or in the `Drop` of what it holds if it is ended before.
#[request(reply = Lived, key = key)]
struct PokeLater {
    key: u64,
    micros: u64,
    panics: bool,
    panics_if_dropped: bool,
    fuse: bool,
}
#[event(key = key)]
struct Jolt {
    key: u64,
    panics: bool,
}
/// Published by who panics right after.
#[event]
struct Leak {}
#[message]
struct Lived {
    key: u64,
    /// The shard on which it panics when it is dropped, and one more; 0 if it does not.
    fuse: u16,
}

impl Lived {
    fn new(key: u64, fuse: bool, ctx: &Context) -> Self {
        Self { key, fuse: if fuse { ctx.shard().0 + 1 } else { 0 } }
    }
}

impl Drop for Lived {
    fn drop(&mut self) {
        if self.fuse > 0 && !std::thread::panicking() {
            panics_at(ShardId(self.fuse - 1));
        }
    }
}

/// What happened on one shard.
#[derive(Debug, Default)]
struct Page {
    made: u64,
    gained: u64,
    lost: u64,
    panics: u64,
    ticks: u64,
    began: Option<Time>,
    /// The last period in which it ticked.
    period: u64,
}

#[derive(Debug, Default)]
struct Journal {
    pages: BTreeMap<u16, Page>,
    wrong: Vec<String>,
    failed: u64,
    poisoned: u64,
    given_up: u64,
}

thread_local! {
    static JOURNAL: RefCell<Journal> = RefCell::default();
}

fn journal<T>(f: impl FnOnce(&mut Journal) -> T) -> T {
    JOURNAL.with_borrow_mut(f)
}

fn page<T>(shard: ShardId, f: impl FnOnce(&mut Page) -> T) -> T {
    journal(|journal| f(journal.pages.entry(shard.0).or_default()))
}

fn wrong(what: impl Into<String>) {
    journal(|journal| journal.wrong.push(what.into()));
}

/// Panics without a word on the test's output.
fn panics_at(shard: ShardId) -> ! {
    page(shard, |page| page.panics += 1);
    std::panic::resume_unwind(Box::new("as it was told"))
}

struct PanicsInDrop(Option<ShardId>);
impl Drop for PanicsInDrop {
    fn drop(&mut self) {
        if let Some(shard) = self.0
            && !std::thread::panicking()
        {
            panics_at(shard);
        }
    }
}

struct Fragile {
    owned: Option<Owned>,
    policy: OnPanic,
}

impl Fragile {
    fn new(shard: ShardId, policy: OnPanic) -> Self {
        page(shard, |page| page.made += 1);
        Self { owned: None, policy }
    }

    fn gained(&mut self, owned: &Owned, ctx: &Context) {
        page(ctx.shard(), |page| {
            page.gained += 1;
            page.began.get_or_insert(ctx.core().now());
        });
        self.owned = Some(*owned);
    }

    fn lost(&mut self, owned: &Owned, ctx: &Context) {
        if self.owned != Some(*owned) {
            wrong("lost what it had not gained");
        }
        page(ctx.shard(), |page| page.lost += 1);
    }

    fn begins(&self, key: u64, ctx: &Context) {
        if !self.owned.is_some_and(|owned| owned.contains(&key)) {
            wrong(format!("{} handled key {key} with {:?}", ctx.shard(), self.owned));
        }
        if self.policy == OnPanic::Poison && page(ctx.shard(), |page| page.panics > 0) {
            wrong(format!("{} handled key {key} after a panic", ctx.shard()));
        }
    }

    fn act(&mut self, panics: bool, ctx: &Context) {
        if panics {
            ctx.publish(&Leak {});
            panics_at(ctx.shard());
        }
    }

    fn poke(&mut self, poke: &Archived<Poke>, ctx: &Context) -> Result<Lived, Fault> {
        self.begins(poke.key.to_native(), ctx);
        self.act(poke.panics, ctx);
        Ok(Lived::new(poke.key.to_native(), poke.fuse, ctx))
    }

    async fn poke_later(
        this: &State<Self>,
        poke: &Archived<PokeLater>,
        ctx: &Context,
    ) -> Result<Lived, Fault> {
        this.with(|this| this.begins(poke.key.to_native(), ctx));
        let mut in_drop = PanicsInDrop(poke.panics_if_dropped.then(|| ctx.shard()));
        let due = ctx.core().now() + Duration::from_micros(poke.micros.to_native());
        ctx.sleep(Duration::from_micros(poke.micros.to_native())).await;
        in_drop.0 = None;
        let now = ctx.core().now();
        if now < due || now.since(due) > SLACK {
            wrong(format!("slept until {now:?} instead of {due:?}"));
        }
        this.with(|this| this.act(poke.panics, ctx));
        Ok(Lived::new(poke.key.to_native(), poke.fuse, ctx))
    }

    fn jolt(&mut self, jolt: &Archived<Jolt>, ctx: &Context) {
        self.begins(jolt.key.to_native(), ctx);
        self.act(jolt.panics, ctx);
    }

    fn tick(&mut self, ctx: &Context) {
        let now = ctx.core().now();
        let (panics, in_time) = page(ctx.shard(), |page| {
            page.ticks += 1;
            // By the beat of the first one, whatever was missed.
            let period = (now.since(page.began.unwrap_or(now)).as_nanos() / PERIOD.as_nanos()) as u64;
            let before = std::mem::replace(&mut page.period, period);
            (page.ticks.is_multiple_of(50), period > before)
        });
        if self.policy == OnPanic::Poison && page(ctx.shard(), |page| page.panics > 0) {
            wrong(format!("{} ticked after a panic", ctx.shard()));
        }
        if !in_time {
            wrong(format!("{} ticked twice in a period, or too early", ctx.shard()));
        }
        self.act(panics, ctx);
    }

    fn leaked(_: &mut Fanner, _: &Archived<Leak>, _: &Context) {
        wrong("what was published before a panic has left");
    }
}

struct Fanner;

impl Fanner {
    async fn fan(_: &State<Self>, fan: &Archived<Fan>, ctx: &Context) -> Result<Lived, Fault> {
        let mut rng = Rng::new(fan.seed.to_native());
        let mut flying = FuturesUnordered::new();
        for _ in 0..fan.calls.to_native() {
            flying.push(Self::one(rng.next(), ctx));
            if rng.chance(200) {
                ctx.publish(&Jolt { key: rng.next(), panics: rng.chance(100) });
            }
            if flying.len() > 8 {
                flying.next().await;
            }
        }
        while flying.next().await.is_some() {}
        Ok(Lived::new(0, false, ctx))
    }

    async fn one(seed: u64, ctx: &Context) {
        let mut rng = Rng::new(seed);
        // An answer that panics when it is dropped has been written by then: its caller has it.
        let (key, panics, fuse) = (rng.next(), rng.chance(60), rng.chance(40));
        let within = rng.time(ms(1), ms(30));
        if rng.chance(500) {
            let outcome = ctx.send(&Poke { key, panics, fuse }).within(within).await;
            return Self::note(outcome.map(|lived| lived.key.to_native()), key, panics, false);
        }
        let (micros, in_drop) = (rng.below(20_000), rng.chance(60));
        let poke = PokeLater { key, micros, panics, panics_if_dropped: in_drop, fuse };
        let patience = if rng.chance(300) { rng.time(Duration::ZERO, ms(20)) } else { ms(1000) };
        match select(pin!(ctx.send(&poke).within(within)), pin!(ctx.sleep(patience))).await {
            Either::Left((outcome, _)) => {
                Self::note(outcome.map(|lived| lived.key.to_native()), key, panics, in_drop);
            }
            Either::Right(_) => journal(|journal| journal.given_up += 1),
        }
    }

    fn note(outcome: Result<u64, CallError<Fault>>, key: u64, panics: bool, in_drop: bool) {
        match outcome {
            Ok(lived) if lived == key && !panics => {}
            Err(CallError::Failed(Failure::Panicked)) if panics || in_drop => {
                journal(|journal| journal.failed += 1);
            }
            Err(CallError::Refused(Refusal::Poisoned)) => journal(|journal| journal.poisoned += 1),
            Err(CallError::Refused(Refusal::Overloaded | Refusal::Expired) | CallError::NotSent(_))
            | Err(CallError::Unknown(Unknown::Deadline | Unknown::Cut)) => {}
            other => wrong(format!("a call that panics: {panics}, ended as {other:?}")),
        }
    }
}

fn fragile(builder: Builder, policy: OnPanic) -> Builder {
    builder
        .service(
            move |shard| Fragile::new(shard, policy),
            move |routes| {
                let routes = routes.request(Fragile::poke).request_async(Fragile::poke_later);
                let routes = routes.event(Fragile::jolt).every(PERIOD, Fragile::tick);
                routes.gained(Fragile::gained).lost(Fragile::lost).on_panic(policy)
            },
        )
        .service(|_| Fanner, |routes| routes.request_async(Fanner::fan).event(Fragile::leaked))
}

/// The order of the messages in this process must not depend on which test comes first.
fn fix_type_order() {
    super::services::fix_type_order();
    let _ = (Fan::type_index(), Poke::type_index(), PokeLater::type_index(), Jolt::type_index());
    let _ = (Leak::type_index(), Lived::type_index());
}

/// One life of a node under one policy. Returns the trace, and how calls failed, were refused as poisoned and given up.
fn life(seed: u64, policy: OnPanic) -> (u64, [u64; 3]) {
    fix_type_order();
    journal(std::mem::take);
    let mut rng = Rng::new(seed);
    let mut simulation = Simulation::new(rng.next());
    let shards = rng.between(1, 3) as usize;
    simulation.node("a", 1, &[], shards, move |builder| fragile(builder, policy));
    simulation.hold_ups = if rng.chance(300) { 0 } else { rng.between(1, 60) };
    for _ in 0..rng.between(1, 5) {
        let client = simulation.client(A);
        let (seed, calls, within) = (rng.next(), rng.between(1, 30) as u32, rng.time(ms(1), ms(300)));
        simulation.outside(async move {
            let _ = client.send(&Fan { seed, calls }).within(within).await;
        });
        let pause = rng.time(ms(0), ms(20));
        simulation.run(pause, |_| false);
    }
    assert!(simulation.run(ms(3_000), |simulation| simulation.waiting_outside() == 0), "they wait on");
    let quiet = |simulation: &mut Simulation| {
        simulation.cores(A).all(|core| core.tasks_running() == 0 && core.calls.borrow().live() == 0)
    };
    assert!(simulation.run(ms(1_000), quiet), "not quiet");
    check(&simulation, policy);
    simulation.stop(A, ms(100));
    assert!(simulation.run(ms(1_000), |simulation| !simulation.is_running(A)), "it does not stop");
    journal(|journal| {
        for (shard, page) in &journal.pages {
            let lost = u64::from(policy != OnPanic::Poison || page.panics == 0);
            assert_eq!(page.lost, lost, "shard {shard}: {page:?}");
        }
        (simulation.trace(), [journal.failed, journal.poisoned, journal.given_up])
    })
}

/// What is counted and what is left, against the journal.
fn check(simulation: &Simulation, policy: OnPanic) {
    journal(|journal| {
        assert!(journal.wrong.is_empty(), "{:#?}", journal.wrong);
        for core in simulation.cores(A) {
            let (stats, page) = (core.counters.read(), &journal.pages[&core.shard.0]);
            assert_eq!(stats.failed, page.panics, "{policy:?} {}: {page:?}", core.shard);
            let (poisoned, rebuilt) = match policy {
                OnPanic::Poison => (page.panics.min(1), 0),
                OnPanic::Rebuild => (0, page.panics),
                _ => (0, 0),
            };
            assert_eq!((stats.poisoned, stats.rebuilt), (poisoned, rebuilt), "{policy:?} {}", core.shard);
            assert_eq!((page.made, page.gained), (1 + rebuilt, 1 + rebuilt), "{policy:?} {}", core.shard);
            assert_eq!(core.timers.len(), 1, "the service's period, and nothing of all the sleeps");
            let began = page.began.expect("it has gained its keys");
            let periods = (simulation.now.since(began).as_nanos() / PERIOD.as_nanos()) as u64;
            assert!(page.ticks <= periods, "{periods}: {page:?}");
            if poisoned == 0 && simulation.hold_ups == 0 {
                assert!(page.ticks + 2 > periods, "{periods}: {page:?}");
            }
        }
    });
}

#[test]
fn whatever_panics_sleeps_or_is_given_up_the_policy_is_kept_and_nothing_is_left() {
    let seen = RefCell::new([0; 9]);
    for_seeds(40, |seed| {
        for (index, policy) in [OnPanic::Poison, OnPanic::Rebuild, OnPanic::Keep].into_iter().enumerate() {
            let (_, kinds) = life(4_000_000 + seed, policy);
            for (kind, count) in kinds.into_iter().enumerate() {
                seen.borrow_mut()[3 * index + kind] += count;
            }
        }
    });
    if std::env::var_os("CATGA_SEED").is_none() {
        let seen = seen.take();
        assert!(seen[0] > 0 && seen[1] > 0 && seen[2] > 0, "failed, poisoned, given up: {seen:?}");
        assert!(seen[3] > 0 && seen[4] == 0 && seen[6] > 0 && seen[7] == 0, "by policy: {seen:?}");
    }
}

#[test]
fn the_same_life_from_the_same_seed() {
    for_seeds(5, |seed| {
        let lived = life(5_000_000 + seed, OnPanic::Rebuild);
        assert_eq!(lived, life(5_000_000 + seed, OnPanic::Rebuild), "something is not drawn from the seed");
    });
}
