//! The loops that offer requests to an engine, from inside it or from a thread outside: closed and open, as futures in
//! a [`FuturesUnordered`] or as a batch. The rules are those of the floor's loops (`load.rs`): due times, lateness,
//! sampling, and which clock read counts for what.
//!
//! ```text
//! pass = one poll of the driver:  look at the clock → let requests go → take the replies that are here → stamp them
//! ```
//!
//! Requests that leave in one pass share the clock read before the first of them, and replies of one pass the read after
//! the last. With one in flight each reply is stamped by itself.
//!
//! **Callers.** As many futures as there may be requests in flight live as long as the round. Each waits for its turn,
//! sends, checks, and waits again, so that what is counted as an allocation is never the driver's own.
//!
//! **Checks.** Every reply against its number; and the sum of what was asked against the sum of what was answered, so
//! that a batch cannot lose one reply and hand out another twice.

use std::borrow::Borrow;
use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use catga::{Batch, Context};
use futures_util::stream::{FuturesUnordered, StreamExt};

use crate::engine::exchange::{Caller, Exchange};
use crate::engine::loops::Loops;
use crate::histogram::{Latency, Sampling};
use crate::scenario::{Broken, Pace, Stop};

/// An open loop holds back beyond so many unanswered requests, which is what a shard allows unless it is configured.
pub(super) const OUTSTANDING_MAX: usize = catga::limits::CALLS_MAX as usize;
/// After so many calls a caller lets the shard do its other work, as calls that never wait would not.
const CALLS_PER_YIELD: u64 = 1_024;
/// Places for the start times of a batch; a reply that so many others overtake is as good as lost.
const BATCH_STARTS: usize = 8_192;
const _: () = assert!(BATCH_STARTS.is_power_of_two());
/// Of one batch, because the place in a batch is a number of 32 bits.
const BATCH_REQUESTS_MAX: usize = 1 << 30;

/// How calls are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// A future for each call.
    Futures,
    /// Through `Context::send_batch`, each request made as it is sent.
    Batch,
    /// Through `Context::send_batch_of`, of requests that were made before, as large ones would be.
    BatchOf,
}

/// What a driver is to do.
#[derive(Clone)]
pub(crate) struct Plan {
    /// How calls are made.
    pub(crate) how: How,
    /// As in the round.
    pub(crate) pace: Pace,
    /// As in the round.
    pub(crate) warm_up: Duration,
    /// As in the round.
    pub(crate) span: Duration,
    /// Whether latency is taken, or only the time of all calls together.
    pub(crate) clocked: bool,
    /// Ctrl-C.
    pub(crate) stop: Stop,
}

/// What a driver measured.
pub(crate) struct Measured {
    /// Requests of the measured part, all of them ended.
    pub(crate) requests: u64,
    /// Of these, the ones that ended in an error.
    pub(crate) errors: u64,
    /// In words, of the first of them.
    pub(crate) first_error: Option<String>,
    /// Sent too late.
    pub(crate) late: u64,
    /// From the first send to the last outcome.
    pub(crate) elapsed: Duration,
    /// If it was taken.
    pub(crate) latency: Option<Latency>,
    /// Which requests it was taken of.
    pub(crate) sampling: Sampling,
    /// Warm-up included: they have the numbers from 0.
    pub(crate) sent_in_all: u64,
}

/// Warms up, has the window opened, measures; calls are futures.
pub(crate) async fn with_futures<C: Caller<E::Request>, E: Exchange, W>(
    caller: &C,
    exchange: &E,
    plan: &Plan,
    open_window: impl AsyncFnOnce() -> Result<W, Broken>,
) -> Result<(Measured, W), Broken> {
    let loops = Loops::new(exchange, plan);
    let mut crew = match plan.pace {
        Pace::Closed { in_flight: 1 } => Crew::One(Box::pin(call_by_call(&loops, caller))),
        Pace::Closed { in_flight } => Crew::of(in_flight, || call_by_call(&loops, caller)),
        Pace::Open { .. } => Crew::of(OUTSTANDING_MAX, || call_by_call(&loops, caller)),
    };
    let phase = async || {
        poll_fn(|cx| {
            loops.begin_pass();
            crew.poll(cx);
            loops.end_pass();
            loops.over(cx)
        })
        .await;
    };
    loops.measure(plan, phase, open_window).await
}

