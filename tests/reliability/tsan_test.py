"""The plug-in and the library under ThreadSanitizer: in a bare ggml without OpenMP, whose barriers and threads the sanitizer sees (a libgomp gives
false findings), and, for sequences and states, under the host's own libllama on that ggml. Builds in build/tsan and build/tsan_ggml."""
import os
import subprocess
import tempfile

from llama_host import HOST_BIN, MODEL, PLUGIN, SOURCE, Checks, program, setting, skip_if_quick
from sanitizers_test import build, build_commands, run


def main():
    checks = Checks()
    host_source = setting("TEST_HOST_SOURCE")
    ggml, ours = (os.path.join(SOURCE, "build", n) for n in ("tsan_ggml", "tsan"))
    off = [f"-DLLAMA_BUILD_{n}=OFF" for n in ("TESTS", "EXAMPLES", "TOOLS", "SERVER", "COMMON", "UI")]
    build_commands(checks, ggml, ["cmake", "-G", "Ninja", "-S", host_source, "-B", ggml, "-DCMAKE_BUILD_TYPE=RelWithDebInfo",
                                  "-DCMAKE_C_FLAGS=-fsanitize=thread", "-DCMAKE_CXX_FLAGS=-fsanitize=thread", "-DGGML_BACKEND_DL=ON",
                                  "-DBUILD_SHARED_LIBS=ON", "-DGGML_OPENMP=OFF", "-DGGML_NATIVE=OFF", *off, "-DLLAMA_USE_PREBUILT_UI=OFF",
                                  "-DLLAMA_OPENSSL=OFF", "-DLLAMA_CURL=OFF", "-DLLAMA_BUILD_NUMBER=11434"], ["ggml", "ggml-cpu"])
    build(checks, ours, "-fsanitize=thread", os.path.join(host_source, "ggml"),
          ["ggml-kvturbo", "plugin_life_test", "plugin_sequences_test", "attention_test"])
    for isa in ("scalar", "avx2", "avx512"):
        run(checks, ours, "attention_test", KVTURBO_ISA=isa, GTEST_FILTER="*Thread*")
    ggml_bin = os.path.join(ggml, "bin")
    host = {"TEST_GGML_DIR": ggml_bin, "TEST_PLUGIN": os.path.join(ours, "bin", os.path.basename(PLUGIN))}
    with tempfile.TemporaryDirectory() as work:
        # Left out: a child of a process with threads, and unloading, as the sanitizer calls the module's exit handlers after it is gone.
        for codec in ("f16", "k4v3", "hybrid"):
            run(checks, ours, "plugin_life_test", **host, KVTURBO_CODEC=codec, KVTURBO_METRICS=os.path.join(work, "metrics"),
                KVTURBO_REPORT=os.path.join(work, "report"), GTEST_FILTER="-*Fork*:*Unload*")
        model = os.path.join(work, "f16.gguf")
        subprocess.run([program("plugin_dequantize", os.path.dirname(PLUGIN)), HOST_BIN, MODEL, model], check=True, stdout=subprocess.DEVNULL)
        run(checks, ours, "plugin_sequences_test", **host, LD_LIBRARY_PATH=ggml_bin, TEST_MODEL=model, TEST_SOURCE=SOURCE, KVTURBO_CODEC="k4v3",
            KVTURBO_LOG="quiet", GTEST_FILTER="*Unified")
    checks.exit()


if __name__ == "__main__":
    skip_if_quick("builds take minutes")
    main()
