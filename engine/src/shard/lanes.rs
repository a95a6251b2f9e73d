//! The shard's side of its lanes: which frame goes where, and what ends with a lane.

use catga_codec::{CallId, ForeignFrame, Kind};

use crate::call::table::{Ending, LaneKey, Target};
use crate::client::inbox::Inbound;
use crate::context::Context;
use crate::error::{NotSent, Refusal, Unknown};
use crate::lane::io::Ended;
use crate::lane::outcome::{Fate, Step};
use crate::pool;
use crate::runtime::Accepted;
use crate::service::Incoming;
use crate::shard::Shard;
use crate::shard::core::answer::ending_of;
use crate::shard::core::{Core, Try};
use crate::shard::reply_to::ReplyTo;
use crate::time::Time;

impl Shard {
    /// Reads the lanes that are due, each once, and handles all whole frames.
    pub(super) fn read_lanes(&mut self, now: Time) -> usize {
        if !self.core.lanes.borrow().any() {
            return 0;
        }
        let mut due = std::mem::take(&mut self.due);
        self.core.lanes.borrow().due_for_reading(now, &mut due);
        let frames = due.iter().map(|&key| self.read_lane(key, now)).sum();
        self.due = due;
        frames
    }

    fn read_lane(&mut self, key: LaneKey, now: Time) -> usize {
        let read = self.core.lanes.borrow_mut().read(key, &mut *self.world, now);
        self.core.counters.lane_reads.add(1);
        let Some(mut receive) = read else { return 0 };
        let mut frames = 0;
        loop {
            let step = match self.core.lanes.borrow_mut().machine(key) {
                Some(machine) => machine.next_frame(receive.bytes()),
                None => return frames,
            };
            match step {
                Step::Frame { frame, consumed } => {
                    self.core.take_lane_frame(key, frame, &mut self.ctx, now);
                    receive.consume(consumed);
                    frames += 1;
                }
                Step::Handled { consumed } => receive.consume(consumed),
                Step::Opened { consumed } => {
                    receive.consume(consumed);
                    self.core.counters.lanes_opened.add(1);
                    let mut rest = Some(receive);
                    let handed = self.core.lanes.borrow_mut().opened(key, &mut rest, &mut *self.world);
                    if let Some((shard, lane)) = handed {
                        // A full inbox drops the lane: the peer sees the connection end, and dials again.
                        let _ = self.inboxes[usize::from(shard)].push(Inbound::Lane(lane));
                        return frames;
                    }
                    self.core.retry_forming();
                    match rest {
                        Some(rest) => receive = rest,
                        None => return frames,
                    }
                }
                Step::Incomplete { needed } => {
                    receive.need(needed);
                    break;
                }
                Step::Closed { consumed, .. } => {
                    receive.consume(consumed);
                    break;
                }
            }
        }
        self.core.counters.lane_frames.add(frames as u64);
        self.core.lanes.borrow_mut().put_back(key, receive, frames as u64, now);
        frames
    }

    /// Dials, beats, writes; and ends the calls of lanes that have ended.
    pub(super) fn tend_lanes(&mut self, now: Time) {
        if !self.core.lanes.borrow().any() {
            return;
        }
        let mut ended = std::mem::take(&mut self.ended);
        {
            let mut lanes = self.core.lanes.borrow_mut();
            lanes.dial_due(&mut *self.world, now);
            let written = lanes.flush(&mut *self.world, now, false);
            self.core.counters.lane_writes.add(written);
            lanes.tick(now, &mut ended);
            self.core.counters.lanes_open.set(lanes.open() as u64);
        }
        for Ended { key, closed } in ended.drain(..) {
            tracing::info!(%closed, "a lane has ended");
            if closed.reason.breaks_a_rule() {
                self.core.counters.lanes_refused.add(1);
            }
            self.core.counters.lanes_ended.add(1);
            self.core.lane_ended(key, &self.ctx);
        }
        self.ended = ended;
        self.core.lanes.borrow_mut().bury(&mut *self.world, now);
        self.grant_lanes();
    }

    fn grant_lanes(&mut self) {
        let keys = self.core.lanes.borrow().waited_for();
        for key in keys {
            loop {
                let granted = self.core.lanes.borrow_mut().grant(key);
                let Some((call, frame)) = granted else { break };
                self.core.granted(call, frame);
            }
        }
    }

