//! Which node a request goes to, and where it goes when that one does not take it.
#![allow(missing_docs, reason = "the macros' types are public")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed helper is a failed test")]

mod common;

use std::collections::HashMap;
use std::time::Duration;

use catga::prelude::*;
use catga::{List, NodeId, NodeState, NotSent, Refusal, Route};
use common::{Directory, eventually, while_it_is_at_work};
use pollster::block_on;

const LONG: Duration = Duration::from_secs(20);
const NODES: [&str; 3] = ["a", "b", "c"];

#[request(reply = Me)]
struct Who {}
#[request(reply = Me, key = key)]
struct WhoOwns {
    key: u64,
}
#[request(reply = Me)]
struct Hang {}
#[request(reply = Me)]
struct Break {}
#[message]
struct Me {
    node: u8,
    shard: u16,
}

#[request(reply = Tally)]
struct AskAll {
    calls: u64,
}
#[message]
struct Tally {
    replies: u64,
    from: [u64; 3],
}

#[event]
struct News {}
#[request(reply = Tally)]
struct Spread {}

/// Makes calls in a batch, and broadcasts.
struct Asker;

impl Asker {
    async fn ask_all(_: &State<Self>, ask: &Archived<AskAll>, ctx: &Context) -> Result<Tally, Fault> {
        let (mut tally, mut seen) =
            (Tally { replies: 0, from: [0; 3] }, vec![0; ask.calls.to_native() as usize]);
        let asks = (0..ask.calls.to_native()).map(|_| Who {});
        ctx.send_batch(asks)
            .for_each(|place, outcome| {
                seen[place] += 1;
                if let Ok(me) = outcome {
                    tally.replies += 1;
                    tally.from[usize::from(me.node)] += 1;
                }
            })
            .await;
        if seen.iter().any(|outcomes| *outcomes != 1) {
            return Err(Fault::new("a call had no outcome, or two"));
        }
        Ok(tally)
    }
    async fn spread(_: &State<Self>, _: &Archived<Spread>, ctx: &Context) -> Result<Tally, Fault> {
        let report = ctx.broadcast(&News {}).await;
        let handled = report.iter().filter(|line| line.outcome().is_ok()).count();
        Ok(Tally { replies: handled as u64, from: [report.lines().len() as u64, 0, 0] })
    }
}

/// A service that says where it is.
struct Teller(u8);

impl Teller {
    fn me(&self, ctx: &Context) -> Me {
        Me { node: self.0, shard: ctx.shard().0 }
    }
    fn who(&mut self, _: &Archived<Who>, ctx: &Context) -> Result<Me, Fault> {
        Ok(self.me(ctx))
    }
    fn owns(&mut self, _: &Archived<WhoOwns>, ctx: &Context) -> Result<Me, Fault> {
        Ok(self.me(ctx))
    }
    fn hear(&mut self, _: &Archived<News>, _: &Context) {}
    fn broken(&mut self, _: &Archived<Break>, _: &Context) -> Result<Me, Fault> {
        panic!("a handler of the test panics")
    }
    async fn hang(_: &State<Self>, _: &Archived<Hang>, ctx: &Context) -> Result<Me, Fault> {
        ctx.sleep(LONG).await;
        Err(Fault::new("it hung"))
    }
}

/// Nodes that meet in a directory.
struct Cluster {
    directory: Directory,
}

impl Cluster {
    fn new(name: &str) -> Self {
        Self { directory: Directory::new(name) }
    }

    fn endpoint(&self, id: &str) -> String {
        format!("unix:{}", self.directory.join(id).display())
    }

    fn list(&self, id: &str) -> List {
        let nodes = NODES.map(|id| format!("{id}={}", self.endpoint(id)));
        List::of(nodes).key("what these nodes have in common").node(id, self.endpoint(id))
    }

    /// A node that serves.
    fn node(&self, id: &str, shards: usize) -> Engine {
        let number = NODES.iter().position(|known| *known == id).unwrap() as u8;
        Engine::builder()
            .shards(shards)
            .tasks_max(1)
            .service(
                move |_| Teller(number),
                |routes| {
                    routes
                        .request(Teller::who)
                        .request(Teller::owns)
                        .request(Teller::broken)
                        .request_async(Teller::hang)
                        .event(Teller::hear)
                },
            )
            .cluster(self.list(id))
            .start()
            .unwrap()
    }

    /// A node that only calls.
    fn caller(&self) -> Engine {
        Engine::builder()
            .shards(1)
            .service(|_| Asker, |routes| routes.request_async(Asker::ask_all).request_async(Asker::spread))
            .cluster(self.list("caller"))
            .start()
            .unwrap()
    }

