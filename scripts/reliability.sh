#!/usr/bin/env bash
# Everything that a server does to a cache, in the stock llama.cpp on this machine, as docs/reliability.md lists it. Needs the release build with
# tests, the host with its tools and SmolLM2-135M: what ./check sets up.
#   scripts/reliability.sh               all parts, about six hours on two cores
#   scripts/reliability.sh --quick       short forms, about a minute and a half: a test of ctest
#   scripts/reliability.sh --only drafts,rpc [--quick]
#   scripts/reliability.sh --list
# Each part is bounded in time. The exit status is the number of parts that failed; a part without what it needs is skipped and said so.
set -uo pipefail
cd "$(dirname "$0")/.."
source scripts/cache_folder.sh

#     name          minutes  quick seconds (0: not in --quick)  what
parts=(
  "sequences        20       0     sequences and saved states with all codecs; what context shifts cost"
  "drafts           20       60    speculative decoding: a draft model, n-grams, rollback"
  "faults           15       40    an end under load, a full disk, torn files, a small address space"
  "rpc              15        0    layers split over two RPC servers; one of them dies"
  "backend_ops      90       10    llama.cpp's test-backend-ops on our device"
  "prompt_cache     30       0     --cache-reuse, --cache-ram; the ring of a sliding window, with Gemma 3 270M"
  "server_suite     60        0    llama-server's own tests, with and without the plug-in"
  "throughput       30       0     prompts of 8K tokens, stock and ours in turns"
  "load            100        0    8 slots, mixed prompts, streams, cancelled requests; memory, throughput and latency beside stock"
  "sanitizers       20       0     the plug-in under AddressSanitizer and UndefinedBehaviorSanitizer"
  "tsan             40       0     the plug-in and the library under ThreadSanitizer"
)

is_quick=""
only=""
while [ $# -gt 0 ]; do
  case "$1" in
    --quick) is_quick=1 ;;
    --only)
      only=",${2:?--only takes names, as --list shows them},"
      shift
      ;;
    --list)
      for part in "${parts[@]}"; do
        read -r name minutes seconds what <<<"$part"
        printf '%-14s %s\n' "$name" "$what"
      done
      exit 0
      ;;
    *) fail "reliability.sh: unknown option $1; it takes --quick, --only NAME,NAME and --list" ;;
  esac
  shift
done
for name in ${only//,/ }; do
  [[ " ${parts[*]%% *} " == *" $name "* ]] || fail "reliability.sh: no part $name; see --list"
done

host="$(host_folder)"
export TEST_PLUGIN="${TEST_PLUGIN:-$PWD/build/bin/libggml-kvturbo.so}" TEST_HOST_BIN="${TEST_HOST_BIN:-$host/bin}"
export TEST_MODEL="${TEST_MODEL:-$kvturbo_cache/models/smollm2-135m.gguf}" TEST_SOURCE="$PWD"
export TEST_RPC_BIN="${TEST_RPC_BIN:-$host/rpc/bin}" TEST_HOST_SOURCE="${TEST_HOST_SOURCE:-$host_source}" PYTHONDONTWRITEBYTECODE=1
export TEST_GGML_SOURCE="${TEST_GGML_SOURCE:-$host_source/ggml}"

n_failed=0
for part in "${parts[@]}"; do
  read -r name minutes seconds what <<<"$part"
  if [ -n "$only" ]; then
    [[ "$only" == *",$name,"* ]] || continue
  elif [ -n "$is_quick" ] && [ "$seconds" -eq 0 ]; then
    continue
  fi
  # A busy machine gets three times as long as an idle one needs.
  limit=$((is_quick ? seconds * 3 : minutes * 60))
  [ "$limit" -gt 0 ] || limit=$((minutes * 60))
  echo "== $name: $what"
  begin=$SECONDS
  timeout --kill-after=20 "$limit" python3 "tests/reliability/${name}_test.py" ${is_quick:+--quick}
  status=$?
  case $status in
    0) result=passed ;;
    77) result=skipped ;;
    124 | 137) result="FAILED: longer than $limit s" ;;
    *) result=FAILED ;;
  esac
  [[ "$result" != FAILED* ]] || n_failed=$((n_failed + 1))
  echo "== $name: $result, $((SECONDS - begin)) s"
done
exit "$n_failed"
