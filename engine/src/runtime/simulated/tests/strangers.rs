//! Strangers in any number, who say nothing, or rubbish, or much of it, and never go: what a node holds for them is bounded,
//! and whoever belongs to it gets in all the same.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use super::ledger::Ledger;
use super::services::{self, Work, worker};
use super::{A, B, Simulation, for_seeds, ms};
use crate::limits::{CONNECTIONS_MAX, GREETINGS_MAX};
use crate::runtime::simulated::network::End;
use crate::runtime::simulated::rng::Rng;

/// No node of the simulation.
const STRANGER: usize = 99;

fn held(simulation: &Simulation) -> usize {
    simulation.cores(B).map(|core| core.lanes.borrow().held()).sum()
}

/// What a stranger says, and how often.
fn say(simulation: &Simulation, stranger: End, bytes: usize) {
    // Who was turned away already may be told so.
    let _ = simulation.network.borrow().write(stranger, &vec![255; bytes]);
}

fn flood(seed: u64) {
    services::fix_type_order();
    Ledger::reset();
    let mut rng = Rng::new(seed);
    let mut simulation = Simulation::new(rng.next());
    simulation.node("a", 1, &["b=10.0.0.1:2"], 1, |builder| builder);
    simulation.node("b", 2, &[], 1, worker);
    let endpoint = "10.0.0.1:2".parse().unwrap();
    let most = Rc::new(Cell::new(0));
    let bounded = |simulation: &mut Simulation| {
        most.set(most.get().max(held(simulation)));
        false
    };
    let mut loud = Vec::new();
    for _ in 0..8 {
        for _ in 0..400 {
            let stranger = simulation.network.borrow().dial(STRANGER, &endpoint);
            match rng.below(4) {
                0 => {}
                1 => loud.push(stranger),
                _ => say(&simulation, stranger, 64),
            }
        }
        for &stranger in &loud {
            say(&simulation, stranger, 8 * 1024);
        }
        simulation.run(rng.time(ms(1), ms(40)), bounded);
        for core in simulation.cores(B) {
            assert_eq!(core.lanes.borrow().census().ended_bytes, 0);
        }
    }
    let client = simulation.client(A);
    simulation.outside(Ledger::outside(simulation.network.clone(), ms(2_000), move |id| async move {
        let outcome = client.send(&Work { id, size: 0, fate: 0 }).within(ms(2_000)).await;
        assert!(outcome.is_ok(), "{outcome:?}");
        Ok(())
    }));
    assert!(simulation.run(ms(3_000), |simulation| simulation.waiting_outside() == 0), "it waits for ever");
    assert_eq!(most.get(), CONNECTIONS_MAX);
    // Nobody is held longer than it takes to read why.
    simulation.run(Duration::from_secs(1), |_| false);
    assert!(held(&simulation) <= GREETINGS_MAX + 2, "{} are held", held(&simulation));
    let stats: Vec<_> = simulation.cores(B).map(|core| core.counters.read()).collect();
    assert!(stats[0].farewells_cut > 0 && stats[0].lanes_refused > 1_000, "{stats:?}");
}

#[test]
fn strangers_in_any_number_are_held_in_a_bounded_one_and_keep_nobody_out() {
    for_seeds(3, flood);
}
