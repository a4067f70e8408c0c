#!/usr/bin/env bash
# What the shared libraries export is what tests/abi lists: no more, since programs would come to depend on it, and no less, since those
# that exist would fail to load. And the library's SONAME carries the ABI's number.
set -euo pipefail
problems=0
for library in "$TEST_LIBRARY" "$TEST_PLUGIN"; do
  list="$TEST_SOURCE/tests/abi/$(basename "$library" .so).symbols"
  if ! difference="$(nm -D --defined-only "$library" | awk '{print $3}' | LC_ALL=C sort | diff "$list" -)"; then
    echo "$(basename "$library") does not export what $list lists (<: missing, >: new). A new function belongs into the list; one that"
    echo "is missing or changed breaks programs: raise SOVERSION in src/CMakeLists.txt."
    echo "$difference"
    problems=1
  fi
done
soname="$(readelf -d "$TEST_LIBRARY" | sed -n 's/.*SONAME.*\[\(.*\)\]/\1/p')"
if [ "$soname" != libkvturbo.so.0 ]; then
  echo "the library's SONAME is $soname, not libkvturbo.so.0"
  problems=1
fi
exit "$problems"
