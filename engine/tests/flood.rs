//! A node that is flooded with connections until it has no descriptor left: lanes that it has go on, and when the flood is
//! over it takes connections again.
//!
//! The node runs in a process of its own, with a low limit of open files: the limit is a process's, and those who flood
//! it need descriptors of their own. The test starts this binary again for that; each line on the child's standard input
//! asks for its counters.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed helper is a failed test")]

mod common;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io::{BufRead, BufReader, Lines, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use catga::prelude::*;
use catga::{Endpoint, List};
use common::{Directory, eventually};
use pollster::block_on;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Set in the process that is the flooded node: its endpoint.
const FLOODED: &str = "CATGA_TEST_FLOODED";
/// What the child's lines begin with; the test harness prints some of its own.
const MARK: &str = "flooded node:";
/// Its limit of open files: room for the engine and some dozens of connections.
const FILES: u64 = 64;
const CONNECTIONS: usize = 300;
const LONG: Duration = Duration::from_secs(30);

#[request(reply = Twice)]
struct Double {
    number: u32,
}
#[message]
struct Twice {
    number: u32,
}

struct Doubler;
impl Doubler {
    fn double(&mut self, double: &Archived<Double>, _: &Context) -> Result<Twice, Fault> {
        Ok(Twice { number: double.number.to_native() * 2 })
    }
}

/// The flooded node, in this process. Ends when its standard input does.
fn be_flooded(endpoint: &str) {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(FILES), ..limit }).unwrap();
    let node = Engine::builder()
        .shards(1)
        .service(|_| Doubler, |routes| routes.request(Doubler::double))
        .cluster(List::of(Vec::<String>::new()).node("b", endpoint))
        .start()
        .unwrap();
    println!("\n{MARK} {}", node.endpoint().unwrap());
    for _ in std::io::stdin().lines() {
        let stats = node.stats();
        let counters =
            stats.shards[0].labelled().into_iter().map(|(label, count)| format!("{label}={count}"));
        println!("\n{MARK} {}", counters.collect::<Vec<_>>().join(" "));
    }
}

/// The flooded node, as the test holds it.
struct Node {
    child: Child,
    ask: Option<ChildStdin>,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Node {
    /// Runs `test` again as the node, and says where it listens.
    fn start(test: &str, endpoint: &str) -> (Self, Endpoint) {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let command = command.args(["--exact", test, "--nocapture"]).env(FLOODED, endpoint);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (ask, said) = (child.stdin.take(), child.stdout.take().unwrap());
        let mut node = Self { child, ask, lines: BufReader::new(said).lines() };
        let endpoint = node.said().parse().unwrap();
        (node, endpoint)
    }

    fn said(&mut self) -> String {
        self.lines.find_map(|line| Some(line.unwrap().strip_prefix(MARK)?.trim().to_owned())).unwrap()
    }

    fn counters(&mut self) -> BTreeMap<String, u64> {
        self.ask.as_mut().unwrap().write_all(b"\n").unwrap();
        let counters = self.said();
        let pairs = counters.split(' ').map(|pair| pair.split_once('=').unwrap());
        pairs.map(|(label, count)| (label.to_owned(), count.parse().unwrap())).collect()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.ask = None;
        let ended = self.child.wait().unwrap();
        assert!(ended.success() || std::thread::panicking(), "{ended}");
    }
}

/// A node without services that keeps a lane to the flooded one.
fn caller(id: &str, at: &Endpoint) -> Engine {
    let list = List::of([format!("b={at}")]).node(id, "127.0.0.1:0");
    Engine::builder().shards(1).cluster(list).start().unwrap()
}

fn is_answered(caller: &Engine, number: u32) -> bool {
    let outcome = block_on(caller.client().send(&Double { number }).within(LONG));
    outcome.is_ok_and(|twice| twice.number == number * 2)
}

/// A shard that something wakes again and again, or that never sleeps, does tens of thousands of turns in this time.
fn comes_to_rest(node: &mut Node) {
    eventually("the node has come to rest", || {
        let before = node.counters()["turns"];
        std::thread::sleep(Duration::from_millis(100));
        node.counters()["turns"] - before < 2_000
    });
}

/// Floods a node with connections that say nothing.
fn flood<C, E: Debug>(mut node: Node, at: &Endpoint, connect: impl Fn() -> Result<C, E>) {
    let a = caller("a", at);
    let calls = |count| (0..count).for_each(|number| assert!(is_answered(&a, number), "call {number}"));
    eventually("calls pass", || is_answered(&a, 1));
    let lanes = node.counters()["lanes_opened"];
    let mut silent: Vec<C> = Vec::new();
    // Wave after wave: calls are made while connections come, and while others go.
    eventually("the node has no descriptor left, and says so", || {
        silent.clear();
        silent.extend((0..CONNECTIONS).map(|_| connect().unwrap()));
        calls(20);
        node.counters()["accepts_failed"] >= 1_000
    });
    let counters = node.counters();
    assert!(counters["lanes_refused"] >= counters["accepts_failed"], "each of them was closed at once");
    calls(200);
    comes_to_rest(&mut node);
    assert_eq!(node.counters()["lanes_opened"], lanes, "the lane was there before the flood");
    drop(silent);
    eventually("connections are taken again", || is_answered(&caller("c", at), 1));
    calls(20);
    comes_to_rest(&mut node);
}

#[test]
fn a_flood_over_tcp_stalls_no_lane_and_leaves_the_node_as_it_was() {
    if let Ok(endpoint) = std::env::var(FLOODED) {
        return be_flooded(&endpoint);
    }
    let test = "a_flood_over_tcp_stalls_no_lane_and_leaves_the_node_as_it_was";
    let (node, at) = Node::start(test, "127.0.0.1:0");
    flood(node, &at, || TcpStream::connect(at.address().unwrap()));
}

#[test]
fn a_flood_in_the_file_system_stalls_no_lane_and_leaves_the_node_as_it_was() {
    if let Ok(endpoint) = std::env::var(FLOODED) {
        return be_flooded(&endpoint);
    }
    let test = "a_flood_in_the_file_system_stalls_no_lane_and_leaves_the_node_as_it_was";
    let directory = Directory::new("flood");
    let path = directory.join("b.sock");
    let (node, at) = Node::start(test, &format!("unix:{}", path.display()));
    flood(node, &at, || UnixStream::connect(&path));
}
