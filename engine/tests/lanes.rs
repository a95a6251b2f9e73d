//! Two nodes over real sockets: what comes through, what does not, and what callers are told of it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed helper is a failed test")]

mod common;
mod wire;

use std::fmt::Display;
use std::future::poll_fn;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use catga::prelude::*;
use catga::{Builder, Failure, List, NotSent, Refusal, Runtime, Unknown};
use catga_codec::{CallId, Contract, Header, Kind};
use common::{Directory, Reserved, address, eventually, while_it_is_at_work};
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
/// Given when `calls` have asked: all of them at one moment.
#[request(reply = Blob)]
struct GiveTogether {
    bytes: u32,
    calls: u32,
}
#[message]
struct Blob {
    bytes: Vec<u8>,
}
#[request]
struct Hang {}
/// Asks so often for so much, in one batch, at once or together.
#[request(reply = Tally)]
struct Gather {
    calls: u32,
    bytes: u32,
    together: bool,
}
/// Makes its calls from inside a shard.
#[request(reply = Tally)]
struct Relay {
    calls: u32,
    bytes: u32,
}
#[message]
struct Tally {
    replies: u64,
    errors: u64,
}

/// The same name, as another team understands it.
mod elsewhere {
    use catga::prelude::*;

    #[request]
    pub(crate) struct Give {
        pub(crate) text: String,
    }
    pub(crate) struct Other;
    impl Other {
        pub(crate) fn give(&mut self, give: &Archived<Give>, _: &Context) -> Result<(), Fault> {
            Err(Fault::new(give.text.as_str()))
        }
    }
}

const LONG: Duration = Duration::from_secs(60);

#[derive(Default)]
struct Store {
    waiting: Vec<Waker>,
}
impl Store {
    async fn give_together(
        state: &State<Self>,
        give: &Archived<GiveTogether>,
        _: &Context,
    ) -> Result<Blob, Fault> {
        let mut waits = false;
        poll_fn(|cx| {
            if std::mem::replace(&mut waits, true) {
                return Poll::Ready(());
            }
            let all = state.with(|store| {
                store.waiting.push(cx.waker().clone());
                let all = store.waiting.len() == give.calls.to_native() as usize;
                if all { std::mem::take(&mut store.waiting) } else { Vec::new() }
            });
            all.into_iter().for_each(Waker::wake);
            Poll::Pending
        })
        .await;
        Ok(Blob { bytes: vec![9; give.bytes.to_native() as usize] })
    }
    fn give(&mut self, give: &Archived<Give>, _: &Context) -> Result<Blob, Fault> {
        Ok(Blob { bytes: vec![9; give.bytes.to_native() as usize] })
    }
    fn take(&mut self, take: &Archived<Take>, _: &Context) -> Result<Blob, Fault> {
        Ok(Blob { bytes: vec![take.blob.iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte))] })
    }
    async fn hang(_: &State<Self>, _: &Archived<Hang>, _: &Context) -> Result<(), Fault> {
        std::future::pending().await
    }
}

struct Relayer;
impl Relayer {
    async fn gather(_: &State<Self>, gather: &Archived<Gather>, ctx: &Context) -> Result<Tally, Fault> {
        let (calls, bytes) = (gather.calls.to_native(), gather.bytes.to_native());
        let mut tally = Tally { replies: 0, errors: 0 };
        let mut take = |blob: Option<&Archived<Blob>>| match blob {
            Some(blob) if blob.bytes.len() == bytes as usize => tally.replies += 1,
            _ => tally.errors += 1,
        };
        if gather.together {
            let asks = (0..calls).map(|_| GiveTogether { bytes, calls });
            ctx.send_batch(asks).within(LONG).for_each(|_, outcome| take(outcome.ok())).await;
        } else {
            let asks = (0..calls).map(|_| Give { bytes });
            ctx.send_batch(asks).within(LONG).for_each(|_, outcome| take(outcome.ok())).await;
        }
        Ok(tally)
    }
    async fn relay(_: &State<Self>, relay: &Archived<Relay>, ctx: &Context) -> Result<Tally, Fault> {
        let (calls, bytes) = (relay.calls.to_native(), relay.bytes.to_native());
        let mut tally = Tally { replies: 0, errors: 0 };
        let take = Take { blob: vec![1; bytes as usize] };
        let batch = ctx.send_batch_of(std::iter::repeat_n(&take, calls as usize)).within(LONG);
        batch
            .for_each(|_, outcome| match outcome {
                Ok(reply) if reply.bytes[..] == [bytes as u8] => tally.replies += 1,
                _ => tally.errors += 1,
            })
            .await;
        let given = ctx.send(&Give { bytes }).await?;
        assert_eq!(given.bytes.len(), bytes as usize);
        Ok(tally)
    }
}

