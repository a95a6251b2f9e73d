//! The way of a call that has moved on: where it has been, and what came of that.
//!
//! Most calls never have one. It is made when an attempt ends in a way that allows another one, and lives in the call's
//! slot until its outcome. What an attempt came to is not forgotten: when nobody is left to ask, that is the outcome, and a call
//! that may have run once stays unknown unless an answer comes.

use catga_discovery::Incarnation;

use crate::call::table::Ending;

/// How often a call moves on after its first attempt.
pub(crate) const MOVES_MAX: usize = 2;

/// One shard of one life of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Spot {
    /// The hash of the node's id.
    pub(crate) node: u64,
    pub(crate) incarnation: Incarnation,
    pub(crate) shard: u16,
}

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Journey {
    /// Hashes of the nodes that have had it.
    tried: [u64; MOVES_MAX + 1],
    moves: usize,
    /// It shall go to the same again: there it may be running.
    pub(crate) again: Option<Spot>,
    so_far: Ending,
}

impl Journey {
    pub(crate) fn new(so_far: Ending) -> Self {
        Self { tried: [0; MOVES_MAX + 1], moves: 0, again: None, so_far }
    }

    pub(crate) fn moves(&self) -> usize {
        self.moves
    }

    /// The node has had it; it moves on.
    pub(crate) fn leave(&mut self, node: u64) {
        if let Some(place) = self.tried.get_mut(self.moves) {
            *place = node;
            self.moves += 1;
        }
    }

    pub(crate) fn has_tried(&self, node: u64) -> bool {
        self.tried[..self.moves].contains(&node)
    }

    /// What came of an attempt, taken together with those before it.
    pub(crate) fn add(&mut self, ending: Ending) {
        self.so_far = self.conclude(ending);
    }

    /// The outcome, if this was the last attempt.
    pub(crate) fn conclude(&self, ending: Ending) -> Ending {
        match (self.so_far, ending) {
            // Somebody has answered, or says that it ran.
            (_, Ending::Reply | Ending::Rejected | Ending::Failed(_) | Ending::Handled(_)) => ending,
            (Ending::Unknown(_), Ending::Unknown(_)) => ending,
            (Ending::Unknown(reason), _) => Ending::Unknown(reason),
            (_, Ending::Unknown(_)) => ending,
            // An attempt that got nowhere does not hide what the one before came to.
            (so_far, Ending::NotSent(_)) => so_far,
            (_, Ending::Refused(_)) => ending,
        }
    }
}
