//! Who owes whom an answer on one lane.
//!
//! A request, or an event that names a call, is owed exactly one answer, even after a cancel. Each side grants the
//! other a number of unanswered ones. Both count the same frames in the same order: the asker when it queues the ask
//! and when the answer has arrived, the answerer in between. So the asker's count is never below the answerer's, an
//! asker that keeps to the grant can never exceed it at the other end, and whoever exceeds it has a defect.

use catga_codec::{CallId, Header, Kind};

use super::close::CloseReason;

/// What a kind of frame means for the credits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// Is owed an answer.
    Ask,
    /// Is an answer.
    Answer,
    /// Neither: a fire-and-forget event.
    Tell,
    /// Neither, and takes work off the peer: a cancel.
    Cancel,
    /// The lane's own: not the engine's to send or to see.
    Own,
}

impl Class {
    /// The class of the frame with this header.
    #[inline]
    #[must_use]
    pub(crate) fn of(header: &Header) -> Self {
        match header.kind {
            Kind::Request => Self::Ask,
            // Only a broadcast waits for its listeners, and so names a call. Generations of calls count from 1.
            Kind::Event if header.call == CallId::default() => Self::Tell,
            Kind::Event => Self::Ask,
            Kind::Cancel => Self::Cancel,
            Kind::Reply | Kind::Rejected | Kind::Refused | Kind::Failed | Kind::Handled => Self::Answer,
            Kind::Heartbeat | Kind::Hello | Kind::Welcome | Kind::Close | Kind::Proof => Self::Own,
        }
    }
}

/// The counts of one side.
#[derive(Debug)]
pub(crate) struct Credits {
    /// Asks of this side that the peer has not answered, at most `granted`.
    unanswered: u32,
    /// What the peer grants; nothing before its greeting.
    granted: u32,
    /// Asks of the peer that this side has not answered, at most `grants`.
    owed: u32,
    /// What this side grants.
    grants: u32,
}

impl Credits {
    /// Of a side that grants so many unanswered asks, and has no grant yet.
    #[must_use]
    pub(crate) fn new(grants: u32) -> Self {
        Self { unanswered: 0, granted: 0, owed: 0, grants }
    }

    /// The peer grants so many unanswered asks.
    pub(crate) fn grant(&mut self, granted: u32) {
        self.granted = granted;
    }

    /// Asks of this side that wait for the peer.
    #[inline]
    #[must_use]
    pub(crate) fn unanswered(&self) -> u32 {
        self.unanswered
    }

    /// Asks of the peer that wait for this side.
    #[inline]
    #[must_use]
    pub(crate) fn owed(&self) -> u32 {
        self.owed
    }

    /// Whether one more ask may leave.
    #[inline]
    #[must_use]
    pub(crate) fn may_ask(&self) -> bool {
        self.may_ask_after(0)
    }

    /// Whether one more may leave after so many others.
    #[inline]
    #[must_use]
    pub(crate) fn may_ask_after(&self, asks: u32) -> bool {
        self.unanswered.saturating_add(asks) < self.granted
    }

    /// A frame of this class has been queued; it was admitted before.
    #[inline]
    pub(crate) fn queued(&mut self, class: Class) {
        match class {
            Class::Ask => self.unanswered += 1,
            Class::Answer => self.owed -= 1,
            Class::Tell | Class::Cancel | Class::Own => {}
        }
        debug_assert!(self.unanswered <= self.granted && self.owed <= self.grants);
    }

    /// A frame of this class has arrived.
    ///
    /// # Errors
    /// [`CloseReason`]: the peer may not send it; the counts are unchanged.
    #[inline]
    pub(crate) fn arrived(&mut self, class: Class) -> Result<(), CloseReason> {
        match class {
            Class::Ask if self.owed < self.grants => self.owed += 1,
            Class::Ask => return Err(CloseReason::TooManyCalls),
            Class::Answer if self.unanswered > 0 => self.unanswered -= 1,
            Class::Answer => return Err(CloseReason::UnexpectedAnswer),
            Class::Tell | Class::Cancel | Class::Own => {}
        }
        Ok(())
    }
}
