//! The thread that answers.

use std::thread::JoinHandle;

use catga_perf::rivals::pin;

/// More than any row has in flight, so that no rival ever waits for room.
pub const PLACES: usize = 4_096;

/// A server on a thread of its own; dropping it waits for the thread's end.
pub struct Server(Option<JoinHandle<()>>);

impl Server {
    /// Runs `serve` on a thread that is pinned to `core`. It must end once its rival's sender is gone.
    pub fn start(core: usize, serve: impl FnOnce() + Send + 'static) -> Result<Self, String> {
        let (pinned, is_pinned) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new().name("rival-server".into()).spawn(move || {
            let result = pin(core);
            let go_on = result.is_ok();
            // Nobody hears it only if the starter has gone; then there is nothing to serve.
            if pinned.send(result).is_ok() && go_on {
                serve();
            }
        });
        let server = Self(Some(thread.map_err(|why| format!("cannot start its thread: {why}"))?));
        is_pinned.recv().map_err(|_| "its thread ended early".to_owned())??;
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A panic there has shown itself: the calls in flight have failed.
        self.0.take().map(JoinHandle::join);
    }
}
