//! A node: one process of the cluster, as the others know it.
//!
//! Its [`NodeId`] is a name that people chose, and outlives the process: a restarted `node1` is `node1` again. The
//! [`Incarnation`] tells the two processes apart, so that what is still said about the old one (it left, it is
//! silent) cannot remove its successor.
//!
//! An id is checked once, where it comes in; whoever holds a `NodeId` need not check again. Its characters are
//! those that need no quoting in a NATS subject, a Redis key, a file name or a line of a log.
#![forbid(unsafe_code)]

use std::{
    borrow::Borrow,
    cmp::Ordering,
    collections::BTreeSet,
    fmt,
    hash::{Hash, Hasher},
    str::FromStr,
    sync::Arc,
};

use catga_codec::{MessageId, hash::hash_bytes};

use crate::endpoint::Endpoint;

/// The name of a node: 1 to [`NodeId::BYTES_MAX`] of the characters `A-Z a-z 0-9 . _ -`.
///
/// Cloning takes a reference count and copies nothing. Ids sort by their bytes, equally on every node.
#[derive(Clone)]
pub struct NodeId {
    text: Arc<str>,
    /// `hash_bytes` of the text, kept so that choosing an owner among nodes hashes no string.
    hash: u64,
}

impl NodeId {
    /// The longest id, in bytes.
    pub const BYTES_MAX: usize = 64;

    /// Checks `text` and makes it an id.
    ///
    /// # Errors
    ///
    /// [`NodeIdError`] says what is wrong with the text, and what would be right.
    pub fn new(text: impl AsRef<str>) -> Result<Self, NodeIdError> {
        let text = text.as_ref();
        if text.is_empty() {
            return Err(NodeIdError::Empty);
        }
        if text.len() > Self::BYTES_MAX {
            return Err(NodeIdError::TooLong { bytes: text.len() });
        }
        match text.chars().find(|c| !c.is_ascii_alphanumeric() && !matches!(c, '.' | '_' | '-')) {
            Some(character) => Err(NodeIdError::Character { character }),
            None => Ok(Self { text: text.into(), hash: hash_bytes(text.as_bytes()) }),
        }
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// A hash of the id that is the same on every node: with a key's hash it ranks the nodes that may own the key.
    #[must_use]
    pub fn hash64(&self) -> u64 {
        self.hash
    }
}

/// A text that is no [`NodeId`]. Nothing was created.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NodeIdError {
    /// The text has no characters.
    #[error("a node id must not be empty: give the node a name, such as `node1`")]
    Empty,
    /// The text is longer than [`NodeId::BYTES_MAX`].
    #[error("a node id of {bytes} bytes is too long: use at most {}", NodeId::BYTES_MAX)]
    TooLong {
        /// Length of the text.
        bytes: usize,
    },
    /// The text has a character that ids must not have.
    #[error(
        "a node id must not contain {character:?}: use only letters A-Z and a-z, digits, `.`, `_` and `-`"
    )]
    Character {
        /// The first such character.
        character: char,
    },
}

impl FromStr for NodeId {
    type Err = NodeIdError;

    fn from_str(text: &str) -> Result<Self, NodeIdError> {
        Self::new(text)
    }
}

impl PartialEq for NodeId {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash && self.text == other.text
    }
}

impl Eq for NodeId {}

impl Ord for NodeId {
    fn cmp(&self, other: &Self) -> Ordering {
        self.text.cmp(&other.text)
    }
}

impl PartialOrd for NodeId {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

// As `str` does it, because `Borrow<str>` promises that a map finds an id by its text.
impl Hash for NodeId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

impl Borrow<str> for NodeId {
    fn borrow(&self) -> &str {
        &self.text
    }
}

impl AsRef<str> for NodeId {
    fn as_ref(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text, f)
    }
}

