#!/usr/bin/env bash
# The quality matrix: three models, two texts, stock caches and all of ours at 1024 tokens, a few of them at 4096. Writes the tables
# into docs/quality.md below its mark, and the charts beside it. About an hour on two cores; goes on where it was interrupted.
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
readonly long_caches=f16,q8_0,q4_0,k4v3,k3v3

grep -qxF "$mark" "$page" || fail "$page has lost the line: $mark"
scripts/get_texts.sh >/dev/null
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT

# One model and text at a time: its base logits are removed before those of the next are made.
for model in "${models[@]}"; do
  for text in english code; do
    say "  $model, $text"
    for case in "1024 $chunks $caches --plot docs/plots" "4096 $long_chunks $long_caches --clean"; do
      read -r context n kv flags <<<"$case"
      # shellcheck disable=SC2086
      "$program" eval -m "$model" --text "$text" -c "$context" --chunks "$n" --kv "$kv" $flags "$@" >"$scratch/tables"
      if [ ! -e "$scratch/head" ]; then head -n 1 "$scratch/tables" >"$scratch/head"; fi
      tail -n +3 "$scratch/tables" >>"$scratch/all"
      printf '\n' >>"$scratch/all"
    done
    printf '![KLD against bits](plots/kld_bits_%s_%s.svg)\n\n' "$model" "$text" >>"$scratch/all"
  done
done
for measure in --needle --greedy; do
  "$program" eval -m "${models[0]}" -c 1024,2048 --kv f16,q8_0,q4_0,k4v3,k2v2 "$measure" "$@" >"$scratch/tables"
  tail -n +3 "$scratch/tables" >>"$scratch/all"
  printf '\n' >>"$scratch/all"
done

{
  sed "\\|^$mark\$|q" "$page"
  printf '\n'
  cat "$scratch/head"
  printf '\n'
  sed -e '$ { /^$/d }' "$scratch/all"
} >"$scratch/page"
mv "$scratch/page" "$page"
