//! What the two sides of a new lane make of each other.
//!
//! Each sends one [`Greeting`]: the dialer in a Hello, the acceptor in a Welcome once it has agreed. [`agree`] compares
//! the two and yields the [`Agreement`] that the lane keeps, or the error that ends it. Both sides see the same two
//! greetings, so they agree on the same things; and both prove that they have seen them, with the cluster's key, before
//! the lane opens: see [`opening`](super::opening).
//!
//! A message passes if the two sides have a fingerprint of its layout in common: each names all that it accepts. A contract
//! that differs does not end the lane: that one message is refused, with the first field that differs, and all others
//! pass. So a cluster can be updated node by node, and a message is never misread.

use std::sync::Arc;

use catga_codec::{Contract, ContractKind, MessageId, first_difference};
use catga_discovery::{Incarnation, Node, NodeId, NodeIdError};

use super::close::CloseReason;
use super::greeting::{Greeting, Offer};

/// How many differing contracts are explained by their first field: comparing fields is slow, and nobody reads more.
const EXPLAINED_MAX: usize = 16;

/// Which end of the connection a side is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Made the connection, and says hello.
    Dialer,
    /// Got the connection, and welcomes.
    Acceptor,
}

/// Why two sides do not come together. The lane ends; nothing else is affected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum HandshakeError {
    /// The bytes end too early.
    #[error(
        "the greeting ends in the middle of {what}; the peer is no Catga node, or the bytes were altered"
    )]
    Truncated {
        /// What was being read.
        what: &'static str,
    },
    /// The bytes go on after the greeting, or do not begin like one.
    #[error("these bytes are not a greeting; see whether the address belongs to a Catga node")]
    NotAGreeting,
    /// A text is not UTF-8.
    #[error("the {what} of the greeting is not UTF-8")]
    NotText {
        /// Which text.
        what: &'static str,
    },
    /// A number or length is outside its range.
    #[error("the {what} of the greeting is {value}, and must be {range}")]
    OutOfRange {
        /// Which number.
        what: &'static str,
        /// What it was.
        value: u64,
        /// What it may be.
        range: &'static str,
    },
    /// The id is no id.
    #[error("the greeting has a bad node id: {0}")]
    BadNodeId(#[from] NodeIdError),
    /// One message is listed twice.
    #[error("the greeting lists message {0} twice; two types must not share a name and version")]
    Duplicate(MessageId),
    /// One fingerprint is listed twice for a message.
    #[error("the greeting lists a layout of message {0} twice; the peer, or something between, is faulty")]
    Repeated(MessageId),
    /// No protocol version in common.
    #[error("this node speaks protocol versions {ours:?}, the peer {theirs:?}; update the older one")]
    Version {
        /// Oldest and newest here.
        ours: (u16, u16),
        /// Oldest and newest there.
        theirs: (u16, u16),
    },
    /// Different clusters.
    #[error("this node belongs to cluster `{ours}`, the peer to `{theirs}`; give both the same cluster name")]
    Cluster {
        /// The cluster here.
        ours: Arc<str>,
        /// The cluster there.
        theirs: Arc<str>,
    },
    /// The peer has this node's id.
    #[error(
        "the peer calls itself `{0}`, as this node does; give each node an id of its own, check the announced address"
    )]
    Myself(NodeId),
    /// Another node answered.
    #[error(
        "expected node `{expected}` at this address, and found `{found}`; the next view will tell where it is"
    )]
    UnexpectedPeer {
        /// Who was dialed.
        expected: NodeId,
        /// Who answered.
        found: NodeId,
    },
    /// The wanted shard does not exist, or another one answered.
    #[error(
        "shard {wanted} is not served at the other end ({shards} shards); the next view will tell how many there are"
    )]
    NoSuchShard {
        /// The wanted shard.
        wanted: u16,
        /// How many there are.
        shards: u16,
    },
    /// One side has a key, and the other has none.
    #[error("{} has a cluster key, and {} has none; give both the same `.key(..)`", side(*.here), side(!.here))]
    KeyMissing {
        /// Whether it is this side that has one.
        here: bool,
    },
    /// The proof is not that of this key and these greetings.
    #[error(
        "the peer's proof of the cluster key does not fit; give both nodes the same `.key(..)`, and if they have it, see \
         whether something between them alters or repeats the bytes"
    )]
    WrongKey,
}

