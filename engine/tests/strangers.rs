//! Whoever comes to the port without being a node of this cluster, or is one and behaves badly: turned away with a reason, which
//! is counted and in the log with the address it came from, while calls of others go on.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed helper is a failed test")]

mod common;
mod wire;

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use catga::prelude::*;
use catga::{List, NotSent, Refusal};
use catga_codec::{Header, Kind};
use common::bystander::Bystander;
use common::log::Log;
use common::{Reserved, eventually};
use pollster::block_on;
use wire::{Peer, greeting, listening};

#[request(reply = Blob)]
struct Give {
    bytes: u32,
}
#[message]
struct Blob {
    bytes: Vec<u8>,
}

struct Store;
impl Store {
    fn give(&mut self, give: &Archived<Give>, _: &Context) -> Result<Blob, Fault> {
        Ok(Blob { bytes: vec![9; give.bytes.to_native() as usize] })
    }
}

const LONG: Duration = Duration::from_secs(60);

/// As they travel in the code of a Close.
const SUPERSEDED: u16 = 4;
const MALFORMED_GREETING: u16 = 9;
const VERSION_MISMATCH: u16 = 10;
const CONNECTED_TO_SELF: u16 = 12;
const FRAME_BEFORE_GREETING: u16 = 15;
const UNKNOWN_KIND: u16 = 19;
const FRAME_TOO_LONG: u16 = 21;

fn store(list: List) -> Engine {
    let builder = Engine::builder().shards(1).cluster(list);
    builder.service(|_| Store, |routes| routes.request(Store::give)).start().unwrap()
}

/// A store, and a node that calls it.
fn pair() -> (Engine, Engine) {
    let b = store(List::of(Vec::<String>::new()).node("b", "127.0.0.1:0"));
    let a = caller(common::address(&b));
    assert_eq!(call(&a), Ok(()));
    (a, b)
}

fn caller(store: SocketAddr) -> Engine {
    let list = List::of([format!("b={store}")]).node("a", "127.0.0.1:0");
    Engine::builder().shards(1).cluster(list).start().unwrap()
}

fn call(node: &Engine) -> Result<(), CallError<Fault>> {
    block_on(node.client().send(&Give { bytes: 10 }).within(LONG)).map(|_| ())
}

fn refused(node: &Engine) -> u64 {
    node.stats().sum(|shard| shard.lanes_refused)
}

/// What all tests of this file log.
fn log() -> Log {
    static LOG: OnceLock<Log> = OnceLock::new();
    let log = LOG.get_or_init(|| {
        let log = Log::default();
        tracing::subscriber::set_global_default(log.clone()).unwrap();
        log
    });
    log.clone()
}

/// Where the peers dial from whose lines in the log are looked at: each test has its own.
const LOGGED: [Ipv4Addr; 3] =
    [Ipv4Addr::new(127, 0, 1, 1), Ipv4Addr::new(127, 0, 1, 2), Ipv4Addr::new(127, 0, 1, 3)];

/// Waits for the line about the end of this peer's lane, and returns it.
fn line_about(peer: SocketAddr) -> String {
    let (log, mut found) = (log(), None);
    eventually("the log names the peer", || {
        let peer = format!("\"{peer}\"");
        found = log.find(|line| line.contains("a lane has ended") && line.contains(&peer));
        found.is_some()
    });
    found.unwrap()
}

#[test]
fn what_is_no_greeting_of_this_cluster_is_turned_away_with_its_reason() {
    log();
    let (a, b) = pair();
    let endpoint = common::address(&b);
    let hello = |greeting: &[u8]| wire::framed(Header::new(Kind::Hello), greeting);
    let mut other_version = greeting("catga", "x", false, &[]);
    other_version[8..12].copy_from_slice(&[99, 0, 100, 0]);
    let tls = [&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3][..], &[0x5a; 506]].concat();
    let mut huge = wire::framed(Header::new(Kind::Hello), &[]);
    huge[..4].copy_from_slice(&u32::MAX.to_le_bytes());
    let early = wire::archived(wire::request(1), &Give { bytes: 1 });
    let no_kind = [&[48u8, 0, 0, 0][..], &[255; 60]].concat();
    let cut = &greeting("catga", "x", false, &[])[..40];
    let cases: [(&str, Vec<u8>, u16, &str); 8] = [
        ("TLS", tls, FRAME_TOO_LONG, "longer"),
        (
            "HTTP",
            b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n0123456789012345".to_vec(),
            FRAME_TOO_LONG,
            "longer",
        ),
        ("a length of 4 GiB", huge, FRAME_TOO_LONG, "longer"),
        ("no kind", no_kind, UNKNOWN_KIND, "kind"),
        ("a request", early, FRAME_BEFORE_GREETING, "before"),
        ("another version", hello(&other_version), VERSION_MISMATCH, "version"),
        ("half a greeting", hello(cut), MALFORMED_GREETING, "greeting"),
        ("this node itself", hello(&greeting("catga", "b", false, &[])), CONNECTED_TO_SELF, "its own id"),
    ];
    for (what, bytes, reason, says) in cases {
        let before = refused(&b);
        let mut peer = Peer::dial_from(LOGGED[0], endpoint);
        peer.raw(&bytes);
        let address = peer.address();
        assert_eq!(peer.closed(), Some(reason), "{what}");
        eventually(&format!("{what} is counted"), || refused(&b) == before + 1);
        let line = line_about(address);
        assert!(line.contains(says), "{what}: {line}");
        assert_eq!(call(&a), Ok(()), "{what}");
    }
    assert_eq!(b.stats().sum(|shard| shard.lanes_opened), 1);
}

