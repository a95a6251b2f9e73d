//! The end of an engine: what is waited for, how long, and what is said about it.
//!
//! Shards drain by themselves ([`Shard::turn`](crate::shard::Shard)); the thread that stops the engine waits until each
//! has ended. Handlers are user code and may never return, so it waits for the drain and [`STOP_GRACE`] and no longer: a
//! shard that has not ended by then is named in the report, and its thread left to itself.

use std::fmt;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use crate::context::ShardId;
use crate::limits::STOP_GRACE;
use crate::shard::Control;
use crate::stats::Stats;
use crate::time::Time;

/// What the thread that stops an engine is told.
#[derive(Debug)]
pub(crate) enum Note {
    /// A shard's thread has come to its end.
    Ended(ShardId),
    /// The time to drain was cut: look at the clock again.
    Hurry,
}

/// Lives as long as a shard's thread does its work, and says so when it is dropped, by a panic too.
pub(crate) struct EndNote(pub(crate) ShardId, pub(crate) mpsc::Sender<Note>);

impl Drop for EndNote {
    fn drop(&mut self) {
        // Nobody listens any more if this shard was given up: then there is nobody to tell.
        let _ = self.1.send(Note::Ended(self.0));
    }
}

/// The threads of an engine's shards, by shard.
#[derive(Default)]
pub(crate) struct Threads(Vec<Option<JoinHandle<()>>>);

/// The shards that did not end as they should.
#[derive(Debug, Default)]
pub(crate) struct Lost {
    stuck: Vec<ShardId>,
    panicked: Vec<ShardId>,
}

impl Threads {
    pub(crate) fn push(&mut self, thread: JoinHandle<()>) {
        self.0.push(Some(thread));
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Joins each as it ends, until the drain and the grace are over.
    pub(crate) fn join(&mut self, notes: &mpsc::Receiver<Note>, control: &Control) -> Lost {
        let mut threads = std::mem::take(&mut self.0);
        let mut lost = Lost::default();
        while threads.iter().any(Option::is_some) {
            let until = control.draining().unwrap_or(Time::ZERO) + STOP_GRACE;
            match notes.recv_timeout(until.since(Time::read())) {
                Ok(Note::Ended(shard)) => {
                    let thread = threads.get_mut(usize::from(shard.0)).and_then(Option::take);
                    // Its work is done: what is left of the thread takes no time.
                    if thread.is_some_and(|thread| thread.join().is_err()) {
                        tracing::error!(%shard, "a shard's thread ended by a panic");
                        lost.panicked.push(shard);
                    }
                }
                Ok(Note::Hurry) => {}
                Err(_) => break,
            }
        }
        let left = (0..).zip(&threads).filter(|(_, thread)| thread.is_some());
        lost.stuck = left.map(|(shard, _)| ShardId(shard)).collect();
        for shard in &lost.stuck {
            tracing::error!(%shard, "a handler does not return; the engine stops without this shard");
        }
        lost
    }
}

/// How an engine ended. Its `Display` says it in words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StopReport {
    /// The last counters.
    pub stats: Stats,
    /// How long it took.
    pub took: Duration,
    /// Whether all that was in flight came to its own end within the time it was given.
    pub drained: bool,
    /// Calls that were taken but had not been given to a handler: refused, nothing of them ran.
    pub calls_refused: u64,
    /// Calls made by shards, for their handlers or for others, that the stop ended before their answer came.
    pub calls_ended: u64,
    /// Async handlers that were ended before they came to an answer.
    pub tasks_cut: u64,
    /// Events that no listener got, because the engine stopped or because a bound was full while it did.
    pub events_dropped: u64,
    /// Shards in which a handler did not return. Their threads are left behind, and end if it ever does.
    pub stuck: Vec<ShardId>,
    /// Shards whose thread had ended by a panic, which the log has.
    pub panicked: Vec<ShardId>,
}

impl StopReport {
    /// Of the counters `before` and after, and of what the inboxes turned away: calls and events.
    pub(crate) fn of(
        before: &Stats,
        stats: Stats,
        turned_away: (u64, u64),
        lost: Lost,
        took: Duration,
    ) -> Self {
        let during = |counter: fn(&crate::ShardStats) -> u64| stats.sum(counter) - before.sum(counter);
        Self {
            took,
            drained: during(|shard| shard.drains_cut) == 0
                && lost.stuck.is_empty()
                && lost.panicked.is_empty(),
            calls_refused: turned_away.0,
            calls_ended: during(|shard| shard.calls_stopped),
            tasks_cut: during(|shard| shard.tasks_stopped),
            events_dropped: during(|shard| shard.events_dropped) + turned_away.1,
            stuck: lost.stuck,
            panicked: lost.panicked,
            stats,
        }
    }
}

impl fmt::Display for StopReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = if self.drained {
            "all that was in flight has ended"
        } else {
            "not all that was in flight could end"
        };
        write!(f, "stopped in {:.1?}: {how}", self.took)?;
        let counts = [
            (
                self.calls_refused,
                "call(s) had not begun and were refused: nothing of them ran, they can be sent again",
            ),
            (self.calls_ended, "call(s) ended without their answer: they may or may not have run"),
            (self.tasks_cut, "async handler(s) were cut before they came to an answer"),
            (self.events_dropped, "event(s) were dropped"),
        ];
        for (count, what) in counts.into_iter().filter(|(count, _)| *count > 0) {
            write!(f, "\n  {count} {what}")?;
        }
        for shard in &self.stuck {
            write!(
                f,
                "\n  {shard} is stuck: a handler there has not returned, and its thread is left behind"
            )?;
        }
        for shard in &self.panicked {
            write!(f, "\n  {shard} had ended by a panic: see the log")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_says_what_was_left_and_only_that() {
        let took = Duration::from_millis(12);
        let good = StopReport { took, drained: true, ..StopReport::default() };
        assert_eq!(good.to_string(), "stopped in 12.0ms: all that was in flight has ended");
        let bad = StopReport {
            took,
            calls_ended: 3,
            tasks_cut: 2,
            stuck: vec![ShardId(1)],
            panicked: vec![ShardId(0)],
            ..StopReport::default()
        };
        let text = bad.to_string();
        for part in
            ["not all", "3 call(s) ended", "2 async", "shard 1 is stuck", "shard 0 had ended by a panic"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("refused") && !text.contains("dropped"), "{text}");
    }
}
