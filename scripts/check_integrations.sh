#!/usr/bin/env bash
# Tests the transformers cache and the LMCache serializer with the packages themselves, and prints their tables. Not part of ./check: the
# packages take 6 GB (torch comes with CUDA) in a virtual environment that is kept in the cache.
#   scripts/check_integrations.sh BUILD [MODEL TEXT]
# Exit code 77: skipped, for lack of packages, model or text.
set -euo pipefail
build="$(cd "${1:?usage: scripts/check_integrations.sh BUILD [MODEL TEXT]}" && pwd)"
cd "$(dirname "$0")/.."
source scripts/cache_folder.sh
model="${2:-$kvturbo_cache/models/smollm2-135m.gguf}"
text="${3:-$kvturbo_cache/texts/english.txt}"
environment="$kvturbo_cache/integrations"

skip() {
  say "skipped: $*"
  exit 77
}

if [ ! -e "$environment/done" ]; then
  say "fetching torch, transformers and LMCache (3 GB)"
  python3 -m venv "$environment" >/dev/null 2>&1 || skip "python3 -m venv does not work (Debian: apt-get install python3-venv)"
  "$environment/bin/python" -m pip install --quiet --disable-pip-version-check torch "transformers>=5.24" gguf accelerate "lmcache>=0.5.6,<0.6" \
    >"$environment/pip.log" 2>&1 || skip "pip cannot fetch the packages: $(tail -n 1 "$environment/pip.log")"
  touch "$environment/done"
fi
export PYTHONPATH="$PWD/python" LD_LIBRARY_PATH="$build/bin" PYTHONDONTWRITEBYTECODE=1 OMP_WAIT_POLICY=passive LMCACHE_LOG_LEVEL=ERROR
for name in bindings transformers lmcache; do
  "$environment/bin/python" "python/tests/test_$name.py"
done
[ -e "$model" ] || skip "no model $model for the tables: kvturbo models --fetch smollm2-135m"
[ -e "$text" ] || skip "no text $text for the tables: scripts/get_texts.sh"
"$environment/bin/python" examples/transformers_cache.py "$model" "$text" 2>/dev/null
"$environment/bin/python" examples/lmcache_serde.py "$model" "$text" 2>/dev/null
