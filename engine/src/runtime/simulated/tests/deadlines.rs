//! Deadlines that are far away: each hop is told of them, and nobody is given less.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use super::{A, Simulation, for_seeds, ms};
use crate::Message;
use crate::prelude::*;

/// Handled by the first shard of `a`, which asks the second for [`Near`]; that asks `b` for [`Far`].
#[request(reply = Lefts)]
struct Ask {
    takes_ms: u64,
}
#[request(reply = Lefts)]
struct Near {
    takes_ms: u64,
}
/// Answered after so long.
#[request(reply = Lefts)]
struct Far {
    takes_ms: u64,
}
/// What was left when each hop began, in milliseconds, the last one first.
#[message]
struct Lefts {
    ms: Vec<u64>,
}

impl Lefts {
    fn and(theirs: impl Iterator<Item = u64>, own: Duration) -> Self {
        let own = [own.as_millis() as u64];
        Self { ms: theirs.chain(own).collect() }
    }
}

struct Hop;

impl Hop {
    async fn ask(_: &State<Self>, ask: &Archived<Ask>, ctx: &Context) -> Result<Lefts, Fault> {
        let left = ctx.remaining();
        let theirs = ctx.send(&Near { takes_ms: ask.takes_ms.to_native() }).within(Duration::MAX).await?;
        Ok(Lefts::and(theirs.ms.iter().map(|left| left.to_native()), left))
    }

    async fn near(_: &State<Self>, near: &Archived<Near>, ctx: &Context) -> Result<Lefts, Fault> {
        let left = ctx.remaining();
        let theirs = ctx.send(&Far { takes_ms: near.takes_ms.to_native() }).within(Duration::MAX).await?;
        Ok(Lefts::and(theirs.ms.iter().map(|left| left.to_native()), left))
    }

    async fn far(_: &State<Self>, far: &Archived<Far>, ctx: &Context) -> Result<Lefts, Fault> {
        let left = ctx.remaining();
        ctx.sleep(ms(far.takes_ms.to_native())).await;
        Ok(Lefts::and(std::iter::empty(), left))
    }
}

/// A call by way of both, which has so long: what was left at each hop.
fn ask(seed: u64, within: Duration) -> Vec<u64> {
    super::services::fix_type_order();
    let _ = (Ask::type_index(), Near::type_index(), Far::type_index());
    let mut simulation = Simulation::new(seed);
    simulation.node("a", 1, &["b=10.0.0.1:2"], 2, |builder| {
        let builder = builder.service_on([0], |_| Hop, |routes| routes.request_async(Hop::ask));
        builder.service_on([1], |_| Hop, |routes| routes.request_async(Hop::near))
    });
    simulation
        .node("b", 2, &[], 2, |builder| builder.service(|_| Hop, |routes| routes.request_async(Hop::far)));
    let client = simulation.client(A);
    let lefts = Rc::new(RefCell::new(Vec::new()));
    let told = lefts.clone();
    simulation.outside(async move {
        let lefts = client.send(&Ask { takes_ms: 20 }).within(within).await.expect("there is time");
        told.borrow_mut().extend(lefts.ms.iter().map(|left| left.to_native()));
    });
    assert!(simulation.run(ms(5_000), |simulation| simulation.waiting_outside() == 0), "it waits on");
    lefts.take()
}

#[test]
fn hours_and_days_that_are_left_travel_across_shards_and_nodes() {
    for_seeds(3, |seed| {
        for within in [ms(4_000), ms(4_000_000), ms(3 * 3_600_000), ms(20 * 24 * 3_600_000)] {
            let lefts = ask(seed, within);
            assert_eq!(lefts.len(), 3);
            let within = within.as_millis() as u64;
            let near = |left: &u64| *left <= within && *left > within - 1_000;
            assert!(lefts.iter().all(near), "of {within} ms there were left {lefts:?}");
        }
    });
}
