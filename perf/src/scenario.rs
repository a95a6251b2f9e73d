//! What one row of the table is: a [`Scenario`] that can be run for one [`Round`] at a time.
//!
//! A scenario sets up, warms up, measures and tears down within one round, so that the runner can lay the floor's
//! rounds between the engine's and nothing spins while another is measured. It checks every reply; a wrong, lost or
//! doubled one is [`Broken`] and fails the run, whereas an error that the engine *reported* is counted in
//! [`RoundResult::errors`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::histogram::Latency;
use crate::meter::Spent;
use crate::tracepoint::Kernel;

/// A group of scenarios, as `--only` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    /// Hand-written loops without an engine.
    Floor,
    /// One process.
    Local,
    /// Two nodes over TCP.
    Lane,
    /// Two nodes through a broker.
    Bus,
    /// Membership views.
    View,
    /// The order desk.
    Orders,
    /// The same exchange in other libraries.
    Rivals,
}

impl Family {
    const ALL: [(Self, &str); 7] = [
        (Self::Floor, "floor"),
        (Self::Local, "local"),
        (Self::Lane, "lane"),
        (Self::Bus, "bus"),
        (Self::View, "view"),
        (Self::Orders, "orders"),
        (Self::Rivals, "rivals"),
    ];

    /// Reads the word after `--only`.
    pub(crate) fn parse(word: &str) -> Result<Self, String> {
        Self::ALL.iter().find(|(_, name)| *name == word).map(|(family, _)| *family).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|(_, name)| *name).collect();
            format!("--only takes one of {}, not '{word}'", names.join(", "))
        })
    }
}

/// How requests are offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// A new request when a reply came: this many are in flight.
    Closed {
        /// Requests unanswered at any time.
        in_flight: usize,
    },
    /// Requests are due on a schedule, and latency counts from when each was due.
    Open {
        /// Requests due each second.
        rate_per_s: u64,
    },
}

/// What a thread does when there is nothing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Idle {
    /// Never sleeps.
    Spin,
    /// Sleeps until it is woken.
    Park,
}

impl Idle {
    /// As in the rows.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Spin => "spin",
            Self::Park => "park",
        }
    }
}

/// What is known of a scenario before it runs.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    /// As in the table of scenarios: `lane/open`.
    pub(crate) name: &'static str,
    /// Its group.
    pub(crate) family: Family,
    /// How requests are offered.
    pub(crate) pace: Pace,
    /// What idle threads do.
    pub(crate) idle: Idle,
    /// The floor's scenario that it is compared to, run in the same rounds.
    pub(crate) floor: Option<&'static str>,
    /// Whether the plot of P99 against the offered rate shows it; for open loops.
    pub(crate) sweeps: bool,
    /// Bytes of a request's payload, where the row is about bandwidth.
    pub(crate) payload_bytes: Option<usize>,
}

/// One row of the table.
pub(crate) trait Scenario {
    /// What is known before it runs. The name never changes.
    fn facts(&self) -> Facts;

    /// Why it cannot run on this machine (a server that is not installed, say); the run goes on without it.
    fn unavailable(&self) -> Option<String> {
        None
    }

    /// One round: set up, warm up for `round.warm_up`, measure for `round.span`, tear down.
    fn run(&self, round: &Round<'_>) -> Result<RoundResult, Broken>;
}

/// The plan of one round.
#[derive(Clone, Copy)]
pub(crate) struct Round<'a> {
    /// As in the facts, or another rate while the runner looks for saturation.
    pub(crate) pace: Pace,
    /// Load before anything is measured.
    pub(crate) warm_up: Duration,
    /// How long requests are offered while measuring.
    pub(crate) span: Duration,
    /// Set by Ctrl-C; loops look at it about every millisecond and return [`Broken::Interrupted`].
    pub(crate) stop: &'a Stop,
    /// Present in the counting round only: the kernel's own count of system calls.
    pub(crate) kernel: Option<&'a Kernel>,
}

