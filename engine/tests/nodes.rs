//! What an engine says of the nodes of its cluster, and how those who watch them come to an end.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed helper is a failed test")]

mod common;

use std::thread;
use std::time::Duration;

use catga::prelude::*;
use catga::{List, NodeState, Runtime};

use common::log::Log;
use common::{address, eventually};

const SOON: Duration = Duration::from_secs(20);

#[request(reply = Echo)]
struct Ask {
    number: u64,
}
#[message]
struct Echo {
    number: u64,
}

struct Echoes;

impl Echoes {
    fn ask(&mut self, ask: &Archived<Ask>, _: &Context) -> Result<Echo, Fault> {
        Ok(Echo { number: ask.number.to_native() })
    }
}

fn engine(list: Option<List>) -> Engine {
    let builder = Engine::builder().shards(2).runtime(Runtime::Epoll);
    let builder = builder.service(|_| Echoes, |routes| routes.request(Echoes::ask));
    match list {
        Some(list) => builder.cluster(list).start().unwrap(),
        None => builder.start().unwrap(),
    }
}

#[test]
fn an_engine_knows_itself_from_the_start() {
    let engine = engine(Some(List::of(Vec::<String>::new()).node("a", "127.0.0.1:0")));
    let nodes = engine.nodes();
    let own = nodes.own().unwrap();
    assert_eq!((own.node.id.as_str(), own.state, own.node.shards), ("a", NodeState::Up, 2));
    assert_eq!(own.node.endpoint, engine.endpoint().unwrap());
    assert_eq!(nodes.to_string(), format!("a at {}, 2 shards, 1 message, up\n", own.node.endpoint));
    assert!(!nodes.is_forming(), "there is nobody to wait for");
    assert_eq!(engine.stats().discovery.labelled()[0], ("views", 1));
}

#[test]
fn the_end_of_the_engine_ends_every_watch() {
    let lists = [
        None,
        Some(List::of(["b=127.0.0.1:1"]).node("a", "127.0.0.1:0")),
        // An address is a name too, and asks no server.
        Some(List::dns("127.0.0.1:1").node("a", "127.0.0.1:0")),
    ];
    for list in lists {
        let engine = engine(list);
        let (mut blocking, mut awaiting, mut late) = (engine.watch(), engine.watch(), engine.watch());
        let threads = [
            thread::spawn(move || while blocking.next_within(SOON).is_some() {}),
            thread::spawn(move || while pollster::block_on(awaiting.next()).is_some() {}),
        ];
        engine.stop(SOON);
        for thread in threads {
            thread.join().unwrap();
        }
        while late.next_within(SOON).is_some() {}
        assert!(late.is_ended());
    }
}

#[test]
fn an_engine_without_a_cluster_has_no_nodes() {
    let engine = engine(None);
    assert!(engine.nodes().is_empty());
    assert_eq!((engine.nodes().epoch(), engine.stats().discovery.views), (0, 0));
}

#[test]
fn a_list_that_is_wrong_starts_nothing_and_says_which_entry() {
    let list = List::of(["b=unix:relative.sock"]).node("a", "127.0.0.1:0");
    let error = Engine::builder().shards(1).cluster(list).start().unwrap_err();
    assert!(error.to_string().contains("b=unix:relative.sock"), "{error}");
}

/// A node `b` that knows of these.
fn another_b(targets: &[String]) -> Engine {
    engine(Some(List::of(targets).node("b", "127.0.0.1:0")))
}

fn shared(engine: &Engine) -> u64 {
    engine.stats().discovery.ids_shared
}

#[test]
fn two_nodes_of_one_id_are_an_error_in_two_logs_and_a_restart_is_none() {
    let log = Log::default();
    tracing::subscriber::set_global_default(log.clone()).unwrap();
    let first = another_b(&[]);
    let at = address(&first);
    let a = engine(Some(List::of([format!("b={at}")]).node("a", "127.0.0.1:0")));
    let knows = |engine: &Engine| engine.nodes().find("b").map(|member| member.node.incarnation);
    eventually("a knows the first b", || knows(&a).is_some());
    // It is started again, elsewhere: for a moment both are there.
    let before = knows(&a);
    let second = another_b(&[format!("a={}", address(&a))]);
    eventually("a knows the second b", || knows(&a) > before);
    first.stop(Duration::from_millis(100));
    thread::sleep(Duration::from_millis(3_500));
    assert_eq!((shared(&a), shared(&second)), (0, 0), "a restart");
    // And now a third, while the second stays.
    let before = knows(&a);
    let third = another_b(&[format!("a={}", address(&a))]);
    eventually("a knows the third b", || knows(&a) > before);
    eventually("both sides have noticed", || shared(&a) == 1 && shared(&second) == 1);
    let (lower, higher) = (before.unwrap().to_string(), knows(&a).unwrap().to_string());
    let endpoints = [&second, &third].map(|engine| engine.endpoint().unwrap().to_string());
    let of_a = log.find(|line| line.contains("two nodes have the id b")).expect("a says so");
    for part in [&lower, &higher, &endpoints[0], &endpoints[1]] {
        assert!(of_a.contains(part), "{part} is not in: {of_a}");
    }
    let of_b = log.find(|line| line.contains("the id b of this one")).expect("the second says so");
    for part in [&lower, &endpoints[0], &a.endpoint().unwrap().to_string()] {
        assert!(of_b.contains(part), "{part} is not in: {of_b}");
    }
    let opened = |line: &str| line.contains("lane open") && line.contains(&format!("incarnation={lower} "));
    let ended = |line: &str| line.contains("a lane has ended") && line.contains("superseded");
    let before = (log.count(opened), log.count(ended));
    thread::sleep(Duration::from_millis(2_500));
    assert_eq!((shared(&a), shared(&second), shared(&third)), (1, 1, 0), "once");
    // The second goes on to come, a second or two after it was last turned away; both sides log that.
    let times = log.count(ended) - before.1;
    assert!(times <= 8, "{times} lines");
    eventually("it has come again", || log.count(ended) > before.1);
    assert_eq!(log.count(opened), before.0, "what is not kept is not open");
}
