//! Calls from foreign threads: they end in time whatever their shard does, stop their handlers when they are dropped,
//! and tell who must not block that it must not. And the watchdog, which sees a stuck shard from outside.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed helper is a failed test")]

mod common;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context as TaskContext, Poll, Waker};
use std::time::{Duration, Instant};

use catga::prelude::*;
use catga::{List, NotSent, Request, Unknown};
use common::eventually;
use common::log::Log;
use futures_util::future::join_all;
use pollster::block_on;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const LONG: Duration = Duration::from_secs(30);

/// Blocks its shard until the gate is open.
#[request(reply = Done)]
struct Block;
/// Never answers.
#[request(reply = Done)]
struct Hang;
/// Which shard are you?
#[request(reply = Where)]
struct Ask;
/// Which shard owns this key?
#[request(reply = Where, key = key)]
struct AskOwner {
    key: u64,
}
/// Blocks in a call of its own, which a handler must not.
#[request(reply = Done)]
struct CallBlocking;
#[message]
struct Done;
#[message]
struct Where {
    shard: u16,
}

#[derive(Default)]
struct Gate {
    open: AtomicBool,
    blocked: AtomicU64,
    ran: AtomicU64,
    hanging: AtomicU64,
}

impl Gate {
    fn open(&self) {
        self.open.store(true, Ordering::SeqCst);
    }
}

struct Hanging(Arc<Gate>);

impl Drop for Hanging {
    fn drop(&mut self) {
        self.0.hanging.fetch_sub(1, Ordering::SeqCst);
    }
}

struct Desk(Arc<Gate>, Option<Client>);

