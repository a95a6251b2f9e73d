//! Events between nodes, on real sockets: who hears what is published, and what the report of a broadcast says of each
//! node, whatever the others do.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed helper is a failed test")]

mod common;
mod wire;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Waker;
use std::time::Duration;

use catga::prelude::*;
use catga::{BroadcastError, List, NotSent, Refusal, Report, Route, Runtime, Unknown};
use catga_codec::{Contract, Event, Header, Kind};
use common::eventually;
use pollster::block_on;
use wire::{Peer, listening};

#[event]
struct Noted {
    id: u64,
    filler: Vec<u8>,
}
#[event(key = owner)]
struct Owned {
    owner: u64,
    id: u64,
}
/// Its listener on shard 1 waits while its node is shut; the lanes of these tests are those of shard 0.
#[event]
struct Slow {
    id: u64,
}
/// Publishes so many of each from inside a shard.
#[request]
struct Publish {
    first: u64,
    count: u64,
}
/// Broadcasts from inside a shard, and says which lines are handled.
#[request(reply = Lines)]
struct Shout {
    id: u64,
    within_ms: u32,
}
#[message]
struct Lines {
    nodes: Vec<String>,
    failed: Vec<String>,
}

/// The same name, as another team understands it.
mod elsewhere {
    use catga::prelude::*;

    #[event]
    pub(crate) struct Noted {
        pub(crate) text: String,
    }
    pub(crate) struct Other;
    impl Other {
        pub(crate) fn noted(&mut self, noted: &Archived<Noted>, _: &Context) {
            assert_eq!(noted.text.as_str(), "hello", "an own one, not one misread");
        }
    }
}

const LONG: Duration = Duration::from_secs(60);
const KEY: &str = "what all nodes of these tests have";

/// What the listeners of one node have in common.
#[derive(Default)]
struct Shared {
    /// How often each instance heard each event.
    heard: Mutex<BTreeMap<(u64, u16), u32>>,
    shut: AtomicBool,
}

impl Shared {
    /// How many have heard this event; each at most once.
    #[track_caller]
    fn hearers(&self, id: u64) -> usize {
        let heard = self.heard.lock().unwrap();
        let of_it = heard.range((id, 0)..=(id, u16::MAX));
        of_it.inspect(|(hearer, count)| assert_eq!(**count, 1, "{hearer:?} heard it twice")).count()
    }

    /// The shards that have heard this event.
    fn shards(&self, id: u64) -> Vec<u16> {
        self.heard.lock().unwrap().range((id, 0)..=(id, u16::MAX)).map(|((_, shard), _)| *shard).collect()
    }
}

struct Ear(Arc<Shared>);
impl Ear {
    fn hears(&self, id: u64, ctx: &Context) {
        *self.0.heard.lock().unwrap().entry((id, ctx.shard().0)).or_default() += 1;
    }
    fn noted(&mut self, noted: &Archived<Noted>, ctx: &Context) {
        assert!(noted.filler.iter().all(|&byte| byte == 7), "as it was sent");
        self.hears(noted.id.to_native(), ctx);
    }
    fn owned(&mut self, owned: &Archived<Owned>, ctx: &Context) {
        self.hears(owned.id.to_native(), ctx);
    }
    fn slow(&mut self, slow: &Archived<Slow>, ctx: &Context) {
        eventually("it opens", || ctx.shard().0 != 1 || !self.0.shut.load(Ordering::SeqCst));
        self.hears(slow.id.to_native(), ctx);
    }
}

struct Speaker;
impl Speaker {
    fn publish(&mut self, publish: &Archived<Publish>, ctx: &Context) -> Result<(), Fault> {
        let first = publish.first.to_native();
        for id in first..first + publish.count.to_native() {
            ctx.publish(&Noted { id, filler: vec![7; id as usize % 200] });
        }
        Ok(())
    }
    async fn shout(_: &State<Self>, shout: &Archived<Shout>, ctx: &Context) -> Result<Lines, Fault> {
        let within = Duration::from_millis(shout.within_ms.to_native().into());
        let report = ctx.broadcast(&Slow { id: shout.id.to_native() }).within(within).await;
        let failed = report.iter().filter(|line| line.outcome().is_err());
        Ok(Lines {
            failed: failed.map(|line| line.node().to_owned()).collect(),
            nodes: report.iter().map(|line| line.node().to_owned()).collect(),
        })
    }
}

struct Node {
    engine: Engine,
    shared: Arc<Shared>,
    shards: u16,
}

