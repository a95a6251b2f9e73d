//! What comes in for the handlers of this shard: requests, events, timers, and the end of tasks that nobody waits
//! for any more.
//!
//! Before a handler runs, the time that is left is looked at; after it has returned, what it published leaves.

use super::{Core, Here, Try};

use std::cell::Ref;
use std::rc::Rc;

use catga_codec::{CallId, Contract, Event, Flags, ForeignFrame, Header, Kind, LocalFrame, OwnedFrame};

use crate::call::table::Ending;
use crate::choice::Choice;
use crate::client::completion::Promise;
use crate::client::event_header;
use crate::context::Context;
use crate::error::{Failure, Refusal};
use crate::instance::Instance;
use crate::lane::events::{Publication, Told};
use crate::limits::{LOCAL_QUEUE_MESSAGES, OUTBOX_EVENTS};
use crate::panics::guarded;
use crate::pool;
use crate::route::Recipients;
use crate::service::{Incoming, NotHeard, Serve};
use crate::shard::mesh::peer;
use crate::shard::reply_to::ReplyTo;
use crate::time::Time;
use crate::timer::{Due, tick_after};

impl Core {
    /// A request, a cancel or an event out of a ring.
    #[inline(always)] // as `take_answer`
    pub(crate) fn take_request(
        &self,
        shard: u16,
        header: &Header,
        incoming: Incoming<'_>,
        ctx: &mut Context,
    ) {
        match header.kind {
            Kind::Event => self.take_event(header, incoming, ctx, ReplyTo::Shard { shard, call: header.call }),
            Kind::Cancel => self.end_for(
                ctx,
                |to| matches!(to, ReplyTo::Shard { shard: from, call } if *from == shard && *call == header.call),
            ),
            _ => {
                let mut to = ReplyTo::Shard { shard, call: header.call };
                self.serve(header, incoming, ctx, &mut to, self.now().after_left(header.remaining_us, 0));
            }
        }
    }

    /// Gives a request to its handler on this shard. One that comes too late, or has no handler here, is refused.
    #[inline]
    pub(crate) fn serve(
        &self,
        header: &Header,
        incoming: Incoming<'_>,
        ctx: &mut Context,
        to: &mut ReplyTo,
        deadline: Time,
    ) {
        let index = self.index_of(header, &incoming);
        if deadline <= self.now() {
            self.counters.expired.add(1);
            return self.refuse(to, Refusal::Expired);
        }
        let Some((index, handler)) = index.and_then(|index| Some((index, self.handler(index)?))) else {
            return self.refuse(to, Refusal::NoHandler);
        };
        ctx.set_deadline(deadline);
        self.pulse.at(index);
        self.counters.handled.add(1);
        handler.serve(incoming, ctx, to);
        self.after_handler();
    }

    /// The type index of a frame's message: its context word if this process archived it, else by the message's id.
    #[inline]
    pub(super) fn index_of(&self, header: &Header, incoming: &Incoming<'_>) -> Option<u32> {
        match incoming {
            Incoming::Local(_) if header.context != 0 => u32::try_from(header.context).ok(),
            _ => self.routes.index_of(header.message),
        }
    }

    /// Whether a frame from elsewhere is for a handler of this shard.
    pub(crate) fn is_ours(&self, header: &Header) -> bool {
        let Some(index) = self.routes.index_of(header.message) else { return false };
        match self.routes.request(index).map(|shards| shards.place(header.key)) {
            Some(Recipients::Owner(shard)) => shard == self.shard.0,
            _ => self.handler(index).is_some(),
        }
    }

    /// Whether a foreign call is for a handler of this shard, by its route and by how that handler stands.
    fn stays_here(&self, header: &Header, choice: Choice) -> bool {
        if !self.is_ours(header) {
            return false;
        }
        let handler = || self.routes.index_of(header.message).and_then(|index| self.handler(index));
        if !self.clustered {
            return !matches!(choice, Choice::Node(_));
        }
        match choice.of(header.flags.contains(Flags::KEYED)) {
            Choice::Local => true,
            Choice::LocalFirst => handler().is_some_and(|handler| handler.takes_more()),
            _ => false,
        }
    }

    /// Queues a frame whose handler's state is borrowed just now.
    #[cold]
    pub(crate) fn queue_here(&self, incoming: Incoming<'_>, to: &mut ReplyTo, deadline: Time) {
        self.queue(incoming.to_owned_in(pool::take()), std::mem::take(to), deadline);
    }

