#!/usr/bin/env bash
# Checks for the tools and libraries that the build needs (Debian and its relatives). As root it installs what is missing;
# otherwise it prints the one line to run and exits with 1.
#   scripts/install_tools.sh           what ./demo needs
#   scripts/install_tools.sh --check   what ./check needs as well
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/cache_folder.sh

# One row for each need: the file or command that shows it is there, and the package that brings it.
# A command is looked up in PATH, so that tools from elsewhere count too.
needs=(
  "command:cmake cmake"
  "command:ninja ninja-build"
  "command:c++ g++"
  "command:python3 python3"
  "module:pip python3-pip"
  "header:CLI/CLI.hpp libcli11-dev"
  "header:fmt/format.h libfmt-dev"
  "header:nlohmann/json.hpp nlohmann-json3-dev"
)
if [ "${1:-}" = --check ]; then
  needs+=(
    "header:gtest/gtest.h libgtest-dev"
    "header:benchmark/benchmark.h libbenchmark-dev"
    "command:curl curl"
    "command:pgrep procps"
    "command:ccache ccache"
  )
fi

present() {
  local name="${1#*:}"
  case "$1" in
    command:*) command -v "$name" >/dev/null ;;
    module:*) python3 -c "import $name" 2>/dev/null ;;
    header:*) [ -e "/usr/include/$name" ] || [ -e "/usr/local/include/$name" ] ;;
  esac
}

missing_packages() {
  local need
  for need in "${needs[@]}"; do
    if ! present "${need% *}"; then printf '%s\n' "${need#* }"; fi
  done
}

mapfile -t missing < <(missing_packages)
if [ "${#missing[@]}" -eq 0 ]; then
  say "  all tools present"
  exit 0
fi

if ! command -v apt-get >/dev/null; then
  fail "missing: ${missing[*]} (Debian's names): install them with your package manager, then run this again"
fi
install_line="apt-get update && apt-get install -y --no-install-recommends ${missing[*]}"
if [ "$(id -u)" -ne 0 ]; then
  say "missing tools; run this line, then start again:"
  say "  sudo sh -c '$install_line'"
  exit 1
fi

say "  installing ${missing[*]}"
mkdir -p "$kvturbo_cache"
export DEBIAN_FRONTEND=noninteractive
run_quietly "$kvturbo_cache/apt.log" apt-get update
run_quietly "$kvturbo_cache/apt.log" apt-get install -y --no-install-recommends "${missing[@]}"
mapfile -t missing < <(missing_packages)
if [ "${#missing[@]}" -ne 0 ]; then fail "still missing after the installation: ${missing[*]}; see $kvturbo_cache/apt.log"; fi
