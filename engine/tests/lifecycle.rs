//! Starts that make no sense, stops with calls in flight, several engines at once, and what is left of an engine.
//!
//! Everything that counts threads or descriptors of the process is in one test, because tests of a binary run together.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed helper is a failed test")]

use std::time::Duration;

use catga::prelude::*;
use catga::{NotSent, Refusal, Runtime, Unknown};
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

struct Adder;
impl Adder {
    fn add(&mut self, add: &Archived<Add>, _: &Context) -> Result<Sum, Fault> {
        Ok(Sum { value: add.left.to_native() + add.right.to_native() })
    }
    async fn hang(_: &State<Self>, _: &Archived<Hang>, _: &Context) -> Result<(), Fault> {
        std::future::pending().await
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
    assert!(matches!(started.unwrap_err(), StartError::Shards(0)));
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
    let off_loopback = catga::List::of(Vec::<String>::new()).node("a", "0.0.0.0:0");
    let started = Engine::builder().shards(1).cluster(off_loopback).start();
    assert!(matches!(started.unwrap_err(), StartError::OffLoopback { .. }));
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
        let end = std::time::Instant::now() + Duration::from_secs(30);
        while engine.stats().sum(|shard| shard.handled) < 8 {
            assert!(std::time::Instant::now() < end, "the calls never arrived");
            std::thread::yield_now();
        }
        let stats = engine.stop(Duration::from_millis(20)).stats;
        for caller in callers {
            let outcome = caller.join().unwrap().unwrap_err();
            assert!(matches!(outcome, CallError::Unknown(Unknown::Cut | Unknown::Stopped)), "{outcome}");
        }
        assert_eq!(stats.sum(|shard| shard.cut), 8);
        let late = block_on(client.send(&Add { left: 1, right: 2 })).unwrap_err();
        assert!(matches!(
            late,
            CallError::NotSent(NotSent::Stopping) | CallError::Refused(Refusal::Stopping)
        ));
    }
}

/// Threads and descriptors of this process.
fn held() -> (usize, usize) {
    let count = |folder| std::fs::read_dir(folder).unwrap().count();
    (count("/proc/self/task"), count("/proc/self/fd"))
}

fn use_some_engines() {
    let start = |runtime| {
        Engine::builder()
            .shards(2)
            .runtime(runtime)
            .service(|_| Adder, |routes| routes.request(Adder::add))
            .cluster(catga::List::of(Vec::<String>::new()).node("a", "127.0.0.1:0"))
            .start()
            .unwrap()
    };
    let (first, second) = (start(Runtime::Auto), start(Runtime::Epoll));
    for engine in [&first, &second] {
        let sum = block_on(engine.client().send(&Add { left: 20, right: 22 })).unwrap();
        assert_eq!(sum.value.to_native(), 42);
    }
    drop(first); // the one by a drop, the other by a stop
    second.stop(Duration::from_secs(5));
}

/// In a process of its own, so that what other tests hold does not count.
#[test]
fn thirty_starts_and_stops_leave_no_thread_and_no_descriptor() {
    const ALONE: &str = "CATGA_TEST_ALONE";
    if std::env::var_os(ALONE).is_none() {
        let alone = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "thirty_starts_and_stops_leave_no_thread_and_no_descriptor", "--nocapture"])
            .env(ALONE, "1")
            .output()
            .unwrap();
        let text =
            [alone.stdout, alone.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
        assert!(alone.status.success(), "{text}");
        return;
    }
    use_some_engines(); // what the first use keeps for good does not count
    let before = held();
    for _ in 0..15 {
        use_some_engines();
    }
    assert_eq!(held(), before, "(threads, descriptors) after and before");
}
