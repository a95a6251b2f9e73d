//! What is left of a shard that has ended: nothing, whether its engine stopped or its thread died, and though a service keeps
//! what it was given.
//!
//! What counts descriptors of the process, or listens to its log, is in a process of its own.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed helper is a failed test")]

mod common;

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::task::{Context as TaskContext, Poll, Waker};
use std::time::{Duration, Instant};

use catga::prelude::*;
use catga::{Client, NotSent, Unknown};
use common::{eventually, is_alone};
use pollster::block_on;

const LONG: Duration = Duration::from_secs(600);

/// Lets the service keep its context.
#[request]
struct Keep {}
#[request]
struct Hang {}
#[request]
struct Relay {}
/// Asks the first shard for what it handles at once.
#[request]
struct Ask {}
/// Handled by each shard.
#[request]
struct Any {}
/// Holds its shard up until the watchdog calls it stuck.
#[request]
struct Block {}

#[derive(Default)]
struct Notes {
    dropped: AtomicU64,
    /// What came of a call in the `Drop`.
    stopping: AtomicU64,
    panics: AtomicBool,
    blocks: AtomicBool,
    go_on: AtomicBool,
}

struct Keeper {
    ctx: Option<Context>,
    notes: Arc<Notes>,
}
impl Keeper {
    fn keep(&mut self, _: &Archived<Keep>, ctx: &Context) -> Result<(), Fault> {
        self.ctx = Some(ctx.clone());
        Ok(())
    }
    async fn hang(this: &State<Self>, _: &Archived<Hang>, ctx: &Context) -> Result<(), Fault> {
        this.with(|this| this.ctx = Some(ctx.clone()));
        std::future::pending().await
    }
    fn block(&mut self, _: &Archived<Block>, _: &Context) -> Result<(), Fault> {
        self.notes.blocks.store(true, Ordering::SeqCst);
        eventually("it may go on", || self.notes.go_on.load(Ordering::SeqCst));
        Ok(())
    }
}
impl Drop for Keeper {
    fn drop(&mut self) {
        self.notes.dropped.fetch_add(1, Ordering::SeqCst);
        if let Some(ctx) = &self.ctx {
            let outcome = pin!(ctx.send(&Any {})).poll(&mut TaskContext::from_waker(Waker::noop()));
            let stopping = matches!(outcome, Poll::Ready(Err(CallError::NotSent(NotSent::Stopping))));
            self.notes.stopping.fetch_add(u64::from(stopping), Ordering::SeqCst);
        }
        assert!(!self.notes.panics.load(Ordering::SeqCst), "a service panics when it is dropped");
    }
}

struct Other;
impl Other {
    fn any(&mut self, _: &Archived<Any>, _: &Context) -> Result<(), Fault> {
        Ok(())
    }
    async fn relay(_: &State<Self>, _: &Archived<Relay>, ctx: &Context) -> Result<(), Fault> {
        ctx.send(&Hang {}).await.map(drop).map_err(|error| Fault::new(error.to_string()))
    }
    async fn ask(_: &State<Self>, _: &Archived<Ask>, ctx: &Context) -> Result<(), Fault> {
        ctx.send(&Keep {}).await.map(drop).map_err(|error| Fault::new(format!("{error:?}")))
    }
}

/// Two shards: a keeper on the first, or on both.
fn engine(keepers: &'static [u16], notes: &Arc<Notes>) -> catga::Builder {
    let notes = notes.clone();
    Engine::builder()
        .shards(2)
        .service_on(
            keepers.iter().copied(),
            move |_| Keeper { ctx: None, notes: notes.clone() },
            |routes| routes.request(Keeper::keep).request_async(Keeper::hang).request(Keeper::block),
        )
        .service(|_| Other, |routes| routes.request(Other::any))
        .service_on([1], |_| Other, |routes| routes.request_async(Other::relay).request_async(Other::ask))
}

#[test]
fn a_service_that_keeps_its_context_is_dropped_with_its_shard() {
    for panics in [false, true] {
        let notes = Arc::new(Notes::default());
        notes.panics.store(panics, Ordering::SeqCst);
        let engine = engine(&[0, 1], &notes).start().unwrap();
        let client = engine.client();
        for _ in 0..2 {
            block_on(client.send(&Keep {})).unwrap(); // the shards take turns
        }
        let hangs = std::thread::spawn(move || block_on(client.send(&Hang {}).within(LONG)).map(drop));
        eventually("it runs", || engine.stats().sum(|shard| shard.tasks_running) == 1);
        let report = engine.stop(Duration::from_millis(1));
        assert!(matches!(hangs.join().unwrap(), Err(CallError::Unknown(Unknown::Cut))));
        assert_eq!(notes.dropped.load(Ordering::SeqCst), 2, "each once");
        assert_eq!(notes.stopping.load(Ordering::SeqCst), 2, "a call through a context that was kept");
        assert!(report.panicked.is_empty() && report.stuck.is_empty(), "{report}");
        assert_eq!(report.stats.sum(|shard| shard.failed), if panics { 2 } else { 0 });
        assert_eq!(Arc::strong_count(&notes), 1);
    }
}

/// Threads and descriptors of this process.
fn held() -> (usize, usize) {
    let count = |folder| std::fs::read_dir(folder).unwrap().count();
    (count("/proc/self/task"), count("/proc/self/fd"))
}

