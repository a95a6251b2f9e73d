//! The view: all nodes of the cluster at one moment, prepared for routing.
//!
//! A view never changes. Who learns of a change builds the next view, with the next epoch, and each shard swaps its
//! own `Arc<View>` for it between two turns. So the request path reads a view through a plain pointer: no lock, no
//! atomic operation, no reference count.
//!
//! ```text
//! members (sorted by id)   0: node1   1: node2   2: node3   3: node4, suspect
//! index (sorted by id)     "place" -> 0..2     "quote" -> 2..3
//! positions                0 2                 1
//! ranks                    the hash of each one's id
//! ```
//!
//! For each message the positions of the nodes that serve it and are up lie side by side, so that routing picks from a
//! slice and hashes no string. Positions ascend, hence in the order of ids, which is the same on every node.
//!
//! **Owners.** The [`owner`] of a key is chosen by rendezvous (Thaler and Ravishankar, 1998): each candidate gets a score
//! from its id and the key, and the highest wins. No state is shared and none moves: a node that goes loses its keys to
//! the others in equal parts, one that comes takes its part from all, and no key moves between two that stay.
#![forbid(unsafe_code)]

use std::{cmp::Reverse, fmt, ops::Range, sync::Arc};

use catga_codec::{
    MessageId,
    hash::{hash_bytes, hash_u64},
};

use crate::node::{Node, NodeId};

/// How this node stands with another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum NodeState {
    /// At least one shard has an open lane with it. Only such nodes are sent anything.
    Up,
    /// No shard has an open lane with it: it has ended, or cannot be reached.
    Suspect,
    /// It said that it leaves, and still has lanes.
    Leaving,
}

impl fmt::Display for NodeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Up => "up",
            Self::Suspect => "suspect",
            Self::Leaving => "leaving",
        })
    }
}

/// A node, and how this node stands with it. Prints as `node1 at 10.0.0.1:5001, 2 shards, 3 messages, up`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// As it described itself.
    pub node: Arc<Node>,
    /// Whether it can be sent anything.
    pub state: NodeState,
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.node.describe(f)?;
        write!(f, ", {}", self.state)
    }
}

/// All nodes of the cluster at one moment, this one among them. Immutable; shared as `Arc<View>`.
#[derive(Debug, Clone)]
pub struct View {
    epoch: u64,
    digest: u64,
    own: Option<u32>,
    forming: bool,
    members: Arc<[Arc<Member>]>,
    candidates: Candidates,
}

/// Who serves what: the lower three lines of the picture at the top.
#[derive(Debug, Clone)]
struct Candidates {
    /// Sorted by message, each once; the range is that of its candidates in `positions` and `ranks`.
    index: Box<[(MessageId, Range<u32>)]>,
    positions: Box<[u32]>,
    /// For each position the hash of that node's id, so that choosing an owner follows no pointer.
    ranks: Box<[u64]>,
}

