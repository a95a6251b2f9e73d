//! Starts that make no sense, stops with calls in flight, several engines at once, and what is left of an engine.
//!
//! Everything that counts threads or descriptors of the process is in one test, because tests of a binary run together.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed helper is a failed test")]

mod common;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use catga::prelude::*;
use catga::{Client, Failure, NotSent, Refusal, Runtime, Unknown};
use common::{eventually, is_alone};
use futures_util::stream::{FuturesUnordered, StreamExt};
use pollster::block_on;

#[request(reply = Sum)]
struct Add {
    left: u64,
    right: u64,
}
#[message]
struct Sum {
    value: u64,
}
#[request]
struct Hang {}
/// Asks for a call to a service on another shard, and for an event when it has come back.
#[request]
struct Relay {
    hang: bool,
}
#[request]
struct Boom {}
/// Keeps its shard busy until the test lets it go on.
#[request]
struct Block {}
#[event]
struct Happened {}

struct Adder;
impl Adder {
    fn add(&mut self, add: &Archived<Add>, _: &Context) -> Result<Sum, Fault> {
        Ok(Sum { value: add.left.to_native() + add.right.to_native() })
    }
    async fn hang(_: &State<Self>, _: &Archived<Hang>, _: &Context) -> Result<(), Fault> {
        std::future::pending().await
    }
}

/// What is left of each instance when its shard is gone: nothing.
struct Counted(Arc<()>);
impl Counted {
    fn heard(&mut self, _: &Archived<Happened>, _: &Context) {
        assert!(Arc::strong_count(&self.0) > 1);
    }
}
struct OtherAdder;
impl OtherAdder {
    fn add(&mut self, _: &Archived<Add>, _: &Context) -> Result<Sum, Fault> {
        Ok(Sum { value: 0 })
    }
}

mod elsewhere {
    use catga::prelude::*;

    /// Has the name of another message.
    #[request]
    pub(crate) struct Add {
        pub(crate) text: String,
    }
    pub(crate) struct Third;
    impl Third {
        pub(crate) fn add(&mut self, add: &Archived<Add>, _: &Context) -> Result<(), Fault> {
            if add.text.is_empty() { Err(Fault::new("empty")) } else { Ok(()) }
        }
    }
}

#[test]
fn two_handlers_of_one_request_are_a_start_error_that_names_both() {
    let engine = Engine::builder()
        .shards(1)
        .service(|_| Adder, |routes| routes.request(Adder::add))
        .service(|_| OtherAdder, |routes| routes.request(OtherAdder::add))
        .start();
    let text = engine.unwrap_err().to_string();
    assert!(text.contains("lifecycle::Adder") && text.contains("lifecycle::OtherAdder"), "{text}");
}

#[test]
fn two_types_of_one_name_are_a_start_error() {
    let engine = Engine::builder()
        .shards(1)
        .service(|_| Adder, |routes| routes.request(Adder::add))
        .service(|_| elsewhere::Third, |routes| routes.request(elsewhere::Third::add))
        .start();
    assert!(matches!(engine.unwrap_err(), StartError::SameId { .. }));
}

#[test]
fn a_description_that_makes_no_sense_does_not_start() {
    let started = Engine::builder().shards(0).start();
    let error = started.unwrap_err();
    assert!(matches!(error, StartError::Shards(0)));
    assert_eq!(format!("{error:?}"), error.to_string(), "what is printed when main returns it");
    let started = Engine::builder().cores([100_000]).start();
    assert!(matches!(started.unwrap_err(), StartError::NoSuchCore { core: 100_000 }));
    let started =
        Engine::builder().shards(2).service_on([2], |_| Adder, |routes| routes.request(Adder::add)).start();
    assert!(matches!(started.unwrap_err(), StartError::NoSuchShard { shard: 2, last: 1, .. }));
    let started = Engine::builder()
        .shards(1)
        .service(|_| -> Adder { panic!("in the constructor") }, |routes| routes.request(Adder::add))
        .start();
    assert!(
        matches!(started.unwrap_err(), StartError::ServicePanicked { shard: ShardId(0), panic } if panic == "in the constructor")
    );
    let started = Engine::builder().shards(1).service(|_| Adder, |_| panic!("in the routes")).start();
    assert!(
        matches!(started.unwrap_err(), StartError::ServicePanicked { panic, .. } if panic == "in the routes")
    );
    let off_loopback = catga::List::of(Vec::<String>::new()).node("a", "0.0.0.0:0");
    let started = Engine::builder().shards(1).cluster(off_loopback).start();
    let error = started.unwrap_err();
    assert!(matches!(error, StartError::OffLoopback { .. }));
    assert!(
        error
            .to_string()
            .contains("Give all nodes the same `.key(..)`, bind to 127.0.0.1, or say `.insecure()`")
    );
    for bytes in [0, 15, 1025] {
        let bad_key = catga::List::of(Vec::<String>::new()).node("a", "127.0.0.1:0").key(vec![b'k'; bytes]);
        let error = Engine::builder().shards(1).cluster(bad_key).start().unwrap_err();
        assert!(matches!(error, StartError::ClusterKey { bytes: found } if found == bytes));
        assert!(error.to_string().contains("must have 16 to 1024") && !error.to_string().contains("kkk"));
    }
}

