#!/usr/bin/env python3
"""Derives the trellis tables of docs/format.md section 3: levels trained under the eight-state code of section 4.4, snapped to 7-bit integers.

Lloyd's iteration on Gaussian samples with the Viterbi algorithm in place of the nearest level; then, among steps whose integers stay at or
below 63, the step with the least error. Prints the levels, and errors of circular chains of 16, 32 and 64 elements, with open ends too,
and of whole vectors (four chains; the norms of format.md section 5, with one search and with the scale search of its step 4).
tests/distortion_test.cc holds the library to the latter. --scales: instead, the three scales of a grid that leave the least error, and one
and two of them. Seeds are fixed.
Needs numpy; takes a few minutes.

    scripts/train_trellis.py [--scales] [bits ...]      default: 2 3 4
"""
import itertools
import sys

import numpy as np

INTEGER_MAX = 63  # level + 64 must fit 7 bits: the int8 kernels depend on it (docs/algorithm.md)
SCALES = {3: (0.96, 1.08, 1.2), 4: (0.92, 1.04, 1.16)}  # format.md section 5, step 4
STATES = 8  # state = t[e-1] | t[e-2] << 1 | t[e-3] << 2

# For each state its two predecessors, dropped bit t[e-3] = 0 first, and the subsets z1 << 1 | z0 on the way.
PREDECESSOR = np.array([[s >> 1 | b << 2 for b in (0, 1)] for s in range(STATES)])
SUBSET = np.array(
    [[((s & 1) ^ (p & 1) ^ (p >> 2)) << 1 | (p >> 1 & 1) for p in PREDECESSOR[s]] for s in range(STATES)]
)


def lloyd_max(bits, samples=400_000, rounds=60):
    """The 2^bits levels of a scalar quantiser of N(0, 1), fitted to samples: where the training starts."""
    y = np.sort(np.random.default_rng(1).standard_normal(samples))
    levels = np.quantile(y, (np.arange(2**bits) + 0.5) / 2**bits)
    for _ in range(rounds):
        cut = np.searchsorted(y, (levels[1:] + levels[:-1]) / 2)
        levels = np.array([part.mean() for part in np.split(y, cut)])
    return (levels - levels[::-1]) / 2


def candidates(levels, y):
    """For y [n, length] and each of the four subsets: the nearest level index and its squared error, both [n, length, 4]."""
    index = np.stack([np.abs(y[..., None] - levels[z::4]).argmin(-1) * 4 + z for z in range(4)], -1)
    return index, (y[..., None] - levels[index]) ** 2


def viterbi(index, cost, start=None):
    """Level indices [n, length] and squared errors [n] of the best paths; start: the state at both ends, or None for free ends."""
    n, length = cost.shape[:2]
    metric = np.zeros((n, STATES)) if start is None else np.where(np.arange(STATES) == start, 0.0, 1e9) * np.ones((n, 1))
    choice = np.zeros((length, n, STATES), np.int8)
    for i in range(length):
        both = metric[:, PREDECESSOR] + cost[:, i][:, SUBSET]
        choice[i] = both[..., 1] < both[..., 0]
        metric = both.min(-1)
    state = metric.argmin(-1) if start is None else np.full(n, start)
    row = np.arange(n)
    error, out = metric[row, state], np.zeros((n, length), int)
    for i in reversed(range(length)):
        b = choice[i, row, state]
        out[:, i] = index[row, i, SUBSET[state, b]]
        state = PREDECESSOR[state, b]
    return out, error


def tail_biting(levels, y):
    """As viterbi, each row a circular chain: the best of the eight start states."""
    index, cost = candidates(levels, y)
    best, best_error = viterbi(index, cost, 0)
    for start in range(1, STATES):
        out, error = viterbi(index, cost, start)
        better = error < best_error
        best[better], best_error[better] = out[better], error[better]
    return best, best_error


def train(bits, rows=3000, length=128, rounds=10):
    levels = lloyd_max(bits + 1)
    y = np.random.default_rng(2).standard_normal((rows, length))
    for _ in range(rounds):
        index, _ = viterbi(*candidates(levels, y))
        count = np.bincount(index.ravel(), minlength=len(levels))
        total = np.bincount(index.ravel(), y.ravel(), len(levels))
        levels = np.where(count > 0, total / np.maximum(count, 1), levels)
        levels = np.sort((levels - levels[::-1]) / 2)
    return levels