    /// Takes connections, a bounded number at a time.
    pub(super) fn accept(&mut self, now: Time) {
        const BATCH: usize = 64;
        for _ in 0..BATCH {
            match self.world.accept() {
                Accepted::Stream(stream) => {
                    if !self.core.lanes.borrow_mut().accept(stream, &mut *self.world, now) {
                        self.core.counters.lanes_refused.add(1);
                    }
                }
                Accepted::TurnedAway => {
                    self.core.counters.accepts_failed.add(1);
                    self.core.counters.lanes_refused.add(1);
                }
                Accepted::Failed => self.core.counters.accepts_failed.add(1),
                Accepted::Nobody => return,
            }
        }
    }
}

impl Core {
    /// A frame from another node.
    #[inline]
    fn take_lane_frame(&self, lane: LaneKey, frame: ForeignFrame<'_>, ctx: &mut Context, now: Time) {
        let header = frame.header();
        match header.kind {
            Kind::Request => {
                let mut to = ReplyTo::Lane { lane, call: header.call };
                let deadline = now.after_micros(header.remaining_us);
                let away = self.lanes.borrow_mut().turns_away(lane, header.message);
                if self.is_stopping() {
                    // Peers may go on sending: they are told to go elsewhere, or this node would never drain.
                    self.refuse(&mut to, Refusal::Stopping);
                } else if let Some(refusal) = away {
                    self.refuse(&mut to, refusal);
                } else if self.is_ours(&header) {
                    self.serve(&header, Incoming::Foreign(frame), ctx, &mut to, deadline);
                } else {
                    let mut copy = pool::take();
                    copy.copy_foreign(frame);
                    // Without a contract it goes no further than the shards of this node.
                    self.forward(copy, to, deadline, None, Try::First);
                }
            }
            Kind::Reply | Kind::Rejected | Kind::Refused | Kind::Failed | Kind::Handled => {
                // Only a call that went over this lane is answered by it.
                if self.calls.borrow_mut().went_over(header.call, lane) {
                    self.complete(header.call, ending_of(&header), |answer| answer.copy_foreign(frame));
                } else {
                    self.counters.answers_late.add(1);
                }
            }
            Kind::Cancel => self.end_tasks(ctx, |to, _| {
                matches!(to, ReplyTo::Lane { lane: over, call } if *over == lane && *call == header.call)
            }),
            Kind::Event if header.call != CallId::default() => self.take_lane_broadcast(lane, frame, now),
            Kind::Event => self.listen(Incoming::Foreign(frame), ctx, &mut ReplyTo::Nobody, Time::NEVER),
            // The machine hands out no other kinds.
            _ => {}
        }
    }

    /// Another node's broadcast: it goes to all listeners of this node, and this lane gets the one answer.
    #[cold]
    fn take_lane_broadcast(&self, lane: LaneKey, frame: ForeignFrame<'_>, now: Time) {
        let header = frame.header();
        let mut to = ReplyTo::Lane { lane, call: header.call };
        let away = self.lanes.borrow_mut().turns_away(lane, header.message);
        if let Some(refusal) = away {
            return self.refuse(&mut to, refusal);
        }
        let mut copy = pool::take();
        copy.copy_foreign(frame);
        self.broadcast(copy, to, now.after_micros(header.remaining_us));
    }

    /// Ends what hung on a lane: its calls, those that waited for it, and the tasks that would have answered over it.
    fn lane_ended(&self, key: LaneKey, ctx: &Context) {
        self.end_calls(|target| match target {
            Some(Target::Lane { lane, offset }) if lane == key => {
                Some(match self.lanes.borrow_mut().fate(key, offset) {
                    Fate::NotSent | Fate::NotTaken => Ending::NotSent(NotSent::LaneLost),
                    Fate::Unknown => Ending::Unknown(Unknown::LaneLost),
                })
            }
            _ => None,
        });
        let waiting = self.lanes.borrow_mut().take_waiting(key);
        for (call, frame) in waiting {
            // They may go by another lane, if there is one.
            self.granted(call, frame);
        }
        self.end_tasks(ctx, |to, _| matches!(to, ReplyTo::Lane { lane, .. } if *lane == key));
    }
}
