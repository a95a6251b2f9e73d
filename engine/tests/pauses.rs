//! A handler that blocks its shard: what waits in the sockets meanwhile is as old as that, and does not run when its time is over.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed helper is a failed test")]

mod common;
mod wire;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use catga::prelude::*;
use catga::{List, Refusal};
use catga_codec::{Header, Kind};
use common::eventually;
use wire::Peer;

/// Blocks the shard until the gate is open.
#[request]
struct Block {}
#[request]
struct Quick {}

#[derive(Clone, Default)]
struct Gate(Arc<AtomicBool>);
impl Gate {
    /// Opens when the shard has been blocked for longer than `SHORT`.
    fn open(&self) {
        std::thread::sleep(SHORT + SHORT / 5);
        self.0.store(true, Ordering::SeqCst);
    }
}

struct Desk(Gate);
impl Desk {
    fn block(&mut self, _: &Archived<Block>, _: &Context) -> Result<(), Fault> {
        eventually("the gate opens", || self.0.0.load(Ordering::SeqCst));
        Ok(())
    }
    fn quick(&mut self, _: &Archived<Quick>, _: &Context) -> Result<(), Fault> {
        Ok(())
    }
}

/// `quick` is handled on the last shard, the lanes are those of the first, which `block` blocks.
fn desk(shards: u16, gate: &Gate) -> Engine {
    let (blocks, quick) = (gate.clone(), gate.clone());
    Engine::builder()
        .shards(usize::from(shards))
        .service_on([0], move |_| Desk(blocks.clone()), |routes| routes.request(Desk::block))
        .service_on([shards - 1], move |_| Desk(quick.clone()), |routes| routes.request(Desk::quick))
        .cluster(List::of(Vec::<String>::new()).node("b", "127.0.0.1:0"))
        .start()
        .unwrap()
}

fn caller(desk: &Engine) -> Peer {
    let mut peer = Peer::hello(desk.endpoint().unwrap().address().unwrap(), "catga", "x");
    assert_eq!(peer.frame().unwrap().0.kind, Kind::Welcome);
    peer
}

/// Time that is over when the gate opens.
const SHORT: Duration = Duration::from_millis(500);
const LONG: Duration = Duration::from_secs(30);
const REPLY: (Kind, u16) = (Kind::Reply, 0);
const EXPIRED: (Kind, u16) = (Kind::Refused, Refusal::Expired.code());

/// With so much time left.
fn within(slot: u32, time: Duration) -> Header {
    Header { remaining_us: time.as_micros() as u32, ..wire::request(slot) }
}

/// The answers, by slot.
fn answers(peer: &mut Peer, count: usize) -> Vec<(u32, (Kind, u16))> {
    let answer = |_| peer.news().map(|(header, _)| (header.call.slot(), (header.kind, header.code))).unwrap();
    let mut answers: Vec<_> = (0..count).map(answer).collect();
    answers.sort_unstable_by_key(|(slot, _)| *slot);
    answers
}

#[test]
fn what_waits_in_the_socket_of_a_blocked_shard_has_that_much_less_time() {
    for shards in [1, 2] {
        let gate = Gate::default();
        let b = desk(shards, &gate);
        let mut peer = caller(&b);
        peer.say(wire::request(1), &Block {});
        eventually("it blocks", || b.stats().sum(|shard| shard.handled) == 1);
        peer.say(within(2, SHORT), &Quick {});
        peer.say(within(3, LONG), &Quick {});
        gate.open();
        assert_eq!(answers(&mut peer, 3), [(1, REPLY), (2, EXPIRED), (3, REPLY)]);
        // That is over: from here on time counts from when it is read. A machine that stops pauses the shard as well: one of
        // several is in time.
        let mut slots = 4..9;
        let in_time = slots.find(|slot| {
            peer.say(within(*slot, SHORT), &Quick {});
            let answer = answers(&mut peer, 1);
            assert!([[(*slot, REPLY)], [(*slot, EXPIRED)]].contains(&[answer[0]]), "{answer:?}");
            answer[0].1 == REPLY
        });
        let late = u64::from(in_time.expect("one that is in time") - 4);
        let stats = b.stats();
        assert_eq!(stats.sum(|shard| shard.handled), 3);
        let expired = (stats.sum(|shard| shard.expired), stats.sum(|shard| shard.refused));
        assert_eq!(expired, (1 + late, 1 + late));
        assert!(stats.shards[0].pauses >= 1);
    }
}

#[test]
fn what_was_read_together_with_what_blocks_has_that_much_less_time() {
    let gate = Gate::default();
    let b = desk(1, &gate);
    let mut peer = caller(&b);
    let frames = [
        wire::archived(wire::request(1), &Block {}),
        wire::archived(within(2, SHORT), &Quick {}),
        wire::archived(within(3, LONG), &Quick {}),
    ];
    peer.raw(&frames.concat());
    eventually("it blocks", || b.stats().sum(|shard| shard.handled) == 1);
    gate.open();
    assert_eq!(answers(&mut peer, 3), [(1, REPLY), (2, EXPIRED), (3, REPLY)]);
    assert_eq!(b.stats().sum(|shard| shard.expired), 1);
}
