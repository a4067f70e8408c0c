#!/usr/bin/env bash
# The plug-in in stock llama.cpp on a GPU: checks and measurements, for a machine with a GPU and the CUDA toolkit and no network.
#   scripts/cuda_host.sh --pack DIR      here: plug-in, host programs, sources of ggml's CUDA backend, texts and this script, to carry
#   DIR/cuda_host.sh PART...             there; parts, in this order:
#     build      ggml's CUDA module (llama.cpp b11434), beside the host programs that were carried. With
#                KVT_CUDA_MODULE=PREFIX it comes from PREFIX.00, PREFIX.01 ...: split parts of libggml-cuda.so.xz
#     model      a random-weight model of 8B shape (32 layers, 32/8 heads of 128), for speed
#     smoke      a few tokens: does it load and compute
#     f16        KVTURBO_CODEC=f16 against stock: greedy text, perplexity
#     kld        k4v3 against stock: divergence by large batches (prefill kernels) and small ones (decode kernels), and on the CPU
#     greedy     200 greedy tokens, k4v3 beside stock
#     server     a slot saved and restored, a context shift, two slots
#     refusals   what is refused, in one line each
#     speed      8B shape: generation at depth 0, stock f16, q8_0, q4_0 and k4v3 (KVT_KINDS; also pages: codec f16)
#     depth      8B shape: KVT_DEPTHS (32768 131072) tokens of prompt, then 128 tokens
#     prefill    8B shape: 2,048 tokens at depths 0 and 32768
#     parallel   8B shape: KVT_SEQUENCES (4 8) of 32768 tokens each
#     profile    8B shape: where a token's time goes, by kernels, copies and calls (KVT_DEPTH: after so long a prompt)
#     memory     8B shape: memory of the GPU with a full cache
# Real-model parts need KVT_MODEL=FILE (SmolLM2); KVT_WORK (/tmp/kvt-host) holds what is built.
set -uo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
work="${KVT_WORK:-/tmp/kvt-host}"
bin="$work/bin"
big="$work/8b.gguf"
plugin="$bin/libggml-kvturbo.so"
depths="${KVT_DEPTHS-32768 131072}"

fail() { echo "cuda_host.sh: $*" >&2; exit 1; }

build_cpu_module() {  # SOURCE, of ggml
  cmake -S "$1" -B build/cuda-host/ggml-cpu -G Ninja -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON -DGGML_BACKEND_DL=ON -DGGML_NATIVE=OFF \
    -DGGML_CCACHE=OFF -DGGML_SSE42=ON -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON -DGGML_BUILD_TESTS=OFF \
    -DGGML_BUILD_EXAMPLES=OFF -DCMAKE_CXX_COMPILER_LAUNCHER="${KVT_LAUNCHER:-}" -DCMAKE_C_COMPILER_LAUNCHER="${KVT_LAUNCHER:-}" &&
    cmake --build build/cuda-host/ggml-cpu --target ggml-cpu
}