impl Node {
    /// A node that dials `others`; with ears or without.
    fn start(id: &str, shards: u16, others: &[&Node], ears: bool) -> Self {
        let endpoints = others.iter().map(|node| {
            let id = node.engine.nodes().own().unwrap().node.id.clone();
            format!("{id}={}", node.engine.endpoint().unwrap())
        });
        let list = List::of(endpoints.collect::<Vec<_>>()).key(KEY).node(id, "127.0.0.1:0");
        Self::with(list, shards, ears)
    }

    fn with(list: List, shards: u16, ears: bool) -> Self {
        let shared = Arc::new(Shared::default());
        let own = shared.clone();
        let builder = Engine::builder().shards(usize::from(shards)).runtime(Runtime::Epoll);
        let builder = builder
            .service(|_| Speaker, |routes| routes.request(Speaker::publish).request_async(Speaker::shout));
        let builder = if ears {
            let ear = move |_| Ear(own.clone());
            builder.service(ear, |routes| routes.event(Ear::noted).event(Ear::owned).event(Ear::slow))
        } else {
            builder
        };
        Self { engine: builder.cluster(list).start().unwrap(), shared, shards }
    }

    /// Waits until each shard of it knows of these nodes that listen.
    #[track_caller]
    fn knows(&self, nodes: &[&str]) {
        let client = self.engine.client();
        let all = || {
            // In turn over the shards.
            (0..self.shards).all(|_| {
                let shout = Shout { id: u64::MAX, within_ms: 30_000 };
                let lines = block_on(client.send(&shout).route(Route::Local).within(LONG)).unwrap();
                lines.nodes.iter().map(|node| node.as_str()).eq(nodes.iter().copied())
            })
        };
        eventually("it knows all", all);
        self.shared.heard.lock().unwrap().clear();
    }
}

/// Three nodes that know each other, with so many shards.
fn three(shards: [u16; 3]) -> [Node; 3] {
    let a = Node::start("a", shards[0], &[], true);
    let b = Node::start("b", shards[1], &[&a], true);
    let c = Node::start("c", shards[2], &[&a, &b], true);
    a.knows(&["a", "b", "c"]);
    b.knows(&["b", "a", "c"]);
    c.knows(&["c", "a", "b"]);
    for node in [&a, &b, &c] {
        node.shared.heard.lock().unwrap().clear();
    }
    [a, b, c]
}

fn outcomes(report: &Report) -> Vec<(&str, Result<u32, BroadcastError>)> {
    report.iter().map(|line| (line.node(), line.outcome().map(|handled| handled.listeners))).collect()
}

/// The lines of a broadcast that all nodes but one answer in time. Where the machine stops meanwhile others may be late as well,
/// and a shard that it holds up beyond the grace has no lines for its caller: then it is tried again.
#[track_caller]
fn lines_at_the_deadline<E: Event>(client: &Client, event: &E, but: &str, within: Duration) -> Report {
    let mut reports = (0..20).map(|_| block_on(client.broadcast(event).within(within)));
    let in_time = |report: &Report| {
        let mut others = report.iter().filter(|line| line.node() != but);
        report.lines().len() > 1 && others.all(|line| line.outcome().is_ok())
    };
    reports.find(in_time).expect("lines in time")
}

/// The nodes with a line in the report of a broadcast from a shard, those whose line has failed, and its id: the first for which
/// that is one node only, as above.
#[track_caller]
fn shout(client: &Client, first: u64, within_ms: u32) -> (Vec<String>, Vec<String>, u64) {
    let mut shouts = (first..first + 20).map(|id| {
        let shout = Shout { id, within_ms };
        let lines = block_on(client.send(&shout).route(Route::Local).within(LONG)).unwrap().to_owned();
        (lines.nodes, lines.failed, id)
    });
    shouts.find(|(_, failed, _)| failed.len() == 1).expect("one line that fails, and one only")
}

fn noted(id: u64) -> Noted {
    Noted { id, filler: vec![7; id as usize % 500] }
}

#[test]
fn each_instance_on_every_node_hears_each_published_event_exactly_once() {
    let nodes = three([1, 2, 3]);
    let mut id = 0;
    for node in &nodes {
        let client = node.engine.client();
        for _ in 0..200 {
            client.publish(&noted(id)).unwrap();
            id += 1;
        }
        block_on(client.send(&Publish { first: id, count: 200 }).within(LONG)).unwrap();
        id += 200;
    }
    for node in &nodes {
        let all = || (0..id).all(|id| node.shared.hearers(id) == usize::from(node.shards));
        eventually("every instance has heard all", all);
    }
    // What comes twice has time to come until this is over.
    for node in &nodes {
        let report = block_on(node.engine.client().broadcast(&noted(id)).within(LONG));
        assert!(report.is_handled(), "{report}");
        id += 1;
    }
    for node in &nodes {
        assert!((0..id).all(|id| node.shared.hearers(id) == usize::from(node.shards)));
        assert_eq!(node.engine.stats().sum(|shard| shard.events_dropped), 0);
    }
}

