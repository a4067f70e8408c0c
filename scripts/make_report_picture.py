#!/usr/bin/env python3
"""Makes docs/plots/report.png: the page of `kvturbo bench report` for the figures in docs/performance.md and docs/quality.md, as a
browser shows it. The tables of both pages become the JSON that bench model and eval would print; sizes come from `kvturbo estimate`.

    scripts/make_report_picture.py                    build/bin/kvturbo, chromium
    scripts/make_report_picture.py --page FILE        only the page, without a browser

Needs chromium.
"""
import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODEL = "smollm2-135m"  # of the speed tables


def cells(line):
    return [cell.strip().strip("`") for cell in line.strip().strip("|").split("|")]


def number(text):
    match = re.match(r"[0-9][0-9,]*\.?[0-9]*", text)
    return float(match.group().replace(",", "")) if match else None


def speed_rows(program):
    """The first measurement of each test, depth and cache under "A whole model": the best kernels."""
    estimate = json.loads(subprocess.run([program, "estimate", "-m", MODEL, "--json"], check=True, capture_output=True).stdout)
    sizes = {row["cache"]: row for row in estimate["caches"]}
    section = (ROOT / "docs/performance.md").read_text().split("### A whole model\n")[1].split("\n### ")[0]
    rows = {}
    for line in section.splitlines():
        if not re.match(r"\| (tg|pp)\d+ \|", line):
            continue
        test, depth, cache, speed, ratio = cells(line)[:5]
        rows.setdefault(
            (test, depth, cache),
            {
                "model": MODEL, "cache": cache, "test": test, "depth": int(depth), "threads": 2,
                "tokens_per_second": number(speed), "ratio_stock_f16": number(ratio),
                "kv_bytes_per_token": sizes[cache]["kv_bytes_per_token"], "kv_bytes_fixed": sizes[cache]["kv_bytes_fixed"],
            },
        )  # fmt: skip
    return list(rows.values())


def loss_rows():
    rows = []
    heading = None
    for line in (ROOT / "docs/quality.md").read_text().splitlines():
        match = re.match(r"### ([^,]+), ([^,]+), (\d+) x (\d+) tokens$", line)
        if match:
            heading = match.groups()
        elif line.startswith("| `") and heading:
            row = cells(line)
            kld, error = row[3].split(" ± ")
            rows.append(
                {
                    "measure": "divergence", "model": heading[0], "text": heading[1], "n_ctx": int(heading[3]), "kv": row[0],
                    "bytes_per_token": number(row[2]), "bits": number(row[1]), "kld_mean": float(kld), "kld_mean_error": float(error),
                    "same_top": number(row[7]), "n_chunks": int(heading[2]),
                }
            )  # fmt: skip
    return [row for row in rows if ":" not in row["kv"]]  # without variants and yardsticks: one point for each cache


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kvturbo", default=str(ROOT / "build/bin/kvturbo"))
    parser.add_argument("--page", help="write only the page, here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        speed, loss, page = (Path(folder) / name for name in ("speed.json", "loss.json", "report.html"))
        speed.write_text(json.dumps(speed_rows(options.kvturbo)))
        loss.write_text(json.dumps(loss_rows()))
        target = Path(options.page) if options.page else page
        subprocess.run([options.kvturbo, "bench", "report", speed, loss, "-o", target, "--title",
                        "kvturbo: the figures of docs/performance.md and docs/quality.md"], check=True)  # fmt: skip
        if options.page:
            return
        browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        if not browser:
            sys.exit("no browser: install chromium, or use --page FILE")
        picture = ROOT / "docs/plots/report.png"
        subprocess.run([browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1960,1350", "--force-device-scale-factor=0.75",
                        f"--user-data-dir={folder}/browser", f"--screenshot={picture}", f"file://{page}"], check=True, stderr=subprocess.DEVNULL)  # fmt: skip
        print(f"{picture}: {picture.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
