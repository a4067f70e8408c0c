#!/usr/bin/env python3
"""Derives the level tables of docs/format.md section 3: Lloyd-Max levels of N(0, 1), snapped to 7-bit integers.

Exact integrals, no sampling; needs only the Python standard library. Prints the integer levels, the step, and the relative squared
error of the exact and of the snapped table (nearest-level thresholds).
"""
from math import erf, exp, pi, sqrt

INTEGER_MAX = 63  # level + 64 must fit 7 bits: the int8 kernels depend on it (docs/algorithm.md)


def pdf(x):
    return exp(-x * x / 2) / sqrt(2 * pi)


def cdf(x):
    return 0.5 * (1 + erf(x / sqrt(2)))


def lloyd_max(bits):
    """Positive half of the optimal levels, ascending."""
    half = 2 ** (bits - 1)
    levels = [3.0 * (i + 0.5) / half for i in range(half)]
    for _ in range(20000):
        cuts = [0.0] + [(a + b) / 2 for a, b in zip(levels, levels[1:])] + [40.0]
        levels = [(pdf(a) - pdf(b)) / (cdf(b) - cdf(a)) for a, b in zip(cuts, cuts[1:])]
    return levels


def distortion(levels):
    """E (x - nearest level)^2 of x ~ N(0, 1) for a symmetric table given by its positive half."""
    cuts = [0.0] + [(a + b) / 2 for a, b in zip(levels, levels[1:])] + [40.0]
    total = 0.0
    for level, a, b in zip(levels, cuts, cuts[1:]):
        mass, first = cdf(b) - cdf(a), pdf(a) - pdf(b)
        second = mass + a * pdf(a) - b * pdf(b)
        total += second - 2 * level * first + level * level * mass
    return 2 * total


def snap(levels):
    """The integer table and step with the least distortion."""
    best = None
    for top in range(40, INTEGER_MAX + 1):
        for fine in range(-40, 41):
            step = levels[-1] / (top + fine / 100)
            integers = [round(v / step) for v in levels]
            if integers[-1] > INTEGER_MAX:
                continue
            error = distortion([i * step for i in integers])
            if best is None or error < best[0]:
                best = (error, step, integers)
    return best


if __name__ == "__main__":
    for bits in (3, 4):
        exact = lloyd_max(bits)
        error, step, integers = snap(exact)
        print(f"{bits}-bit: levels {[round(v, 6) for v in exact]} distortion {distortion(exact):.6f}")
        print(f"  snapped {integers} step {step:.9f} distortion {error:.6f}")
