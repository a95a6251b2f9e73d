//! Whole clusters in storms: three to five nodes that call one another in every way while links and nodes fail.
//!
//! From a seed: what each node serves, how many shards and calls it has; calls of handlers, of batches, of foreign threads,
//! chains of them over three nodes; and trouble. Links are cut, fall silent in one direction or both, and slow down; dials
//! are refused, or never answered; nodes are parted, crash, stall, stop in order, and come back as a new life. Then
//! everything heals, and what must be true at rest is asked for.
//!
//! What handlers and callers see is in the [`Ledger`], which knows where each call may run and how often. What the engine
//! holds is looked at all along, in [`checks`].

mod checks;
mod desk;
mod moves;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use self::checks::Bounds;
use self::desk::{Burst, Caller, How, any_call, desk, id_of};
use super::ledger::{Ledger, Seen};
use super::{for_seeds, for_seeds_on_all_cores, ms};
use crate::runtime::simulated::Simulation;
use crate::runtime::simulated::network::Weather;
use crate::runtime::simulated::rng::Rng;

/// Steps between two looks at what the engines hold.
const LOOK_EVERY: u64 = 32;

/// A cluster, from a seed.
struct Cluster {
    simulation: Simulation,
    rng: Rng,
    bounds: Vec<Bounds>,
    /// The nodes that do work.
    workers: Vec<usize>,
}

/// What a node of a cluster is.
struct Role {
    /// Whether it serves more than passing on.
    works: bool,
    calls: u32,
    tasks: usize,
    shards: usize,
}

impl Role {
    fn draw(node: usize, rng: &mut Rng) -> Self {
        Self {
            works: node < 2 || rng.chance(800),
            calls: if rng.chance(200) { rng.between(4, 40) } else { 400 } as u32,
            tasks: if rng.chance(300) { rng.between(2, 8) } else { 200 } as usize,
            shards: rng.between(1, 3) as usize,
        }
    }
}

impl Cluster {
    /// So many nodes, each in the lists of all.
    fn of(seed: u64, nodes: usize, role: impl Fn(usize, &mut Rng) -> Role) -> Self {
        desk::fix_type_order();
        Ledger::reset();
        let mut rng = Rng::new(seed);
        let simulation = Simulation::new(rng.next());
        let mut cluster = Self { simulation, rng, bounds: Vec::new(), workers: Vec::new() };
        let list: Vec<String> =
            (0..nodes).map(|node| format!("{}=10.0.0.1:{}", id_of(node), node + 1)).collect();
        let list: Vec<&str> = list.iter().map(String::as_str).collect();
        for node in 0..nodes {
            let Role { works, calls, tasks, shards } = role(node, &mut cluster.rng);
            if works {
                cluster.workers.push(node);
            }
            cluster.bounds.push(Bounds { nodes, calls });
            cluster.simulation.node(&id_of(node), node as u16 + 1, &list, shards, move |builder| {
                desk(builder, node, works).calls_max(calls).tasks_max(tasks)
            });
        }
        cluster
    }

    fn nodes(&self) -> usize {
        self.bounds.len()
    }

    fn running(&self) -> Vec<usize> {
        (0..self.nodes()).filter(|&node| self.simulation.is_running(node)).collect()
    }

    /// Goes on for so long, or until `done`; looks at what the engines hold every now and then.
    fn run(&mut self, most: Duration, mut done: impl FnMut(&Simulation) -> bool) -> bool {
        let (bounds, mut steps) = (&self.bounds, 0u64);
        self.simulation.run(most, |simulation| {
            steps += 1;
            if steps.is_multiple_of(LOOK_EVERY) {
                checks::bounds_are_kept(simulation, bounds);
            }
            done(simulation)
        })
    }

    /// Goes on until nothing goes on, which costs too much to ask after each step.
    fn rests(&mut self, most: Duration) -> bool {
        let mut steps = 0u64;
        self.run(most, |simulation| {
            steps += 1;
            steps.is_multiple_of(LOOK_EVERY) && checks::is_at_rest(simulation)
        })
    }

    /// With `CATGA_TELL`, what happens in the run.
    fn tell(&self, what: impl FnOnce() -> String) {
        if std::env::var_os("CATGA_TELL").is_some() {
            eprintln!("{:?} {}", self.simulation.now, what());
        }
    }