    pub(super) fn queue(&self, frame: OwnedFrame, mut to: ReplyTo, deadline: Time) {
        if self.here.borrow().len() >= LOCAL_QUEUE_MESSAGES {
            pool::give(frame);
            return self.refuse(&mut to, Refusal::Overloaded);
        }
        self.here.borrow_mut().push_back(Here { frame, to, deadline });
    }

    /// Runs what waits for handlers of this shard, at most `limit` messages. Returns how many.
    pub(crate) fn run_here(&self, limit: usize, ctx: &mut Context) -> usize {
        for done in 0..limit {
            let next = self.here.borrow_mut().pop_front();
            let Some(Here { frame, mut to, deadline }) = next else { return done };
            if let Some(incoming) = Incoming::of(&frame) {
                let header = incoming.header();
                if header.kind == Kind::Event {
                    self.listen(incoming, ctx, &mut to, deadline);
                } else {
                    self.serve(&header, incoming, ctx, &mut to, deadline);
                }
            }
            pool::give(frame);
        }
        limit
    }

    /// Drops what waits for handlers of this shard. Returns how many events were among it; requests' callers are told.
    pub(crate) fn drop_here(&self) -> u64 {
        let mut events = 0;
        for Here { frame, mut to, .. } in std::mem::take(&mut *self.here.borrow_mut()) {
            match frame.header() {
                Some(header) if header.kind == Kind::Event => events += 1,
                _ => self.refuse(&mut to, Refusal::Stopping),
            }
            pool::give(frame);
        }
        events
    }

    /// A request, a cancel or an event out of a ring, that comes when this shard does not run anything any more.
    pub(crate) fn turn_away(&self, shard: u16, header: &Header) {
        match header.kind {
            Kind::Cancel => {}
            Kind::Event if header.call == CallId::default() => self.counters.events_dropped.add(1),
            _ => self.refuse(&mut ReplyTo::Shard { shard, call: header.call }, Refusal::Stopping),
        }
    }

    pub(crate) fn has_work_here(&self) -> bool {
        !self.here.borrow().is_empty()
    }

    // ---- events -----------------------------------------------------------------------------------------------

    /// An event from elsewhere. One that names a call is a part of a broadcast, and `asker` is told how it went.
    pub(crate) fn take_event(
        &self,
        header: &Header,
        incoming: Incoming<'_>,
        ctx: &mut Context,
        mut asker: ReplyTo,
    ) {
        if header.call == CallId::default() {
            self.listen(incoming, ctx, &mut ReplyTo::Nobody, Time::NEVER);
        } else {
            self.listen(incoming, ctx, &mut asker, self.now().after_left(header.remaining_us, 0));
        }
    }

    /// Hands an event to this shard's listeners, all of them even if some fail, and answers how it went: how many there
    /// are, or the first failure. A published event has no deadline (`NEVER`) and is answered to nobody.
    pub(crate) fn listen(&self, incoming: Incoming<'_>, ctx: &mut Context, to: &mut ReplyTo, deadline: Time) {
        if deadline <= self.now() {
            self.counters.expired.add(1);
            return self.refuse(to, Refusal::Expired);
        }
        let index = self.index_of(&incoming.header(), &incoming).unwrap_or(0);
        let handlers = self.handlers.borrow();
        let listeners = handlers.events.get(index as usize).map_or(&[][..], Vec::as_slice);
        self.pulse.at(index);
        ctx.set_deadline(if deadline == Time::NEVER { self.now() + self.deadline } else { deadline });
        let mut failure = None;
        for listener in listeners {
            let outcome = listener.listen(incoming, ctx);
            self.after_handler();
            match outcome {
                Ok(()) => self.counters.events_handled.add(1),
                Err(NotHeard::Refused(refusal)) => {
                    self.counters.events_dropped.add(1);
                    failure.get_or_insert(Ending::Refused(refusal));
                }
                Err(NotHeard::Panicked) => {
                    // Counted where the policy was followed.
                    failure.get_or_insert(Ending::Failed(Failure::Panicked));
                }
            }
        }
        let handled = u16::try_from(listeners.len()).unwrap_or(u16::MAX);
        self.end(to, failure.unwrap_or(Ending::Handled(handled)));
    }

