//! What becomes of a service after a panic, by policy: in sync, async and event handlers, in the `Drop` of what they leave.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed helper is a failed test")]

mod common;

use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use catga::prelude::*;
use catga::{Failure, Stats, Unknown};
use common::{eventually, panicked, poisoned, while_it_is_at_work};
use pollster::block_on;

const LONG: Duration = Duration::from_secs(60);

/// Adds one, then panics in the way that it is told: 0 not at all, 1 at once, 2 while an answer is dropped.
#[request(reply = Count)]
struct Add {
    panics: u8,
}
/// The same, in an async handler.
#[request(reply = Count)]
struct AddLater {
    panics: u8,
}
/// Waits until there is another state than before, and answers with it.
#[request(reply = Count)]
struct Outlive {}
/// Is ended at its deadline, and panics when it is dropped.
#[request(reply = Count)]
struct Doomed {}
#[message]
struct Count {
    value: u64,
    /// Whose `Drop` panics, on the side of the handler.
    fuse: u8,
}
impl Drop for Count {
    fn drop(&mut self) {
        assert!(self.fuse == 0 || std::thread::panicking(), "an answer panics when it is dropped");
    }
}
#[event]
struct Shake {
    panics: bool,
}
/// Published by who panics; heard by nobody.
#[event]
struct Leaked {}

struct PanicsInDrop;
impl Drop for PanicsInDrop {
    fn drop(&mut self) {
        panic!("a local panics when it is dropped");
    }
}

#[derive(Default)]
struct Tally {
    count: u64,
    leaked: Arc<AtomicU64>,
    /// Its own `Drop` panics.
    brittle: Arc<AtomicBool>,
}
impl Drop for Tally {
    fn drop(&mut self) {
        assert!(!self.brittle.load(Ordering::SeqCst), "the old state panics when it is dropped");
    }
}
impl Tally {
    fn next(&mut self, panics: u8, ctx: &Context) -> Count {
        self.count += 1;
        if panics == 1 {
            ctx.publish(&Leaked {});
            panic!("as it was told");
        }
        Count { value: self.count, fuse: panics }
    }
    fn add(&mut self, add: &Archived<Add>, ctx: &Context) -> Result<Count, Fault> {
        Ok(self.next(add.panics, ctx))
    }
    async fn add_later(this: &State<Self>, add: &Archived<AddLater>, ctx: &Context) -> Result<Count, Fault> {
        ctx.sleep(Duration::from_micros(10)).await;
        Ok(this.with(|this| this.next(add.panics, ctx)))
    }
    async fn outlive(this: &State<Self>, _: &Archived<Outlive>, ctx: &Context) -> Result<Count, Fault> {
        let before = this.with(|this| this.count);
        while this.with(|this| this.count) == before {
            ctx.sleep(Duration::from_micros(100)).await;
        }
        Ok(Count { value: this.with(|this| this.count), fuse: 0 })
    }
    async fn doomed(_: &State<Self>, _: &Archived<Doomed>, _: &Context) -> Result<Count, Fault> {
        let _panics = PanicsInDrop;
        std::future::pending().await
    }
    fn shake(&mut self, shake: &Archived<Shake>, ctx: &Context) {
        self.next(u8::from(shake.panics), ctx);
    }
    fn leaked(&mut self, _: &Archived<Leaked>, _: &Context) {
        self.leaked.fetch_add(1, Ordering::SeqCst);
    }
}

fn tally(policy: OnPanic, brittle: &Arc<AtomicBool>, leaked: &Arc<AtomicU64>) -> Engine {
    let (brittle, leaked, ears) = (brittle.clone(), leaked.clone(), leaked.clone());
    let new = move |_| Tally { count: 0, leaked: leaked.clone(), brittle: brittle.clone() };
    let ear = move |_| Tally { count: 0, leaked: ears.clone(), brittle: Arc::default() };
    Engine::builder()
        .shards(2)
        .service_on([0], new, move |routes| {
            let routes = routes.request(Tally::add).request_async(Tally::add_later).event(Tally::shake);
            routes.request_async(Tally::outlive).request_async(Tally::doomed).on_panic(policy)
        })
        .service_on([1], ear, |routes| routes.event(Tally::leaked))
        .start()
        .unwrap()
}

