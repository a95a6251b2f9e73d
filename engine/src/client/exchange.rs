//! One exchange of a foreign thread with a shard: a frame there, an ending back. What calls and broadcasts are made of.
//!
//! ```text
//!   Unsent ──write, push──▶ InFlight ──answer──▶ Ended
//!      │                       │  ▲                ▲
//!      └──inbox is full──▶ Waiting┘                │
//!                              └──deadline, drop───┘
//! ```

use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use catga_codec::{Contract, OwnedFrame};
use catga_discovery::NodeId;
use catga_discovery::sync::atomic::{Ordering, fence};

use crate::broadcast::Line;
use crate::call::table::Ending;
use crate::choice::Choice;
use crate::client::ClientShared;
use crate::client::completion::{Completions, GivenUp, Promise, Spare, Terms, Wait};
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
    wait: Wait,
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
            let is_first = matches!(self.stage, Stage::Unsent);
            let pushed = match std::mem::replace(&mut self.stage, Stage::Ended) {
                Stage::Unsent => self.seal(write, cx).and_then(|promise| self.push(promise, false, cx)),
                Stage::Waiting(call, promise) => {
                    self.stage = Stage::InFlight(call);
                    self.push(promise, true, cx)
                }
                Stage::InFlight(_) | Stage::Ended => Err(NotSent::Deadline),
            };
            if let Err(reason) = pushed {
                return Poll::Ready((Ending::NotSent(reason), None));
            }
            // Whoever answers, or finds the deadline passed, finds this waker too: so there is no look at lines that the shard
            // is about to write. The fence in the push pairs with the one in `Completions::abandon`: either this sees that the
            // engine has stopped, or the waker is found there.
            if is_first && !self.shared.calls.are_abandoned() {
                return Poll::Pending;
            }
        }
        let (Stage::InFlight(call) | Stage::Waiting(call, _)) = &self.stage else { return Poll::Pending };
        let mut is_answered = call.wait.is_answered();
        if !is_answered {
            call.wait.register(cx.waker());
            is_answered = call.wait.is_answered();
        }
        // A promise that waits with the caller has not been kept.
        if is_answered
            && let Stage::InFlight(call) = std::mem::replace(&mut self.stage, Stage::Ended)
            && let Ok(answered) = call.wait.answer()
        {
            return Poll::Ready(self.open(answered));
        }
        self.look_at_the_clock()
    }

    /// Makes a promise of the letter; to keep it in flight is the next step.
    fn seal(
        &mut self,
        write: impl FnOnce(&ClientShared) -> Result<Letter, NotSent>,
        cx: &TaskContext<'_>,
    ) -> Result<Promise, NotSent> {
        let shared = self.shared;
        // The block and its waker before the letter: what is written into both misses the cache, and a locked instruction
        // before the push would wait for it.
        let spare = shared.calls.spare(cx.waker()).ok_or(NotSent::TooManyCalls)?;
        let mut reserved = Reserved(&shared.calls, Some(spare));
        let Letter { shard, frame, contract, within, grace, at_once, choice } = write(shared)?;
        if within.is_zero() {
            return Err(NotSent::Deadline);
        }
        if shared.inboxes[usize::from(shard)].is_closed() {
            return Err(NotSent::Stopping);
        }
        let spare = reserved.1.take().ok_or(NotSent::TooManyCalls)?;
        let deadline = shared.clock.now() + within;
        let terms = Terms { contract, deadline, at_once, choice };
        let deadline = deadline + grace;
        let (promise, wait) = Completions::open(spare, frame, terms, deadline);
        self.stage = Stage::InFlight(InFlight { wait, deadline, shard, at_once });
        Ok(promise)
    }

    /// Tries to push. While there is no room the waker stands in the inbox's list.
    fn push(&mut self, promise: Promise, waited: bool, cx: &TaskContext<'_>) -> Result<(), NotSent> {
        let Stage::InFlight(InFlight { deadline, shard, at_once, .. }) = self.stage else {
            return Err(NotSent::Deadline);
        };
        let inbox = &self.shared.inboxes[usize::from(shard)];
        let mut pushed = inbox.push(Inbound::Call(promise));
        let mut waits = true;
        if let Err(full) = pushed {
            // Who waits already has a waker there, or is woken at its deadline: a full list does not turn it away.
            waits = !at_once && (inbox.wait(cx.waker()) || waited);
            pushed = if waits { inbox.push(full) } else { Err(full) };
        }
        if pushed.is_err() {
            fence(Ordering::SeqCst); // a push that went in has one
        }
        self.shared.calls.watch(deadline);
        match pushed {
            Ok(()) => Ok(()),
            Err(Inbound::Call(promise)) => self.not_pushed(promise, waits),
            Err(_) => unreachable!("what is given back is what was pushed"),
        }
    }

    #[cold]
    fn not_pushed(&mut self, promise: Promise, waits: bool) -> Result<(), NotSent> {
        if let Stage::InFlight(call) = std::mem::replace(&mut self.stage, Stage::Ended) {
            if waits {
                self.stage = Stage::Waiting(call, promise);
                return Ok(());
            }
            self.take_back(call, promise);
        }
        Err(NotSent::Full)
    }

    /// Ends the exchange if the watchdog has found its deadline passed, and has not meant the one before; or if the engine
    /// has stopped without the shard that has it.
    fn look_at_the_clock(&mut self) -> Poll<Answer> {
        let (Stage::InFlight(call) | Stage::Waiting(call, _)) = &self.stage else { return Poll::Pending };
        let abandoned = self.shared.calls.are_abandoned();
        // Who says so from here on finds the clock further.
        let expired = call.wait.take_expired() && self.shared.clock.now() >= call.deadline;
        if !abandoned && !expired {
            return Poll::Pending;
        }
        let (unsent, taken) = if abandoned {
            (NotSent::Stopping, Unknown::Stopped)
        } else {
            (NotSent::Deadline, Unknown::Deadline)
        };
        match std::mem::replace(&mut self.stage, Stage::Ended) {
            Stage::InFlight(call) => match self.give_up(call.wait) {
                GivenUp::Answered(answered) => Poll::Ready(self.open(answered)),
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

    fn open(&mut self, mut answered: Spare) -> Answer {
        let (ending, frame, lines) = answered.content().take_answer();
        self.lines = lines;
        self.shared.calls.close(answered);
        (ending, frame)
    }

    fn give_up(&self, wait: Wait) -> GivenUp {
        self.shared.calls.watch_no_longer(&wait);
        wait.give_up()
    }

    /// What was never pushed is over. Nobody has to be woken: the promise is dropped when it has been given up.
    fn take_back(&self, call: InFlight, promise: Promise) {
        if let GivenUp::Answered(answered) = self.give_up(call.wait) {
            self.shared.calls.close(answered);
        }
        drop(promise);
    }
}

/// A block for a call that may yet come to nothing, or panic, while it is written.
struct Reserved<'a>(&'a Completions, Option<Spare>);

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        if let Some(mut spare) = self.1.take() {
            spare.will_wake_nobody();
            self.0.close(spare);
        }
    }
}

impl Drop for Exchange<'_> {
    fn drop(&mut self) {
        match std::mem::replace(&mut self.stage, Stage::Ended) {
            Stage::Unsent | Stage::Ended => {}
            Stage::Waiting(call, promise) => self.take_back(call, promise),
            Stage::InFlight(call) => match self.give_up(call.wait) {
                GivenUp::Answered(answered) => self.shared.calls.close(answered),
                GivenUp::Unsent => {}
                GivenUp::Taken => self.shared.inboxes[usize::from(call.shard)].give_up(),
            },
        }
    }
}