#[test]
fn a_node_without_listeners_publishes_and_broadcasts_to_those_that_listen() {
    let b = Node::start("b", 2, &[], true);
    let a = Node::start("a", 2, &[&b], false);
    let client = a.engine.client();
    // Right after its start: what is said before it knows anybody waits until it does.
    for id in 0..100 {
        client.publish(&noted(id)).unwrap();
    }
    let report = block_on(client.broadcast(&noted(100)).within(LONG));
    assert_eq!(outcomes(&report), [("a", Ok(0)), ("b", Ok(2))]);
    assert_eq!(report.to_string(), "a: nobody listens\nb: handled by 2 listeners");
    eventually("all have come", || (0..=100).all(|id| b.shared.hearers(id) == 2));
    assert_eq!(a.engine.stop(LONG).stats.sum(|shard| shard.events_dropped), 0);
}

#[test]
fn a_keyed_event_reaches_one_shard_of_each_node_and_always_the_same() {
    let nodes = three([1, 2, 3]);
    let mut id = 0;
    for owner in 0..40 {
        let first = id;
        for node in &nodes {
            let client = node.engine.client();
            let report = block_on(client.broadcast(&Owned { owner, id }).within(LONG));
            assert!(outcomes(&report).iter().all(|(_, outcome)| *outcome == Ok(1)), "{report}");
            client.publish(&Owned { owner, id: id + 1 }).unwrap();
            id += 2;
        }
        for node in &nodes {
            eventually("it is heard", || (first..id).all(|id| node.shared.hearers(id) > 0));
            let shards = node.shared.shards(first);
            assert_eq!(shards.len(), 1);
            assert!((first..id).all(|id| node.shared.shards(id) == shards), "key {owner} has one shard");
        }
    }
}

#[test]
fn a_slow_node_delays_the_report_and_fails_its_own_line_alone() {
    let [a, b, c] = three([1, 2, 1]);
    b.shared.shut.store(true, Ordering::SeqCst);
    let client = a.engine.client();
    let late = Err(BroadcastError::Unknown(Unknown::Deadline));
    let report = lines_at_the_deadline(&client, &Slow { id: 1 }, "b", Duration::from_millis(200));
    assert_eq!(outcomes(&report), [("a", Ok(1)), ("b", late), ("c", Ok(1))]);
    let (nodes, failed, id) = shout(&client, 100, 200);
    assert_eq!((nodes, failed), (vec!["a".to_owned(), "b".into(), "c".into()], vec!["b".to_owned()]));
    assert_eq!((a.shared.hearers(id), c.shared.hearers(id)), (1, 1), "the others were not held up");
    // One that is dropped gives back what it held, though the node still owes its answer.
    let slow = Slow { id: 3 };
    let mut dropped = Box::pin(client.broadcast(&slow).within(LONG));
    assert!(dropped.as_mut().poll(&mut std::task::Context::from_waker(Waker::noop())).is_pending());
    eventually("it is under way", || c.shared.hearers(3) == 1 && a.engine.stats().shards[0].calls_live == 1);
    drop(dropped);
    eventually("no slot is held", || a.engine.stats().sum(|shard| shard.calls_live) == 0);
    // With time enough the report waits for it.
    let report = std::thread::scope(|scope| {
        let waits = scope.spawn(|| block_on(client.broadcast(&Slow { id: 4 }).within(LONG)));
        eventually("the others have it", || a.shared.hearers(4) == 1 && c.shared.hearers(4) == 1);
        assert!(!waits.is_finished() && b.shared.hearers(4) < 2);
        b.shared.shut.store(false, Ordering::SeqCst);
        waits.join().unwrap()
    });
    assert_eq!(outcomes(&report), [("a", Ok(1)), ("b", Ok(2)), ("c", Ok(1))]);
    eventually("no slot is held", || a.engine.stats().sum(|shard| shard.calls_live) == 0);
}

