//! Many calls at once, for throughput.
//!
//! A future for each call costs a waker and a poll for each (a hundred nanoseconds in any executor). A batch has one waker
//! for all: each request still has its own header, slot, deadline, dispatch and outcome, and the outcomes of one turn
//! are handed out together, each read in place in its slot.

use std::borrow::Borrow;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use catga_codec::{CallId, OwnedFrame, Request};

use crate::call::table::{BatchId, Ending, Target};
use crate::context::Context;
use crate::error::{CallError, Unknown};
use crate::pool;
use crate::reply::{Reply, conclude};
use crate::shard::core::{Attempt, Manner};
use crate::time::Time;

/// How many calls of a batch are in flight at once, unless it says otherwise.
const IN_FLIGHT: usize = 1024;

/// Many calls: made by [`Context::send_batch`] or [`Context::send_batch_of`]. Choose how to take the outcomes:
/// [`for_each`](Batch::for_each) or [`collect`](Batch::collect).
#[must_use = "a batch is sent when its outcomes are awaited"]
pub struct Batch<'a, R: Request, I: Iterator<Item: Borrow<R>>> {
    ctx: &'a Context,
    /// Owned or lent.
    requests: I,
    request: PhantomData<fn() -> R>,
    in_flight: usize,
    within: Option<Duration>,
}

impl<R: Request, I: Iterator<Item: Borrow<R>>> std::fmt::Debug for Batch<'_, R, I> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Batch")
            .field("message", &R::NAME)
            .field("in_flight", &self.in_flight)
            .finish_non_exhaustive()
    }
}

/// One outcome of a batch that is kept.
pub type Collected<R> = Result<Reply<<R as Request>::Reply>, CallError<<R as Request>::Error>>;

/// One outcome of a batch: the reply in place, or why there is none.
pub type Outcome<'r, R> =
    Result<&'r catga_codec::Archived<<R as Request>::Reply>, CallError<<R as Request>::Error>>;

impl<'a, R: Request, I: Iterator<Item: Borrow<R>>> Batch<'a, R, I> {
    pub(crate) fn new(ctx: &'a Context, requests: I) -> Self {
        Self { ctx, requests, request: PhantomData, in_flight: IN_FLIGHT, within: None }
    }

    /// How many calls are in flight at once. Default 1,024; at least 1, and as many as the shard may have in flight
    /// ([`Builder::calls_max`](crate::Builder::calls_max)) at most.
    pub fn in_flight(mut self, calls: usize) -> Self {
        self.in_flight = calls.max(1);
        self
    }

    /// The time each call may take, from when it is sent.
    pub fn within(mut self, deadline: Duration) -> Self {
        self.within = Some(deadline);
        self
    }

    /// Sends all of them, and hands each outcome with its request's place in the batch to `take`, in the order in which
    /// they come back. The reply is lent in place: nothing is copied out.
    ///
    /// `take` runs in the shard's turn; it may send and publish through the context, but should not take long.
    pub async fn for_each(self, take: impl FnMut(usize, Outcome<'_, R>)) {
        Run::new(self, take).await;
    }

    /// Sends all of them, and returns the outcomes in the order of the requests.
    pub async fn collect(self) -> Vec<Collected<R>> {
        let mut outcomes: Vec<Option<Collected<R>>> = Vec::new();
        let keep = |place: usize, ending: Ending, frame: OwnedFrame| {
            if outcomes.len() <= place {
                outcomes.resize_with(place + 1, || None);
            }
            outcomes[place] = Some(conclude::<R>(ending, frame));
            None
        };
        Run::with(self, keep).await;
        outcomes
            .into_iter()
            .map(|outcome| outcome.unwrap_or(Err(CallError::Unknown(Unknown::Stopped))))
            .collect()
    }
}

/// The work of a batch. `Settle` is given each ending with its frame, and may give the frame back.
struct Run<'a, R: Request, I: Iterator<Item: Borrow<R>>, Settle> {
    ctx: &'a Context,
    requests: I,
    request: PhantomData<fn() -> R>,
    exhausted: bool,
    /// A request for which there was no room, and its slot.
    stalled: Option<(I::Item, CallId)>,
    /// In a cluster the requests in flight, by slot, with their places: one that comes to nothing on a node is sent again.
    kept: Vec<Option<(I::Item, u64)>>,
    /// The place of the next request in the batch.
    next: u64,
    flying: usize,
    in_flight: usize,
    within: Option<Duration>,
    batch: Option<BatchId>,
    done: Vec<u32>,
    settle: Settle,
}

