#!/usr/bin/env bash
# Runs the fuzz targets of fuzz/ with clang's libFuzzer, library and all under AddressSanitizer and UndefinedBehaviorSanitizer, one after
# another at the lowest priority.
#   scripts/fuzz.sh                          every target for 10 minutes
#   scripts/fuzz.sh --seconds 14400 decode   one for four hours
#   scripts/fuzz.sh --runs 10000000 api isas each until so many executions
# Inputs that reach new code are kept in build/fuzz/corpus and used the next time; what a target finds is in build/fuzz/findings, and belongs
# into fuzz/corpus/<target>, where ctest replays it. Prints the number of executions. The exit status is the number of targets with findings.
set -uo pipefail
cd "$(dirname "$0")/.."
source scripts/cache_folder.sh

limit=(-max_total_time=600)
targets=()
while [ $# -gt 0 ]; do
  case "$1" in
    --seconds) limit=("-max_total_time=${2:?--seconds takes a number}") && shift ;;
    --runs) limit=("-runs=${2:?--runs takes a number}") && shift ;;
    -*) fail "fuzz.sh: unknown option $1; it takes --seconds N, --runs N and names of targets" ;;
    *) targets+=("$1") ;;
  esac
  shift
done
command -v clang++ >/dev/null || fail "fuzz.sh needs clang++ with libFuzzer: apt-get install clang"
mkdir -p build/fuzz
run_quietly build/fuzz/configure.log cmake -S . -B build/fuzz -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DCMAKE_CXX_COMPILER=clang++ \
  -DKVTURBO_FUZZ=ON -DKVTURBO_CLI=OFF -DKVTURBO_CUDA=OFF -DKVTURBO_EXAMPLES=OFF -DKVTURBO_WERROR=OFF -DKVTURBO_GGML_SOURCE="$host_source/ggml"
[ "${#targets[@]}" -gt 0 ] || mapfile -t targets < <(for file in fuzz/fuzz_*.cc; do basename "$file" .cc | sed 's/^fuzz_//'; done)
for target in "${targets[@]}"; do
  [ -e "fuzz/fuzz_$target.cc" ] || fail "fuzz.sh: no target $target; there are: $(echo fuzz/fuzz_*.cc | sed 's|fuzz/fuzz_||g; s|\.cc||g')"
done
run_ninja "fuzz targets" build/fuzz/build.log build/fuzz "${targets[@]/#/fuzz_}"

n_failed=0
for target in "${targets[@]}"; do
  mkdir -p "build/fuzz/corpus/$target" build/fuzz/findings
  log="build/fuzz/$target.log"
  most_bytes=512
  case "$target" in container | options) most_bytes=2048 ;; esac
  # Leaks are looked for where ctest replays the corpus. Inputs that take long are chosen less often. A small quarantine and short stacks of
  # allocations: the rest is time.
  nice -n 19 env ASAN_OPTIONS=quarantine_size_mb=8:malloc_context_size=4 "build/fuzz/bin/fuzz_$target" "${limit[@]}" -max_len="$most_bytes" \
    -rss_limit_mb=2048 -timeout=30 -detect_leaks=0 -reload=0 -entropic_scale_per_exec_time=1 -print_final_stats=1 \
    -artifact_prefix="build/fuzz/findings/$target-" "build/fuzz/corpus/$target" "fuzz/corpus/$target" >"$log" 2>&1
  status=$?
  printf '%s: %s executions, %s inputs kept, %s\n' "$target" "$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")" \
    "$(find "build/fuzz/corpus/$target" -type f | wc -l)" "$([ $status -eq 0 ] && echo "no finding" || echo "FINDING: see $log")"
  [ "$status" -eq 0 ] || n_failed=$((n_failed + 1))
done
exit "$n_failed"
