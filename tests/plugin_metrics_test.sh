#!/usr/bin/env bash
# Counters of the plug-in: a file in Prometheus' text format that is written anew while a server runs, and a line at the end.
. "$(dirname "$0")/plugin_support.sh"
needs llama-server llama-completion
command -v curl >/dev/null || skip "no curl"

# value FILE NAME
value() { awk -v name="$2" '$1 == name { print $2 }' "$1"; }

# Every line is a comment or NAME VALUE, and every metric has its HELP and TYPE before it.
cat >"$work/check.py" <<'PYTHON'
import re, sys

announced = {"HELP": set(), "TYPE": set()}
values = {}
for line in open(sys.argv[1]):
    comment = re.fullmatch(r"# (HELP|TYPE) (kvturbo_[a-z0-9_]+) (.+)\n", line)
    if comment:
        announced[comment[1]].add(comment[2])
        assert comment[1] == "HELP" or comment[3] == ("counter" if comment[2].endswith("_total") else "gauge"), line
        continue
    name, value = re.fullmatch(r'(kvturbo_[a-z0-9_]+)(?:\{[a-z0-9_]+="[^"]*"(?:,[a-z0-9_]+="[^"]*")*\})? ([0-9.e+-]+)\n', line).groups()
    assert name in announced["HELP"] and name in announced["TYPE"], line
    assert name not in values and float(value) >= 0, line
    values[name] = float(value)
assert len(values) == 14, sorted(values)
PYTHON
check_format() { python3 "$work/check.py" "$1" >"$last_log" 2>&1 || complain "$1 is not in Prometheus' text format: $(cat "$1")"; }

port=$((20000 + $$ % 20000))
metrics="$work/metrics.prom"
last_log="$work/server"
env "${plugin_environment[@]}" KVTURBO_METRICS="$metrics" "$TEST_HOST_BIN/llama-server" -m "$TEST_MODEL" --host 127.0.0.1 --port "$port" -t 2 -np 1 -c 512 \
  >"$last_log.out" 2>"$last_log" </dev/null &
server_pid=$!
for _ in $(seq 240); do
  curl -sf "http://127.0.0.1:$port/health" >/dev/null && break
  kill -0 "$server_pid" 2>/dev/null || break
  sleep 0.5
done
ask() { curl -sf "http://127.0.0.1:$port/completion" -d '{"prompt": "One two three", "n_predict": '"$1"', "ignore_eos": true, "cache_prompt": false}' >/dev/null; }
sleep 1.1 # the file is a second old when the next token is computed
ask 20 || complain "a request"
cp "$metrics" "$work/running.prom" || complain "no file while the server runs"
server_log="$last_log"
last_log="$work/format"
check_format "$work/running.prom"
# 30 layers of 3 heads, keys and values: 8 pages of 64 cells, 58 exact rows (48 newest, room for 6, 4 sinks) a head.
expect_same "$(value "$work/running.prom" kvturbo_cache_tensors)" 60 "tensors"
expect_same "$(value "$work/running.prom" kvturbo_cache_tensors_f16)" 0 "tensors in f16"
expect_same "$(value "$work/running.prom" kvturbo_cache_cells)" $((30 * 512)) "cells"
expect_same "$(value "$work/running.prom" kvturbo_cache_pages)" $((60 * 3 * 8)) "pages"
expect_same "$(value "$work/running.prom" kvturbo_cache_exact_rows)" $((60 * 3 * 58)) "exact rows"
expect_same "$(value "$work/running.prom" kvturbo_cache_f16_bytes)" $((23040 * 512)) "bytes in f16"
expect_below 0 "$(value "$work/running.prom" kvturbo_tokens_total)" "zero tokens"
sleep 1.1
ask 20 || complain "a second request"
cp "$metrics" "$work/later.prom"
for name in tokens rows_encoded graphs encode_seconds attend_seconds; do
  expect_below "$(value "$work/running.prom" "kvturbo_${name}_total")" "$(value "$work/later.prom" "kvturbo_${name}_total")" "$name before"
done
kill "$server_pid"
wait "$server_pid" 2>/dev/null
server_pid=""
last_log="$server_log"
tokens="$(value "$metrics" kvturbo_tokens_total)"
# Rows of keys and of values of 30 layers for each token; two requests of some tokens and 20 more each, and a warm-up.
expect_same "$(value "$metrics" kvturbo_rows_encoded_total)" $((tokens * 60)) "rows"
expect_below 41 "$tokens" "41 tokens"
expect_same "$(value "$metrics" kvturbo_probe_warnings_total)" 0 "warnings"
expect_log "^kvturbo: at exit: $tokens tokens in [0-9]+ graphs, [0-9.]+ s attending, [0-9.]+ s encoding; 1440 pages and 10440 exact rows, 3\.9 MiB instead of 11\.2 \(f16\)$"
[ "$(find "$work" -name 'metrics.prom*' | wc -l)" -eq 1 ] || complain "temporary files are left"

# A place that cannot be written: said once. Quiet: no line at the end.
completion=(llama-completion -c 256 -n 4 --temp 0 -no-cnv -p "Two plus two is")
ours nowhere KVTURBO_METRICS="$work/no/such/folder/metrics" "${completion[@]}" || complain "a file that cannot be written"
expect_log '^kvturbo: cannot write KVTURBO_METRICS=.*; name a file in a folder that can be written$'
expect_same "$(grep -ac 'cannot write KVTURBO_METRICS' "$last_log")" 1 "complaints"
ours quiet KVTURBO_LOG=quiet KVTURBO_METRICS="$work/quiet.prom" "${completion[@]}" || complain "quiet"
expect_no_log '^kvturbo: '
check_format "$work/quiet.prom"
finish
