"""Layers split over two RPC servers, the plug-in on each: the answers are those of one process, the servers' caches are compressed, and
a client that loses a server ends with an error and does not hang.

TEST_RPC_BIN: folder with ggml-rpc-server and the RPC backend (scripts/get_host.sh --rpc).
"""
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time

from drafts_test import TOSS_UP_STOCK, compare
from llama_host import HOST_BIN, Checks, Server, end_with_parent, environment, free_port, program, prose, setting

RPC_BIN = setting("TEST_RPC_BIN")
CONTEXT = 2048
# SmolLM2-135M: 30 layers, 3 heads of 64, keys and values of 2 bytes.
F16_BYTES = 30 * 2 * 3 * 64 * 2


class RpcServer:
    def __init__(self, codec):
        self.port = free_port()
        self.output = tempfile.TemporaryFile("w+b")
        # ggml looks for backends beside the program and in the working directory: there it finds the CPU backend.
        self.process = subprocess.Popen([program("ggml-rpc-server", RPC_BIN), "-H", "127.0.0.1", "-p", str(self.port), "-t", "1"],
                                        stdin=subprocess.DEVNULL, stdout=self.output, stderr=self.output, cwd=HOST_BIN, env=environment(codec),
                                        preexec_fn=end_with_parent)
        end = time.monotonic() + 30
        while time.monotonic() < end and "transport" not in self.log():
            time.sleep(0.05)

    def log(self):
        self.output.seek(0)
        return self.output.read().decode(errors="replace")

    def anonymous_kb(self):
        with open(f"/proc/{self.process.pid}/status") as f:
            return next(int(line.split()[1]) for line in f if line.startswith("RssAnon:"))

    def stop(self):
        self.process.kill()
        self.process.wait()
        self.output.close()


def client(servers, *arguments):
    endpoints = ",".join(f"127.0.0.1:{s.port}" for s in servers)
    # The client is stock: RPC is a backend that it finds in its working directory.
    return Server(None, "--rpc", endpoints, "-ts", "1,1", "-np", 1, "-c", CONTEXT, "--cache-ram", 0, *arguments, cwd=RPC_BIN, threads=1)


def over_rpc(codec, texts, n_predict, fill):
    """Answers, and the anonymous memory of both servers with a full context, in kB."""
    servers = [RpcServer(codec), RpcServer(codec)]
    try:
        with client(servers) as llama:
            answers = [llama.complete(t, n_predict, n_probs=2, cache_prompt=False) for t in texts]
            llama.complete(fill, 1, cache_prompt=False)
            kb = sum(s.anonymous_kb() for s in servers)
        return answers, kb, [s.log() for s in servers]
    finally:
        for s in servers:
            s.stop()


def lose_a_server(checks):
    servers = [RpcServer("k4v3"), RpcServer("k4v3")]
    try:
        with client(servers) as llama:
            def ask():
                try:
                    llama.complete(prose(1500), 4000)
                except (OSError, RuntimeError):
                    pass
            request = threading.Thread(target=ask)
            request.start()
            time.sleep(2)
            servers[1].process.kill()
            begin = time.monotonic()
            code = None
            while code is None and time.monotonic() - begin < 30:
                code = llama.process.poll()
                time.sleep(0.05)
            took = time.monotonic() - begin
            checks.check(code not in (None, 0), f"a client whose server dies ends with an error: exit code {code} after {took:.1f} s")
            line = re.search(r".*(Remote RPC server|RPC).*(crashed|closed|failed).*", llama.log())
            checks.check(line is not None, f"and says: {line.group(0) if line else llama.log()[-300:]}")
            llama.stop(signal.SIGKILL)
            request.join()
        checks.check(servers[0].process.poll() is None, "the other server lives on")
        with client(servers[:1]) as llama:
            llama.complete(prose(300), 4)
        checks.check(True, "and serves the next client")
    finally:
        for s in servers:
            s.stop()


def main():
    is_quick = "--quick" in sys.argv
    checks = Checks()
    texts, n_predict = [prose(2400), prose(900, 3000)], 24
    fill = prose(8500)  # nearly all of the context
    stock, stock_kb, _ = over_rpc(None, texts, n_predict, fill)
    for codec in ["k4v3"] if is_quick else ["f16", "k4v3", "hybrid"]:
        answers, kb, logs = over_rpc(codec, texts, n_predict, fill)
        if codec == "f16":
            reference = stock
        else:
            with Server(codec, "-np", 1, "-c", CONTEXT, "--cache-ram", 0) as local:
                reference = [local.complete(t, n_predict, n_probs=2, cache_prompt=False) for t in texts]
        n, n_toss_ups, wrong = compare(reference, answers, TOSS_UP_STOCK)
        checks.check(not wrong, f"{codec} over RPC and {'stock over RPC' if codec == 'f16' else 'in one process'}: {n} tokens, {n_toss_ups} toss-ups {wrong or ''}")
        checks.check(all("kvturbo: KV cache compressed" in log for log in logs), f"{codec}: each server says that its cache is compressed")
        # Stock commits the whole context at the start; the rest, weights and working space, is alike.
        saved, full = stock_kb - kb, CONTEXT * F16_BYTES // 1024
        print(f"        {codec}: both servers {kb} kB, stock {stock_kb} kB; of {full} kB of f16 cache {saved} kB are saved")
        if codec != "f16":
            checks.check(saved > full * 0.6, f"{codec}: the servers save more than 60 % of the f16 cache")
    if not is_quick:
        lose_a_server(checks)
    checks.exit()


if __name__ == "__main__":
    main()
