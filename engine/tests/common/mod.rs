//! What several suites need in order to wait for something, and to tell what came of a panic.

#![allow(dead_code, reason = "each suite uses its part")]
#![allow(clippy::unwrap_used, reason = "a failed helper is a failed test")]

pub(crate) mod log;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
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

/// A directory of its own for a test, removed with it.
pub(crate) struct Directory(PathBuf);

impl Directory {
    pub(crate) fn new(name: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("catga-{name}-{}-{count}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
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