impl Desk {
    fn block(&mut self, _: &Archived<Block>, _: &Context) -> Result<Done, Fault> {
        self.0.blocked.fetch_add(1, Ordering::SeqCst);
        let since = Instant::now();
        while !self.0.open.load(Ordering::SeqCst) && since.elapsed() < LONG {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.0.blocked.fetch_sub(1, Ordering::SeqCst);
        Ok(Done)
    }

    async fn hang(desk: &State<Self>, _: &Archived<Hang>, _: &Context) -> Result<Done, Fault> {
        let hanging = Hanging(desk.with(|desk| desk.0.clone()));
        hanging.0.hanging.fetch_add(1, Ordering::SeqCst);
        std::future::pending::<()>().await;
        Ok(Done)
    }

    fn ask(&mut self, _: &Archived<Ask>, ctx: &Context) -> Result<Where, Fault> {
        self.0.ran.fetch_add(1, Ordering::SeqCst);
        Ok(Where { shard: ctx.shard().0 })
    }

    fn ask_owner(&mut self, _: &Archived<AskOwner>, ctx: &Context) -> Result<Where, Fault> {
        Ok(Where { shard: ctx.shard().0 })
    }

    fn call_blocking(&mut self, _: &Archived<CallBlocking>, _: &Context) -> Result<Done, Fault> {
        let Some(client) = &self.1 else { return Err(Fault::new("no client")) };
        match client.send_blocking(&Ask) {
            Ok(_) => Ok(Done),
            Err(error) => Err(Fault::new(error.to_string())),
        }
    }
}

fn engine(shards: usize, gate: &Arc<Gate>) -> Engine {
    let gate = gate.clone();
    Engine::builder()
        .shards(shards)
        .service_on(
            [0],
            {
                let gate = gate.clone();
                move |_| Desk(gate.clone(), None)
            },
            |routes| routes.request(Desk::block),
        )
        .service(
            move |_| Desk(gate.clone(), None),
            |routes| routes.request(Desk::ask).request(Desk::ask_owner).request_async(Desk::hang),
        )
        .start()
        .unwrap()
}

/// Sends a call and does not wait for it.
fn begin<R: Request>(call: &mut std::pin::Pin<Box<catga::ClientCall<'_, R>>>) {
    assert!(call.as_mut().poll(&mut TaskContext::from_waker(Waker::noop())).is_pending());
}

#[test]
fn a_call_from_outside_ends_in_time_though_its_shard_is_stuck() {
    let gate = Arc::new(Gate::default());
    let engine = engine(1, &gate);
    let client = engine.client();
    let stalls = || engine.stats().sum(|shard| shard.stalls);
    let before = stalls();
    // Where the machine stops for as long as the call may take, the shard may not have taken it by then: then again.
    let blocks = || {
        let mut blocks = Box::pin(client.send(&Block).within(Duration::from_millis(300)));
        let (mut cx, mut ended) = (TaskContext::from_waker(Waker::noop()), None);
        eventually("the shard is stuck, or the call has ended", || {
            if ended.is_none()
                && let Poll::Ready(outcome) = blocks.as_mut().poll(&mut cx)
            {
                ended = Some(outcome.map(|_| ()));
            }
            ended.is_some() || gate.blocked.load(Ordering::SeqCst) == 1
        });
        (ended != Some(Err(CallError::NotSent(NotSent::Deadline)))).then_some((blocks, ended))
    };
    let (blocks, ended) = (0..20).find_map(|_| blocks()).expect("the shard takes it");
    eventually("the shard is stuck", || gate.blocked.load(Ordering::SeqCst) == 1);

    // One that the shard has not taken: it did not run, and never will.
    let since = Instant::now();
    assert_eq!(
        block_on(client.send(&Ask).within(Duration::from_millis(100))).map(|_| ()),
        Err(CallError::NotSent(NotSent::Deadline))
    );
    // One that the shard works on: nobody knows.
    let ended = ended.unwrap_or_else(|| block_on(blocks).map(|_| ()));
    assert_eq!(ended, Err(CallError::Unknown(Unknown::Deadline)));
    assert!(since.elapsed() < LONG / 2, "the shard is still stuck, and nobody waited for it");
    assert_eq!(gate.blocked.load(Ordering::SeqCst), 1);

    gate.open();
    assert!(common::call(&client, &Ask).is_ok());
    assert_eq!(
        gate.ran.load(Ordering::SeqCst),
        1,
        "requests that were given up before they were taken did not run"
    );
    // A turn in which the machine stopped is one too.
    eventually("the stall is counted", || stalls() > before);
}

#[test]
fn the_log_names_the_message_that_holds_a_shard_up_while_it_does() {
    // Other tests of this file log too, but none under these names.
    #[request(reply = Done)]
    struct TakesAges;
    struct Slow(Arc<Gate>);
    impl Slow {
        fn take(&mut self, _: &Archived<TakesAges>, _: &Context) -> Result<Done, Fault> {
            eventually("the gate opens", || self.0.open.load(Ordering::SeqCst));
            Ok(Done)
        }
    }
    let log = Log::default();
    tracing::subscriber::set_global_default(log.clone()).unwrap();
    let logged = |what: &str| log.find(|line| line.contains("TakesAges") && line.contains(what)).is_some();
    let gate = Arc::new(Gate::default());
    let own = gate.clone();
    let engine = Engine::builder()
        .shards(1)
        .service(move |_| Slow(own.clone()), |routes| routes.request(Slow::take))
        .start()
        .unwrap();
    let client = engine.client();
    let mut call = Box::pin(client.send(&TakesAges).within(LONG));
    begin(&mut call);
    eventually("it is named", || logged("holds its shard up"));
    eventually("it is called stuck", || logged("is stuck"));
    assert!(!logged("goes on"));
    gate.open();
    assert!(block_on(call).is_ok());
    eventually("the end is logged", || logged("goes on"));
}

#[test]
fn a_stuck_shard_gets_no_new_work_until_it_goes_on() {
    let gate = Arc::new(Gate::default());
    let engine = engine(2, &gate);
    let client = engine.client();
    let key_of = |wanted: u16| {
        (0..).find(|&key| {
            block_on(client.send(&AskOwner { key })).is_ok_and(|reply| reply.shard.to_native() == wanted)
        })
    };
    let (stuck, free) = (AskOwner { key: key_of(0).unwrap() }, AskOwner { key: key_of(1).unwrap() });

    let mut blocks = Box::pin(client.send(&Block).within(LONG));
    begin(&mut blocks);
    eventually("calls to the stuck shard's keys are turned away", || {
        let outcome = block_on(client.send(&stuck).within(Duration::from_millis(10)));
        matches!(outcome, Err(CallError::NotSent(NotSent::Stuck)))
    });
    for _ in 0..100 {
        let reply = common::call(&client, &Ask).unwrap();
        assert_eq!(reply.shard.to_native(), 1, "the other shard takes what any shard can do");
    }
    assert!(common::call(&client, &free).is_ok());

    gate.open();
    assert!(block_on(blocks).is_ok(), "the call that took so long has its reply");
    eventually("the shard gets work again", || block_on(client.send(&stuck)).is_ok());
}

#[test]
fn dropping_a_call_from_outside_stops_its_handler() {
    let gate = Arc::new(Gate::default());
    let engine = engine(2, &gate);
    let client = engine.client();
    for round in 0..20 {
        // On both shards in turn, and from both: some are passed on.
        let mut calls: Vec<_> = (0..8).map(|_| Box::pin(client.send(&Hang).within(LONG))).collect();
        calls.iter_mut().for_each(begin);
        eventually("all handlers run", || gate.hanging.load(Ordering::SeqCst) == 8);
        drop(calls);
        eventually("no handler runs", || gate.hanging.load(Ordering::SeqCst) == 0);
        assert!(block_on(client.send(&Ask)).is_ok(), "round {round}");
    }
}

/// A node of so many shards that serves nothing, beside `there`.
fn beside(there: &Engine, shards: usize) -> Engine {
    let endpoint = there.endpoint().unwrap();
    Engine::builder()
        .shards(shards)
        .cluster(List::of([format!("there={endpoint}")]).node("here", "127.0.0.1:0"))
        .start()
        .unwrap()
}

#[test]
fn dropping_a_call_from_outside_stops_its_handler_on_another_node() {
    let gate = Arc::new(Gate::default());
    let own = gate.clone();
    let there = Engine::builder()
        .shards(1)
        .service(move |_| Desk(own.clone(), None), |routes| routes.request_async(Desk::hang))
        .cluster(List::of(Vec::<String>::new()).node("there", "127.0.0.1:0"))
        .start()
        .unwrap();
    let here = beside(&there, 2);
    let client = here.client();
    let mut call = Box::pin(client.send(&Hang).within(LONG));
    begin(&mut call);
    eventually("the handler runs", || gate.hanging.load(Ordering::SeqCst) == 1);
    drop(call);
    eventually("it is stopped", || gate.hanging.load(Ordering::SeqCst) == 0);
}

#[test]
fn dropping_a_call_stops_its_handler_behind_the_shard_of_another_node_that_passed_it_on() {
    let gate = Arc::new(Gate::default());
    let own = gate.clone();
    // Its first shard has no handler, and passes on to the second.
    let there = Engine::builder()
        .shards(2)
        .service_on([1], move |_| Desk(own.clone(), None), |routes| routes.request_async(Desk::hang))
        .cluster(List::of(Vec::<String>::new()).node("there", "127.0.0.1:0"))
        .start()
        .unwrap();
    let here = beside(&there, 1);
    let client = here.client();
    let runs = |count| gate.hanging.load(Ordering::SeqCst) == count;
    let mut call = Box::pin(client.send(&Hang).within(LONG));
    begin(&mut call);
    eventually("the handler runs", || runs(1));
    eventually("it was passed on", || there.stats().shards[0].calls_live == 1);
    drop(call);
    eventually("it is stopped", || runs(0));
    eventually("nothing is held for it", || there.stats().sum(|shard| shard.calls_live) == 0);
    // The same when the caller's node goes with all it has.
    let mut call = Box::pin(client.send(&Hang).within(LONG));
    begin(&mut call);
    eventually("the handler runs", || runs(1));
    here.stop(Duration::ZERO);
    eventually("it is stopped", || runs(0));
}

#[test]
fn threads_block_and_shards_refuse_to() {
    let gate = Arc::new(Gate::default());
    let served = engine(2, &gate);
    let client = served.client();
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let client = client.clone();
            std::thread::spawn(move || (0..500).filter(|_| client.send_blocking(&Ask).is_ok()).count())
        })
        .collect();
    assert_eq!(threads.into_iter().map(|thread| thread.join().unwrap()).sum::<usize>(), 2_000);

    let of_other = client.clone();
    let blocking = Engine::builder()
        .shards(1)
        .service(
            move |_| Desk(Arc::default(), Some(of_other.clone())),
            |routes| routes.request(Desk::call_blocking),
        )
        .start()
        .unwrap();
    match blocking.client().send_blocking(&CallBlocking) {
        Err(CallError::Rejected(fault)) => assert!(fault.text.contains("must not block"), "{}", fault.text),
        other => panic!("a shard blocked: {other:?}", other = other.map(|_| ())),
    }
}

#[test]
fn a_hundred_thousand_calls_at_once_each_have_one_outcome() {
    let gate = Arc::new(Gate::default());
    let engine = engine(2, &gate);
    let client = engine.client();
    let outcomes = block_on(join_all((0..100_000).map(|_| client.send(&Ask).within(LONG))));
    let mut replies = 0;
    for outcome in outcomes {
        match outcome {
            Ok(_) => replies += 1,
            Err(CallError::NotSent(NotSent::TooManyCalls | NotSent::Full)) => {}
            Err(other) => panic!("{other}"),
        }
    }
    assert!(replies >= catga::limits::CLIENT_CALLS_MAX, "{replies} replies");
    assert_eq!(gate.ran.load(Ordering::SeqCst), replies as u64);
}
