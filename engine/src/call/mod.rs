//! Calls: requests in flight, from the caller's side.
//!
//! ```text
//!            open                sent               complete             take
//!   (free) --------> Waiting ------------> Sent ---------------> Done ---------> (free)
//!                       |   no room yet      |   answer, expiry,   |
//!                       |                    |   lost lane         |
//!                       +---- abandon -------+---------------------+-----------> (free)
//! ```
//!
//! The [`table`] is the state machine: it does no I/O and reads no clock. [`future`] is what a handler awaits,
//! [`batch`] sends many and hands out the outcomes as they come.

pub(crate) mod batch;
pub(crate) mod future;
#[cfg(test)]
mod model;
pub(crate) mod table;

pub use batch::{Batch, Collected, Outcome};
pub use future::Call;
