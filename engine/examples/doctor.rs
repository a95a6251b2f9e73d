//! Prints what of this machine helps or hinders an engine, each finding with its cure, and where shards would run.
//!
//! `cargo run -p catga --example doctor`. Exits with 1 only if something would keep an engine from running.

use std::process::ExitCode;

use catga::Engine;

fn main() -> ExitCode {
    let report = catga::doctor();
    println!("{report}\n");
    match Engine::builder().placement() {
        Ok(placement) => print!("by default:\n{placement}"),
        Err(error) => println!("by default: {error}"),
    }
    if report.can_run() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