fn store(shards: usize, endpoint: &str) -> Engine {
    let services = |builder: Builder| {
        builder.service(
            |_| Store::default(),
            |routes| {
                routes
                    .request(Store::give)
                    .request(Store::take)
                    .request_async(Store::hang)
                    .request_async(Store::give_together)
            },
        )
    };
    let list = List::of(Vec::<String>::new()).node("b", endpoint);
    services(Engine::builder()).shards(shards).cluster(list).start().unwrap()
}

fn caller(shards: usize, runtime: Runtime, store: impl Display) -> Engine {
    Engine::builder()
        .shards(shards)
        .runtime(runtime)
        .service(|_| Relayer, |routes| routes.request_async(Relayer::relay).request_async(Relayer::gather))
        .cluster(List::of([format!("b={store}")]).node("a", "127.0.0.1:0"))
        .start()
        .unwrap()
}

#[test]
fn requests_and_replies_of_any_size_pass() {
    for (shards_a, shards_b, runtime) in
        [(1, 1, Runtime::Auto), (2, 2, Runtime::Epoll), (1, 2, Runtime::Auto)]
    {
        let b = store(shards_b, "127.0.0.1:0");
        let a = caller(shards_a, runtime, address(&b));
        let client = a.client();
        for bytes in [0, 1, 5 * 1024, 100 * 1024, 900 * 1024] {
            let tally = block_on(client.send(&Relay { calls: 20, bytes }).within(LONG)).unwrap();
            assert_eq!((tally.replies.to_native(), tally.errors.to_native()), (20, 0), "{bytes} bytes");
            let given = block_on(client.send(&Give { bytes }).within(LONG)).unwrap();
            assert_eq!(given.bytes.len(), bytes as usize);
        }
        let many = block_on(client.send(&Relay { calls: 20_000, bytes: 40 }).within(LONG)).unwrap();
        assert_eq!((many.replies.to_native(), many.errors.to_native()), (20_000, 0));
    }
}

#[test]
fn answers_that_come_all_at_once_arrive_though_they_are_more_than_a_lane_takes_at_once() {
    // Where one shard answers from its own turn, and where another hands its answers over.
    for shards_b in [1, 2] {
        let b = store(shards_b, "127.0.0.1:0");
        let a = caller(1, Runtime::Auto, address(&b));
        let client = a.client();
        for (calls, bytes, together) in [
            (1000, 16 * 1024, false),
            (100, 64 * 1024, false),
            (900, 16 * 1024, true),
            (200, 128 * 1024, true),
        ] {
            let together = together && shards_b == 1;
            let tally = block_on(client.send(&Gather { calls, bytes, together }).within(LONG)).unwrap();
            let seen = (tally.replies.to_native(), tally.errors.to_native());
            assert_eq!(seen, (u64::from(calls), 0), "{calls} of {bytes} bytes, together: {together}");
        }
        assert_eq!(a.stats().sum(|shard| shard.lanes_ended), 0);
    }
}

