//! Waiting for the signals that ask a service to end: SIGTERM from its supervisor, SIGINT from its terminal.
//!
//! Only `run` installs handlers; an engine that is started and stopped by hand leaves the process's signals alone. A
//! handler may do next to nothing, so it writes a byte into a socket pair, and `run` reads. When nobody runs any more,
//! the signals do what they do by default: a process that is stuck after its engine has stopped can still be ended.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};

use catga_discovery::sync::atomic::{AtomicBool, Ordering};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::{SigId, flag, low_level};

const SIGNALS: [i32; 2] = [SIGTERM, SIGINT];
/// What [`Signals::end`] writes; signals write something else.
const END: u8 = 0;

/// What signals do when no `run` waits for them. Installed once for the process, with the first `run`.
struct Defaults {
    runs: usize,
    nobody_runs: Arc<AtomicBool>,
}

static DEFAULTS: Mutex<Option<Defaults>> = Mutex::new(None);

/// Both signals, from when this is made until it is dropped.
pub(crate) struct Signals {
    sender: UnixStream,
    receiver: UnixStream,
    handlers: Vec<SigId>,
    entered: Option<Entered>,
}

impl Signals {
    /// Installs the handlers.
    pub(crate) fn install() -> io::Result<Self> {
        let (sender, receiver) = UnixStream::pair()?;
        let mut signals = Self { sender, receiver, handlers: Vec::new(), entered: None };
        for signal in SIGNALS {
            let handler = low_level::pipe::register(signal, signals.sender.try_clone()?)?;
            signals.handlers.push(handler);
        }
        // Last, and left first: there is no moment in which a signal does nothing at all.
        signals.entered = Some(Entered::enter()?);
        Ok(signals)
    }

    /// Waits for the next signal, or for [`end`](Self::end). Says whether it was a signal.
    pub(crate) fn wait(&self) -> io::Result<bool> {
        let mut byte = [END];
        (&self.receiver).read_exact(&mut byte)?;
        Ok(byte[0] != END)
    }

    /// Ends the wait of another thread.
    pub(crate) fn end(&self) -> io::Result<()> {
        (&self.sender).write_all(&[END])
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        self.entered = None;
        for handler in self.handlers.drain(..) {
            low_level::unregister(handler);
        }
    }
}

/// As long as one of these lives, signals do not do what they do by default.
struct Entered;

impl Entered {
    fn enter() -> io::Result<Self> {
        let mut defaults = DEFAULTS.lock().unwrap_or_else(PoisonError::into_inner);
        if defaults.is_none() {
            let nobody_runs = Arc::new(AtomicBool::new(false));
            for signal in SIGNALS {
                flag::register_conditional_default(signal, nobody_runs.clone())?;
            }
            *defaults = Some(Defaults { runs: 0, nobody_runs });
        }
        if let Some(defaults) = defaults.as_mut() {
            defaults.runs += 1;
            // SeqCst, as signal-hook reads it: the two are far apart in time, and this is no hot path.
            defaults.nobody_runs.store(false, Ordering::SeqCst);
        }
        Ok(Self)
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut defaults = DEFAULTS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(defaults) = defaults.as_mut() {
            defaults.runs -= 1;
            defaults.nobody_runs.store(defaults.runs == 0, Ordering::SeqCst); // as in `enter`
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_told_from_a_signal() {
        let signals = Signals::install().unwrap();
        signals.end().unwrap();
        assert!(!signals.wait().unwrap());
        // Both at once: one is not taken for the other.
        low_level::raise(SIGINT).unwrap();
        low_level::raise(SIGTERM).unwrap();
        assert!(signals.wait().unwrap() && signals.wait().unwrap());
    }
}
