#!/usr/bin/env bash
# kvturbo eval: figures against those of llama-perplexity itself, resuming, and what is wrong with the input.
source "$(dirname "$0")/cli_support.sh"

export KVTURBO_CACHE="$work/cache" # results of its own, and no texts
cat "$TEST_SOURCE"/docs/*.md | head -c 40000 >"$work/prose.txt"  # each run of llama-perplexity splits all of it into tokens

# What needs no host.
expect_exit 2 kvturbo eval
expect_one_error_line "command line: --model is required; see kvturbo eval --help"
expect_exit 2 kvturbo eval --quick --kv q8_0
expect_one_error_line "command line: .*excludes.*; see kvturbo eval --help"
expect_exit 2 kvturbo eval -m smollm2-135m --kv q4_0,zip
expect_one_error_line "--kv 'zip': neither a stock cache type nor a codec; stock: .*q4_0.*; ours: .*k4v3"
expect_exit 2 kvturbo eval -m smollm2-135m --kv q4_0:sinks=0
expect_one_error_line "--kv 'q4_0:sinks=0': neither"
expect_exit 1 kvturbo eval -m smollm2-135m --host "$work"
expect_one_error_line "host $work: there is no program llama-server in it"
expect_exit 0 kvturbo eval --help
expect_stdout "Example: kvturbo eval"

needs_host
[ -x "$TEST_HOST_BIN/llama-perplexity" ] || skip "no llama-perplexity in the host"
[ -e "$TEST_PLUGIN" ] || skip "no plug-in"
model="$(basename "$TEST_MODEL" .gguf)"

# A host that counts the runs of llama-perplexity, and can be told to fail.
mkdir "$work/host"
ln -s "$TEST_HOST_BIN/llama-server" "$work/host/"
cat >"$work/host/llama-perplexity" <<END
#!/bin/sh
echo "\$@" >>"$work/calls"
if [ -e "$work/broken" ]; then echo "it broke"; exit 3; fi
exec "$TEST_HOST_BIN/llama-perplexity" "\$@"
END
chmod +x "$work/host/llama-perplexity"
calls() { if [ -e "$work/calls" ]; then wc -l <"$work/calls"; else echo 0; fi; }

eval_command=("$TEST_KVTURBO" eval -m "$TEST_MODEL" --host "$work/host" --plugin "$TEST_PLUGIN" --text "$work/prose.txt" -c 128)
run() { "${eval_command[@]}" --chunks "${n_chunks:-2}" "$@"; }
# rows EXPRESSION: evaluates Python with `rows`, the JSON on stdout, and `kv`, its rows by the name of the cache.
rows() {
  python3 -c "import json, sys; rows = json.load(open('$stdout')); kv = {r['kv']: r for r in rows}; print($1)"
}
expect_rows() {
  local value
  value="$(rows "$1")"
  [ "$value" = True ] || complain "not so: $1"
}

# Four caches: five runs, since the base logits are one.
expect_exit 0 run --kv f16,q4_0,ours:f16,k4v3 --json --plot "$work/plots"
expect_same "$(calls)" 5
expect_rows "[r['kv'] for r in rows] == ['f16', 'q4_0', 'ours:f16', 'k4v3']"
expect_rows "all(set(r) >= set('model text n_ctx kv kld_mean kld_99 kld_999 same_top ppl_ratio bytes_per_token'.split()) for r in rows)"
expect_rows "all(r['model'] == '$model' and r['text'] == 'prose.txt' and r['n_ctx'] == 128 for r in rows)"
expect_rows "abs(kv['f16']['kld_mean']) < 1e-3 and kv['f16']['same_top'] > 99.5"
# The floor: other orders of summation, with 4-bit weights.
expect_rows "kv['ours:f16']['kld_mean'] < 0.02"
expect_rows "kv['q4_0']['kld_mean'] > kv['ours:f16']['kld_mean']"
expect_rows "all(0 <= r['kld_mean'] < r['kld_99'] <= r['kld_999'] <= r['kld_max'] for r in rows if r['kv'] != 'f16')"
expect_rows "all(abs(r['ppl'] / r['ppl_base'] - r['ppl_ratio']) < 1e-4 for r in rows)"
expect_rows "len({r['ppl_base'] for r in rows}) == 1"
# 30 layers x 3 heads x 64 x 2 sides; k4v3: 5400 and its share of exact rows and conditioning.
expect_rows "(kv['f16']['bytes_per_token'], kv['q4_0']['bytes_per_token'], kv['ours:f16']['bits']) == (23040, 6480, 16)"
expect_rows "5560 < kv['k4v3']['bytes_per_token'] < 5600"
grep -q "</svg>" "$work/plots/kld_bits_${model}_prose.txt.svg" || complain "no chart"
first="$(cat "$stdout")"

# The same figure from llama-perplexity without us, with the base logits that were kept.
"$TEST_HOST_BIN/llama-perplexity" -m "$TEST_MODEL" -c 128 -b 128 -fa on -ctk q4_0 -ctv q4_0 --kl-divergence --kl-divergence-base "$work"/cache/eval/logits/*.kld \
  >"$work/direct.log" 2>&1
direct="$(awk '/^Mean +KLD:/ { print $3 }' "$work/direct.log")"
# 5 %: sums depend on how many threads share them.
expect_rows "abs(kv['q4_0']['kld_mean'] / $direct - 1) < 0.05"

# Nothing is measured twice, even without a host that works; another cache is.
touch "$work/broken"
expect_exit 0 run --kv f16,q4_0,ours:f16,k4v3 --json
expect_same "$(cat "$stdout")" "$first"
expect_same "$(calls)" 5
expect_exit 1 run --kv f16,k4v3:sinks=0:recent=0
expect_one_error_line "host failed on $(basename "$TEST_MODEL"): exit code 3, its last line: it broke"
rm "$work/broken"
expect_exit 0 run --kv f16,k4v3:sinks=0:recent=0 --markdown
expect_same "$(calls)" 7
expect_stdout '^\| `k4v3:sinks=0:recent=0` \| 3\.[0-9]+ \| 5,4[0-9]+ \| 0\.[0-9]+ ± 0\.[0-9]+ \| - \|'
expect_stderr "base logits are kept in $work/cache/eval/logits; kvturbo eval --clean removes them"

# Interrupted: what was finished is kept, what was not leaves nothing, and the next run goes on.
rm -r "$work/cache/eval"
"${eval_command[@]}" --chunks 2 --kv f16,q4_0,k4v3 >"$stdout" 2>"$stderr" &
pid=$!
for _ in $(seq 600); do
  if compgen -G "$work/cache/eval/results/*.json" >"$work/found"; then break; fi
  sleep 0.1
done
kill -TERM "$pid"
code=0
wait "$pid" || code=$?
last_command="SIGTERM after the first result"
expect_same "$code" 143
expect_same "$(find "$work/cache/eval" -name '*.tmp' | wc -l)" 0
before="$(calls)"
expect_exit 0 run --kv f16,q4_0,k4v3 --json
[ $(($(calls) - before)) -le 2 ] || complain "measured again after an interruption: $(calls), $before"
expect_same "$(rows "kv['k4v3']['kld_mean'] > 0")" True

# Token by token.
expect_exit 0 run --kv k4v3 --decode --json
expect_rows "kv['k4v3']['path'] == 'decode' and 0 < kv['k4v3']['kld_mean'] < 0.4"

# A pass key at the end of a short text is found with exact keys. Greedy text: as many tokens as asked are compared.
expect_exit 0 run --needle --depths 50,100 --kv f16,ours:f16 --json
expect_rows "[r['measure'] for r in rows] == ['needle', 'needle'] and all(r['depths'] == [50, 100] and len(r['found']) == 2 for r in rows)"
expect_rows "kv['f16']['found'][1] and kv['ours:f16']['found'] == kv['f16']['found']"
expect_exit 0 run --greedy -n 8 --kv f16,k4v3 --json
expect_rows "kv['f16']['n_same'] == [8] * 6 and all(0 <= n <= 8 for n in kv['k4v3']['n_same'])"

# What is wrong with texts, contexts and hosts.
mkdir "$work/no_network"
printf '#!/bin/sh\nexit 1\n' | tee "$work/no_network/apt-get" >"$work/no_network/dpkg"
chmod +x "$work/no_network"/*
expect_exit 1 env PATH="$work/no_network:$PATH" "${eval_command[@]}" --text english
expect_one_error_line "text 'english': not in the cache, and get_texts.sh failed; cannot fetch the package perl-doc: check the network"
expect_exit 1 run --text "$work/absent.txt"
expect_one_error_line "text $work/absent.txt: no such file; give english, code, or a text file"
head -c 700 "$work/prose.txt" >"$work/short.txt"
expect_exit 1 run --text "$work/short.txt" --kv q4_0
expect_one_error_line "text short.txt: it has only [0-9]+ tokens, -c 128 needs 256; give a longer text, or a smaller -c"
n_chunks=9999 expect_exit 1 run --kv q4_0
expect_one_error_line "text prose.txt: it fills only [0-9]+ chunks of 128 tokens; give a longer text, or --chunks [0-9]+"
expect_exit 2 run -c 16384 --kv q4_0
expect_one_error_line "-c 16384: $model was trained on contexts of 8192 tokens; give a smaller -c"
expect_exit 1 run --kv k4v3:color=red
expect_one_error_line "plug-in: .*KVTURBO_COLOR is unknown"
rm "$work/host/llama-perplexity"
expect_exit 1 run --kv q4_0
expect_one_error_line "host $work/host: there is no llama-perplexity in it; build it with scripts/get_host.sh --tools"

# Cleaning.
expect_exit 0 kvturbo eval --clean
expect_stderr "removed [0-9]+ MB of base logits"
expect_same "$(find "$work/cache/eval" -name '*.kld' | wc -l)" 0

finish
