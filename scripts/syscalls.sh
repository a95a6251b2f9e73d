#!/usr/bin/env bash
# Counts system calls for each request, shard to shard and over a lane, with strace. At 1,024 in flight most requests need
# none: the limits are 0.001 futex calls and 0.05 system calls in all. Exit status 1 if one is exceeded.
#
#   scripts/syscalls.sh [REQUESTS]     default 400,000
#
# The example `stream` runs twice, with REQUESTS and with twice as many; the difference leaves starting and stopping out.
# strace makes each system call a hundred times slower, so what waits for the clock (polling, heartbeats) weighs more here
# than it does without it: the true numbers are lower.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

requests=${1:-400000}
[[ $requests =~ ^[1-9][0-9]*$ ]] || die "'$requests' is no number of requests"
need strace "On Debian or Ubuntu: apt-get install strace"
need_rust
cargo build --quiet --release --manifest-path "$root/Cargo.toml" -p catga --example stream
stream=${CARGO_TARGET_DIR:-$root/target}/release/examples/stream
counts=$(mktemp)
trap 'rm -f "$counts"' EXIT

# count WAY REQUESTS: prints "futex-calls all-calls".
count() {
    strace -f -c -q -o "$counts" "$stream" "$1" "$2" >/dev/null || die "stream $1 $2 failed"
    awk '$NF == "futex" { futex = $4 } $NF == "total" { total = $4 } END { print futex + 0, total + 0 }' "$counts"
}

status=0
for way in local lane; do
    read -r futex_once all_once < <(count "$way" "$requests")
    read -r futex_twice all_twice < <(count "$way" $((2 * requests)))
    awk -v way="$way" -v requests="$requests" -v futex=$((futex_twice - futex_once)) -v all=$((all_twice - all_once)) '
        BEGIN {
            if (futex < 0) futex = 0
            printf "%-6s %.5f futex calls and %.4f system calls for each request\n", way, futex / requests, all / requests
            exit futex / requests > 0.001 || all / requests >= 0.05
        }' || status=1
done
exit $status
