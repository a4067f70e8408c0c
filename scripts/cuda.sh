#!/usr/bin/env bash
# Everything about CUDA: builds for the GPU at hand, runs the GPU tests, the compute sanitizer, and the benchmarks, whose tables go to stdout
# and into docs/performance.md.
#   scripts/cuda.sh                            build, then all of it
#   scripts/cuda.sh --pack DIR                 build for compute capability 8.0 and 9.0 and copy binaries and this script to DIR
#   scripts/cuda.sh --pack DIR --for 90        the same for 9.0 alone
#   DIR/cuda.sh                                the same from such a folder, on a machine with a GPU and without a compiler
#   scripts/cuda.sh --only tests,sanitizer,bench,sustained,sdpa     some of the parts; sdpa, PyTorch's cuDNN, is in none by default
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
tests=(cuda_encode_test cuda_cache_test cuda_attend_test cuda_step_test)
programs=("${tests[@]}" kvturbo_cuda_bench)
parts=tests,sanitizer,bench,sustained
pack=
architectures="80;90"

fail() { echo "cuda.sh: $*" >&2; exit 1; }
while [ $# -gt 0 ]; do
  case "$1" in
    --pack) pack="${2:?--pack needs a folder}"; shift 2 ;;
    --for) architectures="${2:?--for needs compute capabilities as CMake takes them}"; shift 2 ;;
    --only) parts="${2:?--only needs a list of parts}"; shift 2 ;;
    *) fail "unknown argument $1: see the head of this script" ;;
  esac
done
wants() { [[ ",$parts," == *",$1,"* ]]; }

if [ -x "$here/${programs[0]}" ]; then
  bin="$here"
else
  nvcc="$(command -v nvcc || ls /usr/local/cuda/bin/nvcc 2>/dev/null)" || fail "no nvcc: install the CUDA toolkit, or carry the binaries here with --pack"
  build="$here/../build/cuda"
  if [ -z "$pack" ]; then
    architectures="$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .)" || fail "no GPU answers nvidia-smi; --pack builds without one"
  fi
  cmake -S "$here/.." -B "$build" -DCMAKE_BUILD_TYPE=Release -DKVTURBO_CUDA=ON -DCMAKE_CUDA_COMPILER="$nvcc" \
    -DKVTURBO_CUDA_ARCHITECTURES="$architectures" -DKVTURBO_TESTS=ON -DKVTURBO_CLI=OFF -DKVTURBO_EXAMPLES=OFF -DKVTURBO_GGML_SOURCE= >&2
  cmake --build "$build" -j "$(nproc)" --target "${programs[@]}" >&2
  bin="$build/bin"
fi
if [ -n "$pack" ]; then
  mkdir -p "$pack"
  for program in "${programs[@]}"; do cp "$bin/$program" "$pack/"; done
  cp "${BASH_SOURCE[0]}" "$here/cuda_sdpa.py" "$pack/"
  echo "cuda.sh: packed into $pack" >&2
  exit 0
fi

nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,clocks.max.mem,power.limit,clocks_event_reasons.active --format=csv || fail "no GPU answers nvidia-smi"
status=0
if wants tests; then
  for test in "${tests[@]}"; do "$bin/$test" --gtest_brief=1 || status=1; done
fi
if wants sanitizer; then
  sanitizer="$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)" || fail "no compute-sanitizer: it comes with the CUDA toolkit; leave it out with --only"
  # Small shapes: the tools slow kernels down a hundredfold and more.
  for tool in memcheck racecheck initcheck; do
    for run in "cuda_encode_test *OneRow*:*ShiftedRows*" "cuda_cache_test *ConditionedKeys*:*UnchangedRows*" \
      "cuda_step_test *Extras*:*GraphReplay*" "cuda_attend_test *Types*:*SameResultTwice*:*GraphReplay*:*Groups*:*Masks*"; do
      read -r test filter <<<"$run"
      echo "compute-sanitizer --tool $tool $test $filter"
      "$sanitizer" --tool "$tool" --error-exitcode 1 "$bin/$test" --gtest_brief=1 --gtest_filter="$filter" | tail -n 4 || status=1
    done
  done
fi
if wants bench; then "$bin/kvturbo_cuda_bench" || status=1; fi
if wants sustained; then
  "$bin/kvturbo_cuda_bench" --sustained || status=1
  nvidia-smi --query-gpu=clocks.sm,clocks.mem,power.draw,temperature.gpu,clocks_event_reasons.active --format=csv
fi
if wants sdpa; then python3 "$here/cuda_sdpa.py" || status=1; fi
exit "$status"
