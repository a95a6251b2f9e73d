//! The view: all nodes of the cluster at one moment, prepared for routing.
//!
//! A view never changes. Who learns of a change builds the next view, with the next epoch, and each shard swaps its
//! own `Arc<View>` for it between two turns. So the request path reads a view through a plain pointer: no lock, no
//! atomic operation, no reference count.
//!
//! ```text
//! nodes (sorted by id)     0: node1   1: node2   2: node3
//! index (sorted by id)     "place" -> 0..2     "quote" -> 2..3
//! positions                0 2                 1
//! ```
//!
//! For each message the positions of the nodes that serve it lie side by side, so that routing picks from a slice and
//! hashes no string. Positions ascend, hence in the order of ids, which is the same on every node.
#![forbid(unsafe_code)]

use std::{cmp::Reverse, fmt, ops::Range, sync::Arc};

use catga_codec::{MessageId, hash::hash_bytes};

use crate::node::{Node, NodeId};

/// All nodes of the cluster at one moment. Immutable; shared as `Arc<View>`.
#[derive(Debug, Clone)]
pub struct View {
    epoch: u64,
    digest: u64,
    nodes: Arc<[Arc<Node>]>,
    candidates: Candidates,
}

/// Who serves what: the lower two lines of the picture at the top.
#[derive(Debug, Clone)]
struct Candidates {
    /// Sorted by message, each once; the range is that of its candidates in `positions`.
    index: Box<[(MessageId, Range<u32>)]>,
    positions: Box<[u32]>,
}

impl View {
    /// Prepares the view of `nodes`, given in any order.
    ///
    /// If two of them have one id, the higher incarnation stays: the other is its predecessor, of which the news has
    /// not yet come that it is gone.
    #[must_use]
    pub fn new(epoch: u64, mut nodes: Vec<Arc<Node>>) -> Self {
        nodes.sort_by(|a, b| (&a.id, Reverse(a.incarnation)).cmp(&(&b.id, Reverse(b.incarnation))));
        nodes.dedup_by(|later, earlier| later.id == earlier.id);
        Self { epoch, digest: digest_of(&nodes), candidates: Candidates::among(&nodes), nodes: nodes.into() }
    }

    /// The view of nobody, epoch 0: what a shard has before it has heard of anyone.
    #[must_use]
    pub fn empty() -> Self {
        Self::new(0, Vec::new())
    }

    /// How many views this node had before. A newer view has a higher epoch; epochs of two nodes cannot be compared.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// A hash of what decides who owns a key: ids, incarnations and numbers of shards. Nodes with equal digests agree.
    #[must_use]
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// The nodes, sorted by id. A position in this slice names a node as long as this view is in use.
    #[must_use]
    pub fn nodes(&self) -> &[Arc<Node>] {
        &self.nodes
    }

    /// The node of this id. A binary search over the nodes.
    #[must_use]
    pub fn find(&self, id: &NodeId) -> Option<&Arc<Node>> {
        self.position(id).map(|position| &self.nodes[position as usize])
    }

    /// The position of the node of this id. A binary search over the nodes.
    #[must_use]
    pub fn position(&self, id: &NodeId) -> Option<u32> {
        self.nodes.binary_search_by(|node| node.id.cmp(id)).ok().map(|position| position as u32)
    }

    /// The positions of the nodes that serve `message`, ascending; empty if nobody does.
    ///
    /// A binary search over the messages of the cluster, all integers: some nanoseconds, no allocation.
    #[must_use]
    pub fn candidates(&self, message: MessageId) -> &[u32] {
        self.candidates.of(message)
    }
}

impl Candidates {
    fn among(nodes: &[Arc<Node>]) -> Self {
        let mut served: Vec<(MessageId, u32)> = (0u32..)
            .zip(nodes)
            .filter(|(_, node)| node.shards > 0)
            .flat_map(|(position, node)| node.handles.iter().map(move |(message, _)| (*message, position)))
            .collect();
        served.sort_unstable();
        served.dedup();

        let mut index = Vec::new();
        let mut start = 0;
        for same in served.chunk_by(|a, b| a.0 == b.0) {
            let end = start + same.len() as u32;
            index.push((same[0].0, start..end));
            start = end;
        }
        Self { index: index.into(), positions: served.into_iter().map(|(_, position)| position).collect() }
    }

    fn of(&self, message: MessageId) -> &[u32] {
        match self.index.binary_search_by_key(&message, |(id, _)| *id) {
            Ok(at) => {
                let range = &self.index[at].1;
                &self.positions[range.start as usize..range.end as usize]
            }
            Err(_) => &[],
        }
    }
}

