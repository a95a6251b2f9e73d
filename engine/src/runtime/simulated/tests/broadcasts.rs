//! Broadcasts in a simulated node: who heard what when the report came, held against a list of who listens.
//!
//! Handlers of all shards and callers outside broadcast at once, keyed events and others, with deadlines of any length;
//! some give up, shards are held up, tables are small or rings too full, a listener may panic, the node may stop.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use catga_codec::hash::combine;
use futures_util::stream::{FuturesUnordered, StreamExt};

use super::ledger::Ledger;
use super::services::patiently;
use super::{for_seeds, ms};
use crate::broadcast::{BroadcastError, Report};
use crate::limits::LOCAL_QUEUE_MESSAGES;
use crate::prelude::*;
use crate::runtime::simulated::rng::Rng;
use crate::runtime::simulated::{HOLD_UP_MAX, Simulation};
use crate::time::Time;
use crate::{Builder, Message};

/// For every instance; one of the listeners may panic on it.
#[event]
struct Noted {
    id: u64,
    panics: bool,
    filler: Vec<u8>,
}
/// For the instances of one shard.
#[event(key = id)]
struct Owned {
    id: u64,
}
/// Makes many broadcasts.
#[request(reply = Shouted)]
struct Shout {
    seed: u64,
    broadcasts: u32,
    at_once: u32,
    mood: u8,
}
#[message]
struct Shouted {
    done: bool,
}

/// What may go wrong in a run.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mood {
    /// Nothing: there is time and room for all, and nobody gives up.
    Fair = 0,
    Stormy = 1,
    /// A listener may panic as well; its instance is out of use from then on.
    Deadly = 2,
}

/// A service instance: which service, on which shard.
type Instance = (u8, u16);

/// One broadcast.
#[derive(Debug)]
struct Entry {
    keyed: bool,
    /// The report must be there by then.
    latest: Time,
    heard: BTreeMap<Instance, u32>,
    /// How it ended; `None` within: its caller gave it up, or was itself ended.
    seen: Option<Option<Result<u32, BroadcastError>>>,
}

thread_local! {
    static ENTRIES: RefCell<Vec<Entry>> = const { RefCell::new(Vec::new()) };
    /// The shards of the second service; the first is everywhere.
    static SECOND_ON: RefCell<Vec<u16>> = const { RefCell::new(Vec::new()) };
}

/// The duty to say how a broadcast ended. Dropping it is an answer too.
struct Ticket {
    id: u64,
}

impl Ticket {
    fn begins(keyed: bool, latest: Time) -> Self {
        ENTRIES.with_borrow_mut(|entries| {
            entries.push(Entry { keyed, latest, heard: BTreeMap::new(), seen: None });
            Self { id: entries.len() as u64 - 1 }
        })
    }

