#!/usr/bin/env bash
# Builds catga-perf in release mode and runs it with the arguments given: the numbers of the README, on your machine.
#
#   scripts/bench.sh            everything that can run here: about three minutes
#   scripts/bench.sh --quick    the same in about one minute
#   scripts/bench.sh --rivals   also the rivals, between the other rounds; builds them first
#   scripts/bench.sh --help     all options
#
# Works from any directory; paths in options are relative to yours. Needs Rust and a linker, no server.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

need_rust
# The rivals' program is the same program with more rows. It is a workspace of its own, for its tree is heavy.
program=(--manifest-path "$root/Cargo.toml" -p catga-perf)
previous=
for word in "$@"; do
    if [[ $word == --rivals || $word == --only=rivals || "$previous $word" == "--only rivals" ||
        $word == --scenario=rivals/* || "$previous $word" == "--scenario rivals/"* ]]; then
        program=(--manifest-path "$root/perf/rivals/Cargo.toml" --target-dir "${CARGO_TARGET_DIR:-$root/target}")
    fi
    previous=$word
done

# On Unix cargo becomes the program that it runs, so Ctrl-C and the exit status are the program's own.
exec cargo run --quiet --release "${program[@]}" -- "$@"
