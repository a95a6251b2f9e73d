//! What an engine says of the nodes of its cluster, and how those who watch them come to an end.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed helper is a failed test")]

use std::thread;
use std::time::Duration;

use catga::prelude::*;
use catga::{List, NodeState, Runtime};

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
