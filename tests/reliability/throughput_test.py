"""Throughput of llama-server at long prompts, stock f16 and ours. Both servers run at once and take turns, so that whatever else the machine does
slows both alike: each round sends the same requests to one server, then to the other, and the ratio is that of the sums.

  throughput_test.py [--quick] [--rounds N] [--tokens OF_A_PROMPT] [--slots N] [--codec k4v3]
"""
import argparse
import threading
import time

from llama_host import Checks, Server, prose
from load_test import TIMEOUT, TOKENS_PER_BYTE

N_ANSWERED = 64
BAR = 1.3  # at 8K tokens


def round_of(server, prompts):
    """Tokens of prompts and answers, seconds."""
    n = [0] * len(prompts)

    def one(i):
        answer = server.complete(prompts[i], N_ANSWERED, i, timeout=TIMEOUT, cache_prompt=False)
        n[i] = answer["tokens_evaluated"] + len(answer["tokens"])
    threads = [threading.Thread(target=one, args=(i,)) for i in range(len(prompts))]
    begin = time.monotonic()
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return sum(n), time.monotonic() - begin


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=8000)
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--codec", default="k4v3")
    options = parser.parse_args()
    checks = Checks()
    prompts = [prose(int(options.tokens / TOKENS_PER_BYTE), 700 * i) for i in range(options.slots)]
    arguments = ["-np", options.slots, "-c", options.slots * int(options.tokens * 1.05 + 256), "--cache-ram", 0]
    with Server(None, *arguments) as stock, Server(options.codec, *arguments) as ours:
        sums = {}
        for server in (stock, ours):
            server.complete(prose(1800), 1, 0)
        for number in range(options.rounds):
            for name, server in (("stock f16", stock), (options.codec, ours)) if number % 2 == 0 else ((options.codec, ours), ("stock f16", stock)):
                n, seconds = round_of(server, prompts)
                total = sums.setdefault(name, [0, 0.0])
                total[0] += n
                total[1] += seconds
                print(f"        round {number + 1}, {name}: {n} tokens, {seconds:.1f} s, {n / seconds:.0f} tokens/s", flush=True)
    ratio = sums[options.codec][0] / sums[options.codec][1] / (sums["stock f16"][0] / sums["stock f16"][1])
    checks.check(ratio >= BAR, f"{options.codec}: {options.slots} slots, prompts of {options.tokens} tokens, {N_ANSWERED} answered: {ratio:.2f} times stock f16")
    checks.exit()


if __name__ == "__main__":
    main()