/// The ways in which a handler can panic; each of them counts one up before it does.
fn all_panics(engine: &Engine, expect: impl Fn(u64) -> Option<u64>) {
    let client = engine.client();
    let failed = |stats: Stats| stats.sum(|shard| shard.failed);
    let value = || block_on(client.send(&Add { panics: 0 })).map(|count| count.value.to_native()).ok();
    assert_eq!(value(), Some(1));
    assert!(panicked(block_on(client.send(&Add { panics: 1 }))));
    assert_eq!(value(), expect(3), "after a sync handler's panic");
    if expect(3).is_none() {
        return;
    }
    let before = value().unwrap();
    assert!(panicked(block_on(client.send(&AddLater { panics: 1 }))));
    assert_eq!(value(), expect(before + 2), "after an async handler's panic");
    let before = value().unwrap();
    client.publish(&Shake { panics: true }).unwrap();
    eventually("the event's panic is counted", || failed(engine.stats()) == 3);
    assert_eq!(value(), expect(before + 2), "after an event's panic");
    let before = value().unwrap();
    let doomed = while_it_is_at_work(|within| block_on(client.send(&Doomed {}).within(within)).map(drop));
    let ended =
        matches!(doomed, Err(CallError::Failed(Failure::Panicked) | CallError::Unknown(Unknown::Deadline)));
    assert!(ended, "{doomed:?}");
    eventually("the panic of a handler that was ended is counted", || failed(engine.stats()) == 4);
    let unharmed = if expect(9) == Some(9) { before + 1 } else { 1 };
    assert_eq!(value(), Some(unharmed), "after a panic in the `Drop` of what a handler left");
    // The answer was written before it panicked: it stands.
    for asynchronous in [false, true] {
        let before = value().unwrap();
        let answer = match asynchronous {
            false => block_on(client.send(&Add { panics: 2 })).map(|count| count.value.to_native()),
            true => block_on(client.send(&AddLater { panics: 2 })).map(|count| count.value.to_native()),
        };
        assert_eq!(answer, Ok(before + 1));
        assert_eq!(value(), expect(before + 2), "after a panic in the `Drop` of an answer");
    }
    assert_eq!(failed(engine.stats()), 6);
}

#[test]
fn by_default_a_panic_ends_the_instance_and_nothing_else() {
    let leaked = Arc::default();
    let engine = tally(OnPanic::default(), &Arc::default(), &leaked);
    all_panics(&engine, |_| None);
    assert!(poisoned(block_on(engine.client().send(&Add { panics: 0 }))));
    assert!(poisoned(block_on(engine.client().send(&AddLater { panics: 0 }))));
    engine.client().publish(&Shake { panics: false }).unwrap();
    // The one that was withdrawn with the panic, and the one that nobody takes.
    eventually("the event is dropped", || engine.stats().sum(|shard| shard.events_dropped) == 2);
    engine.client().publish(&Leaked {}).unwrap();
    eventually("the other instance goes on", || leaked.load(Ordering::SeqCst) == 1);
    let stats = engine.stop(LONG).stats;
    assert_eq!((stats.sum(|shard| shard.poisoned), stats.sum(|shard| shard.rebuilt)), (1, 0));
}

#[test]
fn each_way_to_panic_keeps_the_instance_where_that_is_the_policy() {
    let leaked = Arc::default();
    let engine = tally(OnPanic::Keep, &Arc::default(), &leaked);
    all_panics(&engine, Some);
    let stats = engine.stop(LONG).stats;
    assert_eq!((stats.sum(|shard| shard.poisoned), stats.sum(|shard| shard.rebuilt)), (0, 0));
    assert_eq!(leaked.load(Ordering::SeqCst), 0, "what was published before a panic does not leave");
    assert_eq!(stats.sum(|shard| shard.events_dropped), 3);
}

#[test]
fn each_way_to_panic_makes_the_instance_anew_where_that_is_the_policy() {
    let leaked = Arc::default();
    let engine = tally(OnPanic::Rebuild, &Arc::default(), &leaked);
    all_panics(&engine, |_| Some(1));
    let stats = engine.stop(LONG).stats;
    assert_eq!((stats.sum(|shard| shard.poisoned), stats.sum(|shard| shard.rebuilt)), (0, 6));
    assert_eq!(leaked.load(Ordering::SeqCst), 0, "what was published before a panic does not leave");
}

#[test]
fn handlers_that_run_go_on_with_the_new_state() {
    let engine = tally(OnPanic::Rebuild, &Arc::default(), &Arc::default());
    let client = engine.client();
    for _ in 0..5 {
        block_on(client.send(&Add { panics: 0 })).unwrap();
    }
    let outlives = std::thread::spawn({
        let client = client.clone();
        move || block_on(client.send(&Outlive {}).within(LONG)).map(|count| count.value.to_native())
    });
    eventually("it runs", || engine.stats().sum(|shard| shard.tasks_running) == 1);
    assert!(panicked(block_on(client.send(&Add { panics: 1 }))));
    assert_eq!(outlives.join().unwrap(), Ok(0), "the state that was made anew");
}

