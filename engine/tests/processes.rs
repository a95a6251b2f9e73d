//! Nodes that are processes: killed, started again, frozen, under load from a caller that keeps an account of every call.
//!
//! The account must agree with what the desks say of themselves. An order that was placed was replied to, or its caller was
//! told that nobody knows: never refused, never not sent. Nothing runs twice.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed helper is a failed test")]

#[allow(dead_code, reason = "its `main` is for the command line")]
#[path = "../examples/cluster_desk.rs"]
mod cluster_desk;
mod common;
#[path = "processes/mod.rs"]
mod harness;

use std::time::Duration;

use catga::Unknown;
use cluster_desk::load::{Outcome, Tally};
use common::bystander::Bystander;
use harness::{Cluster, Load};

/// Orders a second: enough that some are under way at any time.
const RATE: u32 = 2_000;
/// The time that a call may take where nothing but a failed test would take it.
const LONG: Duration = Duration::from_secs(20);

#[test]
fn in_a_process_of_its_own_this_binary_is_the_example() {
    harness::be_the_example();
}

/// What must be true of every account, whatever was done to the nodes: each call had one outcome, and none took longer.
#[track_caller]
fn check(tally: &Tally, within: Duration) {
    assert!(tally.is_right(), "{} of {} calls ended, {} wrong", tally.ended(), tally.sent, tally.wrong);
    for never in [Outcome::Rejected, Outcome::Failed] {
        assert_eq!(tally.count(never), 0, "{:?}", tally.reasons);
    }
    // Told by the end of the lane where `within` is less than the deadline. How late this thread sees it depends on the machine.
    assert!(tally.longest < within + Duration::from_secs(5), "a call took {:?}", tally.longest);
}

/// Waits for a while in which nothing fails, and all replies come from `desks`.
#[track_caller]
fn until_only_these_answer(load: &Load, desks: &[&str]) {
    let of_others = |tally: &Tally| tally.ended() - desks.iter().map(|desk| tally.of_desk(desk)).sum::<u64>();
    let mut before = load.tally();
    load.until(&format!("only {desks:?} answer, and nothing fails"), |tally| {
        if of_others(tally) > of_others(&before) {
            before = tally.clone();
        }
        desks.iter().all(|desk| tally.of_desk(desk) >= before.of_desk(desk) + 200)
    });
}

#[test]
fn when_a_node_is_killed_every_call_has_an_outcome_and_the_others_go_on() {
    let mut cluster = Cluster::of(["a", "b", "c"]);
    let load = Load::on(&cluster, RATE, LONG);
    load.until_replies_of(&["a", "b", "c"], 50);
    cluster.node("b").kill();
    until_only_these_answer(&load, &["a", "c"]);
    let tally = load.end();
    check(&tally, LONG / 2);
    let (unknown, replies) = (tally.count(Outcome::Unknown), tally.of_desk("a") + tally.of_desk("c"));
    let taken = cluster.end("a") + cluster.end("c");
    assert!(
        (replies..=replies + unknown).contains(&taken),
        "{taken} taken, {replies} replies, {unknown} unknown"
    );
}

#[test]
fn a_node_that_starts_again_on_its_port_is_used_again() {
    let mut cluster = Cluster::of(["a", "b"]);
    let load = Load::on(&cluster, RATE, LONG);
    for _ in 0..2 {
        load.until_replies_of(&["a", "b"], 50);
        cluster.node("b").kill();
        until_only_these_answer(&load, &["a"]);
        cluster.start("b");
    }
    until_only_these_answer(&load, &["a", "b"]);
    check(&load.end(), LONG / 2);
}

#[test]
fn a_frozen_node_costs_no_call_more_than_its_deadline_and_is_out_of_use_until_it_thaws() {
    let mut cluster = Cluster::of(["a", "b", "c"]);
    // Less than a silence may last, and more than a machine stops for.
    let within = Duration::from_millis(800);
    let load = Load::on(&cluster, RATE, within);
    load.until_replies_of(&["a", "b", "c"], 50);
    cluster.node("b").freeze();
    let frozen = Bystander::start();
    load.until("calls to it end by their deadlines", |tally| {
        tally.reasons.keys().any(|reason| reason.contains(&Unknown::Deadline.to_string()))
    });
    until_only_these_answer(&load, &["a", "c"]);
    assert!(frozen.elapsed() < Duration::from_secs(10), "out of use after {:?} only", frozen.elapsed());
    cluster.node("b").thaw();
    until_only_these_answer(&load, &["a", "b", "c"]);
    let tally = load.end();
    check(&tally, within);
    let (unknown, replied) = (tally.count(Outcome::Unknown), tally.count(Outcome::Replied));
    let [by_a, by_b, by_c] = ["a", "b", "c"].map(|id| cluster.end(id));
    // What lay in its sockets when it thawed was for calls that had ended: hundreds. What it had in its hands when it froze, a
    // few at most, had run before.
    let for_nobody = by_b - tally.of_desk("b");
    // A machine that stopped for longer than the calls had makes all desks work for nobody.
    let of_others = by_a + by_c - tally.of_desk("a") - tally.of_desk("c");
    assert!(
        for_nobody <= 20 + of_others,
        "b took {for_nobody} orders that nobody waited for any more, the others {of_others}"
    );
    let taken = by_a + by_b + by_c;
    assert!(
        (replied..=replied + unknown).contains(&taken),
        "{taken} taken, {replied} replied, {unknown} unknown"
    );
}

#[test]
fn nodes_that_are_ended_in_order_one_after_the_other_leave_nobody_in_doubt() {
    let mut cluster = Cluster::of(["a", "b"]);
    let load = Load::on(&cluster, RATE, LONG);
    let mut taken = 0;
    for (id, other) in [("a", "b"), ("b", "a"), ("a", "b")] {
        until_only_these_answer(&load, &["a", "b"]);
        taken += cluster.end(id);
        until_only_these_answer(&load, &[other]);
        cluster.start(id);
    }
    let tally = load.end();
    check(&tally, LONG / 2);
    taken += cluster.end("a") + cluster.end("b");
    assert_eq!(tally.count(Outcome::Unknown), 0, "{:?}", tally.reasons);
    assert_eq!(tally.count(Outcome::Replied), taken);
}
