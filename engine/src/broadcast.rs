//! Broadcasts, from the caller's side: the futures, and the report in which they end.
//!
//! A broadcast delivers an event to every listening service instance of every node and waits until all have returned. The
//! work is the shard's (see `shard::core::fanout`); the future of a handler holds one slot among the shard's calls, which is
//! told the whole, and the future of a foreign thread waits for the answer to a frame in an inbox, as a call does. Either is
//! told when all is over, and then finds the lines.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use catga_codec::{CallId, Contract, Event};
use catga_discovery::NodeId;

use crate::call::table::{Ending, Target};
use crate::choice::Choice;
use crate::client::exchange::{Exchange, Letter};
use crate::client::{ClientShared, event_header, not_encoded};
use crate::context::Context;
use crate::error::{Failure, NotSent, Refusal, Unknown};
use crate::limits::REPORT_GRACE;
use crate::pool;
use crate::shard::core::fanout::FanoutId;
use crate::shard::reply_to::ReplyTo;
use crate::time::Time;

/// All listeners of a node have handled the event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Handled {
    /// How many they were, over all shards of the node; 0 if nothing there listens. Counted up to 65,535.
    pub listeners: u32,
}

/// Why not every listener of a node has handled the event: the first failure there.
///
/// It is about one of them. The others got the event all the same and may have handled it, whatever the reason says; who
/// broadcasts again reaches them twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BroadcastError {
    /// It did not get to a listening shard.
    #[error("not sent to a listening shard: {0}")]
    NotSent(NotSent),
    /// A listening shard, or a listener there, turned it away.
    #[error("refused by a listener: {0}")]
    Refused(Refusal),
    /// A listener ran and did not come to its end.
    #[error("a listener failed: {0}")]
    Failed(Failure),
    /// It got to a listening shard, and no answer came from there: its listeners may or may not have run.
    #[error("no answer from a listening shard: {0}")]
    Unknown(Unknown),
}

/// How a broadcast went on one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// None without a cluster.
    node: Option<NodeId>,
    outcome: Result<Handled, BroadcastError>,
}

impl Line {
    pub(crate) fn new(ending: Ending, node: Option<NodeId>) -> Self {
        let outcome = match ending {
            Ending::Handled(listeners) => Ok(Handled { listeners: u32::from(listeners) }),
            Ending::NotSent(reason) => Err(BroadcastError::NotSent(reason)),
            Ending::Refused(reason) => Err(BroadcastError::Refused(reason)),
            Ending::Failed(reason) => Err(BroadcastError::Failed(reason)),
            Ending::Unknown(reason) => Err(BroadcastError::Unknown(reason)),
            // These answer requests.
            Ending::Reply | Ending::Rejected => Err(BroadcastError::Unknown(Unknown::Unreadable)),
        };
        Self { node, outcome }
    }

    /// The id of the node; without a cluster, `this node`.
    #[must_use]
    pub fn node(&self) -> &str {
        self.node.as_ref().map_or("this node", NodeId::as_str)
    }

    /// Whether all listeners there have handled the event, or the first failure.
    ///
    /// # Errors
    /// [`BroadcastError`] says in which phase it ended, and what to do.
    pub fn outcome(&self) -> Result<Handled, BroadcastError> {
        self.outcome
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let node = self.node();
        match self.outcome {
            Ok(Handled { listeners: 0 }) => write!(f, "{node}: nobody listens"),
            Ok(Handled { listeners: 1 }) => write!(f, "{node}: handled by 1 listener"),
            Ok(Handled { listeners }) => write!(f, "{node}: handled by {listeners} listeners"),
            Err(error) => {
                write!(f, "{node}: not handled by all; {error} (other listeners may have handled it)")
            }
        }
    }
}

/// How a broadcast went: a line for this node, and one for each other node that was up and listened when it was sent, in the
/// order of their ids. Printed, it is a line of text for each.
///
/// A broadcast that could not begin at all (its deadline was over, the engine stops, a bound is full) has one line: that of
/// this node, with the reason.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "it says who has not handled the event"]
pub struct Report {
    lines: Vec<Line>,
}

impl Report {
    /// Of one that came to nothing as a whole.
    fn whole(ending: Ending, node: Option<NodeId>) -> Self {
        Self { lines: vec![Line::new(ending, node)] }
    }

    /// A line for each node, this one first.
    #[must_use]
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// A line for each node, this one first.
    pub fn iter(&self) -> std::slice::Iter<'_, Line> {
        self.lines.iter()
    }

    /// Whether all listeners on every node have handled the event; also if there are none.
    #[must_use]
    pub fn is_handled(&self) -> bool {
        self.lines.iter().all(|line| line.outcome.is_ok())
    }
}

impl<'a> IntoIterator for &'a Report {
    type Item = &'a Line;
    type IntoIter = std::slice::Iter<'a, Line>;

    fn into_iter(self) -> Self::IntoIter {
        self.lines.iter()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, line) in self.lines.iter().enumerate() {
            let end = if place == 0 { "" } else { "\n" };
            write!(f, "{end}{line}")?;
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    Unsent,
    InFlight { call: CallId, fanout: FanoutId },
    Ended,
}

/// A broadcast: a future of its [`Report`]. Made by [`Context::broadcast`].
///
/// Nothing is sent before the first poll. Dropping it frees what it holds at once; listeners that have got the event
/// handle it all the same.
#[must_use = "a broadcast is sent when it is polled"]
pub struct Broadcast<'a, E: Event> {
    ctx: &'a Context,
    event: &'a E,
    deadline: Option<Time>,
    stage: Stage,
}

