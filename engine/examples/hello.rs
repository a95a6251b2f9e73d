//! The first service: one request, one reply, on every core of this machine.
//!
//! `cargo run --release --example hello`; with `-- --stats` it ends with what the shards have counted.

use std::time::Duration;

use catga::prelude::*;

#[request(reply = Greeting)]
struct Hello {
    name: String,
}

#[message]
struct Greeting {
    text: String,
    greeted_before: u64,
}

#[derive(Default)]
struct Greeter {
    greeted: u64, // one instance for each shard: no lock, no Arc
}

impl Greeter {
    fn greet(&mut self, hello: &Archived<Hello>, ctx: &Context) -> Result<Greeting, Fault> {
        self.greeted += 1;
        let text = format!("Hello {}, from {}.", hello.name, ctx.shard());
        Ok(Greeting { text, greeted_before: self.greeted - 1 })
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let engine = Engine::builder()
        .service(|_shard| Greeter::default(), |routes| routes.request(Greeter::greet))
        .start()?;
    println!("{} shards, waiting in {}", engine.shards(), engine.runtime());
    let client = engine.client(); // Clone + Send + Sync: for any thread and any runtime
    for name in ["Ada", "Grace", "Edsger"] {
        let reply = pollster::block_on(client.send(&Hello { name: name.into() }))?;
        println!("{} ({} before)", reply.text, reply.greeted_before);
    }
    let report = engine.stop(Duration::from_millis(100));
    if std::env::args().any(|word| word == "--stats") {
        for (shard, counters) in report.stats.shards.iter().enumerate() {
            for (label, count) in counters.labelled().into_iter().filter(|(_, count)| *count > 0) {
                println!("shard {shard} {label} {count}");
            }
        }
    }
    Ok(())
}