    fn all(&self) -> [Engine; 3] {
        let engines = NODES.map(|id| self.node(id, 1));
        for engine in &engines {
            sees(engine, NodeState::Up, 3);
        }
        engines
    }
}

/// That node and no other.
fn at(id: &str) -> Route {
    Route::Node(NodeId::new(id).unwrap())
}

/// Waits until an engine sees so many nodes, itself among them, in this state.
fn sees(engine: &Engine, state: NodeState, count: usize) {
    let seen = || engine.nodes().iter().filter(|member| member.state == state).count();
    eventually("the nodes see each other", || seen() == count);
}

#[track_caller]
fn node_of(outcome: Result<Reply<Me>, CallError<Fault>>) -> u8 {
    outcome.map(|me| me.node).expect("a reply")
}

#[track_caller]
fn counts(calls: usize, mut call: impl FnMut() -> Result<Reply<Me>, CallError<Fault>>) -> HashMap<u8, usize> {
    let mut counts = HashMap::new();
    for _ in 0..calls {
        *counts.entry(node_of(call())).or_insert(0) += 1;
    }
    counts
}

#[test]
fn a_node_that_serves_a_message_is_asked_first() {
    let cluster = Cluster::new("local_first");
    let [a, b, _c] = cluster.all();
    for (engine, own) in [(&a, 0), (&b, 1)] {
        let client = engine.client();
        assert_eq!(counts(30, || block_on(client.send(&Who {}))), HashMap::from([(own, 30)]));
        let local = || block_on(client.send(&Who {}).route(Route::Local));
        assert_eq!(counts(30, local), HashMap::from([(own, 30)]));
    }
    assert_eq!(a.stats().sum(|shard| shard.lane_frames), 0, "nothing crossed a lane");
}

#[test]
fn the_others_are_asked_in_turn_each_as_often_within_one() {
    let cluster = Cluster::new("in_turn");
    let _nodes = cluster.all();
    let caller = cluster.caller();
    sees(&caller, NodeState::Up, 4);
    let client = caller.client();
    for calls in [1, 7, 30, 32] {
        let counts = counts(calls, || block_on(client.send(&Who {}).within(LONG)));
        let shares: Vec<usize> = (0..3).map(|node| counts.get(&node).copied().unwrap_or(0)).collect();
        assert!(shares.iter().max().unwrap() - shares.iter().min().unwrap() <= 1, "{shares:?}");
    }
}

#[test]
fn by_round_robin_a_node_that_serves_takes_its_turn_too() {
    let cluster = Cluster::new("round_robin");
    let [a, _b, _c] = cluster.all();
    let client = a.client();
    let counts = counts(60, || block_on(client.send(&Who {}).route(Route::RoundRobin).within(LONG)));
    assert_eq!(counts, HashMap::from([(0, 20), (1, 20), (2, 20)]));
}

#[test]
fn chance_reaches_every_node() {
    let cluster = Cluster::new("chance");
    let [a, _b, _c] = cluster.all();
    let client = a.client();
    for route in [Route::Random, Route::LeastLoaded] {
        let counts = counts(300, || block_on(client.send(&Who {}).route(route.clone()).within(LONG)));
        assert!((0..3).all(|node| counts.get(&node).copied().unwrap_or(0) > 20), "{route:?}: {counts:?}");
    }
}

#[test]
fn a_named_node_is_the_only_one_asked() {
    let cluster = Cluster::new("named");
    let [a, b, c] = cluster.all();
    let client = a.client();
    for (number, id) in (0..).zip(NODES) {
        let counts = counts(10, || block_on(client.send(&Who {}).route(at(id)).within(LONG)));
        assert_eq!(counts, HashMap::from([(number, 10)]));
    }
    // A key has its owner; who names a node gets that one all the same.
    for key in 0..20 {
        assert_eq!(node_of(block_on(client.send(&WhoOwns { key }).route(at("b")).within(LONG))), 1);
    }
    let stranger = block_on(client.send(&Who {}).route(at("stranger")).within(LONG));
    assert_eq!(stranger.map(drop), Err(CallError::NotSent(NotSent::NoSuchNode)));
    b.stop(LONG);
    eventually("it is out of reach", || {
        let outcome = block_on(client.send(&Who {}).route(at("b")).within(LONG));
        matches!(outcome, Err(CallError::NotSent(NotSent::OutOfReach)))
    });
    drop(c);
    // Without a cluster there is this node only, and it has no name.
    let alone = Engine::builder()
        .shards(1)
        .service(|_| Teller(9), |routes| routes.request(Teller::who))
        .start()
        .unwrap();
    let client = alone.client();
    assert_eq!(node_of(block_on(client.send(&Who {}).route(Route::RoundRobin))), 9);
    let named = block_on(client.send(&Who {}).route(at("a")));
    assert_eq!(named.map(drop), Err(CallError::NotSent(NotSent::NoSuchNode)));
}

