#!/usr/bin/env bash
# kvturbo pack and unpack: a slot that the server saved, smaller and back to the byte; what is wrong is refused in one line, and nothing is
# left behind.
. "$(dirname "$0")/cli_support.sh"
needs_host
command -v curl >/dev/null && command -v jq >/dev/null || skip "no curl or jq"

port=$((20000 + $$ % 20000))
mkdir "$work/slots"
env GGML_BACKEND_PATH="$TEST_PLUGIN" LLAMA_ARG_DEVICE=KVTURBO0 "$TEST_HOST_BIN/llama-server" -m "$TEST_MODEL" --host 127.0.0.1 --port "$port" \
  -t 2 -np 1 -c 2048 --slot-save-path "$work/slots" >"$work/log" 2>&1 </dev/null &
server=$!
trap 'kill $server 2>/dev/null; rm -rf "$work"' EXIT
for _ in $(seq 240); do curl -sf "http://127.0.0.1:$port/health" >/dev/null && break; sleep 0.5; done
head -c 5000 "$TEST_SOURCE/LICENSE" | jq -Rs '{prompt: ., n_predict: 1, id_slot: 0}' | curl -sf "http://127.0.0.1:$port/completion" -d @- >/dev/null
curl -sf "http://127.0.0.1:$port/slots/0?action=save" -d '{"filename": "chat"}' >/dev/null || skip "the server saved no slot"
kill "$server"

slot="$work/slots/chat"
expect_exit 0 kvturbo pack "$slot"
expect_stdout 'chat.kvts: [0-9,]+ -> [0-9,]+ bytes, [34]\.[0-9]+ times smaller; [0-9,]+ of [0-9,]+ rows as codes'
expect_exit 2 kvturbo pack "$slot"
expect_one_error_line '.*chat.kvts: it exists; --force replaces it'
expect_exit 0 kvturbo pack "$slot" --force -m "$TEST_MODEL" --json
expect_same "$(jq .bytes "$stdout") $(jq .slot_bytes "$stdout")" "$(stat -c %s "$slot.kvts") $(stat -c %s "$slot")"
expect_same "$(jq '.rows > 0 and .rows_as_codes > 0' "$stdout")" true
expect_exit 0 kvturbo unpack "$slot.kvts" -o "$work/again" -m "$TEST_MODEL" --json
expect_same "$(jq .slot_bytes "$stdout")" "$(stat -c %s "$slot")"
expect_exit 0 cmp "$work/again" "$slot"
expect_exit 0 kvturbo unpack "$slot.kvts" -o "$work/plain" --plain
expect_same "$(stat -c %s "$work/plain")" "$(stat -c %s "$slot")"

head -c 3000 "$slot.kvts" >"$work/torn.kvts"
expect_exit 1 kvturbo unpack "$work/torn.kvts"
expect_one_error_line '.*torn.kvts: (it ends too early|a chunk is damaged)'
expect_exit 1 kvturbo unpack "$slot" -o "$work/x"
expect_one_error_line '.*it is not a packed slot: it does not begin with KVTS'
expect_exit 1 kvturbo pack "$TEST_MODEL" -o "$work/x"
expect_one_error_line '.*it is not a slot or session file of llama.cpp; pack takes what'
expect_exit 1 kvturbo pack "$work/none"
expect_one_error_line '.*none: it cannot be read: No such file'
expect_exit 2 kvturbo unpack "$work/again"
expect_one_error_line '.*its name does not end in .kvts; name the output with -o'
expect_exit 1 kvturbo unpack "$slot.kvts" -o "$work/no/folder"
expect_one_error_line '.*it cannot be written: No such file'
# A full disk: no half file.
expect_exit 1 bash -c "ulimit -f 64; trap '' XFSZ; '$TEST_KVTURBO' unpack '$slot.kvts' -o '$work/full'"
expect_one_error_line '.*full: it cannot be written: File too large'
expect_same "$(find "$work" -name 'x*' -o -name 'full*' -o -name 'torn' -o -name '*.part.*')" ""
finish
