//! A shard: one pinned thread, what it owns, and its turn.
//!
//! [`turn`] is the loop body; [`core`] is what handlers and calls share with it; [`mesh`] holds the rings to the other
//! shards; [`reply_to`] says where answers go. A shard does no system call of its own and does not know how its
//! runtime waits: it is given the time and a [`World`](crate::runtime::World).

pub(crate) mod core;
mod gather;
pub(crate) mod lanes;
pub(crate) mod mesh;
pub(crate) mod reply_to;
pub(crate) mod thread;
mod turn;
pub(crate) mod window;

pub(crate) use turn::Turn;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use catga_discovery::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use crossbeam_utils::CachePadded;

use crate::agent::Membership;
use crate::call::table::LaneKey;
use crate::client::inbox::Inbox;
use crate::context::{Context, ShardId};
use crate::lane::lanes::{Ended, LaneSetup, Lanes};
use crate::limits::STRANGER_LINES_MAX;
use crate::log_limit::LogLimit;
use crate::panics::{discard, text_of};
use crate::ring::doorbell::{Doorbell, EventFd};
use crate::route::RouteTable;
use crate::runtime::{Token, World};
use crate::service::BindContext;
use crate::shard::core::{Core, Handlers};
use crate::shard::gather::Gather;
use crate::shard::mesh::{Arrivals, Ends};
use crate::stats::ShardCounters;
use crate::tasks::Ready;
use crate::time::Time;
use crate::watchdog::Pulse;

/// What the engine's handle tells all its shards.
#[derive(Debug)]
pub(crate) struct Control {
    phase: AtomicU8,
    /// Nanoseconds: when draining has to be over.
    drain_until: AtomicU64,
    /// Shards that take nothing new and have nothing to do, or are gone.
    quiet: AtomicUsize,
}

const RUNNING: u8 = 0;
const DRAINING: u8 = 1;

impl Default for Control {
    fn default() -> Self {
        let drain_until = AtomicU64::new(Time::NEVER.as_nanos());
        Self { phase: AtomicU8::new(RUNNING), drain_until, quiet: AtomicUsize::new(0) }
    }
}

impl Control {
    /// No new calls; what is in flight may end until `until`. Said again, it can only shorten the time.
    pub(crate) fn drain(&self, until: Time) {
        self.drain_until.fetch_min(until.as_nanos(), Ordering::Relaxed);
        // Release: pairs with the Acquire in `draining`, which reads the deadline afterwards.
        self.phase.store(DRAINING, Ordering::Release);
    }

    /// When draining has to be over, if the engine is stopping.
    #[inline]
    pub(crate) fn draining(&self) -> Option<Time> {
        // Acquire: pairs with the Release in `drain`. While the engine runs nobody writes here, so the line is shared.
        (self.phase.load(Ordering::Acquire) != RUNNING)
            .then(|| Time::from_nanos(self.drain_until.load(Ordering::Relaxed)))
    }

    /// A shard has become quiet, or has found something to do again. A shard may only end when all are quiet: the others
    /// may send it something until then.
    fn set_quiet(&self, quiet: bool) {
        // Release: pairs with the Acquire in `quiet`. What the shard put into rings before is seen by who sees it quiet.
        if quiet {
            self.quiet.fetch_add(1, Ordering::Release);
        } else {
            self.quiet.fetch_sub(1, Ordering::Release);
        }
    }

    fn quiet(&self) -> usize {
        self.quiet.load(Ordering::Acquire) // pairs with the Release in `set_quiet`
    }
}

/// What a shard is made from; it can be sent to the thread that will be the shard.
pub(crate) struct Seed {
    pub(crate) id: ShardId,
    pub(crate) routes: Arc<RouteTable>,
    pub(crate) counters: Arc<CachePadded<ShardCounters>>,
    pub(crate) pulse: Arc<CachePadded<Pulse>>,
    pub(crate) ends: Ends,
    pub(crate) inboxes: Box<[Arc<Inbox>]>,
    pub(crate) doorbell: Arc<Doorbell<EventFd>>,
    pub(crate) bind: BindContext,
    pub(crate) control: Arc<Control>,
    pub(crate) lanes: Option<LaneSetup>,
    /// What it hears from the agent, and where it tells it of its lanes; with a cluster.
    pub(crate) membership: Option<Membership>,
    pub(crate) calls_max: u32,
    pub(crate) deadline: Duration,
}

