//! Processes that have one id: two at once are an error that is told, and one after the other is a restart.

use std::time::Duration;

use super::services::{self, caller_alone, worker};
use super::{Simulation, for_seeds, ms};
use crate::runtime::simulated::rng::Rng;

const A: usize = 0;
const FIRST: usize = 1;
const SECOND: usize = 2;
const SECOND_AT: u16 = 3;

/// `a`, and a `b` that it has a lane with. Either dials, or both.
fn pair(rng: &mut Rng) -> Simulation {
    services::fix_type_order();
    let mut simulation = Simulation::new(rng.next());
    let (a_dials, b_dials) = [(true, false), (false, true), (true, true)][rng.below(3) as usize];
    let (of_a, of_b) = (rng.between(1, 2) as usize, rng.between(1, 3) as usize);
    simulation.node("a", 1, if a_dials { &["b=10.0.0.1:2"] } else { &[] }, of_a, caller_alone);
    simulation.node("b", 2, if b_dials { &["a=10.0.0.1:1"] } else { &[] }, of_b, worker);
    simulation.hold_ups = rng.below(30);
    simulation.network.borrow().weather.delay_up_to(rng.time(Duration::ZERO, ms(2)));
    assert!(simulation.run(ms(2_000), |simulation| knows_a_b(simulation)), "the nodes do not meet");
    simulation
}

fn knows_a_b(simulation: &Simulation) -> bool {
    let view = simulation.view(A);
    view.is_some_and(|view| view.members().iter().any(|member| member.node.id.as_str() == "b"))
}

/// A second `b` that knows of `a`, and began later.
fn another_b(simulation: &mut Simulation, rng: &mut Rng) {
    let shards = rng.between(1, 3) as usize;
    simulation.node("b", SECOND_AT, &["a=10.0.0.1:1"], shards, worker);
    simulation.crash(SECOND, false);
    simulation.start(SECOND);
}

fn shared(simulation: &Simulation) -> Vec<u64> {
    (0..simulation.nodes()).map(|node| simulation.discovery(node).ids_shared).collect()
}

/// Lanes of `a` that have ended.
fn ended(simulation: &Simulation) -> u64 {
    simulation.cores(A).map(|core| core.counters.read().lanes_ended).sum()
}

#[test]
fn two_nodes_of_one_id_are_an_error_once_for_the_one_that_is_turned_away_and_for_who_knows_both() {
    for_seeds(6, |seed| {
        let mut rng = Rng::new(6_000_000 + seed);
        let mut simulation = pair(&mut rng);
        another_b(&mut simulation, &mut rng);
        let both = |simulation: &mut Simulation| shared(simulation) == [1, 1, 0];
        assert!(simulation.run(ms(15_000), both), "told by {:?}", shared(&simulation));
        let before = ended(&simulation);
        simulation.run(ms(10_000), |_| false);
        assert_eq!(shared(&simulation), [1, 1, 0], "once, and not again and again");
        // One dial from each side, every second or two.
        let ended = ended(&simulation) - before;
        assert!((5..=20).contains(&ended), "{ended} lanes in ten seconds");
    });
}

#[test]
fn a_node_that_starts_again_shares_its_id_with_nobody() {
    for_seeds(12, |seed| {
        let mut rng = Rng::new(7_000_000 + seed);
        let mut simulation = pair(&mut rng);
        for _ in 0..6 {
            if rng.chance(500) {
                let silently = rng.chance(500);
                simulation.crash(FIRST, silently);
            } else {
                simulation.stop(FIRST, ms(50));
                assert!(simulation.run(ms(1_000), |simulation| !simulation.is_running(FIRST)));
            }
            let pause = rng.time(Duration::ZERO, ms(500));
            simulation.run(pause, |_| false);
            simulation.start(FIRST);
            let pause = rng.time(Duration::ZERO, ms(3_000));
            simulation.run(pause, |_| false);
            assert_eq!(shared(&simulation), [0, 0]);
        }
        // Elsewhere, and before the former process has ended.
        another_b(&mut simulation, &mut rng);
        let pause = rng.time(Duration::ZERO, ms(1_000));
        simulation.run(pause, |_| false);
        let silently = rng.chance(500);
        simulation.crash(FIRST, silently);
        simulation.run(ms(10_000), |_| false);
        assert_eq!(shared(&simulation)[A], 0);
    });
}
