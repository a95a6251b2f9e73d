//! Keys that change hands: three nodes with keyed calls all the time, while one of them leaves, or dies, and comes back.
//!
//! Whatever the views of the moment are: every call ends, none runs twice or where the key is not at home, and once the
//! nodes agree again who owns what, a call that was sent to the wrong one finds the right one at once. A node that leaves
//! in order costs nobody an answer.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};

use super::desk::{Caller, keyed};
use super::{Cluster, Role, checks, for_seeds, ms};
use crate::Client;
use crate::runtime::simulated::Simulation;
use crate::runtime::simulated::network::Weather;
use crate::runtime::simulated::rng::Rng;
use crate::runtime::simulated::tests::ledger::{Ledger, Seen};
use crate::runtime::simulated::world::Shared;
use crate::time::Time;

/// How long a call may take once the nodes agree.
const SETTLES_WITHIN: Duration = Duration::from_millis(100);
const NODES: usize = 3;

/// What all callers of a run share.
#[derive(Default)]
struct Watched {
    /// When the views of the nodes that run were last seen to differ.
    differed: Cell<Time>,
    wrong: RefCell<Vec<String>>,
    /// The node that goes: what its own callers lose does not count.
    goes: Cell<usize>,
    answered: Cell<usize>,
    /// How calls ended that got no answer.
    lost: RefCell<Vec<String>>,
}

async fn one(client: &Client, network: &Shared, home: usize, key: u64, watched: &Watched) {
    let began = network.borrow().now;
    let seen = keyed(&Caller::Outside(client, network), home, key, ms(3_000)).await;
    let now = network.borrow().now;
    let took = now.since(began.max(watched.differed.get()));
    if took > SETTLES_WITHIN {
        let what =
            format!("key {key} from node {home}: {seen:?} at {now:?}, {took:?} after the views were equal");
        watched.wrong.borrow_mut().push(what);
    }
    if seen == Seen::Reply {
        watched.answered.set(watched.answered.get() + 1);
    } else if home != watched.goes.get() {
        watched.lost.borrow_mut().push(format!("key {key} from node {home}: {seen:?} at {now:?}"));
    }
}