/// As many calls of foreign threads are worth a look into the inbox; more are not waited for.
const INBOX_BATCH: u64 = 24;

/// A shard, on its thread.
pub(crate) struct Shard {
    core: Rc<Core>,
    ctx: Context,
    arrivals: Vec<Option<Arrivals>>,
    inboxes: Box<[Arc<Inbox>]>,
    doorbell: Arc<Doorbell<EventFd>>,
    ready: Arc<Ready>,
    control: Arc<Control>,
    world: Box<dyn World>,
    membership: Option<Membership>,
    /// When tasks were last looked over for expiry.
    tasks_swept: Time,
    /// When the last turn began, if the shard has not slept since.
    turned: Option<Time>,
    /// When the next turn should begin at the latest: at once, or when the shard has slept long enough.
    expected: Time,
    /// How much later than expected this turn has begun.
    paused: Duration,
    /// When to look into the inbox.
    inbox_gather: Gather,
    /// When the world was last asked which sockets are ready.
    polled: Time,
    tokens: Vec<Token>,
    due: Vec<LaneKey>,
    ended: Vec<Ended>,
    strangers_logged: LogLimit,
    /// It takes nothing new: the engine is stopping.
    refusing: bool,
    /// It has told the others that it has nothing to do.
    quiet: bool,
    /// It has ended what had not ended, and only writes what is unsent.
    closing: bool,
    stopped: bool,
}

impl Shard {
    pub(crate) fn new(
        mut seed: Seed,
        handlers: impl FnOnce(&Rc<Core>) -> Handlers,
        world: Box<dyn World>,
    ) -> Self {
        let lanes = Lanes::new(seed.id.0, seed.lanes.take());
        let outgoing = std::mem::take(&mut seed.ends.outgoing);
        let core = Core::new(&seed, outgoing, lanes);
        let membership = seed.membership.take();
        let Seed { ends, inboxes, doorbell, bind, control, .. } = seed;
        core.install(handlers(&core));
        Self {
            ctx: Context::new(core.clone(), Time::NEVER),
            core,
            arrivals: ends.arrivals,
            inboxes,
            doorbell,
            ready: bind.ready,
            control,
            world,
            membership,
            tasks_swept: Time::ZERO,
            turned: None,
            expected: Time::NEVER,
            paused: Duration::ZERO,
            inbox_gather: Gather::up_to(INBOX_BATCH, 1),
            polled: Time::ZERO,
            tokens: Vec::new(),
            due: Vec::new(),
            ended: Vec::new(),
            strangers_logged: LogLimit::new(STRANGER_LINES_MAX),
            refusing: false,
            quiet: false,
            closing: false,
            stopped: false,
        }
    }

    pub(crate) fn doorbell(&self) -> &Arc<Doorbell<EventFd>> {
        &self.doorbell
    }

    pub(crate) fn world(&mut self) -> &mut dyn World {
        &mut *self.world
    }

    /// Whether the shard has drained and its loop may end.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// It ends in the middle of something: all that it has taken on ends, and whoever waits for that is told at once. The
    /// panic that ended it may not be the last: what has ended by then has ended.
    #[cold]
    fn die(&mut self) {
        let ended = catch_unwind(AssertUnwindSafe(|| {
            self.core.set_stopping(Time::ZERO);
            self.give_up_rest(true);
        }));
        if let Err(panic) = ended {
            tracing::error!(
                shard = self.core.shard.0,
                panic = text_of(&*panic),
                "a shard that died could not tell all who wait for it"
            );
            discard(panic);
        }
    }

    fn inbox(&self) -> &Inbox {
        &self.inboxes[usize::from(self.core.shard.0)]
    }
}

impl Drop for Shard {
    fn drop(&mut self) {
        self.core.pulse.rest();
        // By a panic it may end before it was quiet: nobody waits for it then, and nobody is to send it anything.
        if !self.stopped {
            self.core.routes.stuck.dies(self.core.shard.0);
        }
        // Whoever waits for this shard is told: foreign callers by their promises, the rest by their tables.
        drop(self.inbox().close());
        if !self.stopped {
            self.die();
        }
        self.core.close();
        if !self.quiet {
            self.control.set_quiet(true);
        }
    }
}
