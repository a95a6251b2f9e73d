//! Nodes of one cluster that mean different things by one message: what a call ends as where one node only may be asked.
#![allow(missing_docs, reason = "the macros' types are public")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed helper is a failed test")]

mod common;

use std::time::Duration;

use catga::prelude::*;
use catga::{List, NodeId, NodeState, NotSent, Route};
use common::{address, eventually};
use pollster::block_on;

#[request(key = key)]
struct Put {
    key: u64,
}

mod elsewhere {
    use catga::prelude::*;

    #[request(key = key)]
    pub(crate) struct Put {
        pub(crate) key: u64,
        pub(crate) text: String,
    }
    pub(crate) struct Other;
    impl Other {
        pub(crate) fn put(&mut self, put: &Archived<Put>, _: &Context) -> Result<(), Fault> {
            Err(Fault::new(put.text.as_str()))
        }
    }
}

struct Same;
impl Same {
    fn put(&mut self, _: &Archived<Put>, _: &Context) -> Result<(), Fault> {
        Ok(())
    }
}

const LONG: Duration = Duration::from_secs(20);

fn alone(id: &str) -> List {
    List::of(Vec::<String>::new()).node(id, "127.0.0.1:0")
}

#[test]
fn the_one_node_that_may_be_asked_is_why_a_call_was_not_sent() {
    let same = Engine::builder().shards(1).cluster(alone("same"));
    let same = same.service(|_| Same, |routes| routes.request(Same::put)).start().unwrap();
    let other = Engine::builder().shards(1).cluster(alone("other"));
    let other =
        other.service(|_| elsewhere::Other, |routes| routes.request(elsewhere::Other::put)).start().unwrap();
    let none = Engine::builder().shards(1).cluster(alone("none")).start().unwrap();
    let all = [("same", &same), ("other", &other), ("none", &none)];
    let list = all.map(|(id, node)| format!("{id}={}", address(node)));
    let caller = Engine::builder().shards(1).cluster(List::of(list).node("caller", "127.0.0.1:0")).start();
    let caller = caller.unwrap();
    eventually("all are up", || {
        let nodes = caller.nodes();
        nodes.iter().filter(|node| node.state == NodeState::Up).count() == 4
    });
    let not_sent = |reason| Err(CallError::NotSent(reason));
    let put = |key, route| block_on(caller.client().send(&Put { key }).route(route).within(LONG)).map(drop);
    let at = |id: &str| put(1, Route::Node(NodeId::new(id).unwrap()));
    assert_eq!(at("same"), Ok(()));
    assert_eq!(at("other"), not_sent(NotSent::Layout));
    assert_eq!(at("none"), not_sent(NotSent::NoHandler));
    assert_eq!(at("caller"), not_sent(NotSent::NoHandler), "it has no handler itself");
    // A key's owner is chosen by who handles the message, whatever it means by it: nobody else may take it.
    let owned: Vec<_> = (0..64).map(|key| put(key, Route::Owner)).collect();
    assert!(owned.contains(&Ok(())) && owned.contains(&not_sent(NotSent::Layout)), "{owned:?}");
    assert!(owned.iter().all(|ended| *ended == Ok(()) || *ended == not_sent(NotSent::Layout)), "{owned:?}");
    drop(other);
    eventually("it is gone", || at("other") == not_sent(NotSent::OutOfReach));
    assert_eq!(at("none"), not_sent(NotSent::NoHandler));
}
