//! The floor: the same exchange by hand-written loops, with no engine between.
//!
//! The same frames, checks, clock and sampling as the engine's rows, two pinned threads that spin, and nothing else:
//! what an engine adds is the distance to these rows. Each file is one way to carry a frame.

pub(crate) mod locked;
pub(crate) mod ring;
pub(crate) mod tcp;
