#!/usr/bin/env bash
# kvturbo run: an answer, a table, and one JSON object.
source "$(dirname "$0")/cli_support.sh"
needs_host

run() { kvturbo run -m "$TEST_MODEL" --host "$TEST_HOST_BIN" "$@"; }
json_value() { tail -n 1 "$stdout" | python3 -c "import json, sys; print(json.load(sys.stdin)['$1'])"; }

# The answer, then the object with exactly these keys.
expect_exit 0 run -p "What is the capital of France? Answer in one sentence." -n 24 --codec hybrid --json
expect_stdout "Paris"
keys="$(tail -n 1 "$stdout" | python3 -c 'import json, sys; print(" ".join(json.load(sys.stdin)))')"
expect_same "$keys" "codec kv_bytes_per_token kv_bytes_per_token_f16 ratio prompt_tokens generated_tokens prompt_tokens_per_second tokens_per_second host model"
expect_same "$(json_value codec)" "hybrid"
# 30 layers x 3 kv heads x 64 x (K and V) x 2 bytes
expect_same "$(json_value kv_bytes_per_token_f16 | cut -d. -f1)" "23040"
expect_same "$(json_value ratio | cut -c 1-3)" "4.1"
expect_same "$(python3 -c "print($(json_value generated_tokens) > 0 and $(json_value tokens_per_second) > 0 and $(json_value prompt_tokens) > 10)")" "True"
expect_stderr "KV bytes per token +5,?[0-9]{3} \(hybrid\); f16 needs 23,040: 4\.1[0-9] times smaller"
expect_stderr "compressed +30 of 30 layers"
answer="$(head -n -1 "$stdout")"

# Greedy by default: the same answer again; the variable means the same as the flag.
expect_exit 0 env KVTURBO_CODEC=hybrid KVTURBO_MODEL="$TEST_MODEL" KVTURBO_HOST="$TEST_HOST_BIN" "$TEST_KVTURBO" \
  run -p "What is the capital of France? Answer in one sentence." -n 24
expect_same "$(cat "$stdout")" "$answer"
expect_stderr "\(hybrid\)"

# The flag wins over the variable.
expect_exit 0 env KVTURBO_CODEC=hybrid "$TEST_KVTURBO" run -m "$TEST_MODEL" --host "$TEST_HOST_BIN" --codec f16 -p "Hi" -n 4 --json
expect_same "$(json_value codec)" "f16"

# Text continuation, and more flags for the host. f16: what a small model knows may depend on a codec.
expect_exit 0 run -p "The capital of the United States is" --raw -n 4 --codec f16 -- --no-warmup
expect_stdout "Washington"

# Without the plug-in: no figures of ours.
expect_exit 0 run -p "Hi" -n 4 --stock --json
expect_same "$(json_value codec)" "stock"
expect_same "$(json_value ratio)" "None"

# Both side by side, and the host's log kept.
expect_exit 0 run -p "Hi" -n 4 --compare --log "$work/host.log"
expect_stderr "stock f16"
expect_stderr "beside stock"
grep -q "listening" "$work/host.log" || complain "no host log in --log FILE"

# Ctrl-C ends the host too.
"$TEST_KVTURBO" run -m "$TEST_MODEL" --host "$TEST_HOST_BIN" -p "Count to ten thousand." -n 3000 --log "$work/ctrl_c.log" >"$work/ctrl_c" 2>&1 &
kvturbo_pid=$!
for _ in $(seq 100); do
  if [ -s "$work/ctrl_c" ]; then break; fi
  sleep 0.1
done
host_pid="$(pgrep -P "$kvturbo_pid" || true)"
kill -TERM "$kvturbo_pid"
code=0
wait "$kvturbo_pid" || code=$?
last_command="SIGTERM while generating"
expect_same "$code" "143"
if [ -z "$host_pid" ] || kill -0 "$host_pid" 2>/dev/null; then complain "the host '$host_pid' outlived the program"; fi

finish
