# Sourced by the plugin_*_test.sh scripts. CTest sets (tests/plugin_tests.cmake):
#   TEST_PLUGIN    the plug-in          TEST_HOST_BIN  folder of llama.cpp's programs
#   TEST_MODEL     SmolLM2-135M, GGUF   TEST_SOURCE    this repository      TEST_DEQUANTIZE  plugin_dequantize
set -uo pipefail

# The tests decide about every variable of ours and of the host's.
for variable in $(compgen -e KVTURBO_) $(compgen -e LLAMA_ARG_) GGML_BACKEND_PATH; do unset "$variable"; done

# Threads that wait sleep: on a busy machine spinning ones would starve those they wait for.
export OMP_WAIT_POLICY=passive GOMP_SPINCOUNT=0

work="$(mktemp -d)"
server_pid=""
cleanup() {
  [ -z "$server_pid" ] || kill "$server_pid" 2>/dev/null
  rm -rf "$work"
}
trap cleanup EXIT
failures=0
last_log="$work/log"

skip() {
  echo "skipped: $1"
  exit 77  # SKIP_RETURN_CODE
}
[ -e "${TEST_MODEL:-}" ] || skip "no model (KVTURBO_TEST_MODEL)"
needs() {
  local program
  for program in "$@"; do
    [ -x "${TEST_HOST_BIN:-}/$program" ] || skip "no $program (KVTURBO_HOST_BIN)"
  done
}

# A host built without GGML_BACKEND_DL has its CPU backend linked in and then looks for others only when an option names a device.
plugin_environment=(GGML_BACKEND_PATH="$TEST_PLUGIN")
if ldd "$TEST_HOST_BIN/libggml.so" 2>/dev/null | grep -q libggml-cpu; then plugin_environment+=(LLAMA_ARG_DEVICE=KVTURBO0); fi

complain() {
  printf 'FAILED: %s\n' "$1"
  tail -n 25 "$last_log" | sed 's/^/  log: /'
  failures=$((failures + 1))
}

# stock LOG PROGRAM ARGUMENT...; ours LOG VARIABLE=VALUE... PROGRAM ARGUMENT...: standard output to LOG.out, errors to LOG.
stock() {
  last_log="$work/$1"
  shift
  local program="$1"
  shift
  "$TEST_HOST_BIN/$program" -t 2 -m "$TEST_MODEL" "$@" >"$last_log.out" 2>"$last_log" </dev/null
}
ours() {
  last_log="$work/$1"
  shift
  local environment=("${plugin_environment[@]}")
  while [[ "$1" == *=* ]]; do
    environment+=("$1")
    shift
  done
  local program="$1"
  shift
  env "${environment[@]}" "$TEST_HOST_BIN/$program" -t 2 -m "$TEST_MODEL" "$@" >"$last_log.out" 2>"$last_log" </dev/null
}

expect_log() { grep -aqE -- "$1" "$last_log" || complain "the log has no match for: $1"; }
expect_no_log() { ! grep -aqE -- "$1" "$last_log" || complain "the log has a match for: $1"; }
expect_same() { [ "$1" = "$2" ] || complain "$3: '$1' is not '$2'"; }
# below VALUE BOUND NAME
expect_below() {
  awk -v a="$1" -v b="$2" 'BEGIN { exit !(a != "" && a + 0 < b + 0) }' || complain "$3 is '$1', not below $2"
}
# Lines of ours in the log, without the one at the end of the process.
our_lines() { grep -a '^kvturbo: ' "$last_log" | grep -acv '^kvturbo: at exit: '; }

finish() {
  if [ "$failures" -ne 0 ]; then
    echo "$failures failures"
    exit 1
  fi
  echo "passed"
}
