#!/usr/bin/env bash
# The quality matrix: three models and two texts, with stock caches and all of ours at 1024 tokens, a few of them at 4096, token by token,
# and as deep as the model goes (8192 or 16384); pass keys and greedy texts. Writes the tables into docs/quality.md below its mark, and the
# charts beside it. Two to three hours on two cores; goes on where it was interrupted.
#   scripts/quality.sh [--chunks N] [--long-chunks N] [--kvturbo PROGRAM] [FLAG...]     FLAGs go to kvturbo eval
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/cache_folder.sh

program=build/bin/kvturbo
chunks=4
long_chunks=2
while [ $# -gt 0 ]; do
  case "$1" in
    --kvturbo) program="$2" && shift 2 ;;
    --chunks) chunks="$2" && shift 2 ;;
    --long-chunks) long_chunks="$2" && shift 2 ;;
    *) break ;;
  esac
done

readonly page=docs/quality.md
readonly mark="<!-- Below: written by scripts/quality.sh -->"
readonly models=(smollm2-135m gemma3-270m qwen2.5-coder-0.5b)
readonly caches=all,ours:f16,k4v3:recent=0,k4v3:condition=off,hybrid:condition=off
readonly long_caches=f16,q8_0,q4_0,k4v3,k3v3,k8v4,hybrid
readonly deep_caches=f16,q8_0,k4v3,k3v3,k2v2  # without q4_0: stock needs half an hour for it
declare -rA deepest=([smollm2-135m]=8192 [gemma3-270m]=16384 [qwen2.5-coder-0.5b]=16384)

grep -qxF "$mark" "$page" || fail "$page has lost the line: $mark"
scripts/get_texts.sh >/dev/null
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT

measure() {  # FLAG...: one run of eval; its tables go below those of the runs before
  "$program" eval "$@" >"$scratch/tables"
  if [ ! -e "$scratch/head" ]; then head -n 1 "$scratch/tables" >"$scratch/head"; fi
  tail -n +3 "$scratch/tables" >>"$scratch/all"
  printf '\n' >>"$scratch/all"
}

# One model and text at a time: its base logits are removed before those of the next are made.
for model in "${models[@]}"; do
  for text in english code; do
    say "  $model, $text"
    measure -m "$model" --text "$text" -c 1024 --chunks "$chunks" --kv "$caches" --plot docs/plots "$@"
    printf '![KLD against bits](plots/kld_bits_%s_%s.svg)\n\n' "$model" "$text" >>"$scratch/all"
    if [ "$text" = english ]; then
      measure -m "$model" --text "$text" -c 1024 --chunks "$chunks" --kv q8_0,k4v3,hybrid --decode "$@"
      measure -m "$model" --text "$text" -c "${deepest[$model]}" --chunks 1 --kv "$deep_caches" "$@"
    fi
    measure -m "$model" --text "$text" -c 4096 --chunks "$long_chunks" --kv "$long_caches" --clean "$@"
  done
done
for kind in --needle --greedy; do
  measure -m "${models[0]}" -c 1024,2048 --kv f16,q8_0,q4_0,k4v3,k2v2 "$kind" "$@"
done

{
  sed "\\|^$mark\$|q" "$page"
  printf '\n'
  cat "$scratch/head"
  printf '\n'
  sed -e '$ { /^$/d }' "$scratch/all"
} >"$scratch/page"
mv "$scratch/page" "$page"
