#!/usr/bin/env bash
# Puts the texts of `kvturbo eval` into the user's cache, out of Debian packages; needs no root. Quick when they are there, and works
# offline then. Prints their folder.
#   english.txt   the FAQ of Perl (package perl-doc): prose
#   code.txt      modules of Python's standard library (package libpython3.11-stdlib)
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/cache_folder.sh

readonly texts="$kvturbo_cache/texts"
readonly faq_order=(3 4 5 6 7 8 9 1 2)  # the first two are lists of addresses: last
readonly modules=(dataclasses shutil tarfile statistics difflib mailbox doctest imaplib)

if [ -s "$texts/english.txt" ] && [ -s "$texts/code.txt" ]; then
  printf '%s\n' "$texts"
  exit 0
fi

mkdir -p "$texts"
scratch="$(mktemp -d "$texts/fetch.XXXXXX")"
trap 'rm -rf "$scratch"' EXIT

# package_files NAME PATTERN: the folder with the package's files. Fetched, or as it is installed when there is no network.
package_files() {
  local name="$1" pattern="$2" installed
  command -v apt-get >/dev/null || fail "the texts come from Debian packages, and there is no apt-get here: give kvturbo eval --text FILE"
  if (cd "$scratch" && apt-get download "$name" && dpkg -x "$name"_*.deb "$name") >"$scratch/$name.log" 2>&1; then
    installed="$(find "$scratch/$name" -path "$pattern" -print -quit)"
  else
    installed="$(dpkg -L "$name" 2>/dev/null | grep -m 1 "${pattern//\*/.*}" || true)"
  fi
  if [ -z "$installed" ] || [ ! -e "$installed" ]; then
    tail -n 3 "$scratch/$name.log" >&2
    fail "cannot fetch the package $name: check the network; apt-get update may be needed first"
  fi
  dirname "$installed"
}

say "  fetching the texts of the evaluation (10 MB)"
faq="$(package_files perl-doc '*/perlfaq3.pod')"
library="$(package_files libpython3.11-stdlib '*/python3.11/dataclasses.py')"

# Lines that begin with = are marks of Perl's documentation format, not prose; the empty lines around them become one.
for number in "${faq_order[@]}"; do cat "$faq/perlfaq$number.pod"; done | sed '/^=/d' | cat -s >"$scratch/english.txt"
for module in "${modules[@]}"; do cat "$library/$module.py"; done >"$scratch/code.txt"
mv "$scratch/english.txt" "$scratch/code.txt" "$texts/"
printf '%s\n' "$texts"
