//! Calls, events and their bounds inside one engine, on real threads.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed helper is a failed test")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use catga::prelude::*;
use catga::{Failure, NotSent, Refusal, Unknown};
use common::{call, call_from_a_shard, eventually};
use futures_util::future::join_all;
use pollster::block_on;

#[request(reply = Blob)]
struct Give {
    bytes: u32,
}
#[request(reply = Blob)]
struct Take {
    blob: Vec<u8>,
}
#[message]
struct Blob {
    bytes: Vec<u8>,
}

#[request(reply = Count)]
struct Ping {
    value: u64,
}
/// Like `Ping`, but its handler first calls back.
#[request(reply = Count)]
struct Echo {
    value: u64,
}
/// Makes many calls to the other shard: each of them an `Echo` or a `Ping`.
#[request(reply = Count)]
struct Flood {
    calls: u64,
    in_flight: u64,
    echo: bool,
}
/// The same the other way round.
#[request(reply = Count)]
struct FloodBack {
    calls: u64,
    in_flight: u64,
    echo: bool,
}
#[message]
struct Count {
    value: u64,
}

#[request]
struct Hang {}
#[request]
struct Panic {
    now: bool,
}
#[request]
struct Nobody {}

const LONG: Duration = Duration::from_secs(60);

#[derive(Default)]
struct Store;

impl Store {
    fn give(&mut self, give: &Archived<Give>, _: &Context) -> Result<Blob, Fault> {
        Ok(Blob { bytes: vec![9; give.bytes.to_native() as usize] })
    }
    fn take(&mut self, take: &Archived<Take>, _: &Context) -> Result<Blob, Fault> {
        let sum = take.blob.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        Ok(Blob { bytes: vec![sum] })
    }
}

/// Passes on what it is asked, so that the call is made from inside a shard.
#[request(reply = Count)]
struct Relay {
    bytes: u32,
}
struct Relayer;
impl Relayer {
    async fn relay(_: &State<Self>, relay: &Archived<Relay>, ctx: &Context) -> Result<Count, Fault> {
        let bytes = relay.bytes.to_native();
        let given = call_from_a_shard(ctx, &Give { bytes }).await?;
        let taken = call_from_a_shard(ctx, &Take { blob: given.bytes.to_vec() }).await?;
        assert_eq!(taken.bytes[..], [(bytes as u8).wrapping_mul(9)]);
        Ok(Count { value: given.bytes.len() as u64 })
    }
}

#[test]
fn large_requests_and_replies_pass_on_the_same_shard_and_across() {
    for (relayer, store) in [(0, 0), (0, 1), (1, 0)] {
        let engine = Engine::builder()
            .shards(2)
            .service_on([store], |_| Store, |routes| routes.request(Store::give).request(Store::take))
            .service_on([relayer], |_| Relayer, |routes| routes.request_async(Relayer::relay))
            .start()
            .unwrap();
        let client = engine.client();
        for bytes in [0, 1, 255, 256, 5 * 1024, 100 * 1024, 8 * 1024 * 1024] {
            let relayed = call(&client, &Relay { bytes }).unwrap();
            assert_eq!(relayed.value.to_native(), u64::from(bytes));
            let given = call(&client, &Give { bytes }).unwrap();
            assert_eq!(given.bytes.len(), bytes as usize);
        }
        let too_large = call(&client, &Give { bytes: 17 << 20 });
        assert_eq!(too_large.unwrap_err(), CallError::Failed(Failure::ReplyTooLarge));
        let too_large = call(&client, &Take { blob: vec![1; 17 << 20] });
        assert_eq!(too_large.unwrap_err(), CallError::NotSent(NotSent::TooLarge));
        // The next one comes through as ever.
        assert!(call(&client, &Relay { bytes: 300 }).is_ok());
    }
}

