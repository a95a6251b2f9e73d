//! Events between simulated nodes, in a storm: who heard what, held against the lines of each report.
//!
//! Two or three nodes that know each other publish and broadcast, from handlers and from outside, keyed events and others,
//! with deadlines of any length; some give up. Meanwhile links are cut, slowed or fall silent, nodes crash, stop and come
//! back. No instance hears anything twice, whatever happens; a line that says `Handled` is what its node's instances heard,
//! and one that says `NotSent` was heard by none of another node's.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use catga_codec::Contract;
use catga_codec::hash::combine;
use futures_util::stream::{FuturesUnordered, StreamExt};

use super::ledger::Ledger;
use super::services::patiently;
use super::{for_seeds, ms};
use crate::broadcast::{BroadcastError, Report};
use crate::choice::Route;
use crate::limits::REPORT_GRACE;
use crate::prelude::*;
use crate::runtime::simulated::network::Weather;
use crate::runtime::simulated::rng::Rng;
use crate::runtime::simulated::{HOLD_UP_MAX, Simulation};
use crate::time::Time;
use crate::{Builder, Message};

/// For every instance of every node.
#[event]
struct Noted {
    id: u64,
    filler: Vec<u8>,
}
/// For one shard of every node.
#[event(key = id)]
struct Owned {
    id: u64,
}
/// Publishes and broadcasts many of them.
#[request(reply = Said)]
struct Say {
    seed: u64,
    events: u32,
    fair: bool,
}
#[message]
struct Said {
    done: bool,
}

const NAMES: [&str; 3] = ["a", "b", "c"];

/// The lines of a report: the place of the node in `NAMES`, and what it came to.
type Lines = Vec<(usize, Result<u32, BroadcastError>)>;

/// One event.
#[derive(Debug)]
struct Entry {
    keyed: bool,
    from: usize,
    /// The report must be there by then.
    latest: Time,
    /// By place of the node, and shard.
    heard: BTreeMap<(usize, u16), u32>,
    /// How a broadcast ended; `None` within: its caller gave it up, or was itself ended.
    seen: Option<Option<Lines>>,
}

thread_local! {
    static ENTRIES: RefCell<Vec<Entry>> = const { RefCell::new(Vec::new()) };
    /// How many shards each node has.
    static SHARDS: RefCell<Vec<u16>> = const { RefCell::new(Vec::new()) };
}

/// The duty to say how a broadcast ended. Dropping it is an answer too.
struct Ticket {
    id: u64,
}

impl Ticket {
    fn begins(keyed: bool, from: usize, latest: Time) -> Self {
        ENTRIES.with_borrow_mut(|entries| {
            entries.push(Entry { keyed, from, latest, heard: BTreeMap::new(), seen: None });
            Self { id: entries.len() as u64 - 1 }
        })
    }

    /// An event is published: nobody hears how that went.
    fn published(keyed: bool, from: usize) -> u64 {
        Self::begins(keyed, from, Time::NEVER).id
    }

    fn ends(self, report: &Report, now: Time) {
        let place = |name: &str| NAMES.iter().position(|node| *node == name).expect("a node");
        let of_line = |line: &crate::Line| (place(line.node()), line.outcome().map(|done| done.listeners));
        let lines: Lines = report.iter().map(of_line).collect();
        ENTRIES.with_borrow_mut(|entries| {
            let entry = &mut entries[self.id as usize];
            let late = now.since(entry.latest);
            assert!(late.is_zero(), "broadcast {} ended as {lines:?}, {late:?} too late", self.id);
            assert_eq!(lines[0].0, entry.from, "the own line comes first");
            assert!(lines[1..].is_sorted_by(|a, b| a.0 < b.0), "{lines:?}");
            assert!(lines[1..].iter().all(|(node, _)| *node != entry.from), "{lines:?}");
            for (node, outcome) in &lines {
                if let Ok(listeners) = outcome {
                    let heard = entry.heard.keys().filter(|(at, _)| at == node).count();
                    let whole = if entry.keyed { 1 } else { SHARDS.with_borrow(|shards| shards[*node]) };
                    let counts = (heard, *listeners as usize);
                    assert_eq!(counts, (whole.into(), whole.into()), "broadcast {}: {lines:?}", self.id);
                }
            }
            assert!(entry.seen.replace(Some(lines)).is_none(), "broadcast {} ended twice", self.id);
        });
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            ENTRIES.with_borrow_mut(|entries| {
                if let Some(entry) = entries.get_mut(self.id as usize) {
                    entry.seen.get_or_insert(None);
                }
            });
        }
    }
}