    fn weather(&mut self) -> Weather {
        Weather { turns_away: 30, ..Weather::drawn(&mut self.rng, 200) }
    }

    /// Somebody in the process of each of a few nodes calls.
    fn calls(&mut self) {
        let running = self.running();
        for _ in 0..self.rng.between(1, 3) {
            let Some(&node) = running.get(self.rng.below(running.len() as u64) as usize) else { return };
            let (client, network) = (self.simulation.client(node), self.simulation.network.clone());
            let (seed, within) = (self.rng.next(), self.rng.time(ms(5), ms(250)));
            let calls = self.rng.between(1, 25) as u32;
            if self.rng.chance(500) {
                self.simulation.outside_of(node, async move {
                    let caller = Caller::Outside(&client, &network);
                    let burst = |id| Burst { id, seed, calls };
                    caller.accounted(node, &How::plain(within), burst).await;
                });
            } else {
                self.simulation.outside_of(node, async move {
                    let (caller, mut rng) = (Caller::Outside(&client, &network), Rng::new(seed));
                    for _ in 0..calls / 4 {
                        any_call(&caller, node, rng.next(), 2).await;
                    }
                });
            }
        }
    }

    /// Something goes wrong.
    fn trouble(&mut self) {
        let (link, chance) = (self.simulation.network.borrow().any(), self.rng.chance(500));
        let node = self.rng.below(self.nodes() as u64) as usize;
        let other = (node + self.rng.between(1, self.nodes() as u64 - 1) as usize) % self.nodes();
        let length = self.rng.time(ms(1), if chance { ms(60) } else { ms(2_500) });
        let kind = self.rng.below(13);
        self.tell(|| {
            format!("trouble {kind}: link {link:?}, nodes {node} and {other}, {length:?}, {chance}")
        });
        match (kind, link) {
            (0..3, Some(link)) => self.simulation.network.borrow().cut(link),
            (3, Some(link)) => self.simulation.network.borrow().silence(link, usize::from(chance)),
            (4, Some(link)) => {
                self.simulation.network.borrow().silence(link, 0);
                self.simulation.network.borrow().silence(link, 1);
            }
            (5, Some(link)) => self.simulation.network.borrow().slow(link, 5),
            (6 | 7, _) => self.simulation.crash(node, chance),
            (8, _) => self.simulation.stop(node, length),
            (9, _) => self.simulation.stall(node, length),
            (10, _) => self.simulation.network.borrow().part(node, other),
            _ => {
                let weather = self.weather();
                self.simulation.network.borrow().weather = weather;
            }
        }
    }

    /// Nodes that have ended come back, each with this chance in a thousand.
    fn restart(&mut self, chance: u64) {
        for node in 0..self.nodes() {
            if !self.simulation.is_running(node) && self.rng.chance(chance) {
                self.tell(|| format!("node {node} starts"));
                self.simulation.start(node);
            }
        }
    }

    /// The trouble is over: nothing may be left of it.
    fn heal(&mut self) {
        self.simulation.network.borrow().heal();
        self.simulation.hold_ups = 0;
        // Whoever was told to stop, and may be stalled, ends within that.
        let ended = self
            .run(ms(6_000), |simulation| (0..simulation.nodes()).all(|node| !simulation.is_stopping(node)));
        assert!(ended, "a node does not stop");
        self.restart(1000);
        let ended = self.run(ms(8_000), |simulation| simulation.waiting_outside() == 0);
        assert!(ended, "{} callers outside wait for ever", self.simulation.waiting_outside());
        let quiet = self.rests(ms(12_000));
        assert!(quiet, "not quiet: {}", checks::unrest(&self.simulation).unwrap_or_default());
    }
}