#[test]
fn a_key_has_one_owner_whoever_asks_and_keeps_it_when_another_node_goes() {
    const KEYS: u64 = 60;
    let cluster = Cluster::new("owner");
    let engines = NODES.map(|id| cluster.node(id, 2));
    for engine in &engines {
        sees(engine, NodeState::Up, 3);
    }
    let owners = |engine: &Engine| -> Vec<(u8, u16)> {
        let client = engine.client();
        let owner = |key| {
            block_on(client.send(&WhoOwns { key }).within(LONG)).map(|me| (me.node, me.shard.to_native()))
        };
        (0..KEYS).map(|key| owner(key).expect("a reply")).collect()
    };
    let before = owners(&engines[0]);
    assert_eq!(before, owners(&engines[1]));
    assert_eq!(before, owners(&engines[2]));
    for node in 0..3 {
        assert!(before.iter().filter(|(owner, _)| *owner == node).count() > 5, "{before:?}");
    }
    let [a, b, c] = engines;
    b.stop(LONG);
    for engine in [&a, &c] {
        sees(engine, NodeState::Up, 2);
    }
    let after = owners(&a);
    assert_eq!(after, owners(&c));
    for (key, (before, after)) in before.iter().zip(&after).enumerate() {
        assert!(
            if before.0 == 1 { after.0 != 1 } else { before == after },
            "key {key}: {before:?}, {after:?}"
        );
    }
}

#[test]
fn a_node_whose_handler_is_out_of_use_is_passed_over() {
    let cluster = Cluster::new("poisoned");
    let [a, b, c] = cluster.all();
    let caller = cluster.caller();
    sees(&caller, NodeState::Up, 4);
    let client = caller.client();
    let outcome = block_on(client.send(&Break {}).route(at("b")).within(LONG));
    assert!(common::panicked(outcome), "a failure does not move on: it ran");
    let counts = counts(60, || block_on(client.send(&Who {}).within(LONG)));
    assert_eq!(counts.get(&1), None);
    assert_eq!(counts.values().sum::<usize>(), 60);
    let moved = caller.stats().sum(|shard| shard.calls_moved);
    assert!((15..=20).contains(&moved), "a third of them, as long as the budget lasts: {moved}");
    // Its own callers are sent on before they are refused.
    assert_ne!(node_of(block_on(b.client().send(&Who {}).within(LONG))), 1);
    // Who names it hears from it.
    let refused = block_on(client.send(&Who {}).route(at("b")).within(LONG));
    assert!(common::poisoned(refused));
    drop((a, c));
}

#[test]
fn when_every_node_refuses_that_is_the_outcome_and_moving_on_has_an_end() {
    let cluster = Cluster::new("budget");
    let engines = cluster.all();
    let caller = cluster.caller();
    sees(&caller, NodeState::Up, 4);
    let client = caller.client();
    for id in NODES {
        assert!(common::panicked(block_on(client.send(&Break {}).route(at(id)).within(LONG))));
    }
    let refused = |counter: fn(&catga::ShardStats) -> u64| {
        engines.iter().map(|engine| engine.stats().sum(counter)).sum::<u64>()
    };
    for call in 1..=200 {
        let outcome = block_on(client.send(&Who {}).within(LONG));
        assert!(matches!(outcome, Err(CallError::Refused(Refusal::Poisoned))), "call {call}: {outcome:?}");
    }
    let stats = caller.stats();
    let moved = stats.sum(|shard| shard.calls_moved);
    assert!(
        (16..=16 + 200 / 10 * 2).contains(&moved),
        "a tenth of the calls, and a few to begin with: {moved}"
    );
    assert!(stats.sum(|shard| shard.moves_denied) > 100);
    assert!(refused(|shard| shard.refused) <= 200 + moved + 10);
}