/// Answers pings, and floods the other shard.
struct Party;
impl Party {
    async fn echo(_: &State<Self>, echo: &Archived<Echo>, ctx: &Context) -> Result<Count, Fault> {
        let pong = ctx.send(&Knock { value: echo.value.to_native() }).await?;
        Ok(Count { value: pong.value.to_native() })
    }
    fn ping(&mut self, ping: &Archived<Ping>, _: &Context) -> Result<Count, Fault> {
        Ok(Count { value: ping.value.to_native() })
    }
    fn knock(&mut self, knock: &Archived<Knock>, _: &Context) -> Result<Count, Fault> {
        Ok(Count { value: knock.value.to_native() })
    }
    fn knock_back(&mut self, knock: &Archived<KnockBack>, _: &Context) -> Result<Count, Fault> {
        Ok(Count { value: knock.value.to_native() })
    }
    async fn echo_back(_: &State<Self>, echo: &Archived<EchoBack>, ctx: &Context) -> Result<Count, Fault> {
        let pong = ctx.send(&KnockBack { value: echo.value.to_native() }).await?;
        Ok(Count { value: pong.value.to_native() })
    }
    async fn flood_up(_: &State<Self>, flood: &Archived<Flood>, ctx: &Context) -> Result<Count, Fault> {
        let (calls, in_flight) = (flood.calls.to_native(), flood.in_flight.to_native() as usize);
        let mut tally = Tally::default();
        if flood.echo {
            let echoes =
                ctx.send_batch((0..calls).map(|value| Echo { value })).in_flight(in_flight).within(LONG);
            echoes.for_each(|place, reply| tally.take(place, reply)).await;
        } else {
            let pings =
                ctx.send_batch((0..calls).map(|value| Ping { value })).in_flight(in_flight).within(LONG);
            pings.for_each(|place, reply| tally.take(place, reply)).await;
        }
        tally.done()
    }
    async fn flood_down(_: &State<Self>, flood: &Archived<FloodBack>, ctx: &Context) -> Result<Count, Fault> {
        let (calls, in_flight) = (flood.calls.to_native(), flood.in_flight.to_native() as usize);
        let mut tally = Tally::default();
        if flood.echo {
            let echoes =
                ctx.send_batch((0..calls).map(|value| EchoBack { value })).in_flight(in_flight).within(LONG);
            echoes.for_each(|place, reply| tally.take(place, reply)).await;
        } else {
            // Lent, where the others are given away.
            let knocks: Vec<_> = (0..calls).map(|value| Knock { value }).collect();
            let pings = ctx.send_batch_of(&knocks).in_flight(in_flight).within(LONG);
            pings.for_each(|place, reply| tally.take(place, reply)).await;
        }
        tally.done()
    }
}

/// Right answers, and the first that was not.
#[derive(Default)]
struct Tally {
    right: u64,
    wrong: Option<String>,
}
impl Tally {
    fn take(&mut self, place: usize, reply: Result<&Archived<Count>, CallError<Fault>>) {
        match reply {
            Ok(reply) if reply.value.to_native() == place as u64 => self.right += 1,
            other => drop(self.wrong.get_or_insert_with(|| format!("call {place}: {:?}", other.err()))),
        }
    }
    fn done(self) -> Result<Count, Fault> {
        self.wrong.map_or(Ok(Count { value: self.right }), |wrong| Err(Fault::new(wrong)))
    }
}

/// Served by the flooding shard: what `Echo` calls back.
#[request(reply = Count)]
struct Knock {
    value: u64,
}
/// The same the other way round.
#[request(reply = Count)]
struct KnockBack {
    value: u64,
}
#[request(reply = Count)]
struct EchoBack {
    value: u64,
}
/// Shard 0 floods shard 1 while shard 1 floods shard 0. Returns how both fared.
fn two_floods(engine: &Engine, calls: u64, in_flight: u64, echo: bool) -> [Result<u64, String>; 2] {
    let client = engine.client();
    let (flood_up, flood_down) = (Flood { calls, in_flight, echo }, FloodBack { calls, in_flight, echo });
    let up = client.send(&flood_up).within(LONG);
    let down = client.send(&flood_down).within(LONG);
    let (up, down) = block_on(futures_util::future::join(up, down));
    [up, down].map(|outcome| match outcome {
        Ok(count) => Ok(count.value.to_native()),
        Err(CallError::Rejected(fault)) => Err(fault.to_string()),
        Err(other) => panic!("the flood itself: {other}"),
    })
}

