//! Which calls stand in a queue, and since when they have waited.
//!
//! A call that cannot go stands in one queue: for room, for a lane, for a view. It gets a ticket when it does so for the first
//! time, and keeps it, so that whoever began to wait before others is before them wherever it waits next.

use catga_codec::CallId;

use super::{CallTable, Phase};
use crate::call::waiting::Ticket;

/// Whether a call stands in some queue, where it will be told when to try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Listing {
    Never,
    Listed,
    /// It did, and was told.
    Told,
}

impl<F> CallTable<F> {
    /// The call is put into a queue, where it stands by its ticket; none if it stands in one already: it must be in one only,
    /// however often it is polled.
    pub(crate) fn enlist(&mut self, id: CallId) -> Option<Ticket> {
        let next = self.ticket;
        let slot = self.find(id).filter(|slot| slot.listing != Listing::Listed)?;
        let has_waited = slot.listing == Listing::Told;
        slot.listing = Listing::Listed;
        if has_waited {
            return Some(slot.ticket);
        }
        slot.ticket = next;
        self.ticket = Ticket(next.0 + 1);
        Some(next)
    }

    /// The call was taken out of its queue, or told there that it can go.
    pub(crate) fn delist(&mut self, id: CallId) {
        if let Some(slot) = self.find(id)
            && slot.listing == Listing::Listed
        {
            slot.listing = Listing::Told;
        }
    }

    /// Whether the call stands in a queue, and has not been told that it can go.
    pub(crate) fn is_listed(&mut self, id: CallId) -> bool {
        self.find(id).is_some_and(|slot| slot.listing == Listing::Listed)
    }

    /// Whether the call has been told that it can go, and has not left.
    pub(crate) fn is_told(&mut self, id: CallId) -> bool {
        self.find(id).is_some_and(|slot| slot.phase == Phase::Waiting && slot.listing == Listing::Told)
    }

    /// Since when the call has waited.
    pub(crate) fn ticket(&mut self, id: CallId) -> Ticket {
        let slot = self.find(id).filter(|slot| slot.listing != Listing::Never);
        slot.map_or(Ticket::NONE, |slot| slot.ticket)
    }
}
