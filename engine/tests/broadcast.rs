//! Broadcasts inside one engine, on real threads: who has handled the event when the report comes, and what it says if
//! somebody has not.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed helper is a failed test")]

mod common;

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Waker;
use std::time::Duration;

use catga::prelude::*;
use catga::{Broadcast, BroadcastError, Failure, Handled, NotSent, Refusal, Report, ShardId, Unknown};
use common::eventually;
use futures_util::future::join_all;
use pollster::block_on;

#[event]
struct Noted {
    filler: Vec<u8>,
}
#[event(key = owner)]
struct Owned {
    owner: u64,
}
#[event]
struct Unheard {}
/// Its listener on that shard panics.
#[event]
struct Trouble {
    shard: u16,
}
/// Broadcasts `Noted` so often, all at once, and says how they ended.
#[request(reply = Ends)]
struct Storm {
    broadcasts: u32,
    within_ms: u32,
    bytes: u32,
    /// Drops each right after it was sent.
    gives_up: bool,
}
#[message]
#[derive(Default)]
struct Ends {
    handled: u32,
    listeners: u32,
    no_room: u32,
    too_many: u32,
    refused: u32,
    unknown: u32,
    others: u32,
    /// By the clock of the turns: by another one it may be shorter by what its first turn had taken.
    took_us: u64,
}

const LONG: Duration = Duration::from_secs(60);

fn outcome(report: &Report) -> Result<u32, BroadcastError> {
    let [line] = report.lines() else { panic!("a line for each node: {report}") };
    assert_eq!(line.node(), "this node");
    assert_eq!(report.is_handled(), line.outcome().is_ok());
    line.outcome().map(|Handled { listeners, .. }| listeners)
}

/// What listeners on all shards have in common.
#[derive(Default)]
struct Shared {
    heard: [AtomicU64; 3],
    /// Listeners wait while it is set.
    shut: AtomicBool,
    stuck: AtomicU64,
}

impl Shared {
    fn count(&self) -> u64 {
        self.heard.iter().map(|heard| heard.load(Ordering::SeqCst)).sum()
    }
}

struct Ear(Arc<Shared>);
impl Ear {
    fn hear(&self, ctx: &Context) {
        self.0.heard[usize::from(ctx.shard().0)].fetch_add(1, Ordering::SeqCst);
    }
    fn noted(&mut self, noted: &Archived<Noted>, ctx: &Context) {
        assert!(noted.filler.iter().all(|&byte| byte == 3), "as it was sent");
        self.0.stuck.fetch_add(1, Ordering::SeqCst);
        eventually("the gate opens", || !self.0.shut.load(Ordering::SeqCst));
        self.0.stuck.fetch_sub(1, Ordering::SeqCst);
        self.hear(ctx);
    }
    fn owned(&mut self, _: &Archived<Owned>, ctx: &Context) {
        self.hear(ctx);
    }
    fn trouble(&mut self, _: &Archived<Trouble>, ctx: &Context) {
        self.hear(ctx);
    }
}

/// Says how long a listener has.
struct Clock(Arc<AtomicU64>);
impl Clock {
    fn noted(&mut self, _: &Archived<Noted>, ctx: &Context) {
        self.0.store(ctx.remaining().as_micros() as u64, Ordering::SeqCst);
    }
}

struct Fragile;
impl Fragile {
    fn trouble(&mut self, trouble: &Archived<Trouble>, ctx: &Context) {
        assert_ne!(trouble.shard.to_native(), ctx.shard().0, "as it was told");
    }
}

struct Caller;
impl Caller {
    async fn storm(_: &State<Self>, storm: &Archived<Storm>, ctx: &Context) -> Result<Ends, Fault> {
        let noted = Noted { filler: vec![3; storm.bytes.to_native() as usize] };
        let within = Duration::from_millis(storm.within_ms.to_native().into());
        let one = || ctx.broadcast(&noted).within(within);
        let (mut ends, before) = (Ends::default(), ctx.remaining());
        if storm.gives_up {
            for _ in 0..storm.broadcasts.to_native() {
                let mut broadcast = pin!(one());
                let polled = broadcast.as_mut().poll(&mut std::task::Context::from_waker(Waker::noop()));
                ends.others += u32::from(polled.is_ready());
            }
            return Ok(ends);
        }
        let all: Vec<Broadcast<'_, Noted>> = (0..storm.broadcasts.to_native()).map(|_| one()).collect();
        for report in join_all(all).await {
            match outcome(&report) {
                Ok(listeners) => {
                    ends.handled += 1;
                    ends.listeners += listeners;
                }
                Err(BroadcastError::NotSent(NotSent::Deadline)) => ends.no_room += 1,
                Err(BroadcastError::NotSent(NotSent::TooManyCalls)) => ends.too_many += 1,
                Err(BroadcastError::Refused(_)) => ends.refused += 1,
                Err(BroadcastError::Unknown(Unknown::Deadline)) => ends.unknown += 1,
                Err(_) => ends.others += 1,
            }
        }
        ends.took_us = (before - ctx.remaining()).as_micros() as u64;
        Ok(ends)
    }
}

