#!/usr/bin/env bash
# What is wrong is said in one line: what, why, what to do; exit code 2 for usage, 1 for the rest.
source "$(dirname "$0")/cli_support.sh"

# Usage: needs nothing else.
expect_exit 2 kvturbo
expect_one_error_line "command line: .*; see kvturbo --help"
expect_exit 2 kvturbo frobnicate
expect_one_error_line "command 'frobnicate': unknown; known commands: run, serve, doctor, models"
expect_exit 2 kvturbo run -m smollm2-135m
expect_one_error_line "command line: --prompt is required; see kvturbo run --help"
expect_exit 2 kvturbo run -m smollm2-135m -p hi -n many
expect_one_error_line "command line: -n: .*; see kvturbo run --help"
expect_exit 2 kvturbo serve -m smollm2-135m --port 99999
expect_one_error_line "command line: --port: .*; see kvturbo serve --help"
expect_exit 2 kvturbo doctor -- --flag
expect_one_error_line "command line: only run and serve take flags for the host"
# Each command explains itself by an example, and all but the server's have --json; commands are those that --help lists.
mapfile -t listed < <("$TEST_KVTURBO" --help | awk '/^Subcommands:/ { on = 1; next } on && NF == 0 { exit } on { print $1 }')
[ "${#listed[@]}" -ge 9 ] || complain "only ${#listed[@]} commands in --help"
for command in "${listed[@]}"; do
  expect_exit 0 kvturbo "$command" --help
  expect_stdout "Example: kvturbo $command"
  [ "$command" = serve ] || expect_stdout "--json"
done

# The codec, by flag and by variable, before anything is started.
for command in "run -p hi" serve; do
  expect_exit 2 kvturbo $command -m smollm2-135m --codec zip
  expect_one_error_line "codec 'zip': unknown; known codecs: f16, hybrid, scalar43"
  expect_exit 2 env KVTURBO_CODEC=zap "$TEST_KVTURBO" $command -m smollm2-135m
  expect_one_error_line "codec 'zap': unknown; known codecs:"
done

# The host.
expect_exit 1 kvturbo run -m smollm2-135m -p hi --host "$work"
expect_one_error_line "host $work: there is no program llama-server in it; build the pinned one with scripts/get_host.sh, or give yours with --host DIR"
expect_exit 1 env PATH=/nowhere KVTURBO_CACHE="$work/empty" "$TEST_KVTURBO" run -m smollm2-135m -p hi
expect_one_error_line "host: no llama-server in $work/empty/hosts .* nor in PATH; build the pinned one"
printf '#!/bin/sh\necho "it broke"\nexit 3\n' >"$work/llama-server"
chmod +x "$work/llama-server"
printf 'GGUF' >"$work/model.gguf"
expect_exit 1 kvturbo run -m "$work/model.gguf" -p hi --host "$work"
expect_one_error_line "host failed on model.gguf: exit code 3, its last line: it broke; run again with --log FILE"

# The plug-in.
expect_exit 1 kvturbo run -m "$work/model.gguf" -p hi --host "$work" --plugin "$work/no.so"
expect_one_error_line "plug-in $work/no.so: no such file; correct --plugin or KVTURBO_PLUGIN"

# The model.
needs_host
run() { kvturbo run --host "$TEST_HOST_BIN" -p hi "$@"; }
expect_exit 2 run -m smolm2
expect_one_error_line "model 'smolm2': neither a known name nor a file; did you mean smollm2-135m\?"
expect_exit 1 run -m "$work/absent.gguf"
expect_one_error_line "model $work/absent.gguf: no such file; check the path"
expect_exit 1 run -m "$work"
expect_one_error_line "model $work: it is a folder; give the GGUF file in it"
echo "not a model" >"$work/text.gguf"
expect_exit 1 run -m "$work/text.gguf"
expect_one_error_line "$work/text.gguf: not a GGUF file: .*; give a model file in GGUF format"
for bytes in 1000 2000000 90000000; do
  head -c "$bytes" "$TEST_MODEL" >"$work/truncated.gguf"
  expect_exit 1 run -m "$work/truncated.gguf"
  expect_one_error_line "host failed on truncated.gguf: .*; the file is truncated"
done

# Flags and requests that the host refuses, in the host's words.
expect_exit 1 run -m "$TEST_MODEL" -- --frobnicate
expect_one_error_line "host failed on .*: invalid argument: --frobnicate; see llama-server --help"
expect_exit 1 kvturbo run --host "$TEST_HOST_BIN" -m "$TEST_MODEL" -c 64 -p "$(seq -s ' ' 500)"
expect_one_error_line "host: request .* exceeds the available context size .*; use a larger context: -c N"

# A plug-in that cannot be loaded, and variables that the plug-in refuses.
cp /bin/true "$work/libggml-kvturbo-broken.so"
expect_exit 1 run -m "$TEST_MODEL" --plugin "$work/libggml-kvturbo-broken.so"
expect_one_error_line "plug-in: .*; see .kvturbo doctor."
expect_exit 1 env KVTURBO_SPEED=fast "$TEST_KVTURBO" run --host "$TEST_HOST_BIN" -m "$TEST_MODEL" -p hi
expect_one_error_line "plug-in: .*KVTURBO_SPEED.*"
expect_exit 1 run -m "$TEST_MODEL" --isa mmx
expect_one_error_line "plug-in: .*mmx.*"

# A port in use.
python3 -c '
import socket, sys, time
s = socket.socket(); s.bind(("127.0.0.1", 0)); s.listen()
print(s.getsockname()[1], flush=True); time.sleep(60)' >"$work/port" &
holder=$!
for _ in $(seq 50); do
  if [ -s "$work/port" ]; then break; fi
  sleep 0.1
done
expect_exit 1 kvturbo serve --host "$TEST_HOST_BIN" -m "$TEST_MODEL" --port "$(cat "$work/port")"
expect_one_error_line "port [0-9]+: in use on 127.0.0.1; choose another: --port N"
kill "$holder"

finish