pack() {  # DIR
  cd "$here/.." || exit 1
  source scripts/cache_folder.sh
  local dir="$1" host source staging cuda
  cuda="$(readlink -f "$(dirname "${CUDACXX:-/usr/local/cuda/bin/nvcc}")/..")"
  host="$(scripts/get_host.sh --tools)" || exit 1
  source="$(scripts/get_host.sh --source)" || exit 1
  [ -e "$host/llama-batched-bench" ] || cmake --build "$host/.." --target llama-batched-bench >&2 || exit 1
  cmake -S . -B build/cuda-host -G Ninja -DCMAKE_BUILD_TYPE=Release -DKVTURBO_CUDA=ON -DKVTURBO_CUDA_ARCHITECTURES="${KVT_ARCHITECTURES:-90}" \
    -DCMAKE_CUDA_COMPILER="${CUDACXX:-/usr/local/cuda/bin/nvcc}" -DKVTURBO_GGML_SOURCE="$source/ggml" -DKVTURBO_TESTS=OFF -DKVTURBO_CLI=OFF \
    -DKVTURBO_EXAMPLES=OFF -DCMAKE_CXX_COMPILER_LAUNCHER="${KVT_LAUNCHER:-}" -DCMAKE_CUDA_COMPILER_LAUNCHER="${KVT_LAUNCHER:-}" >&2 || exit 1
  cmake --build build/cuda-host --target ggml-kvturbo >&2 || exit 1
  # Of ggml what its CUDA and CPU modules are built of.
  mkdir -p build/cuda-host/ggml/src
  cp -ru "$source"/ggml/{CMakeLists.txt,cmake,include} build/cuda-host/ggml/
  cp -ru "$source"/ggml/src/{*.c,*.cpp,*.h,*.in,CMakeLists.txt,ggml-cuda,ggml-cpu} build/cuda-host/ggml/src/
  touch build/cuda-host/ggml/ggml.pc.in  # the sources that we have lack it, and ggml's build on its own wants it
  build_cpu_module build/cuda-host/ggml >&2 || exit 1  # the host's is made for the CPU of this machine
  staging="$(mktemp -d)"
  mkdir -p "$dir" "$staging/bin" "$staging/texts"
  cp -r build/cuda-host/ggml "$staging/ggml"
  cp build/cuda-host/ggml-cpu/bin/libggml-cpu.so "$staging/"
  cp -a "$host"/lib*.so* "$host"/llama-{bench,batched-bench,completion,perplexity,server} "$staging/bin/"
  mv -f "$staging/libggml-cpu.so" "$staging/bin/"
  g++ -std=c++20 -O2 -shared -fPIC scripts/cuda_timeline.cc "-I$cuda/include" "-L$cuda/lib" "-L$cuda/lib64" -lcupti -o "$staging/bin/libcuda_timeline.so" || exit 1
  cp -L "$cuda"/lib/libcupti.so.[0-9][0-9] "$staging/bin/" 2>/dev/null || cp -L "$cuda"/lib64/libcupti.so.[0-9][0-9] "$staging/bin/" || exit 1
  cp build/cuda-host/bin/libggml-kvturbo.so "$staging/bin/"
  find "$staging/bin" -type f -exec strip --strip-unneeded {} +
  head -c 400000 "$kvturbo_cache/texts/english.txt" >"$staging/texts/english.txt"
  python3 -m pip download --quiet --no-deps --only-binary=:all: -d "$staging/wheels" gguf==0.19.0 >&2 || exit 1
  python3 -m zipfile -e "$staging"/wheels/gguf-*.whl "$staging/python"
  rm -r "$staging/wheels"
  # The tokenizer for the model of 8B shape, in a model of one small layer.
  python3 scripts/make_random_model.py --layers 1 --heads 1 --kv-heads 1 --head-dim 64 --embedding 32 --ffn 32 \
    "${KVT_MODEL:-$kvturbo_cache/models/smollm2-135m.gguf}" "$staging/tokenizer.gguf" >&2 || exit 1
  tar -C "$staging" -cJf "$dir/host.tar.xz" .
  cp "$here"/cuda_host.sh "$here"/make_random_model.py "$here"/timeline_table.py "$dir/"
  rm -r "$staging"
  du -sh "$dir" >&2
}

if [ "${1:-}" = --pack ]; then
  pack "${2:?--pack needs a folder}"
  exit
fi

# ---- there

say() { echo "== $*"; }
need_model() { [ -e "${KVT_MODEL:-}" ] || fail "set KVT_MODEL to SmolLM2's file"; }
# ours VARIABLE=VALUE... PROGRAM ARGUMENT...: in the host with the plug-in; its lines go to $work/lines.
stock() { "$bin/$1" "${@:2}"; }
ours() {
  local variables=(GGML_BACKEND_PATH="$plugin")
  while [[ "$1" == *=* ]]; do variables+=("$1"); shift; done
  env "${variables[@]}" "$bin/$1" "${@:2}"
}
lines() { grep -ao 'kvturbo: .*' "$1" | sort | uniq -c | cut -c 1-260; }
# Says what went wrong in a run.
trouble() { grep -aiE 'error|abort|fail|assert|illegal|invalid' "$1" | tail -n 4 | cut -c 1-240; tail -n 2 "$1" | cut -c 1-240; }

