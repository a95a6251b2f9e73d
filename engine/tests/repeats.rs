//! Idempotent requests that come again: a caller made by hand loses its connection, comes back as the same, and asks again.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed helper is a failed test")]

mod common;
mod wire;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use catga::limits::WINDOW_BYTES;
use catga::prelude::*;
use catga::{Failure, List, Refusal, ShardStats, Unknown};
use catga_codec::{CallId, Flags, Header, Kind};
use common::eventually;
use wire::Peer;

/// Answered with how many have run before it, in so many bytes.
#[request(reply = Counted)]
struct Count {
    bytes: u32,
}
/// Runs until the gate is opened.
#[request(reply = Counted)]
struct Wait {}
#[request(reply = Counted)]
struct Panic {}
#[message]
struct Counted {
    number: u64,
    filler: Vec<u8>,
}

const LONG: Duration = Duration::from_secs(60);

#[derive(Clone, Default)]
struct Counter {
    runs: Arc<AtomicU64>,
    gate: Arc<AtomicU64>,
}

impl Counter {
    fn next(&self) -> u64 {
        self.runs.fetch_add(1, Ordering::SeqCst)
    }

    fn count(&mut self, count: &Archived<Count>, _: &Context) -> Result<Counted, Fault> {
        Ok(Counted { number: self.next(), filler: vec![7; count.bytes.to_native() as usize] })
    }

    async fn wait(counter: &State<Self>, _: &Archived<Wait>, ctx: &Context) -> Result<Counted, Fault> {
        let number = counter.with(|counter| counter.next());
        while counter.with(|counter| counter.gate.load(Ordering::SeqCst)) == 0 {
            ctx.sleep(Duration::from_millis(1)).await;
        }
        Ok(Counted { number, filler: Vec::new() })
    }

    fn panic(&mut self, _: &Archived<Panic>, _: &Context) -> Result<Counted, Fault> {
        panic!("this is the {}th", self.next())
    }
}

/// A node whose handlers are on the shard that the lanes lead to, or on another.
fn node(counter: &Counter, shards: usize) -> Engine {
    let counter = counter.clone();
    Engine::builder()
        .shards(shards)
        .service_on(
            [shards as u16 - 1],
            move |_| counter.clone(),
            |routes| routes.request(Counter::count).request_async(Counter::wait).request(Counter::panic),
        )
        .cluster(List::of(Vec::<String>::new()).node("b", "127.0.0.1:0"))
        .start()
        .unwrap()
}

/// The caller, connected: the same node, life and shard each time.
fn caller(endpoint: SocketAddr) -> Peer {
    let mut peer = Peer::hello(endpoint, "catga", "x");
    assert_eq!(peer.frame().unwrap().0.kind, Kind::Welcome);
    peer
}

fn idempotent(slot: u32) -> Header {
    Header { flags: Flags::IDEMPOTENT, ..wire::request(slot) }
}

fn sum(node: &Engine, counter: fn(&ShardStats) -> u64) -> u64 {
    node.stats().sum(counter)
}

#[test]
fn what_has_ended_is_answered_again_and_does_not_run_again() {
    for shards in [1, 2] {
        let counter = Counter::default();
        let b = node(&counter, shards);
        let endpoint = b.endpoint().unwrap().address().unwrap();
        let mut answers = Vec::new();
        for ended in 1..=3 {
            let mut peer = caller(endpoint);
            peer.say(idempotent(1), &Count { bytes: 5000 });
            answers.push(peer.news().unwrap());
            drop(peer);
            eventually("the end is seen", || sum(&b, |shard| shard.lanes_ended) == ended);
        }
        assert_eq!((answers[0].0.kind, answers[0].0.call), (Kind::Reply, idempotent(1).call));
        assert!(answers.windows(2).all(|pair| pair[0] == pair[1]), "each answer is the first");
        assert_eq!(counter.runs.load(Ordering::SeqCst), 1);
        assert_eq!((sum(&b, |shard| shard.repeats_answered), sum(&b, |shard| shard.repeats_joined)), (2, 0));
        // Another call, another slot's generation, or one that is not idempotent, is another one.
        let mut peer = caller(endpoint);
        for header in [
            idempotent(2),
            Header { call: CallId::new(1, 2), ..idempotent(1) },
            wire::request(1),
            wire::request(1),
        ] {
            peer.say(header, &Count { bytes: 0 });
            assert_eq!(peer.news().unwrap().0.kind, Kind::Reply);
        }
        assert_eq!(counter.runs.load(Ordering::SeqCst), 5);
        // So is that of another node.
        let mut other = Peer::hello(endpoint, "catga", "y");
        assert_eq!(other.frame().unwrap().0.kind, Kind::Welcome);
        other.say(idempotent(1), &Count { bytes: 0 });
        assert_eq!(other.news().unwrap().0.kind, Kind::Reply);
        assert_eq!(counter.runs.load(Ordering::SeqCst), 6);
    }
}

