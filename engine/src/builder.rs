//! The description of an engine, and the checks before it starts.

use std::any::Any;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_utils::CachePadded;

use crate::agent::{Agent, wire};
use crate::client::{ClientShared, inbox::Inbox};
use crate::cluster::{List, Place};
use crate::context::ShardId;
use crate::description::{Service, bind_all, check};
use crate::engine::{Engine, EngineId, RuntimeKind};
use crate::lane::key::{KEY_BYTES_MAX, KEY_BYTES_MIN};
use crate::limits::{CALLS_MAX, DEADLINE, DRAIN, INBOX_CALLS, SHARDS_MAX, TASKS_PER_ROUTE};
use crate::panics::{discard, text_of};
use crate::placement::{Machine, Placement, Wish};
use crate::ring::doorbell::{Doorbell, EventFd};
use crate::route::RouteTable;
use crate::runtime::drive::Idle;
use crate::runtime::sockets::Listener;
use crate::service::{BindContext, Routes};
use crate::shard::mesh::mesh;
use crate::shard::thread::Services;
use crate::shard::{Control, Seed};
use crate::signals::Signals;
use crate::stats::ShardCounters;
use crate::stop::StopReport;
use crate::tasks::Ready;
use crate::watchdog::Pulse;

/// Which runtime the shards use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Runtime {
    /// glommio if io_uring is usable, else epoll; the reason is logged and can be asked for ([`Engine::fallback`]).
    #[default]
    Auto,
    /// glommio, or a start error.
    Glommio,
    /// epoll.
    Epoll,
}

/// Why an engine did not start. Nothing of it runs.
///
/// Its `Debug` says the same as its `Display`, because that is what is printed when `main` or a test returns it.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// No shards.
    #[error("an engine has at least one shard and at most {SHARDS_MAX}; {0} were asked for")]
    Shards(usize),
    /// A core that this process may not run on.
    #[error("core {core} does not exist or is not in this process's affinity mask; see `taskset -p`")]
    NoSuchCore {
        /// The core that was asked for.
        core: usize,
    },
    /// A service on a shard that the engine does not have.
    #[error("the service {service} is to run on shard {shard}, but the engine has shards 0 to {last} only")]
    NoSuchShard {
        /// The service.
        service: &'static str,
        /// The shard that was asked for.
        shard: u16,
        /// The last shard that exists.
        last: u16,
    },
    /// Two services that handle one request.
    #[error("the request {message} has two handlers, in {first} and in {second}; a request has one")]
    TwoHandlers {
        /// The request.
        message: String,
        /// One service.
        first: &'static str,
        /// The other.
        second: &'static str,
    },
    /// Two message types with one name and version.
    #[error(
        "the message types {first} and {second} have one id (name and version {version}); give one of them another `name` or `version`"
    )]
    SameId {
        /// One type's message name.
        first: String,
        /// The other's.
        second: String,
        /// Their version.
        version: u16,
    },
    /// A service's constructor or its routes panicked.
    #[error("a service panicked while {shard} was made: {panic}")]
    ServicePanicked {
        /// Where.
        shard: ShardId,
        /// What it said.
        panic: String,
    },
    /// The node's own name or the list of nodes is not valid.
    #[error("cluster: {0}")]
    Cluster(String),
    /// A bind off loopback by a node without a cluster key, and without a decision that this is wanted.
    #[error(
        "{endpoint} is not a loopback address, and the cluster has no key: anyone who reaches it could call this node. \
         Give all nodes the same `.key(..)`, bind to 127.0.0.1, or say `.insecure()` if the network is closed"
    )]
    OffLoopback {
        /// The endpoint.
        endpoint: SocketAddr,
    },
    /// The endpoint cannot be listened on.
    #[error("could not listen on {0}")]
    Listen(#[source] io::Error),
    /// The sockets of a shard could not be made.
    #[error(
        "could not make a shard's epoll or eventfd: {0}; is the limit of open files too low (`ulimit -n`)?"
    )]
    Sockets(#[source] io::Error),
    /// A thread could not be started.
    #[error("could not start a thread: {0}")]
    Thread(#[source] io::Error),
    /// The handlers of SIGTERM and SIGINT could not be installed.
    #[error("could not install the handlers of SIGTERM and SIGINT, which `run` waits for: {0}")]
    Signals(#[source] io::Error),
    /// The runtime that was asked for cannot be had.
    #[error("the runtime that was asked for is not usable: {0}")]
    Runtime(String),
    /// A shard's thread ended before it was ready.
    #[error("a shard's thread ended before it was ready; its panic is in the log")]
    ShardDied,
    /// A service on no shard.
    #[error(
        "the service {service} is to run on no shard, so nothing would handle {message}; name at least one shard in \
         `service_on`, or leave the service out"
    )]
    NoShardNamed {
        /// The service.
        service: &'static str,
        /// One of its messages.
        message: String,
    },
    /// A hook about keys in a service whose messages have none.
    #[error(
        "the service {service} has the hook `{hook}`, but handles no message with a key, so it owns none; give a message \
         of its a `key`, or drop the hook"
    )]
    HookWithoutKeys {
        /// The service.
        service: &'static str,
        /// The hook.
        hook: &'static str,
    },
    /// A hook about keys in a service that does not own one and the same part of them for all its messages.
    #[error(
        "the service {service} has the hook `{hook}`, but the keys of {first} and {second} are divided among different \
         shards, because other services handle one of them too; put those on the same shards, or take the handlers apart"
    )]
    KeysDivided {
        /// The service.
        service: &'static str,
        /// The hook.
        hook: &'static str,
        /// One message.
        first: String,
        /// The other.
        second: String,
    },
    /// Periodic work with a period of zero.
    #[error("the service {service} has an `every` with a period of zero; it would do nothing else")]
    NoPeriod {
        /// The service.
        service: &'static str,
    },
    /// A cluster key that is too short or too long.
    #[error(
        "the cluster key has {bytes} bytes, and must have {KEY_BYTES_MIN} to {KEY_BYTES_MAX}; make one with \
         `head -c 32 /dev/urandom | base64`, and give all nodes the same"
    )]
    ClusterKey {
        /// How long it is.
        bytes: usize,
    },
}

