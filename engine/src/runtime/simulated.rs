//! The simulated runtime: whole engines in one thread, from one seed, in virtual time.
//!
//! Behind the same seam as the real ones: each shard has a [`World`](super::World), and [`Simulation::step`] does for
//! it what [`drive`](super::drive) does, one round at a time. Which shard runs next, for how long it is held up, and what the
//! [`network`] does to its links is drawn from the seed; nothing reads a clock, starts a thread or waits. So a run can be
//! repeated exactly: [`Simulation::trace`] is a hash over all that happened.
//!
//! ```text
//!   step: who could run now?  ──somebody──▶ one of them, by chance: wake, turn, and spin or park as `drive` does
//!              │                            then the clients' futures are polled
//!              └──nobody──▶ virtual time moves to the next timer, arrival or end of a hold-up
//! ```
//!
//! A sleeping shard runs again only when its doorbell was really raised, its world has something ready, or its own timer
//! has come: a wake-up that the engine forgets is a shard that sleeps too long, and a call that ends too late.

pub(crate) mod chronicle;
pub(crate) mod network;
pub(crate) mod rng;
#[cfg(test)]
mod tests;
mod world;

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context as TaskContext, Poll, Waker};
use std::time::Duration;

use catga_codec::hash::combine;
use catga_discovery::{Endpoint, View};

use self::network::Network;
use self::rng::Rng;
use self::world::{Shared, SimulatedWorld};
use crate::agent::Agent;
use crate::client::Client;
use crate::cluster::List;
use crate::placement::{Machine, Placement, Wish};
use crate::shard::core::Core;
use crate::shard::{Control, Shard, Turn};
use crate::stats::DiscoveryStats;
use crate::time::{Clock, Time};
use crate::{Builder, Engine};

/// A shard is held up (by a long handler, by the system) for at most so long.
pub(crate) const HOLD_UP_MAX: Duration = Duration::from_millis(2);

/// Of the machine that all nodes seem to run on. Few: placing shards on many cores takes longer than a whole run.
const CORES: usize = 8;

/// A shard's agent takes note of what it says after so long at most.
const AGENT_DELAY_MAX: Duration = Duration::from_micros(300);

/// A node that is not running just now can be started again from this.
struct Description {
    id: String,
    endpoint: Endpoint,
    peers: Vec<String>,
    shards: usize,
    describe: Box<dyn Fn(Builder) -> Builder>,
}

/// What a shard of the simulation does between turns.
#[derive(Clone, Copy, Debug)]
enum Rest {
    /// It runs again from then on.
    Held(Time),
    /// It sleeps until then, if nobody wakes it.
    Asleep(Time),
}

struct SimulatedShard {
    shard: Shard,
    core: Rc<Core>,
    world: usize,
    listens: Option<Endpoint>,
    rest: Rest,
    /// When its world has something ready, as the network last said.
    ready_at: Time,
    /// Since when it could run and did not.
    due: Option<Time>,
}

struct Running {
    shards: Vec<SimulatedShard>,
    agent: Agent,
    /// When the agent looks again at what the shards say.
    agent_at: Time,
    control: Arc<Control>,
    client: Client,
    /// Until then nothing of it runs, as if the system had stopped the process.
    stalled: Time,
}

struct SimulatedNode {
    description: Description,
    starts: u64,
    running: Option<Running>,
}

/// Someone outside of the engines: of the process of this node, or of none.
struct Work {
    node: Option<usize>,
    future: Pin<Box<dyn Future<Output = ()>>>,
}

/// Engines, the network between them, and those who call them from outside.
pub(crate) struct Simulation {
    pub(crate) now: Time,
    pub(crate) rng: Rng,
    pub(crate) network: Shared,
    /// So many turns in a thousand are followed by a hold-up of the shard.
    pub(crate) hold_ups: u64,
    pub(crate) steps: u64,
    nodes: Vec<SimulatedNode>,
    outside: Vec<Work>,
    seed: u64,
    /// The time as foreign threads read it.
    clock: Arc<AtomicU64>,
    trace: u64,
}

impl Simulation {
    pub(crate) fn new(seed: u64) -> Self {
        chronicle::reset();
        let mut rng = Rng::new(seed);
        let network = Shared::new(Network::new(rng.next()));
        Self {
            now: Time::from_nanos(1_000_000),
            rng,
            network,
            hold_ups: 0,
            steps: 0,
            nodes: Vec::new(),
            outside: Vec::new(),
            seed,
            clock: Arc::default(),
            trace: seed,
        }
    }

