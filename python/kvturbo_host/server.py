"""kvturbo-llama-server: takes llama-server's commonest flags and runs the llama.cpp server inside xllamacpp.

xllamacpp is llama.cpp in one extension module with its ggml functions exported. It is opened with its symbols visible to all, so that
the plug-in finds ggml there, and the plug-in is loaded before the server starts. `kvturbo` starts this program where no llama-server
is at hand; of the environment it reads GGML_BACKEND_PATH and LLAMA_ARG_DEVICE.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import importlib.metadata
import importlib.util
import os
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

_NAME = "kvturbo-llama-server"

# llama-server's flags -> the field of xllamacpp's CommonParams, and its type.
_FLAGS: list[tuple[tuple[str, ...], str, Any]] = [
    (("-c", "--ctx-size"), "n_ctx", int),
    (("-np", "--parallel"), "n_parallel", int),
    (("-t", "--threads"), "cpuparams.n_threads", int),
    (("-tb", "--threads-batch"), "cpuparams_batch.n_threads", int),
    (("-n", "--predict", "--n-predict"), "n_predict", int),
    (("-b", "--batch-size"), "n_batch", int),
    (("-ub", "--ubatch-size"), "n_ubatch", int),
    (("-cram", "--cache-ram"), "cache_ram_mib", int),
    (("-s", "--seed"), "sampling.seed", int),
    (("--temp", "--temperature"), "sampling.temp", float),
    (("--slot-save-path",), "slot_save_path", str),
    (("--chat-template",), "chat_template", str),
    (("-lv", "--verbosity"), "verbosity", int),
]
_SWITCHES: list[tuple[tuple[str, ...], str, bool]] = [
    (("--metrics",), "endpoint_metrics", True),
    (("--slots",), "endpoint_slots", True),
    (("--no-slots",), "endpoint_slots", False),
    (("--no-warmup",), "warmup", False),
    (("--jinja",), "use_jinja", True),
    (("--no-jinja",), "use_jinja", False),
    (("--context-shift",), "ctx_shift", True),
]


def fail(message: str) -> NoReturn:
    print(f"{_NAME}: {message}", file=sys.stderr, flush=True)
    # Not sys.exit: the threads of a server that did not start would be waited for.
    os._exit(1)


def port(text: str) -> int:
    number = int(text)
    if not 0 <= number <= 65535:
        raise argparse.ArgumentTypeError(f"{number} is not between 0 and 65535")
    return number


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        fail(f"{message}: xllamacpp's server takes the flags of {_NAME} --help; for all of llama.cpp's put a llama-server in PATH")


def parse_flags(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(prog=_NAME, description="llama.cpp's server from the package xllamacpp, with the plug-in of GGML_BACKEND_PATH",
                    allow_abbrev=False)
    parser.add_argument("--version", action="store_true", help="xllamacpp's version")
    parser.add_argument("--list-devices", action="store_true", help="ggml's devices, with the plug-in's")
    parser.add_argument("-m", "--model", help="GGUF file")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=port, default=8080)
    parser.add_argument("-dev", "--device", default=os.environ.get("LLAMA_ARG_DEVICE"), help="KVTURBO0, or nothing")
    parser.add_argument("-a", "--alias")
    parser.add_argument("--api-key", action="append", default=[])
    for names, field, kind in _FLAGS:
        parser.add_argument(*names, dest=field, type=kind, metavar={int: "N", float: "X", str: "TEXT"}[kind])
    for names, field, value in _SWITCHES:
        parser.add_argument(*names, dest=field, action="store_const", const=value)
    return parser.parse_args(arguments)


def load_host() -> tuple[Any, ctypes.CDLL]:
    """xllamacpp, and ggml inside it. Opened by hand first: an import alone would keep its symbols to itself."""
    found = importlib.util.find_spec("xllamacpp")
    if found is None or found.origin is None:
        fail("xllamacpp is not installed: pip install xllamacpp, or put a llama-server in PATH")
    modules = sorted(Path(found.origin).parent.glob("xllamacpp*.so"))
    if len(modules) != 1:
        fail(f"{Path(found.origin).parent} holds {len(modules)} modules xllamacpp*.so where one is expected: pip install --force-reinstall xllamacpp")
    ggml = ctypes.CDLL(str(modules[0]), mode=os.RTLD_NOW | os.RTLD_GLOBAL)
    ggml.ggml_version.restype = ctypes.c_char_p
    ggml.ggml_backend_load.restype = ctypes.c_void_p
    return importlib.import_module("xllamacpp"), ggml


def load_plugin(ggml: ctypes.CDLL) -> None:
    plugin = os.environ.get("GGML_BACKEND_PATH")
    if plugin and not ggml.ggml_backend_load(os.fsencode(plugin)):
        fail(f"{plugin} does not load, see above")


def set_field(params: Any, path: str, value: Any) -> None:
    *owners, name = path.split(".")
    for owner in owners:
        params = getattr(params, owner)
    setattr(params, name, value)


def make_params(xllamacpp: Any, flags: argparse.Namespace) -> Any:
    params = xllamacpp.CommonParams()
    params.model.path = flags.model
    params.hostnames = [flags.host]
    params.port = flags.port
    params.api_keys = flags.api_key
    if flags.alias:
        params.model_alias = {flags.alias}
    for _, path, _ in _FLAGS + _SWITCHES:
        value = getattr(flags, path)
        if value is not None:
            set_field(params, path, value)
    return params


def serve(xllamacpp: Any, flags: argparse.Namespace) -> int:
    if not flags.model:
        fail("no model: give a GGUF file with -m")
    ignored = sorted(name for name in os.environ if name.startswith("LLAMA_ARG_") and name != "LLAMA_ARG_DEVICE")
    if ignored:
        fail(f"{', '.join(ignored)}: xllamacpp's server reads no variables: unset them and give flags, or put a llama-server in PATH")
    devices = [device["name"] for device in xllamacpp.get_device_info()]
    if flags.device and flags.device not in devices:
        fail(f"device {flags.device}: there are {', '.join(devices)}")
    try:
        params = make_params(xllamacpp, flags)
    except AttributeError as error:
        fail(f"this xllamacpp is of another age ({error}): pip install --upgrade xllamacpp")
    # The server's threads inherit the mask, so that the signals wait for sigwait below.
    stop_signals = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, stop_signals)
    try:
        server = xllamacpp.Server(params)
    except (RuntimeError, ValueError, TypeError) as error:
        fail(f"the server did not start, see above ({error})")
    signal.sigwait(stop_signals)
    del server  # ends its threads
    return 0


def main() -> int:
    flags = parse_flags(sys.argv[1:])
    xllamacpp, ggml = load_host()
    if flags.version:
        version = importlib.metadata.version("xllamacpp")
        # Its last part is llama.cpp's build number.
        print(f"version: {version.rpartition('.')[2]} (xllamacpp {version}, ggml {ggml.ggml_version().decode()})")
        return 0
    load_plugin(ggml)
    if flags.list_devices:
        print("Available devices:")
        for device in xllamacpp.get_device_info():
            if device["name"] != "CPU":
                print(f"  {device['name']}: {device['description']}")
        return 0
    return serve(xllamacpp, flags)


if __name__ == "__main__":
    sys.exit(main())
