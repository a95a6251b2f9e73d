#!/usr/bin/env bash
# Where the time goes: profiles one scenario with perf and draws a flame graph as SVG.
#
#   scripts/flamegraph.sh SCENARIO [SECONDS]    (names: scripts/bench.sh --list; 10 seconds unless told)
#
# Samples the CPU clock of all processes of the scenario, since hardware counters are missing in most virtual machines.
# Stacks come from frame pointers: the program is built once more with them, into a target directory of its own.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# A prime, so that samples do not fall into step with anything periodic.
samples_per_s=997

[[ $# -ge 1 && $# -le 2 && $1 != -* ]] || die "usage: flamegraph.sh SCENARIO [SECONDS]; names: scripts/bench.sh --list"
scenario=$1
seconds=${2:-10}
[[ $seconds =~ ^[1-9][0-9]*$ ]] || die "SECONDS is a whole number above 0, not '$seconds'"

need_rust
need perf "On Debian: apt-get install linux-perf. On Ubuntu: apt-get install linux-tools-generic"

# What the kernel lets this user see.
event=cpu-clock
paranoid=$(cat /proc/sys/kernel/perf_event_paranoid)
if [[ $EUID -ne 0 && $paranoid -gt 2 ]]; then
    die "kernel.perf_event_paranoid is $paranoid: profiling is forbidden. Allow it: sudo sysctl kernel.perf_event_paranoid=1"
elif [[ $EUID -ne 0 && $paranoid -gt 1 ]]; then
    echo "kernel.perf_event_paranoid is $paranoid: time in the kernel is left out. Show it: sudo sysctl kernel.perf_event_paranoid=1" >&2
    event=cpu-clock:u
fi
restricted=$(cat /proc/sys/kernel/kptr_restrict)
if [[ $restricted -gt 1 || ($restricted -eq 1 && $EUID -ne 0) ]]; then
    echo "kernel.kptr_restrict is $restricted: kernel functions have no names. Show them: sudo sysctl kernel.kptr_restrict=0" >&2
fi

target=${CARGO_TARGET_DIR:-$root/target}/flame
RUSTFLAGS="${RUSTFLAGS:-} -C force-frame-pointers=yes" \
    cargo build --quiet --release --manifest-path "$root/Cargo.toml" --target-dir "$target" -p catga-perf
program=$target/release/catga-perf

# Mistakes in the name show before perf starts.
"$program" --list | grep -qxF -- "$scenario" || die "there is no scenario '$scenario'; names: scripts/bench.sh --list"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
perf record --quiet -e "$event" -F "$samples_per_s" -g -o "$work/perf.data" -- \
    "$program" --scenario "$scenario" --seconds "$seconds"

output=$root/perf/results/local/flame-${scenario//\//-}.svg
mkdir -p "$(dirname "$output")"
# Without --no-inline perf looks every address up in the debug information, which takes minutes.
perf script --no-inline -F comm,period,ip,sym -i "$work/perf.data" | "$program" fold >"$output.tmp"
mv "$output.tmp" "$output"
echo "flame graph: $output"
