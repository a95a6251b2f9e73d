//! Every scenario, in the order of the table: one line each. A new row of the table is a new line here.

use crate::engine::driver::How;
use crate::engine::lane::{self, Lane};
use crate::engine::local::{AtRest, FromRest, Local};
use crate::engine::orders::{self, Orders};
use crate::engine::whole::{self, Memory, Start};
use crate::floor::locked::Locked;
use crate::floor::ring::Ring;
use crate::floor::tcp::{self, Tcp};
use crate::options::Options;
use crate::rest::Wake;
use crate::rivals::Row;
use crate::scenario::{Broken, Pace, Scenario};

/// Of the row about the machine's CPU, whatever the reader's rate.
const CPU_RATE_PER_S: u64 = 500_000;

/// What this program can run: its own scenarios, and rivals if it was built with some.
#[derive(Default)]
pub(crate) struct Catalog {
    /// Of the program that was built with them.
    pub(crate) rivals: Vec<Row>,
}

impl Catalog {
    /// All scenarios.
    pub(crate) fn scenarios(self, options: &Options) -> Vec<Box<dyn Scenario>> {
        scenarios(options).into_iter().chain(self.rivals.into_iter().map(Row::into_scenario)).collect()
    }

    /// Their names, one a line.
    pub(crate) fn names(self, options: &Options) -> String {
        self.scenarios(options).iter().map(|scenario| format!("{}\n", scenario.facts().name)).collect()
    }
}

/// Our own, with the reader's rate and payload.
fn scenarios(options: &Options) -> Vec<Box<dyn Scenario>> {
    let payload = options.payload_bytes;
    let closed = |in_flight| Pace::Closed { in_flight };
    let open = Pace::Open { rate_per_s: options.rate_per_s };
    vec![
        Box::new(Ring::new("floor/ring/1", 1)),
        Box::new(Ring::new("floor/ring/64", 64)),
        Box::new(Ring::new("floor/ring/1024", 1_024)),
        Box::new(Wake),
        Box::new(Tcp::spinning("floor/tcp/1", closed(1), payload)),
        Box::new(Tcp::spinning("floor/tcp/64", closed(64), payload)),
        Box::new(Tcp::spinning("floor/tcp/1024", closed(1_024), payload)),
        Box::new(Tcp::spinning("floor/tcp/open", open, payload)),
        Box::new(Tcp::blocking("floor/tcp/block/1", payload)),
        // About a megabyte in flight each.
        Box::new(Tcp::spinning("floor/tcp/payload/1024", closed(1_024), Some(1_024))),
        Box::new(Tcp::spinning("floor/tcp/payload/16384", closed(64), Some(16_384))),
        Box::new(Locked),
        Box::new(Local::same_shard("local/same-shard")),
        Box::new(Local::cross_shard("local/cross-shard/1", How::Futures, 1, "floor/ring/1")),
        Box::new(Local::cross_shard("local/cross-shard/64", How::Futures, 64, "floor/ring/64")),
        Box::new(Local::cross_shard("local/cross-shard/1024", How::Futures, 1_024, "floor/ring/1024")),
        Box::new(Local::cross_shard("local/cross-shard/batch", How::Batch, 1_024, "floor/ring/1024")),
        Box::new(Local::client("local/client/1", 1, "floor/ring/1")),
        Box::new(Local::client("local/client/64", 64, "floor/ring/64")),
        Box::new(Local::client("local/client/1024", 1_024, "floor/ring/1024")),
        Box::new(FromRest),
        Box::new(AtRest),
        Box::new(Start),
        Box::new(Memory { name: "local/memory/1", shards: 1 }),
        Box::new(Memory { name: "local/memory/2", shards: 2 }),
        Box::new(Lane::spinning("lane/1", How::Futures, closed(1), "floor/tcp/1", payload)),
        Box::new(Lane::spinning("lane/64", How::Futures, closed(64), "floor/tcp/64", payload)),
        Box::new(Lane::spinning("lane/1024", How::Futures, closed(1_024), "floor/tcp/1024", payload)),
        Box::new(Lane::spinning("lane/batch", How::Batch, closed(1_024), "floor/tcp/1024", payload)),
        Box::new(Lane::spinning("lane/open", How::Futures, open, "floor/tcp/open", payload)),
        Box::new(Lane::parked("lane/park/1", closed(1), Some("floor/tcp/block/1"), payload)),
        Box::new(Lane::parked("lane/cpu", Pace::Open { rate_per_s: CPU_RATE_PER_S }, None, payload)),
        Box::new(Lane::payload("lane/payload/1024", How::BatchOf, 1_024, 1_024, "floor/tcp/payload/1024")),
        Box::new(Lane::payload(
            "lane/payload/1024/futures",
            How::Futures,
            1_024,
            1_024,
            "floor/tcp/payload/1024",
        )),
        Box::new(Lane::payload("lane/payload/16384", How::BatchOf, 64, 16_384, "floor/tcp/payload/16384")),
        Box::new(Orders::across_nodes(options.orders.clone())),
        Box::new(Orders::new(options.orders.clone())),
    ]
}

/// The servers that scenarios start as their second process.
pub(crate) fn serve(kind: &str, arguments: &[String]) -> Result<(), Broken> {
    match kind {
        tcp::SERVE => tcp::serve(arguments),
        whole::SERVE => whole::serve(arguments),
        lane::SERVE => lane::serve(arguments),
        orders::SERVE => orders::serve(arguments),
        _ => Err(Broken::Peer(format!("there is no server '{kind}'"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_floors_exist() {
        let all: Vec<_> = scenarios(&Options::default()).iter().map(|scenario| scenario.facts()).collect();
        for (index, facts) in all.iter().enumerate() {
            assert!(
                all[..index].iter().all(|earlier| earlier.name != facts.name),
                "{} is there twice",
                facts.name
            );
            let floor = facts.floor.map(|floor| all.iter().find(|other| other.name == floor).expect(floor));
            assert!(floor.is_none_or(|floor| floor.floor.is_none()), "{}: a floor has no floor", facts.name);
        }
    }

    #[test]
    fn an_unknown_server_is_refused() {
        assert!(serve("nothing", &[]).is_err());
    }
}