struct Ear {
    node: usize,
    shard: u16,
}
impl Ear {
    fn hears(&self, id: u64) {
        ENTRIES.with_borrow_mut(|entries| {
            let heard = entries[id as usize].heard.entry((self.node, self.shard)).or_default();
            *heard += 1;
        });
    }
    fn noted(&mut self, noted: &Archived<Noted>, _: &Context) {
        self.hears(noted.id.to_native());
    }
    fn owned(&mut self, owned: &Archived<Owned>, _: &Context) {
        self.hears(owned.id.to_native());
    }
}

struct Speaker(usize);
impl Speaker {
    async fn say(speaker: &State<Self>, say: &Archived<Say>, ctx: &Context) -> Result<Said, Fault> {
        let from = speaker.with(|speaker| speaker.0);
        let mut rng = Rng::new(say.seed.to_native());
        let mut flying = FuturesUnordered::new();
        for _ in 0..say.events.to_native() {
            if rng.chance(400) {
                publish(&mut rng, from, ctx);
                continue;
            }
            flying.push(one(rng.next(), from, say.fair, ctx));
            if flying.len() >= 10 {
                flying.next().await;
            }
        }
        while flying.next().await.is_some() {}
        Ok(Said { done: true })
    }
}

fn publish(rng: &mut Rng, from: usize, ctx: &Context) {
    let keyed = rng.chance(300);
    let id = Ticket::published(keyed, from);
    if keyed {
        ctx.publish(&Owned { id });
    } else {
        ctx.publish(&Noted { id, filler: vec![0; rng.below(3_000) as usize] });
    }
}

/// One broadcast, of either kind, with a deadline of any length, perhaps given up.
async fn one(seed: u64, from: usize, fair: bool, ctx: &Context) {
    let mut rng = Rng::new(seed);
    let within = match rng.below(4) {
        _ if fair => ms(60_000),
        0 => Duration::from_micros(rng.below(500)),
        _ => rng.time(Duration::ZERO, ms(60)),
    };
    let latest = (ctx.core().now() + within).min(ctx.deadline()) + Ledger::slack();
    let patience = if !fair && rng.chance(150) { rng.below(10) as u32 } else { u32::MAX };
    let keyed = rng.chance(300);
    let ticket = Ticket::begins(keyed, from, latest);
    let id = ticket.id;
    if keyed {
        let owned = Owned { id };
        account(ticket, ctx.broadcast(&owned).within(within), patience, ctx).await;
    } else {
        let noted = Noted { id, filler: vec![0; rng.below(6_000) as usize] };
        account(ticket, ctx.broadcast(&noted).within(within), patience, ctx).await;
    }
}

/// Waits for the report while there is patience.
async fn account(ticket: Ticket, broadcast: impl Future<Output = Report>, patience: u32, ctx: &Context) {
    if let Some(report) = patiently(broadcast, patience).await {
        ticket.ends(&report, ctx.core().now());
    }
}

/// Some nodes that know each other, from a seed.
struct Storm {
    simulation: Simulation,
    rng: Rng,
    nodes: usize,
    fair: bool,
}

impl Storm {
    fn new(seed: u64, fair: bool) -> Self {
        let _ = (Noted::type_index(), Owned::type_index(), Say::type_index(), Said::type_index());
        ENTRIES.take();
        let mut rng = Rng::new(seed);
        let mut simulation = Simulation::new(rng.next());
        let nodes = rng.between(2, 3) as usize;
        let shards: Vec<u16> = (0..nodes).map(|_| rng.between(1, 3) as u16).collect();
        SHARDS.set(shards.clone());
        let peers = ["a=10.0.0.1:1", "b=10.0.0.1:2", "c=10.0.0.1:3"];
        for (node, &shards) in shards.iter().enumerate() {
            let others: Vec<&str> = (0..nodes).filter(|other| *other != node).map(|at| peers[at]).collect();
            let calls_max = if fair { 4_000 } else { rng.between(4, 200) as u32 };
            let describe = move |builder: Builder| {
                builder
                    .calls_max(calls_max)
                    .service(
                        move |shard| Ear { node, shard: shard.0 },
                        |routes| routes.event(Ear::noted).event(Ear::owned),
                    )
                    .service(move |_| Speaker(node), |routes| routes.request_async(Speaker::say))
            };
            simulation.node(NAMES[node], node as u16 + 1, &others, usize::from(shards), describe);
        }
        Self { simulation, rng, nodes, fair }
    }