const fn side(here: bool) -> &'static str {
    if here { "this node" } else { "the peer" }
}

impl HandshakeError {
    /// What the peer is told.
    #[must_use]
    pub(crate) fn close_reason(&self) -> CloseReason {
        match self {
            Self::Truncated { .. }
            | Self::NotAGreeting
            | Self::NotText { .. }
            | Self::OutOfRange { .. }
            | Self::BadNodeId(_)
            | Self::Duplicate(_)
            | Self::Repeated(_) => CloseReason::MalformedGreeting,
            Self::Version { .. } => CloseReason::VersionMismatch,
            Self::Cluster { .. } => CloseReason::ClusterMismatch,
            Self::Myself(_) => CloseReason::ConnectedToSelf,
            Self::UnexpectedPeer { .. } => CloseReason::UnexpectedPeer,
            Self::NoSuchShard { .. } => CloseReason::NoSuchShard,
            Self::KeyMissing { .. } => CloseReason::KeyMissing,
            Self::WrongKey => CloseReason::WrongKey,
        }
    }
}

/// What the two sides of a lane have come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Agreement {
    /// The newest version that both speak.
    pub(crate) version: u16,
    /// The node at the other end.
    pub(crate) peer: NodeId,
    /// Which life of it.
    pub(crate) incarnation: Incarnation,
    /// Where that node is reached, as it says itself; not parsed here.
    pub(crate) endpoint: Arc<str>,
    /// How many shards it has.
    pub(crate) peer_shards: u16,
    /// Its shard at the other end of the lane.
    pub(crate) peer_shard: u16,
    /// The shard here.
    pub(crate) shard: u16,
    /// The longest frame that both accept.
    pub(crate) frame_bytes_max: usize,
    /// How many unanswered calls the peer accepts.
    pub(crate) calls_max: u32,
    /// Verdicts by message, sorted: one for each message that both greetings list.
    verdicts: Vec<(MessageId, Verdict)>,
    /// What the peer listed, for messages that turn up here later.
    offers: Arc<[Offer]>,
}

/// Whether a message may pass between the two sides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Both have a layout of it in common.
    Accepted {
        /// Whether the peer has a handler for it.
        peer_serves: bool,
    },
    /// The contracts differ; the first difference, as a phrase.
    Refused {
        /// Such as "PlaceOrder.lines differs in type or order".
        difference: String,
    },
}

impl Agreement {
    /// The peer as a node of the cluster; `None` if nobody could dial where it says that it is.
    #[must_use]
    pub(crate) fn node(&self) -> Option<Node> {
        let served = self.offers.iter().filter(|offer| offer.serves);
        let layouts = |offer: &Offer| -> Vec<(MessageId, u64)> {
            offer.layouts.iter().map(|layout| (offer.id, layout.fingerprint)).collect()
        };
        Some(Node {
            id: self.peer.clone(),
            incarnation: self.incarnation,
            endpoint: self.endpoint.parse().ok()?,
            shards: self.peer_shards,
            handles: served.flat_map(layouts).collect(),
        })
    }

    /// The verdict on a contract that this side's greeting did not list, because it only sends the message; `None` if
    /// the peer's did not either. Slow: keep the answer.
    #[must_use]
    pub(crate) fn judge(&self, contract: &Contract) -> Option<Verdict> {
        let their = self.offers.iter().find(|offer| offer.id == contract.id)?;
        Some(Offer::of(contract, false).verdict(their, true))
    }

    /// The verdict on a message that both greetings list, else `None`. A search: keep the answer.
    #[must_use]
    pub(crate) fn verdict(&self, message: MessageId) -> Option<&Verdict> {
        let place = self.verdicts.binary_search_by_key(&message, |(id, _)| *id).ok()?;
        self.verdicts.get(place).map(|(_, verdict)| verdict)
    }

    /// All verdicts, sorted by message.
    #[must_use]
    pub(crate) fn verdicts(&self) -> &[(MessageId, Verdict)] {
        &self.verdicts
    }
}

