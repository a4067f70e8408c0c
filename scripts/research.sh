#!/usr/bin/env bash
# Codes that were tried and are no part of the product (research/, docs/algorithm.md 8 and 4): errors of vectors, then what they do to models.
#   scripts/research.sh                          everything; about an hour on two cores, goes on where it was interrupted
#   scripts/research.sh MODEL CODE[:OPTION]...   kvturbo eval of some, as in: smollm2-135m x4x3 hybrid-broken:condition=off
# The codes lie in pages of `k8v4`: take no notice of the bits and bytes that are printed. Their names: research/research_codes.cc.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/set_up.sh

evaluate() {
  local model="$1" caches
  shift
  printf -v caches 'k8v4:isa=%s,' "$@"
  build/research/bin/kvturbo eval --plugin build/research/bin/libggml-kvturbo-research.so -m "$model" --text english -c 1024 --chunks 2 --kv "${caches%,}"
}

host_bin="$(scripts/get_host.sh --tools)"
mkdir -p build/research
run_quietly build/research/configure.log cmake -S . -B build/research -G Ninja -DCMAKE_BUILD_TYPE=Release -DKVTURBO_RESEARCH=ON -DKVTURBO_CUDA=OFF \
  -DKVTURBO_TESTS=OFF -DKVTURBO_EXAMPLES=OFF -DKVTURBO_GGML_SOURCE="$host_source/ggml" -DKVTURBO_HOST_BIN="$host_bin"
run_ninja "research" build/research/build.log build/research kvturbo ggml-kvturbo-research research_errors

if [ $# -gt 0 ]; then
  [ $# -gt 1 ] || fail "research.sh takes a model and names of codes, or nothing"
  evaluate "$@"
  exit
fi
build/research/bin/research_errors
sketches=(hybrid hybrid-gaussian hybrid-broken)
for model in smollm2-135m gemma3-270m qwen2.5-coder-0.5b; do
  evaluate "$model" k4v3 x4x3 k3v3 x3x3 k4v3:recent=0 x4x3:recent=0 k2v2 k2v2-middle k2v2-least "${sketches[@]}" "${sketches[@]/%/:condition=off}"
done
