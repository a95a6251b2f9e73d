//! Callers from outside are woken by their answer or by their deadline, whatever their shard does meanwhile.

#![allow(clippy::unwrap_used, reason = "a failed helper is a failed test")]

mod common;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context as TaskContext, Poll, Wake, Waker};
use std::time::Duration;

use catga::prelude::*;
use common::eventually;

#[request]
struct Ask {}

/// Holds its shard up until it is let go.
#[request]
struct Hold {
    number: u64,
}

#[derive(Default)]
struct Gate {
    /// The number of the `Hold` that is being handled, or was last.
    held: AtomicU64,
    /// Those up to this number may go.
    let_go: AtomicU64,
}

struct Desk(Arc<Gate>);

impl Desk {
    fn ask(&mut self, _: &Archived<Ask>, _: &Context) -> Result<(), Fault> {
        Ok(())
    }

    fn hold(&mut self, hold: &Archived<Hold>, _: &Context) -> Result<(), Fault> {
        let number = hold.number.to_native();
        self.0.held.store(number, Ordering::SeqCst);
        while self.0.let_go.load(Ordering::SeqCst) < number {
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

fn engine(gate: &Arc<Gate>) -> Engine {
    let gate = gate.clone();
    let desk = move |_| Desk(gate.clone());
    Engine::builder()
        .shards(1)
        .service(desk, |routes| routes.request(Desk::ask).request(Desk::hold))
        .start()
        .unwrap()
}

impl Gate {
    fn holds(&self, number: u64) {
        eventually("the shard is held up", || self.held.load(Ordering::SeqCst) == number);
    }

    fn let_go(&self, number: u64) {
        self.let_go.store(number, Ordering::SeqCst);
    }
}

/// Counts how often it was woken.
#[derive(Default)]
struct Woken(AtomicU64);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Woken {
    fn count(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

const LONG: Duration = Duration::from_secs(60);

/// Begins a call, which does not end at once.
fn begin<F: Future + Unpin>(call: &mut F, waker: &Waker) {
    assert!(Pin::new(call).poll(&mut TaskContext::from_waker(waker)).is_pending());
}

static HOLDS: [Hold; 2] = [Hold { number: 1 }, Hold { number: 2 }];

/// Two calls that hold the shard up; the first does so already, and the second has not begun.
fn hold_up<'a>(client: &'a Client, gate: &Gate) -> [impl Future + Unpin + use<'a>; 2] {
    let mut held = HOLDS.each_ref().map(|hold| Box::pin(client.send(hold).within(LONG)));
    begin(&mut held[0], Waker::noop());
    gate.holds(1);
    held
}

#[test]
fn who_is_answered_is_woken_by_the_deadline_at_the_latest_though_the_next_handler_does_not_return() {
    let gate = Arc::new(Gate::default());
    let engine = engine(&gate);
    let client = engine.client();
    let [_first, mut second] = hold_up(&client, &gate);
    // The shard finds both behind the first, and takes them in one turn.
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(woken.clone());
    // Long enough to be answered before, though the machine may stop meanwhile.
    let mut asked = Box::pin(client.send(&Ask {}).within(Duration::from_secs(2)));
    begin(&mut asked, &waker);
    begin(&mut second, Waker::noop());
    gate.let_go(1);
    gate.holds(2);
    eventually("it is woken", || woken.count() > 0);
    let outcome = asked.as_mut().poll(&mut TaskContext::from_waker(&waker));
    assert!(matches!(outcome, Poll::Ready(Ok(_))), "it was answered in time");
    gate.let_go(2);
}

#[test]
fn a_call_whose_deadline_came_while_it_waited_for_room_ends_though_there_is_room_now() {
    let gate = Arc::new(Gate::default());
    let engine = engine(&gate);
    let client = engine.client();
    let [_first, mut second] = hold_up(&client, &gate);
    begin(&mut second, Waker::noop());
    let ask = Ask {};
    let mut full: Vec<_> =
        (1..catga::limits::INBOX_CALLS).map(|_| Box::pin(client.send(&ask).within(LONG))).collect();
    full.iter_mut().for_each(|call| begin(call, Waker::noop()));
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(woken.clone());
    let mut late = Box::pin(client.send(&ask).within(Duration::from_millis(100)));
    begin(&mut late, &waker);
    eventually("its deadline has woken it", || woken.count() > 0);
    // It is polled when the shard has made room, and is held up again.
    gate.let_go(1);
    gate.holds(2);
    let before = woken.count();
    let ended = late.as_mut().poll(&mut TaskContext::from_waker(&waker)).is_ready();
    eventually("it ends, or is woken again", || ended || woken.count() > before);
    gate.let_go(2);
}

#[test]
fn nothing_of_a_call_that_was_given_up_is_kept() {
    let gate = Arc::new(Gate::default());
    let engine = engine(&gate);
    let client = engine.client();
    let _held = hold_up(&client, &gate);
    let woken = Arc::new(Woken::default());
    let ask = Ask {};
    let mut calls: Vec<_> = (0..100).map(|_| Box::pin(client.send(&ask).within(LONG))).collect();
    calls.iter_mut().for_each(|call| begin(call, &Waker::from(woken.clone())));
    drop(calls);
    gate.let_go(1);
    eventually("nobody knows its waker any more", || Arc::strong_count(&woken) == 1);
}

#[test]
fn calls_that_come_to_nothing_before_they_are_sent_keep_no_place() {
    let engine = engine(&Arc::default());
    let client = engine.client();
    for _ in 0..=catga::limits::CLIENT_CALLS_MAX {
        assert!(client.send(&Ask {}).within(Duration::ZERO).block().is_err());
    }
    assert_eq!(client.send(&Ask {}).block().map(|_| ()), Ok(()));
}