#[test]
fn a_node_that_goes_fails_at_most_its_own_line_and_then_has_none() {
    let [a, b, c] = three([2, 1, 1]);
    let client = a.engine.client();
    let goes = std::thread::spawn(move || drop(c.engine));
    let mut id = 0;
    loop {
        let report = block_on(client.broadcast(&noted(id)).within(LONG));
        let lines = outcomes(&report);
        assert_eq!(lines[..2], [("a", Ok(2)), ("b", Ok(1))], "{report}");
        client.publish(&noted(id + 1)).unwrap();
        id += 2;
        match lines.get(2) {
            Some((node, _)) => assert_eq!(*node, "c"),
            None => break,
        }
    }
    goes.join().unwrap();
    eventually("those who stay hear all", || {
        (0..id).all(|id| a.shared.hearers(id) == 2 && b.shared.hearers(id) == 1)
    });
}

#[test]
fn a_node_that_refuses_or_is_lost_fails_its_own_line_and_its_part_goes_nowhere_else() {
    let (listener, endpoint) = listening();
    let peer = std::thread::spawn(move || {
        let mut peer = Peer::welcome(&listener, "b", &[Contract::of_event::<Noted>()]);
        let (first, _) = peer.news().unwrap();
        let code = Refusal::Stopping.code();
        peer.send(Header { call: first.call, code, ..Header::new(Kind::Refused) }, &[]);
        // Takes the next one, and goes without a word.
        let (second, _) = peer.news().unwrap();
        assert_ne!(first.call, second.call);
        (first.kind, second.kind)
    });
    let a = Node::with(List::of([format!("b={endpoint}")]).node("a", "127.0.0.1:0"), 1, true);
    let client = a.engine.client();
    let reasons = [BroadcastError::Refused(Refusal::Stopping), BroadcastError::Unknown(Unknown::LaneLost)];
    for (id, reason) in (0..).zip(reasons) {
        let report = block_on(client.broadcast(&noted(id)).within(LONG));
        assert_eq!(outcomes(&report), [("a", Ok(1)), ("b", Err(reason))]);
    }
    assert_eq!(peer.join().unwrap(), (Kind::Event, Kind::Event));
    let stats = a.engine.stop(LONG).stats;
    assert_eq!(stats.sum(|shard| shard.calls_moved), 0, "a part is for one node only");
    assert_eq!(stats.sum(|shard| shard.broadcasts_failed), 2);
}

#[test]
fn a_node_that_does_not_read_loses_events_with_a_count_and_fails_its_own_line_alone() {
    let (listener, endpoint) = listening();
    let a = Node::with(List::of([format!("b={endpoint}")]).node("a", "127.0.0.1:0"), 1, true);
    let mut peer = Peer::welcome(&listener, "b", &[Contract::of_event::<Noted>()]);
    let client = a.engine.client();
    let dropped = || a.engine.stats().sum(|shard| shard.events_dropped);
    let mut published = 0;
    while dropped() == 0 {
        peer.send(Header::new(Kind::Heartbeat), &[]); // it lives
        client.publish(&Noted { id: published, filler: vec![7; 128 * 1024] }).unwrap();
        eventually("this node hears it", || a.shared.hearers(published) == 1);
        published += 1;
        assert!(published < 10_000, "nothing is ever full");
    }
    let event = noted(u64::from(u32::MAX));
    let report = lines_at_the_deadline(&client, &event, "b", Duration::from_millis(100));
    let lines = outcomes(&report);
    assert_eq!(lines[0], ("a", Ok(1)));
    assert!(matches!(lines[1], ("b", Err(BroadcastError::NotSent(NotSent::Deadline)))), "{report}");
    drop(peer);
}

#[test]
fn a_node_with_another_layout_is_not_told_and_the_sender_counts_it() {
    let b = Engine::builder()
        .shards(1)
        .service(|_| elsewhere::Other, |routes| routes.event(elsewhere::Other::noted))
        .cluster(List::of(Vec::<String>::new()).key(KEY).node("b", "127.0.0.1:0"))
        .start()
        .unwrap();
    let list = List::of([format!("b={}", b.endpoint().unwrap())]).key(KEY).node("a", "127.0.0.1:0");
    let a = Node::with(list, 2, true);
    let client = a.engine.client();
    client.publish(&noted(1)).unwrap();
    let report = block_on(client.broadcast(&noted(2)).within(LONG));
    let layout = Err(BroadcastError::NotSent(NotSent::Layout));
    assert_eq!(outcomes(&report), [("a", Ok(2)), ("b", layout)]);
    eventually("it is counted", || a.engine.stats().sum(|shard| shard.events_other_layout) == 1);
    // And the other way round.
    eventually("b knows a", || b.nodes().len() == 2);
    eventually("it is counted there", || {
        b.client().publish(&elsewhere::Noted { text: "hello".into() }).is_err()
            || b.stats().sum(|shard| shard.events_other_layout) > 0
    });
    assert_eq!(b.stop(LONG).stats.sum(|shard| shard.events_dropped), 0);
    let stats = a.engine.stop(LONG).stats;
    assert_eq!((stats.sum(|shard| shard.events_dropped), a.shared.hearers(1)), (0, 2));
}

