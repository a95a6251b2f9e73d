//! Tests of the lane: its parts alone, and two lanes against each other in memory.

mod buffer;
mod greeting;
mod handshake;
mod lag;
mod leaving;
mod opening;
mod pair;
mod protocol;
mod pulse;
mod ways;
