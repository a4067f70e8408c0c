"""llama-server's own tests (tools/server/tests of the pinned source) with SmolLM2-135M in place of the model that they would download: what
passes with stock passes with the plug-in. Tests that need other models, or look for the words of theirs, fail in both alike.

TEST_HOST_SOURCE: the sources of llama.cpp. Needs pytest, requests, openai, aiohttp, filelock, wget, numpy and prometheus-client in
TEST_PYTHON (or this python): python3 -m venv DIR; DIR/bin/pip install pytest requests openai aiohttp filelock wget numpy prometheus-client
"""
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

# A pytest plug-in: our model instead of a download; a preset with another kind of model says so.
LOCAL_MODEL = '''
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
    if self.model_draft and not os.path.exists(self.model_draft):
        self.model_draft = os.environ["LOCAL_MODEL"]
    return start(self, *arguments, **named)


utils.ServerProcess.start = start_locally
utils.download_file = lambda url, path=None: os.environ["LOCAL_MODEL"]
'''


def passes(folder, python, codec):
    """Names of the tests that pass, and of all."""
    env = environment(codec, LLAMA_SERVER_BIN_PATH=program("llama-server"), LOCAL_MODEL=MODEL, PORT=str(free_port()), PYTHONPATH=folder,
                      PYTHONDONTWRITEBYTECODE="1")
    report = os.path.join(folder, f"report-{codec}.xml")
    files = [os.path.join("unit", f + ".py") for f in FILES if os.path.exists(os.path.join(folder, "unit", f + ".py"))]
    subprocess.run([python, "-m", "pytest", "-q", "-p", "local_model", "-p", "no:cacheprovider", f"--junitxml={report}", *files], cwd=folder, env=env,
                   stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    passed, every = set(), set()
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname').split('.')[-1]}::{case.get('name')}"
        every.add(name)
        if not any(case.iter(kind) is not None and case.find(kind) is not None for kind in ("failure", "error", "skipped")):
            passed.add(name)
    return passed, every


def main():
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
        for codec in ("f16", "k4v3"):
            ours, _ = passes(folder, python, codec)
            lost = sorted(stock - ours)
            checks.check(not lost and len(stock) > 20, f"{codec}: {len(ours)} of {len(every)} tests pass, with stock {len(stock)}; lost: {lost or 'none'}; "
                         f"gained: {sorted(ours - stock) or 'none'}")
    checks.exit()


if __name__ == "__main__":
    main()