/// Calls with keys from the process of a node, about one in each millisecond.
async fn source(
    client: Client,
    network: Shared,
    home: usize,
    seed: u64,
    over: Rc<Cell<bool>>,
    watched: Rc<Watched>,
) {
    let (mut rng, mut next) = (Rng::new(seed), network.borrow().now);
    let mut flying = FuturesUnordered::new();
    std::future::poll_fn(|cx| {
        let now = network.borrow().now;
        while next <= now && !over.get() {
            flying.push(one(&client, &network, home, rng.below(60), &watched));
            next = next + rng.time(Duration::from_micros(200), ms(3));
        }
        while let Poll::Ready(Some(())) = flying.poll_next_unpin(cx) {}
        if over.get() && flying.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

struct Moves {
    cluster: Cluster,
    watched: Rc<Watched>,
    /// Callers begin nothing new when this is set.
    over: Rc<Cell<bool>>,
}

impl Moves {
    fn new(seed: u64) -> Self {
        let role = |rng: &mut Rng| {
            let shards = rng.between(1, 3) as usize;
            Role { works: true, calls: 2000, tasks: 500, shards }
        };
        let mut cluster = Cluster::of(seed, NODES, |_, rng| role(rng));
        cluster.simulation.hold_ups = cluster.rng.below(30);
        let delay = cluster.rng.time(Duration::from_micros(50), ms(2));
        cluster.simulation.network.borrow().weather.delay_up_to(delay);
        assert!(cluster.run(ms(2_000), |simulation| checks::disagreement(simulation).is_none()));
        Self { cluster, watched: Rc::default(), over: Rc::default() }
    }

    fn calls_from(&mut self, home: usize) {
        let simulation = &mut self.cluster.simulation;
        let (client, network) = (simulation.client(home), simulation.network.clone());
        let seed = self.cluster.rng.next();
        simulation
            .outside_of(home, source(client, network, home, seed, self.over.clone(), self.watched.clone()));
    }

    /// So much time passes. In small steps, because what the callers do next is no event to the simulation.
    fn pass(&mut self, time: Duration, mut done: impl FnMut(&Simulation) -> bool) -> bool {
        let end = self.cluster.simulation.now + time;
        while self.cluster.simulation.now < end {
            let watched = self.watched.clone();
            let step = self.cluster.rng.time(Duration::from_micros(300), ms(2));
            let step = step.min(end.since(self.cluster.simulation.now));
            let ended = self.cluster.run(step, |simulation| {
                if checks::views_differ(simulation) {
                    watched.differed.set(simulation.now);
                }
                done(simulation)
            });
            if ended {
                return true;
            }
        }
        false
    }

    /// A node goes and comes back, while all call.
    fn absence(&mut self, node: usize, in_order: bool) {
        let (drain, before) = (self.cluster.rng.time(ms(60), ms(300)), self.cluster.rng.time(ms(1), ms(60)));
        self.pass(before, |_| false);
        if in_order {
            self.cluster.simulation.stop(node, drain);
            assert!(self.pass(ms(500), |simulation| !simulation.is_running(node)), "it does not stop");
        } else {
            self.cluster.simulation.crash(node, false);
        }
        let away = if self.cluster.rng.chance(300) { ms(3_000) } else { ms(250) };
        let away = self.cluster.rng.time(ms(1), away);
        self.pass(away, |_| false);
        self.cluster.simulation.start(node);
        self.calls_from(node);
        let after = self.cluster.rng.time(ms(1), ms(250));
        self.pass(after, |_| false);
    }
}

/// One run. Says how many calls moved on.
fn moves(seed: u64, in_order: bool) -> u64 {
    let mut moves = Moves::new(seed);
    let node = moves.cluster.rng.below(NODES as u64) as usize;
    moves.watched.goes.set(node);
    for home in 0..NODES {
        moves.calls_from(home);
    }
    for _ in 0..moves.cluster.rng.between(1, 2) {
        moves.absence(node, in_order);
    }
    moves.over.set(true);
    let ended = moves.pass(ms(6_000), |simulation| simulation.waiting_outside() == 0);
    assert!(ended, "{} callers wait for ever", moves.cluster.simulation.waiting_outside());
    let wrong = moves.watched.wrong.take();
    assert!(wrong.is_empty(), "{wrong:#?}");
    moves.cluster.simulation.network.borrow().weather = Weather::fair();
    let quiet = moves.cluster.rests(ms(12_000));
    assert!(quiet, "not quiet: {}", checks::unrest(&moves.cluster.simulation).unwrap_or_default());
    Ledger::check();
    let lost = moves.watched.lost.take();
    assert!(!in_order || lost.is_empty(), "a node left in order, and others lost {}: {lost:#?}", lost.len());
    assert!(moves.watched.answered.get() > 20 * lost.len(), "{lost:#?}");
    let cores = (0..NODES).flat_map(|node| moves.cluster.simulation.cores(node));
    let moved = cores.map(|core| core.counters.read().calls_moved).sum();
    moves.cluster.tell(|| {
        format!("seed {seed}: {} answers, {} lost, {moved} moved", moves.watched.answered.get(), lost.len())
    });
    moved
}

#[test]
fn a_key_whose_owner_goes_and_comes_back_is_found_again_as_soon_as_the_nodes_agree() {
    let moved = Cell::new(0);
    for_seeds(40, |seed| {
        moved.set(moved.get() + moves(6_000_000 + seed, !seed.is_multiple_of(3)));
    });
    assert!(
        moved.get() > 0 || std::env::var_os("CATGA_SEED").is_some(),
        "no call ever came to the wrong node"
    );
}
