#!/usr/bin/env bash
# The commands of the README and of the pages in docs do what they say: every line of their blocks marked "sh run" is run, in the
# repository.
source "$(dirname "$0")/cli_support.sh"
needs_host
cd "$TEST_SOURCE" || exit 1

cache="${KVTURBO_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/kvturbo}"
mapfile -t commands < <(awk '/^```sh run$/ { on = 1; next } /^```$/ { on = 0 } on && NF && !/^#/ { sub(/ +#.*/, ""); print }' README.md docs/*.md)
last_command="README.md docs/*.md"
: >"$stdout"
: >"$stderr"
[ "${#commands[@]}" -ge 11 ] || complain "only ${#commands[@]} commands found"

for command in "${commands[@]}"; do
  command="${command//\~\/.cache\/kvturbo/$cache}"
  case "$command" in
    ./check*) continue ;;  # runs this very test
    *serve*)
      # A server: it is up when it answers, and then it is ended.
      last_command="$command"
      port="$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')"
      case "$command" in
        *--port*) command="${command/--port [0-9]*/--port $port}" ;;
        *) command="$command --port $port" ;;
      esac
      PATH="$TEST_HOST_BIN:$PATH" bash -c "exec env $command" >"$stdout" 2>"$stderr" &
      server=$!
      answered=no
      for _ in $(seq 300); do
        if curl -sf "http://127.0.0.1:$port/health" >/dev/null; then
          answered=yes
          break
        fi
        sleep 0.1
      done
      expect_same "$answered" "yes"
      case "$command" in
        GGML_BACKEND_PATH=*) expect_stderr "^kvturbo: KV cache compressed" ;;  # without any flag of ours
      esac
      kill -TERM "$server"
      wait "$server"
      ;;
    *) expect_exit 0 env PATH="$TEST_HOST_BIN:$PATH" bash -c "$command" ;;
  esac
  echo "ran: $command"
done

finish
