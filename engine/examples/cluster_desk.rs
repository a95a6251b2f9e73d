//! The order desk on many nodes: each node is a process, and a load of orders goes to all of them.
//!
//! ```text
//! scripts/cluster.sh          three nodes under load; one is killed, and comes back
//!
//! cluster_desk node --id a --listen 127.0.0.1:5001 --nodes a=127.0.0.1:5001,b=127.0.0.1:5002,c=127.0.0.1:5003
//! cluster_desk load --nodes a=127.0.0.1:5001,b=127.0.0.1:5002,c=127.0.0.1:5003 --rate 20000 --seconds 20
//! cluster_desk ports 3        as many free endpoints of this machine
//! ```
//!
//! A `node` serves orders until SIGTERM or SIGINT, and then lets end what it has. The `load` is a node without a desk: what
//! it sends goes to nodes that have one. It prints a line a second, and ends with status 0 only if orders were placed, each
//! call had one outcome, and each reply was right. Messages and ledger are those of `order_desk`.

#[path = "order_desk/desk.rs"]
#[allow(dead_code, reason = "the books are closed in `order_desk` only")]
mod desk;
#[path = "cluster_desk/load.rs"]
pub(crate) mod load;
#[path = "order_desk/orders.rs"]
#[allow(dead_code, reason = "files are read and added up in `order_desk` only")]
mod orders;

use std::collections::HashMap;
use std::error::Error;
use std::net::TcpListener;
use std::process::ExitCode;
use std::time::Duration;

use catga::prelude::*;
use catga::{Builder, List};

use desk::Ledger;
use load::{Outcome, Plan, Tally};

const USAGE: &str = "usage: cluster_desk node --id ID --listen ADDRESS:PORT --nodes ID=ADDRESS:PORT,...
       cluster_desk load --nodes ID=ADDRESS:PORT,... [--id ID] [--rate ORDERS_A_SECOND] [--seconds SECONDS]
       cluster_desk ports COUNT";

// ---- the nodes ----------------------------------------------------------------------------------------------------

/// A node of the cluster: one shard, on a core of its own as far as there are cores.
fn member(id: &str, listen: &str, nodes: &[String]) -> Result<Builder, StartError> {
    // Every process would begin with the same core: the place in the list tells them apart.
    let place = nodes.iter().position(|node| node.split('=').next() == Some(id)).unwrap_or(nodes.len());
    let cores = Engine::builder().placement()?;
    let core = cores.shards()[place % cores.shards().len()].core;
    let cluster = List::of(nodes.to_vec()).node(id, listen);
    Ok(Engine::builder().cores([core]).cluster(cluster))
}

/// A node that takes orders.
fn desk(id: &str, listen: &str, nodes: &[String]) -> Result<Engine, StartError> {
    let name = id.to_owned();
    member(id, listen, nodes)?
        .service(
            move |_shard| Ledger::of(&name),
            |routes| routes.request(Ledger::place).request(Ledger::totals),
        )
        .start()
}

/// A node that takes none: what it sends goes to those that do.
pub(crate) fn caller(id: &str, nodes: &[String]) -> Result<Engine, StartError> {
    member(id, "127.0.0.1:0", nodes)?.start()
}

fn node(mut options: Options) -> Result<ExitCode, Box<dyn Error>> {
    let (id, listen, nodes) = (options.take("id")?, options.take("listen")?, options.nodes()?);
    options.end()?;
    let engine = desk(&id, &listen, &nodes)?;
    println!("node {id} listens on {listen}");
    let report = engine.run()?;
    println!("node {id} took {} orders; {report}", report.stats.sum(|shard| shard.handled));
    Ok(ExitCode::SUCCESS)
}

