#!/usr/bin/env bash
# The quality matrix: three models, two texts, contexts of 1024 and 4096 tokens, stock caches and all of ours. Writes the tables into
# docs/quality.md below its mark, and the charts beside it. Takes hours; goes on where it was interrupted.
#   scripts/quality.sh [--contexts N,...] [--chunks N] [--kvturbo PROGRAM] [FLAG...]     FLAGs go to kvturbo eval
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/cache_folder.sh

program=build/bin/kvturbo
contexts=1024,4096
chunks=8
while [ $# -gt 0 ]; do
  case "$1" in
    --kvturbo) program="$2" && shift 2 ;;
    --contexts) contexts="$2" && shift 2 ;;
    --chunks) chunks="$2" && shift 2 ;;
    *) break ;;
  esac
done

readonly page=docs/quality.md
readonly mark="<!-- Below: written by scripts/quality.sh -->"
readonly models=(smollm2-135m gemma3-270m qwen2.5-coder-0.5b)
readonly caches=all,ours:f16,k4v3:condition=off,k4v3:sinks=0,hybrid:condition=off

grep -qxF "$mark" "$page" || fail "$page has lost the line: $mark"
scripts/get_texts.sh >/dev/null
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT

# One model and text at a time: its base logits are removed before those of the next are made.
for model in "${models[@]}"; do
  for text in english code; do
    say "  $model, $text"
    "$program" eval -m "$model" --text "$text" -c "$contexts" --chunks "$chunks" --kv "$caches" --plot docs/plots --clean "$@" >"$scratch/tables"
    if [ ! -e "$scratch/head" ]; then head -n 1 "$scratch/tables" >"$scratch/head"; fi
    tail -n +3 "$scratch/tables" >>"$scratch/all"
    printf '\n' >>"$scratch/all"
    for chart in kld_bits kld_depth; do
      name="plots/${chart}_${model}_$text.svg"
      if [ -e "docs/$name" ]; then printf '![%s](%s)\n' "$chart" "$name" >>"$scratch/all"; fi
    done
    printf '\n' >>"$scratch/all"
  done
done
for measure in --needle --greedy; do
  "$program" eval -m "$(IFS=, && echo "${models[*]}")" -c "$contexts" --kv f16,q8_0,q4_0,k4v3 "$measure" "$@" >"$scratch/tables"
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