#[test]
fn the_end_of_a_lane_is_logged_with_the_node_that_it_led_to_and_what_moved_on_it() {
    log();
    let b = store(List::of(Vec::<String>::new()).node("b", "127.0.0.1:0"));
    let hello = greeting("catga", "the-other-node", false, &[]);
    let mut peer = Peer::dial_from(LOGGED[1], common::address(&b)).greets(b"", hello);
    assert_eq!(peer.frame().unwrap().0.kind, Kind::Welcome);
    peer.say(wire::request(1), &Give { bytes: 1 });
    assert_eq!(peer.news().unwrap().0.kind, Kind::Reply);
    let address = peer.address();
    drop(peer);
    let line = line_about(address);
    assert!(line.contains("\"the-other-node\""), "{line}");
    assert!(line.contains("\"disconnected\"") && line.contains(" bytes sent, "), "{line}");
}

#[test]
fn of_two_nodes_with_one_id_the_later_stays() {
    log();
    let b = store(List::of(Vec::<String>::new()).node("b", "127.0.0.1:0"));
    let join = |incarnation: u64| {
        let mut hello = greeting("catga", "x", false, &[]);
        hello[32..40].copy_from_slice(&incarnation.to_le_bytes());
        let mut peer = Peer::hello_with(common::address(&b), b"", hello);
        assert_eq!(peer.frame().unwrap().0.kind, Kind::Welcome);
        peer
    };
    let works = |peer: &mut Peer| {
        peer.say(wire::request(1), &Give { bytes: 1 });
        assert_eq!(peer.news().unwrap().0.kind, Kind::Reply);
    };
    let mut earlier = join(7);
    works(&mut earlier);
    let mut later = join(8);
    works(&mut later);
    assert_eq!(earlier.closed(), Some(SUPERSEDED));
    assert_eq!(join(7).closed(), Some(SUPERSEDED), "it does not come back");
    works(&mut later);
    assert_eq!(b.stats().sum(|shard| shard.lanes_open), 1);
}

#[test]
fn a_node_that_is_told_to_dial_itself_says_so_and_works() {
    let reserved = Reserved::new();
    let (endpoint, port) = (reserved.endpoint, reserved.endpoint.port());
    let log = log();
    let list = List::of([format!("c=127.0.0.2:{port}")]).node("b", format!("0.0.0.0:{port}"));
    let b = store(list.announce(endpoint.to_string()).insecure());
    eventually("both ends are counted", || refused(&b) >= 2);
    // Anybody could say so: a node that is named is looked for on and on.
    eventually("it says so", || {
        let said = format!("no lane to c at 127.0.0.2:{port}");
        log.find(|line| line.contains(&said)).is_some()
    });
    assert_eq!(b.stats().sum(|shard| shard.lanes_opened), 0);
    assert_eq!(call(&b), Ok(()));
    // Others reach it where it says.
    let a = caller(endpoint);
    assert_eq!(call(&a), Ok(()));
    assert_eq!(
        a.nodes().find("b").map(|member| member.node.endpoint.to_string()),
        Some(endpoint.to_string())
    );
}

#[test]
fn a_peer_that_never_reads_loses_its_lane_and_nobody_else_anything() {
    log();
    let (a, b) = pair();
    let hello = greeting("catga", "x", false, &[]);
    let mut peer = Peer::dial_from(LOGGED[2], common::address(&b)).greets(b"", hello);
    assert_eq!(peer.frame().unwrap().0.kind, Kind::Welcome);
    let ask = wire::archived(wire::request(1), &Give { bytes: 900_000 });
    eventually("it is let go", || {
        assert_eq!(call(&a), Ok(()));
        // It lives, and asks for more; it only does not read.
        peer.raw(&ask);
        refused(&b) == 1
    });
    let line = line_about(peer.address());
    assert!(line.contains("\"x\""), "{line}");
    assert_eq!(call(&a), Ok(()));
}

