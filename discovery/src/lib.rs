//! Membership of the Catga engine: which nodes there are, and how every shard comes to know it.
//!
//! A [`Node`] is one process of the cluster. A [`View`] is all of them at one moment: immutable, replaced whole, and
//! prepared so that routing a request reads arrays and hashes no string. The [`mailbox`](mod@mailbox) carries a new
//! view from the thread that builds it to a shard that takes it when it likes: neither ever waits for the other.
//!
//! ```text
//! membership ── View::new ──▶ Publisher ──▶ (one place) ──▶ Subscriber ── once a turn ──▶ the shard's own Arc<View>
//! ```
//!
//! Nothing here does I/O or reads a clock.

pub mod mailbox;
pub mod node;
#[doc(hidden)]
pub mod sync;
pub mod view;

pub use mailbox::{Publisher, Subscriber, mailbox};
pub use node::{Incarnation, Node, NodeId, NodeIdError};
pub use view::View;
