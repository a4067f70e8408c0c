"""Faults around the stock llama-server and llama-completion: an end under load, a disk that is full while a slot is saved, files that are
torn, an address space that is too small. No crash, a line that says what is wrong, and a server that goes on gives the answers of before.
"""
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time

from llama_host import MODEL, Checks, Server, environment, program, prose


def answer(server, text, n=12, slot=0):
    return server.complete(text, n, slot, cache_prompt=False)["tokens"]


def end_under_load(checks, codec, rounds):
    for i in range(rounds):
        with Server(codec, "-np", 4, "-c", 4096) as server:
            def ask(number, port_server=server):
                try:
                    port_server.complete(prose(600 + 700 * number, 500 * number), 400, -1)
                except (OSError, RuntimeError, ValueError):
                    pass  # cut off, as it should be
            requests = [threading.Thread(target=ask, args=(n,)) for n in range(6)]
            for r in requests:
                r.start()
            time.sleep(0.3 + 0.7 * i)
            # The first signal lets llama-server wait for its clients, the second ends it.
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            begin = time.monotonic()
            code = server.stop(signal.SIGTERM)
            for r in requests:
                r.join()
            log = server.log()
            checks.check(code in (0, 1), f"{codec}: SIGTERM under load, {0.3 + 0.7 * i:.1f} s in: exit code {code} after {time.monotonic() - begin:.1f} s")
            checks.check("Segmentation" not in log and "GGML_ASSERT" not in log, f"{codec}: no assertion in the log")


def full_disk(checks, codec):
    """The server may write files of at most 100 kB: a slot of 100 tokens is larger."""
    with tempfile.TemporaryDirectory() as folder:
        # The log goes through a pipe: it may be longer.
        limited = ["bash", "-c", 'trap "" XFSZ; ulimit -f 100; exec "$@" > >(cat) 2>&1', "limited"]
        text, more = prose(1500), prose(1500) + prose(400, 5000)
        with Server(codec, "-np", 2, "-c", 2048, "--slot-save-path", folder, prefix=limited) as server:
            first = answer(server, text)
            server.complete(text, 1, 0, cache_prompt=True)
            status, reply = server.request("POST", "/slots/0?action=save", {"filename": "slot"})
            size = os.path.getsize(os.path.join(folder, "slot")) if os.path.exists(os.path.join(folder, "slot")) else 0
            checks.check(size <= 102400, f"{codec}: the disk is full: file of {size} bytes, status {status}, {str(reply)[:120]}")
            checks.check(answer(server, text) == first, f"{codec}: slot 0 answers as before")
            before = answer(server, more, slot=1)
            status, reply = server.request("POST", "/slots/1?action=restore", {"filename": "slot"})
            checks.check(status != 200 or reply.get("n_restored", 0) == 0, f"{codec}: the torn file is refused: status {status}, {str(reply)[:120]}")
            checks.check(answer(server, more, slot=1) == before, f"{codec}: slot 1 answers as before")


def torn_files(checks, codec, is_quick):
    with tempfile.TemporaryDirectory() as folder, Server(codec, "-np", 2, "-c", 1024, "--slot-save-path", folder) as server:
        text, other = prose(1400), prose(900, 4000)
        server.complete(text, 1, 0, cache_prompt=True)
        saved = server.request("POST", "/slots/0?action=save", {"filename": "whole"})[1]
        with open(os.path.join(folder, "whole"), "rb") as f:
            whole = f.read()
        before = answer(server, other, slot=1)
        # (A file that lacks its last bytes only ends llama-server by an assertion, stock as well: not ours to test.)
        sizes = [0, 3, 8, 100, len(whole) // 3, len(whole) // 2]
        for size in sizes[::2] if is_quick else sizes:
            with open(os.path.join(folder, "torn"), "wb") as f:
                f.write(whole[:size])
            status, reply = server.request("POST", "/slots/1?action=restore", {"filename": "torn"})
            refused = status != 200 or reply.get("n_restored", 0) == 0
            checks.check(refused, f"{codec}: a file cut at {size} of {len(whole)} bytes is refused: status {status}")
            checks.check(answer(server, other, slot=1) == before, f"{codec}: and the slot answers as before")
        status, reply = server.request("POST", "/slots/1?action=restore", {"filename": "whole"})
        checks.check(status == 200 and reply["n_restored"] == saved["n_saved"], f"{codec}: the whole file is restored")


def address_space(checks, codec, n_limits):
    """From less than the model needs to enough: a normal end, or one that the host announces; never a fault of memory access."""
    command = [program("llama-completion"), "-m", MODEL, "-t", "2", "-c", "8192", "-n", "4", "-no-cnv", "--no-warmup", "--temp", "0", "-p", "one, two,"]

    def run(limit):
        def before():
            if limit:
                resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=before,
                              env=environment(codec), timeout=120, check=False)
        return done.returncode, done.stdout, done.stderr.decode(errors="replace")

    code, expected, _ = run(0)
    checks.check(code == 0, f"{codec}: no limit")
    n_fine, n_refused = 0, 0
    for i in range(n_limits):
        limit = (250 + i * 1000 // n_limits) << 20
        code, out, log = run(limit)
        if code == 0:
            n_fine += 1
            checks.check(out == expected, f"{codec}: {limit >> 20} MiB of addresses: the same answer")
        else:
            n_refused += 1
            # The host ends by exit or, where C++ or ggml gives up, by abort: a line says why.
            said = [line for line in log.splitlines() if re.search(r"fail|memory|alloc|terminate|error", line)]
            checks.check(code not in (-signal.SIGSEGV, -signal.SIGBUS, -signal.SIGILL) and bool(said),
                         f"{codec}: {limit >> 20} MiB of addresses: exit code {code}: {said[-1][:110] if said else log[-200:]}")
    checks.check(n_fine > 0 and n_refused > 0, f"{codec}: {n_fine} limits were enough, {n_refused} were not")


def main():
    is_quick = "--quick" in sys.argv
    checks = Checks()
    for codec in ["k4v3"] if is_quick else ["k4v3", "hybrid", "f16"]:
        end_under_load(checks, codec, 1 if is_quick else 4)
        full_disk(checks, codec)
        torn_files(checks, codec, is_quick)
        address_space(checks, codec, 4 if is_quick else 20)
    checks.exit()


if __name__ == "__main__":
    main()
