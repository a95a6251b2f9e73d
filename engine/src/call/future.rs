//! The future of one call, inside a shard.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use catga_codec::{CallId, Flags, Request};

use crate::call::table::Ending;
use crate::choice::{Choice, Route};
use crate::context::Context;
use crate::error::{CallError, NotSent};
use crate::pool;
use crate::reply::{Reply, conclude};
use crate::shard::core::{Attempt, Manner};
use crate::time::Time;

/// A call: a future of the reply. Made by [`Context::send`].
///
/// Nothing is sent before the first poll. Dropping it gives the call up: the other side is told to stop working on it.
#[must_use = "a call is sent when it is polled"]
pub struct Call<'a, R: Request> {
    ctx: &'a Context,
    request: &'a R,
    deadline: Option<Time>,
    manner: Manner,
    stage: Stage,
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    Unsent,
    /// Waits for room on the way.
    Waiting(CallId),
    InFlight(CallId),
    /// It failed at once, as too many did in this turn: who made it is told in the next one.
    Failed(Ending),
    Ended,
}

impl<R: Request> std::fmt::Debug for Call<'_, R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Call").field("message", &R::NAME).field("stage", &self.stage).finish_non_exhaustive()
    }
}

impl<'a, R: Request> Call<'a, R> {
    pub(crate) fn new(ctx: &'a Context, request: &'a R, manner: Manner) -> Self {
        Self { ctx, request, deadline: None, manner, stage: Stage::Unsent }
    }

    /// The time the call may take, from now. What is left of the handler's own time bounds it all the same. A handler on another
    /// shard or node is given 24 days of it at most.
    pub fn within(mut self, deadline: Duration) -> Self {
        let core = self.ctx.core();
        self.deadline = Some((core.now() + deadline).min(self.ctx.deadline()));
        self
    }

    /// Allows the request to run more than once: it may be sent again where an ordinary one would end as
    /// [`Unknown`](CallError::Unknown), because nobody can say whether it ran. For requests whose second run changes
    /// nothing. Costs nothing: a flag that travels in the request's header, also to other nodes.
    pub fn idempotent(mut self) -> Self {
        self.manner.flags = self.manner.flags.with(Flags::IDEMPOTENT);
        self
    }

    /// Which node the call goes to: see [`Route`]. Costs nothing on the way of a call that says nothing.
    pub fn route(mut self, route: Route) -> Self {
        self.manner.choice = Choice::from(&route);
        self
    }

    /// There may be room now for a call that waited.
    #[cold]
    fn again(&mut self, slot: CallId, cx: &mut TaskContext<'_>) -> Poll<<Self as Future>::Output> {
        self.attempt(Some(slot), cx)
    }

    #[inline(always)] // the outcome of a call on the same shard is taken apart where it is awaited
    fn attempt(&mut self, slot: Option<CallId>, cx: &mut TaskContext<'_>) -> Poll<<Self as Future>::Output> {
        let core = self.ctx.core();
        // One that was under way before has its deadline already.
        let begun = slot.and_then(|call| core.calls.borrow_mut().waiting(call));
        let deadline =
            begun.or(self.deadline).unwrap_or_else(|| self.ctx.deadline().min(core.now() + core.deadline));
        match core
            .attempt(self.request, self.manner, deadline, slot, |calls| calls.open_for(deadline, cx.waker()))
        {
            Attempt::Ended(ending, frame) => {
                if !matches!(ending, Ending::Reply | Ending::Rejected) && core.must_yield() {
                    self.stage = Stage::Failed(ending);
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                self.stage = Stage::Ended;
                Poll::Ready(conclude::<R>(ending, frame.unwrap_or_else(pool::take)))
            }
            Attempt::Sent(call) => {
                self.stage = Stage::InFlight(call);
                Poll::Pending
            }
            Attempt::Waiting(call) => {
                self.stage = Stage::Waiting(call);
                core.register(call, cx.waker());
                Poll::Pending
            }
        }
    }
}

impl<R: Request> Future for Call<'_, R> {
    type Output = Result<Reply<R::Reply>, CallError<R::Error>>;

    #[inline(always)] // as `attempt`
    fn poll(self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let call = match this.stage {
            Stage::Unsent => return this.attempt(None, cx),
            Stage::Waiting(call) | Stage::InFlight(call) => call,
            Stage::Failed(ending) => {
                this.stage = Stage::Ended;
                return Poll::Ready(conclude::<R>(ending, pool::take()));
            }
            Stage::Ended => return Poll::Ready(Err(CallError::NotSent(NotSent::Deadline))),
        };
        let mut calls = this.ctx.core().calls.borrow_mut();
        if let Some((ending, frame)) = calls.take(call) {
            drop(calls);
            this.stage = Stage::Ended;
            return Poll::Ready(conclude::<R>(ending, frame));
        }
        // It waited for room, or has come to nothing on one node and may go to another. While it stands in a queue it is
        // polled for some other reason.
        if calls.waiting(call).is_some() && !calls.is_listed(call) {
            drop(calls);
            return this.again(call, cx);
        }
        if !calls.wakes(call, cx.waker()) {
            drop(calls);
            this.ctx.core().register(call, cx.waker());
        }
        Poll::Pending
    }
}

impl<R: Request> Drop for Call<'_, R> {
    #[inline(always)] // nothing to do for a call that has ended
    fn drop(&mut self) {
        if let Stage::Waiting(call) | Stage::InFlight(call) = self.stage {
            self.give_up(call);
        }
    }
}

impl<R: Request> Call<'_, R> {
    #[cold]
    fn give_up(&self, call: CallId) {
        let core = self.ctx.core();
        let target = core.abandon(call);
        if let Some(target) = target {
            core.cancel(call, target);
        }
    }
}

impl<R: Request> Unpin for Call<'_, R> {}
