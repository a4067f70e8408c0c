#!/usr/bin/env python3
"""Tables of a timeline that cuda_timeline.cc wrote: where the time of a token goes, over the last tokens of a run.

    timeline_table.py FILE [TOKENS]

Tokens are told apart by the longest pauses of the GPU. For each kernel: how often in a token, its time, and the pause before it; in microseconds.
"""

import collections
import subprocess
import sys


def read(path):
    entries = []
    with open(path) as file:
        for line in file:
            begin, duration, what, name = line.rstrip("\n").split(" ", 3)
            entries.append((int(begin), int(duration), what, name))
    return entries


def short(names):
    try:
        plain = subprocess.run(["c++filt", "-p"], input="\n".join(names), capture_output=True, text=True, check=False).stdout.split("\n")
    except OSError:
        plain = []
    return dict(zip(names, plain)) if len(plain) >= len(names) else {name: name for name in names}


def main():
    entries = read(sys.argv[1])
    n_tokens = int(sys.argv[2]) if len(sys.argv) > 2 else 8
    work = [e for e in entries if e[2] != "call"]
    starts = [e[0] for e in work]
    pauses = sorted(((work[i + 1][0] - (work[i][0] + work[i][1]), i) for i in range(len(work) * 3 // 4, len(work) - 1)), reverse=True)
    cuts = sorted(i for _, i in pauses[:n_tokens + 1])
    if len(cuts) < 2:
        sys.exit("too few tokens")
    first, last = cuts[0] + 1, cuts[-1] + 1
    chosen = work[first:last]
    begin, end = starts[first], starts[last] if last < len(starts) else chosen[-1][0] + chosen[-1][1]
    n_tokens = len(cuts) - 1
    total = (end - begin) / 1000 / n_tokens
    table = collections.defaultdict(lambda: [0, 0.0, 0.0])
    free_at, busy = begin, 0
    for at, duration, _, name in chosen:
        row = table[name]
        row[0] += 1
        row[1] += duration / 1000
        row[2] += max(0, at - free_at) / 1000
        busy += max(0, at + duration - max(at, free_at)) / 1000
        free_at = max(free_at, at + duration)
    names = short(list(table))
    print(f"{n_tokens} tokens, each {total:.0f} us, of which the GPU works {busy / n_tokens:.0f} us")
    print(f"{'a token':>8} {'us each':>8} {'us':>8} {'pause':>8}  kernel")
    for name, (n, time, pause) in sorted(table.items(), key=lambda item: -item[1][1] - item[1][2]):
        print(f"{n / n_tokens:8.1f} {time / n:8.2f} {time / n_tokens:8.1f} {pause / n_tokens:8.1f}  {names[name][:110]}")
    calls = collections.defaultdict(lambda: [0, 0.0])
    for at, duration, what, name in entries:
        if what == "call" and begin <= at < end:
            calls[name][0] += 1
            calls[name][1] += duration / 1000
    for name, (n, time) in sorted(calls.items(), key=lambda item: -item[1][1])[:8]:
        print(f"{n / n_tokens:8.1f} {time / n:8.2f} {time / n_tokens:8.1f}           call {name}")


if __name__ == "__main__":
    main()