#[test]
fn who_leaves_too_many_answers_unread_is_refused_more_until_they_are_read() {
    let b = store(List::of(Vec::<String>::new()).node("b", "127.0.0.1:0"));
    let mut peer = Peer::hello(common::address(&b), "catga", "x");
    assert_eq!(peer.frame().unwrap().0.kind, Kind::Welcome);
    let (bytes, mut asked) = (900_000, 0);
    let mut ask = |peer: &mut Peer| {
        asked += 1;
        peer.say(wire::request(asked), &Give { bytes });
        asked
    };
    eventually("it is refused more", || {
        ask(&mut peer);
        b.stats().sum(|shard| shard.refused) > 0
    });
    let last = ask(&mut peer);
    let (mut replies, mut refused) = (0, 0);
    for _ in 0..last {
        let (answer, body) = peer.news().unwrap();
        match answer.kind {
            Kind::Reply => replies += body.len(),
            Kind::Refused if answer.code == Refusal::Overloaded.code() => refused += 1,
            other => panic!("{other:?}, {}", answer.code),
        }
    }
    assert!(refused > 0 && replies > 32 << 20, "{refused} refused, {replies} bytes of replies");
    ask(&mut peer);
    let (answer, body) = peer.news().unwrap();
    assert!(answer.kind == Kind::Reply && body.len() > bytes as usize, "the lane serves on");
    assert_eq!(b.stats().sum(|shard| shard.lanes_ended), 0);
}

#[test]
fn thousands_of_connections_that_say_nothing_are_closed_and_calls_go_on() {
    // Both ends are in this process, and other tests need some as well.
    let descriptors = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(20_000);
    let count = (descriptors.saturating_sub(1_000) / 2).min(10_000);
    assert!(count >= 2_000, "this test needs 5,000 descriptors; raise `ulimit -n`, which is {descriptors}");
    let (a, b) = pair();
    let endpoint = common::address(&b);
    let mut silent = Vec::new();
    for number in 0..count {
        silent.push(TcpStream::connect(endpoint).unwrap());
        if number % 100 == 0 {
            assert_eq!(call(&a), Ok(()));
        }
    }
    let connected = Bystander::start();
    eventually("all are closed and counted", || {
        assert_eq!(call(&a), Ok(()));
        refused(&b) == count
    });
    // Two seconds for the last of them, and what a busy machine may add.
    assert!(connected.elapsed() < Duration::from_secs(12), "after {:?} only", connected.elapsed());
    assert_eq!(b.stats().sum(|shard| shard.lanes_open), 1);
}

/// All of it within the time of a greeting, two seconds. Where the machine needs more for that, the slow one is closed for being
/// slow, which shows nothing: then it is looked at again.
#[test]
fn who_has_greeted_takes_no_room_from_those_who_greet() {
    assert!((0..10).any(|_| others_greet_while_one_is_slow()), "never within the time of a greeting");
}

/// Says whether it was in time.
fn others_greet_while_one_is_slow() -> bool {
    let b = store(List::of(Vec::<String>::new()).node("b", "127.0.0.1:0"));
    let hello = greeting("catga", "slow", false, &[]);
    let begun = Instant::now();
    let mut slow = Peer::dial(common::address(&b));
    // More than may greet at once, but one after the other: some stay, some go again.
    let mut stay = Vec::new();
    for number in 0..300 {
        let mut peer = Peer::hello(common::address(&b), "catga", &format!("x{number}"));
        assert_eq!(peer.frame().unwrap().0.kind, Kind::Welcome);
        if number % 3 > 0 {
            stay.push(peer);
        }
    }
    eventually("all have opened", || b.stats().sum(|shard| shard.lanes_opened) == 300);
    slow.send(Header::new(Kind::Hello), &hello);
    let welcome = slow.frame();
    if welcome.is_none() && begun.elapsed() >= Duration::from_secs(2) {
        return false;
    }
    assert_eq!(welcome.expect("it was not closed for the others").0.kind, Kind::Welcome);
    assert_eq!(refused(&b), 0);
    true
}

#[test]
fn where_nobody_listens_and_where_strangers_do_nothing_is_sent() {
    log();
    // Something that takes connections and answers with what is no greeting.
    let (listener, endpoint) = listening();
    let stranger = std::thread::spawn(move || {
        use std::io::Write;
        while let Ok((mut stream, _)) = listener.accept() {
            if stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").is_err() {
                return;
            }
        }
    });
    let a = caller(endpoint);
    assert_eq!(call(&a), Err(CallError::NotSent(NotSent::NoHandler)));
    eventually("it is counted", || refused(&a) > 0);
    drop((a, stranger));
}

#[test]
fn who_cannot_be_connected_to_is_logged_with_what_the_system_said() {
    let log = log();
    // No other test dials this address, and nobody listens at the port as long as it is held.
    let held = Reserved::at(Ipv4Addr::new(127, 0, 1, 4));
    let nobody = held.endpoint;
    let path = std::env::temp_dir().join(format!("catga-nobody-{}.sock", std::process::id()));
    let list = List::of([format!("b={nobody}"), format!("c=unix:{}", path.display())]);
    let a = Engine::builder().shards(1).cluster(list.node("a", "127.0.0.1:0")).start().unwrap();
    for peer in [nobody.to_string(), path.display().to_string()] {
        let says = |line: &str, what| line.contains(&peer) && line.contains(what);
        eventually("the log has the peer", || log.find(|line| says(line, "could not")).is_some());
        let line = log.find(|line| says(line, "could not")).unwrap();
        assert!(line.contains("os error"), "{line}");
        assert_eq!(log.find(|line| says(line, "has ended")), None, "there was no lane");
    }
    drop((a, held));
}
