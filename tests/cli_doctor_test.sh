#!/usr/bin/env bash
# kvturbo doctor: all good on a machine where all is there; exit code 1, the reason and the remedy where it is not.
source "$(dirname "$0")/cli_support.sh"
needs_host

export KVTURBO_CACHE="$work/cache"

expect_exit 0 kvturbo doctor --host "$TEST_HOST_BIN"
expect_stdout "^host +$TEST_HOST_BIN/llama-server \(--host\)"
expect_stdout "build [0-9]+, ggml 0\.[0-9]+\.[0-9]+, backend API [23]"
expect_stdout "^plug-in +.*libggml-kvturbo.so: loads as KVTURBO0"
expect_stdout "^kernels +(scalar|avx2|avxvnni|avx512|neon)"
expect_stdout "^self-test +scalar ok \(attention within 0\.0[0-9]+\).*; 56 pages each"
expect_stdout "^cpu .*, [0-9]+ cores? for this process"
expect_stdout "^gpu +(none found|.*(driver|GPU))"
expect_stdout "^memory +[0-9.]+ [GM]iB, [0-9.]+ [GM]iB available"
expect_same "$(tail -n 1 "$stdout" | cut -c 1-8)" "all good"
expect_exit 0 kvturbo doctor --host "$TEST_HOST_BIN" --isa scalar --json
expect_same "$(python3 -c 'import json, sys; d = json.load(sys.stdin); print(d["ok"], d["kernels"], d["plugin_device"], d["problems"], all(t["ok"] for t in d["self_test"]), len(d["self_test"]) > 0, d["next"][:11])' <"$stdout")" \
  "True scalar KVTURBO0 [] True True kvturbo run"

# No host.
expect_exit 1 env PATH=/nowhere "$TEST_KVTURBO" doctor
expect_stdout "^host +none found"
expect_stdout "^problem: host: "
expect_same "$(tail -n 1 "$stdout")" "to do: build the pinned one with scripts/get_host.sh, or give yours with --host DIR"
expect_stdout "build the pinned one with scripts/get_host.sh"

# A host that does not run.
printf '#!/bin/sh\necho "wrong libc" >&2\nexit 1\n' >"$work/llama-server"
chmod +x "$work/llama-server"
expect_exit 1 kvturbo doctor --host "$work"
expect_stdout "^problem: host .*: llama-server --version ended with exit code 1: wrong libc; get one that runs here"

# A plug-in that the host cannot load.
cp /bin/true "$work/libggml-kvturbo-broken.so"
expect_exit 1 kvturbo doctor --host "$TEST_HOST_BIN" --plugin "$work/libggml-kvturbo-broken.so"
expect_stdout "^problem: plug-in: it does not load: "

# Options that nobody knows.
expect_exit 1 kvturbo doctor --host "$TEST_HOST_BIN" --codec zip
expect_stdout "^problem: codec 'zip': unknown; known codecs: "
expect_exit 1 kvturbo doctor --host "$TEST_HOST_BIN" --isa mmx
expect_stdout "^problem: kernels mmx: "
expect_stdout "^to do: unset KVTURBO_ISA or --isa to take the best ones$"

# A damaged model.
mkdir -p "$work/cache/models"
echo "GGUF" >"$work/cache/models/gemma3-270m.gguf"
expect_exit 1 kvturbo doctor --host "$TEST_HOST_BIN"
expect_stdout "^problem: model gemma3-270m: the cached file has the wrong size; fetch it again: kvturbo models --fetch gemma3-270m"

finish