impl<'a, R: Request, I: Iterator<Item: Borrow<R>>> Run<'a, R, I, ()> {
    fn with<Settle>(batch: Batch<'a, R, I>, settle: Settle) -> Run<'a, R, I, Settle>
    where
        Settle: FnMut(usize, Ending, OwnedFrame) -> Option<OwnedFrame>,
    {
        let Batch { ctx, requests, request, in_flight, within } = batch;
        let in_flight = in_flight.min(ctx.core().calls.borrow().limit() as usize);
        Run {
            ctx,
            requests,
            request,
            exhausted: false,
            stalled: None,
            kept: Vec::new(),
            next: 0,
            flying: 0,
            in_flight,
            within,
            batch: None,
            done: Vec::new(),
            settle,
        }
    }

    fn new<Take>(
        batch: Batch<'a, R, I>,
        mut take: Take,
    ) -> Run<'a, R, I, impl FnMut(usize, Ending, OwnedFrame) -> Option<OwnedFrame>>
    where
        Take: FnMut(usize, Outcome<'_, R>),
    {
        Self::with(batch, move |place, ending, frame| {
            if ending != Ending::Reply {
                take(place, conclude::<R>(ending, frame).map(|_| unreachable!("only a reply is one")));
                return None;
            }
            match frame.access::<R::Reply>() {
                Ok(reply) => take(place, Ok(reply)),
                Err(_) => take(place, Err(CallError::Unknown(Unknown::Unreadable))),
            }
            Some(frame)
        })
    }
}

impl<R, I, Settle> Run<'_, R, I, Settle>
where
    R: Request,
    I: Iterator<Item: Borrow<R>>,
    Settle: FnMut(usize, Ending, OwnedFrame) -> Option<OwnedFrame>,
{
    /// Hands out the endings that have come.
    fn harvest(&mut self, batch: BatchId, cx: &TaskContext<'_>) {
        let core = self.ctx.core();
        let mut done = std::mem::take(&mut self.done);
        core.batch_done(batch, &mut done, cx.waker());
        for &index in &done {
            // The slot's frame is taken out while `settle` runs, because that may make calls of its own.
            let taken = core.calls.borrow_mut().batch_take(index);
            let Some((id, token, ending, frame)) = taken else { continue };
            self.flying -= 1;
            if let Some(kept) = self.kept.get_mut(index as usize) {
                *kept = None;
            }
            if self.stalled.as_ref().is_some_and(|(_, stalled)| *stalled == id) {
                self.stalled = None;
            }
            let frame = (self.settle)(token as usize, ending, frame.unwrap_or_else(pool::take));
            if let Some(frame) = frame {
                core.calls.borrow_mut().put_frame(index, frame);
            }
        }
        done.clear();
        self.done = done;
    }

    /// Sends while there is something to send, and room. Calls that end at once (same shard) are bounded for each poll,
    /// so that a long batch does not keep the shard from its other work. Says whether it stopped for that.
    fn send(&mut self, batch: BatchId) -> bool {
        let core = self.ctx.core();
        if !self.kept.is_empty() {
            self.send_again(batch);
        }
        if let Some((request, call)) = self.stalled.take() {
            let waits = core.calls.borrow_mut().waiting(call);
            let Some(deadline) = waits else { return false };
            // It has its place already: only one can be stalled, and it is the last that was taken.
            self.attempt(request, deadline, Some(call), batch, self.next - 1);
        }
        let deadline = (core.now() + self.within.unwrap_or(core.deadline)).min(self.ctx.deadline());
        let last = self.next + self.in_flight as u64;
        while self.stalled.is_none() && !self.exhausted && self.flying < self.in_flight {
            if self.next == last {
                return true;
            }
            let Some(request) = self.requests.next() else {
                self.exhausted = true;
                return false;
            };
            self.flying += 1;
            self.next += 1;
            self.attempt(request, deadline, None, batch, self.next - 1);
        }
        false
    }

    /// Sends again what has come to nothing on one node.
    #[cold]
    fn send_again(&mut self, batch: BatchId) {
        loop {
            let next = self.ctx.core().calls.borrow_mut().batch_again(batch);
            let Some(call) = next else { return };
            // It may have been told twice that it can go, and be under way by now.
            let waits = self.ctx.core().calls.borrow_mut().waiting(call);
            let Some(deadline) = waits else { continue };
            let kept = self.kept.get_mut(call.slot() as usize).and_then(Option::take);
            if let Some((request, place)) = kept {
                self.attempt(request, deadline, Some(call), batch, place);
            }
        }
    }

    fn keep(&mut self, call: CallId, request: I::Item, place: u64) {
        let slot = call.slot() as usize;
        if self.kept.len() <= slot {
            self.kept.resize_with(slot + 1, || None);
        }
        self.kept[slot] = Some((request, place));
    }

    fn attempt(
        &mut self,
        request: I::Item,
        deadline: Time,
        slot: Option<CallId>,
        batch: BatchId,
        place: u64,
    ) {
        let core = self.ctx.core();
        match core.attempt(request.borrow(), Manner::default(), deadline, slot, |calls| {
            calls.open_in(deadline, batch, place)
        }) {
            Attempt::Ended(ending, frame) => {
                self.flying -= 1;
                let frame = (self.settle)(place as usize, ending, frame.unwrap_or_else(pool::take));
                if let Some(frame) = frame {
                    pool::give(frame);
                }
            }
            Attempt::Sent(call) => {
                if core.is_clustered() {
                    self.keep(call, request, place);
                }
            }
            // One that has been on its way before is told when to try again; the first in line looks each time.
            Attempt::Waiting(call) if place + 1 < self.next => self.keep(call, request, place),
            Attempt::Waiting(call) => self.stalled = Some((request, call)),
        }
    }
}

impl<R, I, Settle> Future for Run<'_, R, I, Settle>
where
    R: Request,
    I: Iterator<Item: Borrow<R>>,
    Settle: FnMut(usize, Ending, OwnedFrame) -> Option<OwnedFrame>,
{
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<()> {
        let this = self.get_mut();
        let in_flight = this.in_flight;
        let core = this.ctx.core();
        let batch = *this.batch.get_or_insert_with(|| core.calls.borrow_mut().batch_open(in_flight));
        this.harvest(batch, cx);
        if this.send(batch) {
            cx.waker().wake_by_ref();
        }
        if this.exhausted && this.flying == 0 { Poll::Ready(()) } else { Poll::Pending }
    }
}

// Nothing in it is pinned: the iterator and the closure are only called.
impl<R: Request, I: Iterator<Item: Borrow<R>>, Settle> Unpin for Run<'_, R, I, Settle> {}

impl<R: Request, I: Iterator<Item: Borrow<R>>, Settle> Drop for Run<'_, R, I, Settle> {
    fn drop(&mut self) {
        let Some(batch) = self.batch else { return };
        let core = self.ctx.core();
        let mut given_up: Vec<(CallId, Target)> = Vec::new();
        let waker = core.calls.borrow_mut().batch_close(batch, |call, target| given_up.push((call, target)));
        drop(waker); // outside of the borrow: see `CallTable`
        for (call, target) in given_up {
            core.cancel(call, target);
        }
    }
}
