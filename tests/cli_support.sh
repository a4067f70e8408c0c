# shellcheck shell=bash
# Sourced by the cli_*_test.sh scripts. CTest sets (tests/cli_tests.cmake):
#   TEST_KVTURBO  the program      TEST_HOST_BIN  folder of llama.cpp's programs      TEST_MODEL  SmolLM2-135M as GGUF
#   TEST_PLUGIN   the plug-in      TEST_SOURCE    this repository
set -uo pipefail

# Threads that wait sleep: on a busy machine spinning ones would starve those they wait for.
export OMP_WAIT_POLICY=passive GOMP_SPINCOUNT=0

# The tests decide about every variable of ours, but the user may keep the cache elsewhere.
for variable in $(compgen -e KVTURBO_ | grep -v '^KVTURBO_CACHE$') GGML_BACKEND_PATH LLAMA_ARG_DEVICE; do unset "$variable"; done

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
failures=0

kvturbo() { "$TEST_KVTURBO" "$@"; }

# expect_exit CODE COMMAND...: runs it with $stdout and $stderr as files; checks the exit code.
stdout="$work/stdout"
stderr="$work/stderr"
expect_exit() {
  local expected="$1"
  shift
  last_command="$*"
  local code=0
  "$@" >"$stdout" 2>"$stderr" </dev/null || code=$?
  if [ "$code" -ne "$expected" ]; then complain "exit code $code, expected $expected"; fi
}

complain() {
  printf 'FAILED: %s\n  %s\n' "$last_command" "$1"
  sed 's/^/  stdout: /' "$stdout" | tail -n 15
  sed 's/^/  stderr: /' "$stderr" | tail -n 15
  failures=$((failures + 1))
}

expect_stdout() { grep -qE -- "$1" "$stdout" || complain "stdout has no match for: $1"; }
expect_stderr() { grep -qE -- "$1" "$stderr" || complain "stderr has no match for: $1"; }
expect_same() { [ "$1" = "$2" ] || complain "'$1' is not '$2'"; }

# An error is one line of ours and nothing else.
expect_one_error_line() {
  if [ "$(wc -l <"$stderr")" -ne 1 ]; then complain "the error is not one line"; fi
  expect_stderr "^kvturbo: $1"
}

skip() {
  echo "skipped: $1"
  exit 77  # SKIP_RETURN_CODE
}

needs_host() {
  [ -x "${TEST_HOST_BIN:-}/llama-server" ] || skip "no host (KVTURBO_HOST_BIN)"
  [ -e "${TEST_MODEL:-}" ] || skip "no model (KVTURBO_TEST_MODEL)"
}

finish() {
  if [ "$failures" -ne 0 ]; then
    echo "$failures failures"
    exit 1
  fi
  echo "passed"
}
