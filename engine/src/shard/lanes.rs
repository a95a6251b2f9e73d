//! The shard's side of its lanes: which frame goes where, and what ends with a lane.

use std::sync::Arc;

use catga_codec::{CallId, Flags, ForeignFrame, Header, Kind};
use catga_discovery::Subscriber;

use crate::agent::Targets;
use crate::call::table::{Ending, LaneKey};
use crate::client::inbox::Inbound;
use crate::context::Context;
use crate::error::{NotSent, Refusal, Unknown};
use crate::lane::io::LaneIo;
use crate::lane::lanes::{Ended, Opened};
use crate::lane::outcome::{Fate, Step};
use crate::pool;
use crate::runtime::Accepted;
use crate::service::Incoming;
use crate::shard::Shard;
use crate::shard::core::answer::ending_of;
use crate::shard::core::{Core, Try};
use crate::shard::reply_to::ReplyTo;
use crate::shard::window::{Arrival, Asked};
use crate::time::{Time, nanoseconds};

impl Shard {
    /// Reads the lanes that are due, each once, and handles all whole frames.
    pub(super) fn read_lanes(&mut self, now: Time) -> usize {
        if !self.core.lanes.borrow().any() {
            return 0;
        }
        let mut due = std::mem::take(&mut self.due);
        self.core.lanes.borrow_mut().due_for_reading(now, &mut due);
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
            let step = self
                .core
                .lanes
                .borrow_mut()
                .machine(key, |machine| (machine.next_frame(receive.bytes()), machine.lag_ns()));
            let Some((step, lag_ns)) = step else { return frames };
            match step {
                Step::Frame { frame, consumed } => {
                    let late_ns = lag_ns.saturating_add(self.held_up_ns(now));
                    self.core.take_lane_frame(key, frame, late_ns, &mut self.ctx, now);
                    receive.consume(consumed);
                    frames += 1;
                }
                Step::Handled { consumed } => receive.consume(consumed),
                Step::Opened { consumed } => {
                    receive.consume(consumed);
                    self.core.counters.lanes_opened.add(1);
                    let mut rest = Some(receive);
                    let opened = self.core.lanes.borrow_mut().opened(key, &mut rest, &mut *self.world, now);
                    if let Opened::For(shard, lane) = opened {
                        self.hand_over(shard, lane, now);
                    }
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

    /// By how much this turn's time is behind, if some handler in it has held the shard up.
    #[inline]
    fn held_up_ns(&mut self, now: Time) -> u64 {
        if self.core.pulse.is_long() { nanoseconds(self.world.now().since(now)) } else { 0 }
    }

    /// Gives an open lane to the shard that its peer has asked for.
    fn hand_over(&mut self, shard: u16, lane: Box<LaneIo>, now: Time) {
        let inbox = &self.inboxes[usize::from(shard)];
        if inbox.is_closed() {
            // It stops, and so will this one: until then what the peer has sent already is served from here.
            return self.take_lane(lane, now);
        }
        if inbox.push(Inbound::Lane(lane)).is_err() {
            // The peer sees the connection end, and dials again.
            self.core.counters.lanes_refused.add(1);
        }
    }

    /// Takes over a lane that another shard has opened for this one.
    pub(super) fn take_lane(&mut self, lane: Box<LaneIo>, now: Time) {
        if !self.core.lanes.borrow_mut().adopt(lane, self.paused, &mut *self.world, now) {
            self.core.counters.lanes_refused.add(1);
        }
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
            self.core.counters.farewells_cut.add(lanes.take_cut());
            lanes.publish_early(now);
        }
        self.core.count_told();
        for Ended { key, closed, traffic, connected, broke, was_open } in ended.drain(..) {
            let (peer, node) = self.core.lanes.borrow().who(key);
            let reason = closed.reason.label();
            // Of those with whom no greeting was agreed on there may come any number. A node comes again after a pause that grows, and
            // so does a dial of this side.
            let stranger = connected && node.is_none();
            let left_out = if stranger { self.strangers_logged.admits(now) } else { Some(0) };
            if let Some(left_out @ 1..) = left_out {
                tracing::info!(
                    left_out,
                    "lines about strangers were left out of the log; the counters have them"
                );
            }
            match broke.map(|error| error.to_string()) {
                _ if left_out.is_none() => {}
                Some(error) if !connected => {
                    tracing::info!(
                        peer,
                        error,
                        "could not connect; see whether a node runs and listens there"
                    );
                }
                error => tracing::info!(peer, node, reason, error, %closed, %traffic, "a lane has ended"),
            }
            if closed.reason.breaks_a_rule() {
                self.core.counters.lanes_refused.add(1);
            }
            if closed.reason.is_unproven() {
                self.core.counters.lanes_unproven.add(1);
            }
            self.core.counters.lanes_ended.add(1);
            if was_open {
                self.core.lane_ended(key, &self.ctx);
            }
        }
        self.ended = ended;
        self.core.lanes.borrow_mut().bury(&mut *self.world, now);
        self.tell_contacts(now);
        self.core.resolve_again();
        self.core.lanes.borrow_mut().begin_round(now, |call| self.core.calls.borrow_mut().is_told(call));
        loop {
            let live = |call| self.core.calls.borrow_mut().waiting(call).is_some();
            let granted = self.core.lanes.borrow_mut().grant(now, live);
            let Some((call, frame)) = granted else { break };
            self.core.granted(call, frame);
        }
    }

    /// Takes over what the agent has concluded.
    pub(super) fn take_view(&mut self, now: Time) {
        let Some(membership) = &mut self.membership else { return };
        if let Some(Targets(targets)) = membership.targets.as_mut().and_then(Subscriber::take).as_deref() {
            self.core.lanes.borrow_mut().aim(targets);
        }
        if let Some(view) = membership.views.take() {
            tracing::debug!(shard = self.core.shard.0, %view, "a new view");
            self.core.lanes.borrow_mut().set_view(view, now);
        }
    }

    /// Tells the agent whom this shard is in touch with, if that has changed.
    fn tell_contacts(&mut self, now: Time) {
        let Some(membership) = &mut self.membership else { return };
        if let Some(contacts) = self.core.lanes.borrow_mut().new_contacts(now) {
            membership.contacts.publish(Arc::new(contacts));
            membership.agent.wake();
        }
    }

    /// Takes connections, a bounded number at a time.
    pub(super) fn accept(&mut self, now: Time) {
        const BATCH: usize = 64;
        for _ in 0..BATCH {
            match self.world.accept() {
                Accepted::Stream(stream) => {
                    let closed = self.core.lanes.borrow_mut().accept(stream, &mut *self.world, now);
                    self.core.counters.lanes_refused.add(closed);
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
    /// A frame from another node, that may have waited for so long before it was read.
    #[inline]
    fn take_lane_frame(
        &self,
        lane: LaneKey,
        frame: ForeignFrame<'_>,
        late_ns: u64,
        ctx: &mut Context,
        now: Time,
    ) {
        let header = frame.header();
        match header.kind {
            Kind::Request => {
                let mut to = ReplyTo::Lane { lane, call: header.call };
                if header.flags.contains(Flags::IDEMPOTENT) && !self.is_first(lane, &mut to) {
                    return;
                }
                let deadline = now.after_left(header.remaining_us, late_ns);
                if let Some(refusal) = self.turns_away(lane, &header, now) {
                    self.refuse(&mut to, refusal);
                } else if self.is_ours(&header) {
                    self.serve(&header, Incoming::Foreign(frame), ctx, &mut to, deadline);
                } else if deadline <= now {
                    self.counters.expired.add(1);
                    self.refuse(&mut to, Refusal::Expired);
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
            Kind::Cancel => self.take_cancel(lane, header.call, ctx),
            Kind::Event if header.call != CallId::default() => {
                self.take_lane_broadcast(lane, frame, late_ns, now);
            }
            // One that this node could misread is not looked at.
            Kind::Event if self.lanes.borrow().refuses_layout(lane, header.message) => {
                self.counters.events_dropped.add(1);
            }
            Kind::Event => self.take_lane_event(frame, ctx),
            // The machine hands out no other kinds.
            _ => {}
        }
    }

    /// Why a request of another node is turned away before it is looked at, if it is.
    #[inline]
    fn turns_away(&self, lane: LaneKey, header: &Header, now: Time) -> Option<Refusal> {
        let refusal = self.turns_away_all(lane, header, now);
        if refusal.is_none() && header.flags.contains(Flags::KEYED) && !self.lanes.borrow().owns(header) {
            return Some(Refusal::WrongOwner);
        }
        refusal
    }

    /// The same for a message that has no owner among the nodes.
    #[inline]
    fn turns_away_all(&self, lane: LaneKey, header: &Header, now: Time) -> Option<Refusal> {
        // Peers may go on sending after they were told that this node leaves: it would never drain.
        if self.is_stopping() && now >= self.leaves_at() {
            return Some(Refusal::Stopping);
        }
        self.lanes.borrow().turns_away(lane, header.message)
    }

    /// Whether an idempotent request has not come before; then it is answered by way of the window. One that comes again gets
    /// the answer of the first, here or when there is one.
    #[inline(never)]
    fn is_first(&self, lane: LaneKey, to: &mut ReplyTo) -> bool {
        let ReplyTo::Lane { call, .. } = *to else { return true };
        let Some(asked) = self.asked(lane, call) else { return true };
        let mut window = self.window.borrow_mut();
        match window.arrives(asked, lane, self.now()) {
            Arrival::First(entry) => *to = ReplyTo::Window(entry),
            Arrival::NoRoom => {}
            Arrival::Joined { before } => {
                drop(window);
                self.counters.repeats_joined.add(1);
                self.end(&mut ReplyTo::Lane { lane: before, call }, Ending::Unknown(Unknown::LaneLost));
                return false;
            }
            Arrival::Ended(ending, frame) => {
                self.counters.repeats_answered.add(1);
                self.say_again(lane, call, ending, frame);
                return false;
            }
        }
        self.counters.window_evicted.add(window.take_evicted());
        true
    }

    /// Whose request a call on a lane is.
    fn asked(&self, lane: LaneKey, call: CallId) -> Option<Asked> {
        let lanes = self.lanes.borrow();
        let (node, shard) = lanes.other_end(lane)?;
        Some(Asked { node: node.id.hash64(), incarnation: node.incarnation, shard, call })
    }

    /// The caller does not wait any more: what runs for it ends.
    fn take_cancel(&self, lane: LaneKey, call: CallId, ctx: &Context) {
        let asked = self.asked(lane, call);
        let kept = asked.and_then(|asked| self.window.borrow().running(&asked, lane));
        self.end_for(ctx, |to| match to {
            ReplyTo::Lane { lane: over, call: ended } => *over == lane && *ended == call,
            ReplyTo::Window(entry) => Some(*entry) == kept,
            _ => false,
        });
    }

    /// Another node's broadcast: it goes to all listeners of this node, and this lane gets the one answer.
    #[cold]
    fn take_lane_broadcast(&self, lane: LaneKey, frame: ForeignFrame<'_>, late_ns: u64, now: Time) {
        let header = frame.header();
        let mut to = ReplyTo::Lane { lane, call: header.call };
        if let Some(refusal) = self.turns_away_all(lane, &header, now) {
            return self.refuse(&mut to, refusal);
        }
        let mut copy = pool::take();
        copy.copy_foreign(frame);
        self.broadcast(copy, to, now.after_left(header.remaining_us, late_ns), None);
    }

    /// Ends what hung on a lane: its calls, those that waited for it, and what would have been answered over it. Idempotent
    /// requests go on: their callers ask again.
    fn lane_ended(&self, key: LaneKey, ctx: &Context) {
        let under_way = self.calls.borrow().over(key);
        for (call, offset) in under_way {
            let fate = self.lanes.borrow().fate(key, offset);
            let ending = match fate {
                Fate::NotSent | Fate::NotTaken => Ending::NotSent(NotSent::LaneLost),
                Fate::Unknown => Ending::Unknown(Unknown::LaneLost),
            };
            self.complete(call, ending, |_| ());
        }
        self.lanes.borrow_mut().take_waiting(key);
        self.end_for(ctx, |to| matches!(to, ReplyTo::Lane { lane, .. } if *lane == key));
    }
}
