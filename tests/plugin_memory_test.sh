#!/usr/bin/env bash
# What the cache costs: as reported at 32K, and as growth of the resident set while an 8K context is filled, against f16.
. "$(dirname "$0")/plugin_support.sh"
needs llama-server llama-completion
command -v curl >/dev/null || skip "no curl"

# As reported: the layout of a page decides (format.md section 1); d = 64.
ours report KVTURBO_CODEC=hybrid KVTURBO_REPORT="$work/report" llama-completion -c 32768 -n 1 -no-cnv --no-warmup -p hi || complain "-c 32768"
ratio="$(sed 's/.*"ratio": \([0-9.]*\).*/\1/' "$work/report")"
echo "hybrid, as reported at 32K: $ratio"
expect_below 4.10 "$ratio" "the bound"

# Resident: growth of anonymous memory from a short prompt to one that fills an 8K context, in f16 pages and in hybrid ones (stock
# commits its whole cache at the start). What else grows, the host's buffers, is the same in both runs and is seen in the f16 one:
# its cache is 23040 bytes per token (30 layers, 3 heads, K and V, d = 64).
{ cat "$TEST_SOURCE/LICENSE" "$TEST_SOURCE/LICENSE" "$TEST_SOURCE/LICENSE" "$TEST_SOURCE/LICENSE"; } | tr -s ' \n' ' ' >"$work/text"
port=$((20000 + $$ % 20000))
resident_kb() { awk '/^RssAnon:/ { print $2 }' "/proc/$server_pid/status"; }
ask() {  # N_BYTES: a prompt of that many bytes
  { printf '{"n_predict": 1, "cache_prompt": true, "prompt": "'; head -c "$1" "$work/text" | sed 's/["\\]/ /g'; printf '"}'; } |
    curl -sf "http://127.0.0.1:$port/completion" -d @- | sed 's/.*"tokens_evaluated":\([0-9]*\).*/\1/'
}
growth() {  # CODEC: sets bytes_per_token
  last_log="$work/server-$1"
  env "${plugin_environment[@]}" KVTURBO_CODEC="$1" "$TEST_HOST_BIN/llama-server" -m "$TEST_MODEL" --host 127.0.0.1 --port "$port" -t 2 -np 1 \
    -c 8192 --cache-ram 0 >"$last_log.out" 2>"$last_log" </dev/null &
  server_pid=$!
  for _ in $(seq 240); do
    curl -sf "http://127.0.0.1:$port/health" >/dev/null && break
    sleep 0.5
  done
  local n_first n_second before after
  n_first="$(ask 200)"
  before="$(resident_kb)"
  n_second="$(ask 39000)"
  after="$(resident_kb)"
  kill "$server_pid"
  wait "$server_pid" 2>/dev/null
  server_pid=""
  bytes_per_token="$(awk -v a="$before" -v b="$after" -v m="$n_first" -v n="$n_second" 'BEGIN { if (n > m) print (b - a) * 1024 / (n - m) }')"
  echo "$1: $n_first tokens $before kB, $n_second tokens $after kB: $bytes_per_token bytes per token"
}
growth f16
f16="$bytes_per_token"
growth hybrid
hybrid="$bytes_per_token"
resident="$(awk -v a="$f16" -v b="$hybrid" 'BEGIN { if (b > a - 23040) print 23040 / (b - (a - 23040)) }')"
echo "hybrid, resident: $resident"
# 4.13 by the format; a page of 64 tokens and one of the system are committed whole.
expect_below 4.0 "$resident" "the bound"
finish