    /// Whether each shard knows of all nodes.
    fn know_each_other(&mut self) -> bool {
        let nodes = self.nodes;
        self.simulation.run(ms(10_000), |simulation| {
            (0..nodes).flat_map(|node| simulation.cores(node)).all(|core| {
                let (index, contract) = (Noted::type_index().get(), Contract::of_event::<Noted>);
                core.lanes.borrow_mut().listeners(index, Noted::ID, contract).len() == nodes - 1
            })
        })
    }

    /// Handlers and callers outside say something.
    fn say(&mut self) {
        let fair = self.fair;
        for _ in 0..self.rng.between(1, 3) {
            let node = self.rng.below(self.nodes as u64) as usize;
            if !self.simulation.is_running(node) {
                continue;
            }
            let client = self.simulation.client(node);
            let say = Say { seed: self.rng.next(), events: self.rng.between(1, 30) as u32, fair };
            let within = if fair { ms(60_000) } else { self.rng.time(ms(5), ms(100)) };
            self.simulation.outside(async move {
                // Its own outcome is the calls' affair.
                let _ = client.send(&say).route(Route::Local).within(within).await;
            });
        }
        for _ in 0..self.rng.between(0, 4) {
            let node = self.rng.below(self.nodes as u64) as usize;
            if self.simulation.is_running(node) {
                self.say_outside(node);
            }
        }
    }

    fn say_outside(&mut self, node: usize) {
        let client = self.simulation.client(node);
        let network = self.simulation.network.clone();
        let keyed = self.rng.chance(300);
        if self.rng.chance(400) {
            let id = Ticket::published(keyed, node);
            let filler = vec![0; self.rng.below(2_000) as usize];
            let published =
                if keyed { client.publish(&Owned { id }) } else { client.publish(&Noted { id, filler }) };
            assert!(published.is_ok() || !self.fair, "{published:?}");
            return;
        }
        let within = if self.fair { ms(60_000) } else { self.rng.time(Duration::ZERO, ms(40)) };
        self.simulation.outside(async move {
            let latest = network.borrow().now + within + REPORT_GRACE + HOLD_UP_MAX;
            let ticket = Ticket::begins(keyed, node, latest);
            let id = ticket.id;
            let report = if keyed {
                client.broadcast(&Owned { id }).within(within).await
            } else {
                client.broadcast(&Noted { id, filler: vec![] }).within(within).await
            };
            let now = network.borrow().now;
            ticket.ends(&report, now);
        });
    }

    /// Something goes wrong.
    fn trouble(&mut self) {
        let node = self.rng.below(self.nodes as u64) as usize;
        let link = self.simulation.network.borrow().any();
        match (self.rng.below(7), link) {
            (0 | 1, Some(link)) => self.simulation.network.borrow().cut(link),
            (2, Some(link)) => {
                let side = self.rng.below(2) as usize;
                self.simulation.network.borrow().silence(link, side);
            }
            (3, Some(link)) => self.simulation.network.borrow().slow(link, 5),
            (4, _) => {
                let silently = self.rng.chance(300);
                self.simulation.crash(node, silently);
            }
            (5, _) => self.simulation.stop(node, ms(3)),
            _ => {
                let delay_min = self.rng.time(Duration::ZERO, Duration::from_micros(300));
                self.simulation.network.borrow().weather = Weather {
                    delay_min,
                    delay_max: delay_min + self.rng.time(Duration::ZERO, ms(3)),
                    window: self.rng.between(512, 64 * 1024) as usize,
                    refuses: if self.rng.chance(300) { 500 } else { 0 },
                    ..Weather::fair()
                };
            }
        }
    }

    fn start_again(&mut self, chance: u64) {
        for node in 0..self.nodes {
            if !self.simulation.is_running(node) && self.rng.chance(chance) {
                self.simulation.start(node);
            }
        }
    }

