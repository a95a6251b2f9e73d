//! The turn: one round of a shard's loop, as a list.
//!
//! The clock is read once, at the top. Each step takes a bounded batch, so a turn is short whatever comes in; nothing in it
//! blocks. Timers come first: the first of them is
//! the shard's beginning. Answers come before requests, because they free credits and wake tasks; what the turn has written becomes
//! visible at its end, once for each ring and each lane.

use crate::call::table::Ending;
use crate::call::table::Wake;
use crate::client::Inbound;
use crate::error::{NotSent, Unknown};
use crate::lane::close::CloseReason;
use crate::limits::{EXPIRY_SWEEP, RING_BATCH_FRAMES};
use crate::runtime::Token;
use crate::service::Incoming;
use crate::shard::Shard;
use crate::shard::mesh::Arrived;
use crate::shard::reply_to::ReplyTo;
use crate::time::Time;
use std::time::Duration;

/// Messages taken from the inbox, and from the queue of this shard's own, in one turn.
const QUEUE_BATCH: usize = 256;
/// Tasks polled in one turn.
const TASK_BATCH: usize = 256;
/// Timers run in one turn.
const TIMER_BATCH: usize = 256;
/// A shard that does not sleep asks the world at this interval which sockets are ready.
const POLL_INTERVAL: Duration = Duration::from_micros(50);

/// What a turn has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// There was something to do, and there may be more.
    Busy,
    /// There was nothing to do.
    Idle,
}

impl Shard {
    /// One round. `now` is the time at its start.
    pub(crate) fn turn(&mut self, now: Time) -> Turn {
        let _inside = self.ready.enter();
        self.core.set_now(now);
        self.core.counters.turns.add(1);
        let mut done = 0;
        if now >= self.core.timers.next() {
            done += self.core.run_timers(TIMER_BATCH, &mut self.ctx);
        }
        done += self.take_answers();
        done += self.take_requests();
        done += self.take_inbox();
        done += self.read_lanes(now);
        done += self.core.run_here(QUEUE_BATCH, &mut self.ctx);
        done += self.poll_tasks();
        self.expire(now);
        self.grant_room();
        self.tend_lanes(now);
        self.publish();
        self.stop_if_drained(now);
        if done > 0 { Turn::Busy } else { Turn::Idle }
    }

    fn take_answers(&mut self) -> usize {
        let core = &self.core;
        let mut taken = 0;
        for (shard, arrivals) in self.arrivals.iter_mut().enumerate() {
            if let Some(arrivals) = arrivals {
                let unanswered = core.with_peer(shard as u16, |peer| peer.unanswered());
                taken += arrivals.answers(unanswered, RING_BATCH_FRAMES, |header, arrived| {
                    core.take_answer(shard as u16, &header, arrived);
                });
            }
        }
        taken
    }

    fn take_requests(&mut self) -> usize {
        let (core, ctx) = (&self.core, &mut self.ctx);
        let mut taken = 0;
        for (shard, arrivals) in self.arrivals.iter_mut().enumerate() {
            let Some(arrivals) = arrivals else { continue };
            taken += arrivals.requests(RING_BATCH_FRAMES, |header, arrived| match arrived {
                Arrived::InLine(frame) => {
                    core.take_request(shard as u16, &header, Incoming::Local(frame), ctx);
                }
                Arrived::ByHandle(frame) => {
                    if let Some(incoming) = Incoming::of(&frame) {
                        // Its own header: the one in the ring stands for it, but has no type of its own.
                        core.take_request(shard as u16, &incoming.header(), incoming, ctx);
                    }
                    crate::pool::give(frame);
                }
            });
        }
        taken
    }

    fn take_inbox(&mut self) -> usize {
        // Looking is cheaper than popping from an empty queue, which takes a fence; most turns find it empty.
        if self.inbox().is_empty() {
            return 0;
        }
        for taken in 0..QUEUE_BATCH {
            let Some(inbound) = self.inbox().pop() else { return taken };
            match inbound {
                Inbound::Call(promise) => self.core.take_call(promise, &mut self.ctx),
                Inbound::Event(frame) => {
                    if let Some(incoming) = Incoming::of(&frame) {
                        self.core.listen(incoming, &mut self.ctx);
                    }
                    crate::pool::give(frame);
                }
                Inbound::Lane(lane) => {
                    if !self.core.lanes.borrow_mut().adopt(lane, &mut *self.world) {
                        self.core.counters.lanes_refused.add(1);
                    }
                }
            }
        }
        QUEUE_BATCH
    }

    fn poll_tasks(&mut self) -> usize {
        if self.ready.is_empty() {
            return 0; // as for the inbox
        }
        for polled in 0..TASK_BATCH {
            let Some(task) = self.ready.pop() else { return polled };
            let handler =
                self.core.handlers().and_then(|all| all.requests.get(task.route as usize)?.as_deref());
            if let Some(handler) = handler {
                handler.poll_task(task.slot, &self.ctx);
                self.core.after_handler();
            }
        }
        TASK_BATCH
    }

