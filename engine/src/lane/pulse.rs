//! The sense of time of a lane: when to give a sign of life, and when to stop waiting for one.
//!
//! Both sides send something at least every [`HEARTBEAT`], also when only one of them has anything to say, so silence
//! means that the peer's shard is stuck or gone, or the network is cut. Bytes count, not frames: a large frame on a
//! slow line is a sign of life all along.
//!
//! Time in which this side did not look is no silence of the peer. After a pause (a handler ran for long, the process
//! was stopped) each wait is prolonged by it, so that one slow handler here does not eject every peer there is.

use std::time::Duration;

use super::close::CloseReason;
use crate::time::Time;

/// Something is sent at least this often.
pub(crate) const HEARTBEAT: Duration = Duration::from_millis(250);
/// A peer of which nothing was heard for so long is out of use.
pub(crate) const SILENCE: Duration = Duration::from_secs(1);
/// A peer that takes no byte for so long, while some wait, is out of use.
pub(crate) const STALL: Duration = Duration::from_secs(2);
/// How long after the connection was made both greetings, and at the acceptor the proof, must have arrived.
pub(crate) const GREETING_TIMEOUT: Duration = Duration::from_secs(2);
/// How long after the end of a lane its last bytes may take to leave.
pub(crate) const LINGER: Duration = Duration::from_millis(500);

// A peer is heard at least twice before its silence counts, and is called silent before it is called slow.
const _: () =
    assert!(HEARTBEAT.as_millis() * 3 < SILENCE.as_millis() && SILENCE.as_millis() <= STALL.as_millis());

/// What a tick asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    /// Nothing.
    Nothing,
    /// A heartbeat.
    Heartbeat,
    /// The end of the lane.
    End(CloseReason),
}

/// When what happened on one lane.
#[derive(Debug)]
pub(crate) struct Pulse {
    started: Time,
    /// The last tick.
    ticked: Time,
    /// When the socket last gave something.
    heard: Time,
    /// When the socket last took something.
    moved: Time,
    /// The latest moment there was word of.
    latest: Time,
}

impl Pulse {
    /// Of a lane that starts now.
    #[must_use]
    pub(crate) fn new(now: Time) -> Self {
        Self { started: now, ticked: now, heard: now, moved: now, latest: now }
    }

    /// The socket gave something.
    #[inline]
    pub(crate) fn heard(&mut self, now: Time) {
        self.heard = now;
        self.latest = now;
    }

    /// The socket took something.
    #[inline]
    pub(crate) fn moved(&mut self, now: Time) {
        self.moved = now;
        self.latest = now;
    }

    /// The latest moment there was word of.
    #[must_use]
    pub(crate) fn latest(&self) -> Time {
        self.latest
    }

    /// Looks at the clock, before the greeting is done.
    pub(crate) fn tick_greeting(&mut self, now: Time) -> Due {
        self.look(now, false);
        if now.since(self.started) >= GREETING_TIMEOUT {
            Due::End(CloseReason::GreetingTimeout)
        } else {
            Due::Nothing
        }
    }

    /// Looks at the clock, on an open lane; `waiting` if bytes wait for the socket.
    pub(crate) fn tick_open(&mut self, now: Time, waiting: bool) -> Due {
        self.look(now, waiting);
        if now.since(self.heard) >= SILENCE {
            Due::End(CloseReason::Silent)
        } else if waiting {
            // A heartbeat would only queue up behind what waits.
            if now.since(self.moved) >= STALL { Due::End(CloseReason::SlowReader) } else { Due::Nothing }
        } else if now.since(self.moved) >= HEARTBEAT {
            Due::Heartbeat
        } else {
            Due::Nothing
        }
    }

    /// When to look next, before the greeting is done.
    #[must_use]
    pub(crate) fn next_greeting(&self) -> Time {
        (self.started + GREETING_TIMEOUT).min(self.ticked + HEARTBEAT)
    }

    /// When to look next, on an open lane.
    #[must_use]
    pub(crate) fn next_open(&self, waiting: bool) -> Time {
        let send = self.moved + if waiting { STALL } else { HEARTBEAT };
        // Never later than a heartbeat from now, or looking rarely would pass for a pause.
        send.min(self.heard + SILENCE).min(self.ticked + HEARTBEAT)
    }

    fn look(&mut self, now: Time, waiting: bool) {
        let pause = now.since(self.ticked);
        if pause > 2 * HEARTBEAT {
            let excused = pause - HEARTBEAT;
            self.started = (self.started + excused).min(now);
            self.heard = (self.heard + excused).min(now);
            if waiting {
                self.moved = (self.moved + excused).min(now);
            }
        }
        self.ticked = now;
        self.latest = now;
    }
}
