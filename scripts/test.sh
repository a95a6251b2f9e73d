#!/usr/bin/env bash
# Runs everything that holds this project's promises: format, lints, tests, documentation, schedules, examples.
#
#   scripts/test.sh            all of it
#   scripts/test.sh --quick    without the loom tests, which build the rings once more
#
# Works from any directory. Needs Rust and a linker, no server and no network beyond the crates. CATGA_ORDERS may name a
# directory with invoices.csv and invoice_lines.csv: the order desk is then tested on them too.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

quick=false
for word in "$@"; do
    case $word in
        --quick) quick=true ;;
        *) die "unknown option '$word'; usage: test.sh [--quick]" ;;
    esac
done

# On a fresh Debian only the linker is missing. Installed if we may, else the reader is told how.
if ! command -v cc >/dev/null 2>&1 && command -v apt-get >/dev/null 2>&1; then
    as_root=()
    [[ $EUID -eq 0 ]] || as_root=(sudo -n)
    echo "there is no linker (cc): apt-get install build-essential"
    "${as_root[@]}" apt-get update -qq || true
    "${as_root[@]}" apt-get install -y -qq build-essential || true
fi
need_rust

cd "$root"
target=${CARGO_TARGET_DIR:-$root/target}
steps=0
skipped=()
current=

# step NAME COMMAND...: runs one step, its name first. The first one that fails ends the script.
step() {
    current=$1
    shift
    steps=$((steps + 1))
    printf '\n==> %s (at %d s)\n' "$current" "$SECONDS"
    "$@"
}

skip() {
    printf '\n==> skipped: %s\n' "$1"
    skipped+=("$1")
}

at_end() {
    local status=$?
    if [[ $status -ne 0 ]]; then
        printf '\ntest.sh: FAILED in: %s (after %d s)\n' "${current:-the preparations}" "$SECONDS"
    fi
}
trap at_end EXIT

if cargo fmt --version >/dev/null 2>&1; then
    step "format" cargo fmt --all --check
    for manifest in engine/examples/from_axum/Cargo.toml perf/rivals/Cargo.toml; do
        step "format of $manifest" cargo fmt --manifest-path "$manifest" --check
    done
else
    skip "format (rustup component add rustfmt)"
fi
if cargo clippy --version >/dev/null 2>&1; then
    step "lints" cargo clippy --quiet --workspace --all-targets -- -D warnings
else
    skip "lints (rustup component add clippy)"
fi

step "tests and documentation tests" cargo test --quiet --workspace
# Without the glommio feature every engine waits in epoll: what a container without io_uring gets.
step "the engine's tests in epoll" cargo test --quiet -p catga --no-default-features --lib --tests
step "each benchmark once" cargo test --quiet -p catga-benches --benches
step "documentation" env RUSTDOCFLAGS="${RUSTDOCFLAGS:-} -D warnings" cargo doc --quiet --workspace --no-deps

if $quick; then
    skip "all schedules of the lock-free parts (--quick)"
else
    # A target directory of its own: another cfg would rebuild everything in the first one, each time.
    loom=(env RUSTFLAGS="${RUSTFLAGS:-} --cfg catga_loom" CARGO_TARGET_DIR="$target/loom"
        CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 cargo test --quiet --release)
    step "all schedules of ring and doorbell (loom)" "${loom[@]}" -p catga --no-default-features --lib ring
    step "all schedules of the mailbox (loom)" "${loom[@]}" -p catga-discovery --lib
fi

for example in hello two_nodes order_desk; do
    step "example $example" cargo run --quiet -p catga --example "$example"
done
# A workspace of its own, for its tree is heavy.
step "example from_axum" cargo test --quiet --target-dir "$target" --manifest-path engine/examples/from_axum/Cargo.toml
# Not for the figures, which an unoptimised build does not have: every reply is checked, on one node and between two.
for scenario in floor/ring/1 local/cross-shard/64 lane/64 lane/orders; do
    step "load for a second: $scenario" cargo run --quiet -p catga-perf -- --scenario "$scenario" --seconds 1
done

printf '\ntest.sh: all %d steps passed in %d s' "$steps" "$SECONDS"
[[ ${#skipped[@]} -eq 0 ]] || printf '; skipped: %s' "${skipped[*]}"
printf '\n'
