//! Idempotent calls while links are reset: each goes again to where it may be running, and there it runs once.

use std::cell::Cell;
use std::time::Duration;

use super::ledger::{Ledger, Seen};
use super::services::{self, Slow, Work, worker};
use super::{A, B, Simulation, for_seeds, ms};
use crate::runtime::simulated::rng::Rng;

/// Calls of everybody outside, of both kinds, some at once and some in a moment.
fn calls(simulation: &mut Simulation, rng: &mut Rng) {
    for _ in 0..rng.between(1, 40) {
        let client = simulation.client(A);
        let (slow, yields, size) = (rng.chance(500), rng.between(0, 60) as u32, rng.between(0, 9_000) as u32);
        let within = ms(2_000);
        simulation.outside(Ledger::outside(simulation.network.clone(), within, move |id| async move {
            let outcome = if slow {
                client.send(&Slow { id, yields, fate: 0 }).idempotent().within(within).await.map(|_| ())
            } else {
                client.send(&Work { id, size, fate: 2 }).idempotent().within(within).await.map(|_| ())
            };
            outcome.map_err(Seen::of)
        }));
    }
}

/// Returns how often a request came again, and how many calls had a reply.
fn resets(seed: u64) -> (u64, usize) {
    services::fix_type_order();
    Ledger::reset();
    let mut rng = Rng::new(seed);
    let mut simulation = Simulation::new(rng.next());
    let (shards_a, shards_b) = (rng.between(1, 2) as usize, rng.between(1, 3) as usize);
    simulation.node("a", 1, &["b=10.0.0.1:2"], shards_a, |builder| builder);
    simulation.node("b", 2, &[], shards_b, worker);
    let joined = |simulation: &mut Simulation| simulation.cores(A).any(|core| core.lanes.borrow().open() > 0);
    assert!(simulation.run(ms(1_000), joined), "the nodes do not meet");
    simulation.hold_ups = rng.below(60);
    simulation.network.borrow().weather.delay_up_to(rng.time(Duration::ZERO, ms(2)));
    for _ in 0..rng.between(3, 8) {
        calls(&mut simulation, &mut rng);
        let pause = rng.time(Duration::ZERO, ms(5));
        simulation.run(pause, |_| false);
        let links = simulation.network.borrow().alive();
        for link in links {
            simulation.network.borrow().cut(link);
        }
        let pause = rng.time(ms(1), ms(60));
        simulation.run(pause, |_| false);
    }
    assert!(simulation.run(ms(5_000), |simulation| simulation.waiting_outside() == 0), "some wait for ever");
    Ledger::check();
    let stats: Vec<_> = simulation.cores(B).map(|core| core.counters.read()).collect();
    assert_eq!(stats.iter().map(|shard| shard.window_evicted).sum::<u64>(), 0);
    let again = stats.iter().map(|shard| shard.repeats_joined + shard.repeats_answered).sum();
    (again, Ledger::counts().get(&Seen::Reply).copied().unwrap_or_default())
}

#[test]
fn an_idempotent_call_runs_once_however_often_its_links_are_reset() {
    let (again, replies) = (Cell::new(0), Cell::new(0));
    for_seeds(15, |seed| {
        let (came_again, replied) = resets(seed);
        again.set(again.get() + came_again);
        replies.set(replies.get() + replied);
    });
    if std::env::var_os("CATGA_SEED").is_none() {
        assert!(again.get() > 50 && replies.get() > 500, "{again:?} came again, {replies:?} replies");
    }
}
