#!/usr/bin/env bash
# What the install scripts in this folder share; they source it, nobody runs it.
# It sets `root` (the top of the repository) and `program` (for messages), and defines the functions
# below. Everything it says goes to standard error: standard output is for the one path asked for.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
program="$(basename "$0")"

say() { printf '%s: %s\n' "$program" "$*" >&2; }

# fail WHAT HINT: the one error, and what to do about it.
fail() {
  say "error: $1"
  say "hint: $2"
  exit 1
}

# need COMMAND HINT: stops when COMMAND is not on the PATH.
need() { command -v "$1" >/dev/null 2>&1 || fail "$1 is needed and is not on the PATH" "$2"; }

# bounded SECONDS COMMAND...: runs COMMAND with its output on standard error, for that long at most.
bounded() { timeout --foreground --kill-after=10 "$@" >&2; }

# take_turns FOLDER NAME: waits until no other run works on NAME in FOLDER, then sets `staging` to an
# empty folder in there that goes away when this script ends. A killed run leaves its own behind:
# since only the holder of the lock makes them, whatever lies there now is rubbish.
take_turns() {
  need flock "install util-linux"
  need timeout "install coreutils"
  mkdir -p "$1"
  exec 9>"$1/.lock-$2"
  flock --wait 1800 9 || fail "another run has held $1/.lock-$2 for 30 minutes" "end that run, then try again"
  rm -rf "$1/.staging-$2".*
  staging="$(mktemp -d "$1/.staging-$2.XXXXXX")"
  trap 'rm -rf "$staging"' EXIT
}

# build_crate NAME VERSION [OPTION...]: has cargo build a program into $staging/bin. The dev profile
# without debug information is the quickest to build, and these tools have little to do.
build_crate() {
  need cargo "install Rust 1.95 or newer"
  local name="$1" version="$2"
  shift 2
  # The PATH is only there to keep cargo from advising to add this passing folder to it.
  PATH="$PATH:$staging/bin" CARGO_PROFILE_DEV_DEBUG=0 bounded 1500 cargo install "$name@$version" --locked --debug --no-track "$@" \
    --root "$staging" --target-dir "$staging/build" ||
    fail "cargo could not build $name $version" \
      "its own message is above; this step needs crates.io, a C compiler and 1 GB of disk"
}

# download_packages PACKAGE...: has apt-get put Debian packages into $staging/packages; whether it could. A package may say its
# version, as NAME=VERSION. Where the system's package lists do not offer them, it reads the newest into lists of our own, so
# that this neither needs root nor touches the system's.
download_packages() {
  mkdir -p "$staging/packages" "$staging/lists/partial" "$staging/archives/archives/partial"
  (
    cd "$staging/packages"
    bounded 300 apt-get -q -o APT::Sandbox::User= download "$@" && exit
    say "the system's package lists do not offer $*: reading the newest"
    private=(-q -o "Dir::State::lists=$staging/lists" -o "Dir::Cache=$staging/archives" -o APT::Sandbox::User= -o Acquire::Retries=2)
    bounded 300 apt-get "${private[@]}" update && bounded 300 apt-get "${private[@]}" download "$@"
  )
}
