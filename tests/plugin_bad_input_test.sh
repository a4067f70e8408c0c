#!/usr/bin/env bash
# Each thing that a user can get wrong gives one line that says what, why and what to do; an unknown option stops the host.
. "$(dirname "$0")/plugin_support.sh"
needs llama-completion

completion=(llama-completion -c 256 -n 6 --temp 0 --seed 1 -no-cnv --no-warmup -p "Two plus two is")
refused() {  # NAME VARIABLE=VALUE PATTERN
  if ours "$1" "$2" "${completion[@]}"; then complain "$2 is accepted"; fi
  expect_same "$(our_lines)" 1 "lines of ours with $2"
  expect_log "^kvturbo: $3"
}
refused codec KVTURBO_CODEC=hybird 'KVTURBO_CODEC=hybird is unknown; did you mean hybrid\? Valid: f16, hybrid, scalar43'
refused codec2 KVTURBO_CODEC=zip 'KVTURBO_CODEC=zip is unknown\. Valid: '
refused variable KVTURBO_CODEX=hybrid 'the environment variable KVTURBO_CODEX is unknown; did you mean KVTURBO_CODEC\?'
refused variable2 KVTURBO_SPEED=11 'the environment variable KVTURBO_SPEED is unknown\. Valid: '
refused isa KVTURBO_ISA=avx3 'KVTURBO_ISA=avx3 names kernels that this CPU or build lacks\. Unset it'
refused log KVTURBO_LOG=loud 'KVTURBO_LOG=loud is unknown\. Valid: info, quiet'
refused recent KVTURBO_RECENT=65 'KVTURBO_RECENT=65 is not a number from 0 to 64'
refused sinks KVTURBO_SINKS=some 'KVTURBO_SINKS=some is not a number from 0 to 64'
refused layers KVTURBO_LAYERS=0-1 'KVTURBO_LAYERS: "0-1" is not LAYER:CODEC or FIRST-LAST:CODEC'
refused layers2 KVTURBO_LAYERS=3:k8v4,5-2:f16 'KVTURBO_LAYERS: "5-2:f16" is not LAYER:CODEC'
refused layers3 KVTURBO_LAYERS=3:k8v9 'KVTURBO_LAYERS=k8v9 is unknown; did you mean k8v[34]\?'
refused device KVTURBO_DEVICE=gpu 'KVTURBO_DEVICE=gpu is unknown; did you mean cpu\?'

# Host flags that keep the cache from us: the text is stock's, and one line says why nothing is compressed.
uncompressed() {  # NAME STOCK_FLAGS PATTERN FLAG...
  local name="$1" pattern="$3"
  # shellcheck disable=SC2086
  stock "$name-stock" "${completion[@]}" $2 || complain "stock with $2"
  shift 3
  ours "$name" KVTURBO_REPORT="$work/$name.json" "${completion[@]}" "$@" || complain "$* fails"
  expect_same "$(our_lines)" 1 "lines of ours with $*"
  expect_log "^kvturbo: KV cache not compressed$pattern"
  expect_same "$(cat "$work/$name.out")" "$(cat "$work/$name-stock.out")" "text with $*"
  grep -q '"layers_compressed": 0, .*"not_compressed": \[{"layers": ' "$work/$name.json" || complain "report with $*: $(cat "$work/$name.json")"
}
elsewhere=': the host keeps it, or part of it, in CPU memory instead of on device KVTURBO0; leave out -nkvo'
uncompressed fa "-fa off" ' in layers 0-29: no flash attention reads it; start the host with -fa on' -fa off
uncompressed nkvo "" "$elsewhere" -nkvo
uncompressed ngl "" "$elsewhere" -ngl 0 -fa on
uncompressed ctk "-ctk q8_0 -ctv q8_0" ': the host keeps keys as q8_0; leave out -ctk and -ctv' -ctk q8_0 -ctv q8_0

# --device none: a host with loadable backends has loaded us by then.
if [ "${#plugin_environment[@]}" -eq 1 ]; then
  ours none "${completion[@]}" -n 60 --device none || complain "--device none fails"
  expect_log '^kvturbo: KV cache not compressed: the host put none on device KVTURBO0; leave out'
fi

# All is well: one line and a report; quiet: no line.
ours good KVTURBO_REPORT="$work/good.json" "${completion[@]}" || complain "no options"
expect_same "$(our_lines)" 1 "lines of ours"
expect_log '^kvturbo: KV cache compressed: k4v3 \([a-z0-9]+\), 30 layers, head dim 64, 5\.29 KiB per token instead of 22\.50 \(f16\): 4\.26 times smaller$'
grep -q '"codec": "k4v3", .*"kv_bytes_per_token": 5411.953125, "kv_bytes_per_token_f16": 23040.0, "ratio": 4.2572, "kv_bytes_fixed": 1359360, "layers_compressed": 30, "layers_total": 30, "not_compressed": \[\]' \
  "$work/good.json" || complain "report: $(cat "$work/good.json")"
ours layers KVTURBO_LAYERS=0-1:k8v4,29:f16 "${completion[@]}" || complain "KVTURBO_LAYERS"
expect_log '^kvturbo: KV cache compressed: k4v3, f16 in layers 29, k8v4 in layers 0-1 \([a-z0-9]+\), 30 layers'
ours quiet KVTURBO_LOG=quiet "${completion[@]}" || complain "KVTURBO_LOG=quiet"
expect_same "$(our_lines)" 0 "lines of ours when quiet"
ours report KVTURBO_REPORT="$work/no/such/folder/report" "${completion[@]}" || complain "a report that cannot be written"
expect_log '^kvturbo: cannot write KVTURBO_REPORT=.*; name a file in a folder that can be written'

# A model whose keys do not fit the codec, once they are not conditioned.
TEST_MODEL="${TEST_MODEL%/*}/qwen2.5-coder-0.5b.gguf"
if [ -e "$TEST_MODEL" ]; then
  prompt="$(for i in {1..40}; do printf 'The number %d comes before %d. ' "$i" "$((i + 1))"; done)"
  long=(llama-completion -c 1024 -n 2 --temp 0 --seed 1 -no-cnv --no-warmup -p "$prompt")
  ours misfit KVTURBO_CONDITION=off KVTURBO_REPORT="$work/misfit.json" "${long[@]}" || complain "a model that does not fit"
  expect_log '^kvturbo: the keys of layer [0-9]+ do not fit k4v3: it moves attention scores by [0-9.]+ nats .*; use KVTURBO_CONDITION=on'
  expect_same "$(our_lines)" 2 "lines of ours with a model that does not fit"
  grep -q '"score_error": [0-9]' "$work/misfit.json" || complain "report: $(cat "$work/misfit.json")"
  ours fit KVTURBO_CODEC=k4v3 "${long[@]}" || complain "a model that fits when conditioned"
  expect_same "$(our_lines)" 1 "lines of ours with a model that fits when conditioned"
fi
finish