unpack() {
  [ -e "$bin/llama-bench" ] && return
  mkdir -p "$work" && tar -C "$work" -xJf "$here/host.tar.xz" || fail "cannot unpack"
}

part_build() {
  local begin=$SECONDS
  if [ -n "${KVT_CUDA_MODULE:-}" ]; then
    cat "$KVT_CUDA_MODULE".[0-9]* | xz -dc -T0 >"$bin/libggml-cuda.so" || fail "KVT_CUDA_MODULE=$KVT_CUDA_MODULE: no such parts"
    echo "ggml-cuda: carried, $(stat -c %s "$bin/libggml-cuda.so") bytes"
    return
  fi
  mkdir -p "$work/ggml-build"
  cmake -S "$work/ggml" -B "$work/ggml-build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON -DGGML_BACKEND_DL=ON \
    -DGGML_NATIVE=OFF -DGGML_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES="$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .)" \
    -DCMAKE_CUDA_COMPILER="$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)" -DGGML_CUDA_GRAPHS=ON -DGGML_CUDA_NCCL=OFF -DGGML_CCACHE=OFF -DGGML_BUILD_TESTS=OFF \
    -DGGML_BUILD_EXAMPLES=OFF >"$work/configure.log" 2>&1 || { tail -n 20 "$work/configure.log"; fail "ggml does not configure"; }
  cmake --build "$work/ggml-build" --target ggml-cuda -j "$(nproc)" >"$work/build.log" 2>&1 || {
    grep -E 'error|FAILED' "$work/build.log" | head; fail "ggml does not build"; }
  cp "$work"/ggml-build/bin/libggml-cuda.so "$bin/"
  echo "ggml-cuda: $((SECONDS - begin)) s on $(nproc) cores"
}

part_model() {
  local begin=$SECONDS
  [ -e "$big" ] || PYTHONPATH="$work/python" python3 "$here/make_random_model.py" --type q4_0 --layers 32 --heads 32 --kv-heads 8 --embedding 4096 \
    --ffn 14336 --context 163840 "$work/tokenizer.gguf" "$big" || fail "no model"
  echo "8B shape: $((SECONDS - begin)) s, $(stat -c %s "$big") bytes"
}

