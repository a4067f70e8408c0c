"""The plug-in under AddressSanitizer, LeakSanitizer and UndefinedBehaviorSanitizer in a bare ggml. Builds in build/asan_plugin."""
import os
import subprocess
import tempfile

from llama_host import HOST_BIN, PLUGIN, SOURCE, Checks, setting, skip_if_quick


def build_commands(checks, folder, configure, targets):
    for command in (configure, ["ninja", "-C", folder, *targets]):
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        if done.returncode != 0:
            checks.check(False, f"{folder}: {done.stdout.decode(errors='replace')[-800:]}")
            checks.exit()


def build(checks, folder, flags, ggml, targets):
    build_commands(checks, folder, ["cmake", "-G", "Ninja", "-S", SOURCE, "-B", folder, "-DCMAKE_BUILD_TYPE=RelWithDebInfo",
                                    f"-DCMAKE_CXX_FLAGS={flags}", "-DKVTURBO_CLI=OFF", "-DKVTURBO_CUDA=OFF", "-DKVTURBO_EXAMPLES=OFF",
                                    f"-DKVTURBO_GGML_SOURCE={ggml}", f"-DKVTURBO_HOST_BIN={HOST_BIN}"], targets)


def run(checks, folder, name, **variables):
    env = {k: v for k, v in os.environ.items() if not k.startswith("KVTURBO_")}
    env.update(variables)
    done = subprocess.run([os.path.join(folder, "bin", name)], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    text = done.stdout.decode(errors="replace")
    what = " ".join(f"{k}={v}" for k, v in variables.items() if k.startswith("KVTURBO_"))
    checks.check(done.returncode == 0, f"{name} {what}" + ("" if done.returncode == 0 else f": exit code {done.returncode}\n{text[-3000:]}"))


def main():
    checks = Checks()
    ggml = setting("TEST_GGML_SOURCE")
    asan = os.path.join(SOURCE, "build", "asan_plugin")
    tests = ["plugin_graph_test", "plugin_life_test", "recent_rows_test"]
    build(checks, asan, "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer", ggml, ["ggml-kvturbo", *tests])
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as known:
        # What the host and its OpenMP keep until the process ends.
        known.write("leak:libggml\nleak:libgomp\nleak:dlopen\n")
        known.flush()
        for codec in ("f16", "k4v3", "hybrid"):
            for test in tests[:2]:
                run(checks, asan, test, TEST_GGML_DIR=HOST_BIN, TEST_PLUGIN=os.path.join(asan, "bin", os.path.basename(PLUGIN)), KVTURBO_CODEC=codec,
                    KVTURBO_LOG="quiet", KVTURBO_CONDITION="off" if test == tests[0] else "on", KVTURBO_SINKS="0" if test == tests[0] else "4",
                    # An unloaded C++ runtime leaves its reserve for exceptions behind, 71 kB (libstdc++ frees it for memory checkers only).
                    GTEST_FILTER="-*Unload*", LSAN_OPTIONS=f"suppressions={known.name}:print_suppressions=0", OMP_WAIT_POLICY="passive")
        run(checks, asan, tests[2])
    checks.exit()


if __name__ == "__main__":
    skip_if_quick("builds take minutes")
    main()
