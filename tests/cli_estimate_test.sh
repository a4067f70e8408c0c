#!/usr/bin/env bash
# kvturbo estimate says beforehand what the plug-in reports afterwards: equal bytes for a token and for what is kept exactly, with models
# of head dim 64, 128 (random weights) and, where they are in the cache, 256 with a sliding window and 64 with biases.
source "$(dirname "$0")/cli_support.sh"
needs_host

cat >"$work/compare.py" <<'PYTHON'
import json, sys

report = json.load(open(sys.argv[1]))
caches = {row["cache"]: row for row in json.load(open(sys.argv[2]))["caches"]}
ours, stock = caches[sys.argv[3]], caches["stock f16"]
assert report["layers_compressed"] == report["layers_total"] > 0, report
assert ours["kv_bytes_per_token"] == report["kv_bytes_per_token"], (ours, report)
assert stock["kv_bytes_per_token"] == report["kv_bytes_per_token_f16"], (stock, report)
assert ours["kv_bytes_fixed"] == report["kv_bytes_fixed"] > 0, (ours, report)
PYTHON

host_flags=()
if ldd "$TEST_HOST_BIN/libggml.so" 2>/dev/null | grep -q libggml-cpu; then host_flags=(--device KVTURBO0); fi
# compare MODEL CODEC [VARIABLE=VALUE...]
compare() {
  rm -f "$work/report.json"
  expect_exit 0 env GGML_BACKEND_PATH="$TEST_PLUGIN" KVTURBO_CODEC="$2" KVTURBO_REPORT="$work/report.json" "${@:3}" \
    "$TEST_HOST_BIN/llama-completion" -m "$1" "${host_flags[@]}" -t 2 -c 512 -n 2 -no-cnv -p "One two three"
  expect_exit 0 env "${@:3}" "$TEST_KVTURBO" estimate -m "$1" -c 512 --json
  python3 "$work/compare.py" "$work/report.json" "$stdout" "$2" 2>>"$stderr" || complain "the report is not what was estimated"
}
compare "$TEST_MODEL" k4v3
compare "$TEST_MODEL" k3v2
"$TEST_SOURCE/scripts/make_random_model.py" --layers 2 --heads 4 --kv-heads 2 --embedding 64 --ffn 64 "$TEST_MODEL" "$work/random-d128.gguf" \
  >"$stdout" 2>"$stderr" || complain "no random model"
for codec in k4v3 hybrid k3v3 k2v2 k8v4 k8v3; do compare "$work/random-d128.gguf" "$codec"; done
compare "$work/random-d128.gguf" k4v3 KVTURBO_CONDITION=off KVTURBO_RECENT=0 KVTURBO_SINKS=7
for model in gemma3-270m qwen2.5-coder-0.5b; do
  path="${KVTURBO_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/kvturbo}/models/$model.gguf"
  if [ -e "$path" ]; then compare "$path" k4v3; fi
done

# What people read.
expect_exit 0 kvturbo estimate -m "$TEST_MODEL" -c 8192 --memory 4G
expect_stdout "^\| stock f16 +\| 16\.00 \| +23,040 \| +180\.0 MiB \|"
expect_stdout "^\| stock q8_0 +\|  8\.50 \| +12,240 \| +95\.6 MiB \|"
expect_stdout "^\| k4v3 +\| .* [0-9.]+ x \| +0\.[0-9]+ \|$"
expect_stdout "^\(1\) Estimate: "
expect_stdout "^\(2\) Estimate: .*the same architecture"
expect_exit 0 kvturbo estimate -m "$TEST_MODEL" --memory 50M
expect_stdout "^\| k4v3 .* none \|"
# Two conversations have half of the cells each, and exact rows of their own.
fixed() { python3 -c 'import json, sys; c = json.load(sys.stdin)["caches"]; print(sum(r["cache_bytes"] for r in c if r["cache"] == sys.argv[1]))' "$1" <"$stdout"; }
expect_exit 0 kvturbo estimate -m "$TEST_MODEL" -c 8192 --json
one_f16="$(fixed "stock f16")" one="$(fixed k4v3)"
expect_exit 0 kvturbo estimate -m "$TEST_MODEL" -c 8192 -np 2 --json
expect_same "$(fixed "stock f16")" "$one_f16"
[ "$(fixed k4v3)" -gt "$one" ] || complain "two conversations take no more than one"

# Speed measured here instead of the page's.
row='{"model": "m", "cache": "%s", "test": "tg8", "depth": %s, "threads": 2, "tokens_per_second": %s, "ratio_stock_f16": %s, "kv_bytes_per_token": 1,
  "kv_bytes_fixed": 0, "kv_bytes_per_token_f16": 23040, "active_weight_bytes": 96576768}'
# shellcheck disable=SC2059 # the format is ours
printf "[$row, $row, $row, $row]" "stock f16" 0 100 1 "stock f16" 8192 50 1 k2v2 0 100 1 k2v2 8192 100 2 >"$work/bench.json"
expect_exit 0 kvturbo estimate -m "$TEST_MODEL" -c 8192 --bench "$work/bench.json"
expect_stdout "^\| k2v2 +\| .* 2\.00 x \|"
expect_stdout "^\| k4v3 +\| .* not measured \|"

# Refusals.
expect_exit 1 kvturbo estimate -m "$TEST_MODEL" --bench "$work/report.json"
expect_one_error_line "$work/report.json: not what .kvturbo bench model --json. prints; make it with"
expect_exit 1 kvturbo estimate -m "$TEST_MODEL" --bench "$work/none.json"
expect_one_error_line "$work/none.json: no such file; make it with"
expect_exit 2 kvturbo estimate -m "$TEST_MODEL" --memory lots
expect_one_error_line "--memory lots: is no size of memory; give one such as 16G"
expect_exit 2 kvturbo estimate -m "$TEST_MODEL" -c 0
expect_one_error_line "command line: .*see kvturbo estimate --help"
echo GGUF >"$work/cut.gguf"
expect_exit 1 kvturbo estimate -m "$work/cut.gguf"
expect_one_error_line "$work/cut.gguf: its GGUF header cannot be read"
expect_exit 0 kvturbo estimate --help
expect_stdout "^Example: kvturbo estimate -m smollm2-135m"

finish