fn use_two_nodes() {
    let notes = Arc::new(Notes::default());
    let none = catga::List::of(Vec::<String>::new());
    let served = engine(&[0, 1], &notes).cluster(none.node("b", "127.0.0.1:0")).start().unwrap();
    let list = catga::List::of([format!("b={}", common::address(&served))]);
    let asks = Engine::builder().shards(1).cluster(list.node("a", "127.0.0.1:0")).start().unwrap();
    for _ in 0..4 {
        block_on(asks.client().send(&Keep {}).within(LONG)).unwrap();
    }
    served.stop(Duration::from_secs(5));
    assert_eq!(notes.dropped.load(Ordering::SeqCst), 2);
    asks.stop(Duration::from_secs(5));
}

#[test]
fn contexts_that_are_kept_hold_no_descriptor_and_no_thread() {
    if !is_alone("contexts_that_are_kept_hold_no_descriptor_and_no_thread") {
        return;
    }
    (0..3).for_each(|_| use_two_nodes()); // what the first uses keep for good does not count
    let before = held();
    (0..5).for_each(|_| use_two_nodes());
    // A thread that was joined may be in the system's list for a moment longer.
    let end = Instant::now() + Duration::from_secs(10);
    while held() != before && Instant::now() < end {
        std::thread::yield_now();
    }
    assert_eq!(held(), before, "(threads, descriptors) after and before");
}

/// A log that panics, once it is told to, on the first shard when that was held up, so that the shard dies; and that notes what
/// the watchdog says.
struct Deadly {
    notes: Arc<Notes>,
    stuck: Arc<AtomicBool>,
    over: Arc<AtomicBool>,
}
impl tracing::Subscriber for Deadly {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::WARN
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        let mut said = String::new();
        event.record(&mut |field: &tracing::field::Field, value: &dyn std::fmt::Debug| {
            said.push_str(&format!("{field}={value:?} "));
        });
        eprintln!("logged: {said}");
        let is_last = said.contains("the shard was paused") && said.contains("shard=0 ");
        assert!(!(is_last && self.notes.go_on.load(Ordering::SeqCst)), "the log panics");
        self.stuck.fetch_or(said.contains("the shard is stuck"), Ordering::SeqCst);
        self.over.fetch_or(said.contains("the shard goes on"), Ordering::SeqCst);
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

/// Sends from a thread of its own.
fn send<R: catga::Request<Reply = (), Error = Fault> + Send + 'static>(
    client: Client,
    request: R,
) -> mpsc::Receiver<Result<(), CallError<Fault>>> {
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || tell.send(block_on(client.send(&request).within(LONG)).map(drop)));
    told
}

#[test]
fn a_shard_that_dies_tells_all_who_wait_for_it_and_never_comes_back() {
    if !is_alone("a_shard_that_dies_tells_all_who_wait_for_it_and_never_comes_back") {
        return;
    }
    let (stuck, over) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let notes = Arc::new(Notes::default());
    let log = Deadly { notes: notes.clone(), stuck: stuck.clone(), over: over.clone() };
    tracing::subscriber::set_global_default(log).unwrap();
    let engine = engine(&[0], &notes).start().unwrap();
    let client = engine.client();
    let hangs = send(client.clone(), Hang {});
    let relays = send(client.clone(), Relay {});
    eventually("two hang, and one has relayed", || engine.stats().sum(|shard| shard.tasks_running) == 3);
    let blocks = send(client.clone(), Block {});
    eventually("the shard is held up", || notes.blocks.load(Ordering::SeqCst));
    let asks = send(client.clone(), Ask {});
    eventually("it has asked", || engine.stats().sum(|shard| shard.tasks_running) == 4);
    eventually("the shard is stuck", || stuck.load(Ordering::SeqCst));
    let late = send(client.clone(), Hang {});
    notes.go_on.store(true, Ordering::SeqCst);
    // All long before their deadlines.
    let told =
        |waits: &mpsc::Receiver<_>| waits.recv_timeout(Duration::from_secs(20)).expect("nobody told it");
    assert_eq!(told(&blocks), Ok(()), "it was answered before the shard died");
    assert!(matches!(told(&hangs), Err(CallError::Unknown(Unknown::Cut))));
    assert!(matches!(told(&relays), Err(CallError::Rejected(_))), "its own call was ended");
    let Err(CallError::Rejected(outcome)) = told(&asks) else { panic!("what it asked was not answered") };
    assert_eq!(outcome.text, "Refused(Stopping)", "it lay in the ring between the shards");
    assert!(matches!(told(&late), Err(CallError::NotSent(_))));
    eventually("the service is dropped", || notes.dropped.load(Ordering::SeqCst) == 1);
    eventually("the watchdog sees that the turn is over", || over.load(Ordering::SeqCst));
    // What it does then it has done when it looks the next time.
    std::thread::sleep(3 * catga::limits::WATCH_INTERVAL);
    for _ in 0..20 {
        assert_eq!(block_on(client.send(&Any {})).map(drop), Ok(()), "a shard that lives is asked");
    }
    let outcome = block_on(client.send(&Keep {})).map(drop);
    assert_eq!(outcome, Err(CallError::NotSent(NotSent::Stuck)));
    let report = engine.stop(Duration::from_secs(5));
    assert_eq!(report.panicked, [ShardId(0)], "{report}");
    assert_eq!(report.stats.sum(|shard| shard.drains_cut), 0, "{report}");
}
