//! Calls between the shards of one engine, and from outside.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed helper is a failed test")]

use std::time::Duration;

use catga::prelude::*;

#[request(reply = Doubled)]
struct Double {
    value: u64,
}
#[message]
struct Doubled {
    value: u64,
}

/// Asks a shard to make many calls, and reports how many came back right.
#[request(reply = Report)]
struct Drive {
    calls: u64,
    batch: bool,
}
#[message]
struct Report {
    right: u64,
    wrong: u64,
}

struct Doubler;
impl Doubler {
    fn double(&mut self, ask: &Archived<Double>, _: &Context) -> Result<Doubled, Fault> {
        Ok(Doubled { value: ask.value.to_native() * 2 })
    }
}

struct Driver;
impl Driver {
    async fn drive(_: &State<Self>, ask: &Archived<Drive>, ctx: &Context) -> Result<Report, Fault> {
        let calls = ask.calls.to_native();
        let (mut right, mut wrong) = (0, 0);
        if ask.batch {
            ctx.send_batch((0..calls).map(|value| Double { value }))
                .for_each(|place, outcome| match outcome {
                    Ok(reply) if reply.value.to_native() == place as u64 * 2 => right += 1,
                    _ => wrong += 1,
                })
                .await;
        } else {
            for value in 0..calls {
                match ctx.send(&Double { value }).await {
                    Ok(reply) if reply.value.to_native() == value * 2 => right += 1,
                    _ => wrong += 1,
                }
            }
        }
        Ok(Report { right, wrong })
    }
}

fn drive(driver: u16, doubler: u16, calls: u64, batch: bool, runtime: catga::Runtime) -> (u64, u64) {
    let engine = Engine::builder()
        .shards(2)
        .runtime(runtime)
        .service_on([doubler], |_| Doubler, |routes| routes.request(Doubler::double))
        .service_on([driver], |_| Driver, |routes| routes.request_async(Driver::drive))
        .start()
        .unwrap();
    let call = engine.client();
    let report =
        pollster::block_on(call.send(&Drive { calls, batch }).within(Duration::from_secs(60))).unwrap();
    (report.right.to_native(), report.wrong.to_native())
}

#[test]
fn calls_on_one_shard_come_back() {
    assert_eq!(drive(0, 0, 10_000, false, catga::Runtime::Auto), (10_000, 0));
    assert_eq!(drive(0, 0, 10_000, true, catga::Runtime::Epoll), (10_000, 0));
}

#[test]
fn calls_between_shards_come_back() {
    assert_eq!(drive(0, 1, 10_000, false, catga::Runtime::Auto), (10_000, 0));
    assert_eq!(drive(1, 0, 300_000, true, catga::Runtime::Epoll), (300_000, 0));
}
