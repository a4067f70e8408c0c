#!/usr/bin/env bash
# Makes the tarball and the Debian package of a build folder, unpacks both elsewhere, and runs the program from there.
#   scripts/check_packages.sh BUILD [FOLDER]     FOLDER: the packages are kept there
# With KVTURBO_HOST, or a pinned host in the cache, kvturbo doctor loads the packed plug-in into it.
set -euo pipefail
build="$(cd "${1:?usage: scripts/check_packages.sh BUILD [FOLDER]}" && pwd)"
cd "$(dirname "$0")/.."
source scripts/cache_folder.sh

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
packages="${2:-$work/packages}"
generators=TGZ
if command -v dpkg-deb >/dev/null; then generators="TGZ;DEB"; fi
run_quietly "$work/cpack.log" cpack --config "$build/CPackConfig.cmake" -G "$generators" -B "$packages"

# check_tree NAME PREFIX: what must be there is, and the program finds its plug-in beside it.
check_tree() {
  local name="$1" prefix="$2" file
  for file in bin/kvturbo lib/libggml-kvturbo.so lib/libkvturbo.so.0 include/kvturbo/kvturbo.h include/kvturbo/kvturbo.hpp \
    lib/pkgconfig/kvturbo.pc lib/cmake/kvturbo/kvturbo-config.cmake share/doc/kvturbo/README.md share/doc/kvturbo/copyright \
    share/doc/kvturbo/third-party.txt share/doc/kvturbo/docs/format.md; do
    [ -e "$prefix/$file" ] || fail "$name: no $file"
  done
  "$prefix/bin/kvturbo" --version >"$work/version" || fail "$name: kvturbo does not run"
  "$prefix/bin/kvturbo" doctor --json >"$work/doctor.json" || true  # without a host it finds a problem
  python3 - "$name" "$prefix" "$work/doctor.json" <<'PYTHON'
import json, os, sys
name, prefix, path = sys.argv[1:]
doctor = json.load(open(path))
expected = os.path.realpath(f"{prefix}/lib/libggml-kvturbo.so")
if doctor["plugin"] != expected:
    sys.exit(f"{name}: the program takes the plug-in {doctor['plugin']}, not {expected}")
if doctor["host"] and not doctor["plugin_device"]:
    sys.exit(f"{name}: the plug-in does not load: {doctor['problems']}")
print(f"{name}: {doctor['version']}, plug-in {doctor['plugin_device'] or 'found; no host to load it'}", file=sys.stderr)
PYTHON
}

mkdir "$work/tarball"
tar -xzf "$packages"/kvturbo-*.tar.gz -C "$work/tarball" --strip-components=1
check_tree tarball "$work/tarball"
if [ "$generators" != TGZ ]; then
  package="$(find "$packages" -maxdepth 1 -name 'kvturbo_*.deb')"
  dpkg-deb -x "$package" "$work/debian"
  check_tree "Debian package" "$work/debian/usr"
  dpkg-deb -f "$package" Package Version Architecture Depends Installed-Size >&2
fi
ls -l "$packages"/kvturbo?* >&2
say "1 passed, 0 failed"
