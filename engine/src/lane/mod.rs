//! Lanes: one connection between a shard here and a shard on another node.
//!
//! Read in this order. [`greeting`] is what each side says of itself, [`handshake`] what they make of it, [`key`] and
//! [`proof`] how they know that it is true, [`opening`] who says what when; [`close`] is why a lane ends. [`config`] sets
//! its bounds, [`credit`] counts the answers owed, [`pulse`] watches the time, [`lag`] what is late, [`buffer`] holds the bytes on both ways;
//! [`protocol`] is the state machine over all of it, [`sending`] the part of it that queues frames for the engine, and
//! [`outcome`] what it answers. None of these does I/O or reads a clock: bytes and `now` come in, bytes go out, so tests
//! and fuzzers drive whole lanes in memory. Around them, [`io`] is one connection, [`lanes`] all those of a shard, [`peers`] the
//! nodes that they lead to and how these are dialled, and [`ways`] which lane a request takes;
//! [`rivals`] notices two nodes of one id.
//!
//! ```text
//!   socket ──▶ ReceiveBuffer ──▶ Lane::next_frame ──▶ Step::Frame ──▶ the engine
//!   socket ◀── Lane::unsent  ◀── SendBuffer       ◀── Lane::send  ◀──┘
//! ```

pub(crate) mod buffer;
pub(crate) mod close;
pub(crate) mod config;
pub(crate) mod credit;
pub(crate) mod events;
pub(crate) mod greeting;
pub(crate) mod handshake;
pub(crate) mod io;
pub(crate) mod key;
pub(crate) mod lag;
pub(crate) mod lanes;
pub(crate) mod opening;
pub(crate) mod outcome;
pub(crate) mod peers;
pub(crate) mod proof;
pub(crate) mod protocol;
pub(crate) mod pulse;
mod rivals;
pub(crate) mod sending;
pub(crate) mod ways;

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
