#!/usr/bin/env bash
# Makes the wheel and gives it the manylinux tag that its binaries allow. The last line of stdout is the file.
#   scripts/make_wheel.sh FOLDER              builds everything
#   scripts/make_wheel.sh FOLDER BUILD        packs the binaries of that build folder (targets kvturbo, kvturbo_shared, ggml-kvturbo)
# PYTHON names a Python whose pip can fetch packages; python3 by default.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/cache_folder.sh

folder="$(mkdir -p "${1:?usage: scripts/make_wheel.sh FOLDER [BUILD]}" && cd "$1" && pwd)"
python="${PYTHON:-python3}"
options=()
if [ -n "${2:-}" ]; then options=("--config-settings=cmake.define.KVTURBO_PREBUILT=$(cd "$2" && pwd)"); fi

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
log="$folder/make_wheel.log"
run_quietly "$log" "$python" -m pip install --quiet --disable-pip-version-check --target "$work/tools" auditwheel wheel
run_quietly "$log" "$python" -m pip wheel --disable-pip-version-check --no-deps --wheel-dir "$work" "${options[@]}" .
made="$(find "$work" -maxdepth 1 -name 'kvturbo-*.whl')"

# auditwheel looks at the libraries and symbol versions that all binaries need.
export PYTHONPATH="$work/tools"
run_quietly "$log" "$python" -m auditwheel show "$made"
platform="$(grep -oE 'manylinux_[0-9]+_[0-9]+_[a-z0-9_]+' "$log" | head -n 1 || true)"
if [ -z "$platform" ]; then
  fail "the binaries fit no manylinux tag; needed are: $(sed -n '/external/,$p' "$log" | tr '\n' ' ') (whole output: $log)"
fi
tagged="$("$python" -m wheel tags --remove --platform-tag "$platform" "$made")"
mv "$work/$tagged" "$folder/"
printf '%s\n' "$folder/$tagged"
