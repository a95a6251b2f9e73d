//! The lane's state machines, taken file by file from the engine, so that a fuzzer drives them alone: neither sockets
//! nor a runtime are built, and the engine needs no feature for it. The entry functions live in `lane/model.rs`, where
//! the engine's ordinary tests replay the committed corpus through them.
#![allow(dead_code)]

#[path = "../src/time.rs"]
mod time;

mod lane;

/// See `fuzz_handshake` in the engine's `lane/model.rs`.
pub fn handshake(data: &[u8]) {
    lane::model::fuzz_handshake(data);
}

/// See `fuzz_lane` in the engine's `lane/model.rs`.
pub fn lane(data: &[u8]) {
    lane::model::fuzz_lane(data);
}