# generate OUT N VARIABLE=VALUE... : greedy text; without variables: stock. KVT_PROMPT is continued.
generate() {
  local out="$1" n="$2"
  shift 2
  local run=(stock)
  [ $# -gt 0 ] && run=(ours "$@")
  "${run[@]}" llama-completion -m "$KVT_MODEL" -p "${KVT_PROMPT:-The history of the steam engine begins}" -n "$n" --temp 0 --seed 1 -no-cnv \
    --no-display-prompt -c 4096 >"$out" 2>"$out.log" </dev/null && return
  trouble "$out.log"
  return 1
}

part_smoke() {
  KVT_MODEL="${KVT_MODEL:-$big}"
  nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
  generate "$work/smoke.stock" 16 || exit 1
  generate "$work/smoke" 16 KVTURBO_CODEC=k4v3 || { tail -n 40 "$work/smoke.log" | cut -c 1-300; exit 1; }
  lines "$work/smoke.log"
  grep -aE 'skipping device|using device|KV buffer size|graph splits|compute buffer size' "$work/smoke.log" | cut -c 1-160
  echo "stock: $(head -c 200 "$work/smoke.stock" | tr '\n' ' ')"
  echo "k4v3:  $(head -c 200 "$work/smoke" | tr '\n' ' ')"
}

perplexity() { grep -aoE 'PPL = [0-9.]+' "$1" | tail -n 1; }

part_f16() {
  need_model
  generate "$work/stock.txt" 200
  generate "$work/f16.txt" 200 KVTURBO_CODEC=f16
  cmp "$work/stock.txt" "$work/f16.txt" && echo "greedy text of 200 tokens: equal to stock"
  for batch in 512 8; do
    stock llama-perplexity -m "$KVT_MODEL" -f "$work/texts/english.txt" -c 1024 -b 1024 -ub $batch --chunks 8 >"$work/ppl.stock" 2>&1
    ours KVTURBO_CODEC=f16 llama-perplexity -m "$KVT_MODEL" -f "$work/texts/english.txt" -c 1024 -b 1024 -ub $batch --chunks 8 >"$work/ppl.f16" 2>&1
    echo "-ub $batch: stock $(perplexity "$work/ppl.stock"), f16 pages $(perplexity "$work/ppl.f16")"
  done
  lines "$work/ppl.f16"
}

divergence() { grep -aE 'Mean +KLD|Maximum KLD|Same top p|RMS Δp' "$1" | tr -s ' ' | tr '\n' ';' ; echo; }

part_kld() {
  need_model
  local arguments=(-m "$KVT_MODEL" -f "$work/texts/english.txt" -c 1024 -b 1024 --chunks 8 --kl-divergence-base "$work/base.kld")
  stock llama-perplexity "${arguments[@]}" -ub 512 >"$work/kld.base" 2>&1 || trouble "$work/kld.base"
  for batch in 512 8; do
    # What a batch of this size changes by itself: against the same base.
    stock llama-perplexity "${arguments[@]}" -ub $batch --kl-divergence >"$work/kld.stock" 2>&1 || trouble "$work/kld.stock"
    echo "GPU stock -ub $batch: $(divergence "$work/kld.stock")"
    for codec in f16 ${KVT_CODECS:-k4v3}; do
      ours KVTURBO_CODEC=$codec llama-perplexity "${arguments[@]}" -ub $batch --kl-divergence >"$work/kld.ours" 2>&1 || trouble "$work/kld.ours"
      echo "GPU $codec -ub $batch: $(divergence "$work/kld.ours")"
      [ $codec = f16 ] && continue
      ours KVTURBO_CODEC=$codec KVTURBO_DEVICE=cpu llama-perplexity "${arguments[@]}" -ub $batch --kl-divergence --device KVTURBO0 -t "$(nproc)" \
        >"$work/kld.cpu" 2>&1 || trouble "$work/kld.cpu"
      echo "CPU $codec -ub $batch: $(divergence "$work/kld.cpu")"
    done
  done
  lines "$work/kld.ours"
}

part_greedy() {
  need_model
  generate "$work/stock.txt" 200
  generate "$work/k4v3.txt" 200 KVTURBO_CODEC=k4v3
  lines "$work/k4v3.txt.log"
  echo "same first bytes: $(cmp "$work/stock.txt" "$work/k4v3.txt" | grep -oE '(byte|char) [0-9]+' || echo all)"
  echo "stock: $(tr '\n' ' ' <"$work/stock.txt" | head -c 300)"
  echo "k4v3:  $(tr '\n' ' ' <"$work/k4v3.txt" | head -c 300)"
}

part_server() {
  need_model
  python3 - "$bin" "$plugin" "$KVT_MODEL" "$work" <<'END'
import json, os, subprocess, sys, time, urllib.request
folder, plugin, model, work = sys.argv[1:]
port = 18080
def call(path, data=None):
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", json.dumps(data).encode() if data is not None else None,
                                     {"Content-Type": "application/json"})
    return json.load(urllib.request.urlopen(request, timeout=120))
def complete(slot, n, prompt):
    return call("/completion", {"prompt": prompt, "n_predict": n, "id_slot": slot, "temperature": 0, "seed": 1, "ignore_eos": True, "cache_prompt": True})
def server(name, arguments, environment):
    log = open(f"{work}/server.{name}", "w")
    process = subprocess.Popen([f"{folder}/llama-server", "-m", model, "--port", str(port), "--slot-save-path", work, *arguments],
                               env={**os.environ, **environment}, stdout=log, stderr=log)
    for _ in range(240):
        try:
            call("/health")
            return process
        except OSError:
            time.sleep(0.25)
            if process.poll() is not None:
                break
    print(name, "does not start:", *open(f"{work}/server.{name}").read().splitlines()[-12:], sep="\n  "); sys.exit(1)
text = open(f"{work}/texts/english.txt").read()
days = "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday,"
first, second = f"{text[:3000]} {days} {days} Monday, Tuesday,", f"{text[3000:5000]} one, two, three, four, one, two, three, four, one, two, three, four, one,"
for codec in ("f16", "k4v3"):
    environment = {"GGML_BACKEND_PATH": plugin, "KVTURBO_CODEC": codec}
    process = server(codec, ["-np", "2", "-c", "8192"], environment)
    try:
        a = complete(0, 24, first)["content"]
        b = complete(1, 24, second)["content"]
        begin = time.time()
        saved = call("/slots/0?action=save", {"filename": "slot0"})
        middle = time.time()
        call("/slots/1?action=restore", {"filename": "slot0"})
        end = time.time()
        again = complete(1, 24, first)
        print(f"{codec}: slot of {saved['n_saved']} tokens saved in {middle - begin:.2f} s, restored in {end - middle:.2f} s;",
              "answer from it", "equal" if again["content"] == a else f"differs: {again['content']!r} instead of {a!r}",
              f"({again['timings']['prompt_n']} tokens computed anew)")
        both = [complete(0, 24, first)["content"] == a, complete(1, 24, second)["content"] == b]
        print(f"{codec}: answers repeated {both}: {a!r} {b!r}")
    finally:
        process.terminate(); process.wait()
    process = server(codec + ".shift", ["-np", "1", "-c", "768", "--context-shift"], environment)
    try:
        print(f"{codec}: 900 tokens in a context of 768:", repr(complete(0, 900, text[:800])["content"][-80:]))
    finally:
        process.terminate(); process.wait()
for codec in ("f16", "k4v3"):
    for name in (codec, codec + ".shift"):
        lines = {l.strip()[:220] for l in open(f"{work}/server.{name}") if "kvturbo" in l or "rror" in l}
        print(name, *sorted(lines), sep="\n  ")
END
}

