//! What most services use: `use catga::prelude::*;`.

pub use crate::{
    Archived, CallError, Client, Context, Engine, Fault, Idle, Reply, Routes, ShardId, StartError, State,
    event, message, request,
};
