//! Calls of batches: many slots that wake one task, which collects those that are done.

use std::task::Waker;

use catga_codec::{CallId, OwnedFrame};

use super::{BatchId, BatchQueue, CallTable, Ending, Phase, Target, Waiter};
use crate::pool;

impl<F> CallTable<F> {
    /// Opens a batch with room for `in_flight` endings.
    pub(crate) fn batch_open(&mut self, in_flight: usize) -> BatchId {
        let index = self.batches.iter().position(|queue| !queue.open).unwrap_or_else(|| {
            self.batches.push(BatchQueue::default());
            self.batches.len() - 1
        });
        let queue = &mut self.batches[index];
        queue.open = true;
        queue.waker = None;
        queue.done.clear();
        queue.again.clear();
        queue.done.reserve(in_flight);
        BatchId(index as u32)
    }

    /// Exchanges the batch's list of done slots for the given empty one. Says whether the batch has a waker that wakes the
    /// same task as this one.
    pub(crate) fn batch_done(&mut self, batch: BatchId, done: &mut Vec<u32>, waker: &Waker) -> bool {
        let queue = &mut self.batches[batch.0 as usize];
        std::mem::swap(&mut queue.done, done);
        queue.waker.as_ref().is_some_and(|known| known.will_wake(waker))
    }

    /// Notes whom to wake when the next call of the batch ends. Gives the waker that is not needed any more.
    #[must_use = "it is dropped when the table is not borrowed"]
    pub(crate) fn batch_wakes(&mut self, batch: BatchId, waker: Waker) -> Option<Waker> {
        self.batches[batch.0 as usize].waker.replace(waker)
    }

    /// Takes a call of the batch that shall be sent again.
    pub(crate) fn batch_again(&mut self, batch: BatchId) -> Option<CallId> {
        self.batches[batch.0 as usize].again.pop()
    }

    /// Takes the id, the token, the ending and the frame of a done slot of a batch. The slot is free afterwards; give the
    /// frame back with [`CallTable::put_frame`] so that the slot's next call need not ask the pool.
    #[inline]
    pub(crate) fn batch_take(&mut self, index: u32) -> Option<(CallId, u64, Ending, Option<OwnedFrame>)> {
        let slot = &mut self.slots[index as usize];
        if slot.phase != Phase::Done {
            return None;
        }
        let ending = slot.ending;
        let id = CallId::new(index, slot.generation);
        let (token, answer) = (slot.token, slot.answer.take());
        self.release(index);
        Some((id, token, ending, answer))
    }

    /// Gives a slot the frame it had, unless that has grown.
    #[inline]
    pub(crate) fn put_frame(&mut self, index: u32, frame: OwnedFrame) {
        let answer = &mut self.slots[index as usize].answer;
        if answer.is_none() && pool::keeps(&frame) {
            *answer = Some(frame);
        } else {
            pool::give(frame);
        }
    }

    /// Takes out all wakers, also those of calls that no batch has made.
    pub(crate) fn take_wakers(&mut self) -> Vec<Waker> {
        let of_calls = self.slots.iter_mut().filter_map(|slot| match &slot.waiter {
            Waiter::Task(_) => match std::mem::replace(&mut slot.waiter, Waiter::Nobody) {
                Waiter::Task(waker) => Some(waker),
                _ => None,
            },
            _ => None,
        });
        let of_batches = self.batches.iter_mut().filter_map(|queue| queue.waker.take());
        of_calls.chain(of_batches).collect()
    }

    /// Closes a batch; its calls that are still open are given up. Says where they went, and gives the waker that is not
    /// needed any more.
    #[must_use = "it is dropped when the table is not borrowed"]
    pub(crate) fn batch_close(
        &mut self,
        batch: BatchId,
        given_up: impl FnMut(CallId, Target),
    ) -> Option<Waker> {
        self.abandon_where(|waiter| matches!(waiter, Waiter::Batch(of) if *of == batch), given_up);
        let queue = &mut self.batches[batch.0 as usize];
        queue.open = false;
        queue.done.clear();
        queue.waker.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::POOLED_SMALL_BYTES;
    use crate::time::Time;

    #[test]
    fn a_slot_keeps_its_frame_but_not_one_that_has_grown() {
        let mut table = CallTable::<u32>::new(1);
        let batch = table.batch_open(1);
        for (bytes, kept) in [(POOLED_SMALL_BYTES, true), (4 * POOLED_SMALL_BYTES, false)] {
            let answer = |frame: &mut OwnedFrame| *frame = OwnedFrame::with_capacity(bytes);
            for given_up in [false, true] {
                let call = table.open_in(Time::NEVER, batch, u64::MAX).unwrap();
                table.sent(call, Target::Here);
                table.complete(call, Ending::Reply, answer).unwrap();
                if given_up {
                    table.abandon(call);
                } else {
                    let (_, token, _, frame) = table.batch_take(call.slot()).unwrap();
                    assert_eq!(token, u64::MAX);
                    table.put_frame(call.slot(), frame.unwrap());
                }
                assert_eq!(table.slots[0].answer.is_some(), kept, "{bytes} bytes, given up: {given_up}");
            }
        }
    }
}
