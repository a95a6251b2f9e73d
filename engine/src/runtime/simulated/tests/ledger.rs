//! What was called, what ran and what was said of it: the simple model that the engine is held against.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use catga_codec::MessageId;
use catga_codec::hash::combine;

use crate::CallError;
use crate::call::journey::MOVES_MAX;
use crate::runtime::simulated::world::Shared;
use crate::runtime::simulated::{HOLD_UP_MAX, chronicle};
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

/// Where a call may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum May {
    Anywhere,
    /// On the node of its caller.
    AtHome,
    /// On this node.
    On(usize),
    /// On the node that owns this key of this message, by its own view.
    Owner(MessageId, u64),
}

/// What a call was made under.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    /// The node that makes it.
    pub(crate) home: usize,
    pub(crate) may: May,
    /// It may run once in each attempt; else it may run once.
    pub(crate) idempotent: bool,
}

#[derive(Debug)]
struct Entry {
    terms: Terms,
    /// The outcome must be there by then, give or take the slack.
    due: Time,
    slack: Duration,
    runs: u32,
    /// The node on which it ran last.
    ran_on: Option<usize>,
    seen: Option<Seen>,
}

impl Entry {
    /// The moment by which the outcome must be there.
    fn latest(&self) -> Time {
        let latest = self.due + self.slack;
        let awake = chronicle::at_least_awake(self.terms.home, latest);
        if awake > latest { awake + self.slack } else { latest }
    }

    fn runs_max(&self) -> u32 {
        if self.terms.idempotent { 1 + MOVES_MAX as u32 } else { 1 }
    }
}

/// A view that is this old may still decide: a shard may be held up, and what it has decided waits in a ring of another.
const VIEW_LAG: Duration = Duration::from_millis(5 * HOLD_UP_MAX.as_millis() as u64);

thread_local! {
    static ENTRIES: RefCell<Vec<Entry>> = const { RefCell::new(Vec::new()) };
    /// What handlers found wrong: a panic there would be their service's.
    static WRONG: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// All calls of one run.
pub(crate) struct Ledger;

impl Ledger {
    /// The id of calls of which there is no account.
    pub(crate) const NOBODYS: u64 = u64::MAX;

    pub(crate) fn reset() {
        ENTRIES.take();
        WRONG.take();
    }

    /// Something that must not be: the run fails when it is checked.
    pub(crate) fn wrong(what: String) {
        WRONG.with_borrow_mut(|wrong| wrong.push(what));
    }

    /// A call of the only node that makes any begins. `slack` is what its deadline may be missed by.
    pub(crate) fn begins(deadline: Time, slack: Duration) -> Ticket {
        Self::begins_on(Terms { home: 0, may: May::Anywhere, idempotent: false }, deadline, slack)
    }

    /// A call begins.
    pub(crate) fn begins_on(terms: Terms, due: Time, slack: Duration) -> Ticket {
        let id = Self::next();
        ENTRIES.with_borrow_mut(|entries| {
            entries.push(Entry { terms, due, slack, runs: 0, ran_on: None, seen: None });
        });
        Ticket { id, open: true }
    }

    /// The id of the call that begins next.
    pub(crate) fn next() -> u64 {
        ENTRIES.with_borrow(Vec::len) as u64
    }

    /// Promise 1: the deadline, 1 ms, and the current turn, which in the simulation may be held up.
    pub(crate) fn slack() -> Duration {
        Duration::from_millis(1) + HOLD_UP_MAX
    }

    /// A handler runs for this call.
    pub(crate) fn runs(id: u64) {
        Self::run(id, None, Time::ZERO);
    }

    /// A handler of this node runs for this call.
    pub(crate) fn runs_on(id: u64, node: usize, now: Time) {
        Self::run(id, Some(node), now);
    }

    fn run(id: u64, node: Option<usize>, now: Time) {
        ENTRIES.with_borrow_mut(|entries| {
            let Some(entry) = entries.get_mut(id as usize) else { return };
            entry.runs += 1;
            entry.ran_on = node;
            if entry.runs > entry.runs_max() {
                Self::wrong(format!("call {id} runs for the {}. time: {entry:?}", entry.runs));
            }
            let Some(node) = node else { return };
            let right = match entry.terms.may {
                May::Anywhere => true,
                May::AtHome => node == entry.terms.home,
                May::On(named) => node == named,
                May::Owner(message, key) => chronicle::owned_lately(node, message, key, now, VIEW_LAG),
            };
            if !right {
                Self::wrong(format!("call {id} runs on node {node} at {now:?}: {entry:?}"));
            }
        });
    }

    /// The answer to a call names the call and the node on which it ran.
    pub(crate) fn answers(id: u64, answered: u64, node: usize) {
        ENTRIES.with_borrow(|entries| {
            let entry = &entries[id as usize];
            if answered != id || (entry.ran_on != Some(node) && !entry.terms.idempotent) {
                Self::wrong(format!("node {node} answered call {answered} to call {id}: {entry:?}"));
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
        WRONG.with_borrow(|wrong| assert!(wrong.is_empty(), "{wrong:#?}"));
        ENTRIES.with_borrow(|entries| {
            for (id, entry) in entries.iter().enumerate() {
                let (runs, most) = (entry.runs, entry.runs_max());
                let may_have_run = match entry.seen {
                    Some(Seen::Reply | Seen::Rejected | Seen::Failed) => (1..=most).contains(&runs),
                    Some(Seen::NotSent | Seen::Refused) => runs == 0,
                    Some(Seen::Unknown | Seen::GivenUp) => runs <= most,
                    None => panic!("call {id} has no outcome"),
                };
                assert!(may_have_run, "call {id} ran {runs} times: {entry:?}");
            }
        });
    }

    /// How many calls ran more than once.
    pub(crate) fn ran_again() -> u64 {
        ENTRIES.with_borrow(|entries| entries.iter().filter(|entry| entry.runs > 1).count() as u64)
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
            if entry.seen.replace(seen).is_some() {
                Ledger::wrong(format!("call {} ended twice", self.id));
            }
            let late = now.since(entry.latest());
            if !late.is_zero() {
                Ledger::wrong(format!("call {} ended {late:?} too late: {entry:?}", self.id));
            }
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