#[test]
fn an_instance_that_cannot_be_made_anew_is_poisoned() {
    let brittle = Arc::default();
    let engine = tally(OnPanic::Rebuild, &brittle, &Arc::default());
    brittle.store(true, Ordering::SeqCst);
    assert!(panicked(block_on(engine.client().send(&Add { panics: 1 }))));
    brittle.store(false, Ordering::SeqCst);
    assert!(poisoned(block_on(engine.client().send(&Add { panics: 0 }))), "the old state's `Drop` panicked");
    assert_eq!(engine.stop(LONG).stats.sum(|shard| shard.poisoned), 1);

    let made = AtomicU64::new(0);
    let engine = Engine::builder()
        .shards(1)
        .service(
            move |_| {
                assert_eq!(made.fetch_add(1, Ordering::SeqCst), 0, "the constructor panics the second time");
                Tally::default()
            },
            |routes| routes.request(Tally::add).on_panic(OnPanic::Rebuild),
        )
        .start()
        .unwrap();
    assert!(panicked(block_on(engine.client().send(&Add { panics: 1 }))));
    assert!(poisoned(block_on(engine.client().send(&Add { panics: 0 }))));
    let stats = engine.stop(LONG).stats;
    assert_eq!((stats.sum(|shard| shard.poisoned), stats.sum(|shard| shard.rebuilt)), (1, 0));
}

/// Writes what is logged to the standard error.
struct Log;
impl tracing::Subscriber for Log {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() == tracing::Level::ERROR
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        let mut line = String::from("logged:");
        event.record(&mut |field: &tracing::field::Field, value: &dyn std::fmt::Debug| {
            line.push_str(&format!(" {field}={value:?}"));
        });
        eprintln!("{line}");
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

#[test]
fn the_log_says_what_happens_next_and_abort_takes_the_process_with_it() {
    const CHILD: &str = "CATGA_TEST_ABORTS";
    if std::env::var_os(CHILD).is_some() {
        tracing::subscriber::set_global_default(Log).unwrap();
        for policy in [OnPanic::Poison, OnPanic::Rebuild, OnPanic::Keep, OnPanic::Abort] {
            let engine = tally(policy, &Arc::default(), &Arc::default());
            let outcome = block_on(engine.client().send(&Add { panics: 1 }).within(LONG)).map(|_| ());
            assert!(panicked(outcome) && policy != OnPanic::Abort, "{policy:?}: it is still there");
        }
    }
    let this = std::env::current_exe().unwrap();
    let name = "the_log_says_what_happens_next_and_abort_takes_the_process_with_it";
    // Not caught by the harness: what an aborted process had caught is lost.
    let child = Command::new(this).args(["--exact", name, "--nocapture"]).env(CHILD, "1").output().unwrap();
    let text = String::from_utf8_lossy(&child.stderr).into_owned();
    assert_eq!(child.status.signal(), Some(6), "SIGABRT: {text}");
    assert!(!text.contains("it is still there"), "{text}");
    for next in ["refuses from now on", "is made anew", "goes on with its state", "takes the process with it"]
    {
        let lines: Vec<_> = text.lines().filter(|line| line.contains(next)).collect();
        let [line] = lines[..] else { panic!("{next}: {text}") };
        assert!(
            line.contains("panics::Tally") && line.contains("Add") && line.contains("as it was told"),
            "{line}"
        );
    }
}

struct Quarrelsome;
impl Quarrelsome {
    fn shaken(&mut self, _: &Archived<Shake>, _: &Context) {}
}
impl Drop for Quarrelsome {
    fn drop(&mut self) {
        panic!("a service panics when it is dropped");
    }
}
struct Orderly(Arc<AtomicU64>);
impl Orderly {
    fn shaken(&mut self, _: &Archived<Shake>, _: &Context) {}
}
impl Drop for Orderly {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn services_that_panic_when_they_are_dropped_keep_no_other_from_being_dropped() {
    let dropped = Arc::new(AtomicU64::new(0));
    let counted = dropped.clone();
    // Two of them on one shard: the second panic would end the process if it met the first one.
    let engine = Engine::builder()
        .shards(2)
        .service(|_| Quarrelsome, |routes| routes.event(Quarrelsome::shaken))
        .service(|_| Quarrelsome, |routes| routes.event(Quarrelsome::shaken))
        .service(move |_| Orderly(counted.clone()), |routes| routes.event(Orderly::shaken))
        .start()
        .unwrap();
    let report = engine.stop(LONG);
    assert!(report.drained && report.panicked.is_empty(), "{report}");
    assert_eq!(dropped.load(Ordering::Relaxed), 2, "on each shard the one that does not panic");
}