part_refusals() {
  need_model
  local log="$work/refusal"
  try() {  # VARIABLE=VALUE... -- ARGUMENT...
    local variables=()
    while [ "$1" != -- ]; do variables+=("$1"); shift; done
    ours "${variables[@]}" llama-completion -m "$KVT_MODEL" -p "Hello" -n 4 -no-cnv "${@:2}" >"$log" 2>&1 </dev/null
    echo "[${variables[*]} ${*:2}] exit $?: $(grep -ao 'kvturbo: .*' "$log" | head -n 2 | tr '\n' '|')"
  }
  try KVTURBO_CODEC=k3v3 --
  try KVTURBO_LAYERS=0:k8v4 --
  try KVTURBO_CODEC=k4v3 -- -ngl 15
  try KVTURBO_CODEC=k4v3 -- -nkvo
  try KVTURBO_CODEC=k4v3 -- -fa off
  try KVTURBO_CODEC=k4v3 -- -ctk q8_0 -ctv q8_0
  try KVTURBO_CODEC=k4v3 -- --device CUDA0
  try KVTURBO_CODEC=k4v3 CUDA_VISIBLE_DEVICES= --
  try KVTURBO_CODEC=k3v3 KVTURBO_DEVICE=cpu -- --device KVTURBO0
}