impl StartError {
    /// A constructor of a service, or what declares its handlers, has panicked on this shard.
    pub(crate) fn service_panicked(shard: ShardId, panic: Box<dyn Any + Send>) -> Self {
        let text = text_of(&*panic).to_owned();
        discard(panic);
        Self::ServicePanicked { shard, panic: text }
    }
}

impl std::fmt::Debug for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

/// Describes an engine. Made by [`Engine::builder`].
#[must_use = "an engine runs when it is started"]
pub struct Builder {
    services: Vec<Service>,
    wish: Wish,
    calls_max: u32,
    tasks_max: usize,
    deadline: Duration,
    drain: Duration,
    cluster: Option<List>,
}

impl std::fmt::Debug for Builder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Builder")
            .field("services", &self.services.iter().map(|service| service.name).collect::<Vec<_>>())
            .field("placement", &self.wish)
            .finish_non_exhaustive()
    }
}

impl Builder {
    pub(crate) fn new() -> Self {
        Self {
            services: Vec::new(),
            wish: Wish::default(),
            calls_max: CALLS_MAX,
            tasks_max: TASKS_PER_ROUTE,
            deadline: DEADLINE,
            drain: DRAIN,
            cluster: None,
        }
    }

    /// A service on every shard: `new` makes each shard's instance, on that shard's thread; `routes` names the handlers.
    pub fn service<S, New, Declare>(self, new: New, routes: Declare) -> Self
    where
        S: 'static,
        New: Fn(ShardId) -> S + Send + Sync + 'static,
        Declare: Fn(Routes<S>) -> Routes<S> + Send + Sync + 'static,
    {
        self.add(None, new, routes)
    }

    /// A service on the named shards only.
    pub fn service_on<S, New, Declare>(
        self,
        shards: impl IntoIterator<Item = u16>,
        new: New,
        routes: Declare,
    ) -> Self
    where
        S: 'static,
        New: Fn(ShardId) -> S + Send + Sync + 'static,
        Declare: Fn(Routes<S>) -> Routes<S> + Send + Sync + 'static,
    {
        self.add(Some(shards.into_iter().collect()), new, routes)
    }

    fn add<S, New, Declare>(mut self, shards: Option<Vec<u16>>, new: New, routes: Declare) -> Self
    where
        S: 'static,
        New: Fn(ShardId) -> S + Send + Sync + 'static,
        Declare: Fn(Routes<S>) -> Routes<S> + Send + Sync + 'static,
    {
        self.services.push(Service::new(shards, new, routes));
        self
    }

    /// How many shards. Default: one for each core that the process may use, but no more than the whole CPUs of its
    /// container's quota. More than cores is allowed, and slow.
    pub fn shards(mut self, shards: usize) -> Self {
        self.wish.shards = Some(shards);
        self
    }

