//! The floor: the same exchange by hand-written loops, with no engine between.
//!
//! The same frames, checks, clock and sampling as the engine's rows, two pinned threads that spin, and nothing else:
//! what an engine adds is the distance to these rows. Each file is one way to carry a frame.

pub(crate) mod locked;
pub(crate) mod ring;
pub(crate) mod tcp;

use std::thread;

use crate::machine::pin;
use crate::scenario::Broken;

/// Runs one loop in a thread of its own on `core`; the caller's thread, from which other threads and processes inherit
/// their affinity, stays free.
fn on_core<T: Send>(
    core: usize,
    name: &str,
    work: impl FnOnce() -> Result<T, Broken> + Send,
) -> Result<T, Broken> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name(name.into()).spawn_scoped(scope, || {
            pin(core)?;
            work()
        });
        match thread.map(thread::ScopedJoinHandle::join) {
            Ok(Ok(result)) => result,
            Ok(Err(panic)) => std::panic::resume_unwind(panic),
            Err(source) => Err(Broken::System { what: "cannot start a thread", source }),
        }
    })
}
