//! Handlers that poll calls by hand, with wakers that panic when they wake, or that own calls themselves: wakers are
//! somebody else's code, and neither harm their shard nor find it in the middle of something.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed helper is a failed test")]

mod common;

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context as TaskContext, Poll, Wake, Waker};
use std::time::Duration;

use catga::NotSent;
use catga::prelude::*;
use common::eventually;
use pollster::block_on;

const LONG: Duration = Duration::from_secs(60);
const MOMENT: Duration = Duration::from_micros(200);

/// Polls something by hand, in the way with this number.
#[request]
struct Try {
    way: u32,
}
#[request]
struct Take {
    filler: Vec<u8>,
}
/// Is not answered before its caller gives up.
#[request]
struct Hang {}
#[event]
struct Happened {}

/// Its gate is open, or it keeps its shard until then.
#[derive(Clone)]
struct Far(Arc<AtomicBool>);
impl Far {
    fn take(&mut self, take: &Archived<Take>, _: &Context) -> Result<(), Fault> {
        eventually("the gate opens", || self.0.load(Ordering::SeqCst));
        if take.filler.len() > 1 << 20 { Err(Fault::new("too large")) } else { Ok(()) }
    }
    async fn hang(_: &State<Self>, _: &Archived<Hang>, _: &Context) -> Result<(), Fault> {
        std::future::pending().await
    }
    fn happened(&mut self, _: &Archived<Happened>, _: &Context) {}
}

fn poll<F: Future + ?Sized>(future: &mut Pin<Box<F>>, waker: &Waker) -> Poll<F::Output> {
    future.as_mut().poll(&mut TaskContext::from_waker(waker))
}

/// Panics with each wake-up, and with what was panicked with.
struct Bomb(Arc<AtomicU64>);
impl Wake for Bomb {
    fn wake(self: Arc<Self>) {
        struct AgainInDrop;
        impl Drop for AgainInDrop {
            fn drop(&mut self) {
                panic!("what was panicked with panics");
            }
        }
        self.0.fetch_add(1, Ordering::SeqCst);
        std::panic::panic_any(AgainInDrop);
    }
}

struct Bomber {
    gate: Arc<AtomicBool>,
    exploded: Arc<AtomicU64>,
}
impl Bomber {
    async fn attempt(this: &State<Self>, attempt: &Archived<Try>, ctx: &Context) -> Result<(), Fault> {
        let (gate, exploded) = this.with(|this| (this.gate.clone(), this.exploded.clone()));
        let bomb = Waker::from(Arc::new(Bomb(exploded.clone())));
        let take = Take { filler: vec![7; 4096] };
        let (mut answered, mut slept) = (Box::pin(ctx.send(&take)), Box::pin(ctx.sleep(MOMENT)));
        let mut calls = Vec::new();
        match attempt.way.to_native() {
            0 => assert!(poll(&mut answered, &bomb).is_pending()),
            1 => assert!(poll(&mut slept, &bomb).is_pending()),
            _ => {
                gate.store(false, Ordering::SeqCst);
                loop {
                    let mut call = Box::pin(ctx.try_send(&take));
                    match poll(&mut call, Waker::noop()) {
                        Poll::Pending => calls.push(call),
                        Poll::Ready(Err(CallError::NotSent(NotSent::Full))) => break,
                        Poll::Ready(other) => panic!("{:?} after {} calls", other.map(drop), calls.len()),
                    }
                }
                assert!(poll(&mut answered, &bomb).is_pending(), "it waits for room");
                gate.store(true, Ordering::SeqCst);
            }
        }
        while exploded.load(Ordering::SeqCst) == 0 {
            ctx.sleep(MOMENT).await;
        }
        // The shard goes on, and calls through the same way do.
        ctx.send(&take).await.map(drop).map_err(|error| Fault::new(error.to_string()))
    }
}

