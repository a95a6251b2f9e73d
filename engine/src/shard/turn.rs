//! The turn: one round of a shard's loop, as a list.
//!
//! The clock is read once, at the top. Each step takes a bounded batch, so a turn is short whatever comes in; nothing in it
//! blocks. Timers come first: the first of them is the shard's beginning. Answers come before requests, because they free
//! credits and wake tasks; what the turn has written becomes visible at its end, once for each ring and each lane.

use std::time::Duration;

use crate::call::table::Ending;
use crate::client::inbox::Inbound;
use crate::error::{NotSent, Unknown};
use crate::lane::close::CloseReason;
use crate::limits::{EXPIRY_SWEEP, LEAVE_GRACE, PAUSE, RING_BATCH_FRAMES, STALL};
use crate::runtime::Token;
use crate::service::Incoming;
use crate::shard::mesh::{Arrived, Outgoing, peer};
use crate::shard::reply_to::ReplyTo;
use crate::shard::{INBOX_BATCH, Shard};
use crate::time::Time;

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
        self.core.pulse.begin(now);
        self.note_last_turn(now);
        self.take_view(now);
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
        self.grant_room(now);
        self.tend_lanes(now);
        self.publish();
        self.stop_if_drained(now);
        if done > 0 { Turn::Busy } else { Turn::Idle }
    }

    /// Counts the turn before this one.
    #[inline]
    fn note_last_turn(&mut self, now: Time) {
        let counters = &self.core.counters;
        counters.turns.add(1);
        if let Some(began) = self.turned.replace(now) {
            let lasted = now.since(began);
            self.core.callers.paced(lasted);
            counters.turn_us_max.raise(lasted.as_micros() as u64);
            if lasted >= STALL {
                counters.stalls.add(1);
            }
        }
        self.paused = now.since(self.expected);
        self.expected = now;
        if self.paused >= PAUSE {
            self.was_paused(self.paused);
        }
    }

    /// The shard was not there for so long: a handler held it up, or the machine did.
    #[cold]
    fn was_paused(&mut self, pause: Duration) {
        self.core.counters.pauses.add(1);
        tracing::warn!(
            shard = self.core.shard.0,
            paused_ms = pause.as_millis(),
            "the shard was paused; requests that may have waited in its sockets for longer than they had left are refused"
        );
        self.core.lanes.borrow_mut().paused(pause);
    }

    /// The shard goes to sleep, until then at the latest: the time until its next turn is no turn's.
    pub(crate) fn rest(&mut self, until: Time) {
        self.turned = None;
        self.expected = until;
        self.core.pulse.rest();
        self.core.counters.parks.add(1);
    }

    fn take_answers(&mut self) -> usize {
        let core = &self.core;
        let mut taken = 0;
        for (shard, arrivals) in self.arrivals.iter_mut().enumerate() {
            if let Some(arrivals) = arrivals {
                let unanswered = peer(&mut core.mesh.borrow_mut(), shard as u16).unanswered();
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
        // Whoever pushes something after the inbox was closed takes it out again.
        if self.refusing || self.inbox_gather.rests() {
            return 0;
        }
        // Looking is cheaper than popping from an empty queue, which takes a fence; most turns find it empty.
        let waiting = self.inbox().len() as u64;
        if !self.inbox_gather.is_due(waiting, INBOX_BATCH) {
            return 0;
        }
        self.core.counters.inbox_calls_max.raise(waiting);
        let mut taken = 0;
        // Behind a handler that takes long the rest waits for the next turn, which knows how late it is, and whether to stop.
        while taken < QUEUE_BATCH
            && !(taken > 0 && self.core.pulse.is_long())
            && let Some(inbound) = self.inbox().pop()
        {
            taken += 1;
            match inbound {
                Inbound::Call(promise) => self.core.take_call(promise, &mut self.ctx),
                Inbound::Event(frame) => {
                    if let Some(incoming) = Incoming::of(&frame) {
                        self.core.listen(incoming, &mut self.ctx, &mut ReplyTo::Nobody, Time::NEVER);
                    }
                    crate::pool::give(frame);
                }
                Inbound::Publication(publication) => {
                    self.core.tell_others(&publication.frame, publication.contract);
                    crate::pool::give(publication.frame);
                }
                Inbound::Lane(lane) => self.take_lane(lane, self.core.now()),
            }
        }
        self.inbox().made_room(taken);
        self.core.callers.wake();
        taken
    }

    fn poll_tasks(&mut self) -> usize {
        if self.ready.is_empty() {
            return 0; // as for the inbox
        }
        for polled in 0..TASK_BATCH {
            let Some(task) = self.ready.pop() else { return polled };
            if let Some(handler) = self.core.handler(task.route) {
                self.core.pulse.at(task.route);
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
            self.core.calls.borrow_mut().expire(now, |ending, wake, sent| ended.push((ending, wake, sent)));
            for (ending, wake, sent) in ended {
                self.core.counters.calls_expired.add(1);
                self.core.ended(ending, wake);
                if let Some((call, target)) = sent {
                    self.core.cancel(call, target);
                }
            }
        }
        if now.since(self.tasks_swept) >= EXPIRY_SWEEP {
            self.tasks_swept = now;
            self.core.end_tasks(&self.ctx, |_, deadline| deadline <= now);
            self.core.publish_gauges();
            let marks = self.arrivals.iter().flatten().map(|arrivals| arrivals.bytes_max());
            self.core.counters.ring_bytes_max.set(marks.max().unwrap_or(0));
        }
        self.core.end_cancelled(&self.ctx);
        if self.inbox().take_given_up() {
            self.core.end_given_up(&self.ctx);
        }
    }

    /// Lets calls that waited for room try again, as far as there is room now.
    fn grant_room(&mut self, now: Time) {
        let shards = self.core.mesh.borrow().len();
        for shard in 0..shards {
            match &mut self.core.mesh.borrow_mut()[shard] {
                Some(peer) if peer.is_waited_for() => {
                    peer.begin_round(now, |call| self.core.calls.borrow_mut().is_told(call));
                }
                _ => continue,
            }
            for _ in 0..RING_BATCH_FRAMES {
                let granted = peer(&mut self.core.mesh.borrow_mut(), shard as u16)
                    .grant(now, |call| self.core.calls.borrow_mut().waiting(call).is_some());
                let Some((call, frame)) = granted else { break };
                self.core.granted(call, frame);
            }
        }
    }

    /// Makes what was written in this turn visible.
    fn publish(&mut self) {
        self.core.callers.wake();
        for peer in self.core.mesh.borrow_mut().iter_mut().flatten() {
            if peer.publish() {
                self.core.counters.doorbells.add(1);
            }
        }
    }

    fn stop_if_drained(&mut self, now: Time) {
        let Some(until) = self.control.draining() else { return };
        if !self.refusing {
            // From here on nothing new comes in; what is in flight may end.
            self.refusing = true;
            for lane in self.inbox().close() {
                self.take_lane(Box::new(lane), now);
            }
            let lanes = &self.core.lanes;
            let leaves_at = if lanes.borrow().open() > 0 { (now + LEAVE_GRACE).min(until) } else { now };
            lanes.borrow_mut().leave();
            self.core.set_stopping(leaves_at);
        }
        if !self.closing {
            let drained = self.is_drained();
            if !drained && now < until {
                return;
            }
            self.give_up_rest(drained);
            self.core.lanes.borrow_mut().drop_events();
            self.core.lanes.borrow_mut().close_all(CloseReason::Stopping);
            self.closing = true;
        }
        self.core.lanes.borrow_mut().flush(&mut *self.world, now, true);
        if self.core.lanes.borrow().are_written() || now >= until {
            self.core.lose_keys(&mut self.ctx);
            self.core.count_told();
            self.publish();
            self.core.publish_gauges();
            self.stopped = true;
        }
    }

    /// Whether all that was in flight has ended, here and on the other shards.
    fn is_drained(&mut self) -> bool {
        let quiet = self.core.now() >= self.core.leaves_at()
            && self.core.tasks_running() == 0
            && self.core.calls.borrow().live() == 0
            && !self.core.has_work_here()
            && !self.waits_for_shards()
            && !self.has_arrivals()
            && self.core.lanes.borrow().are_idle();
        if quiet != self.quiet {
            self.quiet = quiet;
            self.control.set_quiet(quiet);
        }
        // Looks at the rings again after the others were seen quiet: they may have sent something just before.
        quiet && self.control.quiet() >= self.inboxes.len() && !self.has_arrivals()
    }

    /// Whether another shard owes answers, and lives to give them.
    fn waits_for_shards(&self) -> bool {
        let mesh = self.core.mesh.borrow();
        let mut owing = (0..)
            .zip(mesh.iter())
            .filter(|(_, peer)| peer.as_ref().is_some_and(|peer| peer.unanswered() > 0));
        owing.any(|(shard, _)| !self.core.routes.stuck.is_dead(shard))
    }

    fn has_arrivals(&mut self) -> bool {
        self.arrivals.iter_mut().flatten().any(|arrivals| arrivals.pending())
    }

    /// What has not ended when draining is over ends now.
    pub(super) fn give_up_rest(&mut self, drained: bool) {
        let counters = self.core.counters.clone();
        counters.drains_cut.add(u64::from(!drained));
        counters.tasks_stopped.add(self.core.tasks_running() as u64);
        // Before the tasks end: they take their calls with them.
        counters.calls_stopped.add(u64::from(self.core.calls.borrow().live()));
        self.core.end_tasks(&self.ctx, |_, _| true);
        counters.events_dropped.add(self.core.drop_here());
        let core = &self.core;
        for (shard, arrivals) in self.arrivals.iter_mut().enumerate() {
            let Some(arrivals) = arrivals else { continue };
            arrivals.requests(usize::MAX, |header, arrived| {
                core.turn_away(shard as u16, &header);
                if let Arrived::ByHandle(frame) = arrived {
                    crate::pool::give(frame);
                }
            });
        }
        self.core.end_calls(|target| {
            Some(match target {
                None => Ending::NotSent(NotSent::Stopping),
                Some(_) => Ending::Unknown(Unknown::Stopped),
            })
        });
        self.publish();
    }

    /// Whether the shard may sleep: nothing waits for it. Called after [`prepare_sleep`](crate::ring::doorbell::Doorbell).
    pub(crate) fn may_sleep(&mut self) -> bool {
        self.inbox().is_empty()
            && !self.inbox().has_given_up()
            && self.ready.is_empty()
            && !self.core.has_work_here()
            && !self.has_arrivals()
            && (self.refusing || self.control.draining().is_none())
    }

    /// How long the shard may sleep if nobody wakes it.
    pub(crate) fn sleep_max(&self, now: Time) -> Duration {
        /// Some timer is never far away, but a lost wake-up of the machine should not hang a service.
        const LONGEST: Duration = Duration::from_millis(500);
        let mut wake = self.core.calls.borrow().next_expiry().min(self.core.lanes.borrow().next_tick());
        wake = wake.min(self.core.timers.next());
        // Nothing rings when another shard becomes quiet, nor when it has made room by taking what nobody answers.
        let waited_for = self.core.mesh.borrow().iter().flatten().any(Outgoing::is_waited_for);
        // Nor when the agent has a new view.
        let waits_for_view = self.core.lanes.borrow().has_unresolved();
        // Nor can it be told how long something has waited in a socket while the shard slept; see `Lag`. Requests may come
        // right behind the proof that opens a lane.
        if self.core.lanes.borrow().held() > 0 {
            wake = wake.min(now + PAUSE);
        }
        if self.core.tasks_running() > 0 || self.refusing || waited_for || waits_for_view {
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
}
