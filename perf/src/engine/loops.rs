//! The state of a driver's loops: who may send, what was sent and answered, and when.
//!
//! Everything here belongs to one thread. A phase runs from `begin` to `end`; in it, every pass of the driver is framed by
//! [`Loops::begin_pass`], which says how far callers may go by now, and [`Loops::end_pass`], which stamps the replies.

use std::cell::{Cell, RefCell};
use std::fmt::Display;
use std::future::poll_fn;
use std::task::{Context as TaskContext, Poll, Waker};
use std::time::Duration;

use catga::{Archived, Request};

use crate::engine::driver::{Measured, OUTSTANDING_MAX, Plan};
use crate::engine::exchange::Exchange;
use crate::frame;
use crate::histogram::{Latency, Sampling};
use crate::load::{Clock, LATE_AFTER_NS, PASSES_PER_LOOK, SILENCE_MAX, Schedule};
use crate::scenario::{Broken, Pace, Stop};

/// The state of a phase, which callers and passes share.
pub(super) struct Loops<'a, E> {
    pub(super) exchange: &'a E,
    stop: &'a Stop,
    schedule: Option<Schedule>,
    clocked: bool,
    /// Replies are stamped one by one.
    alone: bool,
    clock: Cell<Clock>,
    span_ns: Cell<u64>,
    pub(super) sampling: Cell<Sampling>,
    /// The first number of the phase.
    first: Cell<u64>,
    pub(super) next: Cell<u64>,
    /// Numbers below may be sent now.
    limit: Cell<u64>,
    /// The limit will not be raised any more.
    last_limit: Cell<bool>,
    /// Numbers below that are sent now are late.
    late_below: Cell<u64>,
    answered: Cell<u64>,
    /// What was asked, less what was answered.
    balance: Cell<u64>,
    errors: Cell<u64>,
    first_error: RefCell<Option<String>>,
    late: Cell<u64>,
    broken: RefCell<Option<Broken>>,
    passes: Cell<u32>,
    /// How many were answered when the clock was last looked at and there was something new, and when that was.
    heard: Cell<(u64, u64)>,
    /// Read for the first request of a pass whose latency is taken.
    sent_at: Cell<Option<u64>>,
    /// When the replies of this pass were asked for, or were due.
    starts: RefCell<Vec<u64>>,
    latency: RefCell<Latency>,
    /// Callers that wait for their turn.
    idle: RefCell<Vec<Waker>>,
}

impl<'a, E: Exchange> Loops<'a, E> {
    pub(super) fn new(exchange: &'a E, plan: &'a Plan) -> Self {
        let schedule = match plan.pace {
            Pace::Open { rate_per_s } => Some(Schedule { rate_per_s }),
            Pace::Closed { .. } => None,
        };
        Self {
            exchange,
            stop: &plan.stop,
            schedule,
            clocked: plan.clocked,
            alone: plan.pace == Pace::Closed { in_flight: 1 },
            clock: Cell::new(Clock::start()),
            span_ns: Cell::new(0),
            sampling: Cell::new(Sampling::SPARSE),
            first: Cell::new(0),
            next: Cell::new(0),
            limit: Cell::new(0),
            last_limit: Cell::new(false),
            late_below: Cell::new(0),
            answered: Cell::new(0),
            balance: Cell::new(0),
            errors: Cell::new(0),
            first_error: RefCell::new(None),
            late: Cell::new(0),
            broken: RefCell::new(None),
            passes: Cell::new(0),
            heard: Cell::new((0, 0)),
            sent_at: Cell::new(None),
            starts: RefCell::new(Vec::with_capacity(OUTSTANDING_MAX)),
            latency: RefCell::new(Latency::new()),
            idle: RefCell::new(Vec::with_capacity(OUTSTANDING_MAX)),
        }
    }