    /// Ends calls and tasks whose deadline has passed.
    fn expire(&mut self, now: Time) {
        if now >= self.core.calls.borrow().next_expiry() {
            let mut ended = Vec::new();
            self.core.calls.borrow_mut().expire(now, |wake, sent| ended.push((wake, sent)));
            for (wake, sent) in ended {
                self.core.counters.calls_expired.add(1);
                self.core.wake(wake);
                if let Some((call, target)) = sent {
                    self.core.cancel(call, target);
                }
            }
        }
        if now.since(self.tasks_swept) >= EXPIRY_SWEEP {
            self.tasks_swept = now;
            self.core.end_tasks(&self.ctx, |_, deadline| deadline <= now);
            self.core.publish_gauges();
        }
        self.core.end_cancelled(&self.ctx);
    }

    /// Lets calls that waited for room try again, as far as there is room now.
    fn grant_room(&mut self) {
        let shards = self.core.mesh.borrow().len();
        for shard in 0..shards {
            for _ in 0..RING_BATCH_FRAMES {
                let granted = match &mut self.core.mesh.borrow_mut()[shard] {
                    Some(peer) if peer.is_waited_for() => peer.grant(),
                    _ => None,
                };
                let Some((call, frame)) = granted else { break };
                self.core.granted(call, frame);
            }
        }
        if self.core.has_forming() && !self.core.lanes.borrow().is_forming() {
            self.core.retry_forming();
        }
    }

    /// Makes what was written in this turn visible.
    fn publish(&mut self) {
        for peer in self.core.mesh.borrow_mut().iter_mut().flatten() {
            if peer.publish() {
                self.core.counters.doorbells.add(1);
            }
        }
    }

    fn stop_if_drained(&mut self, now: Time) {
        let Some(until) = self.control.draining() else { return };
        self.core.set_stopping();
        if !self.closing {
            // From here on nothing new comes in; what is in flight may end.
            self.inbox().close();
            let busy = self.core.tasks_running() > 0
                || self.core.calls.borrow().live() > 0
                || self.core.has_work_here()
                || self.core.mesh.borrow().iter().flatten().any(|peer| peer.unanswered() > 0)
                || self.arrivals.iter_mut().flatten().any(|arrivals| arrivals.pending())
                || !self.core.lanes.borrow().are_idle();
            if busy && now < until {
                return;
            }
            self.give_up_rest();
            self.core.lanes.borrow_mut().close_all(CloseReason::Stopping);
            self.closing = true;
        }
        self.core.lanes.borrow_mut().flush(&mut *self.world, now, true);
        if self.core.lanes.borrow().are_written() || now >= until {
            self.core.lose_keys(&mut self.ctx);
            self.publish();
            self.core.publish_gauges();
            self.stopped = true;
        }
    }

    /// What has not ended when draining is over ends now.
    fn give_up_rest(&mut self) {
        self.core.end_tasks(&self.ctx, |_, _| true);
        let mut ended: Vec<Wake<ReplyTo>> = Vec::new();
        self.core.calls.borrow_mut().end_where(
            |target| {
                Some(match target {
                    None => Ending::NotSent(NotSent::Stopping),
                    Some(_) => Ending::Unknown(Unknown::Stopped),
                })
            },
            |wake| ended.push(wake),
        );
        for wake in ended {
            self.core.wake(wake);
        }
        self.publish();
    }

    /// Whether the shard may sleep: nothing waits for it. Called after [`prepare_sleep`](crate::ring::doorbell::Doorbell).
    pub(crate) fn may_sleep(&mut self) -> bool {
        self.inbox().is_empty()
            && self.ready.is_empty()
            && !self.core.has_work_here()
            && !self.arrivals.iter_mut().flatten().any(|arrivals| arrivals.pending())
            && self.control.draining().is_none()
    }

    /// How long the shard may sleep if nobody wakes it.
    pub(crate) fn sleep_max(&self, now: Time) -> Duration {
        /// Some timer is never far away, but a lost wake-up of the machine should not hang a service.
        const LONGEST: Duration = Duration::from_millis(500);
        let mut wake = self.core.calls.borrow().next_expiry().min(self.core.lanes.borrow().next_tick());
        wake = wake.min(self.core.timers.next());
        if self.core.tasks_running() > 0 {
            wake = wake.min(now + Duration::from_millis(1));
        }
        wake.since(now).min(LONGEST)
    }

    /// Takes note of what the world reports as ready.
    pub(crate) fn look_at_sockets(&mut self, now: Time) {
        self.polled = now;
        let mut tokens = std::mem::take(&mut self.tokens);
        if let Err(error) = self.world.ready(&mut tokens) {
            tracing::error!(%error, "could not ask which sockets are ready");
        }
        for token in tokens.drain(..) {
            match token {
                Token::Doorbell => {
                    self.doorbell.signal().drain();
                }
                Token::Listener => self.accept(now),
                Token::Lane(key) => self.core.lanes.borrow_mut().mark_ready(key),
            }
        }
        self.tokens = tokens;
    }

    /// Looks at the sockets if the last look was a while ago: for a shard that spins.
    pub(crate) fn poll_sockets(&mut self, now: Time) {
        if self.core.lanes.borrow().any() && now.since(self.polled) >= POLL_INTERVAL {
            self.look_at_sockets(now);
        }
    }

    /// Writes all that is unsent: the shard is about to sleep.
    pub(crate) fn flush_all(&mut self, now: Time) {
        let written = self.core.lanes.borrow_mut().flush(&mut *self.world, now, true);
        self.core.counters.lane_writes.add(written);
    }

    pub(crate) fn count_park(&self) {
        self.core.counters.parks.add(1);
    }
}