/// The same; calls are a batch.
pub(crate) async fn with_batch<E: Exchange, W>(
    ctx: &Context,
    exchange: &E,
    plan: &Plan,
    open_window: impl AsyncFnOnce() -> Result<W, Broken>,
) -> Result<(Measured, W), Broken> {
    let loops = Loops::new(exchange, plan);
    let Pace::Closed { in_flight } = plan.pace else {
        return Err(Broken::Engine("a batch has no schedule".into()));
    };
    let starts = BatchStarts(RefCell::new(vec![(u64::MAX, 0); BATCH_STARTS]));
    // Lent again and again: twice as many as are in flight, so that no two of these are the same.
    let lent: Vec<_> = match plan.how {
        How::BatchOf => (0..2 * in_flight as u64).map(|number| exchange.request(number)).collect(),
        _ => Vec::new(),
    };
    let phase = async || {
        while !loops.is_held() {
            let first = loops.next.get();
            let numbers = std::iter::from_fn(|| loops.take()).take(BATCH_REQUESTS_MAX);
            let numbers = numbers.inspect(|number| {
                starts.put(*number, loops.start_of(*number), loops.sampling.get());
            });
            if lent.is_empty() {
                let batch = ctx.send_batch(numbers.map(|number| exchange.request(number)));
                run_batch(batch, in_flight, first, &loops, &starts, |number| number).await;
            } else {
                let which = |number| number % lent.len() as u64;
                let batch = ctx.send_batch_of(numbers.map(|number| &lent[which(number) as usize]));
                run_batch(batch, in_flight, first, &loops, &starts, which).await;
            }
        }
    };
    loops.measure(plan, phase, open_window).await
}

/// Sends a batch whose first request has the number `first`, and checks what comes back; request `number` was made as request
/// `made_as(number)`.
async fn run_batch<E: Exchange>(
    batch: Batch<'_, E::Request, impl Iterator<Item: Borrow<E::Request>>>,
    in_flight: usize,
    first: u64,
    loops: &Loops<'_, E>,
    starts: &BatchStarts,
    made_as: impl Fn(u64) -> u64,
) {
    let batch = batch.in_flight(in_flight).for_each(|place, outcome| {
        let number = first + place as u64;
        let start = starts.take(number, loops.sampling.get(), loops.is_sampled(number));
        let start = start.unwrap_or_else(|overtaken| {
            loops.broken(overtaken);
            None
        });
        loops.settle(number, made_as(number), start, outcome);
    });
    let mut batch = std::pin::pin!(batch);
    poll_fn(|cx| {
        loops.begin_pass();
        let polled = batch.as_mut().poll(cx);
        loops.end_pass();
        polled
    })
    .await;
}

/// One caller: as long as the round lives, call after call.
async fn call_by_call<C: Caller<E::Request>, E: Exchange>(loops: &Loops<'_, E>, caller: &C) {
    let mut request = loops.exchange.request(0);
    loop {
        let number = loops.turn().await;
        loops.exchange.renumber(&mut request, number);
        let start = loops.start_of(number);
        let outcome = caller.call(&request).await;
        loops.settle(number, number, start, outcome.as_deref());
        if number % CALLS_PER_YIELD == CALLS_PER_YIELD - 1 {
            yield_now().await;
        }
    }
}

/// Lets the shard take a turn.
pub(crate) async fn yield_now() {
    let mut yielded = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// The callers: one alone is polled without anything around it.
enum Crew<F> {
    One(Pin<Box<F>>),
    Many(FuturesUnordered<F>),
}

impl<F: Future<Output = ()>> Crew<F> {
    fn of(callers: usize, make: impl Fn() -> F) -> Self {
        Self::Many((0..callers).map(|_| make()).collect())
    }

    /// Callers never end.
    fn poll(&mut self, cx: &mut TaskContext<'_>) {
        let _: Poll<()> = match self {
            Self::One(caller) => caller.as_mut().poll(cx),
            Self::Many(callers) => callers.poll_next_unpin(cx).map(|_| ()),
        };
    }
}

/// When the sampled requests of a batch were sent, by number.
struct BatchStarts(RefCell<Vec<(u64, u64)>>);

impl BatchStarts {
    fn place(number: u64, sampling: Sampling) -> usize {
        (number / sampling.one_in()) as usize & (BATCH_STARTS - 1)
    }

    #[inline]
    fn put(&self, number: u64, start: Option<u64>, sampling: Sampling) {
        if let Some(start) = start {
            self.0.borrow_mut()[Self::place(number, sampling)] = (number, start);
        }
    }

    #[inline]
    fn take(&self, number: u64, sampling: Sampling, is_sampled: bool) -> Result<Option<u64>, Broken> {
        if !is_sampled {
            return Ok(None);
        }
        match self.0.borrow()[Self::place(number, sampling)] {
            (written, start) if written == number => Ok(Some(start)),
            _ => {
                Err(Broken::WrongReply(format!("{BATCH_STARTS} later replies came before that to {number}")))
            }
        }
    }
}