#[test]
fn nodes_of_one_machine_meet_at_a_socket_in_the_file_system() {
    let directory = Directory::new("lanes");
    let path = directory.join("b.sock");
    let endpoint = format!("unix:{}", path.display());
    let node = || List::of(Vec::<String>::new()).node("b", &*endpoint);
    // A file that a process left behind.
    drop(UnixListener::bind(&path).unwrap());
    let b = store(2, &endpoint);
    assert_eq!(b.endpoint().unwrap().to_string(), endpoint);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let a = caller(2, Runtime::Auto, &endpoint);
    let client = a.client();
    for bytes in [0, 5 * 1024, 900 * 1024] {
        let tally = block_on(client.send(&Relay { calls: 20, bytes }).within(LONG)).unwrap();
        assert_eq!((tally.replies.to_native(), tally.errors.to_native()), (20, 0), "{bytes} bytes");
    }
    let many = block_on(client.send(&Relay { calls: 20_000, bytes: 40 }).within(LONG)).unwrap();
    assert_eq!((many.replies.to_native(), many.errors.to_native()), (20_000, 0));
    let refused = Engine::builder().shards(1).cluster(node()).start().unwrap_err();
    assert!(refused.to_string().contains("another process listens here"), "{refused}");
    assert!(block_on(client.send(&Give { bytes: 1 }).within(LONG)).is_ok(), "the other start took nothing");
    b.stop(LONG);
    assert!(!path.exists());
    let _again = store(1, &endpoint);
    eventually("calls pass", || block_on(client.send(&Give { bytes: 1 }).within(LONG)).is_ok());
}

#[test]
fn what_is_longer_than_a_frame_of_the_lane_is_refused_and_nothing_else_suffers() {
    let b = store(1, "127.0.0.1:0");
    let a = caller(1, Runtime::Auto, address(&b));
    let client = a.client();
    for bytes in [2 << 20, 17 << 20] {
        let outcome = block_on(client.send(&Give { bytes }).within(LONG));
        assert_eq!(outcome.unwrap_err(), CallError::Failed(Failure::ReplyTooLarge));
        let outcome = block_on(client.send(&Take { blob: vec![1; bytes as usize] }).within(LONG));
        assert_eq!(outcome.unwrap_err(), CallError::NotSent(NotSent::TooLarge));
        // From inside a shard it is the same.
        let outcome = block_on(client.send(&Relay { calls: 3, bytes }).within(LONG)).unwrap_err();
        assert!(matches!(outcome, CallError::Rejected(_)), "{outcome}");
        assert!(block_on(client.send(&Give { bytes: 1 }).within(LONG)).is_ok());
    }
}

#[test]
fn without_a_peer_nothing_is_sent_and_when_it_comes_calls_pass() {
    let port = Reserved::new();
    let a = caller(1, Runtime::Auto, port.endpoint);
    let absent = block_on(a.client().send(&Give { bytes: 1 }).within(LONG)).unwrap_err();
    assert_eq!(absent, CallError::NotSent(NotSent::NoHandler));
    let b = store(1, &port.endpoint.to_string());
    eventually("calls pass", || block_on(a.client().send(&Give { bytes: 1 }).within(LONG)).is_ok());
    drop(b);
}

#[test]
fn a_peer_that_stops_ends_what_it_was_asked_and_is_found_again() {
    let port = Reserved::new();
    let endpoint = port.endpoint;
    let mut b = store(1, &endpoint.to_string());
    let a = caller(1, Runtime::Auto, endpoint);
    let client = a.client();
    for round in 0..3 {
        eventually("calls pass", || block_on(client.send(&Give { bytes: 1 }).within(LONG)).is_ok());
        let hanging: Vec<_> = (0..5)
            .map(|_| {
                let client = client.clone();
                std::thread::spawn(move || block_on(client.send(&Hang {}).within(LONG)))
            })
            .collect();
        let endless = client.clone();
        let busy = std::thread::spawn(move || {
            loop {
                if let Err(error) = block_on(endless.send(&Give { bytes: 10 }).within(LONG)) {
                    return error;
                }
            }
        });
        eventually("some are under way", || b.stats().sum(|shard| shard.handled) > 20);
        let begun = Instant::now();
        b.stop(Duration::from_millis(20));
        let ends = hanging.into_iter().map(|call| call.join().unwrap().unwrap_err());
        for error in ends.map(|error| error.to_string()).chain([busy.join().unwrap().to_string()]) {
            assert!(!error.contains("deadline passed"), "round {round}: {error}");
        }
        assert!(begun.elapsed() < LONG / 2, "they were told by their deadlines only");
        b = store(1, &endpoint.to_string());
    }
}

