//! `try_send`: a full bound on the way ends the call at once, and nothing waits.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed helper is a failed test")]

mod common;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Waker;
use std::time::Duration;

use catga::NotSent;
use catga::prelude::*;
use common::eventually;
use futures_util::future::join_all;
use pollster::block_on;

#[request(reply = Size)]
struct Take {
    filler: Vec<u8>,
}
#[message]
struct Size {
    bytes: u64,
}
/// Makes so many calls at once that do not wait for room.
#[request(reply = Ends)]
struct Many {
    calls: u32,
    bytes: u32,
}
#[message]
#[derive(Default)]
struct Ends {
    replies: u32,
    full: u32,
    too_many: u32,
    others: u32,
}

const LONG: Duration = Duration::from_secs(60);

/// Handles a request when its gate is open, and keeps its shard until then.
#[derive(Clone, Default)]
struct Gate {
    open: Arc<AtomicBool>,
    entered: Arc<AtomicU64>,
}
impl Gate {
    fn take(&mut self, take: &Archived<Take>, _: &Context) -> Result<Size, Fault> {
        self.entered.fetch_add(1, Ordering::SeqCst);
        eventually("the gate opens", || self.open.load(Ordering::SeqCst));
        Ok(Size { bytes: take.filler.len() as u64 })
    }
}

struct Caller(Gate);
impl Caller {
    async fn take(_: &State<Self>, take: &Archived<Take>, _: &Context) -> Result<Size, Fault> {
        Ok(Size { bytes: take.filler.len() as u64 })
    }

    /// Opens the gate when all calls have been made: those that wait for room would be in time for it.
    async fn many(state: &State<Self>, many: &Archived<Many>, ctx: &Context) -> Result<Ends, Fault> {
        let take = Take { filler: vec![1; many.bytes.to_native() as usize] };
        let mut calls: Vec<_> =
            (0..many.calls.to_native()).map(|_| Box::pin(ctx.try_send(&take).within(LONG))).collect();
        let mut ends = Ends::default();
        let mut cx = std::task::Context::from_waker(Waker::noop());
        let mut flying = Vec::new();
        for mut call in calls.drain(..) {
            match call.as_mut().poll(&mut cx) {
                std::task::Poll::Pending => flying.push(call),
                std::task::Poll::Ready(outcome) => count(&mut ends, outcome),
            }
        }
        state.with(|caller| caller.0.open.store(true, Ordering::SeqCst));
        for outcome in join_all(flying).await {
            // Of many that fail at once a few are told so in the next turn.
            count(&mut ends, outcome);
        }
        Ok(ends)
    }
}

fn count(ends: &mut Ends, outcome: Result<Reply<Size>, CallError<Fault>>) {
    match outcome {
        Ok(_) => ends.replies += 1,
        Err(CallError::NotSent(NotSent::Full)) => ends.full += 1,
        Err(CallError::NotSent(NotSent::TooManyCalls)) => ends.too_many += 1,
        Err(_) => ends.others += 1,
    }
}

/// How many calls go to another shard before there is no room, and what the others are told.
fn many(calls: u32, bytes: u32, calls_max: u32) -> (Ends, catga::Stats) {
    let gate = Gate::default();
    let theirs = gate.clone();
    let engine = Engine::builder()
        .shards(2)
        .calls_max(calls_max)
        .service_on([0], move |_| Caller(gate.clone()), |routes| routes.request_async(Caller::many))
        .service_on([1], move |_| theirs.clone(), |routes| routes.request(Gate::take))
        .start()
        .unwrap();
    let ends = block_on(engine.client().send(&Many { calls, bytes }).within(LONG)).unwrap().to_owned();
    (ends, engine.stop(LONG).stats)
}

#[test]
fn without_a_credit_a_call_ends_at_once_as_full() {
    let (ends, stats) = many(3_000, 1, 4_000);
    assert_eq!((ends.replies + ends.full, ends.too_many, ends.others), (3_000, 0, 0));
    assert!(ends.replies >= 500 && ends.full >= 500, "{} of them sent", ends.replies);
    assert_eq!(stats.sum(|shard| shard.sends_full), u64::from(ends.full));
    assert_eq!(stats.sum(|shard| shard.waits), 0, "nothing waits");
}

#[test]
fn a_full_ring_ends_a_call_at_once_as_full() {
    // Long before the credits are used up, these fill the ring.
    let (ends, stats) = many(300, 2_000, 4_000);
    assert_eq!((ends.replies + ends.full, ends.too_many, ends.others), (300, 0, 0));
    assert!((10..200).contains(&ends.replies), "{} of them sent", ends.replies);
    assert_eq!(stats.sum(|shard| shard.sends_full), u64::from(ends.full));
    assert_eq!(stats.sum(|shard| shard.waits), 0, "nothing waits");
}

#[test]
fn a_full_queue_of_the_own_shard_ends_a_call_at_once_as_full() {
    let gate = Gate::default();
    let engine = Engine::builder()
        .shards(1)
        .calls_max(6_000)
        .tasks_max(6_000)
        .service(
            move |_| Caller(gate.clone()),
            |routes| routes.request_async(Caller::many).request_async(Caller::take),
        )
        .start()
        .unwrap();
    let most = catga::limits::LOCAL_QUEUE_MESSAGES as u32;
    let calls = most + 900;
    let ends = block_on(engine.client().send(&Many { calls, bytes: 1 }).within(LONG)).unwrap().to_owned();
    assert_eq!((ends.replies, ends.full, ends.others), (most, 900, 0));
    let stats = engine.stop(LONG).stats;
    assert_eq!((stats.sum(|shard| shard.sends_full), stats.sum(|shard| shard.waits)), (900, 0));
}

#[test]
fn a_full_table_of_calls_ends_a_call_at_once() {
    let (ends, stats) = many(25, 1, 10);
    assert_eq!((ends.replies, ends.too_many, ends.full, ends.others), (10, 15, 0, 0));
    assert_eq!(stats.sum(|shard| shard.waits), 0, "nothing waits");
}

#[test]
fn a_full_inbox_ends_a_call_at_once_as_full() {
    let gate = Gate::default();
    let theirs = gate.clone();
    let engine = Engine::builder()
        .shards(1)
        .service(move |_| theirs.clone(), |routes| routes.request(Gate::take))
        .start()
        .unwrap();
    let client = engine.client();
    let take = Take { filler: vec![] };
    let mut cx = std::task::Context::from_waker(Waker::noop());
    let mut flying = vec![Box::pin(client.try_send(&take).within(LONG))];
    assert!(flying[0].as_mut().poll(&mut cx).is_pending());
    eventually("the shard is stuck in its handler", || gate.entered.load(Ordering::SeqCst) == 1);
    for _ in 0..catga::limits::INBOX_CALLS {
        let mut call = Box::pin(client.try_send(&take).within(LONG));
        assert!(call.as_mut().poll(&mut cx).is_pending());
        flying.push(call);
    }
    let mut refused = Box::pin(client.try_send(&take).within(LONG));
    let std::task::Poll::Ready(refused) = refused.as_mut().poll(&mut cx) else { panic!("it waits") };
    assert_eq!(refused.unwrap_err(), CallError::NotSent(NotSent::Full));
    gate.open.store(true, Ordering::SeqCst);
    assert!(block_on(join_all(flying)).iter().all(Result::is_ok), "those who got in are all served");
}
