#!/usr/bin/env bash
# Installs the library into an empty prefix; builds and runs the example against it, by CMake package and by pkg-config.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
"$TEST_CMAKE" --install "$TEST_BUILD" --prefix "$work/prefix" >"$work/install.log"
"$TEST_CMAKE" -S "$TEST_SOURCE/examples" -B "$work/build" -DCMAKE_PREFIX_PATH="$work/prefix" >"$work/configure.log"
"$TEST_CMAKE" --build "$work/build" >"$work/build.log"
"$work/build/attention_loop"
lib="$(dirname "$(find "$work/prefix" -name kvturbo.pc)")/.."
if command -v pkg-config >/dev/null; then
  PKG_CONFIG_PATH="$lib/pkgconfig" bash -c "c++ -std=c++20 '$TEST_SOURCE/examples/attention_loop.cc' \$(pkg-config --cflags --libs kvturbo) -o '$work/by_pkg_config'"
  LD_LIBRARY_PATH="$lib" "$work/by_pkg_config"
fi