    /// Queues an event until the handler that publishes it has returned.
    pub(crate) fn publish<E: Event>(&self, event: &E) {
        let (index, contract) = (E::type_index().get(), Contract::of_event::<E>);
        let is_heard = self.routes.listeners(index).is_some()
            || (self.clustered && self.lanes.borrow_mut().is_heard_elsewhere(index, contract));
        if !is_heard {
            return;
        }
        let mut outbox = self.outbox.borrow_mut();
        if outbox.len() >= OUTBOX_EVENTS {
            return self.counters.events_dropped.add(1);
        }
        let mut frame = pool::take();
        match frame.encode(event_header(event), event) {
            Ok(()) => outbox.push_back(Publication { frame, contract }),
            Err(_) => self.counters.events_dropped.add(1),
        }
    }

    /// Sends what the handler that has just returned had published; or what one that makes a call has published so far.
    #[inline]
    pub(crate) fn after_handler(&self) {
        if !self.outbox.borrow().is_empty() {
            self.empty_outbox();
        }
    }

    fn empty_outbox(&self) {
        loop {
            let next = self.outbox.borrow_mut().pop_front();
            let Some(Publication { frame, contract }) = next else { return };
            self.tell_others(&frame, contract);
            if let Some(local) = frame.local() {
                let header = local.header();
                let index = u32::try_from(header.context).unwrap_or(0);
                let recipients = self.routes.listeners(index).map(|shards| shards.place(header.key));
                for &shard in recipients.iter().flat_map(Recipients::shards) {
                    self.send_event(local, shard);
                }
            }
            pool::give(frame);
        }
    }

    /// Sends an event to the other nodes that listen.
    #[inline]
    pub(crate) fn tell_others(&self, event: &OwnedFrame, contract: fn() -> Contract) {
        if self.clustered {
            self.lanes.borrow_mut().publish(event, contract, self.now());
        }
    }

    /// Counts what became of events for other nodes since the last look.
    pub(crate) fn count_told(&self) {
        let Told { sent, dropped, other_layout } = self.lanes.borrow_mut().take_told();
        self.counters.events_sent.add(sent);
        self.counters.events_dropped.add(dropped);
        self.counters.events_other_layout.add(other_layout);
    }

    /// An event that another node has published: it goes to all listeners of this node, and no further.
    pub(crate) fn take_lane_event(&self, event: ForeignFrame<'_>, ctx: &mut Context) {
        let header = event.header();
        let listeners = self.routes.index_of(header.message).and_then(|index| self.routes.listeners(index));
        let recipients = listeners.map(|listeners| listeners.place(header.key));
        for &shard in recipients.iter().flat_map(Recipients::shards) {
            if shard == self.shard.0 {
                self.listen(Incoming::Foreign(event), ctx, &mut ReplyTo::Nobody, Time::NEVER);
                continue;
            }
            let mut copy = pool::take();
            copy.copy_foreign(event);
            let sent = peer(&mut self.mesh.borrow_mut(), shard).event(copy);
            match sent {
                Ok(()) => self.counters.events_sent.add(1),
                Err(copy) => {
                    pool::give(copy);
                    self.counters.events_dropped.add(1);
                }
            }
        }
    }

    fn send_event(&self, event: LocalFrame<'_>, shard: u16) {
        let mut frame = pool::take();
        frame.copy_local(event);
        let sent = if shard == self.shard.0 {
            let mut here = self.here.borrow_mut();
            if here.len() >= LOCAL_QUEUE_MESSAGES {
                Err(frame)
            } else {
                here.push_back(Here { frame, to: ReplyTo::Nobody, deadline: Time::NEVER });
                Ok(())
            }
        } else {
            peer(&mut self.mesh.borrow_mut(), shard).event(frame)
        };
        match sent {
            Ok(()) => self.counters.events_sent.add(1),
            Err(frame) => {
                pool::give(frame);
                self.counters.events_dropped.add(1);
            }
        }
    }

    // ---- timers and hooks -------------------------------------------------------------------------------------

    /// Runs the timers that have come, at most `limit`. Returns how many.
    pub(crate) fn run_timers(&self, limit: usize, ctx: &mut Context) -> usize {
        let now = self.now();
        for done in 0..limit {
            let Some((at, due)) = self.timers.pop(now) else { return done };
            match due {
                Due::Begin => self.begin(ctx),
                Due::Wake(waker) => guarded(|| waker.wake()),
                Due::Tick { instance, which } => {
                    ctx.set_deadline(now + self.deadline);
                    let period = self.instances().get(instance).and_then(|found| found.tick(which, ctx));
                    self.after_handler();
                    if let Some(period) = period {
                        self.timers.set(tick_after(at, period, now), due);
                    }
                }
            }
        }
        limit
    }

