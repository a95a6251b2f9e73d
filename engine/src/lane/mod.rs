//! Lanes: one connection between a shard here and a shard on another node.
//!
//! Read in this order. [`greeting`] is what each side says of itself, [`handshake`] what they make of it, [`close`] why
//! a lane ends. [`config`] sets its bounds, [`credit`] counts the answers owed, [`pulse`] watches the time, [`buffer`]
//! holds the bytes on both ways; [`protocol`] is the state machine over all of it, and [`outcome`] what it answers. None
//! of these does I/O or reads a clock: bytes and `now` come in, bytes go out, so tests and fuzzers drive whole lanes in
//! memory.
//!
//! ```text
//!   socket ──▶ ReceiveBuffer ──▶ Lane::next_frame ──▶ Step::Frame ──▶ the engine
//!   socket ◀── Lane::unsent  ◀── SendBuffer       ◀── Lane::send  ◀──┘
//! ```

pub(crate) mod buffer;
pub(crate) mod close;
pub(crate) mod config;
pub(crate) mod credit;
pub(crate) mod greeting;
pub(crate) mod handshake;
pub(crate) mod io;
pub(crate) mod outcome;
pub(crate) mod protocol;
pub(crate) mod pulse;

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