/// Which life of a node this is: of two processes under one id, the one with the higher number is the living one.
///
/// Any number that grows from start to start will do; the microseconds since 1970 at the start are the customary one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation(pub u64);

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One process of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its name, which no other living node has.
    pub id: NodeId,
    /// Which life of that name it is.
    pub incarnation: Incarnation,
    /// Where it listens for lanes. An address and not a host's name: a shard that dials must not wait for a resolver.
    pub endpoint: Endpoint,
    /// Number of its shards, from 1. A node that says 0 can be sent nothing.
    pub shards: u16,
    /// The messages that it serves, each with the fingerprint of its layout there: once for each fingerprint, where a
    /// message has several because something in it was renamed. In any order.
    pub handles: Vec<(MessageId, u64)>,
}

impl Node {
    /// The fingerprints under which this node serves `message`: none if it does not. Looks through the list: not for a hot
    /// path.
    pub fn fingerprints(&self, message: MessageId) -> impl Iterator<Item = u64> {
        self.handles.iter().filter(move |(id, _)| *id == message).map(|(_, fingerprint)| *fingerprint)
    }

    /// Whether this node serves `message`, in whatever layout. Looks through the list: not for a hot path.
    #[must_use]
    pub fn serves(&self, message: MessageId) -> bool {
        self.fingerprints(message).next().is_some()
    }
}

impl Node {
    /// The part of a line about it that its descriptions share: who, where, how much.
    pub(crate) fn describe(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, endpoint, shards, handles, .. } = self;
        let plural = |count: usize| if count == 1 { "" } else { "s" };
        let messages = handles.iter().map(|(id, _)| id).collect::<BTreeSet<_>>().len();
        let s = plural(usize::from(*shards));
        write!(f, "{id} at {endpoint}, {shards} shard{s}, {messages} message{}", plural(messages))
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.describe(f)?;
        write!(f, ", incarnation {}", self.incarnation)
    }
}

#[cfg(test)]
#[cfg(not(catga_loom))]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn an_id_keeps_its_text_and_sorts_and_hashes_by_it() {
        let a: NodeId = "node-1.eu_west".parse().unwrap();
        assert_eq!(a.as_str(), "node-1.eu_west");
        assert_eq!(a.hash64(), hash_bytes(b"node-1.eu_west"));
        assert_eq!(a, a.clone());
        assert!(NodeId::new("node10").unwrap() < NodeId::new("node9").unwrap(), "by bytes, not by number");
        let map = HashMap::from([(a, 7)]);
        assert_eq!(map.get("node-1.eu_west"), Some(&7));
    }

    #[test]
    fn a_text_that_is_no_id_is_refused_with_the_reason() {
        assert_eq!(NodeId::new(""), Err(NodeIdError::Empty));
        assert_eq!(NodeId::new("a".repeat(65)), Err(NodeIdError::TooLong { bytes: 65 }));
        assert!(NodeId::new("a".repeat(64)).is_ok());
        for character in ['*', '>', ':', ' ', '/', 'é', '\n', '\0'] {
            assert_eq!(NodeId::new(format!("a{character}b")), Err(NodeIdError::Character { character }));
        }
    }

    #[test]
    fn a_node_says_what_it_serves_and_who_it_is() {
        let (place, quote) = (MessageId::of("place", 1), MessageId::of("quote", 1));
        let node = Node {
            id: NodeId::new("node1").unwrap(),
            incarnation: Incarnation(3),
            endpoint: "127.0.0.1:5001".parse().unwrap(),
            shards: 2,
            // A field of it was renamed: it is still one message.
            handles: vec![(place, 11), (place, 12)],
        };
        assert_eq!(node.fingerprints(place).collect::<Vec<_>>(), [11, 12]);
        assert_eq!(node.fingerprints(quote).count(), 0);
        assert!(node.serves(place) && !node.serves(quote));
        assert_eq!(node.to_string(), "node1 at 127.0.0.1:5001, 2 shards, 1 message, incarnation 3");
    }
}