    fn ends(self, report: &Report, shards: u16, now: Time) {
        let [line] = report.lines() else { panic!("a line for each node") };
        let seen = line.outcome().map(|handled| handled.listeners);
        ENTRIES.with_borrow_mut(|entries| {
            let entry = &mut entries[self.id as usize];
            assert!(entry.seen.is_none(), "broadcast {} ended twice", self.id);
            entry.seen = Some(Some(seen));
            let late = now.since(entry.latest);
            assert!(late.is_zero(), "broadcast {} ended as {seen:?}, {late:?} too late", self.id);
            if let Ok(listeners) = seen {
                let whole = instances(entry, shards);
                let heard: Vec<Instance> = entry.heard.keys().copied().collect();
                assert_eq!(heard, whole, "broadcast {} was handled by these", self.id);
                assert_eq!(listeners as usize, whole.len());
            }
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

/// Who should hear it: all instances, or those of the shard that the first of them is on.
fn instances(entry: &Entry, shards: u16) -> Vec<Instance> {
    let owner = entry.heard.keys().next().map(|(_, shard)| *shard);
    let first = (0..shards).map(|shard| (1, shard));
    let second = SECOND_ON.with_borrow(|on| on.iter().map(|&shard| (2, shard)).collect::<Vec<_>>());
    first.chain(second).filter(|(_, shard)| !entry.keyed || Some(*shard) == owner).collect()
}

struct Ear(Instance);
impl Ear {
    fn hears(&self, id: u64) {
        ENTRIES.with_borrow_mut(|entries| {
            let heard = entries[id as usize].heard.entry(self.0).or_default();
            *heard += 1;
            assert_eq!(*heard, 1, "broadcast {id} was heard twice by {:?}", self.0);
        });
    }
    fn noted(&mut self, noted: &Archived<Noted>, _: &Context) {
        assert!(!noted.panics || self.0 != (1, 0), "as it was told");
        self.hears(noted.id.to_native());
    }
    fn owned(&mut self, owned: &Archived<Owned>, _: &Context) {
        self.hears(owned.id.to_native());
    }
}

struct Shouter;
impl Shouter {
    async fn shout(_: &State<Self>, shout: &Archived<Shout>, ctx: &Context) -> Result<Shouted, Fault> {
        let mut rng = Rng::new(shout.seed.to_native());
        let mut flying = FuturesUnordered::new();
        for _ in 0..shout.broadcasts.to_native() {
            flying.push(one(rng.next(), shout.mood, ctx));
            if flying.len() >= shout.at_once.to_native() as usize {
                flying.next().await;
            }
        }
        while flying.next().await.is_some() {}
        Ok(Shouted { done: true })
    }
}

/// One broadcast, of either kind, with a deadline of any length, perhaps given up.
async fn one(seed: u64, mood: u8, ctx: &Context) {
    let mut rng = Rng::new(seed);
    let fair = mood == Mood::Fair as u8;
    let within = match rng.below(4) {
        _ if fair => ms(60_000),
        0 => Duration::from_micros(rng.below(500)),
        _ => rng.time(Duration::ZERO, ms(40)),
    };
    let latest = (ctx.core().now() + within).min(ctx.deadline()) + Ledger::slack();
    let patience = if !fair && rng.chance(200) { rng.below(10) as u32 } else { u32::MAX };
    let keyed = rng.chance(300);
    let ticket = Ticket::begins(keyed, latest);
    let id = ticket.id;
    if keyed {
        let owned = Owned { id };
        account(ticket, ctx.broadcast(&owned).within(within), patience, ctx).await;
    } else {
        let panics = mood == Mood::Deadly as u8 && rng.chance(10);
        let noted = Noted { id, panics, filler: vec![0; rng.below(6_000) as usize] };
        account(ticket, ctx.broadcast(&noted).within(within), patience, ctx).await;
    }
}

/// Waits for the report while there is patience.
async fn account(ticket: Ticket, broadcast: impl Future<Output = Report>, patience: u32, ctx: &Context) {
    let shards = ctx.core().mesh.borrow().len() as u16;
    if let Some(report) = patiently(broadcast, patience).await {
        ticket.ends(&report, shards, ctx.core().now());
    }
}

fn node(simulation: &mut Simulation, rng: &mut Rng, shards: u16, calls_max: u32) -> usize {
    let second: Vec<u16> = (0..shards).filter(|_| rng.chance(500)).collect();
    SECOND_ON.set(second.clone());
    simulation.node("a", 1, &[], usize::from(shards), move |builder: Builder| {
        let builder = builder.calls_max(calls_max).tasks_max(64);
        let builder = builder
            .service(|shard| Ear((1, shard.0)), |routes| routes.event(Ear::noted).event(Ear::owned))
            .service(|_| Shouter, |routes| routes.request_async(Shouter::shout));
        if second.is_empty() {
            return builder;
        }
        let ear = |shard: ShardId| Ear((2, shard.0));
        builder.service_on(second.clone(), ear, |routes| routes.event(Ear::noted).event(Ear::owned))
    })
}

/// Callers outside: some broadcast themselves, some let handlers do so.
fn callers(simulation: &mut Simulation, rng: &mut Rng, node: usize, shards: u16, at_once: u32, mood: Mood) {
    let fair = mood == Mood::Fair;
    for _ in 0..rng.between(1, 4) {
        let client = simulation.client(node);
        let (seed, broadcasts) = (rng.next(), rng.between(1, u64::from(at_once) * 2) as u32);
        let within = if fair { ms(60_000) } else { rng.time(ms(5), ms(100)) };
        let mood = mood as u8;
        simulation.outside(async move {
            // Its own outcome is the calls' affair.
            let _ = client.send(&Shout { seed, broadcasts, at_once, mood }).within(within).await;
        });
    }
    for _ in 0..rng.between(0, 6) {
        let client = simulation.client(node);
        let network = simulation.network.clone();
        let keyed = rng.chance(300);
        let within = if fair { ms(60_000) } else { rng.time(Duration::ZERO, ms(30)) };
        simulation.outside(async move {
            // Its time begins when a shard takes it.
            let latest = network.borrow().now + within + Ledger::slack() + HOLD_UP_MAX;
            let ticket = Ticket::begins(keyed, latest);
            let id = ticket.id;
            let report = if keyed {
                client.broadcast(&Owned { id }).within(within).await
            } else {
                client.broadcast(&Noted { id, panics: false, filler: vec![] }).within(within).await
            };
            let now = network.borrow().now;
            ticket.ends(&report, shards, now);
        });
    }
}

/// One whole run. Returns the trace.
fn storm(seed: u64, mood: Mood) -> u64 {
    let _ = (Noted::type_index(), Owned::type_index(), Shout::type_index(), Shouted::type_index());
    ENTRIES.take();
    let mut rng = Rng::new(seed);
    let mut simulation = Simulation::new(rng.next());
    let shards = rng.between(1, 4) as u16;
    // Some fill the rings, others have tables that are soon full.
    let (calls_max, at_once) = match rng.below(4) {
        // All callers together stay below what the queue of a shard holds for itself.
        0 if mood == Mood::Fair => (30_000, LOCAL_QUEUE_MESSAGES as u32 / 13),
        0 => (30_000, 1_500),
        _ if mood == Mood::Fair => (2_000, 30),
        _ => (rng.between(2, 64) as u32, 30),
    };
    let node = node(&mut simulation, &mut rng, shards, calls_max);
    simulation.hold_ups = if mood == Mood::Fair { 0 } else { rng.below(60) };
    for _ in 0..rng.between(1, 4) {
        callers(&mut simulation, &mut rng, node, shards, at_once, mood);
        let pause = rng.time(ms(1), ms(40));
        simulation.run(pause, |_| false);
    }
    if mood != Mood::Fair && rng.chance(200) {
        simulation.stop(node, ms(3));
    }
    simulation.hold_ups = 0;
    let ended = simulation.run(ms(5_000), |simulation| simulation.waiting_outside() == 0);
    assert!(ended, "{} callers outside wait for ever", simulation.waiting_outside());
    let quiet = |simulation: &mut Simulation| {
        simulation.cores(node).all(|core| {
            core.calls.borrow().live() == 0
                && core.fanouts_live() == 0
                && core.tasks_running() == 0
                && !core.has_work_here()
                && core.mesh.borrow().iter().flatten().all(|peer| peer.unanswered() == 0)
        })
    };
    assert!(simulation.run(ms(1_000), quiet), "a slot, a fan-out or a credit is lost");
    let digest = check(mood);
    simulation.note(digest);
    simulation.trace()
}

/// Each broadcast has one outcome. Returns a hash of all.
fn check(mood: Mood) -> u64 {
    ENTRIES.with_borrow(|entries| {
        let mut digest = 0;
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for (id, entry) in entries.iter().enumerate() {
            let Some(seen) = entry.seen else { panic!("broadcast {id} has no outcome") };
            if let (true, Some(Err(BroadcastError::NotSent(reason)))) = (entry.keyed, seen) {
                assert!(entry.heard.is_empty(), "broadcast {id} was not sent ({reason}), and heard");
            }
            assert!(mood != Mood::Fair || matches!(seen, Some(Ok(_))), "broadcast {id} ended as {seen:?}");
            digest = combine(digest, combine(entry.heard.len() as u64, u64::from(seen.is_some())));
            let name = match seen {
                Some(Ok(_)) => "handled".to_owned(),
                other => format!("{other:?}"),
            };
            *counts.entry(name).or_default() += 1;
        }
        if std::env::var_os("CATGA_TELL").is_some() {
            eprintln!("{counts:?}");
        }
        digest
    })
}

#[test]
fn every_broadcast_has_one_outcome_in_time_and_handled_means_once_by_everyone() {
    for_seeds(80, |seed| {
        storm(seed, if seed % 8 == 0 { Mood::Deadly } else { Mood::Stormy });
    });
}

#[test]
fn with_time_and_room_every_broadcast_is_handled() {
    for_seeds(12, |seed| {
        storm(seed, Mood::Fair);
    });
}

#[test]
fn the_same_seed_is_the_same_run_of_broadcasts() {
    for_seeds(4, |seed| {
        let run = || storm(seed, Mood::Stormy);
        assert_eq!(run(), run(), "something in the run is not drawn from the seed");
    });
}
