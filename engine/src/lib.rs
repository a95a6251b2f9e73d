//! **Catga**: requests and events between the cores of a machine and between machines, as the same archived bytes
//! from the caller's hand to the handler's eye.
//!
//! A service declares messages and handlers. The engine pins one shard to each core, runs the handlers there without
//! locks, and carries frames between shards through rings and between nodes through lanes.
//!
//! ```
//! use catga::prelude::*;
//!
//! #[request(reply = Sum)]
//! pub struct Add { pub left: u64, pub right: u64 }
//! #[message]
//! pub struct Sum { pub value: u64 }
//!
//! #[derive(Default)]
//! struct Adder { answered: u64 }
//!
//! impl Adder {
//!     fn add(&mut self, add: &Archived<Add>, _: &Context) -> Result<Sum, Fault> {
//!         self.answered += 1;
//!         Ok(Sum { value: add.left.to_native() + add.right.to_native() })
//!     }
//! }
//!
//! let engine = Engine::builder().shards(1).service(|_| Adder::default(), |routes| routes.request(Adder::add)).start()?;
//! let client = engine.client();
//! let sum = pollster::block_on(client.send(&Add { left: 2, right: 3 }));
//! assert_eq!(sum.map(|sum| sum.value.to_native()), Ok(5));
//! # Ok::<(), StartError>(())
//! ```
//!
//! What is promised, subject by subject, is in [`semantics`]. The architecture, and a request's walk through it, are in
//! `ARCHITECTURE.md`.

// The macros name their crate `::catga`; inside of it that is the crate itself.
extern crate self as catga;

// Under loom the rings are built alone.
#[cfg(not(catga_loom))]
mod agent;
#[cfg(not(catga_loom))]
mod broadcast;
#[cfg(not(catga_loom))]
mod builder;
#[cfg(not(catga_loom))]
mod call;
#[cfg(not(catga_loom))]
mod choice;
#[cfg(not(catga_loom))]
mod client;
#[cfg(not(catga_loom))]
mod cluster;
#[cfg(not(catga_loom))]
mod context;
#[cfg(not(catga_loom))]
mod description;
#[cfg(not(catga_loom))]
pub mod doctor;
#[cfg(not(catga_loom))]
mod engine;
#[cfg(not(catga_loom))]
mod error;
#[cfg(not(catga_loom))]
mod instance;
#[cfg(not(catga_loom))]
mod lane;
#[cfg(not(catga_loom))]
pub mod limits;
#[cfg(not(catga_loom))]
mod log_limit;
#[cfg(not(catga_loom))]
mod nodes;
mod panics;
#[cfg(not(catga_loom))]
mod placement;
#[cfg(not(catga_loom))]
mod pool;
#[cfg(not(catga_loom))]
pub mod prelude;
#[cfg(not(catga_loom))]
mod reply;
mod ring;
#[cfg(not(catga_loom))]
mod rounds;
#[cfg(not(catga_loom))]
mod route;
#[cfg(not(catga_loom))]
mod runtime;
#[cfg(not(catga_loom))]
#[doc = include_str!("semantics.md")]
pub mod semantics {}
#[cfg(not(catga_loom))]
mod service;
#[cfg(not(catga_loom))]
mod shard;
#[cfg(not(catga_loom))]
mod signals;
#[cfg(not(catga_loom))]
mod stats;
#[cfg(not(catga_loom))]
mod stop;
#[cfg(not(catga_loom))]
mod tasks;
#[cfg(not(catga_loom))]
mod time;
#[cfg(not(catga_loom))]
mod timer;
#[cfg(not(catga_loom))]
mod watchdog;

#[doc(hidden)]
pub use catga_codec::__codec;
pub use catga_codec::{
    Archived, ArchivedMessage, Event, Fault, Key, Message, MessageId, Request, event, message, request, rkyv,
};
pub use catga_discovery::{Endpoint, Incarnation, Member, Node, NodeId, NodeState};
#[cfg(not(catga_loom))]
pub use {
    broadcast::{Broadcast, BroadcastError, ClientBroadcast, Handled, Line, Report},
    builder::{Builder, Runtime, StartError},
    call::{Batch, Call, Collected, Outcome},
    choice::Route,
    client::{Client, ClientCall},
    cluster::List,
    context::{Context, ShardId},
    doctor::doctor,
    engine::{Engine, RuntimeKind},
    error::{CallError, Failure, NotSent, PublishError, Refusal, Unknown},
    instance::{OnPanic, Owned, State},
    nodes::{Nodes, Watch},
    placement::{Placement, ShardPlace},
    reply::Reply,
    runtime::drive::Idle,
    service::Routes,
    stats::{DiscoveryStats, ShardStats, Stats},
    stop::StopReport,
    timer::{Every, Sleep},
};
