//! What happens to a call when an attempt comes to nothing: it ends, or it moves on.
//!
//! | the attempt ended as | and the call |
//! |---|---|
//! | `NotSent`: its lane was lost before it left | goes to another node |
//! | `Refused`, by a bound, a panic before it, or a node that stops | goes to another node |
//! | `Refused`, because the key is another node's | looks again at the next view, or in a moment |
//! | `Unknown`: its lane was lost after it left | ends; an idempotent one goes again to where it may be running, else to another node |
//! | anything else | ends |
//!
//! It goes to two further nodes at most, within its deadline, and out of a budget: a tenth of what this shard has sent to
//! other nodes. When nodes fail for a reason that hits each call, moving on would only double the load on the rest.

use std::cell::Cell;

use catga_codec::CallId;

use super::Core;
use crate::call::journey::{Journey, MOVES_MAX, Spot};
use crate::call::table::{Ending, Movable, Target};
use crate::error::{NotSent, Refusal, Unknown};

/// How many calls may move on: each call that leaves this node earns a tenth of a move.
#[derive(Debug)]
pub(super) struct Budget {
    tenths: Cell<u32>,
}

const MOVE: u32 = 10;
/// So that the first calls of a node may move as well.
const AT_FIRST: u32 = 16 * MOVE;
const MOST: u32 = 1024 * MOVE;

impl Budget {
    pub(super) fn new() -> Self {
        Self { tenths: Cell::new(AT_FIRST) }
    }

    #[inline]
    pub(super) fn earn(&self) {
        self.tenths.set((self.tenths.get() + 1).min(MOST));
    }

    fn spend(&self) -> bool {
        let left = self.tenths.get().checked_sub(MOVE);
        left.is_some_and(|left| {
            self.tenths.set(left);
            true
        })
    }
}

/// What comes next for a call.
enum Next {
    /// Another node.
    Elsewhere,
    /// The same node as before.
    Same,
    /// Whoever is right by the next view.
    WithView,
}

impl Core {
    /// An attempt has come to `ending`. Says whether the call goes on; then it waits, and looks for its way in this turn.
    #[cold]
    pub(super) fn moves_on(&self, call: CallId, ending: Ending) -> bool {
        let Some(movable) = self.calls.borrow_mut().movable(call) else { return false };
        if self.stopping.get() || movable.deadline <= self.now() {
            return false;
        }
        let Some(next) = next_after(ending, &movable) else { return false };
        let at = self.spot(movable.target);
        if !matches!(next, Next::WithView) && !self.may_move(&movable) {
            self.counters.moves_denied.add(1);
            return false;
        }
        let note = |journey: &mut Journey| match next {
            Next::WithView => journey.again = None,
            Next::Elsewhere => {
                journey.again = None;
                journey.leave(at.map_or(self.node, |spot| spot.node));
            }
            Next::Same => {
                journey.again = at;
                journey.leave(at.map_or(self.node, |spot| spot.node));
            }
        };
        let request = self.calls.borrow_mut().set_out(call, ending, note);
        self.counters.calls_moved.add(1);
        let mut lanes = self.lanes.borrow_mut();
        match next {
            Next::WithView => {
                lanes.hurry(self.now());
                lanes.wait_for_view((call, request), self.now(), |call| {
                    self.calls.borrow_mut().waiting(call).is_some()
                });
            }
            Next::Elsewhere | Next::Same => lanes.look_again((call, request)),
        }
        true
    }

    fn may_move(&self, movable: &Movable) -> bool {
        movable.moves < MOVES_MAX && self.budget.spend()
    }

    /// Where an attempt went, if that was another node.
    fn spot(&self, target: Target) -> Option<Spot> {
        let Target::Lane { lane, .. } = target else { return None };
        let lanes = self.lanes.borrow();
        let (node, shard) = lanes.other_end(lane)?;
        Some(Spot { node: node.id.hash64(), incarnation: node.incarnation, shard })
    }
}

fn next_after(ending: Ending, movable: &Movable) -> Option<Next> {
    let alternatives = movable.choice.has_alternatives();
    match ending {
        Ending::Refused(Refusal::WrongOwner) => Some(Next::WithView),
        // The owner leaves: the next view names another.
        Ending::Refused(Refusal::Stopping) if !alternatives => Some(Next::WithView),
        Ending::Refused(
            Refusal::Overloaded
            | Refusal::NoHandler
            | Refusal::Layout
            | Refusal::Stopping
            | Refusal::Poisoned
            | Refusal::NoShard,
        ) => alternatives.then_some(Next::Elsewhere),
        Ending::NotSent(NotSent::LaneLost) if alternatives => Some(Next::Elsewhere),
        // It never left: it waits for its one node to be reached again, or for the view that names another.
        Ending::NotSent(NotSent::LaneLost) => Some(Next::WithView),
        Ending::Unknown(Unknown::LaneLost) => movable.idempotent.then_some(Next::Same),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_call_in_ten_may_move_on_and_none_when_the_budget_is_spent() {
        let budget = Budget::new();
        let spent = |budget: &Budget| (0..).take_while(|_| budget.spend()).count();
        assert_eq!(spent(&budget), 16, "so many to begin with");
        for _ in 0..95 {
            budget.earn();
        }
        assert_eq!(spent(&budget), 9);
        for _ in 0..1_000_000 {
            budget.earn();
        }
        assert_eq!(spent(&budget), 1024, "what was saved up is bounded");
    }
}