#[test]
fn a_waker_that_panics_harms_nobody_else() {
    for way in 0..3 {
        let (gate, exploded) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicU64::new(0)));
        let (far, bomber) = (Far(gate.clone()), exploded.clone());
        let engine = Engine::builder()
            .shards(2)
            .service_on(
                [0],
                move |_| Bomber { gate: gate.clone(), exploded: bomber.clone() },
                |routes| routes.request_async(Bomber::attempt),
            )
            .service_on([1], move |_| far.clone(), |routes| routes.request(Far::take))
            .start()
            .unwrap();
        let outcome = block_on(engine.client().send(&Try { way }).within(LONG)).map(drop);
        assert_eq!(outcome, Ok(()), "way {way}");
        assert_eq!(exploded.load(Ordering::SeqCst), 1, "way {way}");
        let report = engine.stop(LONG);
        assert!(report.panicked.is_empty() && report.drained, "way {way}: {report}");
    }
}

thread_local! {
    /// What the wakers of this thread own. (A waker is `Send`, a call is not.)
    static OWNED: RefCell<Option<Pin<Box<dyn Future<Output = ()>>>>> = const { RefCell::new(None) };
}

/// With its last waker goes what it owns.
struct Owner;
impl Wake for Owner {
    fn wake(self: Arc<Self>) {}
}
impl Drop for Owner {
    fn drop(&mut self) {
        drop(OWNED.take());
    }
}

/// A waker that owns a call, a batch and a broadcast that are under way.
fn owner(ctx: &Context) -> Waker {
    let ctx = ctx.clone();
    let mut owned: Pin<Box<dyn Future<Output = ()>>> = Box::pin(async move {
        let (hang, happened) = (Hang {}, Happened {});
        let mut call = Box::pin(ctx.send(&hang));
        let mut batch = Box::pin(ctx.send_batch((0..3).map(|_| Hang {})).for_each(|_, _| ()));
        let mut broadcast = Box::pin(ctx.broadcast(&happened));
        std::future::poll_fn(|cx| {
            assert!(poll(&mut call, cx.waker()).is_pending());
            assert!(poll(&mut batch, cx.waker()).is_pending());
            assert!(poll(&mut broadcast, cx.waker()).is_pending());
            Poll::<()>::Pending
        })
        .await;
    });
    assert!(poll(&mut owned, Waker::noop()).is_pending());
    OWNED.set(Some(owned));
    Waker::from(Arc::new(Owner))
}

struct Keeper;
impl Keeper {
    async fn attempt(_: &State<Self>, attempt: &Archived<Try>, ctx: &Context) -> Result<(), Fault> {
        let (hang, happened, way) = (Hang {}, Happened {}, attempt.way.to_native());
        let mut future: Pin<Box<dyn Future<Output = ()> + '_>> = match way / 2 {
            0 => Box::pin(async { drop(ctx.send(&hang).await) }),
            1 => Box::pin(ctx.send_batch((0..3).map(|_| Hang {})).for_each(|_, _| ())),
            _ => Box::pin(async { drop(ctx.broadcast(&happened).await) }),
        };
        let waker = owner(ctx);
        assert!(poll(&mut future, &waker).is_pending());
        drop(waker); // the table has the last one
        assert!(OWNED.with_borrow(Option::is_some), "way {way}: the waker is kept");
        match way % 2 {
            0 => drop(future),
            _ => assert!(poll(&mut future, Waker::noop()).is_pending()),
        }
        assert!(OWNED.with_borrow(Option::is_none), "way {way}: the waker is dropped");
        Ok(())
    }
}

#[test]
fn a_waker_that_owns_calls_may_be_dropped_or_replaced() {
    let far = Far(Arc::new(AtomicBool::new(true)));
    let engine = Engine::builder()
        .shards(2)
        .service_on([0], |_| Keeper, |routes| routes.request_async(Keeper::attempt).on_panic(OnPanic::Keep))
        .service_on([1], move |_| far.clone(), |routes| routes.request_async(Far::hang).event(Far::happened))
        .start()
        .unwrap();
    for way in 0..6 {
        let outcome = block_on(engine.client().send(&Try { way }).within(LONG)).map(drop);
        assert_eq!(outcome, Ok(()), "way {way}");
    }
    eventually("all of them are given up", || engine.stats().sum(|shard| shard.calls_live) == 0);
    let report = engine.stop(LONG);
    assert!(report.panicked.is_empty() && report.drained, "{report}");
}
