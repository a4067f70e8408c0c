"""llama-server's own tests (tools/server/tests of the pinned source) with SmolLM2-135M in place of the model that they would download: what
passes with stock passes with the plug-in. Tests that need other models, or look for the words of theirs, fail in both alike.

Some tests check what a draw decides, and another order of sums draws other tokens. A test that is lost is run again with the draw taken out
(VARIANTS): if it passes there, in stock and in ours, it is named with its reason; if not, it fails. `--seeds N` counts how often stock and
ours pass those tests with other seeds.

TEST_HOST_SOURCE: the sources of llama.cpp. Needs pytest, requests, openai, aiohttp, filelock, wget, numpy and prometheus-client in
TEST_PYTHON (or this python): python3 -m venv DIR; DIR/bin/pip install pytest requests openai aiohttp filelock wget numpy prometheus-client
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree

from llama_host import MODEL, SKIPPED, Checks, environment, free_port, program, setting

# Where a cache takes part; the others are about templates, tools, routers, images and security.
FILES = ["test_basic", "test_completion", "test_ctx_shift", "test_slot_save", "test_kv_keep_only_active", "test_chat_completion", "test_stream",
         "test_infill", "test_speculative", "test_ignore_eos"]

# What is put into each request of completion, and which reason that takes away.
VARIANTS = {
    "the sampled text comes to its end before n_predict tokens": {"ignore_eos": True},
    # docs/reliability.md: after a rollback of more than 6 tokens codes stand where exact rows were.
    "a prompt taken from the slot's last request, against one that is computed": {"cache_prompt": False},
}

# A pytest plug-in: our model instead of a download; a preset with another kind of model says so.
LOCAL_MODEL = '''
import json
import os
import utils

utils.ServerPreset.load_all = staticmethod(lambda: None)
start = utils.ServerProcess.start
own_repos = ("stories260K", "ggml-org/models")


def start_locally(self, *arguments, **named):
    if self.model_hf_repo and any(r in self.model_hf_repo for r in own_repos) and "bert" not in str(self.model_hf_file):
        self.model_hf_repo = self.model_hf_file = None
        self.model_file = os.environ["LOCAL_MODEL"]
    elif self.model_hf_repo:
        raise RuntimeError("offline: " + self.model_hf_repo)
    self.seed = int(os.environ.get("LOCAL_SEED", self.seed))
    if self.model_draft and not os.path.exists(self.model_draft):
        self.model_draft = os.environ["LOCAL_MODEL"]
    return start(self, *arguments, **named)


utils.ServerProcess.start = start_locally
request = utils.ServerProcess.make_request


def request_with(self, method, path, data=None, *arguments, **named):
    if path == "/completion" and data is not None:
        data = {**data, **json.loads(os.environ.get("LOCAL_BODY", "{}"))}
    return request(self, method, path, data, *arguments, **named)


utils.ServerProcess.make_request = request_with
utils.download_file = lambda url, path=None: os.environ["LOCAL_MODEL"]
'''


def passes(folder, python, codec, tests=None, **variables):
    """Names of the tests that pass, and of all; tests: only these."""
    env = environment(codec, LLAMA_SERVER_BIN_PATH=program("llama-server"), LOCAL_MODEL=MODEL, PORT=str(free_port()), PYTHONPATH=folder,
                      PYTHONDONTWRITEBYTECODE="1", **variables)
    report = os.path.join(folder, "report.xml")
    files = [os.path.join("unit", f + ".py") for f in FILES if os.path.exists(os.path.join(folder, "unit", f + ".py"))]
    subprocess.run([python, "-m", "pytest", "-q", "-p", "local_model", "-p", "no:cacheprovider", f"--junitxml={report}", *(tests or files)], cwd=folder,
                   env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    passed, every = set(), set()
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"unit/{case.get('classname').split('.')[-1]}.py::{case.get('name')}"
        every.add(name)
        if all(case.find(kind) is None for kind in ("failure", "error", "skipped")):
            passed.add(name)
    return passed, every


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--codecs", default="f16,k4v3")
    parser.add_argument("--seeds", type=int, default=4)
    options = parser.parse_args()
    codecs = options.codecs.split(",")
    checks = Checks()
    python = os.environ.get("TEST_PYTHON", sys.executable)
    if subprocess.run([python, "-c", "import pytest, requests, openai, aiohttp, filelock, wget, numpy, prometheus_client"], stderr=subprocess.DEVNULL, check=False).returncode:
        print("skipped: llama-server's tests need Python packages (see the head of this file)")
        sys.exit(SKIPPED)
    with tempfile.TemporaryDirectory() as work:
        folder = os.path.join(work, "tests")
        shutil.copytree(os.path.join(setting("TEST_HOST_SOURCE"), "tools", "server", "tests"), folder)
        with open(os.path.join(folder, "local_model.py"), "w") as f:
            f.write(LOCAL_MODEL)
        stock, every = passes(folder, python, None)
        draws = set()
        for codec in codecs:
            ours, _ = passes(folder, python, codec)
            lost = sorted(stock - ours)
            checks.check(len(stock) > 20, f"{codec}: {len(ours)} of {len(every)} tests pass, with stock {len(stock)}; lost: {lost or 'none'}; "
                         f"gained: {sorted(ours - stock) or 'none'}")
            unexplained = set(lost)
            for reason, body in VARIANTS.items():
                if not unexplained:
                    break
                tests = sorted(unexplained)
                both = [passes(folder, python, c, tests, LOCAL_BODY=json.dumps(body))[0] for c in (None, codec)]
                explained = both[0] & both[1] & unexplained
                unexplained -= explained
                draws |= explained
                if explained:
                    checks.check(True, f"{codec}: pass with {json.dumps(body)} ({reason}): {sorted(explained)}")
            checks.check(not unexplained, f"{codec}: every lost test has its reason {sorted(unexplained) or ''}")
        for codec in [None, *codecs] if draws else []:
            n = {t: 0 for t in draws}
            for seed in range(1, options.seeds + 1):
                for test in passes(folder, python, codec, sorted(draws), LOCAL_SEED=str(seed))[0]:
                    n[test] += 1
            print(f"        {codec or 'stock'}, passes with {options.seeds} other seeds: "
                  + ", ".join(f"{t.split('::')[1]} {c}" for t, c in sorted(n.items())), flush=True)
    checks.exit()


if __name__ == "__main__":
    main()