    /// The trouble is over: nothing may be left of it.
    fn heal(&mut self) {
        self.simulation.network.borrow().weather = Weather::fair();
        self.simulation.hold_ups = 0;
        let ended = self.simulation.run(ms(5_000), |simulation| simulation.waiting_outside() == 0);
        assert!(ended, "{} callers outside wait for ever", self.simulation.waiting_outside());
        let nodes = self.nodes;
        let quiet = self.simulation.run(ms(10_000), |simulation| {
            (0..nodes).flat_map(|node| simulation.cores(node)).all(|core| {
                core.calls.borrow().live() == 0
                    && core.fanouts_live() == 0
                    && core.tasks_running() == 0
                    && !core.has_work_here()
                    && core.mesh.borrow().iter().flatten().all(|peer| peer.unanswered() == 0)
                    && core.lanes.borrow().are_idle()
            })
        });
        assert!(quiet, "a slot, a fan-out or a credit is lost");
    }
}

/// One whole run. Returns the trace.
fn storm(seed: u64, fair: bool) -> u64 {
    let mut storm = Storm::new(seed, fair);
    if fair {
        assert!(storm.know_each_other(), "they never meet");
    } else {
        storm.simulation.hold_ups = storm.rng.below(60);
    }
    for _ in 0..storm.rng.between(2, 5) {
        storm.say();
        for _ in 0..if fair { 0 } else { storm.rng.between(0, 2) } {
            storm.trouble();
        }
        let pause = storm.rng.time(ms(1), ms(60));
        storm.simulation.run(pause, |_| false);
        storm.start_again(600);
    }
    storm.heal();
    let digest = check(storm.nodes, fair);
    storm.simulation.note(digest);
    storm.simulation.trace()
}

/// Nobody heard anything twice, and each broadcast has one outcome. Returns a hash of all.
fn check(nodes: usize, fair: bool) -> u64 {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let digest = ENTRIES.with_borrow(|entries| {
        let mut digest = 0;
        for (id, entry) in entries.iter().enumerate() {
            for ((node, shard), heard) in &entry.heard {
                assert_eq!(*heard, 1, "shard {shard} of node {node} heard event {id} twice: {entry:?}");
            }
            let published = entry.latest == Time::NEVER;
            assert!(published || entry.seen.is_some(), "broadcast {id} has no outcome");
            for (node, outcome) in entry.seen.iter().flatten().flatten() {
                let heard = entry.heard.keys().any(|(at, _)| at == node);
                let unsent = matches!(outcome, Err(BroadcastError::NotSent(_)));
                assert!(!unsent || !heard || *node == entry.from, "{outcome:?} and heard: {entry:?}");
                *counts
                    .entry(outcome.map_or_else(|error| format!("{error:?}"), |_| "handled".into()))
                    .or_default() += 1;
            }
            if fair {
                let whole: usize = if entry.keyed {
                    nodes
                } else {
                    SHARDS.with_borrow(|all| all.iter().map(|&n| usize::from(n)).sum())
                };
                assert_eq!(entry.heard.len(), whole, "event {id} was heard by all: {entry:?}");
                let lines = entry.seen.iter().flatten().next();
                let handled =
                    lines.is_some_and(|all| all.len() == nodes && all.iter().all(|line| line.1.is_ok()));
                assert!(published || handled, "{entry:?}");
            }
            digest = combine(digest, combine(entry.heard.len() as u64, u64::from(entry.seen.is_some())));
        }
        digest
    });
    if std::env::var_os("CATGA_TELL").is_some() {
        eprintln!("{counts:?}");
    }
    digest
}

#[test]
fn nobody_hears_anything_twice_and_every_line_has_one_outcome_in_time() {
    for_seeds(40, |seed| {
        storm(seed, false);
    });
}

#[test]
fn in_fair_weather_every_event_is_heard_once_by_every_instance_of_every_node() {
    for_seeds(12, |seed| {
        storm(1_000_000 + seed, true);
    });
}

#[test]
fn the_same_seed_is_the_same_run_of_events() {
    for_seeds(4, |seed| {
        let run = || storm(2_000_000 + seed, false);
        assert_eq!(run(), run(), "something in the run is not drawn from the seed");
    });
}
