//! What most services use: `use catga::prelude::*;`.

pub use crate::{
    Archived, CallError, Client, Context, Engine, Fault, Idle, OnPanic, Owned, Reply, Routes, ShardId,
    StartError, State, event, message, request,
};
