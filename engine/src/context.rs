//! `Context`: what a handler may do besides answering.
//!
//! It is the same as a [`Client`](crate::Client) without crossing a thread. What a handler publishes leaves when it has
//! returned; what it sends and awaits leaves at once, because an async handler holds no borrow of its service while it
//! waits.

use std::rc::Rc;
use std::time::Duration;

use catga_codec::{Event, Request};

use crate::broadcast::Broadcast;
use crate::call::{Batch, Call};
use crate::shard::core::{Core, Manner};
use crate::time::Time;
use crate::timer::{Every, Sleep};

/// The place of a shard among the shards of its engine, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(pub u16);

impl std::fmt::Display for ShardId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "shard {}", self.0)
    }
}

/// What a handler may do besides answering. It belongs to its shard and cannot leave it: give another thread a
/// [`Client`](crate::Client) instead.
#[derive(Clone)]
pub struct Context {
    core: Rc<Core>,
    deadline: Time,
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("shard", &self.shard()).field("remaining", &self.remaining()).finish()
    }
}

impl Context {
    pub(crate) fn new(core: Rc<Core>, deadline: Time) -> Self {
        Self { core, deadline }
    }

    #[inline]
    pub(crate) fn core(&self) -> &Rc<Core> {
        &self.core
    }

    #[inline]
    pub(crate) fn deadline(&self) -> Time {
        self.deadline
    }

    pub(crate) fn set_deadline(&mut self, deadline: Time) {
        self.deadline = deadline;
    }

    pub(crate) fn with_deadline(&self, deadline: Time) -> Self {
        Self { core: self.core.clone(), deadline }
    }

    /// The shard that this handler runs on.
    #[must_use]
    pub fn shard(&self) -> ShardId {
        self.core.shard
    }

    /// What is left of the time that the caller gave. The handler's own calls inherit it.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        self.deadline.since(self.core.now())
    }

    /// Sends a request; the future ends in exactly one outcome. See [`Call`] for what it may be told.
    ///
    /// To a sync handler of the same shard the handler runs inside the first poll: no queue, no allocation. To another
    /// shard the request is archived once, into a few lines that are copied into the ring together.
    ///
    /// # Errors
    /// The future's error says in which phase the call ended: see [`CallError`](crate::CallError).
    #[inline]
    pub fn send<'a, R: Request>(&'a self, request: &'a R) -> Call<'a, R> {
        Call::new(self, request, Manner::default())
    }

    /// As [`send`](Self::send), but never waits for room: where a bound on the way is full (the ring or its credits, a
    /// lane, the queue of this shard) the call ends at once as [`NotSent::Full`](crate::NotSent::Full), or as
    /// [`NotSent::OutOfReach`](crate::NotSent::OutOfReach) if a connection to the nodes is still being made.
    /// Counted in [`ShardStats::sends_full`](crate::ShardStats). It still waits for the answer.
    ///
    /// # Errors
    /// As `send`.
    #[inline]
    pub fn try_send<'a, R: Request>(&'a self, request: &'a R) -> Call<'a, R> {
        Call::new(self, request, Manner { at_once: true, ..Manner::default() })
    }

    /// Sends many requests and hands out each outcome as it comes, many in flight at once. See [`Batch`].
    pub fn send_batch<'a, R, I>(&'a self, requests: I) -> Batch<'a, R, I::IntoIter>
    where
        R: Request,
        I: IntoIterator<Item = R>,
    {
        Batch::new(self, requests.into_iter())
    }

    /// As [`send_batch`](Self::send_batch), of requests that are there already and stay where they are: a slice of them, or
    /// whatever else lends them. Nothing but their archives is copied, however large they are.
    ///
    /// ```
    /// # use catga::prelude::*;
    /// # #[request(reply = Priced)] struct Price { sku: u32 }
    /// # #[message] struct Priced { cents: u64 }
    /// # struct Desk;
    /// # #[request(reply = Priced)] struct Total { prices: Vec<u32> }
    /// # impl Desk {
    /// async fn total(_: &State<Self>, _: &Archived<Total>, ctx: &Context) -> Result<Priced, Fault> {
    ///     let prices = [Price { sku: 7 }, Price { sku: 8 }];
    ///     let mut cents = 0;
    ///     ctx.send_batch_of(&prices)
    ///         .for_each(|_place, outcome| cents += outcome.map_or(0, |priced| priced.cents.to_native()))
    ///         .await;
    ///     Ok(Priced { cents })
    /// }
    /// # }
    /// ```
    pub fn send_batch_of<'a, 'r, R, I>(&'a self, requests: I) -> Batch<'a, R, I::IntoIter>
    where
        R: Request,
        I: IntoIterator<Item = &'r R>,
    {
        Batch::new(self, requests.into_iter())
    }

    /// A future that is ready after `duration`, in an async handler. Time is that of the shard's turns: it counts from the
    /// start of this one, and ends with the first one that starts late enough. So it is as exact as the turns are short.
    ///
    /// A handler that sleeps is ended at its deadline, as one that waits for anything else. Dropping the future leaves nothing
    /// behind. Cost: an entry in the shard's heap of timers.
    pub fn sleep(&self, duration: Duration) -> Sleep<'_> {
        Sleep::until(self, self.core.now() + duration)
    }

    /// Ticks at equal distances, in an async handler: see [`Every::tick`]. A service that works periodically for as long as
    /// it lives takes [`Routes::every`](crate::Routes::every) instead.
    ///
    /// A period of zero is taken as one nanosecond: a tick in each turn.
    #[must_use]
    pub fn every(&self, period: Duration) -> Every<'_> {
        Every::new(self, period)
    }

    /// Publishes an event to every service that listens, on this shard and the others, and on every other node that is up. It
    /// leaves when this handler has returned (an async one: when it next waits), or before the next request that it sends, so
    /// that who gets both gets them in order; and not at all if the handler panics before that. Right after the start that order
    /// holds on this node only: until every node of the list has been tried, and while a lane is being made, events for other
    /// nodes wait, and a request to a node that can be reached already does not. Does not wait; where a bound
    /// is full, or for a node that cannot be reached, the event is dropped there, and counted in
    /// [`ShardStats::events_dropped`](crate::ShardStats).
    ///
    /// Cost: one archive, a copy for each listening shard, and one into a lane for each other node that listens. Without
    /// listeners, nothing but a look.
    pub fn publish<E: Event>(&self, event: &E) {
        self.core.publish(event);
    }

    /// Delivers an event to every listening service instance (a keyed one: to those of its key's shard on each node), on all
    /// shards and nodes in parallel; the future ends in a [`Report`](crate::Report) with a line for each node. See
    /// [`Broadcast`] for its deadline.
    ///
    /// Unlike [`publish`](Self::publish) it leaves at once, and waits for room and for lanes within its deadline; right after
    /// the start of an engine, until each node of the cluster has been tried for the first time.
    ///
    /// Cost: one archive, for each listening shard and node one copy of it, a place among the calls in flight, and a hop
    /// through the rings or over a lane and back; one allocation, of the report, and with other nodes that of their list.
    #[inline]
    pub fn broadcast<'a, E: Event>(&'a self, event: &'a E) -> Broadcast<'a, E> {
        Broadcast::new(self, event)
    }
}
