//! `--rivals`: the same exchange in other libraries, in a workspace of its own (`perf/rivals`), because its tree is
//! heavy and no reader should build it unasked. It prints its own table.

use std::path::Path;
use std::process::Command;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/rivals");

/// Builds and runs them, or says in one line why not. What they do never changes this run's own result.
pub(crate) fn run(quick: bool) {
    let manifest = Path::new(FOLDER).join("Cargo.toml");
    if !manifest.is_file() {
        eprintln!("rivals   not in this checkout: they come with the crate perf/rivals");
        return;
    }
    let mut cargo = Command::new("cargo");
    cargo.args(["run", "--release", "--manifest-path"]).arg(manifest);
    if quick {
        cargo.args(["--", "--quick"]);
    }
    match cargo.status() {
        Ok(status) if status.success() => {}
        Ok(status) => eprintln!("rivals   ended with {status}"),
        Err(problem) => eprintln!("rivals   cannot start cargo: {problem}"),
    }
}
