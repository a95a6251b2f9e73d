//! Which node a request goes to: the routes a caller can ask for, and the choice among the nodes that serve a message.
//!
//! A view says who serves what; [`Served`] is that for one message, prepared once for each view, so that choosing is a
//! step through a slice. It knows positions in the view and nothing of lanes: whether a node can be used just now, and how
//! much it has to do, is asked of whoever knows. Which shard of this engine handles a message is in [`route`](crate::route).

use catga_codec::Contract;
use catga_codec::hash::hash_u64;
use catga_discovery::{NodeId, View};

/// Which node a call goes to. Without a word from the caller a message without a key goes [`LocalFirst`](Self::LocalFirst),
/// one with a key to its [`Owner`](Self::Owner).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Route {
    /// This node if it handles the message; else, or if its handler takes no more just now, the others in turn.
    LocalFirst,
    /// The node that owns the message's key, by rendezvous over all nodes that serve the message, then the shard that owns
    /// it there. One candidate: nobody else is asked. For a message without a key as [`LocalFirst`](Self::LocalFirst).
    Owner,
    /// All nodes that serve the message in turn, this one among them. Each shard of the caller counts for itself.
    RoundRobin,
    /// The less busy of two nodes chosen at random, by the calls that this shard has in flight to each.
    LeastLoaded,
    /// Any node that serves the message, at random.
    Random,
    /// This node of the cluster and no other.
    Node(NodeId),
    /// This node, even if others serve the message too.
    Local,
}

/// A [`Route`] in two words, as calls carry it: a node is named by the hash of its id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Choice {
    /// By the message: its owner if it has a key, else local first.
    #[default]
    Usual,
    LocalFirst,
    Owner,
    RoundRobin,
    LeastLoaded,
    Random,
    Local,
    Node(u64),
}

impl From<&Route> for Choice {
    fn from(route: &Route) -> Self {
        match route {
            Route::LocalFirst => Self::LocalFirst,
            Route::Owner => Self::Owner,
            Route::RoundRobin => Self::RoundRobin,
            Route::LeastLoaded => Self::LeastLoaded,
            Route::Random => Self::Random,
            Route::Node(id) => Self::Node(id.hash64()),
            Route::Local => Self::Local,
        }
    }
}

impl Choice {
    /// What it means for a message with a key, or without.
    #[inline]
    pub(crate) fn of(self, keyed: bool) -> Self {
        match self {
            Self::Usual | Self::Owner if keyed => Self::Owner,
            Self::Usual | Self::Owner => Self::LocalFirst,
            other => other,
        }
    }

    /// Whether there is more than one node that will do.
    pub(crate) fn has_alternatives(self) -> bool {
        !matches!(self, Self::Owner | Self::Node(_) | Self::Local)
    }
}

/// The nodes that serve one message, as one view tells it.
#[derive(Debug, Default)]
pub(crate) struct Served {
    /// Positions in the view of those that have a layout of it that we have, this node among them, ascending.
    nodes: Box<[u32]>,
    /// Whether a node serves it with other layouts only.
    pub(crate) other_layout: bool,
    /// Whether a node served it that cannot be reached just now, or leaves.
    pub(crate) out_of_reach: bool,
    /// The place in `nodes` of the one that was chosen last: for first attempts, and for calls that move on. These have
    /// a turn of their own, because they would else step over somebody whose turn it is.
    last: [usize; 2],
}

/// How busy somebody is, and whether it can be chosen.
pub(crate) trait Standing {
    /// Whether the node at this position can be sent something.
    fn is_usable(&self, position: u32) -> bool;
    /// Calls in flight to it.
    fn load(&self, position: u32) -> u32;
}

impl Served {
    pub(crate) fn among(view: &View, contract: &Contract, turn: u64) -> Self {
        let serves = |position: &u32| {
            let node = &view.members()[*position as usize].node;
            // Any fingerprint that both have will do: each is of all bytes of the message.
            node.fingerprints(contract.id).any(|there| contract.accepts().any(|here| here == there))
        };
        let candidates = view.candidates(contract.id);
        let nodes: Box<[u32]> = candidates.iter().copied().filter(serves).collect();
        let known = view.members().iter().filter(|member| member.node.serves(contract.id)).count();
        Self {
            other_layout: nodes.len() < candidates.len(),
            out_of_reach: candidates.len() < known,
            // Shards and nodes that all begin at the same place would go on in step.
            last: [turn as usize % nodes.len().max(1); 2],
            nodes,
        }
    }

