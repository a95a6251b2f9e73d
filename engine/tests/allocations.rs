//! A steady stream of requests allocates nothing: shard to shard and over a lane, as futures and as batches.
//!
//! One test in a binary of its own, because the allocator counts for the whole process. Each way of calling warms up
//! first, so that pools, rings and tables have grown to what the load needs. Then it may allocate [`ALLOWED`] times in
//! [`CALLS`] calls: what is left are things that happen by time and not by call (a lane's buffer that moves when a read
//! comes in an unlucky size).

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed helper is a failed test")]
#![allow(unsafe_code)] // A global allocator cannot be written without it; it only forwards.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use catga::prelude::*;
use catga::{List, Runtime};
use pollster::block_on;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

struct Counting;

// SAFETY: each method forwards its arguments as they are to the system's allocator and returns what that returned;
// counting touches no memory of theirs. The test below would not come through a start if they were mixed up.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on as it is.
        unsafe { System.alloc(layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on as it is.
        unsafe { System.realloc(pointer, layout, bytes) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on as it is.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Calls in the window that is counted.
const CALLS: u64 = 200_000;
/// Allocations in that window: less than one in 10,000 calls.
const ALLOWED: u64 = CALLS / 10_000 - 1;

#[request(reply = Doubled)]
struct Double {
    value: u64,
}
/// Like `Double`, answered by an async handler that waits once.
#[request(reply = Doubled)]
struct Slowly {
    value: u64,
}
#[message]
struct Doubled {
    value: u64,
}
#[request(reply = Counted)]
struct Drive {
    calls: u64,
    /// 0: one after the other. 1: a batch. 2: one after the other, to the async handler.
    way: u8,
}
#[message]
struct Counted {
    right: u64,
    allocations: u64,
}

struct Doubler;
impl Doubler {
    fn double(&mut self, ask: &Archived<Double>, _: &Context) -> Result<Doubled, Fault> {
        Ok(Doubled { value: ask.value.to_native() * 2 })
    }
    async fn slowly(_: &State<Self>, ask: &Archived<Slowly>, _: &Context) -> Result<Doubled, Fault> {
        let mut waited = false;
        std::future::poll_fn(|cx| {
            if std::mem::replace(&mut waited, true) {
                return std::task::Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            std::task::Poll::Pending
        })
        .await;
        Ok(Doubled { value: ask.value.to_native() * 2 })
    }
}

struct Driver;
impl Driver {
    async fn drive(_: &State<Self>, drive: &Archived<Drive>, ctx: &Context) -> Result<Counted, Fault> {
        let (calls, way) = (drive.calls.to_native(), drive.way);
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        let mut right = 0;
        match way {
            0 => {
                for value in 0..calls {
                    right += u64::from(ctx.send(&Double { value }).await?.value.to_native() == value * 2);
                }
            }
            1 => {
                let batch =
                    ctx.send_batch((0..calls).map(|value| Double { value })).within(Duration::from_secs(60));
                batch
                    .for_each(|place, outcome| {
                        let expected = place as u64 * 2;
                        right += u64::from(outcome.is_ok_and(|reply| reply.value.to_native() == expected));
                    })
                    .await;
            }
            _ => {
                for value in 0..calls {
                    right += u64::from(ctx.send(&Slowly { value }).await?.value.to_native() == value * 2);
                }
            }
        }
        let allocations = ALLOCATIONS.load(Ordering::Relaxed) - before;
        Ok(Counted { right, allocations })
    }
}

fn check(what: &str, client: &Client) {
    for (way, name) in [(0, "futures"), (1, "batch"), (2, "futures to an async handler")] {
        let drive = |calls| {
            let drive = Drive { calls, way };
            let counted = block_on(client.send(&drive).within(Duration::from_secs(120))).unwrap();
            assert_eq!(counted.right.to_native(), calls, "{what}, {name}");
            counted.allocations.to_native()
        };
        // One call after the other is a wake-up each, so there are fewer of them.
        let calls = if way == 1 { CALLS } else { CALLS / 4 };
        drive(calls / 5); // warm: many times what is in flight at once
        let allocations = drive(calls);
        println!("{what}, {name}: {allocations} allocations in {calls} calls");
        assert!(
            allocations <= ALLOWED * calls / CALLS,
            "{what}, {name}: {allocations} allocations in {calls} calls"
        );
    }
}

#[test]
fn a_steady_stream_of_requests_allocates_nothing() {
    let engine = Engine::builder()
        .shards(2)
        .runtime(Runtime::Epoll)
        .service_on([0], |_| Driver, |routes| routes.request_async(Driver::drive))
        .service_on([1], |_| Doubler, |routes| routes.request(Doubler::double).request_async(Doubler::slowly))
        .start()
        .unwrap();
    check("shard to shard", &engine.client());
    drop(engine);

    let b = Engine::builder()
        .shards(1)
        .runtime(Runtime::Epoll)
        .service(|_| Doubler, |routes| routes.request(Doubler::double).request_async(Doubler::slowly))
        .cluster(List::of(Vec::<String>::new()).node("b", "127.0.0.1:0"))
        .start()
        .unwrap();
    let endpoint = b.endpoint().unwrap();
    let a = Engine::builder()
        .shards(1)
        .runtime(Runtime::Epoll)
        .service(|_| Driver, |routes| routes.request_async(Driver::drive))
        .cluster(List::of([format!("b={endpoint}")]).node("a", "127.0.0.1:0"))
        .start()
        .unwrap();
    check("over a lane", &a.client());
}
