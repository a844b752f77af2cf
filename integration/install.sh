#!/bin/sh
# Installs the foreign judges of the tests: curl, nginx, wrk and slowhttptest from the system's packages, and a Python
# with the `websockets` package in integration/.cache. Does nothing that was done before. Without root or sudo it
# leaves the packages alone and says what is missing; the tests that need those will fail and say so too.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
cache=$here/.cache
venv=$cache/venv
PATH=$PATH:/usr/sbin:/usr/local/sbin
policy=/usr/sbin/policy-rc.d

say() { echo "install.sh: $*" >&2; }

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

may_install() {
    command -v apt-get >/dev/null || return 1
    [ "$(id -u)" = 0 ] || { command -v sudo >/dev/null && sudo -n true 2>/dev/null; }
}

# Packages start no services: what a test needs, it starts itself.
install_packages() {
    if [ ! -e $policy ]; then
        printf '#!/bin/sh\nexit 101\n' | as_root tee $policy >/dev/null
        as_root chmod 755 $policy
        trap 'as_root rm -f $policy' EXIT
    fi
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

missing_packages() {
    command -v curl >/dev/null || echo curl
    command -v nginx >/dev/null || echo nginx-light
    command -v wrk >/dev/null || echo wrk
    command -v slowhttptest >/dev/null || echo slowhttptest
    command -v python3 >/dev/null || echo python3
    [ -d "$venv" ] || python3 -c 'import ensurepip' 2>/dev/null || echo python3-venv
}

has_websockets() { "$venv/bin/python" -c 'import websockets' 2>/dev/null; }

missing=$(missing_packages | tr '\n' ' ')
if [ -n "$missing" ]; then
    if may_install; then
        # Split into words on purpose.
        # shellcheck disable=SC2086
        install_packages $missing || say "could not install: $missing"
    else
        say "neither root nor sudo: missing and not installed: $missing"
    fi
fi

if ! has_websockets; then
    mkdir -p "$cache"
    python3 -m venv --clear "$venv" && "$venv/bin/pip" install -q --disable-pip-version-check 'websockets>=13,<16' ||
        say "could not install the Python package websockets"
fi

left=$(missing_packages | tr '\n' ' ')
has_websockets || left="$left websockets"
[ -z "$(echo "$left" | tr -d ' ')" ] || say "the tests that need these will fail: $left"