    /// Which cores, one for each shard, in this order. Default: distinct physical cores before second hardware threads,
    /// and neighbours behind one level 3 cache.
    pub fn cores(mut self, cores: impl IntoIterator<Item = usize>) -> Self {
        self.wish.cores = Some(cores.into_iter().collect());
        self
    }

    /// What shards do when there is nothing to do. Default: [`Idle::Park`].
    pub fn idle(mut self, idle: Idle) -> Self {
        self.wish.idle = idle;
        self
    }

    /// Which runtime. Default: [`Runtime::Auto`].
    pub fn runtime(mut self, runtime: Runtime) -> Self {
        self.wish.runtime = runtime;
        self
    }

    /// How many calls each shard may have in flight. Default: 4,096. Taken as the nearest number from 1 to 1,048,576.
    pub fn calls_max(mut self, calls: u32) -> Self {
        self.calls_max = calls.clamp(1, 1 << 20);
        self
    }

    /// How many async handlers may run at once for each route of each shard. Default: 1,024. Taken as the nearest number
    /// from 1 to 1,048,576; each shard has 16 bytes for each of them and each route from the start.
    pub fn tasks_max(mut self, tasks: usize) -> Self {
        self.tasks_max = tasks.clamp(1, 1 << 20);
        self
    }

    /// The time that a call may take unless it says otherwise. Default: 5 s.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// How long [`run`](Self::run) lets what is in flight end, after a signal. Default: 5 s.
    pub fn drain(mut self, within: Duration) -> Self {
        self.drain = within;
        self
    }

    /// Makes the engine a node of a cluster.
    pub fn cluster(mut self, cluster: List) -> Self {
        self.cluster = Some(cluster);
        self
    }

    /// Starts the engine. Returns when every shard is ready; installs no signal handler.
    ///
    /// # Errors
    /// [`StartError`]: nothing was started.
    pub fn start(self) -> Result<Engine, StartError> {
        let placement = self.placement()?;
        placement.warn();
        let (runtime, fallback) = choose_runtime(self.wish.runtime)?;
        Engine::start(self.plan(placement.with_runtime(runtime), runtime, fallback)?)
    }

    /// Starts the engine, waits for SIGTERM or SIGINT, and stops: what is in flight may end for as long as
    /// [`drain`](Self::drain) says. A second signal ends the draining at once. For a client before the wait:
    /// [`start`](Self::start), then [`Engine::run`].
    ///
    /// # Errors
    /// [`StartError`]: nothing was started.
    pub fn run(self) -> Result<StopReport, StartError> {
        // Before the start: a signal during it stops the engine as any other.
        let signals = Signals::install().map_err(StartError::Signals)?;
        Ok(self.start()?.run_until(&signals))
    }

    /// How many shards there would be, on which cores, and why: what [`start`](Self::start) would do here and now. Prints
    /// as a table.
    ///
    /// # Errors
    /// [`StartError::Shards`] or [`StartError::NoSuchCore`], as a start would.
    pub fn placement(&self) -> Result<Placement, StartError> {
        Placement::choose(&self.wish, &Machine::here())
    }

    /// Checks everything that can be checked before a thread is started.
    pub(crate) fn plan(
        self,
        placement: Placement,
        runtime: RuntimeKind,
        fallback: Option<String>,
    ) -> Result<Plan, StartError> {
        let shards = placement.shards().len() as u16; // at most `SHARDS_MAX`
        let routes = Arc::new(check(&self.services, shards)?);
        let (listener, place) = match &self.cluster {
            Some(list) => {
                list.open(routes.contracts(), shards).map(|(open, place)| (Some(open), Some(place)))?
            }
            None => (None, None),
        };
        self.plan_at(placement, routes, listener, place, (runtime, fallback))
    }

    /// As [`plan`](Self::plan) for a node of a simulation, which has no socket and no clock.
    #[cfg(test)]
    pub(crate) fn plan_simulated(
        self,
        placement: Placement,
        endpoint: catga_discovery::Endpoint,
        incarnation: u64,
    ) -> Result<Plan, StartError> {
        let shards = placement.shards().len() as u16;
        let routes = Arc::new(check(&self.services, shards)?);
        let place = match &self.cluster {
            Some(list) => {
                let mut place = list.place(routes.contracts(), shards, endpoint)?;
                place.own.incarnation = catga_discovery::Incarnation(incarnation);
                place.lanes.greeting.incarnation = place.own.incarnation;
                Some(place)
            }
            None => None,
        };
        self.plan_at(placement, routes, None, place, (RuntimeKind::Epoll, None))
    }

