#!/usr/bin/env bash
# With the codec f16 the plug-in computes what stock llama.cpp computes: KLD of the logits, batched and token by token, on a copy of
# the model with f16 weights (plugin_dequantize.cc says why); greedy text on the model itself. Then the codecs: a loose bound
# that a broken kernel would miss by far.
. "$(dirname "$0")/plugin_support.sh"
needs llama-perplexity llama-completion

"$TEST_DEQUANTIZE" "$TEST_HOST_BIN" "$TEST_MODEL" "$work/f16.gguf" || skip "the model cannot be converted"
head -c 4000 "$TEST_SOURCE/LICENSE" >"$work/text"

kld() { awk '/Mean +KLD:/ { print $3 }' "$last_log.out" "$last_log"; }
same_top() { awk '/Same top p:/ { print $4 }' "$last_log.out" "$last_log"; }

original="$TEST_MODEL"
TEST_MODEL="$work/f16.gguf"
perplexity=(llama-perplexity -f "$work/text" -c 128 --chunks 2 -b 128 --kl-divergence-base "$work/logits")
stock base "${perplexity[@]}" || complain "stock llama-perplexity"
for batch in 128 1; do
  ours "f16-ub$batch" KVTURBO_CODEC=f16 "${perplexity[@]}" -ub "$batch" --kl-divergence || complain "llama-perplexity -ub $batch"
  expect_log '^kvturbo: KV cache compressed: f16 .* 30 layers, head dim 64'
  echo "f16, -ub $batch: KLD $(kld), same top $(same_top) %"
  expect_below "$(kld)" 1e-4 "KLD of f16, -ub $batch"
  expect_below "$(awk -v s="$(same_top)" 'BEGIN { print 100 - s }')" 0.5 "different tops of f16, -ub $batch, in percent"
done
for codec in hybrid scalar43 k4v3 k3v3 k8v4; do
  ours "$codec" KVTURBO_CODEC="$codec" "${perplexity[@]}" --kl-divergence || complain "llama-perplexity with $codec"
  echo "$codec: KLD $(kld), same top $(same_top) %"
  expect_below "$(kld)" 0.4 "KLD of $codec"
done

# 200 greedy tokens are the same with f16 weights. With quantised weights texts part where two tokens are equally likely.
completion=(llama-completion -c 512 -n 200 --temp 0 --seed 1 -no-cnv --no-warmup -p "The history of the city of Rome begins")
stock text-stock "${completion[@]}" || complain "stock llama-completion"
ours text-ours KVTURBO_CODEC=f16 "${completion[@]}" || complain "llama-completion"
expect_same "$(cat "$work/text-ours.out")" "$(cat "$work/text-stock.out")" "200 greedy tokens, f16 weights"
TEST_MODEL="$original"
for codec in f16 hybrid scalar43 k4v3; do
  ours "text-$codec" KVTURBO_CODEC="$codec" "${completion[@]}" -n 60 || complain "llama-completion with $codec"
  [ "$(wc -w <"$last_log.out")" -gt 20 ] || complain "too short a text with $codec"
  expect_same "$(our_lines)" 1 "lines of ours with $codec"
done
finish