#[test]
fn what_runs_goes_on_when_its_lane_is_lost_and_is_answered_over_the_next() {
    for shards in [1, 2] {
        let counter = Counter::default();
        let b = node(&counter, shards);
        let endpoint = b.endpoint().unwrap().address().unwrap();
        let mut first = caller(endpoint);
        first.say(idempotent(1), &Wait {});
        // One that is not idempotent is ended with the lane, where it runs on the lane's shard.
        first.say(wire::request(2), &Wait {});
        eventually("both run", || counter.runs.load(Ordering::SeqCst) == 2);
        drop(first);
        eventually("the end is seen", || sum(&b, |shard| shard.lanes_ended) == 1);
        if shards == 1 {
            eventually("one is cut", || sum(&b, |shard| shard.cut) == 1);
        }
        let mut second = caller(endpoint);
        second.say(idempotent(1), &Wait {});
        eventually("it is joined", || sum(&b, |shard| shard.repeats_joined) == 1);
        counter.gate.store(1, Ordering::SeqCst);
        let (answer, _) = second.news().unwrap();
        assert_eq!((answer.kind, answer.call), (Kind::Reply, idempotent(1).call));
        assert_eq!(counter.runs.load(Ordering::SeqCst), 2);
        // An answer that found no lane is kept for when there is one.
        counter.gate.store(0, Ordering::SeqCst);
        second.say(idempotent(3), &Wait {});
        eventually("it runs", || counter.runs.load(Ordering::SeqCst) == 3);
        drop(second);
        eventually("the end is seen", || sum(&b, |shard| shard.lanes_ended) == 2);
        counter.gate.store(1, Ordering::SeqCst);
        eventually("it has ended", || sum(&b, |shard| shard.tasks_running) == 0);
        let mut third = caller(endpoint);
        third.say(idempotent(3), &Wait {});
        assert_eq!(third.news().unwrap().0.kind, Kind::Reply);
        assert_eq!(counter.runs.load(Ordering::SeqCst), 3);
    }
}

#[test]
fn while_both_lanes_live_each_frame_is_answered_once() {
    let counter = Counter::default();
    let b = node(&counter, 1);
    let (mut first, mut second) = (caller(common::address(&b)), caller(common::address(&b)));
    first.say(idempotent(1), &Wait {});
    eventually("it runs", || counter.runs.load(Ordering::SeqCst) == 1);
    second.say(idempotent(1), &Wait {});
    // The caller counts the first lane as lost, or it would not ask again.
    let (answer, _) = first.news().unwrap();
    assert_eq!((answer.kind, answer.code), (Kind::Failed, 256 + Unknown::LaneLost.code()));
    // Twice over one lane: a caller that forgets what it asked, and still each frame has its answer.
    second.say(idempotent(1), &Wait {});
    assert_eq!(second.news().unwrap().0.kind, Kind::Failed);
    counter.gate.store(1, Ordering::SeqCst);
    assert_eq!(second.news().unwrap().0.kind, Kind::Reply);
    assert_eq!((counter.runs.load(Ordering::SeqCst), sum(&b, |shard| shard.repeats_joined)), (1, 2));
    // Nothing is owed on either lane: the node drains at once.
    let report = b.stop(LONG);
    assert!(report.drained && report.took < LONG / 2, "{report}");
}

#[test]
fn a_cancel_ends_what_runs_and_what_it_came_to_is_kept() {
    let counter = Counter::default();
    let b = node(&counter, 1);
    let mut peer = caller(common::address(&b));
    peer.say(idempotent(1), &Wait {});
    eventually("it runs", || counter.runs.load(Ordering::SeqCst) == 1);
    peer.send(Header { call: idempotent(1).call, ..Header::new(Kind::Cancel) }, &[]);
    let cut = (Kind::Failed, 256 + Unknown::Cut.code());
    for _ in 0..2 {
        let (answer, _) = peer.news().unwrap();
        assert_eq!((answer.kind, answer.code), cut);
        peer.say(idempotent(1), &Wait {});
    }
    assert_eq!((counter.runs.load(Ordering::SeqCst), sum(&b, |shard| shard.cut)), (1, 1));
}

#[test]
fn a_panic_is_kept_and_a_refusal_is_not() {
    let counter = Counter::default();
    let b = node(&counter, 1);
    let mut peer = caller(common::address(&b));
    for _ in 0..2 {
        peer.say(idempotent(1), &Panic {});
        let (answer, _) = peer.news().unwrap();
        assert_eq!((answer.kind, answer.code), (Kind::Failed, Failure::Panicked.code()));
    }
    for _ in 0..2 {
        peer.say(idempotent(2), &Panic {});
        let (answer, _) = peer.news().unwrap();
        assert_eq!((answer.kind, answer.code), (Kind::Refused, Refusal::Poisoned.code()));
    }
    assert_eq!((counter.runs.load(Ordering::SeqCst), sum(&b, |shard| shard.repeats_answered)), (1, 1));
}

#[test]
fn what_the_window_has_no_room_for_runs_again() {
    let counter = Counter::default();
    let b = node(&counter, 1);
    let mut peer = caller(common::address(&b));
    let mut ask = |slot, bytes| {
        peer.say(idempotent(slot), &Count { bytes });
        assert_eq!(peer.news().unwrap().0.kind, Kind::Reply);
        counter.runs.load(Ordering::SeqCst)
    };
    // Each answer is an eighth of the window or a little more.
    let part = (WINDOW_BYTES / 8) as u32;
    assert_eq!((ask(1, part), ask(1, part)), (1, 1));
    for slot in 2..=9 {
        ask(slot, part);
    }
    assert!(sum(&b, |shard| shard.window_evicted) >= 1);
    assert_eq!(ask(9, part), 9, "the latest is kept");
    assert_eq!(ask(1, part), 10, "the oldest is not");
    assert_eq!(ask(1, part), 10);
}
