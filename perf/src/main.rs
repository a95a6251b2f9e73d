//! The program behind `scripts/bench.sh`; all of it is in the library, so that the rivals' program is the same.

fn main() -> std::process::ExitCode {
    catga_perf::main(Vec::new())
}
