//! Frames and messages: the bytes that move between shards and nodes, and nothing else.
//!
//! A message is a Rust type with a stable name and an archived layout (rkyv): it is archived once, into the
//! memory that will travel, and read in place where it arrives. A frame is a header of 48 bytes followed by
//! one archived message.
//!
//! ```text
//!   #[request] / #[event] / #[message]     message, shape   what a type must be to travel, its fingerprint
//!          │ encode_local, encode_frame    encode, scratch  archive straight into a ring, a socket buffer, a stack
//!          ▼
//!   [ header 48 | extensions | payload ]   header, extension
//!          │ LocalFrame    bytes of this process: trusted, the context word proves the type
//!          │ ForeignFrame  bytes of another process: parsed, then checked before a reference is handed out
//!          ▼                               frame
//!   &Archived<T>
//! ```
//!
//! This crate knows no I/O, no time and no threads. Its `unsafe` lives in `scratch`, `frame::local`,
//! `frame::owned` and in the trait that the macros implement (`message`).

// The macros name their support crate `::catga::__codec`; inside this crate that is the crate itself.
extern crate self as catga;

mod contract;
mod encode;
mod error;
mod extension;
mod frame;
pub mod hash;
mod header;
mod key;
pub mod limits;
mod message;
mod scratch;
mod shape;

#[doc(hidden)]
pub use crate as __codec;
pub use catga_derive::{event, message, request};
pub use contract::{Contract, ContractKind, FieldPrint, LayoutPrint, first_difference};
pub use encode::{Encoder, encode_empty, encode_frame, encode_local, encode_local_empty};
pub use error::{AccessError, EncodeError, FrameError};
pub use extension::{EXTENSION_TRACE, Extension, Extensions, write_extensions};
pub use frame::{ForeignFrame, LocalFrame, OwnedFrame, Parsed};
pub use header::{CallId, Flags, Header, Kind, padded};
pub use key::Key;
pub use message::{
    ArchivedMessage, Checker, Deserializer, Event, Fault, Message, MessageId, Request, TypeCell, TypeIndex,
};
#[doc(hidden)]
pub use message::{check, deserialize};
pub use rkyv;
pub use rkyv::Archived;
pub use shape::{Field, Names, Shape, layout};
