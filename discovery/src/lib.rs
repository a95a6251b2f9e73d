//! Membership of the Catga engine: which nodes there are, and how every shard comes to know it.
//!
//! A [`Node`] is one process of the cluster. A [`View`] is all of them at one moment: immutable, replaced whole, and
//! prepared so that routing a request reads arrays and hashes no string. [`Members`] makes views of the [`Contacts`] that
//! shards have by their lanes. The [`mailbox`](mod@mailbox) carries all of these between the thread that does so and the
//! shards, each of which takes what is new when it likes: neither side ever waits for the other.
//!
//! ```text
//! shard ── Contacts ──▶ mailbox ──▶ Members ── View ──▶ mailbox ── once a turn ──▶ the shard's own Arc<View>
//!                                           └─ Targets ─▶ mailbox ──▶ shard 0, which keeps a lane to each
//! ```
//!
//! Nothing here does I/O or reads a clock.

pub mod contacts;
pub mod endpoint;
pub mod mailbox;
pub mod members;
pub mod node;
#[doc(hidden)]
pub mod sync;
pub mod view;

pub use contacts::{Contact, Contacts, KEEPER, Refused, Superseded, Target, TargetError};
pub use endpoint::{Endpoint, EndpointError};
pub use mailbox::{Publisher, Subscriber, mailbox};
pub use members::{Members, Notice};
pub use node::{Incarnation, Node, NodeId, NodeIdError};
pub use view::{Member, NodeState, View, owner};