#[test]
fn an_event_that_arrives_goes_to_all_shards_of_its_node_and_no_further() {
    let c = Node::start("c", 1, &[], true);
    let list = List::of([format!("c={}", c.engine.endpoint().unwrap())]).key(KEY);
    let b = Node::with(list.node("b", "127.0.0.1:0"), 3, true);
    b.knows(&["b", "c"]);
    c.shared.heard.lock().unwrap().clear();
    let hello = wire::greeting("catga", "x", true, &[]);
    let mut peer = Peer::hello_with(b.engine.endpoint().unwrap().address().unwrap(), KEY.as_bytes(), hello);
    assert_eq!(peer.frame().unwrap().0.kind, Kind::Welcome);
    peer.say(Header::new(Kind::Event), &noted(1));
    eventually("all three have it", || b.shared.hearers(1) == 3);
    let report = block_on(b.engine.client().broadcast(&noted(2)).within(LONG));
    assert_eq!(outcomes(&report), [("b", Ok(3)), ("c", Ok(1))]);
    assert_eq!((b.shared.hearers(1), c.shared.hearers(1)), (3, 0));
}

/// Its node is known, by the lane that was taken from it, and cannot be dialled: nobody listens where its greeting says.
#[test]
fn events_for_a_node_that_cannot_be_dialled_are_dropped_with_a_count() {
    let (listener, endpoint) = listening();
    let list = List::of([format!("b={endpoint}")]).node("a", "127.0.0.1:0");
    let a = Engine::builder()
        .shards(2)
        .service_on([1], |_| Speaker, |routes| routes.request(Speaker::publish).request_async(Speaker::shout))
        .cluster(list)
        .start()
        .unwrap();
    // Shard 0 keeps the lane that tells that the node is alive; shard 1 would need one of its own.
    let peer = Peer::welcome(&listener, "b", &[Contract::of_event::<Noted>(), Contract::of_event::<Slow>()]);
    let _peer = peer.only_lives();
    eventually("b is up", || a.nodes().find("b").is_some());
    let client = a.client();
    block_on(client.send(&Publish { first: 0, count: 20 }).within(LONG)).unwrap();
    eventually("they are dropped", || a.stats().shards[1].events_dropped == 20);
    // A broadcast tries again until its deadline.
    let (nodes, failed, _) = shout(&client, 100, 100);
    assert_eq!((nodes.len(), failed), (2, vec!["b".to_owned()]));
}

/// A node is too early to say who is there for as long as a greeting may take, which is two seconds. Where the machine needs more
/// than that for what is looked at meanwhile, that shows nothing: then it is looked at again.
#[test]
fn before_the_first_whole_view_events_wait_up_to_a_bound_and_broadcasts_within_their_deadline() {
    assert!((0..10).any(|_| events_wait_while_a_node_forms()), "never within the time of a greeting");
}

/// Says whether all of it was seen in time.
fn events_wait_while_a_node_forms() -> bool {
    // Takes the connection and says nothing.
    let (_listener, endpoint) = listening();
    let list = List::of([format!("b={endpoint}")]).node("a", "127.0.0.1:0");
    let a = Node::with(list, 1, true);
    let client = a.engine.client();
    let (waiting, more) = (catga::limits::EVENTS_WAITING as u64, 6);
    for id in 0..waiting + more {
        client.publish(&Slow { id }).unwrap();
    }
    let report = block_on(client.broadcast(&noted(u64::from(u32::MAX))).within(Duration::from_millis(50)));
    let in_time = || a.engine.nodes().is_forming();
    let ended = report.lines()[0].outcome();
    let late =
        [BroadcastError::NotSent(NotSent::Deadline), BroadcastError::Unknown(Unknown::Deadline)].map(Err);
    let waited = report.lines().len() == 1 && late.contains(&ended);
    assert!(waited && a.shared.hearers(u64::from(u32::MAX)) == 0 || !in_time(), "nothing was sent: {report}");
    let dropped = |engine: &Engine| engine.stats().sum(|shard| shard.events_dropped);
    eventually("the bound drops the rest", || dropped(&a.engine) == more || !in_time());
    eventually("this node does not wait", || (0..waiting + more).all(|id| a.shared.hearers(id) == 1));
    let in_time = in_time();
    let stats = a.engine.stop(LONG).stats;
    assert!(!in_time || stats.sum(|shard| shard.events_dropped) == waiting + more, "a stop drops what waits");
    in_time
}