impl View {
    /// Prepares the view of `members`, given in any order. `own` is the id of this node; `forming` is as in
    /// [`forming`](Self::forming).
    ///
    /// If two of them have one id, the higher incarnation stays: the other is its predecessor, of which the news has
    /// not yet come that it is gone.
    #[must_use]
    pub fn new(epoch: u64, own: Option<&NodeId>, mut members: Vec<Arc<Member>>, forming: bool) -> Self {
        fn life(member: &Member) -> impl Ord + '_ {
            (&member.node.id, Reverse(member.node.incarnation))
        }
        members.sort_by(|a, b| life(a).cmp(&life(b)));
        members.dedup_by(|later, earlier| later.node.id == earlier.node.id);
        let mut view = Self {
            epoch,
            digest: digest_of(&members),
            own: None,
            forming,
            candidates: Candidates::among(&members),
            members: members.into(),
        };
        view.own = own.and_then(|id| view.position(id));
        view
    }

    /// The view of nobody, epoch 0: what an engine without a cluster has.
    #[must_use]
    pub fn empty() -> Self {
        Self::new(0, None, Vec::new(), false)
    }

    /// How many views this node had before. A newer view has a higher epoch; epochs of two nodes cannot be compared.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// A hash of what decides who owns a key: ids, incarnations and numbers of shards of the nodes that are up. Nodes
    /// with equal digests agree.
    #[must_use]
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// The members, sorted by id. A position in this slice names a node as long as this view is in use.
    #[must_use]
    pub fn members(&self) -> &[Arc<Member>] {
        &self.members
    }

    /// The position of this node itself.
    #[must_use]
    pub fn own(&self) -> Option<u32> {
        self.own
    }

    /// Whether some node that should be there has not even been tried yet: too early to say that nobody serves a message.
    /// Once it is false it stays so in all later views.
    #[must_use]
    pub fn forming(&self) -> bool {
        self.forming
    }

    /// The member of this id. A binary search over the members.
    #[must_use]
    pub fn find(&self, id: &NodeId) -> Option<&Arc<Member>> {
        self.position(id).map(|position| &self.members[position as usize])
    }

    /// The position of the member of this id. A binary search over the members.
    #[must_use]
    pub fn position(&self, id: &NodeId) -> Option<u32> {
        self.members.binary_search_by(|member| member.node.id.cmp(id)).ok().map(|position| position as u32)
    }

    /// The positions of the nodes that serve `message` and are up, ascending; empty if nobody does.
    ///
    /// A binary search over the messages of the cluster, all integers: some nanoseconds, no allocation.
    #[must_use]
    pub fn candidates(&self, message: MessageId) -> &[u32] {
        &self.candidates.positions[self.candidates.of(message)]
    }
}

/// The position of the node that owns the key with the hash `key`, among the nodes that serve `message` and are up; `None`
/// if nobody does. Messages that the same nodes serve have the same owner for a key.
///
/// The same on every node whose view has the same candidates. One search as in [`View::candidates`] and one mix of
/// integers for each candidate; no allocation. Equal scores, which only ids of equal hash can have, go to the first id.
#[must_use]
pub fn owner(view: &View, message: MessageId, key: u64) -> Option<u32> {
    let Candidates { positions, ranks, .. } = &view.candidates;
    let range = view.candidates.of(message);
    let key = hash_u64(key); // keys may be as regular as ids; hashes of ids are not
    let mut best: Option<(u64, u32)> = None;
    for (&position, &rank) in positions[range.clone()].iter().zip(&ranks[range]) {
        let score = hash_u64(rank ^ key);
        if best.is_none_or(|(highest, _)| score > highest) {
            best = Some((score, position));
        }
    }
    best.map(|(_, position)| position)
}

impl Candidates {
    fn among(members: &[Arc<Member>]) -> Self {
        let mut served: Vec<(MessageId, u32)> = (0u32..)
            .zip(members)
            .filter(|(_, member)| member.state == NodeState::Up && member.node.shards > 0)
            .flat_map(|(position, member)| {
                member.node.handles.iter().map(move |(message, _)| (*message, position))
            })
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
        let positions: Box<[u32]> = served.into_iter().map(|(_, position)| position).collect();
        let ranks = positions.iter().map(|position| members[*position as usize].node.id.hash64()).collect();
        Self { index: index.into(), positions, ranks }
    }

    fn of(&self, message: MessageId) -> Range<usize> {
        match self.index.binary_search_by_key(&message, |(id, _)| *id) {
            Ok(at) => {
                let range = &self.index[at].1;
                range.start as usize..range.end as usize
            }
            Err(_) => 0..0,
        }
    }
}

/// Over the sorted members, so that it does not depend on the order in which they were heard of.
fn digest_of(members: &[Arc<Member>]) -> u64 {
    let mut bytes = Vec::with_capacity(members.len() * (NodeId::BYTES_MAX + 11));
    for node in members.iter().filter(|member| member.state == NodeState::Up).map(|member| &member.node) {
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
        let (nodes, forming) = (self.members.len(), if self.forming { ", forming" } else { "" });
        write!(f, "epoch {}, {nodes} nodes, digest {:016x}{forming}", self.epoch, self.digest)
    }
}

#[cfg(test)]
#[cfg(not(catga_loom))]
mod tests;
