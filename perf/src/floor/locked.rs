//! `local/locked`: the control. The same exchange through a mutex and a condition variable each way, one lock and one
//! notification for each request, as a conventional queue between threads does it.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::frame::{self, Frame};
use crate::load::{self, Link};
use crate::machine::{Cores, on_core, pin};
use crate::scenario::{Broken, Facts, Family, Idle, Pace, Round, RoundResult, Scenario};

/// As many in flight as the busiest rows that it is the control for.
const IN_FLIGHT: usize = 1_024;

/// The scenario.
pub(crate) struct Locked;

impl Scenario for Locked {
    fn facts(&self) -> Facts {
        let pace = Pace::Closed { in_flight: IN_FLIGHT };
        let (name, family, floor) = ("local/locked", Family::Local, Some("floor/ring/1024"));
        Facts { name, family, pace, idle: Idle::Park, floor, sweeps: false, payload_bytes: None }
    }

    fn run(&self, round: &Round<'_>) -> Result<RoundResult, Broken> {
        let cores = Cores::choose();
        let (requests, replies) = (Queue::default(), Queue::default());
        std::thread::scope(|scope| {
            let server = scope.spawn(|| {
                pin(cores.server)?;
                while let Some(request) = requests.pop() {
                    replies.push(frame::reply(&request));
                }
                Ok(())
            });
            let result = on_core(cores.caller, "locked-caller", || {
                let mut link = LockedLink { requests: &requests, replies: &replies, unanswered: 0 };
                load::drive(&mut link, round, &mut [])
            });
            requests.close();
            match server.join() {
                Ok(ended) => ended.and(result),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }
}

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    frames: VecDeque<Frame>,
    closed: bool,
}

impl Queue {
    /// A queue whose other thread panicked is used on: that panic is reported when it is joined.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, frame: Frame) {
        self.lock().frames.push_back(frame);
        self.changed.notify_one();
    }

    /// Waits for a frame; `None` once the queue is closed and empty.
    fn pop(&self) -> Option<Frame> {
        let waiting = |state: &mut State| state.frames.is_empty() && !state.closed;
        let state = self.changed.wait_while(self.lock(), waiting);
        state.unwrap_or_else(PoisonError::into_inner).frames.pop_front()
    }

    fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_one();
    }
}

struct LockedLink<'a> {
    requests: &'a Queue,
    replies: &'a Queue,
    unanswered: u64,
}

impl Link for LockedLink<'_> {
    fn send(&mut self, first: u64, wanted: u64) -> Result<u64, Broken> {
        (first..first + wanted).for_each(|number| self.requests.push(frame::request(number)));
        self.unanswered += wanted;
        Ok(wanted)
    }

    /// One reply; waits for it where one is due.
    fn receive(&mut self, expected: u64) -> Result<u64, Broken> {
        if self.unanswered == 0 {
            return Ok(0);
        }
        match self.replies.pop() {
            Some(reply) if frame::is_reply_to(&reply, expected) => {
                self.unanswered -= 1;
                Ok(1)
            }
            Some(reply) => Err(Broken::WrongReply(frame::describe(&reply, expected))),
            None => Ok(0),
        }
    }
}
