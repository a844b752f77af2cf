#!/usr/bin/env bash
# Gets what `make bench` needs: wrk, and nginx and HAProxy as Debian's newest release has them, built from its sources
# into integration/.cache/peers. Where the sources are not to be had, this system's packages stand in. What is there
# already is kept.
set -eu
PATH=$PATH:/usr/sbin:/sbin
peers=$(cd "$(dirname "$0")/.." && pwd)/.cache/peers
mkdir -p "$peers"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Unpacks the newest sources of packages into $work/NAME; apt keeps to lists of our own, so the system's stay as they are.
fetch() {
  local apt=(-qq -o "Dir::Etc::SourceList=$work/sources.list" -o Dir::Etc::SourceParts=- -o "Dir::State::Lists=$work/lists"
    -o "Dir::Cache=$work/cache" -o "APT::Sandbox::User=$(id -un)")
  local keys=/usr/share/keyrings/debian-archive-keyring.gpg
  echo "deb-src [signed-by=$keys] http://deb.debian.org/debian stable main" > "$work/sources.list"
  mkdir -p "$work/lists/partial" "$work/cache/archives/partial" && cd "$work" &&
    apt-get "${apt[@]}" update && apt-get "${apt[@]}" --download-only --tar-only source "$@" || return 1
  for name; do
    mkdir -p "$name" && tar -xf "$name"_*.orig.tar.* -C "$name" --strip-components=1 || return 1
  done
}

build_nginx() {
  ./configure --with-cc-opt=-O2 --with-pcre="$work/pcre2" --without-http_gzip_module && make -j2 &&
    cp objs/nginx "$peers/nginx"
}

build_haproxy() {
  make -j2 TARGET=linux-glibc USE_LIBCRYPT= && cp haproxy "$peers/haproxy"
}

declare -A sources=([nginx]='nginx pcre2' [haproxy]=haproxy)
missing=
for program in nginx haproxy; do
  [ ! -x "$peers/$program" ] || continue
  echo "building $program"
  # shellcheck disable=SC2086 # a list of words
  if ! (fetch ${sources[$program]} && cd "$work/$program" && build_$program) > "$peers/$program.log" 2>&1; then
    echo "it could not be built (see $peers/$program.log): this system's $program stands in" >&2
    command -v $program >/dev/null || missing="$missing $program"
  fi
done
command -v wrk >/dev/null || missing="$missing wrk"
[ -n "$missing" ] || exit 0

root=
if [ "$(id -u)" != 0 ]; then
  command -v sudo >/dev/null || { echo "missing:$missing; install them as root and try again" >&2; exit 1; }
  root=sudo
fi
# A package starts its service when it is installed, unless this file forbids it. One that is there already is kept.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
  trap 'rm -rf "$work"; $root rm -f $policy' EXIT
  printf '#!/bin/sh\nexit 101\n' | $root tee $policy >/dev/null
  $root chmod +x $policy
fi
$root apt-get update -qq
# shellcheck disable=SC2086 # a list of words
$root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing
