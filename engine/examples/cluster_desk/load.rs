//! Orders at a steady rate, whatever becomes of them: the load on a cluster, and the account of it.
//!
//! The loop is open: order *n* is due at *n* / rate, and its latency counts from then, so a pause of the cluster is charged
//! to every order that it delays. At most [`IN_FLIGHT_MAX`] calls are under way at once; what is due beyond that waits here,
//! and its latency grows meanwhile.
//!
//! Each call ends in one outcome, and each reply must name the order that was sent and its sum. Nothing is sent again: what
//! the engine says of a call is counted as it was said.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use catga::prelude::*;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use super::desk::PlaceOrder;
use super::orders::{self, Order};

/// Calls under way at once.
const IN_FLIGHT_MAX: usize = 4_096;
/// Orders in the book. After the last comes the first again, with another invoice number.
const BOOK: u32 = 10_000;

/// What is to be offered.
pub(crate) struct Plan {
    /// Begins every invoice number, so that two loads on one cluster place different orders.
    pub(crate) name: String,
    /// Orders a second.
    pub(crate) rate: u32,
    /// The time that a call may take.
    pub(crate) within: Duration,
    /// How many orders at most.
    pub(crate) orders: u64,
    /// How often to look at what has happened.
    pub(crate) look: Duration,
}

/// How a call ended, in the order of the columns.
#[derive(Clone, Copy)]
pub(crate) enum Outcome {
    Replied,
    Rejected,
    Refused,
    NotSent,
    Unknown,
    Failed,
}

impl Outcome {
    pub(crate) const NAMES: [&str; 6] = ["replied", "rejected", "refused", "not sent", "unknown", "failed"];
}

/// What happened: from one look to the next, or in all.
#[derive(Clone, Default)]
pub(crate) struct Tally {
    /// The time in which it happened.
    pub(crate) window: Duration,
    pub(crate) sent: u64,
    pub(crate) outcomes: [u64; Outcome::NAMES.len()],
    /// Replies that were not about the order sent, or had another sum.
    pub(crate) wrong: u64,
    /// Replies by the desk that gave them.
    pub(crate) by_desk: BTreeMap<String, u64>,
    /// Calls without a reply, by what the engine said.
    pub(crate) reasons: BTreeMap<String, u64>,
    /// Of each reply, in microseconds from when the order was due.
    pub(crate) latencies_us: Vec<u32>,
    /// The longest that a call took to come to its outcome, from when it was sent.
    pub(crate) longest: Duration,
}

impl Tally {
    pub(crate) fn count(&self, outcome: Outcome) -> u64 {
        self.outcomes[outcome as usize]
    }

    /// Calls that have ended.
    pub(crate) fn ended(&self) -> u64 {
        self.outcomes.iter().sum()
    }

    /// Replies of this desk.
    pub(crate) fn of_desk(&self, desk: &str) -> u64 {
        self.by_desk.get(desk).copied().unwrap_or_default()
    }

    /// Whether every call had one outcome, and every reply was right.
    pub(crate) fn is_right(&self) -> bool {
        self.ended() == self.sent && self.wrong == 0
    }

    /// Adds what happened since, but for the latencies, which are told once.
    pub(crate) fn add(&mut self, since: &Self) {
        self.window += since.window;
        self.sent += since.sent;
        self.wrong += since.wrong;
        self.longest = self.longest.max(since.longest);
        self.outcomes.iter_mut().zip(since.outcomes).for_each(|(sum, more)| *sum += more);
        for (mine, more) in [(&mut self.by_desk, &since.by_desk), (&mut self.reasons, &since.reasons)] {
            more.iter().for_each(|(name, more)| *mine.entry(name.clone()).or_default() += more);
        }
    }

    fn note(&mut self, ended: Ended) {
        self.longest = self.longest.max(ended.took);
        let outcome = match ended.outcome {
            Ok(desk) => {
                self.latencies_us.push(u32::try_from(ended.late.as_micros()).unwrap_or(u32::MAX));
                match desk {
                    Some(desk) => *self.by_desk.entry(desk).or_default() += 1,
                    None => self.wrong += 1,
                }
                Outcome::Replied
            }
            Err((outcome, reason)) => {
                *self.reasons.entry(reason).or_default() += 1;
                outcome
            }
        };
        self.outcomes[outcome as usize] += 1;
    }
}

