//! What the model knows of a call that moves on: every attempt it has made, and how each ended.

use crate::call::journey::MOVES_MAX;
use crate::call::table::Ending;
use crate::call::waiting::Ticket;
use crate::choice::Choice;

/// The way of one call so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Way {
    /// How the attempts before this one ended, in order.
    attempts: Vec<Ending>,
    /// The nodes that have had it.
    pub(super) left: Vec<u64>,
    /// How its node is chosen, and whether it may run again, since it has first left.
    pub(super) terms: (Choice, bool),
    /// Its request lies in its slot.
    pub(super) is_kept: bool,
    /// Since when it has waited, if it has.
    pub(super) ticket: Option<Ticket>,
}

impl Way {
    /// An attempt has ended, and there will be another.
    pub(super) fn goes_on(&mut self, ending: Ending) {
        self.attempts.push(ending);
        self.is_kept = false;
    }

    /// It waits with this ticket; the latest among all others is `latest`.
    pub(super) fn waits(&mut self, ticket: Ticket, latest: Option<Ticket>) {
        match self.ticket.replace(ticket) {
            Some(before) => assert_eq!(ticket, before, "it began to wait when it first did"),
            None => assert!(latest < Some(ticket) && ticket < Ticket::NONE, "behind all that wait"),
        }
    }

    pub(super) fn has_moved(&self) -> bool {
        !self.attempts.is_empty()
    }

    pub(super) fn may_leave(&self) -> bool {
        self.left.len() < MOVES_MAX
    }

    /// The outcome if the attempt that ends like this is the last: an answer is an answer; without one, a call that may have
    /// run stays unknown; without a doubt, a refusal says more than that somebody could not be reached.
    pub(super) fn outcome(&self, last: Ending) -> Ending {
        let all = || self.attempts.iter().copied().chain([last]);
        let last_of = |kind: fn(&Ending) -> bool| all().rev().find(kind);
        match last {
            Ending::Reply | Ending::Rejected | Ending::Failed(_) | Ending::Handled(_) => last,
            _ => last_of(|ending| matches!(ending, Ending::Unknown(_)))
                .or_else(|| last_of(|ending| matches!(ending, Ending::Refused(_))))
                .or_else(|| all().next())
                .unwrap_or(last),
        }
    }
}