    /// A hash of all that has happened.
    pub(crate) fn trace(&self) -> u64 {
        combine(self.trace, self.network.borrow().trace)
    }

    pub(crate) fn note(&mut self, number: u64) {
        self.trace = combine(self.trace, combine(number, self.now.as_nanos()));
    }

    // ---- nodes

    /// Adds a node and starts it. `peers` as in a [`List`]: it dials those.
    pub(crate) fn node(
        &mut self,
        id: &str,
        port: u16,
        peers: &[&str],
        shards: usize,
        describe: impl Fn(Builder) -> Builder + 'static,
    ) -> usize {
        let description = Description {
            id: id.into(),
            endpoint: SocketAddr::from(([10, 0, 0, 1], port)).into(),
            peers: peers.iter().map(|&peer| peer.into()).collect(),
            shards,
            describe: Box::new(describe),
        };
        self.nodes.push(SimulatedNode { description, starts: 0, running: None });
        self.start(self.nodes.len() - 1);
        self.nodes.len() - 1
    }

    /// Starts a node that does not run, as its next incarnation.
    pub(crate) fn start(&mut self, node: usize) {
        let (now, network, run) = (self.now, self.network.clone(), self.seed);
        let SimulatedNode { description, starts, running } = &mut self.nodes[node];
        assert!(running.is_none(), "the node runs");
        *starts += 1;
        // Cores are not pinned here, and this machine's do not count.
        let wish = Wish { shards: Some(description.shards), ..Wish::default() };
        let placement = Placement::choose(&wish, &Machine::of_equal_cores(CORES)).unwrap();
        let list = List::of(description.peers.clone())
            .key("what all nodes of a simulation have")
            .node(&description.id, description.endpoint.to_string());
        let builder = (description.describe)(Engine::builder()).cluster(list);
        let mut plan = builder.plan_simulated(placement, description.endpoint.clone(), *starts).unwrap();
        let shared = Arc::get_mut(&mut plan.shared).expect("nobody has a client yet");
        shared.clock = Clock::Virtual(self.clock.clone());
        network.borrow().listen(description.endpoint.clone(), node);
        chronicle::starts(node);
        let shards = plan.seeds.into_iter().map(|seed| {
            let listens = (seed.id.0 == 0).then(|| description.endpoint.clone());
            let world = network.borrow().new_world();
            let (id, bind, services) = (seed.id, seed.bind.clone(), plan.services.clone());
            let mut shared = None;
            let handlers = |core: &Rc<Core>| {
                shared = Some(core.clone());
                services(id, &bind)
            };
            let nonces = Rng::new(combine(run, world as u64));
            let listens_at = listens.clone();
            let own =
                SimulatedWorld { network: network.clone(), id: world, node, listens: listens_at, nonces };
            let shard = Shard::new(seed, handlers, Box::new(own));
            let core = shared.expect("a shard has a core");
            SimulatedShard { shard, core, world, listens, rest: Rest::Held(now), ready_at: now, due: None }
        });
        *running = Some(Running {
            shards: shards.collect(),
            agent: plan.agent.expect("a node of a cluster has an agent"),
            agent_at: now,
            control: plan.control,
            client: Client::new(plan.shared),
            stalled: now,
        });
        self.note(100 + node as u64);
    }

    /// The node is gone from one moment to the next, and with it all it held. Its links are reset, or fall silent as
    /// if the machine had lost its power.
    pub(crate) fn crash(&mut self, node: usize, silently: bool) {
        self.note(200 + node as u64);
        if silently {
            self.network.borrow().silence_all_of(node);
        }
        // Those who wait in its process are gone as well.
        self.outside.retain(|work| work.node != Some(node));
        self.end(node);
    }

    /// Nothing of the node runs any more.
    fn end(&mut self, node: usize) {
        let Some(running) = self.nodes[node].running.take() else { return };
        self.network.borrow().unlisten(&self.nodes[node].description.endpoint);
        drop(running.shards);
        running.client.calls().abandon();
    }

    /// Nothing of the node runs for so long, and then it goes on as if nothing had been.
    pub(crate) fn stall(&mut self, node: usize, length: Duration) {
        let now = self.now;
        self.note(300 + node as u64);
        if let Some(running) = self.nodes[node].running.as_mut().filter(|running| running.stalled <= now) {
            running.stalled = now + length;
            chronicle::stalls(node, now, running.stalled);
        }
    }

    /// How many nodes there are, running or not.
    pub(crate) fn nodes(&self) -> usize {
        self.nodes.len()
    }

