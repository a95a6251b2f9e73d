//! `scripts/bench.sh --rivals`: the program behind `scripts/bench.sh`, with rows for other libraries in the same run.
//!
//! A rival is started and called as its own documentation shows it. It is not tuned, and it is not held back either: its
//! messages are plain values of 16 bytes where the engine's are frames of 64, and it has no deadlines, no outcomes and no
//! bounds but the capacity of its queue.

mod actix_actor;
mod flume_channel;
mod kameo_actor;
mod server;
mod tokio_channel;

use std::process::ExitCode;

use catga_perf::rivals::Row;

fn main() -> ExitCode {
    let rivals = [
        Row::all::<tokio_channel::TokioChannel>("tokio-channel"),
        Row::all::<flume_channel::FlumeChannel>("flume-channel"),
        Row::all::<actix_actor::ActixActor>("actix"),
        Row::all::<kameo_actor::KameoActor>("kameo"),
    ];
    catga_perf::main(rivals.into_iter().flatten().collect())
}
