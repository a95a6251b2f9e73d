//! The cluster's key over real sockets: who has it comes in, and whoever has not is turned away, told why and counted.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed helper is a failed test")]

mod common;
mod wire;

use std::net::SocketAddr;
use std::time::Duration;

use catga::prelude::*;
use catga::{List, NotSent};
use catga_codec::{Header, Kind};
use common::{address, eventually};
use pollster::block_on;
use wire::{PROOF, Peer, dialers_proof, greeting, listening};

#[request(reply = Number)]
struct Double {
    number: u32,
}
#[message]
struct Number {
    number: u32,
}

struct Doubler;
impl Doubler {
    fn double(&mut self, double: &Archived<Double>, _: &Context) -> Result<Number, Fault> {
        Ok(Number { number: 2 * double.number.to_native() })
    }
}

const LONG: Duration = Duration::from_secs(60);
const KEY: &str = "the key of these tests";

/// As they travel in the code of a Close.
const GREETING_TIMEOUT: u16 = 7;
const MALFORMED_GREETING: u16 = 9;
const FRAME_BEFORE_GREETING: u16 = 15;
const SECOND_GREETING: u16 = 16;
const WRONG_ROLE: u16 = 17;
const WRONG_KEY: u16 = 25;
const KEY_MISSING: u16 = 26;

/// Node `id` of this list, which has this key or none.
fn node(id: &str, key: Option<&str>, peers: &[(&str, SocketAddr)]) -> Engine {
    let list = List::of(peers.iter().map(|(peer, endpoint)| format!("{peer}={endpoint}")));
    let list = list.node(id, "127.0.0.1:0");
    let list = if let Some(key) = key { list.key(key) } else { list };
    let builder = Engine::builder().shards(1).cluster(list);
    if peers.is_empty() {
        builder.service(|_| Doubler, |routes| routes.request(Doubler::double)).start().unwrap()
    } else {
        builder.start().unwrap()
    }
}

fn call(node: &Engine) -> Result<u32, CallError<Fault>> {
    block_on(node.client().send(&Double { number: 21 }).within(LONG)).map(|reply| reply.number.to_native())
}

fn unproven(node: &Engine) -> u64 {
    let stats = node.stats();
    assert!(stats.sum(|shard| shard.lanes_unproven) <= stats.sum(|shard| shard.lanes_refused));
    stats.sum(|shard| shard.lanes_unproven)
}

/// A peer made by hand that says to have a key, and proves itself by this one.
fn knock(endpoint: SocketAddr, key: &str) -> Peer {
    Peer::hello_with(endpoint, key.as_bytes(), greeting("catga", "x", true, &[]))
}

/// A peer made by hand that was welcomed, and the two payloads that it would have to prove itself by.
fn welcomed(endpoint: SocketAddr) -> (Peer, Vec<u8>, Vec<u8>) {
    let hello = greeting("catga", "x", true, &[]);
    let mut peer = Peer::hello_with(endpoint, b"", hello.clone()).unproven();
    let (header, welcome) = peer.frame().unwrap();
    assert_eq!(header.kind, Kind::Welcome);
    (peer, hello, welcome)
}

#[test]
fn nodes_with_one_key_or_none_call_each_other() {
    for key in [Some(KEY), None] {
        let b = node("b", key, &[]);
        let a = node("a", key, &[("b", address(&b))]);
        assert_eq!(call(&a).unwrap(), 42);
        assert_eq!((unproven(&a), unproven(&b)), (0, 0));
    }
}

#[test]
fn nodes_with_different_keys_or_one_key_do_not_meet_and_both_count_it() {
    for (here, there) in [(Some("another key than theirs"), Some(KEY)), (None, Some(KEY)), (Some(KEY), None)]
    {
        let b = node("b", there, &[]);
        let a = node("a", here, &[("b", address(&b))]);
        assert_eq!(call(&a).unwrap_err(), CallError::NotSent(NotSent::NoHandler));
        eventually("both count it", || unproven(&a) > 0 && unproven(&b) > 0);
        for stats in [a.stats(), b.stats()] {
            assert_eq!(stats.sum(|shard| shard.lanes_opened), 0);
            assert_eq!(stats.sum(|shard| shard.handled), 0);
        }
    }
}