    /// Both phases, and the window between them.
    pub(super) async fn measure<W>(
        &self,
        plan: &Plan,
        mut phase: impl AsyncFnMut(),
        open_window: impl AsyncFnOnce() -> Result<W, Broken>,
    ) -> Result<(Measured, W), Broken> {
        // The histograms are here before the window opens.
        let measured = Latency::new();
        self.begin(plan.warm_up, Sampling::SPARSE);
        phase().await;
        let warm_up = self.end()?;
        let sampling = Sampling::at_rate(warm_up.0 as f64 / warm_up.1.as_secs_f64().max(1e-9));
        self.latency.replace(measured);
        let window = open_window().await?;
        self.begin(plan.span, sampling);
        phase().await;
        let (requests, elapsed) = self.end()?;
        let measured = Measured {
            requests,
            errors: self.errors.get(),
            first_error: self.first_error.take(),
            late: self.late.get(),
            elapsed,
            latency: self.clocked.then(|| self.latency.replace(Latency::new())),
            sampling,
            sent_in_all: self.next.get(),
        };
        Ok((measured, window))
    }

    fn begin(&self, span: Duration, sampling: Sampling) {
        self.span_ns.set(span.as_nanos() as u64);
        self.sampling.set(sampling);
        self.first.set(self.next.get());
        self.errors.set(0);
        self.first_error.take();
        self.late.set(0);
        self.heard.set((self.answered.get(), 0));
        self.last_limit.set(false);
        self.clock.set(Clock::start());
        if self.schedule.is_none() {
            self.limit.set(u64::MAX);
            self.wake(usize::MAX);
        }
    }

    /// How many requests the phase had, and how long it took; or what was wrong with it.
    fn end(&self) -> Result<(u64, Duration), Broken> {
        let elapsed = Duration::from_nanos(self.clock.get().now());
        if let Some(broken) = self.broken.take() {
            return Err(broken);
        }
        let (sent, answered) = (self.next.get(), self.answered.get());
        if answered > sent {
            return Err(Broken::Doubled { extra: answered - sent, sent });
        }
        if answered < sent {
            return Err(Broken::Lost { missing: sent - answered, sent, waited_s: 0 });
        }
        if self.balance.get() != 0 {
            return Err(Broken::WrongReply(
                "as many as requests, but some were lost and others doubled".into(),
            ));
        }
        Ok((sent - self.first.get(), elapsed))
    }

    /// A pass begins: how far may callers go by now?
    pub(super) fn begin_pass(&self) {
        self.sent_at.set(None);
        if let Some(schedule) = &self.schedule {
            let now = self.clock.get().now();
            let (first, total) = (self.first.get(), schedule.due_by(self.span_ns.get()));
            let due = schedule.due_by(now).min(total);
            if !self.last_limit.get() {
                self.limit.set(first + due);
                self.last_limit.set(due == total);
            }
            self.late_below.set(first + now.checked_sub(LATE_AFTER_NS).map_or(0, |by| schedule.due_by(by)));
            self.wake((self.limit.get() - self.next.get()) as usize);
            self.look(now);
            return;
        }
        self.passes.set(self.passes.get() + 1);
        if self.passes.get() >= PASSES_PER_LOOK {
            self.passes.set(0);
            let now = self.clock.get().now();
            if now >= self.span_ns.get() {
                self.hold();
            }
            self.look(now);
        }
    }

    /// Nothing is sent from here on.
    fn hold(&self) {
        self.limit.set(self.next.get());
        self.last_limit.set(true);
    }

    /// Whether to go on.
    fn look(&self, now: u64) {
        if self.stop.requested() {
            self.broken(Broken::Interrupted);
        }
        let (answered, at) = self.heard.get();
        if answered != self.answered.get() || answered == self.next.get() {
            self.heard.set((self.answered.get(), now));
        } else if now - at > SILENCE_MAX.as_nanos() as u64 {
            let (sent, waited_s) = (self.next.get(), SILENCE_MAX.as_secs());
            self.broken(Broken::Lost { missing: sent - answered, sent, waited_s });
        }
    }

