//! What several suites need in order to wait for something, and to tell what came of a panic.

#![allow(dead_code, reason = "each suite uses its part")]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use catga::prelude::*;
use catga::{Failure, Refusal};

/// Waits for a condition, with a generous end.
#[track_caller]
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Where a node listens for TCP connections.
pub(crate) fn address(node: &Engine) -> SocketAddr {
    node.endpoint().unwrap().address().unwrap()
}

/// Whether the handler of this call panicked.
pub(crate) fn panicked<T>(outcome: Result<T, CallError<Fault>>) -> bool {
    matches!(outcome, Err(CallError::Failed(Failure::Panicked)))
}

/// Whether this call was refused because of a panic before it.
pub(crate) fn poisoned<T>(outcome: Result<T, CallError<Fault>>) -> bool {
    matches!(outcome, Err(CallError::Refused(Refusal::Poisoned)))
}
