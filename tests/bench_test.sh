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

# The page. From what the commands above print, and from eval's: one line of JSON is enough.
model_row='{"model": "m<1>", "cache": "%s", "test": "%s", "depth": %d, "threads": 2, "tokens_per_second": %s, "ratio_stock_f16": %s,
  "kv_bytes_per_token": %d, "kv_bytes_fixed": 10, "kv_bytes_per_token_f16": 200, "active_weight_bytes": 1000}'
# shellcheck disable=SC2059 # the format is ours
printf "[$model_row, $model_row, $model_row]" "stock f16" tg8 0 50 1 200 "stock f16" tg8 512 25 1 200 k4v3 tg8 512 null 2 50 >"$work/model.json"
echo '[{"measure": "divergence", "model": "m", "text": "code", "n_ctx": 512, "kv": "k4v3", "bytes_per_token": 50, "bits": 3.9, "kld_mean": 0.01,
  "kld_mean_error": 0.001}, {"measure": "greedy", "model": "m"}]' >"$work/eval.json"
expect_exit 0 kvturbo bench kernel --quick --isa scalar --rounds 1 --tokens 64 --group 1 --threads 1 --codec k4v3 --no-ggml --json
cp "$stdout" "$work/kernel.json"
expect_exit 0 kvturbo bench report "$work/model.json" "$work/eval.json" "$work/kernel.json" -o "$work/report.html" --charts "$work/charts" --json
cat >"$work/check_report.py" <<'PYTHON'
import json, pathlib, re, sys
import xml.etree.ElementTree as xml

paths = [pathlib.Path(path) for path in json.load(sys.stdin)]
charts = ["speed_depth_m_1___tg8", "ratio_depth_m_1___tg8", "memory_depth_m_1_", "kld_bits_m__code"]
assert [p.stem for p in paths if p.suffix != ".png"] == ["report", *charts], paths
page = paths[0].read_text()
assert page.count("<svg") == len(charts) and page.count("<section>") == len(charts) + 1, page
assert "m&lt;1&gt;" in page.replace(">", "&gt;") and "m<1>" not in page
assert not re.search(r"(src|href)=|@import|url\(", page)  # self-contained
for path in paths:
    if path.suffix == ".svg":
        xml.parse(path)
speed = next(p for p in paths if p.stem.startswith("speed")).read_text()
assert speed.count("<polyline") == 1 and "k4v3" not in speed, speed  # its tokens/s are not known
assert next(p for p in paths if p.stem.startswith("ratio")).read_text().count("<polyline") == 2
PYTHON
check "$work/check_report.py"
expect_exit 0 kvturbo bench report "$work/eval.json" -o -
expect_stdout "^<!DOCTYPE html>"
expect_exit 1 kvturbo bench report "$work/none.json"
expect_one_error_line "$work/none.json: no such file; give what bench model"
echo '[{"measure": "greedy"}]' >"$work/greedy.json"
expect_exit 1 kvturbo bench report "$work/greedy.json" -o "$work/none.html"
expect_one_error_line "$work/greedy.json: no speed, no divergence and no kernels in it"
[ ! -e "$work/none.html" ] || complain "an empty page is written"
echo '[{"test": 1}]' >"$work/other.json"
expect_exit 1 kvturbo bench report "$work/other.json"
expect_one_error_line "$work/other.json: not a list of measurements; give what bench model"
expect_exit 1 kvturbo bench report "$work/eval.json" -o /nowhere/report.html
expect_one_error_line "/nowhere/report.html: cannot be written"
expect_exit 2 kvturbo bench report
expect_one_error_line "command line: FILE is required; see kvturbo bench --help"

finish