/// One whole run. Returns the trace, and how many calls moved on.
fn storm(seed: u64, troubles: u64) -> (u64, u64) {
    let nodes = Rng::new(!seed).between(3, 5) as usize;
    let mut cluster = Cluster::of(seed, nodes, Role::draw);
    cluster.simulation.hold_ups = cluster.rng.below(60);
    if cluster.rng.chance(700) {
        cluster.run(ms(30), |simulation| checks::disagreement(simulation).is_none());
    }
    for _ in 0..cluster.rng.between(2, 6) {
        cluster.calls();
        for _ in 0..cluster.rng.between(0, troubles) {
            cluster.trouble();
        }
        // Silence is noticed after a second.
        let most = if cluster.rng.chance(120) { ms(1_500) } else { ms(40) };
        let pause = cluster.rng.time(ms(1), most);
        cluster.run(pause, |_| false);
        cluster.restart(500);
    }
    cluster.heal();
    checks::all_is_well(&mut cluster);
    Ledger::check();
    if std::env::var_os("CATGA_TELL").is_some() {
        let (steps, at) = (cluster.simulation.steps, cluster.simulation.now);
        eprintln!("seed {seed}: {nodes} nodes, {steps} steps until {at:?}, {:?}", Ledger::counts());
    }
    cluster.simulation.note(Ledger::digest());
    let cores = (0..nodes).flat_map(|node| cluster.simulation.cores(node));
    let moved = cores.map(|core| core.counters.read().calls_moved).sum();
    (cluster.simulation.trace(), moved)
}

/// What happened in the runs of a test, so that it cannot pass because nothing did.
#[derive(Debug, Default)]
struct Happened {
    moved: AtomicU64,
    ran_again: AtomicU64,
    refused: AtomicU64,
    unknown: AtomicU64,
    not_sent: AtomicU64,
}

impl Happened {
    /// Adds what the run that this thread has just made says.
    fn add(&self, moved: u64) {
        let counts = Ledger::counts();
        let seen = |seen: Seen| counts.get(&seen).copied().unwrap_or(0) as u64;
        self.moved.fetch_add(moved, Ordering::Relaxed);
        self.ran_again.fetch_add(Ledger::ran_again(), Ordering::Relaxed);
        self.refused.fetch_add(seen(Seen::Refused), Ordering::Relaxed);
        self.unknown.fetch_add(seen(Seen::Unknown), Ordering::Relaxed);
        self.not_sent.fetch_add(seen(Seen::NotSent), Ordering::Relaxed);
    }

    fn check(&self) {
        let Self { moved, ran_again, refused, unknown, not_sent } = self;
        let all = [moved, ran_again, refused, unknown, not_sent];
        let missing = all.iter().any(|count| count.load(Ordering::Relaxed) == 0);
        assert!(!missing || std::env::var_os("CATGA_SEED").is_some(), "too little happened: {self:?}");
    }
}

#[test]
fn in_a_cluster_every_call_has_one_outcome_in_time_and_runs_only_where_and_as_often_as_it_may() {
    let happened = Happened::default();
    for_seeds_on_all_cores(1000, |seed| {
        let (_, moved) = storm(seed, 3);
        happened.add(moved);
    });
    happened.check();
}

#[test]
fn a_cluster_in_fair_weather_loses_nothing() {
    for_seeds(20, |seed| {
        storm(1_000_000 + seed, 0);
        // Nobody was cut off, so nobody can be in doubt about anything but a deadline.
        let lost = Ledger::counts().get(&Seen::Failed).copied();
        assert_eq!(lost, None);
    });
}

#[test]
fn a_call_that_is_polled_while_it_waits_stands_in_line_once() {
    for_seeds(1, |seed| {
        let role = |_, _: &mut Rng| Role { works: true, calls: 100, tasks: 100, shards: 1 };
        let mut cluster = Cluster::of(9_000_000 + seed, 3, role);
        // Nobody is ever answered, so that a call waits until it is known who there is.
        cluster.simulation.network.borrow().weather.ignores = 1000;
        let (client, network) = (cluster.simulation.client(0), cluster.simulation.network.clone());
        cluster.simulation.outside_of(0, async move {
            let burst = |id| Burst { id, seed: desk::POLLS_OFTEN, calls: 300 };
            Caller::Outside(&client, &network).accounted(0, &How::plain(ms(40)), burst).await;
        });
        let mut most = 0;
        let ended = cluster.run(ms(200), |simulation| {
            let waiting = simulation.cores(0).map(|core| core.lanes.borrow().census().waiting_max).max();
            most = most.max(waiting.unwrap_or(0));
            simulation.waiting_outside() == 0
        });
        assert!(ended && most == 1, "one call stood in line {most} times");
        Ledger::check();
    });
}

#[test]
fn the_same_seed_is_the_same_run_of_a_cluster() {
    for_seeds(5, |seed| {
        let first = storm(2_000_000 + seed, 3);
        assert_eq!(first, storm(2_000_000 + seed, 3), "something in the run is not drawn from the seed");
        assert_ne!(first, storm(3_000_000 + seed, 3));
    });
}