    /// Positions in the view of those that can be asked, ascending.
    pub(crate) fn nodes(&self) -> &[u32] {
        &self.nodes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    pub(crate) fn contains(&self, position: u32) -> bool {
        self.nodes.binary_search(&position).is_ok()
    }

    /// The next one in turn that is usable, but not `except`. `again`: for a call that was elsewhere before.
    #[inline]
    pub(crate) fn next(&mut self, except: Option<u32>, again: bool, standing: &impl Standing) -> Option<u32> {
        let last = &mut self.last[usize::from(again)];
        for _ in 0..self.nodes.len() {
            *last = following(*last, self.nodes.len());
            let position = self.nodes[*last];
            if Some(position) != except && standing.is_usable(position) {
                return Some(position);
            }
        }
        None
    }

    /// The next one in turn but `except`, if there is a way to it; else nobody has had a turn.
    #[inline]
    pub(crate) fn step<T>(&mut self, except: Option<u32>, way: impl FnOnce(u32) -> Option<T>) -> Option<T> {
        let mut at = self.last[0];
        for _ in 0..self.nodes.len() {
            at = following(at, self.nodes.len());
            if Some(self.nodes[at]) != except {
                let found = way(self.nodes[at])?;
                self.last[0] = at;
                return Some(found);
            }
        }
        None
    }

    /// One of the usable ones by chance: `draw` is any number.
    pub(crate) fn random(&self, draw: u64, standing: &impl Standing) -> Option<u32> {
        let count = self.nodes.len();
        let first = if count == 0 { 0 } else { draw as usize % count };
        // Where the first does not do, the next number decides, so that its neighbour does not get all of its share.
        let step = if count > 2 { 1 + hash_u64(draw) as usize % (count - 1) } else { 1 };
        let one = (0..2).map(|turn| self.nodes.get((first + turn * step) % count.max(1)));
        one.chain(self.nodes.iter().map(Some))
            .flatten()
            .copied()
            .find(|&position| standing.is_usable(position))
    }

    /// The less busy of two usable ones by chance.
    pub(crate) fn least_loaded(&self, draw: u64, standing: &impl Standing) -> Option<u32> {
        let one = self.random(draw, standing)?;
        let other = self.random(hash_u64(draw.wrapping_add(1)), standing)?;
        Some(if standing.load(other) < standing.load(one) { other } else { one })
    }
}

/// The next of so many places in a ring.
#[inline]
fn following(place: usize, count: usize) -> usize {
    if place + 1 < count { place + 1 } else { 0 }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::Arc;

    use catga_codec::{ContractKind, LayoutPrint, MessageId};
    use catga_discovery::{Incarnation, Member, Node, NodeState};
    use proptest::prelude::*;

    use super::*;

    struct Some3 {
        usable: Vec<u32>,
        loads: HashMap<u32, u32>,
    }

    impl Standing for Some3 {
        fn is_usable(&self, position: u32) -> bool {
            self.usable.contains(&position)
        }
        fn load(&self, position: u32) -> u32 {
            self.loads.get(&position).copied().unwrap_or(0)
        }
    }

    fn served(nodes: &[u32]) -> Served {
        Served { nodes: nodes.into(), ..Served::default() }
    }

    proptest! {
        #[test]
        fn in_turn_each_usable_node_gets_the_same_number_within_one(
            nodes in prop::collection::btree_set(0u32..40, 1..12),
            broken in prop::collection::btree_set(0u32..40, 0..6),
            calls in 1usize..200,
        ) {
            let nodes: Vec<u32> = nodes.into_iter().collect();
            let usable: Vec<u32> = nodes.iter().copied().filter(|node| !broken.contains(node)).collect();
            let standing = Some3 { usable: usable.clone(), loads: HashMap::new() };
            let mut served = served(&nodes);
            let mut counts: HashMap<u32, usize> = usable.iter().map(|&node| (node, 0)).collect();
            for _ in 0..calls {
                match served.next(None, false, &standing) {
                    Some(node) => *counts.get_mut(&node).unwrap() += 1,
                    None => prop_assert!(usable.is_empty()),
                }
            }
            if !usable.is_empty() {
                let (least, most) = (counts.values().min().unwrap(), counts.values().max().unwrap());
                prop_assert!(most - least <= 1, "{counts:?}");
                prop_assert_eq!(counts.values().sum::<usize>(), calls);
            }
        }

        #[test]
        fn by_chance_only_usable_nodes_are_chosen_and_always_one_if_there_is_one(
            nodes in prop::collection::btree_set(0u32..40, 0..12),
            usable in prop::collection::vec(0u32..40, 0..12),
            draw: u64,
        ) {
            let nodes: Vec<u32> = nodes.into_iter().collect();
            let served = served(&nodes);
            let any = nodes.iter().any(|node| usable.contains(node));
            let standing = Some3 { usable: usable.clone(), loads: HashMap::new() };
            for choice in [served.random(draw, &standing), served.least_loaded(draw, &standing)] {
                prop_assert_eq!(choice.is_some(), any);
                prop_assert!(choice.is_none_or(|node| usable.contains(&node) && nodes.contains(&node)));
            }
        }
    }

    #[test]
    fn a_node_serves_a_message_if_it_has_one_of_our_layouts_of_it() {
        let id = MessageId::of("place", 1);
        let contract = |present: u64, former: Option<u64>| Contract {
            id,
            name: "place",
            version: 1,
            kind: ContractKind::Request,
            fingerprint: present,
            fields: Vec::new(),
            former: former.map(|fingerprint| LayoutPrint { fingerprint, fields: Vec::new() }),
        };
        // Four releases, each renamed from the one before; the last node serves another message only.
        let handles = [vec![(id, 1)], vec![(id, 2), (id, 1)], vec![(id, 3), (id, 2)], vec![(id, 4), (id, 3)]];
        let other = vec![(MessageId::of("quote", 1), 1)];
        let members = handles.into_iter().chain([other]).enumerate().map(|(number, handles)| {
            let node = Node {
                id: NodeId::new(format!("node{number}")).unwrap(),
                incarnation: Incarnation(1),
                endpoint: "127.0.0.1:5001".parse().unwrap(),
                shards: 1,
                handles,
            };
            Arc::new(Member { node: Arc::new(node), state: NodeState::Up })
        });
        let view = View::new(1, None, members.collect(), false);
        let among = |present, former| Served::among(&view, &contract(present, former), 0);
        for (present, former, nodes) in [
            (1, None, &[0, 1][..]),
            (2, Some(1), &[0, 1, 2]),
            (3, Some(2), &[1, 2, 3]),
            (4, None, &[3]),
            (7, Some(6), &[]),
        ] {
            let served = among(present, former);
            assert_eq!((served.nodes(), served.other_layout), (nodes, true), "{present} {former:?}");
            assert!(!served.out_of_reach);
        }
        // Two layouts of a node are one node, and none in another layout if one of them is ours.
        let all = View::new(1, None, view.members()[1..3].to_vec(), false);
        let served = Served::among(&all, &contract(2, None), 0);
        assert_eq!((served.nodes(), served.other_layout), (&[0, 1][..], false));
    }

    #[test]
    fn chance_spreads_evenly_and_the_busy_one_of_two_is_left_alone() {
        let nodes = [2, 5, 9];
        let all =
            |loads: &[(u32, u32)]| Some3 { usable: nodes.to_vec(), loads: loads.iter().copied().collect() };
        let count = |choose: &dyn Fn(u64) -> Option<u32>| {
            let mut counts = HashMap::new();
            for draw in 0..30_000u64 {
                *counts.entry(choose(hash_u64(draw)).unwrap()).or_insert(0u32) += 1;
            }
            nodes.map(|node| counts.get(&node).copied().unwrap_or(0))
        };
        let served = served(&nodes);
        let idle = all(&[]);
        for share in count(&|draw| served.random(draw, &idle)) {
            assert!((9_500..10_500).contains(&share), "{share} of 30,000");
        }
        let busy = all(&[(5, 100)]);
        let [_, share, _] = count(&|draw| served.least_loaded(draw, &busy));
        assert!(share < 4_000, "chosen only where both draws named it: {share} of 30,000");
        // One of three is out of use: the others share what would have been its calls.
        let two = Some3 { usable: vec![2, 9], loads: HashMap::new() };
        for (node, share) in nodes.into_iter().zip(count(&|draw| served.random(draw, &two))) {
            assert!(
                if node == 5 { share == 0 } else { (14_000..16_000).contains(&share) },
                "{node}: {share}"
            );
        }
    }

    #[test]
    fn a_route_is_carried_as_what_it_says() {
        let id = NodeId::new("a").unwrap();
        assert_eq!(Choice::from(&Route::Node(id.clone())), Choice::Node(id.hash64()));
        assert_eq!(Choice::Usual.of(true), Choice::Owner);
        assert_eq!(Choice::Usual.of(false), Choice::LocalFirst);
        assert_eq!(Choice::Owner.of(false), Choice::LocalFirst, "without a key nobody owns it");
        assert_eq!(Choice::RoundRobin.of(true), Choice::RoundRobin);
    }
}
