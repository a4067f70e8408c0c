"""Sequences and states through the host's libllama, with all codecs, what context shifts and other batches cost (tests/plugin_sequences_test.cc, which ctest runs
with two codecs)."""
import os
import subprocess
import sys
import tempfile

from llama_host import HOST_BIN, MODEL, PLUGIN, SOURCE, Checks, environment, program

CODECS = ("f16", "hybrid", "scalar43", "k4v3", "k3v3", "k3v2", "k2v2", "k8v4", "k8v3")


def run(folder, model, codec, *arguments):
    env = environment(codec, TEST_GGML_DIR=HOST_BIN, TEST_PLUGIN=PLUGIN, TEST_MODEL=model, TEST_SOURCE=SOURCE, KVTURBO_LOG="quiet")
    del env["GGML_BACKEND_PATH"]  # the test loads it
    done = subprocess.run([program("plugin_sequences_test", folder), *arguments], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    return done.returncode, done.stdout.decode(errors="replace")


def main():
    checks = Checks()
    folder = os.path.dirname(PLUGIN)
    with tempfile.TemporaryDirectory() as work:
        model = os.path.join(work, "f16.gguf")
        subprocess.run([program("plugin_dequantize", folder), HOST_BIN, MODEL, model], check=True, stdout=subprocess.DEVNULL)
        for codec in CODECS:
            status, text = run(folder, model, codec)
            print("\n".join(line for line in text.splitlines() if "largest difference" in line), flush=True)
            checks.check(status == 0, f"sequences and states with {codec}" + ("" if status == 0 else "\n" + text[-3000:]))
        for codec in CODECS:
            status, text = run(folder, model, codec, "--gtest_also_run_disabled_tests", "--gtest_filter=ShiftLoss.*")
            print(codec, "; ".join(line for line in text.splitlines() if "shifts:" in line), flush=True)
            checks.check(status == 0, f"context shifts with {codec}")
            status, text = run(folder, model, codec, "--gtest_also_run_disabled_tests", "--gtest_filter=BatchLoss.*")
            print(codec, "; ".join(line for line in text.splitlines() if "largest difference" in line), flush=True)
            checks.check(status == 0, f"batches of any length with {codec}")
    checks.exit()


if __name__ == "__main__":
    sys.exit(main())