/// Over the sorted nodes, so that it does not depend on the order in which they were heard of.
fn digest_of(nodes: &[Arc<Node>]) -> u64 {
    let mut bytes = Vec::with_capacity(nodes.len() * (NodeId::BYTES_MAX + 11));
    for node in nodes {
        bytes.extend_from_slice(node.id.as_str().as_bytes());
        bytes.push(0); // no id contains it, so where one ends is never in doubt
        bytes.extend_from_slice(&node.incarnation.0.to_le_bytes());
        bytes.extend_from_slice(&node.shards.to_le_bytes());
    }
    hash_bytes(&bytes)
}

impl Default for View {
    fn default() -> Self {
        Self::empty()
    }
}

impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "epoch {}, {} nodes, digest {:016x}", self.epoch, self.nodes.len(), self.digest)
    }
}

#[cfg(test)]
#[cfg(not(catga_loom))]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::node::Incarnation;

    fn message(number: u8) -> MessageId {
        MessageId::of("message", u16::from(number) + 1)
    }

    fn node(name: u8, incarnation: u64, shards: u16, messages: &[u8]) -> Arc<Node> {
        Arc::new(Node {
            id: NodeId::new(format!("node{name}")).unwrap(),
            incarnation: Incarnation(incarnation),
            endpoint: ([127, 0, 0, 1], 5000 + u16::from(name)).into(),
            shards,
            handles: messages.iter().map(|number| (message(*number), 1)).collect(),
        })
    }

    fn nodes() -> impl Strategy<Value = Vec<Arc<Node>>> {
        let one = (0u8..20, 0u64..4, 0u16..3, vec(0u8..6, 0..8));
        vec(
            one.prop_map(|(name, incarnation, shards, served)| node(name, incarnation, shards, &served)),
            0..24,
        )
    }

    /// Too simple to be wrong: looks through all nodes for each question.
    fn newest(nodes: &[Arc<Node>], id: &NodeId) -> Option<Incarnation> {
        nodes.iter().filter(|node| node.id == *id).map(|node| node.incarnation).max()
    }

    proptest! {
        #[test]
        fn each_id_is_there_once_in_order_and_in_its_newest_life(given in nodes()) {
            let view = View::new(1, given.clone());
            prop_assert!(view.nodes().windows(2).all(|pair| pair[0].id < pair[1].id));
            for node in &given {
                let found = view.find(&node.id).unwrap();
                prop_assert_eq!(Some(found.incarnation), newest(&given, &node.id));
                let position = view.position(&node.id).unwrap();
                prop_assert!(Arc::ptr_eq(&view.nodes()[position as usize], found));
            }
            prop_assert!(view.find(&NodeId::new("stranger").unwrap()).is_none());
        }

        #[test]
        fn candidates_are_exactly_the_nodes_that_serve_the_message(given in nodes()) {
            let view = View::new(1, given);
            for number in 0..7 {
                let expected: Vec<u32> = (0u32..)
                    .zip(view.nodes())
                    .filter(|(_, node)| node.shards > 0 && node.fingerprint(message(number)).is_some())
                    .map(|(position, _)| position)
                    .collect();
                prop_assert_eq!(view.candidates(message(number)), &expected[..]);
            }
        }
    }

    #[test]
    fn the_digest_depends_on_who_is_there_and_not_on_how_it_was_learned() {
        let digest =
            |epoch, nodes: &[&Arc<Node>]| View::new(epoch, nodes.iter().copied().cloned().collect()).digest();
        let (a, b) = (node(1, 1, 2, &[1]), node(2, 1, 2, &[1]));
        let both = digest(1, &[&a, &b]);
        assert_eq!(both, digest(9, &[&b, &a]), "order of news, epoch");
        assert_eq!(both, digest(1, &[&a, &node(2, 1, 2, &[1, 2])]), "messages do not decide about owners");
        assert_ne!(both, digest(1, &[&a]));
        assert_ne!(both, digest(1, &[&a, &node(2, 2, 2, &[1])]), "incarnation");
        assert_ne!(both, digest(1, &[&a, &node(2, 1, 3, &[1])]), "shards");
        assert_ne!(both, digest(1, &[&a, &node(3, 1, 2, &[1])]), "id");
    }

    #[test]
    fn the_empty_view_has_nobody() {
        let view = View::default();
        assert_eq!((view.epoch(), view.nodes().len()), (0, 0));
        assert!(view.candidates(message(1)).is_empty());
        assert!(view.to_string().starts_with("epoch 0, 0 nodes"));
    }
}
