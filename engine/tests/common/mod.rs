//! What several suites need in order to wait for something, and to tell what came of a panic.

#![allow(dead_code, reason = "each suite uses its part")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed helper is a failed test")]

pub(crate) mod bystander;
pub(crate) mod log;

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use catga::prelude::*;
use catga::{Failure, NotSent, Refusal, Request};

/// Waits for a condition, with a generous end.
#[track_caller]
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A call with all the time that it may need. A busy machine may take over a second for what takes a few milliseconds: then the
/// shard is out of use until its turn is over, and nothing was sent.
pub(crate) fn call<R: Request>(client: &Client, request: &R) -> Result<Reply<R::Reply>, CallError<R::Error>> {
    loop {
        let outcome = client.send(request).within(Duration::from_secs(60)).block();
        if !matches!(outcome, Err(CallError::NotSent(NotSent::Stuck))) {
            return outcome;
        }
        std::thread::yield_now();
    }
}

/// As [`call`], from inside a shard.
pub(crate) async fn call_from_a_shard<R: Request>(
    ctx: &Context,
    request: &R,
) -> Result<Reply<R::Reply>, CallError<R::Error>> {
    loop {
        let outcome = ctx.send(request).within(Duration::from_secs(60)).await;
        if !matches!(outcome, Err(CallError::NotSent(NotSent::Stuck))) {
            return outcome;
        }
        ctx.sleep(Duration::from_millis(1)).await;
    }
}

/// The outcome of a call that is to be at work, or on its way, when its deadline comes. On a machine that stops for longer than
/// that, its time may be over before it has left: then it ran nowhere, and is made again with more time.
#[track_caller]
pub(crate) fn while_it_is_at_work<T>(
    mut call: impl FnMut(Duration) -> Result<T, CallError<Fault>>,
) -> Result<T, CallError<Fault>> {
    let too_late = |outcome: &Result<T, CallError<Fault>>| {
        matches!(outcome, Err(CallError::NotSent(NotSent::Deadline) | CallError::Refused(Refusal::Expired)))
    };
    let mut outcomes = [100, 500, 2_500, 12_500].map(Duration::from_millis).into_iter().map(&mut call);
    outcomes.find(|outcome| !too_late(outcome)).expect("its time was over before it left, however long")
}

/// Where a node listens for TCP connections.
pub(crate) fn address(node: &Engine) -> SocketAddr {
    node.endpoint().unwrap().address().unwrap()
}

/// A port of the loopback at which nobody listens, and that nobody is given who asks for any: for a node that comes later, goes,
/// or comes again.
pub(crate) struct Reserved {
    pub(crate) endpoint: SocketAddr,
    /// Bound, and does not listen: who names the port can listen there beside it.
    _socket: OwnedFd,
}

impl Reserved {
    pub(crate) fn new() -> Self {
        Self::at(Ipv4Addr::LOCALHOST)
    }

    /// At this address of the loopback.
    pub(crate) fn at(own: Ipv4Addr) -> Self {
        use rustix::net::{AddressFamily, SocketType, bind, getsockname, socket, sockopt};
        let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        sockopt::set_socket_reuseaddr(&socket, true).unwrap();
        bind(&socket, &SocketAddr::from((own, 0))).unwrap();
        Self { endpoint: getsockname(&socket).unwrap().try_into().unwrap(), _socket: socket }
    }
}

/// A directory of its own for a test, removed with it.
pub(crate) struct Directory(PathBuf);

impl Directory {
    pub(crate) fn new(name: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        // A process with this number may have left one behind.
        loop {
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            let path = std::env::temp_dir().join(format!("catga-{name}-{}-{count}", std::process::id()));
            match std::fs::create_dir(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                made => break made.map(|()| Self(path)).unwrap(),
            }
        }
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Whether the handler of this call panicked.
pub(crate) fn panicked<T>(outcome: Result<T, CallError<Fault>>) -> bool {
    matches!(outcome, Err(CallError::Failed(Failure::Panicked)))
}

/// Whether this call was refused because of a panic before it.
pub(crate) fn poisoned<T>(outcome: Result<T, CallError<Fault>>) -> bool {
    matches!(outcome, Err(CallError::Refused(Refusal::Poisoned)))
}

/// Runs the test of this name once more, in a process of its own, so that what others hold or log does not count. Says whether
/// this is that process.
pub(crate) fn is_alone(test: &str) -> bool {
    const ALONE: &str = "CATGA_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let alone = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(ALONE, "1")
        .output()
        .unwrap();
    let text = [alone.stdout, alone.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(alone.status.success() && text.contains("1 passed"), "{text}");
    false
}