    /// Whether a node runs and has been asked to stop.
    pub(crate) fn is_stopping(&self, node: usize) -> bool {
        self.nodes[node].running.as_ref().is_some_and(|running| running.control.draining().is_some())
    }

    pub(crate) fn is_running(&self, node: usize) -> bool {
        self.nodes[node].running.is_some()
    }

    /// Asks a node to stop, as [`Engine::stop`] does. It is gone when [`is_running`](Self::is_running) says so.
    pub(crate) fn stop(&mut self, node: usize, within: Duration) {
        if let Some(running) = &self.nodes[node].running {
            running.control.drain(self.now + within);
            for shard in &running.shards {
                shard.shard.doorbell().ring();
            }
        }
    }

    /// A client of a node that runs.
    pub(crate) fn client(&self, node: usize) -> Client {
        self.nodes[node].running.as_ref().expect("the node runs").client.clone()
    }

    /// The inner parts of a node's shards, to look at.
    pub(crate) fn cores(&self, node: usize) -> impl Iterator<Item = &Core> {
        self.nodes[node].running.iter().flat_map(|running| running.shards.iter().map(|shard| &*shard.core))
    }

    /// The nodes as the agent of a running node tells them.
    pub(crate) fn view(&self, node: usize) -> Option<Arc<View>> {
        self.nodes[node].running.as_ref().map(|running| running.agent.board().nodes().view().clone())
    }

    /// What the agent of a running node has counted.
    pub(crate) fn discovery(&self, node: usize) -> DiscoveryStats {
        self.nodes[node].running.as_ref().map(|running| running.agent.board().stats()).unwrap_or_default()
    }

    /// Adds someone outside all engines: its future is polled before and after every turn.
    pub(crate) fn outside(&mut self, work: impl Future<Output = ()> + 'static) {
        self.outside.push(Work { node: None, future: Box::pin(work) });
    }

    /// As [`outside`](Self::outside), in the process of a node: it stalls and crashes with that.
    pub(crate) fn outside_of(&mut self, node: usize, work: impl Future<Output = ()> + 'static) {
        self.outside.push(Work { node: Some(node), future: Box::pin(work) });
    }

    /// How many of those outside have not ended.
    pub(crate) fn waiting_outside(&self) -> usize {
        self.outside.len()
    }

    // ---- time

    /// Goes on until `done`, and not for longer than `most`. Says whether it is done.
    pub(crate) fn run(&mut self, most: Duration, mut done: impl FnMut(&mut Self) -> bool) -> bool {
        let end = self.now + most;
        while self.now < end {
            if done(self) {
                return true;
            }
            self.step(end);
        }
        done(self)
    }

    /// One round of one shard, or a move of the time to when there is one, but not past `end`.
    fn step(&mut self, end: Time) {
        self.steps += 1;
        self.network.borrow().now = self.now;
        self.poll_outside();
        self.run_agents();
        let able = self.able();
        if able.is_empty() {
            self.now = self.next_event().map_or(end, |next| next.min(end));
            return;
        }
        let (node, shard) = self.choose(&able);
        self.round(node, shard);
        self.poll_outside();
        let took = self.rng.between(200, 3_000);
        self.now = self.now + Duration::from_nanos(took);
    }

    /// The nodes that run and are not stalled, each with its place.
    fn awake(&mut self) -> impl Iterator<Item = (usize, &mut Running)> {
        let now = self.now;
        let running = self.nodes.iter_mut().map(|node| node.running.as_mut()).enumerate();
        running.filter_map(move |(place, running)| {
            running.filter(|running| running.stalled <= now).map(|running| (place, running))
        })
    }

    /// The agents that are due conclude what follows from what their shards say.
    fn run_agents(&mut self) {
        let now = self.now;
        for (node, running) in self.awake() {
            if running.agent_at <= now {
                running.agent_at = running.agent.round(now);
                chronicle::view(node, now, running.agent.board().nodes().view());
            }
        }
    }

    /// One of those who could run, by chance; but nobody is passed over for long.
    fn choose(&mut self, able: &[(usize, usize)]) -> (usize, usize) {
        let now = self.now;
        let oldest = able.iter().copied().min_by_key(|&(node, shard)| self.shard(node, shard).due);
        if let Some((node, shard)) = oldest
            && self.shard(node, shard).due.is_some_and(|due| now.since(due) > HOLD_UP_MAX / 4)
        {
            return (node, shard);
        }
        able[self.rng.below(able.len() as u64) as usize]
    }

