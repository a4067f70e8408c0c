# shellcheck shell=bash
# Sourced by ./demo and ./check: numbered steps with the time, and the build.
source scripts/cache_folder.sh

begin_steps() {
  steps_total="$1"
  step_number=0
  SECONDS=0
}

elapsed() { printf '%d:%02d' $((SECONDS / 60)) $((SECONDS % 60)); }

step() {
  step_number=$((step_number + 1))
  say "[$step_number/$steps_total] $1  ($(elapsed))"
}

# Compiled files are kept between clones, if ccache is there; a clone has a path of its own, which must not count.
if command -v ccache >/dev/null; then
  export CCACHE_DIR="$kvturbo_cache/ccache" CCACHE_BASEDIR="$PWD" CCACHE_NOHASHDIR=1 CCACHE_MAXSIZE=1G
  export CMAKE_CXX_COMPILER_LAUNCHER=ccache CMAKE_CUDA_COMPILER_LAUNCHER=ccache
fi

# build_release TARGET[,TARGET...] CMAKE_OPTION...: a release build in build/
build_release() {
  local targets
  IFS=, read -r -a targets <<<"$1"
  shift
  mkdir -p build
  run_quietly build/configure.log cmake -S . -B build -G Ninja -DCMAKE_BUILD_TYPE=Release "$@"
  run_ninja "kvturbo" build/build.log build "${targets[@]}"
}
