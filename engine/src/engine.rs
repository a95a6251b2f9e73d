//! The engine's handle: starts the shards, hands out clients, stops the shards.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_utils::CachePadded;

use crate::builder::{Plan, StartError};
use crate::client::{Client, ClientShared};
use crate::context::ShardId;
use crate::limits::DROP_DRAIN;
use crate::ring::doorbell::{Doorbell, EventFd};
use crate::runtime::drive::{Idle, drive};
use crate::runtime::epoll::EpollWait;
use crate::runtime::sockets::{Sockets, local_endpoint};
use crate::shard::{Control, Seed, Shard};
use crate::stats::{ShardCounters, Stats};
use crate::time::Time;
use crate::watchdog::Watchdog;

/// Which of the engines of this process.
pub(crate) type EngineId = u64;

/// How the shards of an engine wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RuntimeKind {
    /// In io_uring, through glommio.
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
    threads: Vec<JoinHandle<()>>,
    watchdog: Option<Watchdog>,
    endpoint: Option<SocketAddr>,
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
    pub fn endpoint(&self) -> Option<SocketAddr> {
        self.endpoint
    }

    /// How its shards wait.
    #[must_use]
    pub fn runtime(&self) -> RuntimeKind {
        self.runtime
    }

    /// Why it does not use io_uring, if it would have liked to: the cause, and the cure.
    #[must_use]
    pub fn fallback(&self) -> Option<&str> {
        self.fallback.as_deref()
    }

    /// What happened on each shard so far. Costs the shards nothing.
    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats::of(&self.counters)
    }

    /// Stops: takes no new calls, lets what is in flight end for at most `within`, then ends what is left, closes the lanes
    /// and joins the threads. Every call ends in an outcome. Returns the last counters.
    pub fn stop(mut self, within: Duration) -> Stats {
        self.shut_down(within);
        self.stats()
    }

    fn shut_down(&mut self, within: Duration) {
        if self.threads.is_empty() {
            return;
        }
        self.control.drain(Time::read() + within);
        for doorbell in &self.doorbells {
            doorbell.ring();
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a shard's thread ended by a panic");
            }
        }
        for inbox in &self.shared.inboxes {
            inbox.close();
        }
        self.watchdog = None;
    }

    pub(crate) fn start(plan: Plan) -> Result<Self, StartError> {
        let Plan {
            seeds,
            services,
            listener,
            cores,
            idle,
            runtime,
            fallback,
            control,
            doorbells,
            counters,
            pulses,
            shared,
        } = plan;
        let endpoint = match &listener {
            Some(listener) => Some(local_endpoint(listener).map_err(StartError::Listen)?),
            None => None,
        };
        let watchdog = Some(Watchdog::start(shared.clone(), pulses).map_err(StartError::Thread)?);
        let threads = Vec::new();
        let mut engine =
            Self { shared, control, doorbells, counters, threads, watchdog, endpoint, runtime, fallback };
        let (report, reports) = mpsc::channel::<Result<(), StartError>>();
        let mut listener = listener;
        for (seed, cpu) in seeds.into_iter().zip(cores) {
            let thread = ShardThread {
                name: format!("catga-{}", seed.id.0),
                seed,
                services: services.clone(),
                listener: listener.take(),
                cpu,
                idle,
                runtime,
                report: report.clone(),
            };
            let spawned = std::thread::Builder::new().name(thread.name.clone()).spawn(move || thread.run());
            engine.threads.push(spawned.map_err(StartError::Thread)?);
        }
        drop(report);
        // Dropping the engine on an error stops the shards that did start.
        for _ in 0..engine.threads.len() {
            reports.recv().unwrap_or(Err(StartError::ShardDied))?;
        }
        Ok(engine)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shut_down(DROP_DRAIN);
    }
}

/// Binds the services of one shard to fresh instances.
pub(crate) type Services =
    Arc<dyn Fn(ShardId, &crate::service::BindContext) -> crate::shard::core::Handlers + Send + Sync>;

/// What one shard's thread does.
struct ShardThread {
    name: String,
    seed: Seed,
    services: Services,
    listener: Option<std::os::fd::OwnedFd>,
    cpu: usize,
    idle: Idle,
    runtime: RuntimeKind,
    report: mpsc::Sender<Result<(), StartError>>,
}

impl ShardThread {
    fn run(self) {
        let Self { name, seed, services, listener, cpu, idle, runtime, report } = self;
        let sockets = match Sockets::new(&seed.doorbell, listener) {
            Ok(sockets) => sockets,
            Err(error) => return drop(report.send(Err(StartError::Sockets(error)))),
        };
        let epoll = sockets.epoll();
        let make = |report: &mpsc::Sender<Result<(), StartError>>| {
            let (id, bind) = (seed.id, seed.bind.clone());
            let made = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                Shard::new(seed, |_| services(id, &bind), Box::new(sockets))
            }));
            let outcome = if made.is_ok() { Ok(()) } else { Err(StartError::ServicePanicked { shard: id }) };
            // The starter waits for exactly one report from each shard.
            let _ = report.send(outcome);
            made.ok()
        };
        match runtime {
            RuntimeKind::Epoll => {
                if !core_affinity::set_for_current(core_affinity::CoreId { id: cpu }) {
                    let _ = report.send(Err(StartError::NoSuchCore { core: cpu }));
                    return;
                }
                if let Some(shard) = make(&report) {
                    crate::runtime::epoll::run(drive(shard, idle, EpollWait(epoll)));
                }
            }
            #[cfg(feature = "glommio")]
            RuntimeKind::Glommio => {
                let ran = crate::runtime::glommio::run(cpu, &name, epoll, |wait| {
                    let shard = make(&report);
                    async move {
                        if let Some(shard) = shard {
                            drive(shard, idle, wait).await;
                        }
                    }
                });
                if let Err(error) = ran {
                    let _ = report.send(Err(StartError::Runtime(error)));
                }
            }
            #[cfg(not(feature = "glommio"))]
            RuntimeKind::Glommio => {
                let _ = report.send(Err(StartError::Runtime(format!("{name}: built without glommio"))));
            }
        }
    }
}
