//! A thread off the shards that works in rounds, for as long as somebody holds on to it.
//!
//! Between two rounds it sleeps: until the time that the last one asked for, or until it is woken.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle, Thread};
use std::time::Duration;

use catga_discovery::sync::atomic::{AtomicBool, Ordering};

/// Room to log; wakers of other runtimes run on it too, and the system's resolver on its like.
pub(crate) const STACK_BYTES: usize = 256 * 1024;

/// The thread. Dropping it ends it, after the round that it is at: a round does not wait.
pub(crate) struct Rounds {
    name: &'static str,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    waker: Thread,
}

impl Rounds {
    /// `round` says how long there is nothing to do.
    pub(crate) fn start(
        name: &'static str,
        mut round: impl FnMut() -> Duration + Send + 'static,
    ) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::Builder::new().name(name.into()).stack_size(STACK_BYTES).spawn(move || {
            // Acquire: pairs with the Release in `drop`; the unpark that follows it ends the wait.
            while !stopped.load(Ordering::Acquire) {
                let rest = round();
                thread::park_timeout(rest);
            }
        })?;
        let waker = thread.thread().clone();
        Ok(Self { name, stop, thread: Some(thread), waker })
    }

    /// To be unparked when there is something to do.
    pub(crate) fn waker(&self) -> &Thread {
        &self.waker
    }
}

impl Drop for Rounds {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release); // pairs with the Acquire in the thread's loop
        self.waker.unpark();
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            tracing::error!(thread = self.name, "a thread of the engine ended by a panic");
        }
    }
}