#[test]
fn a_node_that_stops_gets_nothing_new_and_lets_end_what_it_has() {
    let b = store(1, "127.0.0.1:0");
    let a = caller(1, Runtime::Auto, address(&b));
    let client = a.client();
    eventually("calls pass", || block_on(client.send(&Give { bytes: 1 }).within(LONG)).is_ok());
    let handled = b.stats().sum(|shard| shard.handled);
    let hanging = {
        let client = client.clone();
        // Longer than what is looked at meanwhile takes on a machine that stops now and then.
        std::thread::spawn(move || block_on(client.send(&Hang {}).within(Duration::from_secs(5))).map(drop))
    };
    eventually("it hangs", || b.stats().sum(|shard| shard.handled) > handled);
    let stopping = std::thread::spawn(move || b.stop(LONG));
    // Were these served, a node whose peers go on sending would never drain. Its peers know that it leaves.
    eventually("calls go elsewhere, where there is nobody", || {
        let outcome = block_on(client.send(&Give { bytes: 1 }).within(LONG));
        matches!(outcome, Err(CallError::NotSent(NotSent::OutOfReach)))
    });
    let b_now = a.nodes();
    assert_eq!(b_now.find("b").map(|member| member.state), Some(catga::NodeState::Leaving), "{b_now:?}");
    assert!(!hanging.is_finished() && !stopping.is_finished());
    hanging.join().unwrap().unwrap_err();
    let report = stopping.join().unwrap();
    assert!(report.drained && report.took < LONG / 2 && report.tasks_cut == 0, "{report}");
}

#[test]
fn another_layout_is_refused_by_name_and_the_rest_passes() {
    let list = List::of(Vec::<String>::new()).node("b", "127.0.0.1:0");
    let b = Engine::builder()
        .shards(1)
        .service(|_| elsewhere::Other, |routes| routes.request(elsewhere::Other::give))
        .service(|_| Store::default(), |routes| routes.request(Store::take))
        .cluster(list)
        .start()
        .unwrap();
    let a = caller(1, Runtime::Auto, address(&b));
    let client = a.client();
    eventually("calls pass", || block_on(client.send(&Take { blob: vec![1, 2] }).within(LONG)).is_ok());
    let outcome = block_on(client.send(&Give { bytes: 1 }).within(LONG)).unwrap_err();
    assert!(
        matches!(outcome, CallError::NotSent(NotSent::Layout) | CallError::Refused(Refusal::Layout)),
        "{outcome}"
    );
    assert!(block_on(client.send(&Take { blob: vec![3] }).within(LONG)).is_ok());
    assert_eq!(b.stats().sum(|shard| shard.lanes_ended), 0, "the lane lives on");
}

