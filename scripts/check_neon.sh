#!/usr/bin/env bash
# The NEON kernels without an Arm machine: cross build and library tests under qemu-user. Says what is missing and installs nothing.
# On an Arm machine ./check runs the same tests natively.
#   scripts/check_neon.sh         about 3 minutes on 2 cores
#   scripts/check_neon.sh --all   also the long tests: about 5 minutes
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/set_up.sh

missing=()
for need in cmake:cmake ninja:ninja-build aarch64-linux-gnu-g++:g++-aarch64-linux-gnu qemu-aarch64:qemu-user; do
  command -v "${need%%:*}" >/dev/null || missing+=("${need#*:}")
done
[ -e /usr/src/googletest/CMakeLists.txt ] || missing+=(libgtest-dev)
if [ "${#missing[@]}" -ne 0 ]; then fail "missing (Debian's names): ${missing[*]}"; fi

folder=build/neon
begin_steps 4
step "cross build"
mkdir -p "$folder"
run_quietly "$folder/configure.log" cmake -S . -B "$folder" -G Ninja -DCMAKE_BUILD_TYPE=Release \
  -DCMAKE_TOOLCHAIN_FILE="$PWD/cmake/aarch64-linux-gnu.cmake" \
  -DKVTURBO_TESTS=ON -DKVTURBO_CLI=OFF -DKVTURBO_BENCH=OFF -DKVTURBO_EXAMPLES=OFF -DKVTURBO_GGML_SOURCE=
run_ninja "aarch64 library and tests" "$folder/build.log" "$folder"

# The dot product extension and nothing newer (no SVE, no i8mm): an instruction beyond what the table asks for would trap.
export QEMU_CPU=neoverse-n1
step "the processor with dot products gets the NEON table"
run_quietly "$folder/forced.log" env KVTURBO_ISA=neon qemu-aarch64 -L /usr/aarch64-linux-gnu "$folder/bin/golden_test"
if grep -q SKIPPED "$folder/forced.log"; then fail "the NEON table is not offered on $QEMU_CPU: $folder/forced.log"; fi
step "a processor without them does not, and falls back"
run_quietly "$folder/refused.log" env QEMU_CPU=cortex-a57 KVTURBO_ISA=neon qemu-aarch64 -L /usr/aarch64-linux-gnu "$folder/bin/golden_test"
grep -q "KVTURBO_ISA=neon is not available" "$folder/refused.log" || fail "the NEON table is offered on cortex-a57: $folder/refused.log"
run_quietly "$folder/fallback.log" env QEMU_CPU=cortex-a57 qemu-aarch64 -L /usr/aarch64-linux-gnu "$folder/bin/golden_test"
if grep -q SKIPPED "$folder/fallback.log"; then fail "no table at all on cortex-a57: $folder/fallback.log"; fi
step "library tests, neon and scalar"
exclude='^$'
if [ "${1:-}" != --all ]; then
  # Long contexts cost the test's own reference a minute under emulation, and the thread plan is the same for every table; the
  # statistics are of bytes that golden.scalar compares one by one.
  export GTEST_FILTER='-*LongContext*:*ThreadOrderDoesNotMatter*:*MoreThreadsThanWork*'
  exclude='^distortion\.scalar$'
fi
ctest --test-dir "$folder" -R '\.(neon|scalar)$' -E "$exclude" --output-on-failure -j "$(nproc)"
