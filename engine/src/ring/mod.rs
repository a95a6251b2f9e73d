//! What passes between two threads: frames through a ring, and a bell for the one that sleeps.
//!
//! - [`spsc`]: the bounded byte ring of an ordered pair of shards. Frames lie in line and are archived straight into it.
//! - [`handover`]: one exchange with a thread that is no shard: a block that goes there and comes back.
//! - [`doorbell`]: wakes a shard that parked, and costs the sender one fence when it did not.
//!
//! All take their atomics from `catga_discovery::sync`, so that loom can run each test under all schedules:
//!
//! ```text
//! RUSTFLAGS="--cfg catga_loom" cargo test -p catga --no-default-features --lib ring --release
//! ```
#![cfg_attr(catga_loom, allow(dead_code))] // loom builds the rings alone, without the shards that use them

pub(crate) mod doorbell;
pub(crate) mod handover;
pub(crate) mod spsc;
