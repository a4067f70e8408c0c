#!/usr/bin/env bash
# The stock llama-server with a compressed cache: a streamed chat, a long prompt, the prompt cache, two slots at once, a slot saved
# and restored into another, a context shift. Greedy answers must not depend on any of it.
. "$(dirname "$0")/plugin_support.sh"
needs llama-server
command -v curl >/dev/null && command -v jq >/dev/null || skip "no curl or jq"

port=$((20000 + $$ % 20000))
url="http://127.0.0.1:$port"
start() {  # LOG ARGUMENT...
  last_log="$work/$1"
  shift
  env "${plugin_environment[@]}" "$TEST_HOST_BIN/llama-server" -m "$TEST_MODEL" --host 127.0.0.1 --port "$port" -t 2 --temp 0 "$@" \
    >"$last_log.out" 2>"$last_log" </dev/null &
  server_pid=$!
  for _ in $(seq 240); do
    curl -sf "$url/health" >/dev/null && return
    kill -0 "$server_pid" 2>/dev/null || break
    sleep 0.5
  done
  complain "llama-server does not start"
  finish
}
stop() {
  kill "$server_pid"
  wait "$server_pid" 2>/dev/null
  server_pid=""
}
# complete SLOT N_TOKENS PROMPT: the answer's JSON
complete() {
  jq -n --arg p "$3" --argjson s "$1" --argjson n "$2" '{prompt: $p, n_predict: $n, id_slot: $s, temperature: 0, seed: 1, ignore_eos: true, cache_prompt: true}' |
    curl -sf "$url/completion" -d @-
}
content() { jq -r .content; }

# Texts whose continuation the model is sure of with the default codec: batches of other shapes sum in another order, and with
# quantised weights a toss-up between two words would come out either way, in stock as well.
days="Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday,"
first="$days $days Monday, Tuesday,"
second="one, two, three, four, one, two, three, four, one, two, three, four, one, two, three, four, one,"
# A cache learns the conditioning of its keys from its first 64; until then answers depend on which requests come together. So each
# server gets this one first.
teach="$(head -c 1500 "$TEST_SOURCE/LICENSE")"
long="$(cat "$TEST_SOURCE/LICENSE")
$(head -c 9500 "$TEST_SOURCE/LICENSE")"

# One slot: the answers to compare with.
start one -np 1 -c 6144
expect_log '^kvturbo: KV cache compressed: '
complete 0 1 "$teach" >"$work/taught" || complain "first request"
first_alone="$(complete 0 12 "$first" | content)"
second_alone="$(complete 0 12 "$second" | content)"
long_answer="$(complete 0 16 "$long")"
[ "$(jq .tokens_evaluated <<<"$long_answer")" -gt 4000 ] || complain "the long prompt is short"
# The same prompt and more: only what is new is computed.
again="$(complete 0 16 "$long")"
[ "$(jq .tokens_cached <<<"$again")" -gt 4000 ] || complain "the prompt cache is not used: $(jq -c '{tokens_cached, timings}' <<<"$again")"
[ "$(jq .timings.prompt_n <<<"$again")" -lt 100 ] || complain "the prompt is computed again: $(jq -c .timings <<<"$again")"
expect_same "$(content <<<"$again")" "$(content <<<"$long_answer")" "answer from the prompt cache"
curl -sfN "$url/v1/chat/completions" -d '{"stream": true, "max_tokens": 12, "temperature": 0, "messages": [{"role": "user", "content": "Say hello."}]}' \
  >"$work/stream" || complain "streamed chat"
[ "$(grep -c '^data: {' "$work/stream")" -gt 3 ] && grep -q '^data: \[DONE\]' "$work/stream" || complain "no stream"
stop

# Two slots at once.
mkdir "$work/slots"
start two -np 2 -c 4096 --slot-save-path "$work/slots"
complete 0 1 "$teach" >"$work/taught" || complain "first request"
complete 0 12 "$first" >"$work/first" &
one=$!
complete 1 12 "$second" >"$work/second" &
wait "$one" "$!"
expect_same "$(content <"$work/first")" "$first_alone" "slot 0 of two"
expect_same "$(content <"$work/second")" "$second_alone" "slot 1 of two"
# Slot 0 is saved and restored into slot 1, which goes on as slot 0 does.
curl -sf "$url/slots/0?action=save" -d '{"filename": "saved"}' >"$work/saved" || complain "slot save"
curl -sf "$url/slots/1?action=restore" -d '{"filename": "saved"}' >"$work/restored" || complain "slot restore"
expect_same "$(jq .n_restored "$work/restored")" "$(jq .n_saved "$work/saved")" "restored tokens"
more="$first$(content <"$work/first")"
expect_same "$(complete 1 8 "$more" | content)" "$(complete 0 8 "$more" | content)" "after the restore"
stop

# A context that is too small is shifted (keys are rotated in place), and the server goes on.
start shift -np 1 -c 256 --context-shift
shifted="$(complete 0 300 "$first")"
[ "$(jq .tokens_predicted <<<"$shifted")" -eq 300 ] || complain "no 300 tokens with a context of 256: $(jq -c '{tokens_predicted, truncated}' <<<"$shifted")"
[ -n "$(content <<<"$shifted" | tail -c 50)" ] || complain "no text after the shift"
stop
finish
