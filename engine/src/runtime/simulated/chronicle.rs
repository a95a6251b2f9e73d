//! What was true of each node, and when: so that handlers and ledgers can be held against it.
//!
//! A simulation writes it down; it belongs to the thread, as a whole run does, because what a handler finds out about the
//! past of its node cannot go through the engine that is being tested.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use catga_codec::MessageId;
use catga_discovery::{View, owner};

use crate::time::Time;

/// Views that a node had longer ago than its last few do not matter.
const VIEWS_KEPT: usize = 12;

#[derive(Default)]
struct NodesPast {
    /// The views of this life, and since when each was there for the shards to take.
    views: Vec<(Time, Arc<View>)>,
    /// The last stall: no shard ran from then until then.
    stall: Option<(Time, Time)>,
}

thread_local! {
    static PAST: RefCell<BTreeMap<usize, NodesPast>> = const { RefCell::new(BTreeMap::new()) };
}

fn of<T>(node: usize, work: impl FnOnce(&mut NodesPast) -> T) -> T {
    PAST.with_borrow_mut(|past| work(past.entry(node).or_default()))
}

/// A new run begins.
pub(crate) fn reset() {
    PAST.take();
}

/// A node begins a new life.
pub(super) fn starts(node: usize) {
    of(node, |past| *past = NodesPast::default());
}

pub(super) fn stalls(node: usize, from: Time, until: Time) {
    of(node, |past| past.stall = Some((from, until)));
}

/// The node's agent has published something, which may be the view that is known already.
pub(super) fn view(node: usize, now: Time, view: &Arc<View>) {
    of(node, |past| {
        if past.views.last().is_none_or(|(_, last)| last.epoch() != view.epoch()) {
            past.views.push((now, view.clone()));
            if past.views.len() > VIEWS_KEPT {
                past.views.remove(0);
            }
        }
    });
}

/// The moment as late as it counts for this node: what was due while it stalled is due at the end of that.
pub(crate) fn at_least_awake(node: usize, due: Time) -> Time {
    of(node, |past| match past.stall {
        Some((from, until)) if from <= due && due < until => until,
        _ => due,
    })
}

/// Whether the node owned a key by some view that it had at most `lag` ago.
pub(crate) fn owned_lately(node: usize, message: MessageId, key: u64, now: Time, lag: Duration) -> bool {
    of(node, |past| {
        let stall = past.stall.map_or(Duration::ZERO, |(from, until)| {
            if now.since(until) <= lag { until.since(from) } else { Duration::ZERO }
        });
        (0..past.views.len()).any(|place| {
            let superseded = past.views.get(place + 1).map(|(at, _)| *at);
            let view = &past.views[place].1;
            superseded.is_none_or(|at| now.since(at) <= lag + stall)
                && owner(view, message, key) == view.own()
        })
    })
}