/// A caller on shard 0, and ears on the given shards.
fn engine(shared: &Arc<Shared>, shards: usize, ears: &[u16], calls_max: u32) -> Engine {
    let shared = shared.clone();
    Engine::builder()
        .shards(shards)
        .calls_max(calls_max)
        .service_on([0], |_| Caller, |routes| routes.request_async(Caller::storm))
        .service_on(
            ears.to_vec(),
            move |_| Ear(shared.clone()),
            |routes| routes.event(Ear::noted).event(Ear::owned).event(Ear::trouble),
        )
        .start()
        .unwrap()
}

fn storm(engine: &Engine, storm: &Storm) -> Ends {
    block_on(engine.client().send(storm).within(LONG)).unwrap().to_owned()
}

const CALM: Storm = Storm { broadcasts: 1, within_ms: 30_000, bytes: 1, gives_up: false };

#[test]
fn when_the_report_comes_every_listener_has_handled_the_event() {
    let shared = Arc::new(Shared::default());
    let (first, second) = (shared.clone(), shared.clone());
    let engine = Engine::builder()
        .shards(3)
        .service(move |_| Ear(first.clone()), |routes| routes.event(Ear::noted))
        .service_on([0, 2], move |_| Ear(second.clone()), |routes| routes.event(Ear::noted))
        .service_on([0], |_| Caller, |routes| routes.request_async(Caller::storm))
        .start()
        .unwrap();
    let client = engine.client();
    for (round, bytes) in [0, 1, 500, 5_000, 100_000].into_iter().cycle().take(100).enumerate() {
        let report = block_on(client.broadcast(&Noted { filler: vec![3; bytes] }).within(LONG));
        assert_eq!(outcome(&report), Ok(5), "{report}");
        assert_eq!(shared.count(), 5 * (round as u64 + 1));
    }
    // The same from inside a shard, many at once.
    let ends = storm(&engine, &Storm { broadcasts: 300, ..CALM });
    assert_eq!((ends.handled, ends.listeners, shared.count()), (300, 1_500, 2_000));
    let stats = engine.stop(LONG).stats;
    assert_eq!(stats.sum(|shard| shard.broadcasts), 400);
    assert_eq!(stats.sum(|shard| shard.broadcasts_failed), 0);
    assert_eq!(stats.sum(|shard| shard.events_handled), 2_000);
}

#[test]
fn a_listener_has_what_is_left_of_the_broadcasts_time_and_a_published_event_the_default() {
    let left = Arc::new(AtomicU64::new(0));
    for shard in [0, 1] {
        let clock = left.clone();
        let engine = Engine::builder()
            .shards(2)
            .deadline(Duration::from_secs(1_000))
            .service_on([shard], move |_| Clock(clock.clone()), |routes| routes.event(Clock::noted))
            .service_on([0], |_| Caller, |routes| routes.request_async(Caller::storm))
            .start()
            .unwrap();
        assert_eq!(storm(&engine, &CALM).handled, 1);
        // The clock of a turn is that of its start, a little before the caller's: hence a second more.
        assert!((1..=31_000_000).contains(&left.swap(0, Ordering::SeqCst)), "thirty seconds");
        // The handler has a minute, and so has what it broadcasts, whatever it asks for.
        assert_eq!(storm(&engine, &Storm { within_ms: 900_000, ..CALM }).handled, 1);
        assert!((1..=61_000_000).contains(&left.swap(0, Ordering::SeqCst)), "a minute");
        let noted = Noted { filler: vec![] };
        assert_eq!(outcome(&block_on(engine.client().broadcast(&noted).within(LONG))), Ok(1));
        assert!((1..=61_000_000).contains(&left.swap(0, Ordering::SeqCst)), "a minute");
        engine.client().publish(&noted).unwrap();
        eventually("it is heard", || left.load(Ordering::SeqCst) == 1_000_000_000);
        left.store(0, Ordering::SeqCst);
    }
}