#[test]
fn garbage_on_the_port_is_turned_away_and_counted_while_others_go_on() {
    let b = store(1, "127.0.0.1:0");
    let endpoint = address(&b);
    let a = caller(1, Runtime::Auto, endpoint);
    let healthy = || assert!(block_on(a.client().send(&Give { bytes: 10 }).within(LONG)).is_ok());
    healthy();
    let refused = || b.stats().sum(|shard| shard.lanes_refused);
    let mut noise = 1u64;
    let random: Vec<u8> = std::iter::repeat_with(|| {
        noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (noise >> 56) as u8
    })
    .take(4096)
    .collect();
    let mut huge = [0u8; 64];
    Header::new(Kind::Hello).write(&mut huge);
    huge[..4].copy_from_slice(&u32::MAX.to_le_bytes());
    let no_kind = [48u8, 0, 0, 0].into_iter().chain([255; 60]).collect::<Vec<_>>();
    let pieces: [&[u8]; 5] =
        [&random, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n0123456789", &huge, &no_kind, &[0; 64]];
    for (number, piece) in pieces.into_iter().enumerate() {
        let before = refused();
        let mut peer = Peer::dial(endpoint);
        peer.raw(piece);
        peer.closed();
        eventually(&format!("piece {number} is counted"), || refused() == before + 1);
        healthy();
    }
    // Half a header, and then silence: the greeting takes too long. Counted before the peer is there, since it may be
    // gone as soon as it has spoken.
    let mut half = [0u8; 48];
    Header::new(Kind::Hello).write(&mut half);
    let ended = b.stats().sum(|shard| shard.lanes_ended);
    let mut peer = Peer::dial(endpoint);
    peer.raw(&half[..20]);
    peer.closed();
    eventually("it is let go", || b.stats().sum(|shard| shard.lanes_ended) > ended);
    // Half a header, and then the end.
    let mut peer = Peer::dial(endpoint);
    peer.raw(&half[..20]);
    drop(peer);
    healthy();
}

#[test]
fn a_node_of_another_cluster_is_turned_away() {
    let b = store(1, "127.0.0.1:0");
    let endpoint = address(&b);
    const CLUSTER_MISMATCH: u16 = 11;
    assert_eq!(Peer::hello(endpoint, "another", "x").closed(), Some(CLUSTER_MISMATCH));
    let list = List::of([format!("b={endpoint}")]).node("a", "127.0.0.1:0").named("another");
    let a = Engine::builder().shards(1).cluster(list).start().unwrap();
    let outcome = block_on(a.client().send(&Give { bytes: 1 }).within(LONG)).unwrap_err();
    assert_eq!(outcome, CallError::NotSent(NotSent::NoHandler));
}

#[test]
fn a_peer_that_answers_what_nobody_asked_loses_its_lane() {
    let b = store(1, "127.0.0.1:0");
    let mut peer = Peer::hello(address(&b), "catga", "x");
    assert_eq!(peer.frame().unwrap().0.kind, Kind::Welcome);
    peer.say(Header { call: CallId::new(3, 9), ..Header::new(Kind::Reply) }, &Blob { bytes: vec![] });
    assert!(peer.closed().is_some(), "it is told why");
    eventually("it is counted", || b.stats().sum(|shard| shard.lanes_refused) == 1);
}

#[test]
fn requests_by_hand_are_answered_whatever_their_header_says_besides() {
    let b = store(2, "127.0.0.1:0");
    let mut peer = Peer::hello(address(&b), "catga", "x");
    assert_eq!(peer.frame().unwrap().0.kind, Kind::Welcome);
    // The context word, the key and the shard are the sender's business, and mean nothing here.
    for (slot, context) in [(1, 0), (2, 1), (3, 12_345), (4, u64::MAX)] {
        let header = Header { context, key: 99, shard: 77, ..wire::request(slot) };
        peer.say(header, &Give { bytes: 5 });
        let (answer, _) = peer.news().unwrap();
        assert_eq!((answer.kind, answer.call), (Kind::Reply, header.call), "context {context}");
    }
    // A payload that is no archive of the message.
    let unreadable = Header { message: <Take as catga::Message>::ID, ..wire::request(5) };
    peer.send(unreadable, &[255; 3]);
    let (answer, _) = peer.news().unwrap();
    assert_eq!((answer.kind, answer.code), (Kind::Refused, Refusal::Unreadable.code()));
    // A message that nobody handles, and one whose time is over.
    peer.say(wire::request(6), &Relay { calls: 1, bytes: 1 });
    assert_eq!(peer.news().unwrap().0.code, Refusal::NoHandler.code());
    peer.say(Header { remaining_us: 0, ..wire::request(7) }, &Give { bytes: 5 });
    assert_eq!(peer.news().unwrap().0.code, Refusal::Expired.code());
}

#[test]
fn a_lane_to_a_shard_without_the_handler_reaches_the_shard_that_has_it() {
    let list = List::of(Vec::<String>::new()).node("b", "127.0.0.1:0");
    let b = Engine::builder()
        .shards(2)
        .service_on([1], |_| Store::default(), |routes| routes.request(Store::give).request(Store::take))
        .cluster(list)
        .start()
        .unwrap();
    // By hand, with the context word of a process that numbers its types in another way.
    let mut peer = Peer::hello(address(&b), "catga", "x");
    assert_eq!(peer.frame().unwrap().0.kind, Kind::Welcome);
    for (slot, context) in [(1, 0), (2, 1), (3, 2), (4, 12_345)] {
        peer.say(Header { context, ..wire::request(slot) }, &Give { bytes: 5 });
        let (answer, _) = peer.news().unwrap();
        assert_eq!((answer.kind, answer.code), (Kind::Reply, 0), "context {context}");
    }
    let a = caller(1, Runtime::Auto, address(&b));
    assert!(block_on(a.client().send(&Give { bytes: 3 }).within(LONG)).is_ok());
    let tally = block_on(a.client().send(&Relay { calls: 5_000, bytes: 700 }).within(LONG)).unwrap();
    assert_eq!(tally.replies.to_native(), 5_000);
}

#[test]
fn an_answer_of_another_type_is_no_reply_and_late_answers_find_nothing() {
    let (listener, endpoint) = listening();
    let peer = std::thread::spawn(move || {
        let mut peer = Peer::welcome(&listener, "b", &[Contract::of_request::<Give>()]);
        // The first call gets the reply to another one.
        let (ask, _) = peer.news().unwrap();
        peer.say(Header { call: ask.call, ..Header::new(Kind::Reply) }, &Tally { replies: 1, errors: 1 });
        // The second gets bytes that are none.
        let (ask, _) = peer.news().unwrap();
        let header =
            Header { call: ask.call, message: <Blob as catga::Message>::ID, ..Header::new(Kind::Reply) };
        peer.send(header, &[255; 24]);
        // The third is answered under a name that no call has; by its deadline it ends all the same.
        let (ask, _) = peer.news().unwrap();
        let stranger = CallId::new(ask.call.slot() + 1000, ask.call.generation());
        peer.say(Header { call: stranger, ..Header::new(Kind::Reply) }, &Blob { bytes: vec![1] });
        // The shard cancels it, sooner or later than the caller sends the fourth, which is answered as it should be.
        let (one, _) = peer.news().unwrap();
        let (other, _) = peer.news().unwrap();
        let (cancel, ask) = if one.kind == Kind::Cancel { (one, other) } else { (other, one) };
        assert_eq!((cancel.kind, ask.kind), (Kind::Cancel, Kind::Request));
        peer.say(Header { call: ask.call, ..Header::new(Kind::Reply) }, &Blob { bytes: vec![1, 2, 3] });
        peer.closed();
    });
    let a = caller(1, Runtime::Auto, endpoint);
    let client = a.client();
    let unreadable = CallError::Unknown(Unknown::Unreadable);
    assert_eq!(block_on(client.send(&Give { bytes: 1 }).within(LONG)).unwrap_err(), unreadable);
    assert_eq!(block_on(client.send(&Give { bytes: 1 }).within(LONG)).unwrap_err(), unreadable);
    let third = while_it_is_at_work(|within| block_on(client.send(&Give { bytes: 1 }).within(within)));
    assert_eq!(third.unwrap_err(), CallError::Unknown(Unknown::Deadline));
    eventually("its answer is late", || a.stats().sum(|shard| shard.answers_late) == 1);
    let fourth = block_on(client.send(&Give { bytes: 1 }).within(LONG)).unwrap();
    assert_eq!(fourth.bytes[..], [1, 2, 3]);
    drop(a);
    peer.join().unwrap();
}
