//! Idempotent calls, `try_send` and broadcasts, as a peer made by hand sees them over its lane.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed helper is a failed test")]

mod common;
mod wire;

use std::future::Future;
use std::net::SocketAddr;
use std::task::Poll;
use std::time::Duration;

use catga::prelude::*;
use catga::{Failure, List, NotSent, Refusal, Unknown};
use catga_codec::{CallId, Contract, Flags, Header, Kind};
use common::{address, eventually};
use pollster::block_on;
use wire::{Peer, listening};

#[request(reply = Blob)]
struct Give {
    bytes: u32,
}
#[request(reply = Blob)]
struct Take {
    blob: Vec<u8>,
}
/// Passes one `Give` on that may be sent again.
#[request(reply = Blob)]
struct Again {
    bytes: u32,
}
#[message]
struct Blob {
    bytes: Vec<u8>,
}
#[event]
struct Noted {
    text: String,
}
#[event]
struct Unheard {}

const LONG: Duration = Duration::from_secs(60);

struct Ear;
impl Ear {
    fn noted(&mut self, noted: &Archived<Noted>, _: &Context) {
        assert_ne!(noted.text.as_str(), "panic");
    }
}

struct Relayer;
impl Relayer {
    async fn again(_: &State<Self>, again: &Archived<Again>, ctx: &Context) -> Result<Blob, Fault> {
        let given = ctx.send(&Give { bytes: again.bytes.to_native() }).idempotent().within(LONG).await?;
        Ok(Blob { bytes: given.bytes.to_vec() })
    }
}

/// A node that calls the peer at this endpoint.
fn caller(peer: SocketAddr) -> Engine {
    Engine::builder()
        .shards(1)
        .service(|_| Relayer, |routes| routes.request_async(Relayer::again))
        .cluster(List::of([format!("b={peer}")]).node("a", "127.0.0.1:0"))
        .start()
        .unwrap()
}

#[test]
fn an_idempotent_request_says_so_in_its_header_and_others_do_not() {
    let (listener, endpoint) = listening();
    let peer = std::thread::spawn(move || {
        let mut peer = Peer::welcome(&listener, "b", &[Contract::of_request::<Give>()]);
        let mut flags = Vec::new();
        for _ in 0..3 {
            let (ask, _) = peer.news().unwrap();
            flags.push(ask.flags);
            peer.say(Header { call: ask.call, ..Header::new(Kind::Reply) }, &Blob { bytes: vec![1] });
        }
        peer.closed();
        flags
    });
    let a = caller(endpoint);
    let client = a.client();
    // From a foreign thread, forwarded by a shard; and from inside a shard, archived into the lane.
    assert!(block_on(client.send(&Give { bytes: 1 }).idempotent().within(LONG)).is_ok());
    assert!(block_on(client.send(&Give { bytes: 1 }).within(LONG)).is_ok());
    assert!(block_on(client.send(&Again { bytes: 1 }).within(LONG)).is_ok());
    drop(a);
    assert_eq!(peer.join().unwrap(), [Flags::IDEMPOTENT, Flags::NONE, Flags::IDEMPOTENT]);
}

#[test]
fn over_a_full_lane_a_call_that_does_not_wait_ends_at_once_as_full() {
    let (listener, endpoint) = listening();
    // A peer that grants calls and reads nothing.
    let peer = std::thread::spawn(move || Peer::welcome(&listener, "b", &[Contract::of_request::<Take>()]));
    let a = caller(endpoint);
    let client = a.client();
    let _peer = peer.join().unwrap();
    eventually("it may be asked", || a.nodes().find("b").is_some());
    let take = Take { blob: vec![1; 256 * 1024] };
    // Some of them fill the socket's buffers and the lane's; nobody answers these.
    let mut calls: Vec<_> = (0..100).map(|_| Box::pin(client.try_send(&take).within(LONG))).collect();
    let mut full = 0;
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    eventually("most are told that the lane is full", || {
        calls.retain_mut(|call| match call.as_mut().poll(&mut cx) {
            Poll::Pending => true,
            Poll::Ready(outcome) => {
                assert_eq!(outcome.unwrap_err(), CallError::NotSent(NotSent::Full));
                full += 1;
                false
            }
        });
        full >= 50
    });
    let stats = a.stop(Duration::ZERO).stats;
    assert!(stats.sum(|shard| shard.sends_full) >= full);
    assert_eq!(stats.sum(|shard| shard.waits), 0, "nothing waits");
}

