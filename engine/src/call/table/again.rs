//! Calls that can be sent again: what the table knows of a request in order to let it move on to another node.

use catga_codec::{CallId, OwnedFrame};

use super::{CallTable, Ending, Movable, Phase, Slot, Waiter, is_event};
use crate::call::journey::Journey;
use crate::choice::Choice;
use crate::pool;

impl<F> CallTable<F> {
    /// What has to be known of a request if it comes to nothing where it goes.
    #[inline]
    pub(crate) fn travels(&mut self, id: CallId, choice: Choice, idempotent: bool) {
        if let Some(slot) = self.find(id) {
            (slot.choice, slot.idempotent) = (choice, idempotent);
        }
    }

    /// Keeps the request of a forwarded call that has left, so that it can be sent again.
    pub(crate) fn keep_request(&mut self, id: CallId, request: OwnedFrame) {
        let Some(slot) = self.find(id) else { return pool::give(request) };
        slot.keeps_request = true;
        if let Some(unused) = slot.answer.replace(request) {
            pool::give(unused);
        }
    }

    /// Where a call has been, if it has moved on.
    pub(crate) fn journey(&self, id: CallId) -> Option<&Journey> {
        let slot = self.slots.get(id.slot() as usize)?;
        if slot.generation == id.generation() { slot.journey.as_deref() } else { None }
    }

    /// A call that has left and can be sent again. Nobody else keeps its request than who made it, or its slot.
    pub(crate) fn movable(&mut self, id: CallId) -> Option<Movable> {
        let slot = self.find(id)?;
        let target = slot.sent_to()?;
        let kept = match slot.waiter {
            Waiter::Task(_) | Waiter::Batch(_) => true,
            // A part of a broadcast is for its node, and for no other.
            Waiter::Forward(_) => slot.keeps_request && !slot.answer.as_ref().is_some_and(is_event),
            Waiter::Nobody => false,
        };
        let Slot { deadline, choice, idempotent, ref journey, .. } = *slot;
        let moves = journey.as_ref().map_or(0, |journey| journey.moves());
        kept.then_some(Movable { target, deadline, choice, idempotent, moves })
    }

    /// The attempt has come to `ending`, and there shall be another one: the call waits again, in a queue that the caller puts
    /// it into. Gives the request that was kept for it.
    pub(crate) fn set_out(
        &mut self,
        id: CallId,
        ending: Ending,
        note: impl FnOnce(&mut Journey),
    ) -> Option<OwnedFrame> {
        let _ = self.enlist(id);
        let slot = self.find(id)?;
        slot.phase = Phase::Waiting;
        match &mut slot.journey {
            Some(journey) => {
                journey.add(ending);
                note(journey);
            }
            none => note(none.insert(Box::new(Journey::new(ending)))),
        }
        if std::mem::take(&mut slot.keeps_request) { slot.answer.take() } else { None }
    }

    /// A waiting call has its turn with this peer, as soon as a lane leads there.
    pub(crate) fn bind(&mut self, id: CallId, peer: u32) {
        if let Some(slot) = self.find(id) {
            slot.bound_for = Some(peer);
        }
    }

    /// The peer that a waiting call was to go to, once.
    pub(crate) fn take_bound(&mut self, id: CallId) -> Option<u32> {
        self.find(id)?.bound_for.take()
    }
}
