//! What a shard is told to do for the membership, and what it tells in turn.
//!
//! The agent names [`Target`]s: whom to keep a lane to. Shard 0 of each engine ([`KEEPER`]) keeps one lane to every
//! target, and that lane tells whether the node is alive. Each shard says in [`Contacts`] with whom it has an open lane,
//! whoever dialled it. Contacts are a state and not an event: a shard publishes all of it whenever any of it changes,
//! through a [`mailbox`](crate::mailbox()), so nothing is lost if one is replaced before it was read.
#![forbid(unsafe_code)]

use std::{fmt, str::FromStr, sync::Arc};

use crate::{
    endpoint::{Endpoint, EndpointError},
    node::{Node, NodeId, NodeIdError},
};

/// The shard of each engine that keeps a lane to every target.
pub const KEEPER: u16 = 0;

/// Whom to keep a lane to. Its text form is `id=endpoint`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    /// Where it listens.
    pub endpoint: Endpoint,
    /// Who should answer there; `None` if that is learned from its greeting, as with addresses from DNS.
    pub id: Option<NodeId>,
}

/// A text that is no [`Target`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TargetError {
    /// There is no `=`.
    #[error("it is not of the form id=address:port or id=unix:/path")]
    Form,
    /// What stands before the `=` is no id.
    #[error(transparent)]
    Id(#[from] NodeIdError),
    /// What stands after the `=` is no endpoint.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let (id, endpoint) = text.split_once('=').ok_or(TargetError::Form)?;
        Ok(Self { id: Some(id.parse()?), endpoint: endpoint.parse()? })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.id {
            Some(id) => write!(f, "{id} at {}", self.endpoint),
            None => self.endpoint.fmt(f),
        }
    }
}

/// What one shard knows by its lanes: all of it, each time.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Contacts {
    /// With whom it has at least one open lane, in any order.
    pub nodes: Vec<Contact>,
    /// The targets that cannot have a lane as things are, with the reason. One that merely cannot be reached is not here.
    pub refused: Vec<(Target, Refused)>,
    /// Lives that do not make way for a later one of the same id; at most as many as the shard remembers.
    pub superseded: Vec<Superseded>,
    /// Whether each target that it was told of has been tried to an end at least once: there is a lane, or the attempt
    /// failed. False as long as it was told of no list of targets, even an empty one. Asked of the [`KEEPER`] only.
    pub settled: bool,
}

/// A node with which a shard has an open lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contact {
    /// As it described itself when the lane was opened.
    pub node: Arc<Node>,
    /// Whether it has said that it leaves.
    pub leaving: bool,
}

/// A life of a node that goes on although a later one has its id. After a restart the lanes of the former life end and that
/// is all; this one has come again and again, for longer than [`RIVALS_AFTER`](crate::members::RIVALS_AFTER).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Superseded {
    /// Another node: its lanes were closed, because there are some to a later life of it.
    Theirs(Arc<Node>),
    /// This node itself: this peer closed its lanes, because it has some to a later life.
    Own(Arc<Node>),
}

/// Why a target cannot have a lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// The node that answers there is this one. It is no target any more.
    ThisNode,
    /// One side turned the other away: what happened, and what to do about it.
    Because(String),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ThisNode => f.write_str("this is this node"),
            Self::Because(reason) => f.write_str(reason),
        }
    }
}

#[cfg(test)]
#[cfg(not(catga_loom))]
mod tests {
    use super::*;

    #[test]
    fn an_entry_of_a_list_says_who_is_where() {
        let target: Target = "a=unix:/run/x=1.sock".parse().unwrap();
        assert_eq!(target.id, Some(NodeId::new("a").unwrap()));
        assert_eq!(target.to_string(), "a at unix:/run/x=1.sock", "a path may contain `=`");
        assert_eq!("127.0.0.1:1".parse::<Target>(), Err(TargetError::Form));
        assert_eq!("=127.0.0.1:1".parse::<Target>(), Err(TargetError::Id(NodeIdError::Empty)));
        assert!(matches!("a=localhost:1".parse::<Target>(), Err(TargetError::Endpoint(_))));
    }
}
