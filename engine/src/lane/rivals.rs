//! Two nodes of one id, as a shard sees them.
//!
//! A shard has lanes to one life of a node only. When a later one comes, those to the former end, and whoever comes with a
//! lower incarnation is turned away. After a restart that is all: what the former process had under way dies within a moment.
//! But a second process of the same id comes again and again: it dials, or a list names it and it is dialled. This file
//! remembers who was turned away, and tells the two apart by how long that goes on.
//!
//! It goes on, too, for the one that is turned away: it is greeted, and told each time that it is superseded. So both know,
//! the one that is taken excepted, to which nobody says anything.

use std::sync::Arc;
use std::time::Duration;

use catga_discovery::members::RIVALS_AFTER;
use catga_discovery::{Incarnation, Node, NodeId, Superseded};

use crate::lane::close::{CloseReason, Closed, Closer};
use crate::limits::REDIAL_MAX;
use crate::time::Time;

/// Remembered at once; of more the one that came longest ago is forgotten.
const REMEMBERED: usize = 64;
/// Fewer times may be what a process that has ended had under way.
const TIMES: u32 = 3;
/// Who has not come again for so long has gone: a dial is made again after [`REDIAL_MAX`] at the latest.
const PATIENCE: Duration = REDIAL_MAX.saturating_mul(2);

/// One that was turned away.
struct Seen {
    who: Superseded,
    first: Time,
    last: Time,
    times: u32,
}

/// Who was turned away a short time ago because of a later life.
#[derive(Default)]
pub(super) struct Rivals {
    seen: Vec<Seen>,
}

impl Rivals {
    /// A lane with `node` has ended, which had been open, or not.
    pub(super) fn lane_ended(&mut self, node: &Arc<Node>, closed: Closed, was_open: bool, now: Time) {
        if closed.reason != CloseReason::Superseded {
            return;
        }
        match closed.by {
            Closer::Peer => self.turned_away(Superseded::Own(node.clone()), now),
            // One that was open is of the former life, and says nothing of whether that goes on.
            Closer::Here if !was_open => self.turned_away(Superseded::Theirs(node.clone()), now),
            Closer::Here => {}
        }
    }

    fn turned_away(&mut self, who: Superseded, now: Time) {
        self.forget(now);
        if let Some(seen) = self.seen.iter_mut().find(|seen| name(&seen.who) == name(&who)) {
            (seen.last, seen.times) = (now, seen.times.saturating_add(1));
            return;
        }
        if self.seen.len() >= REMEMBERED
            && let Some(oldest) = (0..self.seen.len()).min_by_key(|&place| self.seen[place].last)
        {
            self.seen.swap_remove(oldest);
        }
        self.seen.push(Seen { who, first: now, last: now, times: 1 });
    }

    fn forget(&mut self, now: Time) {
        self.seen.retain(|seen| now.since(seen.last) <= PATIENCE);
    }

    /// Those with whom it goes on for longer than a restart takes.
    pub(super) fn lasting(&mut self, now: Time) -> Vec<Superseded> {
        self.forget(now);
        let lasts = |seen: &&Seen| seen.times >= TIMES && seen.last.since(seen.first) >= RIVALS_AFTER;
        self.seen.iter().filter(lasts).map(|seen| seen.who.clone()).collect()
    }
}

/// Whether it is this node that was turned away; and the other one.
fn name(who: &Superseded) -> (bool, &NodeId, Incarnation) {
    match who {
        Superseded::Theirs(node) => (false, &node.id, node.incarnation),
        Superseded::Own(node) => (true, &node.id, node.incarnation),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(number: u64) -> Arc<Node> {
        Arc::new(Node {
            id: NodeId::new(format!("node{number}")).unwrap(),
            incarnation: Incarnation(number),
            endpoint: std::net::SocketAddr::from(([127, 0, 0, 1], 1)).into(),
            shards: 1,
            handles: Vec::new(),
        })
    }

    fn at(milliseconds: u64) -> Time {
        Time::ZERO + Duration::from_millis(milliseconds)
    }

    /// Comes at these moments; says when it is first told.
    fn told(by: Closer, was_open: bool, moments: &[u64]) -> Option<u64> {
        let mut rivals = Rivals::default();
        moments.iter().copied().find(|&moment| {
            rivals.lane_ended(&node(1), Closed { reason: CloseReason::Superseded, by }, was_open, at(moment));
            rivals.lane_ended(
                &node(2),
                Closed { reason: CloseReason::Disconnected, by },
                was_open,
                at(moment),
            );
            let lasting = rivals.lasting(at(moment));
            let expected =
                if by == Closer::Peer { Superseded::Own(node(1)) } else { Superseded::Theirs(node(1)) };
            assert!(lasting.is_empty() || lasting == [expected], "{lasting:?}");
            !lasting.is_empty()
        })
    }

    #[test]
    fn whoever_comes_again_and_again_for_longer_than_a_restart_takes_is_a_rival() {
        assert_eq!(
            told(Closer::Here, false, &[0, 20, 60, 140, 900, 2_600, 2_999]),
            None,
            "a restart may be slow"
        );
        assert_eq!(told(Closer::Here, false, &[0, 1_500, 3_000, 4_500]), Some(3_000));
        assert_eq!(told(Closer::Here, false, &[0, 3_500, 7_000, 10_500]), Some(7_000));
        assert_eq!(told(Closer::Here, false, &[0, 4_500, 9_000, 13_500]), None, "another restart each time");
        assert_eq!(told(Closer::Here, true, &[0, 1_500, 3_000, 4_500]), None, "lanes of a former life end");
        assert_eq!(
            told(Closer::Peer, true, &[0, 1_500, 3_000, 4_500]),
            Some(3_000),
            "a peer says so of this node"
        );
    }

    #[test]
    fn who_is_turned_away_is_forgotten_and_never_many_are_remembered() {
        let mut rivals = Rivals::default();
        for moment in [0, 2_000, 4_000] {
            rivals.turned_away(Superseded::Theirs(node(1)), at(moment));
        }
        assert_eq!(rivals.lasting(at(8_000)).len(), 1);
        assert!(rivals.lasting(at(8_001)).is_empty());
        for number in 0..1_000 {
            rivals.turned_away(Superseded::Theirs(node(number)), at(9_000 + number));
        }
        assert_eq!(rivals.seen.len(), REMEMBERED);
        assert!(rivals.seen.iter().all(|seen| seen.first >= at(9_000 + 1_000 - REMEMBERED as u64)));
    }
}
