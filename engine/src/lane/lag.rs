//! How old what comes over a lane may be, because the shard that reads it was paused.
//!
//! A request says how much time it has left, and that counts from when it is read: between two nodes only remaining time
//! travels. As long as a shard reads all the time that is right to within a turn. But when it was paused (its process was
//! stopped, a handler ran for seconds), what was sent to it meanwhile is older than it says, by anything up to the pause. Nobody
//! can tell by how much, so it counts as having waited for all of it: who wanted it has most likely given it up, and work that
//! nobody waits for must not run.
//!
//! It may lie in this side's socket or in the other's, or still in the other's own buffer, so an empty socket proves nothing. After
//! a pause the lane therefore asks its peer for an echo, and what comes before that is old:
//!
//! ```text
//!   here   ── pause ──┤ Probe ─────────▶          ◀ old, old, old │ Echo │ as it says
//! ```

use std::time::Duration;

use crate::time::nanoseconds;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Lag {
    /// All pauses since the last echo that was asked for, in nanoseconds.
    ns: u64,
    /// Echoes that have not come.
    awaited: u32,
}

impl Lag {
    /// For so long nobody has read, and an echo is asked for.
    pub(crate) fn paused(&mut self, pause: Duration) {
        self.ns = self.ns.saturating_add(nanoseconds(pause));
        self.awaited += 1;
    }

    /// An echo has come. One that was not asked for means nothing.
    pub(crate) fn echoed(&mut self) {
        self.awaited = self.awaited.saturating_sub(1);
        if self.awaited == 0 {
            self.ns = 0;
        }
    }

    /// By how much the next frame may be older than it says.
    #[inline]
    pub(crate) fn ns(&self) -> u64 {
        self.ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSE: Duration = Duration::from_millis(4);

    #[test]
    fn it_lasts_until_the_echo_of_the_last_pause() {
        let mut lag = Lag::default();
        lag.echoed();
        assert_eq!(lag.ns(), 0);
        lag.paused(PAUSE);
        lag.paused(PAUSE);
        assert_eq!(lag.ns(), 8_000_000, "what was sent before the first has waited for both");
        lag.echoed();
        assert_eq!(lag.ns(), 8_000_000);
        lag.echoed();
        assert_eq!(lag.ns(), 0);
        lag.paused(Duration::MAX);
        lag.paused(Duration::MAX);
        assert_eq!(lag.ns(), u64::MAX);
    }
}