#[test]
fn a_shard_that_cannot_start_stops_the_others_and_the_error_says_what_it_said() {
    for runtime in [Runtime::Auto, Runtime::Epoll] {
        let alive = Arc::new(());
        let counted = alive.clone();
        let start = Instant::now();
        let started = Engine::builder()
            .shards(3)
            .runtime(runtime)
            .service(move |_| Counted(counted.clone()), |routes| routes.event(Counted::heard))
            .service_on(
                [1],
                |shard| -> Adder { panic!("no room on {shard}") },
                |routes| routes.request(Adder::add),
            )
            .start();
        let text = started.unwrap_err().to_string();
        assert!(text.contains("while shard 1 was made: no room on shard 1"), "{text}");
        assert_eq!(Arc::strong_count(&alive), 1, "the instances of the other shards are gone");
        assert!(start.elapsed() < Duration::from_secs(20), "it waited for something");
    }
}

#[test]
fn the_placement_before_the_start_is_that_of_the_engine() {
    let description = || Engine::builder().shards(3).runtime(Runtime::Epoll);
    let before = description().placement().unwrap();
    let engine = description().start().unwrap();
    assert_eq!(engine.placement().shards(), before.shards());
    assert_eq!(engine.placement().reason(), "as many as were asked for");
    let table = engine.placement().to_string();
    assert!(table.starts_with("3 shards: as many") && table.contains("wait in: epoll"), "{table}");
    let refused = Engine::builder().shards(0).placement();
    assert!(matches!(refused.unwrap_err(), StartError::Shards(0)));
}

#[test]
fn stopping_ends_every_call_in_flight_and_refuses_the_next() {
    for runtime in [Runtime::Auto, Runtime::Epoll] {
        let engine = Engine::builder()
            .shards(2)
            .runtime(runtime)
            .service(|_| Adder, |routes| routes.request_async(Adder::hang).request(Adder::add))
            .start()
            .unwrap();
        let client = engine.client();
        let callers: Vec<_> = (0..8)
            .map(|_| {
                let client = client.clone();
                std::thread::spawn(move || block_on(client.send(&Hang {}).within(Duration::from_secs(600))))
            })
            .collect();
        eventually("the calls arrive", || engine.stats().sum(|shard| shard.handled) == 8);
        let report = engine.stop(Duration::from_millis(20));
        for caller in callers {
            let outcome = caller.join().unwrap().unwrap_err();
            assert!(matches!(outcome, CallError::Unknown(Unknown::Cut | Unknown::Stopped)), "{outcome}");
        }
        assert_eq!(report.stats.sum(|shard| shard.cut), 8);
        assert_eq!(report.stats.sum(|shard| shard.tasks_stopped), 8);
        assert!(report.stats.sum(|shard| shard.drains_cut) > 0);
        assert!(!report.drained && report.tasks_cut == 8 && report.stuck.is_empty(), "{report}");
        assert!(report.took >= Duration::from_millis(20), "{report}");
        let late = block_on(client.send(&Add { left: 1, right: 2 })).unwrap_err();
        assert!(matches!(
            late,
            CallError::NotSent(NotSent::Stopping) | CallError::Refused(Refusal::Stopping)
        ));
    }
}

