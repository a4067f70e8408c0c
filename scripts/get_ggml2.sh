#!/usr/bin/env bash
# Fetches a ggml of backend API 2 (0.20.2; llama.cpp moved to API 3 with 0.26) for the tests that load the plug-in into it.
# The last line of stdout is the folder with libggml-base.so and libggml.so.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/cache_folder.sh

readonly ggml2="$kvturbo_cache/ggml2"
if [ ! -e "$ggml2/done" ]; then
  mkdir -p "$kvturbo_cache"
  scratch="$(mktemp -d "$kvturbo_cache/ggml2.XXXXXX")"
  trap 'rm -rf "$scratch"' EXIT
  say "  fetching ggml 0.20.2 (3 MB)"
  fetch_package wheel "libggml-python==0.20.2.post1" "$scratch/download"
  python3 -m zipfile -e "$scratch"/download/*.whl "$scratch"
  rm -rf "$ggml2" "$scratch/download"
  touch "$scratch/done"
  mv "$scratch" "$ggml2"
fi
library="$(find "$ggml2" -name libggml-base.so -print -quit)"
if [ -z "$library" ]; then fail "no libggml-base.so in $ggml2: remove that folder and run this again"; fi
dirname "$library"