#[test]
fn a_keyed_event_reaches_the_shard_of_its_key_only() {
    let shared = Arc::new(Shared::default());
    let engine = engine(&shared, 3, &[0, 1, 2], 64);
    let client = engine.client();
    let counts = || shared.heard.each_ref().map(|heard| heard.load(Ordering::SeqCst));
    for owner in 0..64 {
        let before = counts();
        for _ in 0..2 {
            assert_eq!(outcome(&block_on(client.broadcast(&Owned { owner }).within(LONG))), Ok(1));
        }
        let after = counts();
        let heard: Vec<u64> = after.iter().zip(before).map(|(after, before)| after - before).collect();
        assert!(heard.contains(&2) && heard.iter().sum::<u64>() == 2, "one shard owns {owner}: {heard:?}");
    }
    assert!(counts().iter().all(|&heard| heard > 0), "every shard owns some: {:?}", counts());
}

#[test]
fn a_listener_that_panics_is_the_failure_of_the_line_and_the_others_handle_the_event_all_the_same() {
    let shared = Arc::new(Shared::default());
    let ears = shared.clone();
    let engine = Engine::builder()
        .shards(2)
        .service(|_| Fragile, |routes| routes.event(Fragile::trouble))
        .service(move |_| Ear(ears.clone()), |routes| routes.event(Ear::trouble))
        .start()
        .unwrap();
    let client = engine.client();
    let trouble = Trouble { shard: 1 };
    let report = block_on(client.broadcast(&trouble).within(LONG));
    assert_eq!(outcome(&report), Err(BroadcastError::Failed(Failure::Panicked)));
    assert_eq!(
        report.to_string(),
        "this node: not handled by all; a listener failed: the handler panicked; the log of its node has the message \
         (other listeners may have handled it)"
    );
    assert_eq!(shared.count(), 2, "the other listeners there and elsewhere");
    let report = block_on(client.broadcast(&trouble).within(LONG));
    assert_eq!(outcome(&report), Err(BroadcastError::Refused(Refusal::Poisoned)));
    assert_eq!(shared.count(), 4);
    let stats = engine.stop(LONG).stats;
    let sums = (
        stats.sum(|shard| shard.failed),
        stats.sum(|shard| shard.events_dropped),
        stats.sum(|shard| shard.broadcasts),
        stats.sum(|shard| shard.broadcasts_failed),
    );
    assert_eq!(sums, (1, 1, 2, 2));
}

#[test]
fn a_deadline_of_zero_is_over_before_it_begins() {
    let shared = Arc::new(Shared::default());
    let engine = engine(&shared, 2, &[0, 1], 64);
    let noted = Noted { filler: vec![] };
    let report = block_on(engine.client().broadcast(&noted).within(Duration::ZERO));
    assert_eq!(outcome(&report), Err(BroadcastError::NotSent(NotSent::Deadline)));
    let ends = storm(&engine, &Storm { broadcasts: 10, within_ms: 0, ..CALM });
    assert_eq!(ends.no_room, 10);
    assert_eq!(engine.stop(LONG).stats.sum(|shard| shard.broadcasts_failed), 10);
    assert_eq!(shared.count(), 0);
}

#[test]
fn where_nobody_listens_it_is_handled_by_nobody() {
    let engine = engine(&Arc::default(), 2, &[1], 64);
    let report = block_on(engine.client().broadcast(&Unheard {}).within(LONG));
    assert_eq!(outcome(&report), Ok(0));
    assert_eq!(report.to_string(), "this node: nobody listens");
    let report = block_on(engine.client().broadcast(&Noted { filler: vec![] }).within(LONG));
    assert_eq!(report.to_string(), "this node: handled by 1 listener");
}

#[test]
fn a_stopped_engine_says_so() {
    let engine = engine(&Arc::default(), 2, &[1], 64);
    let client = engine.client();
    engine.stop(LONG);
    let report = block_on(client.broadcast(&Noted { filler: vec![] }).within(LONG));
    assert_eq!(outcome(&report), Err(BroadcastError::NotSent(NotSent::Stopping)));
}

