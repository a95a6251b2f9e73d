#!/usr/bin/env bash
# Three nodes on this machine under a steady load of orders: one is killed without a word, and comes back.
#
#   scripts/cluster.sh                  20,000 orders a second for 21 seconds
#   scripts/cluster.sh --seconds 60     longer; node b is killed after a third of it, and started again after two
#   scripts/cluster.sh --rate 5000      fewer orders a second
#
# Prints a line a second: what the callers got, and from whom. The exit status is 0 if every call had exactly one outcome and
# every reply was right. Works from any directory; everything that it starts ends with it. Needs Rust and a linker, no server.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage="usage: cluster.sh [--seconds SECONDS] [--rate ORDERS_A_SECOND]"
seconds=21
rate=20000
while [[ $# -gt 0 ]]; do
    case $1 in
        --help | -h)
            sed -n '2,/^set /{/^set /d; s/^# \{0,1\}//; p}' "${BASH_SOURCE[0]}"
            exit 0
            ;;
        --seconds | --rate)
            [[ ${2:-} =~ ^[1-9][0-9]*$ ]] || die "'$1' needs a whole number above 0; $usage"
            [[ $1 == --seconds ]] && seconds=$2 || rate=$2
            shift 2
            ;;
        *) die "unknown option '$1'; $usage" ;;
    esac
done
[[ $seconds -ge 3 ]] || die "'--seconds $seconds' is too short for a fall and a return: 3 at the least"

need_rust
cd "$root"
echo "==> building the example cluster_desk (optimised: minutes, the first time)"
cargo build --quiet --release -p catga --example cluster_desk
desk=${CARGO_TARGET_DIR:-$root/target}/release/examples/cluster_desk

work=$(mktemp -d)
declare -A pids=() # of what runs, by name

at_end() {
    trap '' INT TERM
    for name in "${!pids[@]}"; do
        kill -TERM "${pids[$name]}" 2>/dev/null || true
    done
    # Nodes let end what they have, for some seconds at most.
    wait
    rm -rf "$work"
}
trap at_end EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

say() {
    printf '==> %s\n' "$*"
}

# start NAME ARGUMENT...: starts the example in the background.
start() {
    local name=$1
    shift
    "$desk" "$@" &
    pids[$name]=$!
}

# start_node ID: starts a node, and waits until it says that it listens.
start_node() {
    local id=$1 pid
    : >"$work/$id"
    start "$id" node --id "$id" --listen "${endpoints[$id]}" --nodes "$nodes" >"$work/$id"
    pid=${pids[$id]}
    until grep -q "listens" "$work/$id"; do
        kill -0 "$pid" 2>/dev/null || die "node $id did not start"
        sleep 0.05
    done
    say "$(cat "$work/$id") (pid $pid)"
}

# A third of the time passes. In the background, so that Ctrl-C is heard at once.
pass_a_third() {
    local third=$((seconds * 1000 / 3))
    sleep "$((third / 1000)).$(printf '%03d' $((third % 1000)))" &
    pids[sleep]=$!
    wait "${pids[sleep]}"
    unset 'pids[sleep]'
    kill -0 "${pids[load]}" 2>/dev/null || die "the load has ended before its time"
}

declare -A endpoints=()
nodes=
{
    for id in a b c; do
        read -r "endpoints[$id]"
        nodes+=${nodes:+,}$id=${endpoints[$id]}
    done
} < <("$desk" ports 3)

for id in a b c; do
    start_node "$id"
done
say "$rate orders a second for $seconds s, each with half a second to be placed"
start load load --nodes "$nodes" --rate "$rate" --seconds "$seconds"

pass_a_third
say "node b is killed (kill -9 ${pids[b]}): whatever it had is gone"
kill -KILL "${pids[b]}"
wait "${pids[b]}" 2>/dev/null || true
unset 'pids[b]'

pass_a_third
say "node b starts again, on the same port"
start_node b

status=0
wait "${pids[load]}" || status=$?
unset 'pids[load]'

for id in a b c; do
    kill -TERM "${pids[$id]}"
    wait "${pids[$id]}" || status=1
    unset "pids[$id]"
    say "$(tail -n 1 "$work/$id")"
done
exit "$status"