/// Compares two greetings as the side with this `role`, which accepts only `expected` as its peer, if it names one.
///
/// # Errors
/// [`HandshakeError`]: the first thing in which they cannot come together.
pub(crate) fn agree(
    role: Role,
    ours: &Greeting,
    theirs: &Greeting,
    expected: Option<&NodeId>,
) -> Result<Agreement, HandshakeError> {
    let version = ours.version_max.min(theirs.version_max);
    if version < ours.version_min.max(theirs.version_min) {
        return Err(HandshakeError::Version {
            ours: (ours.version_min, ours.version_max),
            theirs: (theirs.version_min, theirs.version_max),
        });
    }
    if ours.cluster != theirs.cluster {
        return Err(HandshakeError::Cluster { ours: ours.cluster.clone(), theirs: theirs.cluster.clone() });
    }
    if ours.keyed != theirs.keyed {
        return Err(HandshakeError::KeyMissing { here: ours.keyed });
    }
    if ours.node == theirs.node {
        return Err(HandshakeError::Myself(ours.node.clone()));
    }
    if let Some(expected) = expected.filter(|expected| **expected != theirs.node) {
        return Err(HandshakeError::UnexpectedPeer {
            expected: expected.clone(),
            found: theirs.node.clone(),
        });
    }
    let shard = match role {
        Role::Dialer if theirs.shard == ours.wanted_shard => ours.shard,
        Role::Dialer => {
            return Err(HandshakeError::NoSuchShard { wanted: ours.wanted_shard, shards: theirs.shards });
        }
        Role::Acceptor if theirs.wanted_shard < ours.shards => theirs.wanted_shard,
        Role::Acceptor => {
            return Err(HandshakeError::NoSuchShard { wanted: theirs.wanted_shard, shards: ours.shards });
        }
    };
    Ok(Agreement {
        version,
        peer: theirs.node.clone(),
        incarnation: theirs.incarnation,
        endpoint: theirs.endpoint.clone(),
        peer_shards: theirs.shards,
        peer_shard: theirs.shard,
        shard,
        frame_bytes_max: ours.frame_bytes_max.min(theirs.frame_bytes_max) as usize,
        calls_max: theirs.calls_max,
        verdicts: verdicts(&ours.offers, &theirs.offers),
        offers: theirs.offers.clone(),
    })
}

fn verdicts(ours: &[Offer], theirs: &[Offer]) -> Vec<(MessageId, Verdict)> {
    let mut sorted: Vec<&Offer> = theirs.iter().collect();
    sorted.sort_unstable_by_key(|offer| offer.id);
    let mut explained = 0;
    let mut verdicts = Vec::with_capacity(ours.len().min(theirs.len()));
    for our in ours {
        let Ok(place) = sorted.binary_search_by_key(&our.id, |offer| offer.id) else { continue };
        let their = sorted[place];
        let verdict = our.verdict(their, explained < EXPLAINED_MAX);
        explained += usize::from(matches!(verdict, Verdict::Refused { .. }));
        verdicts.push((our.id, verdict));
    }
    verdicts.sort_unstable_by_key(|(id, _)| *id);
    verdicts
}

impl Offer {
    /// Whether this contract and the peer's may meet.
    fn verdict(&self, theirs: &Self, explain: bool) -> Verdict {
        match self.difference(theirs, explain) {
            None => Verdict::Accepted { peer_serves: theirs.serves },
            Some(difference) => Verdict::Refused { difference },
        }
    }

    /// Why this contract and the peer's must not meet; `None` if they have a layout in common.
    fn difference(&self, theirs: &Self, explain: bool) -> Option<String> {
        if self.kind != theirs.kind {
            return Some(format!(
                "`{}` is {} here and {} there",
                self.name,
                noun(self.kind),
                noun(theirs.kind)
            ));
        }
        if self.name != theirs.name {
            return Some(format!("`{}` here and `{}` there have the same id", self.name, theirs.name));
        }
        let is_theirs = |print| theirs.layouts.iter().any(|layout| layout.fingerprint == print);
        if self.layouts.iter().any(|layout| is_theirs(layout.fingerprint)) {
            return None;
        }
        let first = if explain { first_difference(&self.layouts, &theirs.layouts) } else { None };
        Some(first.unwrap_or_else(|| format!("`{}` has another layout", self.name)))
    }
}

const fn noun(kind: ContractKind) -> &'static str {
    match kind {
        ContractKind::Request => "a request",
        ContractKind::Event => "an event",
    }
}
