//! One exchange of a foreign thread with a shard: a frame there, an ending back. What calls and broadcasts are made of.
//!
//! ```text
//!   Unsent ──write, push──▶ InFlight ──answer──▶ Ended
//!      │                       │  ▲                ▲
//!      └──inbox is full──▶ Waiting┘                │
//!                              └──deadline, drop───┘
//! ```

use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use catga_codec::{Contract, OwnedFrame};
use catga_discovery::NodeId;
use catga_discovery::sync::atomic::{Ordering, fence};
use crossbeam_utils::CachePadded;

use crate::broadcast::Line;
use crate::call::table::Ending;
use crate::choice::Choice;
use crate::client::ClientShared;
use crate::client::completion::{Completion, GivenUp, Parcel, Promise, Terms};
use crate::client::inbox::Inbound;
use crate::error::{NotSent, Unknown};
use crate::time::Time;

/// What is sent, and to which shard.
pub(crate) struct Letter {
    pub(crate) shard: u16,
    pub(crate) frame: OwnedFrame,
    pub(crate) contract: fn() -> Contract,
    pub(crate) within: Duration,
    /// The caller waits so much longer than the shard may take.
    pub(crate) grace: Duration,
    pub(crate) at_once: bool,
    pub(crate) choice: Choice,
}

/// An ending, and the frame of an answer.
pub(crate) type Answer = (Ending, Option<OwnedFrame>);

/// An exchange; see the module.
pub(crate) struct Exchange<'a> {
    shared: &'a ClientShared,
    stage: Stage,
    /// Of a broadcast that has ended.
    lines: Option<Box<[Line]>>,
}

enum Stage {
    Unsent,
    /// The inbox is full. The promise waits with the caller.
    Waiting(InFlight, Promise),
    InFlight(InFlight),
    Ended,
}

struct InFlight {
    completion: Arc<CachePadded<Completion>>,
    deadline: Time,
    shard: u16,
    at_once: bool,
}

impl<'a> Exchange<'a> {
    pub(crate) fn new(shared: &'a ClientShared) -> Self {
        Self { shared, stage: Stage::Unsent, lines: None }
    }

    /// The lines of a broadcast's report, once it has ended and if it came so far.
    pub(crate) fn take_lines(&mut self) -> Option<Box<[Line]>> {
        self.lines.take()
    }

    /// The id of the engine's node; none without a cluster.
    pub(crate) fn node(&self) -> Option<&NodeId> {
        self.shared.node.as_ref()
    }

    /// Sends what `write` writes, if that has not been done, and looks for the answer.
    pub(crate) fn poll(
        &mut self,
        cx: &TaskContext<'_>,
        write: impl FnOnce(&ClientShared) -> Result<Letter, NotSent>,
    ) -> Poll<Answer> {
        if !matches!(self.stage, Stage::InFlight(_)) {
            let pushed = match std::mem::replace(&mut self.stage, Stage::Ended) {
                Stage::Unsent => {
                    self.seal(write).and_then(|(call, promise)| self.push(call, promise, false, cx))
                }
                Stage::Waiting(call, promise) => self.push(call, promise, true, cx),
                Stage::InFlight(_) | Stage::Ended => Err(NotSent::Deadline),
            };
            if let Err(reason) = pushed {
                return Poll::Ready((Ending::NotSent(reason), None));
            }
        }
        let (Stage::InFlight(call) | Stage::Waiting(call, _)) = &self.stage else { return Poll::Pending };
        let mut answered = call.completion.take_answer();
        if answered.is_none() {
            call.completion.register(cx.waker());
            answered = call.completion.take_answer();
        }
        if let Some(parcel) = answered
            && let Stage::InFlight(call) = std::mem::replace(&mut self.stage, Stage::Ended)
        {
            return Poll::Ready(self.open(parcel, call.completion));
        }
        self.look_at_the_clock()
    }

    /// Makes a promise of the letter.
    fn seal(
        &self,
        write: impl FnOnce(&ClientShared) -> Result<Letter, NotSent>,
    ) -> Result<(InFlight, Promise), NotSent> {
        let Letter { shard, frame, contract, within, grace, at_once, choice } = write(self.shared)?;
        if within.is_zero() {
            return Err(NotSent::Deadline);
        }
        if self.shared.inboxes[usize::from(shard)].is_closed() {
            return Err(NotSent::Stopping);
        }
        let deadline = self.shared.clock.now() + within;
        let parcel = Parcel::new(frame, Terms { contract, deadline, at_once, choice });
        let deadline = deadline + grace;
        let (promise, completion) = self.shared.calls.open(parcel, deadline).ok_or(NotSent::TooManyCalls)?;
        Ok((InFlight { completion, deadline, shard, at_once }, promise))
    }