fn party(runtime: catga::Runtime) -> Engine {
    Engine::builder()
        .shards(2)
        .runtime(runtime)
        .calls_max(60_000)
        .tasks_max(30_000)
        .service_on(
            [0],
            |_| Party,
            |routes| {
                routes.request_async(Party::flood_up).request(Party::knock).request_async(Party::echo_back)
            },
        )
        .service_on(
            [1],
            |_| Party,
            |routes| {
                let routes = routes.request_async(Party::flood_down).request(Party::knock_back);
                routes.request(Party::ping).request_async(Party::echo)
            },
        )
        .deadline(Duration::from_secs(2))
        .start()
        .unwrap()
}

#[test]
fn a_batch_has_as_many_in_flight_as_the_shard_may_have_whatever_was_asked() {
    let engine = party(catga::Runtime::Auto);
    for in_flight in [0, 1 << 32, 1 << 46, u64::MAX] {
        assert_eq!(two_floods(&engine, 5_000, in_flight, false), [Ok(5_000), Ok(5_000)], "{in_flight}");
    }
}

#[test]
fn two_shards_that_flood_each_other_do_not_deadlock() {
    for runtime in [catga::Runtime::Epoll, catga::Runtime::Auto] {
        let engine = party(runtime);
        // Handlers that answer at once, many more calls than the rings hold.
        assert_eq!(two_floods(&engine, 50_000, 20_000, false), [Ok(50_000), Ok(50_000)]);
        assert!(engine.stats().sum(|shard| shard.waits) > 0, "the rings were never full: it shows nothing");
        // Handlers that call back before they answer.
        assert_eq!(two_floods(&engine, 20_000, 500, true), [Ok(20_000), Ok(20_000)]);
    }
}

#[test]
fn handlers_that_call_back_beyond_all_credits_end_by_their_deadlines_and_leave_nothing_behind() {
    let engine = party(catga::Runtime::Auto);
    // Each side's credits are held by calls that wait for calls back, which wait for the other side's credits.
    let _ = two_floods(&engine, 6_000, 6_000, true);
    assert_eq!(two_floods(&engine, 2_000, 100, true), [Ok(2_000), Ok(2_000)], "all is as before");
    let stats = engine.stop(LONG).stats;
    assert_eq!(stats.sum(|shard| shard.calls_live), 0);
}

/// Waits until it is told to go on.
struct Gate(Arc<AtomicBool>, Arc<AtomicU64>);

#[request(key = shard)]
struct Block {
    shard: u64,
}
#[request(reply = Count)]
struct Many {
    calls: u64,
    micros: u64,
}

