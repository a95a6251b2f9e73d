//! A long stream of requests, 1,024 in flight: from one shard to another, or from one node to another.
//!
//! `cargo run --release --example stream -- local 1000000`, or `lane` for two nodes. What `scripts/syscalls.sh` watches.

use std::time::{Duration, Instant};

use catga::List;
use catga::prelude::*;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[request(reply = Doubled)]
struct Double {
    value: u64,
}

#[message]
struct Doubled {
    value: u64,
}

/// Asks a shard to send so many requests.
#[request(reply = Report)]
struct Send {
    requests: u64,
}

#[message]
struct Report {
    right: u64,
}

struct Doubler;

impl Doubler {
    fn double(&mut self, ask: &Archived<Double>, _: &Context) -> Result<Doubled, Fault> {
        Ok(Doubled { value: ask.value.to_native() * 2 })
    }
}

struct Sender;

impl Sender {
    async fn send(_: &State<Self>, send: &Archived<Send>, ctx: &Context) -> Result<Report, Fault> {
        let mut right = 0;
        ctx.send_batch((0..send.requests.to_native()).map(|value| Double { value }))
            .in_flight(1024)
            .for_each(|place, outcome| {
                right += u64::from(outcome.is_ok_and(|reply| reply.value.to_native() == 2 * place as u64));
            })
            .await;
        Ok(Report { right })
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut words = std::env::args().skip(1);
    let over_a_lane = match words.next().as_deref() {
        Some("local") => false,
        Some("lane") => true,
        _ => return Err("say `local` or `lane`, and how many requests".into()),
    };
    let requests: u64 = words.next().ok_or("say how many requests")?.parse()?;
    let sender = Engine::builder().deadline(Duration::from_secs(600));
    let (engine, _other) = if over_a_lane {
        let other = Engine::builder()
            .shards(1)
            .service(|_shard| Doubler, |routes| routes.request(Doubler::double))
            .cluster(List::of(Vec::<String>::new()).node("doubler", "127.0.0.1:0"))
            .start()?;
        let endpoint = other.endpoint().ok_or("a node has an endpoint")?;
        let engine = sender
            .shards(1)
            .service(|_shard| Sender, |routes| routes.request_async(Sender::send))
            .cluster(List::of([format!("doubler={endpoint}")]).node("sender", "127.0.0.1:0"))
            .start()?;
        (engine, Some(other))
    } else {
        let engine = sender
            .shards(2)
            .service_on([0], |_shard| Sender, |routes| routes.request_async(Sender::send))
            .service_on([1], |_shard| Doubler, |routes| routes.request(Doubler::double))
            .start()?;
        (engine, None)
    };
    let begun = Instant::now();
    let report = pollster::block_on(engine.client().send(&Send { requests }))?;
    let right = report.right.to_native();
    println!("{right} of {requests} in {:?}", begun.elapsed());
    if right == requests { Ok(()) } else { Err("some were wrong".into()) }
}
