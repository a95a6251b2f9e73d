//! `run`: an engine that waits for signals. Signals are for a whole process, so each test starts this binary again and
//! sends signals to it; what the child says on its output tells when.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed helper is a failed test")]

use std::io::{BufRead, BufReader, Lines};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use catga::prelude::*;
use catga::{Client, NotSent};
use futures_util::task::AtomicWaker;
use pollster::block_on;
use rustix::process::{Pid, Signal, kill_process};

#[request]
struct Wait {}
#[request]
struct Ping {}
#[request]
struct Forever {}

/// Lets the handler of [`Wait`] go on.
static GO_ON: AtomicBool = AtomicBool::new(false);
static WAITER: AtomicWaker = AtomicWaker::new();

struct Waiter;
impl Waiter {
    async fn wait(_: &State<Self>, _: &Archived<Wait>, _: &Context) -> Result<(), Fault> {
        say("in flight");
        std::future::poll_fn(|cx| {
            WAITER.register(cx.waker());
            if GO_ON.load(Ordering::SeqCst) { Poll::Ready(Ok(())) } else { Poll::Pending }
        })
        .await
    }
    fn forever(&mut self, _: &Archived<Forever>, _: &Context) -> Result<(), Fault> {
        say("in flight");
        loop {
            std::thread::park();
        }
    }
}
struct Ponger;
impl Ponger {
    fn pong(&mut self, _: &Archived<Ping>, _: &Context) -> Result<(), Fault> {
        Ok(())
    }
}

fn description() -> catga::Builder {
    Engine::builder()
        .shards(2)
        .drain(Duration::from_secs(600))
        .service_on([0], |_| Waiter, |routes| routes.request_async(Waiter::wait).request(Waiter::forever))
        .service_on([1], |_| Ponger, |routes| routes.request(Ponger::pong))
}

/// Waits until the engine takes no more calls.
fn until_it_drains(client: &Client) {
    while !matches!(block_on(client.send(&Ping {})), Err(CallError::NotSent(NotSent::Stopping))) {
        std::thread::yield_now();
    }
    say("draining");
}

// ---- the parent and its child -----------------------------------------------------------------------------------

const CHILD: &str = "CATGA_TEST_RUN_CHILD";

fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

/// A line for the parent, which is known from what the test harness prints.
fn say(line: &str) {
    println!("\nsays: {line}");
}

struct Process {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Process {
    /// This binary again, with one test.
    fn of(test: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(CHILD, "1")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    #[track_caller]
    fn until_it_says(&mut self, wanted: &str) {
        let wanted = format!("says: {wanted}");
        let mut seen = Vec::new();
        for line in self.lines.by_ref().map(Result::unwrap) {
            if line.starts_with(&wanted) {
                return;
            }
            seen.push(line);
        }
        panic!("the child ended without `{wanted}`: {seen:#?}");
    }

    /// Waits until the child has handlers for the signals: before that they would end it.
    fn until_it_runs(&self) {
        let status = format!("/proc/{}/status", self.child.id());
        let wanted =
            [Signal::TERM, Signal::INT].iter().fold(0, |mask, signal| mask | 1 << (signal.as_raw() - 1));
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            let text = std::fs::read_to_string(&status).unwrap();
            let caught = text.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
            if u64::from_str_radix(caught.trim(), 16).unwrap() & wanted == wanted {
                return;
            }
            assert!(Instant::now() < end, "the child does not wait for signals");
            std::thread::yield_now();
        }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    fn end(mut self) -> ExitStatus {
        for line in self.lines.by_ref() {
            println!("child: {}", line.unwrap());
        }
        self.child.wait().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Of a test that has failed. A child that has ended is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

// ---- the tests --------------------------------------------------------------------------------------------------

#[test]
fn sigterm_lets_a_call_in_flight_end_normally() {
    if !is_child() {
        let mut process = Process::of("sigterm_lets_a_call_in_flight_end_normally");
        process.until_it_says("in flight");
        process.until_it_runs();
        process.signal(Signal::TERM);
        process.until_it_says("stopped in");
        assert!(process.end().success());
        return;
    }
    let engine = description().start().unwrap();
    let client = engine.client();
    let call = {
        let client = client.clone();
        std::thread::spawn(move || block_on(client.send(&Wait {}).within(Duration::from_secs(600))).map(drop))
    };
    let release = std::thread::spawn(move || {
        until_it_drains(&client);
        GO_ON.store(true, Ordering::SeqCst);
        WAITER.wake();
    });
    let report = engine.run().unwrap();
    release.join().unwrap();
    call.join().unwrap().expect("the call ends as if nothing were");
    assert!(report.drained, "{report}");
    say(&report.to_string());
}

#[test]
fn a_second_sigint_ends_the_draining_at_once_even_of_a_handler_that_never_returns() {
    if !is_child() {
        let mut process =
            Process::of("a_second_sigint_ends_the_draining_at_once_even_of_a_handler_that_never_returns");
        process.until_it_says("in flight");
        process.until_it_runs();
        process.signal(Signal::INT);
        process.until_it_says("draining");
        let start = Instant::now();
        process.signal(Signal::INT);
        process.until_it_says("stopped in");
        assert!(process.end().success());
        assert!(start.elapsed() < Duration::from_secs(60), "of a drain of 600 s");
        return;
    }
    let engine = description().start().unwrap();
    let client = engine.client();
    let never = client.clone();
    std::thread::spawn(move || block_on(never.send(&Forever {}).within(Duration::from_secs(600))).map(drop));
    std::thread::spawn(move || until_it_drains(&client));
    let report = engine.run().unwrap();
    assert_eq!(report.stuck, [ShardId(0)], "{report}");
    assert!(!report.drained && report.took < Duration::from_secs(60), "{report}");
    say(&report.to_string());
}

#[test]
fn after_run_signals_do_what_they_do_by_default() {
    if !is_child() {
        let mut process = Process::of("after_run_signals_do_what_they_do_by_default");
        process.until_it_says("started");
        process.signal(Signal::TERM);
        process.until_it_says("over");
        process.signal(Signal::TERM);
        assert_eq!(process.end().signal(), Some(Signal::TERM.as_raw()));
        return;
    }
    let started = |_| {
        say("started"); // the handlers are there before the services are
        Ponger
    };
    let report =
        Engine::builder().shards(1).service(started, |routes| routes.request(Ponger::pong)).run().unwrap();
    assert!(report.drained, "{report}");
    say("over");
    loop {
        std::thread::park();
    }
}
