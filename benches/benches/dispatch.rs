//! Dispatch: what one call costs, by way it takes through an engine.
//!
//! Calls are made and timed inside a handler, because that is where they are cheap: criterion asks a driver on shard 0 to make
//! so many, and takes the time that the driver measured. Shards spin. The rings are private to the engine; what they cost is
//! in the difference between a call on one shard and a batch across two.
#![allow(clippy::expect_used, reason = "a benchmark whose set-up fails has nothing to say")]

use std::time::{Duration, Instant};

use catga::prelude::*;
use catga_benches::Small;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Many times what the longest sample takes: only a defect comes near it.
const PATIENCE: Duration = Duration::from_secs(300);

struct Adder;

impl Adder {
    fn add(&mut self, ask: &Archived<Small>, _: &Context) -> Result<Small, Fault> {
        Ok(Small { id: ask.id.to_native(), value: ask.value.to_native() + 1 })
    }
}

/// Asks the driver to make calls.
#[request(reply = Took)]
struct Drive {
    calls: u64,
    /// 0: one after the other. Else a batch with so many in flight.
    in_flight: u32,
}

#[message]
struct Took {
    nanoseconds: u64,
    wrong: u64,
}

struct Driver;

impl Driver {
    async fn drive(_: &State<Self>, ask: &Archived<Drive>, ctx: &Context) -> Result<Took, Fault> {
        let (calls, in_flight) = (ask.calls.to_native(), ask.in_flight.to_native() as usize);
        let request = |id: u64| Small { id, value: id };
        let mut wrong = 0;
        let mut check = |id: u64, reply: Option<&Archived<Small>>| {
            wrong += u64::from(reply.is_none_or(|reply| reply.id != id || reply.value != id + 1));
        };
        let start = Instant::now();
        if in_flight == 0 {
            for id in 0..calls {
                check(id, ctx.send(&request(id)).await.ok().as_deref());
            }
        } else {
            let batch = ctx.send_batch((0..calls).map(request)).in_flight(in_flight).within(PATIENCE);
            batch.for_each(|place, outcome| check(place as u64, outcome.ok())).await;
        }
        Ok(Took { nanoseconds: start.elapsed().as_nanos() as u64, wrong })
    }
}

/// An engine with the driver on shard 0 and the adder on the last shard.
fn engine(shards: u16) -> Engine {
    Engine::builder()
        .shards(usize::from(shards))
        .idle(Idle::Spin)
        .service_on([0], |_| Driver, |routes| routes.request_async(Driver::drive))
        .service_on([shards - 1], |_| Adder, |routes| routes.request(Adder::add))
        .start()
        .expect("an engine starts here")
}

fn drive(criterion: &mut Criterion, name: &str, shards: u16, in_flight: u32) {
    let engine = engine(shards);
    let client = engine.client();
    let mut group = criterion.benchmark_group("dispatch");
    group.throughput(Throughput::Elements(1));
    group.bench_function(name, |bencher| {
        bencher.iter_custom(|calls| {
            let took = pollster::block_on(client.send(&Drive { calls, in_flight }).within(PATIENCE));
            let took = took.expect("the driver answers");
            assert_eq!(took.wrong, 0, "every reply is the answer to its request");
            Duration::from_nanos(took.nanoseconds.to_native())
        });
    });
}

/// From a foreign thread, one after the other: mostly what waking a thread costs.
fn client(criterion: &mut Criterion) {
    let engine = engine(1);
    let client = engine.client();
    criterion.bench_function("dispatch/client/1", |bencher| {
        bencher.iter(|| {
            pollster::block_on(client.send(&Small { id: 1, value: 1 })).map(|reply| reply.value.to_native())
        });
    });
}

fn dispatch(criterion: &mut Criterion) {
    drive(criterion, "same-shard", 1, 0);
    drive(criterion, "cross-shard/1", 2, 0);
    drive(criterion, "cross-shard/batch-64", 2, 64);
    drive(criterion, "cross-shard/batch-1024", 2, 1_024);
    client(criterion);
}

criterion_group!(suite, dispatch);
criterion_main!(suite);
