//! The engine's handle: starts the shards, hands out clients, stops the shards.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use catga_discovery::Endpoint;
use crossbeam_utils::CachePadded;

use crate::agent::AgentThread;
use crate::builder::{Plan, StartError};
use crate::client::{Client, ClientShared};
use crate::limits::DROP_DRAIN;
use crate::nodes::{Board, Nodes, Watch};
use crate::placement::Placement;
use crate::ring::doorbell::{Doorbell, EventFd};
use crate::runtime::sockets::{Listener, local_endpoint};
use crate::shard::thread::{Report, Services, ShardThread};
use crate::shard::{Control, Seed};
use crate::signals::Signals;
use crate::stats::{ShardCounters, Stats};
use crate::stop::{EndNote, Note, StopReport, Threads};
use crate::time::Time;
use crate::watchdog::Watchdog;

/// Which of the engines of this process.
pub(crate) type EngineId = u64;

/// How the shards of an engine wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RuntimeKind {
    /// Each shard is the task of a glommio executor.
    Glommio,
    /// In epoll.
    Epoll,
}

impl fmt::Display for RuntimeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Glommio => "io_uring (glommio)",
            Self::Epoll => "epoll",
        })
    }
}

/// A running engine. Dropping it stops it, with a short time to drain; [`stop`](Engine::stop) lets you say how long.
#[must_use = "dropping the engine stops it"]
pub struct Engine {
    shared: Arc<ClientShared>,
    control: Arc<Control>,
    doorbells: Vec<Arc<Doorbell<EventFd>>>,
    counters: Vec<Arc<CachePadded<ShardCounters>>>,
    watchdog: Option<Watchdog>,
    agent: Option<AgentThread>,
    board: Arc<Board>,
    threads: Threads,
    /// Who stops the engine hears here how far it is. A lock that is never taken: it makes the engine `Sync`.
    notes: Mutex<mpsc::Receiver<Note>>,
    note: mpsc::Sender<Note>,
    endpoint: Option<Endpoint>,
    placement: Placement,
    drain: Duration,
    runtime: RuntimeKind,
    fallback: Option<String>,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("shards", &self.doorbells.len())
            .field("runtime", &self.runtime)
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}

impl Engine {
    /// Starts to describe an engine.
    pub fn builder() -> crate::Builder {
        crate::Builder::new()
    }

    /// A handle for calls from any thread.
    #[must_use]
    pub fn client(&self) -> Client {
        Client::new(self.shared.clone())
    }

    /// How many shards it has.
    #[must_use]
    pub fn shards(&self) -> usize {
        self.doorbells.len()
    }

    /// Where it listens for other nodes, if it is part of a cluster; with the port that the system chose if it was asked
    /// for port 0.
    #[must_use]
    pub fn endpoint(&self) -> Option<Endpoint> {
        self.endpoint.clone()
    }

    /// On which cores its shards run, and why there are so many. Prints as a table.
    #[must_use]
    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    /// How its shards wait.
    #[must_use]
    pub fn runtime(&self) -> RuntimeKind {
        self.runtime
    }

    /// Why it does not use glommio, which needs io_uring, if it would have liked to: the cause, and the cure.
    #[must_use]
    pub fn fallback(&self) -> Option<&str> {
        self.fallback.as_deref()
    }