#[test]
fn a_listener_that_blocks_its_shard_is_unknown_at_the_deadline_of_a_caller_elsewhere() {
    let stuck = Arc::new(Shared { shut: AtomicBool::new(true), ..Shared::default() });
    let blocked = engine(&stuck, 2, &[1], 64);
    let ends = storm(&blocked, &Storm { within_ms: 50, ..CALM });
    assert_eq!(ends.unknown, 1);
    assert!(ends.took_us >= 50_000, "after {} us", ends.took_us);
    eventually("its listener is at it", || stuck.stuck.load(Ordering::SeqCst) == 1);
    stuck.shut.store(false, Ordering::SeqCst);
    eventually("its answer is late", || blocked.stats().sum(|shard| shard.answers_late) == 1);
    assert_eq!(storm(&blocked, &CALM).handled, 1);
}

#[test]
fn a_storm_beyond_all_credits_and_slots_ends_each_in_an_outcome_and_leaves_nothing_behind() {
    let shared = Arc::new(Shared { shut: AtomicBool::new(true), ..Shared::default() });
    let engine = engine(&shared, 2, &[1], 6_000);
    // Each holds a slot for the whole and one for its part, and there are about a thousand credits.
    let ends = storm(&engine, &Storm { broadcasts: 5_000, within_ms: 300, ..CALM });
    assert_eq!(ends.too_many, 2_000, "each other one has its slots");
    assert_eq!(ends.no_room + ends.unknown, 3_000);
    assert!(ends.unknown >= 500 && ends.no_room >= 500, "{} left, {} waited", ends.unknown, ends.no_room);
    shared.shut.store(false, Ordering::SeqCst);
    for _ in 0..3 {
        let ends = storm(&engine, &Storm { broadcasts: 3_000, ..CALM });
        assert_eq!(ends.handled, 3_000, "all credits and slots are back");
    }
    assert_eq!(shared.count(), u64::from(ends.unknown) + 9_000, "what did not leave was not heard");
    eventually("no slot is held", || engine.stats().sum(|shard| shard.calls_live) == 0);
}

#[test]
fn dropping_a_broadcast_frees_its_slots_at_once_and_its_credits_with_the_answers() {
    let shared = Arc::new(Shared { shut: AtomicBool::new(true), ..Shared::default() });
    // Two slots: enough for one broadcast at a time, also while the shards owe answers to those before.
    let engine = engine(&shared, 2, &[1], 3);
    let ends = storm(&engine, &Storm { broadcasts: 5_000, gives_up: true, ..CALM });
    assert_eq!(ends.others, 0, "none was refused a slot");
    shared.shut.store(false, Ordering::SeqCst);
    for _ in 0..20 {
        assert_eq!(storm(&engine, &CALM).handled, 1);
    }
    let left = shared.count() - 20;
    assert!((500..3_000).contains(&left), "what had no credit did not leave: {left} did");
    eventually("no slot is held", || engine.stats().sum(|shard| shard.calls_live) == 0);
}

/// Blocks on shard 1, as long as it is shut.
struct Half(Arc<Shared>);
impl Half {
    fn noted(&mut self, _: &Archived<Noted>, ctx: &Context) {
        if ctx.shard() == ShardId(1) {
            self.0.stuck.fetch_add(1, Ordering::SeqCst);
            eventually("it opens", || !self.0.shut.load(Ordering::SeqCst));
        }
    }
}

#[test]
fn a_broadcast_from_outside_that_is_dropped_frees_its_slots_though_a_listener_is_stuck() {
    let shared = Arc::new(Shared { shut: AtomicBool::new(true), ..Shared::default() });
    let own = shared.clone();
    let engine = Engine::builder()
        .shards(2)
        .calls_max(64)
        .service(move |_| Half(own.clone()), |routes| routes.event(Half::noted))
        .start()
        .unwrap();
    let client = engine.client();
    let noted = Noted { filler: vec![1] };
    client.publish(&noted).unwrap();
    eventually("shard 1 is stuck", || shared.stuck.load(Ordering::SeqCst) == 1);
    let mut cx = std::task::Context::from_waker(Waker::noop());
    let mut broadcasts: Vec<_> = (0..20).map(|_| Box::pin(client.broadcast(&noted).within(LONG))).collect();
    for broadcast in &mut broadcasts {
        assert!(broadcast.as_mut().poll(&mut cx).is_pending());
    }
    eventually("shard 0 waits for shard 1", || engine.stats().shards[0].calls_live > 0);
    drop(broadcasts);
    eventually("shard 0 waits for nobody", || engine.stats().shards[0].calls_live == 0);
    shared.shut.store(false, Ordering::SeqCst);
    assert!(block_on(client.broadcast(&noted).within(LONG)).is_handled());
}