/// Endpoints that were free a moment ago, all at once.
fn ports(count: &str) -> Result<ExitCode, Box<dyn Error>> {
    let count: usize = count.parse().map_err(|_| format!("`{count}` is not a number\n{USAGE}"))?;
    let listeners = (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<Vec<_>, _>>()?;
    for listener in &listeners {
        println!("{}", listener.local_addr()?);
    }
    Ok(ExitCode::SUCCESS)
}

// ---- the load -----------------------------------------------------------------------------------------------------

fn load(mut options: Options) -> Result<ExitCode, Box<dyn Error>> {
    let (id, nodes) = (options.take("id").unwrap_or_else(|_| "load".into()), options.nodes()?);
    let (rate, seconds) = (options.number("rate", 20_000)?, options.number("seconds", 20)?);
    options.end()?;
    let engine = caller(&id, &nodes)?;
    let plan = Plan {
        name: std::process::id().to_string(),
        rate,
        within: Duration::from_millis(500),
        orders: u64::from(rate) * u64::from(seconds),
        look: Duration::from_secs(1),
    };
    println!("{}", header(&nodes));
    let mut at = Duration::ZERO;
    let tally = load::run(&engine.client(), &plan, |since| {
        at += since.window;
        println!("{}", row(since, at, &nodes));
        true
    });
    println!("\n{}", summary(&tally));
    Ok(if tally.is_right() && tally.count(Outcome::Replied) > 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn header(nodes: &[String]) -> String {
    let mut line = format!("{:>6}{:>11}{:>9}{:>9}", "s", "replies/s", "p50 ms", "p99 ms");
    Outcome::NAMES[1..].iter().for_each(|name| line += &format!("{name:>10}"));
    line += " |";
    ids(nodes).for_each(|id| line += &format!("{:>9}", format!("by {id}")));
    line
}

/// What happened since the line before, `at` so long after the start.
fn row(since: &Tally, at: Duration, nodes: &[String]) -> String {
    let rate = since.count(Outcome::Replied) as f64 / since.window.as_secs_f64();
    let mut latencies = since.latencies_us.clone();
    latencies.sort_unstable();
    let mut line = format!(
        "{:>6.1}{rate:>11.0}{:>9}{:>9}",
        at.as_secs_f64(),
        percentile(&latencies, 50),
        percentile(&latencies, 99)
    );
    since.outcomes[1..].iter().for_each(|count| line += &format!("{count:>10}"));
    line += " |";
    ids(nodes).for_each(|id| line += &format!("{:>9}", since.of_desk(id)));
    line
}

/// Of sorted microseconds, in milliseconds.
fn percentile(sorted_us: &[u32], percent: usize) -> String {
    match sorted_us.get((sorted_us.len() * percent / 100).min(sorted_us.len().saturating_sub(1))) {
        Some(us) => format!("{:.2}", f64::from(*us) / 1_000.0),
        None => "-".into(),
    }
}

fn ids(nodes: &[String]) -> impl Iterator<Item = &str> {
    nodes.iter().filter_map(|node| node.split('=').next())
}

fn summary(tally: &Tally) -> String {
    let mut text = format!("{} calls in {:.1} s:", tally.sent, tally.window.as_secs_f64());
    for (name, count) in Outcome::NAMES.iter().zip(tally.outcomes) {
        text += &format!(" {count} {name},");
    }
    text += &format!(" {} wrong replies\n", tally.wrong);
    for (reason, count) in &tally.reasons {
        text += &format!("{count:>9} {reason}\n");
    }
    let verdict = match (tally.is_right(), tally.count(Outcome::Replied)) {
        (true, 0) => "NO ORDER WAS PLACED",
        (true, _) => "every call had exactly one outcome, and every reply was right",
        (false, _) => "CALLS WITHOUT AN OUTCOME, OR WRONG REPLIES",
    };
    text + verdict
}

// ---- the command line ---------------------------------------------------------------------------------------------

/// `--name value`, each once.
struct Options(HashMap<String, String>);

impl Options {
    fn of(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = HashMap::new();
        while let Some(word) = words.next() {
            let name = word.strip_prefix("--").ok_or_else(|| format!("`{word}` is no option\n{USAGE}"))?;
            let value = words.next().ok_or_else(|| format!("`{word}` needs a value\n{USAGE}"))?;
            if options.insert(name.to_owned(), value).is_some() {
                return Err(format!("`{word}` is given twice\n{USAGE}"));
            }
        }
        Ok(Self(options))
    }

    fn take(&mut self, name: &str) -> Result<String, String> {
        self.0.remove(name).ok_or_else(|| format!("`--{name}` is missing\n{USAGE}"))
    }

    fn nodes(&mut self) -> Result<Vec<String>, String> {
        Ok(self.take("nodes")?.split(',').map(str::to_owned).collect())
    }

    fn number(&mut self, name: &str, default: u32) -> Result<u32, String> {
        let Some(text) = self.0.remove(name) else { return Ok(default) };
        let number = text.parse().ok().filter(|number| *number > 0);
        number.ok_or_else(|| format!("`--{name} {text}` is not a whole number above 0\n{USAGE}"))
    }

    /// Nothing may be left.
    fn end(self) -> Result<(), String> {
        match self.0.keys().next() {
            Some(name) => Err(format!("there is no option `--{name}` here\n{USAGE}")),
            None => Ok(()),
        }
    }
}

/// Does what the words of a command line say.
pub(crate) fn command(words: impl IntoIterator<Item = String>) -> Result<ExitCode, Box<dyn Error>> {
    let mut words = words.into_iter();
    match (words.next().as_deref(), words) {
        (Some("node"), options) => node(Options::of(options)?),
        (Some("load"), options) => load(Options::of(options)?),
        (Some("ports"), mut words) => ports(&words.next().unwrap_or_default()),
        _ => Err(USAGE.into()),
    }
}

fn main() -> ExitCode {
    command(std::env::args().skip(1)).unwrap_or_else(|error| {
        eprintln!("cluster_desk: {error}");
        ExitCode::FAILURE
    })
}
