//! The files of `engine/src/lane` that do no I/O.

#[path = "../src/lane/buffer.rs"]
pub(crate) mod buffer;
#[path = "../src/lane/close.rs"]
pub(crate) mod close;
#[path = "../src/lane/config.rs"]
pub(crate) mod config;
#[path = "../src/lane/credit.rs"]
pub(crate) mod credit;
#[path = "../src/lane/greeting.rs"]
pub(crate) mod greeting;
#[path = "../src/lane/handshake.rs"]
pub(crate) mod handshake;
#[path = "../src/lane/model.rs"]
pub(crate) mod model;
#[path = "../src/lane/outcome.rs"]
pub(crate) mod outcome;
#[path = "../src/lane/protocol.rs"]
pub(crate) mod protocol;
#[path = "../src/lane/pulse.rs"]
pub(crate) mod pulse;