    fn shard(&mut self, node: usize, shard: usize) -> &mut SimulatedShard {
        &mut self.nodes[node].running.as_mut().expect("a node that runs").shards[shard]
    }

    fn able(&mut self) -> Vec<(usize, usize)> {
        let (now, mut network) = (self.now, self.network.borrow());
        let mut able = Vec::new();
        for (index, node) in self.nodes.iter_mut().enumerate() {
            let Some(running) = node.running.as_mut().filter(|running| running.stalled <= now) else {
                continue;
            };
            for (place, shard) in running.shards.iter_mut().enumerate() {
                let runs = match shard.rest {
                    Rest::Held(until) => until <= now,
                    Rest::Asleep(until) => {
                        if network.take_changed(shard.world) {
                            shard.ready_at = network.next_ready(shard.world, shard.listens.as_ref());
                        }
                        let doorbell = shard.shard.doorbell();
                        if doorbell.is_rung() && doorbell.signal().drain() {
                            shard.rest = Rest::Asleep(now);
                        }
                        doorbell.is_rung() || until.min(shard.ready_at) <= now
                    }
                };
                if runs && !shard.shard.is_stopped() {
                    shard.due.get_or_insert(now);
                    able.push((index, place));
                }
            }
        }
        able
    }

    fn next_event(&self) -> Option<Time> {
        let now = self.now;
        let mut next: Option<Time> = None;
        let mut at = |time: Time| {
            if time > now && next.is_none_or(|next| time < next) {
                next = Some(time);
            }
        };
        for running in self.nodes.iter().filter_map(|node| node.running.as_ref()) {
            if running.stalled > now {
                at(running.stalled);
                continue;
            }
            at(running.agent_at);
            at(running.client.calls().earliest());
            for shard in running.shards.iter().filter(|shard| !shard.shard.is_stopped()) {
                match shard.rest {
                    Rest::Held(until) => at(until),
                    // `able` has asked the network just before.
                    Rest::Asleep(until) => at(until.min(shard.ready_at)),
                }
            }
        }
        next
    }

    /// What `drive` does with a shard in one round.
    fn round(&mut self, node: usize, place: usize) {
        let now = self.now;
        let (held, spins) = (self.rng.chance(self.hold_ups), self.rng.chance(700));
        let hold_up = self.rng.time(Duration::from_micros(1), HOLD_UP_MAX / 2);
        let simulated = self.shard(node, place);
        simulated.due = None;
        let shard = &mut simulated.shard;
        if let Rest::Asleep(_) = simulated.rest {
            shard.doorbell().awake();
            shard.look_at_sockets(now);
        }
        let turn = shard.turn(now);
        simulated.rest = Rest::Held(now);
        if turn == Turn::Busy || spins {
            shard.poll_sockets(now);
        } else {
            shard.flush_all(now);
            shard.doorbell().prepare_sleep();
            let timeout = if shard.may_sleep() { shard.sleep_max(now) } else { Duration::ZERO };
            if timeout.is_zero() {
                shard.doorbell().awake();
                shard.look_at_sockets(now);
            } else {
                shard.rest(now + timeout);
                simulated.rest = Rest::Asleep(now + timeout);
            }
        }
        if held && let Rest::Held(_) = simulated.rest {
            simulated.rest = Rest::Held(now + hold_up);
        }
        self.note(((node as u64) << 16) + ((place as u64) << 8) + u64::from(turn == Turn::Busy));
        let heard = now + self.rng.time(Duration::from_micros(1), AGENT_DELAY_MAX);
        if let Some(running) = self.nodes[node].running.as_mut() {
            running.agent_at = running.agent_at.min(heard);
        }
        let running = self.nodes[node].running.as_ref();
        if running.is_some_and(|running| running.shards.iter().all(|shard| shard.shard.is_stopped())) {
            self.note(200 + node as u64);
            self.end(node);
        }
    }

    fn poll_outside(&mut self) {
        let now = self.now;
        self.clock.store(now.as_nanos(), Ordering::Relaxed);
        for (_, running) in self.awake() {
            running.client.calls().expire(now); // what the watchdog does
        }
        let mut cx = TaskContext::from_waker(Waker::noop());
        let Self { outside, nodes, .. } = self;
        let stalled = |node: usize| nodes[node].running.as_ref().is_some_and(|running| running.stalled > now);
        outside.retain_mut(|work| {
            work.node.is_some_and(stalled) || work.future.as_mut().poll(&mut cx) == Poll::Pending
        });
    }
}