#[test]
fn a_node_with_a_key_may_listen_off_loopback() {
    let list = List::of(Vec::<String>::new()).node("b", "0.0.0.0:0").announce("127.0.0.1:0").key(KEY);
    let b = Engine::builder().shards(1).cluster(list).start().unwrap();
    assert!(!address(&b).ip().is_loopback());
}

#[test]
fn whoever_does_not_prove_the_key_is_told_why_and_nothing_of_theirs_is_run() {
    let b = node("b", Some(KEY), &[]);
    let endpoint = address(&b);
    let mut expected = 0;
    let mut counted = |what: &str| {
        expected += 1;
        eventually(what, || unproven(&b) == expected);
    };
    assert_eq!(Peer::hello(endpoint, "catga", "x").closed(), Some(KEY_MISSING));
    counted("no key");
    assert_eq!(knock(endpoint, "another key than theirs").closed(), Some(WRONG_KEY));
    counted("another key");
    // A request right behind a wrong proof.
    let mut peer = knock(endpoint, "another key than theirs");
    assert_eq!(peer.frame().unwrap().0.kind, Kind::Welcome);
    peer.say(wire::request(1), &Double { number: 1 });
    assert_eq!(peer.closed(), Some(WRONG_KEY));
    counted("a wrong proof and a request");
    // A request in place of the proof, and a proof in place of the greeting.
    let (mut peer, ..) = welcomed(endpoint);
    peer.say(wire::request(1), &Double { number: 1 });
    assert_eq!(peer.closed(), Some(FRAME_BEFORE_GREETING));
    let mut peer = Peer::dial(endpoint);
    peer.send(Header::new(Kind::Proof), &[1; PROOF]);
    assert_eq!(peer.closed(), Some(FRAME_BEFORE_GREETING));
    // A second greeting, the Welcome itself, and half a proof.
    let (mut peer, hello, _) = welcomed(endpoint);
    peer.send(Header::new(Kind::Hello), &hello);
    assert_eq!(peer.closed(), Some(SECOND_GREETING));
    let (mut peer, _, welcome) = welcomed(endpoint);
    peer.send(Header::new(Kind::Welcome), &welcome);
    assert_eq!(peer.closed(), Some(WRONG_ROLE));
    let (mut peer, hello, welcome) = welcomed(endpoint);
    let proof = dialers_proof(KEY.as_bytes(), &hello, &welcome);
    peer.send(Header::new(Kind::Proof), &proof[..PROOF / 2]);
    assert_eq!(peer.closed(), Some(MALFORMED_GREETING));
    // The right key, for a greeting of which one bit was another on its way.
    let (mut peer, mut hello, welcome) = welcomed(endpoint);
    hello[40] ^= 1;
    peer.send(Header::new(Kind::Proof), &dialers_proof(KEY.as_bytes(), &hello, &welcome));
    assert_eq!(peer.closed(), Some(WRONG_KEY));
    counted("an altered greeting");
    let stats = b.stats();
    assert_eq!((stats.sum(|shard| shard.lanes_opened), stats.sum(|shard| shard.handled)), (0, 0));
    // Who has it still comes in, and a proof on an open lane is one too many.
    let mut peer = knock(endpoint, KEY);
    assert_eq!(peer.frame().unwrap().0.kind, Kind::Welcome);
    peer.say(wire::request(1), &Double { number: 1 });
    assert_eq!(peer.news().unwrap().0.kind, Kind::Reply);
    peer.send(Header::new(Kind::Proof), &[1; PROOF]);
    assert_eq!(peer.closed(), Some(SECOND_GREETING));
}