# bench NAME VARIABLE=VALUE... -- ARGUMENT...
bench() {
  local name="$1" variables=()
  shift
  while [ "$1" != -- ]; do variables+=("$1"); shift; done
  local run=(stock)
  [ ${#variables[@]} -gt 0 ] && run=(ours "${variables[@]}")
  "${run[@]}" llama-bench -m "$big" -ngl 99 -fa 1 -o jsonl "${@:2}" >"$work/bench.out" 2>"$work/bench.err" || trouble "$work/bench.err"
  python3 - "$name" "$work/bench.out" <<'END'
import json, sys
for line in open(sys.argv[2]):
    r = json.loads(line)
    what = f"pp{r['n_prompt']}" if r["n_prompt"] else f"tg{r['n_gen']}"
    print(f"{sys.argv[1]:12} {what:7} d{r['n_depth']:<7} {r['avg_ts']:10.1f} t/s")
END
  lines "$work/bench.err"
}

part_speed() {
  for kind in ${KVT_KINDS:-f16 k4v3 q8_0 q4_0}; do bench "$kind" $(variables_of "$kind") -- $(arguments_of "$kind") -p 0 -n 128 -r 3; done
}

# Kinds: stock's cache types, or a codec of ours. `pages`: codec f16.
is_stock() { [[ "$1" == f16 || "$1" == q8_0 || "$1" == q4_0 ]]; }
arguments_of() { [[ "$1" != q8_0 && "$1" != q4_0 ]] || echo "-ctk $1 -ctv $1"; }
variables_of() { is_stock "$1" || echo "KVTURBO_CODEC=${1/pages/f16}"; }

# batched KIND SEQUENCES PROMPT TOKENS: llama-bench would save and restore the cache between prompt and tokens.
batched() {
  local run=(stock) n="$2"
  is_stock "$1" || run=(ours $(variables_of "$1"))
  "${run[@]}" llama-batched-bench -m "$big" -ngl 99 -fa on -c $((n * ($3 + 256))) -b 2048 -ub "${KVT_UBATCH:-2048}" -npp "$3" -ntg "$4" -npl "$n" \
    $(arguments_of "$1") >"$work/batched" 2>&1 || trouble "$work/batched"
  grep -aE "^\| *$3 " "$work/batched" | awk -F'|' -v kind="$1" -v n="$n" \
    '{ printf "%-8s %d x %d: prompt %s t/s, then %d tokens: %.1f t/s\n", kind, n, $2, $7 + 0, $3, $9 }'
  is_stock "$1" || lines "$work/batched" | grep -v 'do not fit'
}

part_depth() {
  for depth in $depths; do
    for kind in ${KVT_KINDS:-f16 k4v3}; do batched "$kind" 1 "$depth" 128; done
  done
}

part_prefill() {
  for kind in ${KVT_KINDS:-f16 k4v3}; do bench "$kind" $(variables_of "$kind") -- $(arguments_of "$kind") -p 2048 -n 0 -d "${KVT_DEPTHS-0,32768}" -r 1; done
}

part_parallel() {
  for n in ${KVT_SEQUENCES:-4 8}; do
    for kind in ${KVT_KINDS:-f16 k4v3}; do batched "$kind" "$n" 32768 64; done
  done
}

# Of the last tokens of a run; the table is for each token.
part_profile() {
  for kind in ${KVT_KINDS:-f16 k4v3}; do
    export KVT_TIMELINE="$work/timeline.$kind" CUDA_INJECTION64_PATH="$bin/libcuda_timeline.so"
    if [ -n "${KVT_DEPTH:-}" ]; then batched "$kind" 1 "$KVT_DEPTH" 32; else bench "$kind" $(variables_of "$kind") -- -p 0 -n 128 -r 1; fi
    unset CUDA_INJECTION64_PATH
    python3 "$here/timeline_table.py" "$KVT_TIMELINE"
    [ -z "${OUT:-}" ] || xz -1 -c "$KVT_TIMELINE" >"$OUT/timeline.$kind${KVT_DEPTH:-}.xz"
  done
}

part_memory() {
  for kind in stock k4v3; do
    # Not by functions: what runs in the background must be the server itself.
    local run=(env)
    [ $kind = k4v3 ] && run=(env GGML_BACKEND_PATH="$plugin" KVTURBO_CODEC=k4v3)
    for n in 256 131072; do
      "${run[@]}" "$bin/llama-server" -m "$big" -ngl 99 -fa on -c $n -np 1 --port 18081 >"$work/memory.log" 2>&1 &
      local pid=$!
      python3 - <<'END'
import time, urllib.request
url = "http://127.0.0.1:18081"
for _ in range(240):
    try:
        urllib.request.urlopen(url + "/health")
        break
    except OSError:
        time.sleep(0.25)
urllib.request.urlopen(urllib.request.Request(url + "/completion", b'{"prompt": "a b c", "n_predict": 4}', {"Content-Type": "application/json"}), timeout=60)
END
      echo "$kind -c $n: $(nvidia-smi --query-gpu=memory.used --format=csv,noheader)"
      kill $pid || trouble "$work/memory.log"
      wait $pid 2>/dev/null
    done
  done
}

[ $# -gt 0 ] || fail "name the parts: see the head of this script"
unpack
export LD_LIBRARY_PATH="$bin${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
for part in "$@"; do
  declare -F "part_$part" >/dev/null || fail "unknown part $part"
  say "$part"
  begin=$SECONDS
  "part_$part"
  echo "($part: $((SECONDS - begin)) s)"
done
