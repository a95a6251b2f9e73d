//! Nodes that stop for a while and go on: what was meant for them meanwhile does not run when nobody waits for it any more.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use super::{A, B, Simulation, for_seeds, ms};
use crate::Message;
use crate::limits::PAUSE;
use crate::prelude::*;
use crate::runtime::simulated::HOLD_UP_MAX;
use crate::runtime::simulated::rng::Rng;
use crate::time::Time;

/// Says when it began to run.
#[request]
struct Stamp {
    id: u64,
}
/// The same, on another shard than the lanes lead to, if there are two.
#[request]
struct StampAside {
    id: u64,
}

/// For each call the moment from which nobody waits for it, and when its handler began.
#[derive(Clone, Copy)]
struct Line {
    ends: Time,
    begun: Option<Time>,
}

thread_local! {
    static LINES: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

struct Stamper;
impl Stamper {
    fn note(id: u64, ctx: &Context) {
        let now = ctx.core().now();
        LINES.with_borrow_mut(|lines| lines[id as usize].begun = Some(now));
    }

    fn stamp(&mut self, stamp: &Archived<Stamp>, ctx: &Context) -> Result<(), Fault> {
        Self::note(stamp.id.to_native(), ctx);
        Ok(())
    }

    fn aside(&mut self, stamp: &Archived<StampAside>, ctx: &Context) -> Result<(), Fault> {
        Self::note(stamp.id.to_native(), ctx);
        Ok(())
    }
}

/// What may pass unnoticed: as long as a shard with lanes sleeps, and as much as is no pause yet.
const UNNOTICED: Duration = Duration::from_millis(2 * PAUSE.as_millis() as u64);

/// Returns how many handlers ran, and how many requests came too late to the node that had stopped.
fn pauses(seed: u64) -> (u64, u64) {
    let _ = (Stamp::type_index(), StampAside::type_index());
    LINES.take();
    let mut rng = Rng::new(seed);
    let mut simulation = Simulation::new(rng.next());
    let shards = rng.between(1, 2);
    simulation.node("a", 1, &["b=10.0.0.1:2"], 1, |builder| builder);
    simulation.node("b", 2, &[], shards as usize, move |builder| {
        builder.service_on([0], |_| Stamper, |routes| routes.request(Stamper::stamp)).service_on(
            [shards as u16 - 1],
            |_| Stamper,
            |routes| routes.request(Stamper::aside),
        )
    });
    let joined = |simulation: &mut Simulation| simulation.cores(A).any(|core| core.lanes.borrow().open() > 0);
    assert!(simulation.run(ms(1_000), joined), "the nodes do not meet");
    simulation.hold_ups = rng.below(60);
    let delay = rng.time(Duration::ZERO, ms(2));
    simulation.network.borrow().weather.delay_up_to(delay);
    for _ in 0..3 {
        let pause = rng.time(PAUSE, ms(3_000));
        let until = simulation.now + pause + ms(200);
        simulation.stall(B, pause);
        while simulation.now < until {
            let (within, aside) = (rng.time(ms(5), ms(300)), rng.chance(500));
            let client = simulation.client(A);
            let ends = simulation.now + within;
            let id = LINES.with_borrow_mut(|lines| {
                lines.push(Line { ends, begun: None });
                lines.len() as u64 - 1
            });
            simulation.outside(async move {
                // How each call ends is the business of other tests.
                let _ = if aside {
                    client.send(&StampAside { id }).within(within).await
                } else {
                    client.send(&Stamp { id }).within(within).await
                };
            });
            let next = rng.time(ms(1), ms(30));
            simulation.run(next, |_| false);
        }
    }
    assert!(simulation.run(ms(5_000), |simulation| simulation.waiting_outside() == 0), "some wait for ever");
    let (mut ran, mut latest) = (0, Duration::ZERO);
    LINES.with_borrow(|lines| {
        for Line { ends, begun } in lines {
            ran += u64::from(begun.is_some());
            latest = latest.max(begun.map_or(Duration::ZERO, |begun| begun.since(*ends)));
        }
    });
    let most = UNNOTICED + delay + 3 * HOLD_UP_MAX;
    assert!(latest <= most, "a handler began {latest:?} after its caller had gone");
    let stats: Vec<_> = simulation.cores(B).map(|core| core.counters.read()).collect();
    assert!(stats.iter().all(|shard| (1..=3).contains(&shard.pauses)), "{:?}", stats[0].pauses);
    (ran, stats.iter().map(|shard| shard.expired).sum())
}

#[test]
fn a_node_that_had_stopped_runs_nothing_that_nobody_waits_for() {
    let (ran, late) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    for_seeds(12, |seed| {
        let (runs, expired) = pauses(seed);
        ran.set(ran.get() + runs);
        late.set(late.get() + expired);
    });
    if std::env::var_os("CATGA_SEED").is_none() {
        assert!(ran.get() > 100 && late.get() > 100, "{ran:?} ran, {late:?} came too late");
    }
}