impl Gate {
    fn block(&mut self, _: &Archived<Block>, _: &Context) -> Result<(), Fault> {
        self.1.fetch_add(1, Ordering::SeqCst);
        eventually("the gate opens", || self.0.load(Ordering::SeqCst));
        Ok(())
    }
    async fn hang(gate: &State<Self>, _: &Archived<Hang>, _: &Context) -> Result<(), Fault> {
        struct Dropped(Arc<AtomicU64>);
        impl Drop for Dropped {
            fn drop(&mut self) {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
        let _dropped = Dropped(gate.with(|gate| gate.1.clone()));
        std::future::pending().await
    }
}

struct Caller;
impl Caller {
    /// Counts the calls that ended as `TooManyCalls`.
    async fn many(_: &State<Self>, many: &Archived<Many>, ctx: &Context) -> Result<Count, Fault> {
        let calls = (0..many.calls.to_native()).map(|_| ctx.send(&Hang {}).within(Duration::from_millis(50)));
        let outcomes = join_all(calls).await;
        let full = outcomes
            .iter()
            .filter(|outcome| matches!(outcome, Err(CallError::NotSent(NotSent::TooManyCalls))))
            .count();
        let cut = outcomes
            .iter()
            .filter(|outcome| {
                matches!(
                    outcome,
                    Err(CallError::Unknown(Unknown::Deadline | Unknown::Cut)
                        | CallError::Refused(Refusal::Overloaded))
                )
            })
            .count();
        assert_eq!(full + cut, outcomes.len(), "{outcomes:?}");
        Ok(Count { value: full as u64 })
    }
}

#[test]
fn a_full_table_refuses_at_once_and_tasks_that_never_return_are_dropped() {
    let dropped = Arc::new(AtomicU64::new(0));
    let gate = dropped.clone();
    let engine = Engine::builder()
        .shards(2)
        .calls_max(10)
        .tasks_max(4)
        .service_on([0], |_| Caller, |routes| routes.request_async(Caller::many))
        .service_on(
            [1],
            move |_| Gate(Arc::default(), gate.clone()),
            |routes| routes.request_async(Gate::hang),
        )
        .start()
        .unwrap();
    let full = block_on(engine.client().send(&Many { calls: 25, micros: 0 }).within(LONG)).unwrap();
    assert_eq!(full.value.to_native(), 15, "ten fit, the others are told at once");
    eventually("the hanging tasks are dropped", || dropped.load(Ordering::SeqCst) == 4);
    // Their places are free again, here and there.
    let again = block_on(engine.client().send(&Many { calls: 10, micros: 0 }).within(LONG)).unwrap();
    assert_eq!(again.value.to_native(), 0);
}

#[test]
fn a_deadline_of_zero_is_over_before_it_begins() {
    let engine =
        Engine::builder().shards(1).service(|_| Store, |routes| routes.request(Store::give)).start().unwrap();
    let outcome = block_on(engine.client().send(&Give { bytes: 1 }).within(Duration::ZERO));
    assert_eq!(outcome.unwrap_err(), CallError::NotSent(NotSent::Deadline));
    assert_eq!(engine.stop(LONG).stats.sum(|shard| shard.handled), 0);
}

#[test]
fn a_full_inbox_makes_calls_wait_within_their_deadline() {
    let (open, blocked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let gate = (open.clone(), blocked.clone());
    let engine = Engine::builder()
        .shards(1)
        .service(move |_| Gate(gate.0.clone(), gate.1.clone()), |routes| routes.request(Gate::block))
        .service(|_| Store, |routes| routes.request(Store::give))
        .start()
        .unwrap();
    let client = engine.client();
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    let block = Block { shard: 0 };
    let mut blocks = Box::pin(client.send(&block).within(LONG));
    assert!(blocks.as_mut().poll(&mut cx).is_pending());
    eventually("the shard is stuck in its handler", || blocked.load(Ordering::SeqCst) == 1);
    let give = Give { bytes: 1 };
    let mut waiting: Vec<_> =
        (0..catga::limits::INBOX_CALLS).map(|_| Box::pin(client.send(&give).within(LONG))).collect();
    for call in &mut waiting {
        assert!(call.as_mut().poll(&mut cx).is_pending());
    }
    let late = block_on(client.send(&give).within(Duration::from_millis(20)));
    assert_eq!(late.unwrap_err(), CallError::NotSent(NotSent::Deadline));
    let mut patient = Box::pin(client.send(&give).within(LONG));
    assert!(patient.as_mut().poll(&mut cx).is_pending());
    open.store(true, Ordering::SeqCst);
    assert!(block_on(blocks).is_ok());
    assert!(block_on(join_all(waiting)).iter().all(Result::is_ok), "those who got in are all served");
    assert!(block_on(patient).is_ok(), "and who waited for room, too");
}

struct Fragile;
impl Fragile {
    fn panic(&mut self, panic: &Archived<Panic>, _: &Context) -> Result<(), Fault> {
        assert!(!panic.now, "as it was told");
        Ok(())
    }
    async fn hang(_: &State<Self>, _: &Archived<Hang>, _: &Context) -> Result<(), Fault> {
        panic!("before it waits")
    }
    fn noticed(&mut self, _: &Archived<Bang>, _: &Context) {
        panic!("on an event")
    }
}
#[event]
struct Bang {}

#[test]
fn after_a_panic_the_call_has_failed_and_the_instance_refuses() {
    let engine = || Engine::builder().shards(1).service(|_| Store, |routes| routes.request(Store::give));
    let sync = engine().service(|_| Fragile, |routes| routes.request(Fragile::panic)).start().unwrap();
    let client = sync.client();
    assert!(block_on(client.send(&Panic { now: false })).is_ok());
    assert_eq!(
        block_on(client.send(&Panic { now: true })).unwrap_err(),
        CallError::Failed(Failure::Panicked)
    );
    let poisoned = CallError::Refused(Refusal::Poisoned);
    assert_eq!(block_on(client.send(&Panic { now: false })).unwrap_err(), poisoned);
    assert!(block_on(client.send(&Give { bytes: 1 })).is_ok(), "other services go on");

    let asynchronous =
        engine().service(|_| Fragile, |routes| routes.request_async(Fragile::hang)).start().unwrap();
    let client = asynchronous.client();
    assert_eq!(block_on(client.send(&Hang {})).unwrap_err(), CallError::Failed(Failure::Panicked));
    assert_eq!(block_on(client.send(&Hang {})).unwrap_err(), poisoned);

    let listening = engine()
        .service(|_| Fragile, |routes| routes.event(Fragile::noticed).request(Fragile::panic))
        .start()
        .unwrap();
    listening.client().publish(&Bang {}).unwrap();
    eventually("the panic is counted", || listening.stats().sum(|shard| shard.failed) == 1);
    assert_eq!(block_on(listening.client().send(&Panic { now: false })).unwrap_err(), poisoned);
    listening.client().publish(&Bang {}).unwrap();
    eventually("the event is dropped", || listening.stats().sum(|shard| shard.events_dropped) == 1);
}

#[test]
fn what_nobody_handles_is_said_to_be_so() {
    let engine =
        Engine::builder().shards(1).service(|_| Store, |routes| routes.request(Store::give)).start().unwrap();
    assert_eq!(
        block_on(engine.client().send(&Nobody {})).unwrap_err(),
        CallError::NotSent(NotSent::NoHandler)
    );
}

#[event]
struct Tick {
    value: u64,
}
#[event(key = owner)]
struct Owned {
    owner: u64,
}
struct Ear(Arc<Vec<AtomicU64>>);
impl Ear {
    fn tick(&mut self, tick: &Archived<Tick>, ctx: &Context) {
        self.0[usize::from(ctx.shard().0)].fetch_add(tick.value.to_native(), Ordering::SeqCst);
    }
    fn owned(&mut self, _: &Archived<Owned>, ctx: &Context) {
        self.0[usize::from(ctx.shard().0)].fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn an_event_reaches_every_shard_and_a_keyed_one_its_owner() {
    let heard: Arc<Vec<AtomicU64>> = Arc::new((0..3).map(|_| AtomicU64::new(0)).collect());
    let ears = heard.clone();
    let engine = Engine::builder()
        .shards(3)
        .service(move |_| Ear(ears.clone()), |routes| routes.event(Ear::tick).event(Ear::owned))
        .start()
        .unwrap();
    let client = engine.client();
    client.publish(&Tick { value: 1000 }).unwrap();
    eventually("all shards hear it", || heard.iter().all(|heard| heard.load(Ordering::SeqCst) == 1000));
    for _ in 0..50 {
        client.publish(&Owned { owner: 77 }).unwrap();
    }
    let extra = || heard.iter().map(|heard| heard.load(Ordering::SeqCst) - 1000).collect::<Vec<_>>();
    eventually("the owner hears it", || extra().iter().sum::<u64>() == 50);
    assert_eq!(
        extra().iter().filter(|&&count| count == 50).count(),
        1,
        "one shard owns the key: {:?}",
        extra()
    );
    assert_eq!(engine.stop(LONG).stats.sum(|shard| shard.events_handled), 53);
}