    /// The first fault stands; whatever is in flight may end.
    pub(super) fn broken(&self, why: Broken) {
        self.hold();
        self.broken.borrow_mut().get_or_insert(why);
    }

    /// A pass ends: all its replies came by now.
    pub(super) fn end_pass(&self) {
        let mut starts = self.starts.borrow_mut();
        if !starts.is_empty() {
            let now = self.clock.get().now();
            let mut latency = self.latency.borrow_mut();
            starts.drain(..).for_each(|start| latency.record(now.saturating_sub(start)));
        }
    }

    /// Nothing more is sent in this phase.
    pub(super) fn is_held(&self) -> bool {
        self.last_limit.get() && self.next.get() >= self.limit.get()
    }

    fn is_over(&self) -> bool {
        let lost = || matches!(&*self.broken.borrow(), Some(Broken::Lost { .. }));
        self.is_held() && (self.answered.get() >= self.next.get() || lost())
    }

    /// What the driver's poll comes to: an open loop comes back in the shard's next turn.
    pub(super) fn over(&self, cx: &TaskContext<'_>) -> Poll<()> {
        if self.is_over() {
            return Poll::Ready(());
        }
        if self.schedule.is_some() {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    /// The next number, if it may be sent.
    #[inline]
    pub(super) fn take(&self) -> Option<u64> {
        let number = self.next.get();
        if number >= self.limit.get() {
            return None;
        }
        self.next.set(number + 1);
        self.balance.set(self.balance.get().wrapping_add(frame::value_of(number)));
        if number < self.late_below.get() {
            self.late.set(self.late.get() + 1);
        }
        Some(number)
    }

    /// The same, when it is time.
    pub(super) fn turn(&self) -> impl Future<Output = u64> {
        poll_fn(|cx| match self.take() {
            Some(number) => Poll::Ready(number),
            None => {
                // One caller alone is polled in every pass, and needs no waking.
                if !self.alone {
                    self.idle.borrow_mut().push(cx.waker().clone());
                }
                Poll::Pending
            }
        })
    }

    /// Gives so many callers their turn.
    fn wake(&self, callers: usize) {
        let mut idle = self.idle.borrow_mut();
        let keep = idle.len().saturating_sub(callers);
        idle.drain(keep..).for_each(Waker::wake);
    }

    #[inline]
    pub(super) fn is_sampled(&self, number: u64) -> bool {
        self.clocked && self.sampling.get().takes(number)
    }

    /// From when the latency of this request counts, if it is taken.
    #[inline]
    pub(super) fn start_of(&self, number: u64) -> Option<u64> {
        if !self.is_sampled(number) {
            return None;
        }
        if let Some(schedule) = &self.schedule {
            return Some(schedule.due_at(number - self.first.get()));
        }
        let now = self.sent_at.get().unwrap_or_else(|| self.clock.get().now());
        self.sent_at.set(Some(now));
        Some(now)
    }

    /// An outcome. `made_as`: the number that the request was made with.
    #[inline]
    pub(super) fn settle(
        &self,
        number: u64,
        made_as: u64,
        start: Option<u64>,
        outcome: Result<&Archived<<E::Request as Request>::Reply>, impl Display>,
    ) {
        self.answered.set(self.answered.get() + 1);
        self.balance.set(self.balance.get().wrapping_sub(frame::value_of(number)));
        if let Some(start) = start {
            self.starts.borrow_mut().push(start);
            if self.alone {
                self.end_pass();
                self.sent_at.set(None);
            }
        }
        match outcome {
            Ok(reply) => {
                if let Err(what) = self.exchange.check(made_as, reply) {
                    self.broken(Broken::WrongReply(what));
                }
            }
            Err(error) => {
                self.errors.set(self.errors.get() + 1);
                self.first_error.borrow_mut().get_or_insert_with(|| error.to_string());
            }
        }
    }
}