/// What one round measured.
#[derive(Clone, Debug)]
pub(crate) struct RoundResult {
    /// Requests that were sent and ended within the measured part.
    pub(crate) requests: u64,
    /// Of these, the ones whose outcome was an error that the engine reported.
    pub(crate) errors: u64,
    /// From the first send to the last outcome.
    pub(crate) elapsed: Duration,
    /// Latency in nanoseconds; `None` where the row is about nanoseconds per operation.
    pub(crate) latency: Option<Latency>,
    /// One request in so many has its latency measured.
    pub(crate) sampled_one_in: u64,
    /// Sends that an open loop made over 1 ms after they were due.
    pub(crate) late: u64,
    /// For rows too short for a clock around each operation.
    pub(crate) ns_per_op: Option<f64>,
    /// What all processes of the row spent.
    pub(crate) spent: Spent,
    /// Bytes that requests carried, where the row is about bandwidth.
    pub(crate) bytes: Option<u64>,
    /// Memory that the engine holds, where the row is about that.
    pub(crate) resident_bytes: Option<u64>,
    /// What drives the shards: `io_uring`, `epoll`, or for floors `none`.
    pub(crate) runtime: &'static str,
}

impl RoundResult {
    /// Without latency, errors or anything else that only some rows have.
    pub(crate) fn bare(requests: u64, elapsed: Duration, spent: Spent, runtime: &'static str) -> Self {
        Self {
            requests,
            errors: 0,
            elapsed,
            latency: None,
            sampled_one_in: 1,
            late: 0,
            ns_per_op: None,
            spent,
            bytes: None,
            resident_bytes: None,
            runtime,
        }
    }
}

/// Why a round gave no result.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    /// Ctrl-C. The round is dropped, the ones before it stand.
    #[error("interrupted")]
    Interrupted,
    /// A reply that is not the answer to its request; the figures are worthless.
    #[error("wrong reply: {0}")]
    WrongReply(String),
    /// Requests that never got their reply; the figures are worthless.
    #[error(
        "lost replies: {missing} of {sent} requests still unanswered after {waited_s} s without any reply"
    )]
    Lost {
        /// Without a reply.
        missing: u64,
        /// Sent in all.
        sent: u64,
        /// How long the round waited for them.
        waited_s: u64,
    },
    /// A reply more than there were requests; the figures are worthless.
    #[error("doubled replies: {extra} more than the {sent} requests")]
    Doubled {
        /// Replies beyond the requests.
        extra: u64,
        /// Sent in all.
        sent: u64,
    },
    /// The machine refused something; the message says what was tried.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// An engine did not start, or did not drive the round to its end.
    #[error("the engine: {0}")]
    Engine(String),
    /// A rival did not start.
    #[error("the rival: {0}")]
    Rival(String),
    /// The orders of `--orders` are not orders.
    #[error("--orders: {0}")]
    Orders(String),
    /// The second process misbehaved.
    #[error("the scenario's second process: {0}")]
    Peer(String),
}

/// Names what was tried when a system call fails.
pub(crate) trait Tried<T> {
    /// `what` reads as "cannot …".
    fn tried(self, what: &'static str) -> Result<T, Broken>;
}

impl<T> Tried<T> for std::io::Result<T> {
    fn tried(self, what: &'static str) -> Result<T, Broken> {
        self.map_err(|source| Broken::System { what, source })
    }
}

/// The reader's wish to stop, as a flag that loops read.
#[derive(Clone)]
pub(crate) struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Set by the first SIGINT or SIGTERM; the second one ends the process at once.
    pub(crate) fn on_signals() -> std::io::Result<Self> {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&flag))?;
            signal_hook::flag::register(signal, Arc::clone(&flag))?;
        }
        Ok(Self(flag))
    }

    /// Never set; for tests.
    #[cfg(test)]
    pub(crate) fn never() -> Self {
        Self(Arc::new(AtomicBool::new(false)))
    }

    /// Set already; for tests.
    #[cfg(test)]
    pub(crate) fn at_once() -> Self {
        Self(Arc::new(AtomicBool::new(true)))
    }

    /// Relaxed: the flag carries no data.
    pub(crate) fn requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
