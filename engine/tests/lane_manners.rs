//! Idempotent and keyed calls, `try_send` and broadcasts, as a peer made by hand sees them over its lane.

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
use wire::{Peer, Place, greeting_from, listening, wanted_shard};

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
#[request(reply = Blob, key = number)]
struct Owned {
    number: u64,
}
#[event(key = number)]
struct Sold {
    number: u64,
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

/// A node that knows of nobody, until somebody comes.
fn alone() -> Engine {
    Engine::builder()
        .shards(1)
        .service(|_| Relayer, |routes| routes.request_async(Relayer::again))
        .cluster(List::of(Vec::<String>::new()).node("a", "127.0.0.1:0"))
        .start()
        .unwrap()
}

/// Node `b`, come to this node with a lane from this place.
fn come_to(a: &Engine, place: Place<'_>, offers: &[Contract]) -> Peer {
    let mut peer = Peer::hello_with(address(a), b"", greeting_from(place, "catga", "b", false, offers));
    assert_eq!(peer.frame().unwrap().0.kind, Kind::Welcome);
    eventually("it may be asked", || a.nodes().find("b").is_some());
    peer
}

#[test]
fn an_idempotent_call_goes_again_to_the_shard_that_has_it_however_high_its_number() {
    let (listener, endpoint) = listening();
    let (endpoint, offers) = (endpoint.to_string(), [Contract::of_request::<Give>()]);
    let place = Place { shard: 12, shards: 16, endpoint: &endpoint };
    let a = alone();
    let mut peer = come_to(&a, place, &offers);
    let client = a.client();
    std::thread::scope(|scope| {
        let call = scope.spawn(|| block_on(client.send(&Again { bytes: 1 }).within(LONG)).map(|_| ()));
        let (first, _) = peer.news().unwrap();
        drop(peer);
        let (mut peer, hello) = Peer::greeted(&listener);
        assert_eq!(wanted_shard(&hello), 12);
        peer.answer(&hello, &greeting_from(place, "catga", "b", false, &offers));
        let (again, _) = peer.news().unwrap();
        assert_eq!((again.kind, again.call, again.flags), (Kind::Request, first.call, Flags::IDEMPOTENT));
        peer.say(Header { call: again.call, ..Header::new(Kind::Reply) }, &Blob { bytes: vec![1] });
        assert_eq!(call.join().unwrap(), Ok(()));
    });
}

#[test]
fn an_idempotent_call_goes_to_no_other_shard_of_the_node_that_has_it() {
    let (listener, endpoint) = listening();
    let (endpoint, offers) = (endpoint.to_string(), [Contract::of_request::<Give>()]);
    let place = |shard| Place { shard, shards: 2, endpoint: &endpoint };
    let a = alone();
    let mut first = come_to(&a, place(0), &offers);
    let client = a.client();
    std::thread::scope(|scope| {
        let call = scope.spawn(|| block_on(client.send(&Again { bytes: 1 }).within(LONG)).map(|_| ()));
        assert_eq!(first.news().unwrap().0.kind, Kind::Request);
        let mut other = come_to(&a, place(1), &offers);
        drop(first);
        // Nobody can get back to where it may be running.
        drop(Peer::greeted(&listener));
        assert!(matches!(call.join().unwrap(), Err(CallError::Rejected(_))), "what it asked for has failed");
        assert_eq!(a.stats().sum(|shard| shard.calls_unknown), 1);
        drop(a);
        assert_eq!(other.news().unwrap().0.kind, Kind::Close, "the other shard was asked as well");
    });
}

#[test]
fn what_has_a_key_takes_any_lane_to_the_owner_while_none_can_be_had_to_the_shard_of_the_key() {
    let offers =
        [Contract::of_request::<Owned>(), Contract::of_event::<Sold>(), Contract::of_request::<Give>()];
    let a = alone();
    // Nobody can connect to where it says that it is.
    let mut peer = come_to(&a, Place { shard: 0, shards: 2, endpoint: "127.0.0.1:1" }, &offers);
    let answers = std::thread::spawn(move || {
        let (mut requests, mut broadcasts, mut published) = (0, 0, 0);
        while let Some((ask, _)) = peer.news() {
            match ask.kind {
                Kind::Request => {
                    requests += 1;
                    peer.say(Header { call: ask.call, ..Header::new(Kind::Reply) }, &Blob { bytes: vec![1] });
                }
                Kind::Event if ask.call == CallId::default() => published += 1,
                Kind::Event => {
                    broadcasts += 1;
                    peer.send(Header { call: ask.call, code: 1, ..Header::new(Kind::Handled) }, &[]);
                }
                Kind::Close => break,
                other => panic!("{other:?}"),
            }
        }
        (requests, broadcasts, published)
    });
    let client = a.client();
    for number in 0..16 {
        assert!(block_on(client.send(&Owned { number }).within(LONG / 6)).is_ok(), "{number}");
        let report = block_on(client.broadcast(&Sold { number }).within(LONG / 6));
        assert!(report.is_handled(), "{number}: {report:?}");
        client.publish(&Sold { number }).unwrap();
    }
    eventually("all events have left", || a.stats().sum(|shard| shard.events_sent) == 16);
    assert_eq!(a.stats().sum(|shard| shard.events_dropped), 0);
    drop(a);
    assert_eq!(answers.join().unwrap(), (16, 16, 16));
}

#[test]
fn an_event_with_a_key_is_not_overtaken_while_the_lane_to_its_shard_takes_long() {
    let offers = [Contract::of_request::<Owned>(), Contract::of_event::<Sold>()];
    let a = alone();
    // Where it says that it is, connections are made and nobody greets.
    let (_listener, endpoint) = listening();
    let mut peer = come_to(&a, Place { shard: 0, shards: 2, endpoint: &endpoint.to_string() }, &offers);
    let client = a.client();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..16 {
                client.publish(&Sold { number }).unwrap();
                assert!(block_on(client.send(&Owned { number }).within(LONG)).is_ok(), "{number}");
            }
        });
        for number in 0..16 {
            assert_eq!(peer.news().unwrap().0.kind, Kind::Event, "{number}");
            let (ask, _) = peer.news().unwrap();
            assert_eq!(ask.kind, Kind::Request, "{number}");
            peer.say(Header { call: ask.call, ..Header::new(Kind::Reply) }, &Blob { bytes: vec![1] });
        }
    });
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