    fn plan_at(
        self,
        placement: Placement,
        routes: Arc<RouteTable>,
        listener: Option<Listener>,
        place: Option<Place>,
        (runtime, fallback): (RuntimeKind, Option<String>),
    ) -> Result<Plan, StartError> {
        let shards = placement.shards().len() as u16;
        let lanes = place.as_ref().map(|place| place.lanes.clone());
        let (agent, memberships) = match place {
            Some(Place { own, targets, dns, .. }) => {
                let (agent, memberships) = wire(own, targets, dns, shards);
                (Some(agent), memberships)
            }
            None => (None, Vec::new()),
        };
        let mut memberships = memberships.into_iter();
        let bell = if self.wish.idle == Idle::Spin { Doorbell::of_sleepless } else { Doorbell::new };
        let doorbells = (0..shards)
            .map(|_| EventFd::new().map(|signal| Arc::new(bell(signal))).map_err(StartError::Sockets))
            .collect::<Result<Vec<_>, _>>()?;
        let tasks_total = self.tasks_max * routes.len().max(1);
        let inboxes: Box<[Arc<Inbox>]> =
            doorbells.iter().map(|doorbell| Arc::new(Inbox::new(INBOX_CALLS, doorbell.clone()))).collect();
        let control = Arc::new(Control::default());
        let counters: Vec<_> =
            doorbells.iter().map(|_| Arc::new(CachePadded::new(ShardCounters::default()))).collect();
        let pulses: Vec<_> = doorbells.iter().map(|_| Arc::new(CachePadded::new(Pulse::default()))).collect();
        let seeds = mesh(&doorbells)
            .into_iter()
            .zip(&doorbells)
            .zip(counters.iter().zip(&pulses))
            .enumerate()
            .map(|(index, ((ends, doorbell), (counters, pulse)))| Seed {
                id: ShardId(index as u16),
                routes: routes.clone(),
                counters: counters.clone(),
                pulse: pulse.clone(),
                ends,
                inboxes: inboxes.clone(),
                doorbell: doorbell.clone(),
                bind: BindContext {
                    tasks_max: self.tasks_max,
                    ready: Arc::new(Ready::new(tasks_total, doorbell.clone())),
                },
                control: control.clone(),
                lanes: lanes.clone(),
                membership: memberships.next(),
                calls_max: self.calls_max,
                deadline: self.deadline,
            })
            .collect();
        let node = lanes.map(|setup| setup.greeting.node);
        let shared = Arc::new(ClientShared::new(engine_id(), inboxes, routes.clone(), self.deadline, node));
        let services = bind_all(self.services, routes);
        Ok(Plan {
            seeds,
            services,
            listener,
            placement,
            drain: self.drain,
            runtime,
            fallback,
            control,
            doorbells,
            counters,
            pulses,
            shared,
            agent,
        })
    }
}

/// All that is needed to start, checked.
pub(crate) struct Plan {
    pub(crate) seeds: Vec<Seed>,
    pub(crate) services: Services,
    pub(crate) listener: Option<Listener>,
    pub(crate) placement: Placement,
    pub(crate) drain: Duration,
    pub(crate) runtime: RuntimeKind,
    pub(crate) fallback: Option<String>,
    pub(crate) control: Arc<Control>,
    pub(crate) doorbells: Vec<Arc<Doorbell<EventFd>>>,
    pub(crate) counters: Vec<Arc<CachePadded<ShardCounters>>>,
    pub(crate) pulses: Vec<Arc<CachePadded<Pulse>>>,
    pub(crate) shared: Arc<ClientShared>,
    pub(crate) agent: Option<Agent>,
}

fn engine_id() -> EngineId {
    use catga_discovery::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed) // a ticket: partners with nothing
}

fn choose_runtime(wanted: Runtime) -> Result<(RuntimeKind, Option<String>), StartError> {
    if wanted == Runtime::Epoll {
        return Ok((RuntimeKind::Epoll, None));
    }
    match crate::runtime::io_uring_usable() {
        Ok(()) => Ok((RuntimeKind::Glommio, None)),
        Err(reason) if wanted == Runtime::Glommio => Err(StartError::Runtime(reason)),
        Err(reason) => {
            tracing::warn!(reason, "io_uring is not usable; the engine does without glommio");
            Ok((RuntimeKind::Epoll, Some(reason)))
        }
    }
}
