"""Starts llama.cpp's programs, stock or with the plug-in, and talks to llama-server. Python's standard library only.

Environment, as for the shell tests (tests/plugin_support.sh): TEST_PLUGIN, TEST_HOST_BIN, TEST_MODEL, TEST_SOURCE.
"""
import contextlib
import ctypes
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time

SKIPPED = 77  # SKIP_RETURN_CODE of ctest


def setting(name):
    value = os.environ.get(name, "")
    if not value or not os.path.exists(value):
        print(f"skipped: {name} is not set or names nothing")
        sys.exit(SKIPPED)
    return value


def skip_if_quick(why):
    if "--quick" in sys.argv:
        print(f"skipped: {why}")
        sys.exit(SKIPPED)


PLUGIN, HOST_BIN, MODEL, SOURCE = (setting(n) for n in ("TEST_PLUGIN", "TEST_HOST_BIN", "TEST_MODEL", "TEST_SOURCE"))


def program(name, folder=HOST_BIN):
    path = os.path.join(folder, name)
    if not os.access(path, os.X_OK):
        print(f"skipped: no {path}")
        sys.exit(SKIPPED)
    return path


def environment(codec=None, **more):
    """For a host: stock if codec is None. Threads that wait sleep, or they starve those that they wait for on a busy machine."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("KVTURBO_", "LLAMA_ARG_", "GGML_BACKEND_PATH"))}
    env.update(OMP_WAIT_POLICY="passive", GOMP_SPINCOUNT="0")
    if codec is not None:
        env.update(GGML_BACKEND_PATH=PLUGIN, KVTURBO_CODEC=codec)
    env.update(more)
    return env


def free_port():
    with contextlib.closing(socket.socket()) as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def end_with_parent():
    """In a child, before its program: it is killed when we end, however that is."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class Server:
    """llama-server on a free port; `with Server(...) as s`. Its log is in s.log()."""

    def __init__(self, codec, *arguments, threads=2, env=None, model=MODEL, cwd=None, wait=True, prefix=()):
        self.port = free_port()
        self.log_file = tempfile.TemporaryFile("w+b")
        command = [*prefix, program("llama-server"), "-m", model, "--host", "127.0.0.1", "--port", str(self.port), "-t", str(threads),
                   "--temp", "0", *map(str, arguments)]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self.log_file, stderr=self.log_file, cwd=cwd,
                                        env=environment(codec, **(env or {})), preexec_fn=end_with_parent)
        if wait and not self.wait_ready():
            text = self.log()
            self.stop()
            raise RuntimeError("llama-server does not start:\n" + text[-2000:])

    def wait_ready(self, seconds=240):
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            try:
                if self.request("GET", "/health", timeout=5)[0] == 200:
                    return True
            except OSError:
                pass
            time.sleep(0.1)
        return False

    def request(self, method, path, body=None, timeout=600):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, None if body is None else json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            data = response.read()
            return response.status, json.loads(data) if data[:1] in b"{[" else data
        finally:
            connection.close()

    def complete(self, prompt, n, slot=-1, timeout=600, **more):
        """Greedy answer, whole, as the server's JSON."""
        body = {"prompt": prompt, "n_predict": n, "id_slot": slot, "temperature": 0, "seed": 1, "ignore_eos": True, "return_tokens": True}
        body.update(more)
        status, answer = self.request("POST", "/completion", body, timeout)
        if status != 200:
            raise RuntimeError(f"status {status}: {answer}")
        return answer

    def tokens(self, text):
        return self.request("POST", "/tokenize", {"content": text})[1]["tokens"]

    def log(self):
        self.log_file.seek(0)
        return self.log_file.read().decode(errors="replace")

    def anonymous_kb(self):
        with open(f"/proc/{self.process.pid}/status") as f:
            return next(int(line.split()[1]) for line in f if line.startswith("RssAnon:"))

    def stop(self, number=signal.SIGTERM, seconds=60):
        """Returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()
        self.log_file.close()


class Checks:
    """Counts failures, prints each, gives the exit code."""

    def __init__(self):
        self.n_failed = 0

    def check(self, is_fine, what):
        print(("ok      " if is_fine else "FAILED  ") + what, flush=True)
        self.n_failed += not is_fine
        return is_fine

    def exit(self):
        print(f"{self.n_failed} failures" if self.n_failed else "passed")
        sys.exit(1 if self.n_failed else 0)


def prose(n_bytes, start=0):
    """English that no model has to invent: the licence, over and over."""
    with open(os.path.join(SOURCE, "LICENSE")) as f:
        text = " ".join(f.read().split())
    text = text * (1 + (start + n_bytes) // len(text))
    return text[start:start + n_bytes]