/// Calls from its own shard to the other, where `Adder` is.
struct Relayer;
impl Relayer {
    async fn relay(_: &State<Self>, ask: &Archived<Relay>, ctx: &Context) -> Result<(), Fault> {
        let outcome = if ask.hang {
            ctx.send(&Hang {})
                .within(Duration::from_secs(600))
                .await
                .map(drop)
                .map_err(|error| error.to_string())
        } else {
            let sum = ctx.send(&Add { left: 1, right: 1 }).await;
            sum.map(drop).map_err(|error| error.to_string())
        };
        ctx.publish(&Happened {});
        outcome.map_err(Fault::new)
    }
    fn boom(&mut self, _: &Archived<Boom>, _: &Context) -> Result<(), Fault> {
        panic!("a handler of the test panics")
    }
}

fn busy_engine(runtime: Runtime) -> Engine {
    Engine::builder()
        .shards(2)
        .runtime(runtime)
        .service_on([0], |_| Relayer, |routes| routes.request_async(Relayer::relay))
        .service_on([0], |_| Relayer, |routes| routes.request(Relayer::boom))
        .service_on([1], |_| Adder, |routes| routes.request_async(Adder::hang).request(Adder::add))
        .start()
        .unwrap()
}

/// Keeps a thousand calls in flight until the engine takes no more. Returns how many were made, and how many ended.
fn load(client: &Client, begun: &AtomicU64, panics: &AtomicU64) -> (u64, u64) {
    let (mut made, mut ended, mut stopping) = (0, 0, false);
    let mut calls = FuturesUnordered::new();
    loop {
        while !stopping && calls.len() < 1000 {
            made += 1;
            calls.push(async move {
                let (long, number) = (Duration::from_secs(600), made);
                let outcome = match number % 8 {
                    0 => client.send(&Boom {}).within(long).await.map(drop),
                    1 => client.send(&Hang {}).within(long).await.map(drop),
                    2 => client.send(&Relay { hang: true }).within(long).await.map(drop),
                    3 | 4 => client.send(&Relay { hang: false }).within(long).await.map(drop),
                    _ => client.send(&Add { left: 2, right: 3 }).within(long).await.map(drop),
                };
                match outcome {
                    Err(CallError::NotSent(NotSent::Stopping) | CallError::Refused(Refusal::Stopping)) => {
                        true
                    }
                    Err(CallError::Failed(Failure::Panicked)) => {
                        panics.fetch_add(1, Ordering::Relaxed);
                        false
                    }
                    _ => false,
                }
            });
        }
        match block_on(calls.next()) {
            Some(refused) => stopping |= refused,
            None => return (made, ended),
        }
        ended += 1;
        begun.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn a_stop_under_load_from_all_sides_leaves_no_call_without_an_outcome() {
    for runtime in [Runtime::Auto, Runtime::Epoll] {
        let engine = busy_engine(runtime);
        let (begun, panics) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (tell, told) = mpsc::channel();
        // One caller on the first shard that waits for the other, whatever the load leaves room for.
        let client = engine.client();
        let waiting = std::thread::spawn(move || {
            block_on(client.send(&Relay { hang: true }).within(Duration::from_secs(600)))
        });
        eventually("both handlers wait", || engine.stats().sum(|shard| shard.tasks_running) == 2);
        for _ in 0..6 {
            let (client, begun, panics, tell) =
                (engine.client(), begun.clone(), panics.clone(), tell.clone());
            std::thread::spawn(move || tell.send(load(&client, &begun, &panics)).unwrap());
        }
        eventually("the load is on", || begun.load(Ordering::Relaxed) > 5000);
        let report = engine.stop(Duration::from_millis(50));
        for _ in 0..6 {
            let (made, ended) = told.recv_timeout(Duration::from_secs(30)).expect("a call has no outcome");
            assert_eq!(made, ended);
        }
        assert!(waiting.join().unwrap().is_err());
        // Handlers that never end on one shard, and callers on the other that wait for them. Which shard comes first decides
        // whether a caller's call is ended by its own, or by the answer that its handler was cut.
        assert!(!report.drained && report.tasks_cut > 0, "{report}");
        assert_eq!(report.calls_ended, report.stats.sum(|shard| shard.calls_stopped));
        assert!(report.stuck.is_empty() && report.panicked.is_empty(), "{report}");
        assert_eq!(panics.load(Ordering::Relaxed), 1, "the handler panicked once, and was poisoned");
    }
}

/// Blocks its shard from when it says so until it may go on; or counts the events that it gets.
struct Blocker {
    entered: mpsc::Sender<()>,
    go_on: mpsc::Receiver<()>,
    heard: Arc<AtomicU64>,
}
impl Blocker {
    fn block(&mut self, _: &Archived<Block>, _: &Context) -> Result<(), Fault> {
        self.entered.send(()).unwrap();
        self.go_on.recv().map_err(|_| Fault::new("the test is over"))
    }
    fn heard(&mut self, _: &Archived<Happened>, _: &Context) {
        self.heard.fetch_add(1, Ordering::Relaxed);
    }
}

/// An engine of two shards; the first can be blocked. Returns what tells that it is, and what lets it go on.
fn engine_to_block() -> (Engine, mpsc::Receiver<()>, mpsc::Sender<()>, Arc<AtomicU64>) {
    let (entered, is_in) = mpsc::channel();
    let (go, go_on) = mpsc::channel();
    let heard = Arc::new(AtomicU64::new(0));
    let ends = std::sync::Mutex::new(Some((entered, go_on, heard.clone())));
    let engine = Engine::builder()
        .shards(2)
        .runtime(Runtime::Epoll)
        .service_on(
            [0],
            move |_| {
                let (entered, go_on, heard) = ends.lock().unwrap().take().unwrap();
                Blocker { entered, go_on, heard }
            },
            |routes| routes.request(Blocker::block).event(Blocker::heard),
        )
        .service_on([1], |_| Adder, |routes| routes.request_async(Adder::hang).request(Adder::add))
        .start()
        .unwrap();
    (engine, is_in, go, heard)
}

fn send_block(engine: &Engine) -> std::thread::JoinHandle<Result<(), CallError<Fault>>> {
    let client = engine.client();
    std::thread::spawn(move || block_on(client.send(&Block {}).within(Duration::from_secs(600))).map(drop))
}

#[test]
fn a_stop_does_not_wait_for_ever_for_a_handler_that_does_not_return() {
    let (engine, is_in, go, _) = engine_to_block();
    let (client, blocked) = (engine.client(), send_block(&engine));
    is_in.recv().unwrap();
    // One call and one event wait behind it.
    let waiting = {
        let client = client.clone();
        std::thread::spawn(move || block_on(client.send(&Block {}).within(Duration::from_secs(600))))
    };
    client.publish(&Happened {}).unwrap();
    // A call that is answered by the other shard comes after those: they stand in their inbox by now, or soon.
    let report = {
        block_on(client.send(&Add { left: 1, right: 1 })).unwrap();
        engine.stop(Duration::from_millis(20))
    };
    assert_eq!(report.stuck, [ShardId(0)], "{report}");
    assert!(!report.drained && report.took >= catga::limits::STOP_GRACE, "{report}");
    assert!(report.took < Duration::from_secs(30), "{report}");
    assert!(report.events_dropped == 1 && report.calls_refused <= 1, "{report}");
    let refused = waiting.join().unwrap().unwrap_err();
    assert!(matches!(refused, CallError::NotSent(NotSent::Stopping)), "{refused}");
    // Its caller is told, though its time was not over; nobody would do so later.
    let unknown = blocked.join().unwrap().unwrap_err();
    assert!(matches!(unknown, CallError::Unknown(catga::Unknown::Stopped)), "{unknown}");
    // It may still return: then its thread ends.
    go.send(()).unwrap();
}

#[test]
fn what_ends_within_the_drain_ends_as_if_nothing_were() {
    let (engine, is_in, go, heard) = engine_to_block();
    let (client, blocked) = (engine.client(), send_block(&engine));
    is_in.recv().unwrap();
    let stopping = std::thread::spawn(move || engine.stop(Duration::from_secs(600)));
    // The other shard says when the stop has begun; it has nothing to do, and waits for the one that has.
    eventually("the stop begins", || {
        matches!(
            block_on(client.send(&Add { left: 1, right: 1 })),
            Err(CallError::NotSent(NotSent::Stopping))
        )
    });
    assert!(!stopping.is_finished());
    go.send(()).unwrap();
    blocked.join().unwrap().unwrap();
    let report = stopping.join().unwrap();
    assert!(report.drained && report.tasks_cut == 0 && report.calls_ended == 0, "{report}");
    assert_eq!(report.stats.sum(|shard| shard.drains_cut), 0);
    assert_eq!(heard.load(Ordering::Relaxed), 0);
}

#[test]
fn an_engine_that_is_dropped_stops_and_its_neighbour_goes_on() {
    let (first, second) = (busy_engine(Runtime::Auto), busy_engine(Runtime::Epoll));
    let (gone, stays) = (first.client(), second.client());
    drop(first);
    let refused = block_on(gone.send(&Add { left: 1, right: 1 })).unwrap_err();
    assert!(matches!(refused, CallError::NotSent(NotSent::Stopping)), "{refused}");
    assert_eq!(block_on(stays.send(&Add { left: 20, right: 22 })).unwrap().value.to_native(), 42);
    let failed = block_on(stays.send(&Boom {})).unwrap_err();
    assert!(matches!(failed, CallError::Failed(Failure::Panicked)), "{failed}");
    let report = second.stop(Duration::from_secs(20));
    assert!(report.drained, "{report}");
}

/// Threads and descriptors of this process.
fn held() -> (usize, usize) {
    let count = |folder| std::fs::read_dir(folder).unwrap().count();
    (count("/proc/self/task"), count("/proc/self/fd"))
}

/// KiB of memory that this process has.
fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn an_idle_engine_holds_16_mib_and_4_for_each_shard_at_most() {
    if !is_alone("an_idle_engine_holds_16_mib_and_4_for_each_shard_at_most") {
        return;
    }
    let before = resident_kib();
    for shards in [1, 8, 16, 32] {
        let engine = Engine::builder()
            .shards(shards)
            .runtime(Runtime::Epoll)
            .service(|_| Adder, |routes| routes.request(Adder::add))
            .start()
            .unwrap();
        let sum = block_on(engine.client().send(&Add { left: 20, right: 22 })).unwrap();
        assert_eq!(sum.value.to_native(), 42);
        let held = resident_kib().saturating_sub(before);
        println!("{shards} shards hold {held} KiB");
        assert!(held < (16 + 4 * shards as u64) * 1024, "{shards} shards hold {held} KiB");
    }
}

fn use_some_engines() {
    let start = |runtime| {
        Engine::builder()
            .shards(2)
            .runtime(runtime)
            .service(|_| Adder, |routes| routes.request(Adder::add).request_async(Adder::hang))
            .cluster(catga::List::of(Vec::<String>::new()).node("a", "127.0.0.1:0"))
            .start()
            .unwrap()
    };
    let (first, second) = (start(Runtime::Auto), start(Runtime::Epoll));
    for engine in [&first, &second] {
        let client = engine.client();
        let sum = block_on(client.send(&Add { left: 20, right: 22 })).unwrap();
        assert_eq!(sum.value.to_native(), 42);
        // One that expires, so that a task has been there.
        block_on(client.send(&Hang {}).within(Duration::from_millis(1))).unwrap_err();
    }
    drop(first); // the one by a drop, the other by a stop
    second.stop(Duration::from_secs(5));
}

/// In a process of its own, so that what other tests hold does not count.
#[test]
fn a_hundred_starts_and_stops_leave_no_thread_no_descriptor_and_no_memory() {
    if !is_alone("a_hundred_starts_and_stops_leave_no_thread_no_descriptor_and_no_memory") {
        return;
    }
    for _ in 0..10 {
        use_some_engines(); // what the first uses keep for good does not count
    }
    let (before, memory) = (held(), resident_kib());
    for _ in 0..50 {
        use_some_engines();
    }
    // A thread that was joined may be in the system's list for a moment longer.
    let end = Instant::now() + Duration::from_secs(10);
    while held() != before && Instant::now() < end {
        std::thread::yield_now();
    }
    assert_eq!(held(), before, "(threads, descriptors) after and before");
    let grown = resident_kib().saturating_sub(memory);
    println!("grown by {grown} KiB from {memory} KiB");
    assert!(grown < 4 * 1024, "a hundred engines left {grown} KiB of memory");
}