def sphere(seed, rows, d):
    y = np.random.default_rng(seed).standard_normal((rows, d))
    return y * np.sqrt(d) / np.linalg.norm(y, axis=1, keepdims=True)


def snap(levels):
    """The integer levels and step with the least error on a sample."""
    y = sphere(3, 1500, 128)[:400]
    best = None
    for top in np.arange(min(48, 3 * len(levels)), INTEGER_MAX + 0.5, 0.25):
        step = levels[-1] / top
        integers = np.round(levels / step)
        if integers[-1] > INTEGER_MAX:
            continue
        error = viterbi(*candidates(integers * step, y))[1].mean()
        if best is None or error < best[0]:
            best = (error, step, integers)
    return best[2], best[1]


def mean_and_error(x):
    return f"{x.mean():.6f} +- {x.std() / np.sqrt(len(x)):.6f}"


def merits(levels, y, scale):
    """What of |y|^2 / d = 1 the levels found for scale * y explain: 1 - the least-squares error."""
    index, _ = tail_biting(levels, (scale * y).reshape(-1, y.shape[1] // 4))
    q = levels[index].reshape(y.shape)
    return (y * q).sum(1) ** 2 / ((q * q).sum(1) * y.shape[1])


def vector_errors(levels, d, scales=(1,), rows=12000, batch=2000):
    """Relative squared errors of vectors: matched norm (keys) and least squares (values); of several scales the best (format.md 5)."""
    matched, least = [], []
    y = sphere(4, rows, d)
    for part in np.split(y, range(batch, rows, batch)):
        merit = np.max([merits(levels, part, scale) for scale in scales], 0)
        matched.append(1 / merit - 1)
        least.append(1 - merit)
    return np.concatenate(matched), np.concatenate(least)


def print_best_scales(levels, rows=900):
    """For one to three scales of a grid: the choice with the least sum, over d, of errors relative to a search of the whole grid."""
    grid = np.arange(80, 133, 4) / 100
    errors = {}
    for d in (64, 128, 256):
        y = sphere(11, rows, d)
        errors[d] = np.array([1 - merits(levels, y, scale) for scale in grid])
    for n in (1, 2, 3):
        choices = itertools.combinations(range(len(grid)), n)
        best = list(min(choices, key=lambda c: sum(e[list(c)].min(0).mean() / e.min(0).mean() for e in errors.values())))
        print(f"  scales {grid[best].tolist()}: " + ", ".join(f"d = {d}: {e[best].min(0).mean():.5f}" for d, e in errors.items()), flush=True)


def main():
    arguments = [a for a in sys.argv[1:] if a != "--scales"]
    for bits in [int(a) for a in arguments] or [2, 3, 4]:
        exact = train(bits)
        integers, step = snap(exact)
        half = len(exact) // 2
        print(f"T{bits}: levels {exact[half:].round(5).tolist()}")
        print(f"  snapped {integers[half:].astype(int).tolist()} step {step:.9f}")
        snapped = integers * np.float32(f"{step:.9f}")
        if "--scales" in sys.argv:
            print_best_scales(snapped)
            continue
        for length in (16, 32, 64):
            y = sphere(5, 3000, 128).reshape(-1, length)[:6000]
            errors = [tail_biting(levels, y)[1] / length for levels in (exact, snapped)]
            open_ends = viterbi(*candidates(snapped, y))[1] / length
            print(f"  chains of {length}: {mean_and_error(errors[0])}, snapped {mean_and_error(errors[1])}, with open ends {mean_and_error(open_ends)}")
        for d in (64, 128, 256):
            for scales in ((1,), SCALES.get(bits)):
                if scales:
                    matched, least = vector_errors(snapped, d, scales)
                    print(f"  vectors, d = {d}, scales {scales}: matched {mean_and_error(matched)}, least squares {mean_and_error(least)}", flush=True)


if __name__ == "__main__":
    main()