#[test]
fn a_full_node_is_passed_over_by_its_own_callers_and_by_others() {
    let cluster = Cluster::new("full");
    let [a, b, c] = cluster.all();
    // Its one place is taken.
    let hanging = {
        let client = a.client();
        std::thread::spawn(move || block_on(client.send(&Hang {}).route(Route::Local).within(LONG)).map(drop))
    };
    eventually("it hangs", || a.stats().sum(|shard| shard.tasks_running) == 1);
    let client = a.client();
    let second = while_it_is_at_work(|within| block_on(client.send(&Hang {}).within(within)));
    let second = second.map(drop).unwrap_err();
    assert!(
        matches!(second, CallError::Unknown(_)),
        "it ran elsewhere, and did not come to an end: {second}"
    );
    let refused = block_on(b.client().send(&Hang {}).route(at("a")).within(LONG));
    assert!(matches!(refused, Err(CallError::Refused(Refusal::Overloaded))), "{refused:?}");
    a.stop(Duration::ZERO);
    hanging.join().unwrap().unwrap_err();
    drop((b, c));
}

#[test]
fn nodes_that_stop_one_after_the_other_lose_nothing() {
    let cluster = Cluster::new("rolling");
    let mut engines: Vec<Option<Engine>> = cluster.all().into_iter().map(Some).collect();
    let caller = cluster.caller();
    sees(&caller, NodeState::Up, 4);
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let client = caller.client();
    let load = std::thread::spawn(move || {
        let (mut calls, mut key) = (0u64, 0);
        while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
            key += 1;
            let unkeyed = block_on(client.send(&Who {}).within(LONG)).map(drop);
            let keyed = block_on(client.send(&WhoOwns { key }).within(LONG)).map(drop);
            for (what, outcome) in [("unkeyed", unkeyed), ("keyed", keyed)] {
                assert_eq!(outcome, Ok(()), "{what}, after {calls} calls");
                calls += 1;
            }
        }
        calls
    });
    for (place, id) in NODES.into_iter().enumerate() {
        let report = engines[place].take().unwrap().stop(LONG);
        assert!(report.drained, "{report}");
        engines[place] = Some(cluster.node(id, 1));
        sees(&caller, NodeState::Up, 4);
    }
    drop(stop);
    assert!(load.join().expect("every call is replied to") > 100);
}

#[test]
fn the_calls_of_a_batch_move_on_as_any_other() {
    let cluster = Cluster::new("batch");
    let nodes = cluster.all();
    let caller = cluster.caller();
    sees(&caller, NodeState::Up, 4);
    let client = caller.client();
    let ask = |calls| block_on(client.send(&AskAll { calls }).within(LONG)).expect("a tally");
    let tally = ask(3_000);
    assert_eq!((tally.replies.to_native(), tally.from.map(|from| from.to_native())), (3_000, [1_000; 3]));
    // A tenth of the calls may move on: what was earned by those is enough for a third of fewer.
    assert!(common::panicked(block_on(client.send(&Break {}).route(at("b")).within(LONG))));
    let tally = ask(600);
    assert_eq!((tally.replies.to_native(), tally.from[1].to_native()), (600, 0));
    assert_eq!(caller.stats().sum(|shard| shard.calls_moved), 200);
    drop(nodes);
}

#[test]
fn a_shard_without_work_sleeps_alone_and_in_a_cluster() {
    let cluster = Cluster::new("sleep");
    let alone = Engine::builder()
        .shards(1)
        .service(|_| Teller(9), |routes| routes.request(Teller::who))
        .start()
        .unwrap();
    let (met, lonely) = (cluster.all(), cluster.caller());
    drop(met);
    for engine in [&alone, &lonely] {
        let parks = || engine.stats().sum(|shard| shard.parks);
        let before = parks();
        eventually("it sleeps", || parks() > before + 3);
        let turns = || engine.stats().sum(|shard| shard.turns);
        // As long as it is only waited for, nothing but a few timers wakes it: far from a turn in each microsecond.
        let (before, begun) = (turns(), std::time::Instant::now());
        eventually("time passes", || begun.elapsed() > Duration::from_millis(200));
        assert!(turns() - before < 20_000, "{} turns in {:?}", turns() - before, begun.elapsed());
    }
}

#[test]
fn a_broadcast_that_was_refused_somewhere_is_over_and_goes_nowhere_else() {
    let cluster = Cluster::new("refused");
    let nodes = cluster.all();
    let caller = cluster.caller();
    sees(&caller, NodeState::Up, 4);
    let client = caller.client();
    assert!(common::panicked(block_on(client.send(&Break {}).route(at("b")).within(LONG))));
    for _ in 0..20 {
        let tally = block_on(client.send(&Spread {}).within(LONG)).expect("the broadcast ends");
        // Its own node, where nobody listens, and those that do, of which one is out of use.
        assert_eq!((tally.replies.to_native(), tally.from[0].to_native()), (3, 4));
    }
    assert_eq!(caller.stats().sum(|shard| shard.calls_moved), 0);
    drop(nodes);
}