/// Offers orders until all have been offered or `go_on` says no, and waits for the last outcome. `go_on` is asked at every
/// look, and told what happened since the one before; all of it together is returned.
pub(crate) fn run(client: &Client, plan: &Plan, mut go_on: impl FnMut(&Tally) -> bool) -> Tally {
    let book = match orders::read(orders::generate(BOOK).as_bytes()) {
        Ok(reading) => reading.orders,
        Err(error) => unreachable!("it was written to be read: {error}"),
    };
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut cx = TaskContext::from_waker(&waker);
    let mut in_flight = FuturesUnordered::new();
    let (mut total, mut since) = (Tally::default(), Tally::default());
    let (mut offered, mut end) = (0_u64, plan.orders);
    let start = Instant::now();
    let (mut looked, mut look) = (start, start + plan.look);
    let rate = u64::from(plan.rate);
    let due = |number: u64| {
        start
            + Duration::from_secs(number / rate)
            + Duration::from_nanos(number % rate * 1_000_000_000 / rate)
    };
    loop {
        let now = Instant::now();
        while offered < end && in_flight.len() < IN_FLIGHT_MAX && due(offered) <= now {
            let order = book[offered as usize % book.len()].clone();
            let invoice = format!("{}-{offered}", plan.name);
            in_flight.push(place(client, order, invoice, plan.within, due(offered)));
            offered += 1;
            since.sent += 1;
        }
        let polled = in_flight.poll_next_unpin(&mut cx);
        let over = offered >= end && in_flight.is_empty();
        // What ends after the last order has been offered is told with the last second.
        let look_due = over || (now >= look && offered < end);
        match polled {
            Poll::Ready(Some(ended)) => since.note(ended),
            _ if look_due => {}
            // Until an outcome comes, or the next order is due, or the next look.
            _ => {
                let wait = look.saturating_duration_since(now);
                std::thread::park_timeout(match in_flight.len() {
                    _ if offered >= end => plan.look,
                    IN_FLIGHT_MAX.. => wait,
                    _ => wait.min(due(offered).saturating_duration_since(now)),
                });
            }
        }
        if look_due {
            since.window = now - looked;
            looked = now;
            while look <= now {
                look += plan.look;
            }
            if !go_on(&since) {
                end = offered;
            }
            total.add(&std::mem::take(&mut since));
        }
        if over {
            return total;
        }
    }
}

/// A call that has ended.
struct Ended {
    /// Who placed the order (nobody, if the reply is wrong), or why there is no reply.
    outcome: Result<Option<String>, (Outcome, String)>,
    /// From when it was sent.
    took: Duration,
    /// From when it was due.
    late: Duration,
}

async fn place(client: &Client, order: Order, invoice: String, within: Duration, due: Instant) -> Ended {
    let cents: i64 = order.lines.iter().map(|line| line.cents).sum();
    let request = PlaceOrder { invoice, ..PlaceOrder::from(order) };
    let sent = Instant::now();
    let outcome = match client.send(&request).within(within).await {
        Ok(placed) if *placed.invoice == *request.invoice && placed.cents == cents => {
            Ok(Some(placed.desk.to_string()))
        }
        Ok(_) => Ok(None),
        Err(error) => Err((outcome_of(&error), error.to_string())),
    };
    Ended { outcome, took: sent.elapsed(), late: due.elapsed() }
}

fn outcome_of<E>(error: &CallError<E>) -> Outcome {
    match error {
        CallError::Rejected(_) => Outcome::Rejected,
        CallError::Refused(_) => Outcome::Refused,
        CallError::NotSent(_) => Outcome::NotSent,
        CallError::Unknown(_) => Outcome::Unknown,
        _ => Outcome::Failed,
    }
}

/// Wakes the thread of the loop.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}
