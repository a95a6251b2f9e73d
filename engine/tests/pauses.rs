//! A handler that blocks its shard: what waits in the sockets meanwhile is as old as that, and does not run when its time is over.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed helper is a failed test")]

mod common;
mod wire;

use std::time::Duration;

use catga::prelude::*;
use catga::{List, Refusal};
use catga_codec::{Header, Kind};
use common::eventually;
use wire::Peer;

/// Blocks the shard.
#[request]
struct Block {
    millis: u64,
}
#[request]
struct Quick {}

struct Desk;
impl Desk {
    fn block(&mut self, block: &Archived<Block>, _: &Context) -> Result<(), Fault> {
        std::thread::sleep(Duration::from_millis(block.millis.to_native()));
        Ok(())
    }
    fn quick(&mut self, _: &Archived<Quick>, _: &Context) -> Result<(), Fault> {
        Ok(())
    }
}

/// `quick` is handled on the last shard, the lanes are those of the first, which `block` blocks.
fn desk(shards: u16) -> Engine {
    Engine::builder()
        .shards(usize::from(shards))
        .service_on([0], |_| Desk, |routes| routes.request(Desk::block))
        .service_on([shards - 1], |_| Desk, |routes| routes.request(Desk::quick))
        .cluster(List::of(Vec::<String>::new()).node("b", "127.0.0.1:0"))
        .start()
        .unwrap()
}

fn caller(desk: &Engine) -> Peer {
    let mut peer = Peer::hello(desk.endpoint().unwrap().address().unwrap(), "catga", "x");
    assert_eq!(peer.frame().unwrap().0.kind, Kind::Welcome);
    peer
}

const BLOCKED: Block = Block { millis: 1_200 };
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
        let b = desk(shards);
        let mut peer = caller(&b);
        peer.say(wire::request(1), &BLOCKED);
        eventually("it blocks", || b.stats().sum(|shard| shard.handled) == 1);
        peer.say(within(2, Duration::from_millis(500)), &Quick {});
        peer.say(within(3, Duration::from_secs(30)), &Quick {});
        let reply = (Kind::Reply, 0);
        assert_eq!(answers(&mut peer, 3), [(1, reply), (2, EXPIRED), (3, reply)]);
        // That is over: from here on time counts from when it is read.
        peer.say(within(4, Duration::from_millis(500)), &Quick {});
        assert_eq!(answers(&mut peer, 1), [(4, reply)]);
        let stats = b.stats();
        assert_eq!(stats.sum(|shard| shard.handled), 3);
        assert_eq!((stats.sum(|shard| shard.expired), stats.sum(|shard| shard.refused)), (1, 1));
        assert!(stats.shards[0].pauses >= 1);
    }
}

#[test]
fn what_was_read_together_with_what_blocks_has_that_much_less_time() {
    let b = desk(1);
    let mut peer = caller(&b);
    let frames = [
        wire::archived(wire::request(1), &BLOCKED),
        wire::archived(within(2, Duration::from_millis(500)), &Quick {}),
        wire::archived(within(3, Duration::from_secs(30)), &Quick {}),
    ];
    peer.raw(&frames.concat());
    let reply = (Kind::Reply, 0);
    assert_eq!(answers(&mut peer, 3), [(1, reply), (2, EXPIRED), (3, reply)]);
    assert_eq!(b.stats().sum(|shard| shard.expired), 1);
}
