# Shared by the scripts here: where the checkout is, and how to end with a message. Sourced, not run.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

die() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
    exit 1
}

# need COMMAND HINT: ends the script with the hint if the command is not installed.
need() {
    command -v "$1" >/dev/null 2>&1 || die "there is no '$1' here. $2"
}

need_rust() {
    # rustup's directory is not on the PATH of every shell.
    command -v cargo >/dev/null 2>&1 || PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
    need cargo "Install Rust: https://rustup.rs"
    need cc "Rust needs a linker. On Debian or Ubuntu: apt-get install build-essential"
}
