#!/bin/sh
# Usage: xtask/setup.sh TASK [ARGUMENT]...
# Installs what the task needs on Debian or Ubuntu and is not there yet, then runs `cargo xtask TASK`.
# Root is asked for (sudo) only when something is missing. Everything slow is cached below
# ${VDKR_CACHE:-~/.cache/vdkr-build}; cargo keeps its own caches.
set -eu

task=${1:?usage: xtask/setup.sh TASK [ARGUMENT]...}
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin:/usr/local/sbin:/usr/sbin:/sbin
export PATH

say() { echo "setup: $*" >&2; }
die() { say "$*"; exit 1; }

# --- What the task needs -------------------------------------------------------------------------

missing=
# need PACKAGE CHECK...: notes the package when the check fails.
need() {
    package=$1
    shift
    "$@" >/dev/null 2>&1 || missing="$missing $package"
}
has() { command -v "$1"; }
links_c() { echo 'int main(void) { return 0; }' | cc -x c -o /dev/null -; }
is_file() { test -e "$1"; }

base() {
    need gcc has cc
    need libc6-dev links_c
    need python3-venv python3 -c 'import venv, ensurepip'
    need xz-utils has xz
    need lz4 has lz4
    need debian-archive-keyring is_file /usr/share/keyrings/debian-archive-keyring.gpg
}
images() {
    need umoci has umoci
    case $(uname -m) in
        aarch64) need qemu-system-arm has qemu-system-aarch64 ;;
        *) need qemu-system-x86 has qemu-system-x86_64 ;;
    esac
    need e2fsprogs has mke2fs
}
# mmdebstrap for root, and the two that let ordinary users run it.
debootstrap() {
    need mmdebstrap has mmdebstrap
    need fakechroot has fakechroot
    need fakeroot has fakeroot
}
peers() {
    need erofs-utils has fsck.erofs
    need qemu-system-x86 has qemu-system-x86_64
    need qemu-system-arm has qemu-system-aarch64
    debootstrap
    need skopeo has skopeo
    need podman has podman
    need zstd has zstd
    need umoci has umoci
    need util-linux has unshare
    need iproute2 has ip
    need curl has curl
    need openssl has openssl
    need apache2-utils has htpasswd
    need nodejs has node
}

targets=
[ "$*" != "ci --only lint" ] || task=lint
case $task in
    agent | image | dist) targets="x86_64-unknown-linux-musl aarch64-unknown-linux-musl"; base ;;
    demo) targets=$(uname -m)-unknown-linux-musl; base; images ;;
    fixtures) base; images; debootstrap ;;
    board) targets="x86_64-unknown-linux-musl aarch64-unknown-linux-musl"; base; images; debootstrap ;;
    wasm) targets=wasm32-unknown-unknown; base; need nodejs has node ;;
    ci | bench)
        targets="x86_64-unknown-linux-musl aarch64-unknown-linux-musl wasm32-unknown-unknown x86_64-unknown-none"
        base; images; peers
        [ "$task" = ci ] || need wrk has wrk
        ;;
    *) need gcc has cc; need libc6-dev links_c ;;
esac

# --- The Rust compiler ---------------------------------------------------------------------------

oldest=95 # of 1.x, as in Cargo.toml
new_enough() {
    minor=$("$1" --version 2>/dev/null | sed -n 's/^[a-z]* 1\.\([0-9]*\)\..*/\1/p')
    [ "${minor:-0}" -ge "$oldest" ]
}
both_new_enough() { new_enough "$1cargo" && new_enough "$1rustc"; }
# wasm32 is linked by rust-lld, which rustup brings with the library and Debian packages apart, as a link.
links() { [ "$1" != wasm32-unknown-unknown ] || rust-lld -flavor wasm --version >/dev/null 2>&1; }
# Whether a compiler has a target's standard library, compiled or as source.
has_std() {
    libraries=$("$1" --print sysroot 2>/dev/null)/lib/rustlib
    [ -d "$libraries/$2/lib" ] || { [ -f "$libraries/src/rust/library/std/Cargo.toml" ] && links "$2"; }
}

debian_rust="rustc-web cargo-web"
case $task in ci | lint) lints="rustfmt-web rust-web-clippy" ;; *) lints= ;; esac
if ! both_new_enough "" && ! both_new_enough /usr/bin/; then
    missing="$missing $debian_rust $lints"
elif ! both_new_enough "" || [ "$(has cargo)" = /usr/bin/cargo ]; then
    { is_file /usr/bin/cargo-fmt && is_file /usr/bin/cargo-clippy; } || missing="$missing $lints"
fi
for target in $targets; do
    has_std rustc "$target" && new_enough rustc && continue
    has_std /usr/bin/rustc "$target" && new_enough /usr/bin/rustc && continue
    if both_new_enough "" && has rustup >/dev/null; then
        say "rustup target add $target"
        timeout 600 rustup target add "$target" >/dev/null 2>&1 && continue
        say "rustup cannot fetch it; Debian's compiler will build that library from source"
    fi
    missing="$missing $debian_rust rust-web-src"
    [ "$target" != wasm32-unknown-unknown ] || missing="$missing rust-web-llvm"
done

# --- Installing ----------------------------------------------------------------------------------

missing=$(echo "$missing" | tr ' ' '\n' | sort -u | tr '\n' ' ' | sed 's/^ *//; s/ *$//')
if [ -n "$missing" ]; then
    has apt-get >/dev/null || die "missing on this system: $missing (Debian's package names); install their like, then repeat"
    # rust-lld is a link into LLVM's own package, whose name holds its version.
    command_line() {
        linker=
        case $missing in
            *rust-web-llvm*) linker=$(apt-cache depends rust-web-llvm 2>/dev/null | sed -n 's/.*: llvm-\([0-9]*\)$/ lld-\1/p') ;;
        esac
        echo "apt-get install --yes --no-install-recommends $missing$linker"
    }
    if [ "$(id -u)" = 0 ]; then
        as_root=
    elif has sudo >/dev/null && { [ -t 0 ] || sudo -n true 2>/dev/null; }; then
        as_root=sudo
    else
        die "these packages are missing; run this as root, then repeat: apt-get update && $(command_line)"
    fi
    say "installing $missing"
    # Package lists may be absent on a new machine, or older than the archive; and the compiler of
    # the security suite is newer than the one of the release.
    $as_root apt-get update </dev/null || say "the package lists could not be renewed; trying those that are there"
    # shellcheck disable=SC2046 # words are meant
    if ! $as_root env DEBIAN_FRONTEND=noninteractive $(command_line) </dev/null; then
        die "cannot install them; Rust comes from https://rustup.rs too, for the rest run: $(command_line)"
    fi
    if ! both_new_enough "" && ! both_new_enough /usr/bin/; then
        die "Rust 1.$oldest or newer is needed and $(/usr/bin/cargo --version) was installed; enable the distribution's security suite, or install Rust from https://rustup.rs"
    fi
fi

# --- Running -------------------------------------------------------------------------------------

if both_new_enough ""; then
    cargo=cargo
else
    cargo=/usr/bin/cargo
    RUSTC=/usr/bin/rustc RUSTDOC=/usr/bin/rustdoc
    export RUSTC RUSTDOC
fi
exec "$cargo" xtask "$@"
