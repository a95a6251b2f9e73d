//! Calls: requests in flight, from the caller's side.
//!
//! ```text
//!            open                sent               complete             take
//!   (free) --------> Waiting ------------> Sent ---------------> Done ---------> (free)
//!                       |   no room yet      |   answer, expiry,   |
//!                       |                    |   lost lane         |
//!                       |◀--- set out -------|                     |
//!                       +---- abandon -------+---------------------+-----------> (free)
//! ```
//!
//! The [`table`] is the state machine: it does no I/O and reads no clock. [`future`] is what a handler awaits,
//! [`batch`] sends many and hands out the outcomes as they come. A call that comes to nothing on one node may set out again for
//! another: where it has been is its [`journey`].

pub(crate) mod batch;
pub(crate) mod future;
pub(crate) mod journey;
#[cfg(test)]
mod model;
pub(crate) mod table;
pub(crate) mod waiting;

pub use batch::{Batch, Collected, Outcome};
pub use future::Call;
