//! What must be true of a cluster: at every moment, and when it has come to rest.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use catga_discovery::{NodeState, View};

use super::desk::{Caller, Spin, each_route};
use super::{Cluster, ms};
use crate::limits::{LANES_PER_PEER, LANES_PER_SHARD_PAIR};
use crate::runtime::simulated::Simulation;
use crate::runtime::simulated::tests::ledger::Seen;
use crate::shard::core::Core;
use crate::time::Time;

/// What a node of a simulated cluster may hold.
#[derive(Clone, Copy)]
pub(super) struct Bounds {
    /// Nodes of the cluster.
    pub(super) nodes: usize,
    pub(super) calls: u32,
}

/// No shard holds more than it may.
pub(super) fn bounds_are_kept(simulation: &Simulation, bounds: &[Bounds]) {
    const SHARDS_MAX: usize = 3;
    for (node, Bounds { nodes, calls }) in bounds.iter().enumerate() {
        let others = nodes - 1;
        for core in simulation.cores(node) {
            let live = core.calls.borrow().live();
            assert!(live <= *calls, "node {node} {}: {live} calls of {calls}", core.shard);
            assert_eq!(core.fanouts_live(), 0, "nobody broadcasts here");
            let held = core.lanes.borrow().census();
            assert!(held.peers <= others, "node {node} {}: {held:?}", core.shard);
            // To each shard of a peer, and one to each target.
            let dials = others * (usize::from(LANES_PER_PEER).min(SHARDS_MAX) + 1);
            assert!(held.dials <= dials, "node {node} {}: {held:?}", core.shard);
            let open = others * SHARDS_MAX * LANES_PER_SHARD_PAIR;
            assert!(held.open <= open, "node {node} {}: {held:?}", core.shard);
            // Calls that have ended are swept out when a queue would grow.
            let waiting = 2 * *calls as usize + 8;
            assert!(held.waiting_max <= waiting, "node {node} {}: {held:?}", core.shard);
        }
    }
}

fn at_rest(core: &Core, now: Time) -> bool {
    let held = core.lanes.borrow().census();
    core.calls.borrow().live() == 0
        && core.tasks_running() == 0
        && core.mesh.borrow().iter().flatten().all(|peer| peer.unanswered() == 0)
        && core.lanes.borrow().are_idle()
        && held.waiting_max == 0
        && held.opening == 0
        && held.paused_until.is_none_or(|until| until <= now)
}

/// How many nodes are up.
fn up(view: &View) -> usize {
    let up = view.members().iter().filter(|member| member.state == NodeState::Up);
    up.count()
}

/// Whether the agents of two running nodes have different views.
pub(super) fn views_differ(simulation: &Simulation) -> bool {
    let mut digests = (0..simulation.nodes()).filter_map(|node| Some(simulation.view(node)?.digest()));
    let first = digests.next();
    digests.any(|digest| Some(digest) != first)
}

/// What the nodes, or a shard and its node, do not agree on, if there is anything.
pub(super) fn disagreement(simulation: &Simulation) -> Option<String> {
    let running = (0..simulation.nodes()).filter(|&node| simulation.is_running(node));
    let views: Vec<(usize, Arc<View>)> =
        running.filter_map(|node| Some((node, simulation.view(node)?))).collect();
    let (_, first) = views.first()?;
    for (node, view) in &views {
        if up(view) != views.len() || view.digest() != first.digest() || view.forming() {
            let members: String = view.members().iter().map(|member| format!("\n  {member}")).collect();
            return Some(format!("node {node} has {view} of {} nodes: {members}", views.len()));
        }
        for core in simulation.cores(*node) {
            if core.lanes.borrow().digest() != view.digest() {
                return Some(format!("node {node} {} has not taken {view}", core.shard));
            }
        }
    }
    None
}

/// Whether there is no [`unrest`].
pub(super) fn is_at_rest(simulation: &Simulation) -> bool {
    let mut cores = (0..simulation.nodes()).flat_map(|node| simulation.cores(node));
    cores.all(|core| at_rest(core, simulation.now)) && unrest(simulation).is_none()
}

/// Why the cluster is not at rest, if it is not.
pub(super) fn unrest(simulation: &Simulation) -> Option<String> {
    let cores = (0..simulation.nodes()).flat_map(|node| simulation.cores(node).map(move |core| (node, core)));
    let busy = cores.filter(|(_, core)| !at_rest(core, simulation.now)).map(|(node, core)| {
        format!(
            "node {node} {}: {} calls, {} tasks, unanswered {:?}, lanes idle: {}, {:?}; ",
            core.shard,
            core.calls.borrow().live(),
            core.tasks_running(),
            core.mesh.borrow().iter().flatten().map(|peer| peer.unanswered()).collect::<Vec<_>>(),
            core.lanes.borrow().are_idle(),
            core.lanes.borrow().census(),
        )
    });
    let busy: String = busy.collect();
    if !busy.is_empty() {
        return Some(busy);
    }
    let deceived = simulation.network.borrow().is_deceiving();
    if deceived {
        Some("a silent link is still taken for a good one".into())
    } else {
        disagreement(simulation)
    }
}

/// In a stable cluster every route leads from everywhere to where it should, and round robin is even.
pub(super) fn all_is_well(cluster: &mut Cluster) {
    let told: Rc<RefCell<Vec<String>>> = Rc::default();
    for home in 0..cluster.nodes() {
        let (client, network) = (cluster.simulation.client(home), cluster.simulation.network.clone());
        let (workers, told, nodes) = (cluster.workers.clone(), told.clone(), cluster.nodes() as u32);
        cluster.simulation.outside_of(home, async move {
            let caller = Caller::Outside(&client, &network);
            for (what, seen) in each_route(&caller, home, &workers).await {
                if seen != Seen::Reply {
                    told.borrow_mut().push(format!("node {home}, {what}: {seen:?}"));
                }
            }
            let calls = 2 * workers.len() as u32 + 1;
            match client.send(&Spin { calls, nodes }).within(ms(5_000)).await {
                Ok(ran) if ran.id.to_native() <= 1 && ran.node.to_native() == workers.len() as u32 => {}
                Ok(ran) => told.borrow_mut().push(format!(
                    "node {home}: round robin reached {} of {} nodes, {} calls apart",
                    ran.node,
                    workers.len(),
                    ran.id
                )),
                Err(error) => told.borrow_mut().push(format!("node {home}, round robin: {error:?}")),
            }
        });
    }
    let ended = cluster.run(ms(20_000), |simulation| simulation.waiting_outside() == 0);
    let told = told.take();
    assert!(ended && told.is_empty(), "in a stable cluster: {told:#?}");
    let quiet = cluster.rests(ms(2_000));
    assert!(quiet, "not quiet after all: {}", unrest(&cluster.simulation).unwrap_or_default());
}
