#!/usr/bin/env bash
# From the wheel to a streamed answer, in a fresh virtual environment, with no compiler and no llama-server in PATH: the server is the one
# in the package xllamacpp. Then the tests of the bindings and the C++ example run against the wheel.
#   scripts/check_wheel.sh BUILD [MODEL]     packs the binaries of that build folder; MODEL is a GGUF file
# Exit code 77: skipped, for lack of venv, of packages (no network) or of a model.
set -euo pipefail
build="$(cd "${1:?usage: scripts/check_wheel.sh BUILD [MODEL]}" && pwd)"
cd "$(dirname "$0")/.."
source scripts/cache_folder.sh

skip() {
  say "skipped: $*"
  exit 77
}

model="${2:-$kvturbo_cache/models/smollm2-135m.gguf}"
if [ ! -e "$model" ]; then skip "no model $model: kvturbo models --fetch smollm2-135m"; fi
work="$(mktemp -d)"
server=""
trap '[ -z "$server" ] || kill "$server" 2>/dev/null || true; rm -rf "$work"' EXIT
python3 -m venv "$work/venv" >"$work/venv.log" 2>&1 || skip "python3 -m venv does not work (Debian: apt-get install python3-venv)"
export PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHON="$work/venv/bin/python"

# All that pip needs is fetched here: what fails later is not the network.
say "fetching packages (scikit-build-core, auditwheel, numpy, xllamacpp: 55 MB)"
"$PYTHON" -m pip download --quiet --dest "$work/packages" "scikit-build-core>=1.1" auditwheel wheel numpy "xllamacpp>=2026.10" \
  >"$work/download.log" 2>&1 || skip "pip cannot fetch the packages: $(tail -n 1 "$work/download.log")"
export PIP_NO_INDEX=1 PIP_FIND_LINKS="$work/packages"

wheel="$(scripts/make_wheel.sh "$work/dist" "$build")"
say "$(basename "$wheel"), $(stat -c %s "$wheel") bytes"

SECONDS=0
run_quietly "$work/install.log" "$PYTHON" -m pip install --quiet "$wheel" xllamacpp
installed="$SECONDS"
# Nothing of this machine but the environment: no compiler, no llama-server, an empty cache.
clean=(env -i HOME="$work/home" KVTURBO_CACHE="$work/cache" PATH="$work/venv/bin" OMP_WAIT_POLICY=passive)
port="$("$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')"
"${clean[@]}" kvturbo serve -m "$model" --port "$port" -- --temp 0 2>"$work/serve.log" &
server="$!"
if ! "$PYTHON" scripts/stream_answer.py "$port" "What is the capital of France?" >"$work/answer"; then
  cat "$work/serve.log" >&2
  fail "no streamed answer"
fi
say "installed in $installed s, answered after $SECONDS s: $(tr '\n' ' ' <"$work/answer")"
grep -q 'KV cache compressed' "$work/serve.log" || fail "the server runs, but without the compressed cache: $(tail -n 3 "$work/serve.log")"
kill -TERM "$server"
status=0
wait "$server" || status=$?
server=""
[ "$status" -eq 0 ] || fail "the server ended with exit code $status after SIGTERM: $(tail -n 3 "$work/serve.log")"

"${clean[@]}" kvturbo doctor >"$work/doctor" || { cat "$work/doctor" >&2; fail "kvturbo doctor finds problems"; }
grep -E 'loads as KVTURBO0' "$work/doctor" >&2
"${clean[@]}" kvturbo run -m "$model" -p "2 + 2 =" --raw -n 4 --json >"$work/run.json" 2>"$work/run.log" ||
  { cat "$work/run.log" >&2; fail "kvturbo run fails"; }
# refused PATTERN COMMAND...: it fails, and says so in a line of that pattern.
refused() {
  local pattern="$1" said
  shift
  if said="$("${clean[@]}" "$@" 2>&1)" || ! grep -q "$pattern" <<<"$said"; then fail "not refused with '$pattern': $* said: $said"; fi
}
refused 'unrecognized arguments: --no-such-flag: .* put a llama-server in PATH' kvturbo serve -m "$model" --port "$port" -- --no-such-flag

run_quietly "$work/bindings.log" "$PYTHON" python/tests/test_bindings.py
tail -n 3 "$work/bindings.log" | head -n 1 >&2
if command -v c++ >/dev/null; then
  package="$("$PYTHON" -c 'import kvturbo; print(kvturbo.INCLUDE_FOLDER, kvturbo.LIBRARY_FOLDER)')"
  read -r include library <<<"$package"
  c++ -std=c++20 -I"$include" examples/attention_loop.cc -L"$library" -lkvturbo -Wl,-rpath,"$library" -o "$work/attention_loop"
  "$work/attention_loop" >&2
fi
"$PYTHON" -m pip uninstall --quiet --yes xllamacpp
refused 'xllamacpp is not installed: pip install xllamacpp' kvturbo serve -m "$model" --port "$port"
say "1 passed, 0 failed"
