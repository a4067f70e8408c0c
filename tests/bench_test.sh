#!/usr/bin/env bash
# kvturbo bench: shapes and keys of the output, and what it refuses. No assertion about speed: the machine may be busy.
source "$(dirname "$0")/cli_support.sh"

export KVTURBO_CACHE="$work/cache" # no host but the one that a test names
export PATH=/usr/bin:/bin

# check SCRIPT ARGUMENT...: the script accepts the JSON on $stdout.
check() { python3 "$@" <"$stdout" 2>>"$stderr" || complain "the JSON is not as documented"; }

cat >"$work/check_kernel.py" <<'PYTHON'
import json, sys

n_expected, has_ggml = int(sys.argv[1]), sys.argv[2] == "ggml"
keys = ["codec", "isa", "head_dim", "group", "n_tokens", "threads", "ns_per_token_head", "gb_per_s", "ratio_f16", "ratio_ggml_f16",
        "ratio_ggml_q4_0"]
rows = json.load(sys.stdin)
assert isinstance(rows, list) and len(rows) == n_expected, f"{len(rows)} objects, expected {n_expected}"
for row in rows:
    assert list(row) == keys, list(row)
    assert row["ns_per_token_head"] > 0 and row["gb_per_s"] > 0 and row["ratio_f16"] > 0, row
    assert row["codec"] != "f16" or row["ratio_f16"] == 1, row
    for key in ("ratio_ggml_f16", "ratio_ggml_q4_0"):
        assert (row[key] is not None and row[key] > 0) if has_ggml else row[key] is None, row
PYTHON
cat >"$work/check_model.py" <<'PYTHON'
import json, sys

rows = json.load(sys.stdin)
assert [row["cache"] for row in rows] == sys.argv[1].split(","), rows
for row in rows:
    assert list(row) == ["model", "cache", "test", "depth", "threads", "tokens_per_second", "ratio_stock_f16", "kv_bytes_per_token",
                         "kv_bytes_fixed", "kv_bytes_per_token_f16", "active_weight_bytes"], list(row)
    assert row["tokens_per_second"] > 0 and row["ratio_stock_f16"] > 0, row
    assert 0 < row["kv_bytes_per_token"] <= row["kv_bytes_per_token_f16"] < row["active_weight_bytes"], row
PYTHON

# The kernels alone. One f16 row for each shape comes on top of the codecs asked for.
tiny=(bench kernel --quick --isa scalar --rounds 1)
expect_exit 0 kvturbo "${tiny[@]}" --tokens 512 --group 1,2 --threads 1,2 --codec hybrid --no-ggml --json
check "$work/check_kernel.py" 8 none
expect_stderr "^kvturbo: .*not measured: --no-ggml$"
# A last page that is not full, drafts, another head dim.
expect_exit 0 kvturbo "${tiny[@]}" --tokens 65 --head-dim 64 --queries 3 --kv-heads 1 --group 3 --threads 1 --codec scalar43 --json
check "$work/check_kernel.py" 2 none
expect_stderr "was not held against stream"
expect_stderr "ggml's flash attention was not measured: "
# The best kernels of this machine, as a table.
expect_exit 0 kvturbo bench kernel --quick --rounds 2 --tokens 512 --group 1 --threads 1 --codec hybrid --no-ggml
expect_stdout "^stream read, 1 thread: [0-9.]+ GB/s$"
expect_stdout "^\| 512 \| 1 \| 1 \| hybrid \| (avx512|avxvnni|avx2|neon|scalar) \| [0-9.]+ \|"
expect_stdout "^\| hybrid \| K \| (avx512|avxvnni|avx2|neon|scalar) \| [0-9]+ \|$"

# What makes no sense is refused in one line, before anything is measured.
expect_exit 2 kvturbo bench
expect_one_error_line ".*see kvturbo bench --help"
expect_exit 2 kvturbo bench kernel --codec zip
expect_one_error_line "codec 'zip': unknown; known codecs: "
expect_exit 2 kvturbo bench kernel --head-dim 72
expect_one_error_line "--head-dim 72: unknown"
expect_exit 2 kvturbo bench kernel --threads 1,many
expect_one_error_line "--threads many: not a number of threads"
expect_exit 1 kvturbo bench kernel --isa mmx
expect_one_error_line "kernels 'mmx': this machine or build lacks them"
expect_exit 1 kvturbo bench kernel --host "$work"
expect_one_error_line "host $work: there is no program llama-server in it"
expect_exit 2 kvturbo bench kernel --json --markdown
expect_one_error_line ".*--markdown excludes --json|.*--json excludes --markdown"
expect_exit 2 kvturbo bench model -m smollm2-135m --codec zip
expect_one_error_line "codec 'zip': unknown; known codecs: "

# With a host: its flash attention, and its llama-bench.
if [ -x "${TEST_HOST_BIN:-}/llama-server" ]; then
  expect_exit 0 kvturbo "${tiny[@]}" --tokens 512 --group 2 --threads 2 --codec hybrid --host "$TEST_HOST_BIN" --json
  ggml=ggml
  if grep -q "built without ggml's headers" "$stderr"; then ggml=none; fi
  check "$work/check_kernel.py" 2 $ggml
fi
if [ -x "${TEST_HOST_BIN:-}/llama-bench" ] && [ -e "${TEST_MODEL:-}" ] && [ -e "$TEST_PLUGIN" ]; then
  expect_exit 0 kvturbo bench model -m "$TEST_MODEL" --host "$TEST_HOST_BIN" --plugin "$TEST_PLUGIN" --stock f16 --codec hybrid -p 16 -n 0 -d 64 --rounds 1 --json
  check "$work/check_model.py" "stock f16,hybrid"
fi

finish