impl<E: Event> fmt::Debug for Broadcast<'_, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Broadcast")
            .field("message", &E::NAME)
            .field("stage", &self.stage)
            .finish_non_exhaustive()
    }
}

impl<'a, E: Event> Broadcast<'a, E> {
    pub(crate) fn new(ctx: &'a Context, event: &'a E) -> Self {
        Self { ctx, event, deadline: None, stage: Stage::Unsent }
    }

    /// The time it may take, from now; the engine's default for calls if nothing is said. What is left of the handler's
    /// own time bounds it all the same. Listeners see what is left of it in their [`Context::remaining`].
    pub fn within(mut self, deadline: Duration) -> Self {
        self.deadline = Some(self.ctx.core().now() + deadline);
        self
    }

    fn start(&mut self, cx: &TaskContext<'_>) -> Result<Stage, NotSent> {
        let core = self.ctx.core();
        let deadline = self.deadline.unwrap_or_else(|| core.now() + core.deadline).min(self.ctx.deadline());
        let mut frame = pool::take();
        frame.encode(event_header(self.event), self.event).map_err(not_encoded)?;
        // Its parts have the deadline; the last of them ends it.
        let opened = core.calls.borrow_mut().open_for(Time::NEVER, cx.waker());
        let call = opened.ok_or(NotSent::TooManyCalls)?;
        core.calls.borrow_mut().sent(call, Target::Here);
        let others = Some(Contract::of_event::<E> as fn() -> Contract);
        let fanout = core.broadcast(frame, ReplyTo::Here(call), deadline, others);
        Ok(Stage::InFlight { call, fanout })
    }
}

impl<E: Event> Future for Broadcast<'_, E> {
    type Output = Report;

    fn poll(self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Report> {
        let this = self.get_mut();
        let core = this.ctx.core();
        let whole = |ending| Poll::Ready(Report::whole(ending, core.lanes.borrow().id()));
        if let Stage::Unsent = this.stage {
            match this.start(cx) {
                Ok(stage) => this.stage = stage,
                Err(reason) => {
                    this.stage = Stage::Ended;
                    core.count_broadcast(Ending::NotSent(reason));
                    return whole(Ending::NotSent(reason));
                }
            }
        }
        let Stage::InFlight { call, fanout } = this.stage else {
            return whole(Ending::NotSent(NotSent::Deadline));
        };
        let mut calls = core.calls.borrow_mut();
        let Some((ending, frame)) = calls.take(call) else {
            drop(calls);
            core.register(call, cx.waker());
            return Poll::Pending;
        };
        drop(calls);
        pool::give(frame);
        this.stage = Stage::Ended;
        match core.take_lines(fanout) {
            Some(lines) => Poll::Ready(Report { lines: lines.into_vec() }),
            // It was ended from above.
            None => {
                core.give_up_broadcast(fanout);
                whole(ending)
            }
        }
    }
}

impl<E: Event> Drop for Broadcast<'_, E> {
    fn drop(&mut self) {
        if let Stage::InFlight { call, fanout } = self.stage {
            let core = self.ctx.core();
            core.abandon(call);
            core.give_up_broadcast(fanout);
        }
    }
}

impl<E: Event> Unpin for Broadcast<'_, E> {}

/// A broadcast from a foreign thread: a future of its [`Report`]. Made by [`Client::broadcast`](crate::Client::broadcast).
#[must_use = "a broadcast is sent when it is polled"]
pub struct ClientBroadcast<'a, E: Event> {
    exchange: Exchange<'a>,
    event: &'a E,
    within: Duration,
}

impl<E: Event> fmt::Debug for ClientBroadcast<'_, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientBroadcast")
            .field("message", &E::NAME)
            .field("within", &self.within)
            .finish_non_exhaustive()
    }
}

impl<'a, E: Event> ClientBroadcast<'a, E> {
    pub(crate) fn new(shared: &'a ClientShared, event: &'a E) -> Self {
        Self { exchange: Exchange::new(shared), event, within: shared.deadline }
    }

    /// The time it may take, from when it is first polled; the engine's default for calls if nothing is said.
    pub fn within(mut self, deadline: Duration) -> Self {
        self.within = deadline;
        self
    }

    fn write(shared: &ClientShared, event: &E, within: Duration) -> Result<Letter, NotSent> {
        let mut frame = pool::take();
        frame.encode(event_header(event), event).map_err(not_encoded)?;
        let recipients =
            shared.routes.listeners(E::type_index().get()).map(|listeners| listeners.place(event.key()));
        let shard = shared.shard_for(recipients)?;
        let (contract, choice) = (Contract::of_event::<E>, Choice::Usual);
        Ok(Letter { shard, frame, contract, within, grace: REPORT_GRACE, at_once: false, choice })
    }
}

impl<E: Event> Future for ClientBroadcast<'_, E> {
    type Output = Report;

    fn poll(self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Report> {
        let Self { exchange, event, within } = self.get_mut();
        let answer = exchange.poll(cx, |shared| Self::write(shared, event, *within));
        answer.map(|(ending, _)| match exchange.take_lines() {
            Some(lines) => Report { lines: lines.into_vec() },
            None => Report::whole(ending, exchange.node().cloned()),
        })
    }
}

impl<E: Event> Unpin for ClientBroadcast<'_, E> {}
