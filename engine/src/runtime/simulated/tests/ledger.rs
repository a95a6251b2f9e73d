//! What was called, what ran and what was said of it: the simple model that the engine is held against.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use catga_codec::hash::combine;

use crate::CallError;
use crate::runtime::simulated::HOLD_UP_MAX;
use crate::runtime::simulated::world::Shared;
use crate::time::Time;

/// How a call ended, as its caller sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Seen {
    Reply,
    Rejected,
    NotSent,
    Refused,
    Unknown,
    Failed,
    /// The caller gave it up, or was itself ended.
    GivenUp,
}

impl Seen {
    pub(crate) fn of<E>(error: CallError<E>) -> Self {
        match error {
            CallError::Rejected(_) => Self::Rejected,
            CallError::NotSent(_) => Self::NotSent,
            CallError::Refused(_) => Self::Refused,
            CallError::Unknown(_) => Self::Unknown,
            CallError::Failed(_) => Self::Failed,
        }
    }
}

#[derive(Debug)]
struct Entry {
    /// The outcome must be there by then.
    latest: Time,
    runs: u32,
    seen: Option<Seen>,
}

thread_local! {
    static ENTRIES: RefCell<Vec<Entry>> = const { RefCell::new(Vec::new()) };
}

/// All calls of one run.
pub(crate) struct Ledger;

impl Ledger {
    pub(crate) fn reset() {
        ENTRIES.take();
    }

    /// A call begins. `slack` is what its deadline may be missed by.
    pub(crate) fn begins(deadline: Time, slack: Duration) -> Ticket {
        let id = ENTRIES.with_borrow_mut(|entries| {
            entries.push(Entry { latest: deadline + slack, runs: 0, seen: None });
            entries.len() - 1
        });
        Ticket { id: id as u64, open: true }
    }

    /// Promise 1: the deadline, 1 ms, and the current turn, which in the simulation may be held up.
    pub(crate) fn slack() -> Duration {
        Duration::from_millis(1) + HOLD_UP_MAX
    }

    /// A handler runs for this call.
    pub(crate) fn runs(id: u64) {
        ENTRIES.with_borrow_mut(|entries| {
            if let Some(entry) = entries.get_mut(id as usize) {
                entry.runs += 1;
                assert_eq!(entry.runs, 1, "call {id} ran twice");
            }
        });
    }

    /// A call from outside all engines, whose time begins when its shard takes it.
    pub(crate) async fn outside<F>(network: Shared, within: Duration, call: impl FnOnce(u64) -> F)
    where
        F: Future<Output = Result<(), Seen>>,
    {
        let now = network.borrow().now;
        let ticket = Self::begins(now + within, Self::slack() + HOLD_UP_MAX);
        let seen = call(ticket.id).await.err().unwrap_or(Seen::Reply);
        let now = network.borrow().now;
        ticket.ends(seen, now);
    }

    /// Each call has one outcome, and ran as often as that says.
    pub(crate) fn check() {
        ENTRIES.with_borrow(|entries| {
            for (id, Entry { runs, seen, .. }) in entries.iter().enumerate() {
                let may_have_run = match seen {
                    Some(Seen::Reply | Seen::Rejected | Seen::Failed) => *runs == 1,
                    Some(Seen::NotSent | Seen::Refused) => *runs == 0,
                    Some(Seen::Unknown | Seen::GivenUp) => *runs <= 1,
                    None => panic!("call {id} has no outcome"),
                };
                assert!(may_have_run, "call {id} ended as {seen:?} and ran {runs} times");
            }
        });
    }

    /// A hash of all outcomes.
    pub(crate) fn digest() -> u64 {
        ENTRIES.with_borrow(|entries| {
            entries.iter().fold(0, |digest, entry| {
                let seen = entry.seen.map_or(99, |seen| seen as u64);
                combine(digest, combine(u64::from(entry.runs), seen))
            })
        })
    }

    /// How many calls ended in each way.
    pub(crate) fn counts() -> BTreeMap<Seen, usize> {
        ENTRIES.with_borrow(|entries| {
            let mut counts = BTreeMap::new();
            for seen in entries.iter().filter_map(|entry| entry.seen) {
                *counts.entry(seen).or_default() += 1;
            }
            counts
        })
    }
}

/// The duty to say how a call ended. Dropping it is an answer too.
#[derive(Debug)]
pub(crate) struct Ticket {
    pub(crate) id: u64,
    open: bool,
}

impl Ticket {
    pub(crate) fn ends(mut self, seen: Seen, now: Time) {
        self.open = false;
        ENTRIES.with_borrow_mut(|entries| {
            let entry = &mut entries[self.id as usize];
            assert_eq!(entry.seen, None, "call {} ended twice", self.id);
            entry.seen = Some(seen);
            let late = now.since(entry.latest);
            assert!(late.is_zero(), "call {} ended as {seen:?}, {late:?} too late", self.id);
        });
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.open && !std::thread::panicking() {
            ENTRIES.with_borrow_mut(|entries| {
                if let Some(entry) = entries.get_mut(self.id as usize) {
                    entry.seen.get_or_insert(Seen::GivenUp);
                }
            });
        }
    }
}
