#!/usr/bin/env bash
# kvturbo serve: the stock server with the plug-in: a streamed chat completion, two requests at once, an orderly end.
source "$(dirname "$0")/cli_support.sh"
needs_host
command -v curl >/dev/null || skip "no curl"

port="$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')"
kvturbo_report="$work/report.json"
KVTURBO_REPORT="$kvturbo_report" "$TEST_KVTURBO" serve -m "$TEST_MODEL" --host "$TEST_HOST_BIN" --port "$port" --codec hybrid -c 4096 \
  -- --parallel 2 >"$work/server.log" 2>&1 &
server=$!
trap 'kill "$server" 2>/dev/null; rm -rf "$work"' EXIT
url="http://127.0.0.1:$port"
for _ in $(seq 300); do
  if curl -sf "$url/health" >/dev/null; then break; fi
  sleep 0.1
done
last_command="kvturbo serve"
cp "$work/server.log" "$stderr"
: >"$stdout"
expect_stderr "^kvturbo: serving .* at $url "
expect_exit 0 curl -sf "$url/health"
grep -q '"codec"' "$kvturbo_report" || complain "no report of the plug-in"

chat() {
  curl -sfN "$url/v1/chat/completions" -H "Content-Type: application/json" -d '{"stream": true, "temperature": 0, "max_tokens": 24,
    "messages": [{"role": "user", "content": "'"$1"'"}]}'
}
text_of() {
  python3 -c '
import json, sys
for line in sys.stdin:
    if line.startswith("data: {"):
        for choice in json.loads(line[6:])["choices"]:
            print(choice["delta"].get("content") or "", end="")'
}

expect_exit 0 chat "What is the capital of France? Answer in one sentence."
expect_stdout "^data: \[DONE\]"
# A piece for each token, not one piece at the end.
expect_same "$([ "$(grep -c '^data: {' "$stdout")" -ge 6 ] && echo streamed)" "streamed"
france="$(text_of <"$stdout")"
expect_exit 0 chat "What is the capital of Italy? Answer in one sentence."
italy="$(text_of <"$stdout")"
expect_same "$(grep -c Paris <<<"$france") $(grep -c Rome <<<"$italy")" "1 1"

# Both at once, each in its slot: the same answers as one after the other.
chat "What is the capital of France? Answer in one sentence." >"$work/first" &
first=$!
expect_exit 0 chat "What is the capital of Italy? Answer in one sentence."
wait "$first"
expect_same "$(text_of <"$work/first")" "$france"
expect_same "$(text_of <"$stdout")" "$italy"

# Signals are the server's own.
last_command="SIGTERM to kvturbo serve"
kill -TERM "$server"
code=0
wait "$server" || code=$?
expect_same "$code" "0"

finish
