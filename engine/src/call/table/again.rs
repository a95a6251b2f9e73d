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
            Waiter::Forward(_) => {
                slot.keeps_request && !slot.is_cancelled && !slot.answer.as_ref().is_some_and(is_event)
            }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::table::{LaneKey, Target};
    use crate::time::Time;

    #[test]
    fn a_call_that_was_passed_on_and_cancelled_moves_on_no_more_and_is_named_once() {
        let mut table = CallTable::<u32>::new(8);
        let target = Target::Lane { lane: LaneKey { index: 1, generation: 1 }, offset: 64 };
        assert!(table.cancel_passed_on(|_| true).is_empty(), "there is none");
        let mut pass_on = |for_whom| {
            let call = table.open_forward(Time::NEVER, for_whom, None, Choice::Usual).unwrap();
            table.sent(call, target);
            table.keep_request(call, pool::take());
            call
        };
        let (one, other) = (pass_on(1), pass_on(2));
        assert!(table.movable(one).is_some());
        assert_eq!(table.cancel_passed_on(|for_whom| *for_whom == 1), [(one, Some(target))]);
        assert!(table.movable(one).is_none() && table.movable(other).is_some());
        assert!(table.cancel_passed_on(|for_whom| *for_whom == 1).is_empty());
        assert_eq!(table.abandon(one), None, "whoever has it knows already");
        assert_eq!(table.abandon(other), Some(target));
        assert!(table.cancel_passed_on(|_| true).is_empty());
        // The slot serves another call, which nobody has cancelled.
        let next = table.open_forward(Time::NEVER, 3, None, Choice::Usual).unwrap();
        assert_eq!(table.cancel_passed_on(|_| true), [(next, None)]);
    }
}