    /// Tries to push. While there is no room the waker stands in the inbox's list.
    fn push(
        &mut self,
        call: InFlight,
        promise: Promise,
        waited: bool,
        cx: &TaskContext<'_>,
    ) -> Result<(), NotSent> {
        let inbox = &self.shared.inboxes[usize::from(call.shard)];
        let mut pushed = inbox.push(Inbound::Call(promise));
        let mut waits = true;
        if let Err(full) = pushed {
            // Who waits already has a waker there, or is woken at its deadline: a full list does not turn it away.
            waits = !call.at_once && (inbox.wait(cx.waker()) || waited);
            pushed = if waits { inbox.push(full) } else { Err(full) };
        }
        if pushed.is_err() {
            fence(Ordering::SeqCst); // a push that went in has one
        }
        self.shared.calls.watch(call.deadline);
        self.stage = match pushed {
            Ok(()) => Stage::InFlight(call),
            Err(Inbound::Call(promise)) if waits => Stage::Waiting(call, promise),
            Err(Inbound::Call(promise)) => {
                self.take_back(call, promise);
                return Err(NotSent::Full);
            }
            Err(_) => unreachable!("what is given back is what was pushed"),
        };
        Ok(())
    }

    /// Ends the exchange if the watchdog has found its deadline passed, and has not meant the one before; or if the engine
    /// has stopped without the shard that has it.
    fn look_at_the_clock(&mut self) -> Poll<Answer> {
        let (Stage::InFlight(call) | Stage::Waiting(call, _)) = &self.stage else { return Poll::Pending };
        if !call.completion.is_expired() {
            return Poll::Pending;
        }
        // Cleared before the clock is read: who sets the bit from now on finds the clock further.
        call.completion.not_expired();
        let abandoned = self.shared.calls.are_abandoned();
        if !abandoned && self.shared.clock.now() < call.deadline {
            return Poll::Pending;
        }
        let (unsent, taken) = if abandoned {
            (NotSent::Stopping, Unknown::Stopped)
        } else {
            (NotSent::Deadline, Unknown::Deadline)
        };
        match std::mem::replace(&mut self.stage, Stage::Ended) {
            Stage::InFlight(call) => match call.completion.give_up() {
                GivenUp::Answered(parcel) => Poll::Ready(self.open(parcel, call.completion)),
                GivenUp::Unsent => Poll::Ready((Ending::NotSent(unsent), None)),
                GivenUp::Taken => Poll::Ready((Ending::Unknown(taken), None)),
            },
            Stage::Waiting(call, promise) => {
                self.take_back(call, promise);
                Poll::Ready((Ending::NotSent(unsent), None))
            }
            Stage::Unsent | Stage::Ended => Poll::Pending,
        }
    }

    fn open(&mut self, mut parcel: Box<Parcel>, completion: Arc<CachePadded<Completion>>) -> Answer {
        let answer = (parcel.ending, parcel.frame.take());
        self.lines = parcel.lines.take();
        self.shared.calls.close(parcel, completion);
        answer
    }

    /// What was never pushed is over.
    fn take_back(&self, call: InFlight, promise: Promise) {
        drop(promise);
        if let GivenUp::Answered(parcel) = call.completion.give_up() {
            self.shared.calls.close(parcel, call.completion);
        }
    }
}

impl Drop for Exchange<'_> {
    fn drop(&mut self) {
        match std::mem::replace(&mut self.stage, Stage::Ended) {
            Stage::Unsent | Stage::Ended => {}
            Stage::Waiting(call, promise) => self.take_back(call, promise),
            Stage::InFlight(call) => match call.completion.give_up() {
                GivenUp::Answered(parcel) => self.shared.calls.close(parcel, call.completion),
                GivenUp::Unsent => {}
                GivenUp::Taken => self.shared.inboxes[usize::from(call.shard)].give_up(),
            },
        }
    }
}