#[test]
fn a_broadcast_by_hand_reaches_all_listeners_of_the_node_and_is_answered_once() {
    let b = Engine::builder()
        .shards(3)
        .service(|_| Ear, |routes| routes.event(Ear::noted))
        .service_on([1], |_| Ear, |routes| routes.event(Ear::noted))
        .cluster(List::of(Vec::<String>::new()).node("b", "127.0.0.1:0"))
        .start()
        .unwrap();
    let mut peer = Peer::hello(address(&b), "catga", "x");
    assert_eq!(peer.frame().unwrap().0.kind, Kind::Welcome);
    let event = |slot| Header { kind: Kind::Event, ..wire::request(slot) };
    let calm = Noted { text: "calm".to_owned() };
    for (slot, context) in [(1, 0), (2, 1), (3, 12_345), (4, u64::MAX)] {
        let header = Header { context, key: 99, shard: 77, ..event(slot) };
        peer.say(header, &calm);
        let (answer, _) = peer.news().unwrap();
        assert_eq!((answer.kind, answer.code, answer.call), (Kind::Handled, 4, header.call));
    }
    // One that is published names no call, and is not answered: the next answer is to another one.
    peer.say(Header { call: CallId::default(), ..event(0) }, &calm);
    // What nobody listens to, what is no archive, and what comes too late.
    peer.say(event(5), &Unheard {});
    let (answer, _) = peer.news().unwrap();
    assert_eq!((answer.kind, answer.code, answer.call), (Kind::Handled, 0, event(5).call));
    peer.send(Header { message: <Noted as catga::Message>::ID, ..event(6) }, &[255; 3]);
    let (answer, _) = peer.news().unwrap();
    assert_eq!((answer.kind, answer.code), (Kind::Refused, Refusal::Unreadable.code()));
    peer.say(Header { remaining_us: 0, ..event(7) }, &calm);
    assert_eq!(peer.news().unwrap().0.code, Refusal::Expired.code());
    // A listener that panics, and one that did.
    peer.say(event(8), &Noted { text: "panic".to_owned() });
    let (answer, _) = peer.news().unwrap();
    assert_eq!((answer.kind, answer.code), (Kind::Failed, Failure::Panicked.code()));
    peer.say(event(9), &calm);
    let (answer, _) = peer.news().unwrap();
    assert_eq!((answer.kind, answer.code), (Kind::Refused, Refusal::Poisoned.code()));
    // The lane lives, and nothing is owed any more.
    eventually("no slot is held", || b.stats().sum(|shard| shard.calls_live) == 0);
    let stats = b.stop(LONG).stats;
    assert_eq!((stats.sum(|shard| shard.broadcasts), stats.sum(|shard| shard.broadcasts_failed)), (9, 4));
    assert_eq!(stats.sum(|shard| shard.lanes_refused), 0);
}

#[test]
fn a_request_that_is_answered_as_an_event_has_no_readable_reply() {
    let (listener, endpoint) = listening();
    let peer = std::thread::spawn(move || {
        let mut peer = Peer::welcome(&listener, "b", &[Contract::of_request::<Give>()]);
        let (ask, _) = peer.news().unwrap();
        peer.send(Header { call: ask.call, code: 1, ..Header::new(Kind::Handled) }, &[]);
        peer.closed();
    });
    let a = caller(endpoint);
    let outcome = block_on(a.client().send(&Give { bytes: 1 }).within(LONG));
    assert_eq!(outcome.unwrap_err(), CallError::Unknown(Unknown::Unreadable));
    drop(a);
    peer.join().unwrap();
}