    /// What happened on each shard so far. Costs the shards nothing.
    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats::of(&self.counters, self.board.stats())
    }

    /// The nodes of the cluster as they are now, this one among them; none if the engine is not part of a cluster.
    ///
    /// A lock that is held for a moment, and a reference count. Costs the shards nothing.
    ///
    /// ```
    /// # use catga::prelude::*;
    /// use catga::{List, NodeState};
    ///
    /// let cluster = List::of(["b=127.0.0.1:5002"]).node("a", "127.0.0.1:0");
    /// let engine = Engine::builder().shards(1).cluster(cluster).start()?;
    /// let nodes = engine.nodes();
    /// assert_eq!(nodes.find("a").map(|member| member.state), Some(NodeState::Up));
    /// for member in nodes.iter() {
    ///     println!("{member}"); // a at 127.0.0.1:40123, 1 shard, 0 messages, up
    /// }
    /// # Ok::<(), StartError>(())
    /// ```
    #[must_use]
    pub fn nodes(&self) -> Nodes {
        self.board.nodes()
    }

    /// Follows the nodes of the cluster: [`Watch::next`] waits for a change, [`Watch::next_within`] does so on a thread
    /// without async. Changes that come after this call are seen, those before it are in [`Watch::nodes`].
    ///
    /// ```
    /// # use catga::prelude::*;
    /// let engine = Engine::builder().shards(1).start()?;
    /// let mut watch = engine.watch();
    /// let watching = std::thread::spawn(move || {
    ///     while let Some(nodes) = pollster::block_on(watch.next()) {
    ///         println!("now there are {} nodes:\n{nodes}", nodes.len());
    ///     }
    /// });
    /// engine.stop(std::time::Duration::from_secs(1));
    /// assert!(watching.join().is_ok(), "the end of the engine ends the watch");
    /// # Ok::<(), StartError>(())
    /// ```
    #[must_use]
    pub fn watch(&self) -> Watch {
        self.board.watch()
    }

    /// Stops: takes no new calls, lets what is in flight end for at most `within`, then ends what is left, closes the lanes
    /// and joins the threads. Every call ends in an outcome.
    ///
    /// Returns after `within` and [`STOP_GRACE`](crate::limits::STOP_GRACE) at the latest, even if a handler does not: the
    /// report names its shard.
    pub fn stop(mut self, within: Duration) -> StopReport {
        self.shut_down(within)
    }

    /// Waits for SIGTERM or SIGINT, then stops: what is in flight may end for as long as
    /// [`Builder::drain`](crate::Builder::drain) says. A second signal ends the draining at once.
    ///
    /// # Errors
    /// [`StartError::Signals`] if the handlers of the signals cannot be installed; the engine has stopped.
    pub fn run(self) -> Result<StopReport, StartError> {
        let signals = Signals::install().map_err(StartError::Signals)?;
        Ok(self.run_until(&signals))
    }

    pub(crate) fn run_until(mut self, signals: &Signals) -> StopReport {
        match signals.wait() {
            Ok(_) => tracing::info!(within = ?self.drain, "a signal: the engine stops"),
            Err(error) => tracing::error!(%error, "cannot wait for signals: the engine stops"),
        }
        let (control, hurry) = (self.control.clone(), self.note.clone());
        std::thread::scope(|scope| {
            let second =
                std::thread::Builder::new().name("catga-signals".into()).spawn_scoped(scope, move || {
                    if signals.wait().is_ok_and(|signal| signal) {
                        tracing::warn!("a second signal: what is in flight is ended");
                        control.drain(Time::read());
                        // The engine waits for notes until the scope ends.
                        let _ = hurry.send(Note::Hurry);
                    }
                });
            if let Err(error) = second {
                tracing::warn!(%error, "no thread for a second signal: it will not cut the draining short");
            }
            let report = self.shut_down(self.drain);
            if let Err(error) = signals.end() {
                tracing::error!(%error, "the wait for a second signal goes on until there is one");
            }
            tracing::info!("{report}");
            report
        })
    }

    fn shut_down(&mut self, within: Duration) -> StopReport {
        let (start, before) = (Time::read(), self.stats());
        self.control.drain(start + within);
        for doorbell in &self.doorbells {
            doorbell.ring();
        }
        let notes = self.notes.get_mut().unwrap_or_else(PoisonError::into_inner);
        let lost = self.threads.join(notes, &self.control);
        let mut turned_away = (0, 0);
        for inbox in &self.shared.inboxes {
            drop(inbox.close());
            let (calls, events) = inbox.turned_away();
            turned_away = (turned_away.0 + calls, turned_away.1 + events);
        }
        self.watchdog = None;
        self.agent = None;
        self.board.end();
        self.shared.calls.abandon();
        StopReport::of(&before, self.stats(), turned_away, lost, Time::read().since(start))
    }

    pub(crate) fn start(plan: Plan) -> Result<Self, StartError> {
        let Plan {
            seeds,
            services,
            mut listener,
            placement,
            drain,
            runtime,
            fallback,
            control,
            doorbells,
            counters,
            pulses,
            shared,
            agent,
        } = plan;
        let endpoint = match &listener {
            Some(listener) => Some(local_endpoint(listener).map_err(StartError::Listen)?),
            None => None,
        };
        let watchdog = Some(Watchdog::start(shared.clone(), pulses).map_err(StartError::Thread)?);
        let board = agent.as_ref().map(|agent| agent.board().clone()).unwrap_or_default();
        let agent = agent.map(AgentThread::start).transpose().map_err(StartError::Thread)?;
        let (note, notes) = mpsc::channel();
        let mut engine = Self {
            shared,
            control,
            doorbells,
            counters,
            threads: Threads::default(),
            watchdog,
            agent,
            board,
            note,
            notes: Mutex::new(notes),
            endpoint,
            placement,
            drain,
            runtime,
            fallback,
        };
        let started = engine.start_shards(seeds, &services, &mut listener);
        if let Err(error) = started {
            // Those that did start have nothing in flight.
            engine.shut_down(Duration::ZERO);
            return Err(error);
        }
        Ok(engine)
    }

    fn start_shards(
        &mut self,
        seeds: Vec<Seed>,
        services: &Services,
        listener: &mut Option<Listener>,
    ) -> Result<(), StartError> {
        let (report, reports) = mpsc::channel();
        for (seed, place) in seeds.into_iter().zip(self.placement.shards()) {
            let ended = EndNote(seed.id, self.note.clone());
            let thread = ShardThread {
                name: format!("catga-{}", seed.id.0),
                seed,
                services: services.clone(),
                listener: listener.take(),
                cpu: place.core,
                idle: self.placement.idle(),
                runtime: self.runtime,
                report: Report::new(report.clone()),
            };
            let spawned = std::thread::Builder::new().name(thread.name.clone()).spawn(move || {
                let _ended = ended;
                thread.run();
            });
            self.threads.push(spawned.map_err(StartError::Thread)?);
        }
        drop(report);
        for _ in 0..self.threads.len() {
            reports.recv().unwrap_or(Err(StartError::ShardDied))?;
        }
        Ok(())
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if !self.threads.is_empty() {
            let report = self.shut_down(DROP_DRAIN);
            if !report.drained {
                tracing::warn!("an engine was dropped and {report}");
            }
        }
    }
}