#[test]
fn a_recorded_handshake_opens_no_second_lane() {
    let b = node("b", Some(KEY), &[]);
    let endpoint = address(&b);
    let (mut peer, hello, welcome) = welcomed(endpoint);
    let proof = dialers_proof(KEY.as_bytes(), &hello, &welcome);
    peer.send(Header::new(Kind::Proof), &proof);
    peer.say(wire::request(1), &Double { number: 1 });
    assert_eq!(peer.news().unwrap().0.kind, Kind::Reply);
    let (mut again, _, other_welcome) = welcomed(endpoint);
    let nonce = 40..56;
    assert_ne!(welcome[nonce.clone()], other_welcome[nonce.clone()], "each lane has its own nonce");
    assert!(welcome[nonce] != [0; 16]);
    again.send(Header::new(Kind::Proof), &proof);
    again.say(wire::request(2), &Double { number: 2 });
    assert_eq!(again.closed(), Some(WRONG_KEY));
    // The first lane knows nothing of it.
    peer.say(wire::request(3), &Double { number: 3 });
    assert_eq!(peer.news().unwrap().0.kind, Kind::Reply);
}

#[test]
fn a_stranger_that_was_dialed_gets_nothing_by_what_it_can_send_back() {
    let (listener, endpoint) = listening();
    let a = node("a", Some(KEY), &[("b", endpoint)]);
    // Its own words, with a proof out of the air.
    let (mut peer, hello) = Peer::greeted(&listener);
    peer.send(Header::new(Kind::Welcome), &[hello.as_slice(), &[7; PROOF]].concat());
    assert!(peer.closed().is_some());
    // The right words, with a proof by a key that it guesses.
    let (mut peer, hello) = Peer::greeted(&listener);
    let words = greeting("catga", "b", true, &[]);
    peer.send(Header::new(Kind::Welcome), &wire::welcome(b"a guess of many bytes", &hello, &words));
    assert_eq!(peer.closed(), Some(WRONG_KEY));
    eventually("it is counted", || unproven(&a) == 1);
    // A proof made by the dialer itself, which the stranger dials meanwhile under another name.
    let (mut peer, hello) = Peer::greeted(&listener);
    let (mut back, _, its_welcome) = welcomed(address(&a));
    peer.send(Header::new(Kind::Welcome), &its_welcome);
    assert!(peer.closed().is_some());
    let lent = its_welcome.last_chunk::<PROOF>().unwrap();
    let (mut third, _) = Peer::greeted(&listener);
    third.send(Header::new(Kind::Welcome), &[words.as_slice(), lent].concat());
    assert_eq!(third.closed(), Some(WRONG_KEY));
    back.send(Header::new(Kind::Proof), &dialers_proof(b"", &hello, &its_welcome));
    assert_eq!(back.closed(), Some(WRONG_KEY));
    assert_eq!(a.stats().sum(|shard| shard.lanes_opened), 0);
}

#[test]
fn who_says_nothing_after_the_welcome_or_hangs_up_holds_no_lane() {
    let b = node("b", Some(KEY), &[]);
    let endpoint = address(&b);
    let ended = || b.stats().sum(|shard| shard.lanes_ended);
    let (gone, ..) = welcomed(endpoint);
    drop(gone);
    eventually("the end is seen", || ended() == 1);
    let (mut silent, ..) = welcomed(endpoint);
    assert_eq!(silent.closed(), Some(GREETING_TIMEOUT));
    eventually("it is let go", || ended() == 2);
    assert_eq!(b.stats().sum(|shard| shard.lanes_opened), 0);
}

#[test]
fn a_greeting_says_where_the_node_is_reached() {
    let b = node("b", Some(KEY), &[]);
    let (_peer, _, welcome) = welcomed(address(&b));
    // Behind the texts of the cluster and the node.
    let at = 56 + 2 + "catga".len() + 2 + "b".len();
    let expected = address(&b).to_string();
    assert_eq!(welcome[at..at + 2], (expected.len() as u16).to_le_bytes());
    assert_eq!(&welcome[at + 2..at + 2 + expected.len()], expected.as_bytes());
}