    /// Before anything is handled: each instance learns what it owns, and its periods begin.
    fn begin(&self, ctx: &mut Context) {
        let now = self.now();
        ctx.set_deadline(now + self.deadline);
        for (instance, found) in self.instances().iter().enumerate() {
            found.gained(ctx);
            self.after_handler();
            for (which, period) in found.periods().into_iter().enumerate() {
                self.timers.set(now + period, Due::Tick { instance, which });
            }
        }
    }

    /// After everything: each instance is told that it owns nothing any more.
    pub(crate) fn lose_keys(&self, ctx: &mut Context) {
        ctx.set_deadline(self.now() + self.deadline);
        self.pulse.at(0);
        for found in self.instances().iter() {
            found.lost(ctx);
            self.after_handler();
        }
    }

    fn instances(&self) -> Ref<'_, [Rc<dyn Instance>]> {
        Ref::map(self.handlers.borrow(), |handlers| &handlers.instances[..])
    }

    // ---- tasks ------------------------------------------------------------------------------------------------

    /// Ends the running tasks that `gone` picks out by whom they answer and by when.
    pub(crate) fn end_tasks(&self, ctx: &Context, mut gone: impl FnMut(&ReplyTo, Time) -> bool) {
        for handler in self.handlers.borrow().requests.iter().flatten() {
            handler.end_tasks(ctx, &mut gone);
        }
    }

    /// Callers do not wait any more: what runs for them here ends, and where their calls were passed on to it is passed on too.
    /// Each of these is answered still: who asked counts on that.
    #[cold]
    pub(crate) fn end_for(&self, ctx: &Context, them: impl Fn(&ReplyTo) -> bool) {
        self.end_tasks(ctx, |to, _| them(to));
        let passed_on = self.calls.borrow_mut().cancel_passed_on(them);
        for (call, target) in passed_on {
            match target {
                Some(target) => self.cancel(call, target),
                None => self.complete(call, Ending::Refused(Refusal::Cancelled), |_| ()),
            }
        }
    }

    /// Writes the counters that go up and down. A few times in a millisecond is often enough for who reads them.
    pub(crate) fn publish_gauges(&self) {
        self.counters.calls_live.set(u64::from(self.calls.borrow().live()));
        self.counters.tasks_running.set(self.tasks_running() as u64);
    }

    /// Async handlers that have not ended.
    pub(crate) fn tasks_running(&self) -> usize {
        let running =
            |handler: &Option<Box<dyn Serve>>| handler.as_ref().map_or(0, |handler| handler.running());
        self.handlers.borrow().requests.iter().map(running).sum()
    }

    /// Ends what was taken on for foreign calls that nobody waits for any more.
    #[cold]
    pub(crate) fn end_given_up(&self, ctx: &Context) {
        self.end_tasks(ctx, |to, _| to.is_given_up());
        self.give_up_broadcasts_for(ReplyTo::is_given_up);
        let mut ended = Vec::new();
        self.calls
            .borrow_mut()
            .give_up_where(ReplyTo::is_given_up, |call, target| ended.push((call, target)));
        for (call, target) in ended {
            self.cancel(call, target);
        }
    }

    /// Ends the tasks whose callers on this shard gave them up.
    pub(crate) fn end_cancelled(&self, ctx: &Context) {
        let cancelled = std::mem::take(&mut *self.cancelled_here.borrow_mut());
        if !cancelled.is_empty() {
            self.end_tasks(ctx, |to, _| matches!(to, ReplyTo::Here(id) if cancelled.contains(id)));
        }
    }

    /// A foreign call or broadcast, taken out of the inbox.
    pub(crate) fn take_call(&self, mut promise: Promise, ctx: &mut Context) {
        let Some((frame, terms)) = promise.take_request() else {
            return self.counters.cancels.add(1);
        };
        let Some(header) = frame.header() else { return };
        let mut to = ReplyTo::Client(promise);
        if header.kind == Kind::Event {
            self.broadcast(frame, to, terms.deadline, Some(terms.contract));
            return;
        }
        let go = if terms.at_once { Try::Once } else { Try::First };
        match frame.local() {
            Some(local) if self.stays_here(&header, terms.choice) => {
                self.serve(&header, Incoming::Local(local), ctx, &mut to, terms.deadline);
                pool::give(frame);
            }
            _ => self.forward(frame, to, terms.deadline, Some((terms.contract, terms.choice)), go),
        }
    }
}
