#!/usr/bin/env python3
"""Makes tests/golden and tests/golden-errors from docs/format.md alone: the independent oracle.

It shares nothing with the library: the encoder follows section 5 operation by operation, the decoder is the dense matrix of section 2
in double precision, and the inputs are integer formulas that tests/golden_test.cc repeats exactly. Standard library only.

Every fp32 operation is done in double and rounded once: a double has more than 2 * 24 + 2 bits, so for + - * / and sqrt this equals
fp32 arithmetic with rounding to nearest even, subnormals included.

It also makes cli/golden_digests.h, by which `kvturbo doctor` checks the kernels of the machine at hand.

    scripts/make_golden.py           write the files
    scripts/make_golden.py --check   fail if the files on disk differ
"""
import struct
import sys
from math import cos, pi, sin, sqrt
from pathlib import Path

HEAD_DIMS = (64, 80, 96, 112, 128, 192, 256)
PAGE_TOKENS = 64
# The other codecs have the same sides: k3v2 those of k3v3 and k2v2, k8v3 those of k8v4 and k3v3.
GOLDEN_CODECS = ("f16", "hybrid", "scalar43", "k4v3", "k3v3", "k2v2", "k8v4")
D1 = bytes.fromhex("23cdf866c8c08c92c81d631a2e67be1040b4e70a4e59945db57308cfa737d49b")
D2 = bytes.fromhex("f319a1d2015257a61ca463c2c4668c69abc50168f1ad6103814ebed59f598b54")
HARTLEY_ROW = {  # the digits of section 2
    1: (1.0,),
    3: (1.0, 0.366025404, -1.366025404),
    5: (1.0, 1.260073511, -0.221231742, -1.396802247, -0.642039522),
    7: (1.0, 1.405321284, 0.752406978, -0.467085129, -1.334852607, -1.197448846, -0.158341681),
}
LM3 = (-62, -39, -22, -7, 7, 22, 39, 62)
LM4 = (-61, -46, -36, -28, -21, -15, -9, -3, 3, 9, 15, 21, 28, 36, 46, 61)
T2_HALF = (4, 13, 23, 40)
T3_HALF = (3, 8, 14, 20, 27, 35, 46, 63)
T4_HALF = (1, 3, 5, 7, 9, 11, 14, 16, 19, 22, 26, 30, 35, 42, 50, 63)


# ---- fp32 and fp16 -----------------------------------------------------------------------------------------------------


def f32(x):
    return struct.unpack("<f", struct.pack("<f", x))[0]


def add(a, b):
    return f32(a + b)


def sub(a, b):
    return f32(a - b)


def mul(a, b):
    return f32(a * b)


def div(a, b):
    return f32(a / b)


def root(a):
    return f32(sqrt(a))


def f16_bits(x):
    return struct.unpack("<H", struct.pack("<e", x))[0]


def f16_value(bits):
    return struct.unpack("<e", struct.pack("<H", bits))[0]


def f32_bits(x):
    return struct.unpack("<I", struct.pack("<f", x))[0]


STEP3 = f32(0.034636177)
STEP4 = f32(0.044803895)
STEP_T2 = f32(0.046769185)
STEP_T3 = f32(0.040785383)
STEP_T4 = f32(0.047765796)
STEP_U7 = 3 / 64


# ---- section 2: the rotation -------------------------------------------------------------------------------------------


def split(d):
    p = d & -d
    return d // p, p


def sign(table, i):
    return -1 if table[i // 8] >> (i % 8) & 1 else 1


def mix(x, table):
    """(C_m (x) H_p) D x, unnormalised, in the order of section 5 step 3."""
    d = len(x)
    m, p = split(d)
    w = [v * sign(table, i) for i, v in enumerate(x)]
    distance = 1
    while distance < p:
        for base in range(0, d, 2 * distance):
            for i in range(base, base + distance):
                a, b = w[i], w[i + distance]
                w[i], w[i + distance] = add(a, b), sub(a, b)
        distance *= 2
    if m == 1:
        return w
    row = [f32(v) for v in HARTLEY_ROW[m]]
    out = [0.0] * d
    for a in range(m):
        for b in range(p):
            total = mul(row[0], w[b])
            for k in range(1, m):
                total = add(total, mul(row[a * k % m], w[k * p + b]))
            out[a * p + b] = total
    return out


def dense_rotation(d, table):
    """R or S of section 2 as rows of doubles, from the definition and not from the butterflies."""
    m, p = split(d)
    hartley = [cos(2 * pi * k / m) + sin(2 * pi * k / m) for k in range(m)]
    rows = []
    for i in range(d):
        a, b = divmod(i, p)
        rows.append(
            [
                hartley[a * (j // p) % m] * (-1) ** bin(b & (j % p)).count("1") * sign(table, j) / sqrt(d)
                for j in range(d)
            ]
        )
    return rows


def transpose_times(matrix, x):
    d = len(x)
    out = [0.0] * d
    for row, v in zip(matrix, x):
        if v:
            for j in range(d):
                out[j] += row[j] * v
    return out


# ---- section 5: one row ------------------------------------------------------------------------------------------------


def total(terms):
    """Sum of products in the order of section 5 step 1: 16 lanes, then pairs at distance 8, 4, 2, 1."""
    lanes = [0.0] * 16
    for i, v in enumerate(terms):
        lanes[i % 16] = add(lanes[i % 16], v)
    for distance in (8, 4, 2, 1):
        for i in range(distance):
            lanes[i] = add(lanes[i], lanes[i + distance])
    return lanes[0]


def dot(a, b):
    return total([mul(x, y) for x, y in zip(a, b)])


def thresholds(levels, step):
    return [mul(0.5 * (a + b), step) for a, b in zip(levels, levels[1:])]


CUT3 = thresholds(LM3, STEP3)
CUT4 = thresholds(LM4, STEP4)


def stored(norm):
    return f16_bits(min(norm, 65504.0))


def scaled_rotation(x, n):
    inverse = div(1.0, n)
    return [mul(v, inverse) for v in mix(x, D1)]


# ---- section 4.4 and step 4: trellis codes -----------------------------------------------------------------------------


class TrellisTable:
    def __init__(self, bits, half, step):
        self.bits, self.step = bits, step
        self.levels = [-v for v in reversed(half)] + list(half)
        assert len(self.levels) == 2 << bits
        self.subset = [self.levels[z::4] for z in range(4)]
        self.cuts = [thresholds(levels, step) for levels in self.subset]


T2, T3, T4 = (TrellisTable(*args) for args in ((2, T2_HALF, STEP_T2), (3, T3_HALF, STEP_T3), (4, T4_HALF, STEP_T4)))
TRELLIS = {  # codec -> tables of its sides; not there: Lloyd-Max or uniform levels
    "k4v3": {"key": T4, "value": T3},
    "k3v3": {"key": T3, "value": T3},
    "k3v2": {"key": T3, "value": T2},
    "k2v2": {"key": T2, "value": T2},
    "k8v4": {"value": T4},
    "k8v3": {"value": T3},
}
SCALES = {T3: (0.96, 1.08, 1.2), T4: (0.92, 1.04, 1.16)}


def trellis_table(codec, side):
    return TRELLIS.get(codec, {}).get(side)


def has_bytes(codec, side):
    return side == "key" and codec in ("k8v4", "k8v3")


def chains(side, d):
    """The dims of the four circular chains, in element order."""
    if side == "key":

        def dim(u, p):
            return 8 * u + 4 + (p - 1) // 2 if p % 2 else 8 * u + p // 2

        return [[dim(u, p) for p in range(8) for u in range(c, d // 8, 4)] for c in range(4)]
    nh, rest = d // 64, d % 64 // 16
    return [
        [64 * h + 16 * k + w for h in range(nh) for w in range(4 * c, 4 * c + 4) for k in range(4)]
        + [64 * nh + 16 * j + w for w in range(4 * c, 4 * c + 4) for j in range(rest)]
        for c in range(4)
    ]


def tail_biting_path(cost):
    """cost[e][z] -> the bits t of the cheapest path that begins and ends in one state. State: t[e-1] | t[e-2] << 1 | t[e-3] << 2."""
    # The two ways into each state: the predecessor and the subset z = z1 << 1 | z0, with dropped bit t[e-3] = 0, then 1.
    ways = []
    for new in range(8):
        t = new & 1
        pair = []
        for dropped in (0, 1):
            old = new >> 1 | dropped << 2
            z0 = old >> 1 & 1
            z1 = t ^ old & 1 ^ old >> 2
            pair.append((old, z1 << 1 | z0))
        ways.append(pair)
    best, best_bits = None, None
    for start in range(8):
        metric = [0.0 if s == start else f32(1e30) for s in range(8)]
        steps = []
        for c in cost:
            following, taken = [], []
            for (old_0, z_0), (old_1, z_1) in ways:
                a, b = add(metric[old_0], c[z_0]), add(metric[old_1], c[z_1])
                following.append(b if b < a else a)
                taken.append(old_1 if b < a else old_0)
            metric = following
            steps.append(taken)
        if best is None or metric[start] < best:
            best, bits, state = metric[start], [], start
            for taken in reversed(steps):
                bits.append(state & 1)
                state = taken[state]
            assert state == start
            best_bits = bits[::-1]
    return best_bits


def trellis_encode(table, side, y):
    codes = [0] * len(y)
    for dims in chains(side, len(y)):
        free, cost = [], []
        for i in dims:
            m = [sum(y[i] > t for t in cuts) for cuts in table.cuts]
            e = [sub(y[i], mul(table.step, levels[j])) for levels, j in zip(table.subset, m)]
            free.append(m)
            cost.append([mul(v, v) for v in e])
        bits = tail_biting_path(cost)
        for e, i in enumerate(dims):
            z = (bits[e] ^ bits[e - 1] ^ bits[e - 3]) << 1 | bits[e - 2]
            codes[i] = bits[e] << table.bits - 1 | free[e][z]
    return codes


def trellis_levels(table, side, codes):
    """The integer level of each dim."""
    out = [0] * len(codes)
    for dims in chains(side, len(codes)):
        t = [codes[i] >> table.bits - 1 for i in dims]
        for e, i in enumerate(dims):
            m = codes[i] & (1 << table.bits - 1) - 1
            out[i] = table.levels[m << 2 | (t[e] ^ t[e - 1] ^ t[e - 3]) << 1 | t[e - 2]]
    return out


def trellis_row(table, side, y):
    codes = trellis_encode(table, side, y)
    return codes, [mul(table.step, level) for level in trellis_levels(table, side, codes)]


def best_of_scales(table, side, y):
    best = None
    for scale in SCALES[table]:
        codes, yq = trellis_row(table, side, [mul(f32(scale), v) for v in y])
        a = dot(y, yq)
        merit = div(mul(a, a), dot(yq, yq))
        if best is None or merit > best[0]:
            best = merit, codes, yq
    return best[1:]


def encode_row(codec, side, x):
    """Codes (with the sketch in bit 3 for hybrid keys) and stored norms as fp16 bits."""
    d = len(x)
    norms = 2 if (codec, side) == ("hybrid", "key") else 1
    n = root(dot(x, x))
    if n == 0:
        return [0] * d, [0] * norms
    y = scaled_rotation(x, n)
    table = trellis_table(codec, side)
    if table:
        codes, yq = best_of_scales(table, side, y) if codec != "k4v3" and table in SCALES else trellis_row(table, side, y)
    elif has_bytes(codec, side):
        scale = div(63.0, max(map(abs, y)))
        levels = [round(mul(v, scale)) for v in y]  # ties to even
        codes, yq = [level + 64 for level in levels], [mul(STEP_U7, level) for level in levels]
    else:
        four_bits = codec == "scalar43" and side == "key"
        levels, step, cuts = (LM4, STEP4, CUT4) if four_bits else (LM3, STEP3, CUT3)
        codes = [sum(v > t for t in cuts) for v in y]
        yq = [mul(step, levels[c]) for c in codes]
    if codec != "hybrid":
        if side == "key":
            return codes, [stored(mul(n, div(dot(y, y), dot(y, yq))))]
        return codes, [stored(mul(n, div(dot(y, yq), dot(yq, yq))))]
    if side == "value":
        return codes, [stored(n)]
    e = [sub(a, b) for a, b in zip(y, yq)]
    r = mul(mul(n, root(dot(e, e))), div(1.0, root(float(d))))
    sketch = mix(e, D2)
    return [c | 8 * (s < 0) for c, s in zip(codes, sketch)], [stored(n), stored(r)]


# ---- sections 1 and 4: the page ----------------------------------------------------------------------------------------


def code_bits(codec, side):
    """Stored bits of a code."""
    if has_bytes(codec, side):
        return 8
    table = trellis_table(codec, side)
    return table.bits if table else 4 if side == "key" else 3


def lines(bits, side, d):
    """Runs of four lines, and lines of the rest: as they are, and as stored (section 4.3)."""
    runs, rest = (d // 32, d % 32 // 8) if side == "key" else (d // 64, d % 64 // 16)
    return runs, rest, (rest + 1) // 2 if bits == 2 else rest


def part_bytes(bits, side, d):
    """Of a key tile, or of a value group."""
    if bits == 8:
        return 16 * d
    runs, _, stored_rest = lines(bits, side, d)
    return (64 if side == "key" else 256) * (bits * runs + stored_rest)


def code_bytes(codec, side, d):
    if codec == "f16":
        return 128 * d
    return (4 if side == "key" else 2) * part_bytes(code_bits(codec, side), side, d)


def page_bytes(codec, side, d):
    if codec == "f16":
        return 128 * d
    return code_bytes(codec, side, d) + 128 * (2 if (codec, side) == ("hybrid", "key") else 1)


def key_nibble(bits, d, cell, dim, i):
    """Bit position in the page of the nibble of stored line i of the run, or of the rest, in which dim lies."""
    tile, t = divmod(cell, 16)
    u, j = divmod(dim, 8)
    at = tile * part_bytes(bits, "key", d) + 64 * (bits * (u // 4) + i) + 4 * t + j % 4
    return 8 * at + (4 if j >= 4 else 0)


def value_nibble(bits, d, cell, dim, i):
    group, token = divmod(cell, 32)
    nh = d // 64
    line = i * nh * 256 + dim // 64 * 256 if dim < 64 * nh else bits * nh * 256 + i * 256
    at = group * part_bytes(bits, "value", d) + line + token % 16 // 4 * 64 + 4 * (dim % 16) + token % 4
    return 8 * at + (4 if token >= 16 else 0)


def bit_places(bits, side, d, cell, dim):
    """Where bit 0, 1, ... of a code lie, as bit positions in the page."""
    if bits == 8:
        tile, t = divmod(cell, 16)
        at = tile * 16 * d + dim // 4 * 64 + 4 * t + dim % 4
        return [8 * at + i for i in range(8)]
    nibble = key_nibble if side == "key" else value_nibble
    k = dim // 8 % 4 if side == "key" else dim // 16 % 4  # line in its run or in the rest
    if bits == 2:
        return [nibble(bits, d, cell, dim, k // 2) + k % 2 * 2 + i for i in range(2)]
    if bits == 3 and k == 3:  # never in the rest
        return [nibble(bits, d, cell, dim, i) + 3 for i in range(3)]
    return [nibble(bits, d, cell, dim, k) + i for i in range(bits)]


def write_cell(page, codec, side, d, cell, codes, norms):
    bits = code_bits(codec, side)
    for dim, c in enumerate(codes):
        for i, at in enumerate(bit_places(bits, side, d, cell, dim)):
            page[at // 8] = page[at // 8] & ~(1 << at % 8) | (c >> i & 1) << at % 8
    for part, norm in enumerate(norms):
        struct.pack_into("<H", page, code_bytes(codec, side, d) + 128 * part + 2 * cell, norm)


def read_code(page, codec, side, d, cell, dim):
    places = bit_places(code_bits(codec, side), side, d, cell, dim)
    return sum((page[at // 8] >> at % 8 & 1) << i for i, at in enumerate(places))


def decode_cell(page, codec, side, d, cell, rotation, sketch):
    if codec == "f16":
        return [f16_value(struct.unpack_from("<H", page, 2 * (cell * d + i))[0]) for i in range(d)]
    at = code_bytes(codec, side, d) + 2 * cell
    n = f16_value(struct.unpack_from("<H", page, at)[0])
    codes = [read_code(page, codec, side, d, cell, dim) for dim in range(d)]
    table = trellis_table(codec, side)
    if table:
        z = [n / sqrt(d) * table.step * level for level in trellis_levels(table, side, codes)]
    elif has_bytes(codec, side):
        z = [n / sqrt(d) * STEP_U7 * (c - 64) for c in codes]
    elif codec == "scalar43" and side == "key":
        z = [n / sqrt(d) * STEP4 * LM4[c] for c in codes]
    else:
        z = [n / sqrt(d) * STEP3 * LM3[c & 7] for c in codes]
    if codec == "hybrid" and side == "key":
        r = f16_value(struct.unpack_from("<H", page, at + 128)[0])
        back = transpose_times(sketch, [-1.0 if c & 8 else 1.0 for c in codes])
        z = [a + r * sqrt(pi / 2) / sqrt(d) * b for a, b in zip(z, back)]
    return transpose_times(rotation, z)


# ---- inputs: integer formulas that C++ repeats exactly -----------------------------------------------------------------

MASK64 = (1 << 64) - 1


def splitmix64(seed, index):
    """Output number `index` of splitmix64 with that seed."""
    z = (seed + (index + 1) * 0x9E3779B97F4A7C15) & MASK64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK64
    return z ^ (z >> 31)


def bell(seed, d, exponent):
    """Sums of four 16-bit uniforms, centred, times 2^exponent: integers of 18 bits, exact in fp32."""
    values = []
    for i in range(d):
        z = splitmix64(seed, i)
        parts = (z & 0xFFFF) + (z >> 16 & 0xFFFF) + (z >> 32 & 0xFFFF) + (z >> 48)
        values.append((parts - 131070) * 2.0**exponent)
    return values


def row_values(spec, d):
    """spec: a line `cell kind arguments`; fp32 arguments are hexadecimal bits."""
    kind, args = spec[1], spec[2:]

    def number(text):
        return struct.unpack("<f", struct.pack("<I", int(text, 16)))[0]

    if kind == "zero":
        return [0.0] * d
    if kind == "bell":
        return bell(int(args[0]), d, int(args[1]))
    if kind == "spread":  # fp16-exact magnitudes over many binades, one sign pattern
        seed = int(args[0])
        sizes = [(z >> 1 & 1023) * 2.0 ** ((z >> 11 & 15) - 20) for z in (splitmix64(seed, i) for i in range(d))]
        return [-v if splitmix64(seed, i) & 1 else v for i, v in enumerate(sizes)]  # -0 included
    if kind == "onehot":
        return [number(args[1]) if i == int(args[0]) else 0.0 for i in range(d)]
    if kind == "constant":
        return [number(args[0])] * d
    if kind == "alternate":
        return [number(args[0]) * (1 - 2 * (i % 2)) for i in range(d)]
    if kind == "ramp":
        return [(i - d // 2) * 2.0 ** int(args[0]) for i in range(d)]
    if kind == "pair":
        x = [0.0] * d
        x[int(args[0])], x[int(args[1])] = number(args[2]), number(args[3])
        return x
    raise ValueError(kind)


def hexbits(x):
    return f"{f32_bits(x):08x}"


def tie_pairs(d, cuts, n_wanted):
    """Rows with two non-zero coordinates whose scaled rotation meets a threshold exactly: y = t must take the lower code."""
    found = []
    for t in cuts:
        if not 0.3 < t < 1.35 or len(found) == n_wanted:
            continue
        # y = (a + b) / sqrt(a^2 + b^2) = t up to signs; b / a from the quadratic, a walks until fp32 rounding gives t itself.
        ratio = (1 - sqrt(2 * t * t - t**4)) / (t * t - 1)
        for step in range(4000):
            a = float(2**20 + 977 * step)
            b = f32(a * ratio)
            x = [0.0] * d
            x[0], x[1] = a * sign(D1, 0), b * sign(D1, 1)
            y = scaled_rotation(x, root(dot(x, x)))
            if any(v == t for v in y):
                found.append(("pair", "0", "1", hexbits(x[0]), hexbits(x[1])))
                break
    return found


def byte_ties(d, n_wanted):
    """Rows with two non-zero coordinates for which y * (63 / a) is halfway between integers: the even one must be taken."""
    found = []
    for odd in range(1, 2 * n_wanted, 2):  # (a - b) / (a + b) = odd / 126
        for m in range(1, 4000):
            x = [0.0] * d
            x[0], x[1] = (126.0 + odd) * m * sign(D1, 0), (126.0 - odd) * m * sign(D1, 1)
            y = scaled_rotation(x, root(dot(x, x)))
            scale = div(63.0, max(map(abs, y)))
            if any(mul(v, scale) == odd / 2 for v in y):
                found.append(("pair", "0", "1", hexbits(x[0]), hexbits(x[1])))
                break
    return found


TRELLIS_TIES = {  # y meets a midpoint within a subset, and the cheapest path depends on which code that belongs to
    ("key", 64): ("pair", "1", "37", "c9801e88", "c950ddfe"),
    ("value", 64): ("pair", "1", "17", "c9800000", "c918aaee"),
    ("key", 80): ("pair", "0", "1", "c9801e88", "4950ddfe"),
    ("value", 80): ("pair", "1", "19", "c9800000", "4918aaee"),
    ("key", 96): ("pair", "0", "1", "c9801e88", "4950ddfe"),
    ("value", 96): ("pair", "0", "19", "c980b730", "49584a7e"),
    ("key", 112): ("pair", "0", "1", "c9801e88", "4950ddfe"),
    ("value", 112): ("pair", "1", "65", "c980b730", "c9584a7e"),
    ("key", 128): ("pair", "0", "38", "c9801e88", "4950ddfe"),
    ("value", 128): ("pair", "1", "81", "c980b730", "49584a7e"),
    ("key", 192): ("pair", "0", "4", "c9801e88", "c950ddfe"),
    ("value", 192): ("pair", "0", "102", "c980b730", "c9584a7e"),
    ("key", 256): ("pair", "0", "161", "c9801e88", "4950ddfe"),
    ("value", 256): ("pair", "0", "81", "c980b730", "49584a7e"),
}


def row_specs(codec, side, d):
    cuts = CUT4 if (codec, side) == ("scalar43", "key") else CUT3
    table = trellis_table(codec, side)
    if table:  # thresholds within the four subsets
        cuts = [t for subset in table.cuts for t in subset]
    seed = 1000 * d + (7 if side == "key" else 11)
    if codec == "f16":
        kinds = [
            ("spread", str(seed)),
            ("bell", str(seed + 1), "-15"),
            ("bell", str(seed + 2), "-34"),  # subnormal halves
            ("ramp", "0"),
            ("constant", hexbits(65504.0)),  # the largest half
            ("alternate", hexbits(2.0**-25)),  # a tie at half of the smallest half: rounds to even, zero
        ]
        cells = (0, 63, 5, 32, 1, 17)
    else:
        kinds = [("bell", str(seed + i), "-15") for i in range(8)]
        kinds += [
            ("zero",),
            ("onehot", "0", hexbits(1.0)),
            ("onehot", str(d - 1), hexbits(-3.0)),
            ("constant", hexbits(0.75)),
            ("alternate", hexbits(0.75)),
            ("ramp", "-5"),
            ("spread", str(seed + 20)),
            ("bell", str(seed + 21), "-5"),  # norm about 1e4
            ("bell", str(seed + 22), "2"),  # norm above 65504: stored as 65504
            ("onehot", "3", hexbits(1e18)),
            ("bell", str(seed + 23), "-33"),  # norm a subnormal half
            ("bell", str(seed + 24), "-50"),  # norm rounds to zero, codes remain
            ("bell", str(seed + 25), "-88"),  # the sum of squares is a subnormal float
            ("bell", str(seed + 26), "-149"),  # subnormal floats: the sum underflows, the row counts as zero
            ("pair", "0", "1", hexbits(1.0), hexbits(1.0)),  # half of y is zero: ties at the middle threshold
            ("bell", str(seed + 27), "-15"),
        ]
        kinds += byte_ties(d, 4) if has_bytes(codec, side) else tie_pairs(d, cuts, 4)
        # Out of order; neighbours in a byte of the value planes (t, t + 16); the last row replaces an earlier one.
        order = (0, 16, 63, 47, 1, 15, 31, 32, 48, 17, 5, 21, 62, 33, 49, 8, 24, 40, 56, 2, 18, 34, 50, 0, 9, 10, 11, 12)
        if codec == "k4v3":
            kinds[-1] = TRELLIS_TIES[side, d]
        if table:
            # The same in fewer 32-byte lines: the files stay small.
            order = (0, 16, 63, 35, 1, 7, 39, 32, 48, 17, 5, 21, 62, 33, 49, 6, 22, 38, 54, 2, 18, 34, 50, 0, 3, 4, 19, 20)
        cells = order[: len(kinds)]
    return [(str(cell), *kind) for cell, kind in zip(cells, kinds)]


# ---- files -------------------------------------------------------------------------------------------------------------


def page_lines(page):
    """`offset hex` in lines of 32 bytes; lines of zeros are left out."""
    return [
        f"bytes {at} {bytes(page[at:at + 32]).hex()}" for at in range(0, len(page), 32) if any(page[at : at + 32])
    ]


def golden_page(codec, side, d, rotation, sketch):
    page = bytearray(page_bytes(codec, side, d))
    specs = row_specs(codec, side, d)
    lines = ["# scripts/make_golden.py", f"codec {codec}", f"side {side}", f"head_dim {d}", f"page_bytes {len(page)}"]
    for spec in specs:
        x = [f32(v) for v in row_values(spec, d)]
        cell = int(spec[0])
        if codec == "f16":
            struct.pack_into(f"<{d}H", page, 2 * cell * d, *map(f16_bits, x))
        else:
            write_cell(page, codec, side, d, cell, *encode_row(codec, side, x))
        lines.append("row " + " ".join(spec))
    lines += page_lines(page)
    for cell in sorted({int(spec[0]) for spec in specs} | {3}):
        x = decode_cell(page, codec, side, d, cell, rotation, sketch)
        picks = [x[0], x[1], x[d // 2], x[d - 1]]
        length = sqrt(sum(v * v for v in x))
        checksum = sum((i % 17 - 8) * v for i, v in enumerate(x))
        lines.append(f"decoded {cell} " + " ".join(f"{v:.9g}" for v in [*picks, length, checksum]))
    return "\n".join(lines) + "\n"


DIGEST_CELLS = (0, 21, 42, 63)
DIGEST_DIMS = (64, 80, 128, 256)


def fnv1a(data):
    digest = 0xCBF29CE484222325
    for byte in data:
        digest = (digest ^ byte) * 0x100000001B3 & MASK64
    return digest


def page_digest(codec, side, d):
    """Of a page with rows of the kind bell, whose seeds are their cells."""
    page = bytearray(page_bytes(codec, side, d))
    for cell in DIGEST_CELLS:
        x = [f32(v) for v in bell(cell, d, -15)]
        if codec == "f16":
            struct.pack_into(f"<{d}H", page, 2 * cell * d, *map(f16_bits, x))
        else:
            write_cell(page, codec, side, d, cell, *encode_row(codec, side, x))
    return fnv1a(page)


def digest_header():
    rows = [
        f"    {{KVT_CODEC_{codec.upper()}, KVT_{side.upper()}, {d}, 0x{page_digest(codec, side, d):016x}}},"
        for codec in GOLDEN_CODECS for side in ("key", "value") for d in DIGEST_DIMS
    ]  # fmt: skip
    return "\n".join([
        "// Made by scripts/make_golden.py from docs/format.md alone: FNV-1a of pages with the rows of self_test.cc.",
        "#pragma once",
        "",
        '#include "kvturbo/kvturbo.h"',
        "",
        "#include <cstdint>",
        "",
        "namespace kvt::cli {",
        "",
        "struct GoldenDigest {",
        "  kvt_codec_id codec;",
        "  kvt_side side;",
        "  unsigned head_dim;",
        "  std::uint64_t digest;",
        "};",
        "",
        f"inline constexpr unsigned kDigestCells[] = {{{', '.join(map(str, DIGEST_CELLS))}}};",
        "inline constexpr GoldenDigest kGoldenDigests[] = {",
        *rows,
        "};",
        "",
        "}  // namespace kvt::cli",
        "",
    ])  # fmt: skip


def header_bytes(**changes):
    """A valid header (section 6) with fields replaced; `raw` sets bytes at an offset."""
    field = dict(
        magic=b"KVTC", version=1, header_bytes=64, codec=1, flags=0, dim_k=128, dim_v=128, heads=8, layers=32,
        cells=4096, model=0x0123456789ABCDEF, tokens=64, exact=0,
    )  # fmt: skip
    reserved = bytearray(20)
    for name, value in changes.items():
        if name == "reserved":
            reserved[value] = 1
        else:
            assert name in field
            field[name] = value
    return struct.pack("<4sHHHHHHIIQQHH", *field.values()) + bytes(reserved)


def error_files():
    """name -> text. Each header and page is valid but for what its name says; the `good_` ones are valid."""
    files = {}

    def header(name, status, data):
        files[name] = f"# scripts/make_golden.py\nkind header\nstatus {status}\nheader {data.hex() or '-'}\n"

    good = header_bytes()
    header("good_header", "KVT_OK", good)
    header("good_header_dims_differ", "KVT_OK", header_bytes(codec=2, dim_k=192, dim_v=128))
    header("good_header_f16", "KVT_OK", header_bytes(codec=0, dim_k=64, dim_v=256))
    header("bad_magic", "KVT_ERROR_BAD_MAGIC", header_bytes(magic=b"GGUF"))
    header("bad_magic_case", "KVT_ERROR_BAD_MAGIC", header_bytes(magic=b"kvtc"))
    header("bad_version_0", "KVT_ERROR_BAD_VERSION", header_bytes(version=0))
    header("bad_version_2", "KVT_ERROR_BAD_VERSION", header_bytes(version=2))
    header("bad_version_swapped", "KVT_ERROR_BAD_VERSION", header_bytes(version=256))
    header("header_bytes_128", "KVT_ERROR_BAD_FIELD", header_bytes(header_bytes=128))
    header("good_header_k4v3", "KVT_OK", header_bytes(codec=3, dim_k=80, dim_v=112))
    header("good_header_k8v3", "KVT_OK", header_bytes(codec=8, dim_k=192, dim_v=64))
    for codec in (9, 15, 16, 31, 65535):
        header(f"unknown_codec_{codec}", "KVT_ERROR_UNKNOWN_CODEC", header_bytes(codec=codec))
    header("flag_conditioned_keys", "KVT_ERROR_BAD_FIELD", header_bytes(flags=1))
    header("flag_exact_rows", "KVT_ERROR_BAD_FIELD", header_bytes(flags=2))
    header("flag_unknown", "KVT_ERROR_BAD_FIELD", header_bytes(flags=0x8000))
    for dim in (0, 65, 72, 320):
        header(f"head_dim_k_{dim}", "KVT_ERROR_HEAD_DIM", header_bytes(dim_k=dim))
        header(f"head_dim_v_{dim}", "KVT_ERROR_HEAD_DIM", header_bytes(dim_v=dim))
    header("zero_heads", "KVT_ERROR_BAD_FIELD", header_bytes(heads=0))
    header("zero_layers", "KVT_ERROR_BAD_FIELD", header_bytes(layers=0))
    header("zero_cells", "KVT_ERROR_BAD_FIELD", header_bytes(cells=0))
    header("page_tokens_32", "KVT_ERROR_BAD_FIELD", header_bytes(tokens=32))
    header("exact_rows_4", "KVT_ERROR_BAD_FIELD", header_bytes(exact=4))
    for at in (0, 19):
        header(f"reserved_{44 + at}", "KVT_ERROR_BAD_FIELD", header_bytes(reserved=at))
    header("truncated_63", "KVT_ERROR_TRUNCATED", good[:63])
    header("truncated_4", "KVT_ERROR_TRUNCATED", good[:4])
    header("empty", "KVT_ERROR_TRUNCATED", b"")

    def page(name, status, codec, side, d, *pokes):
        lines = ["# scripts/make_golden.py", "kind page", f"status {status}", f"codec {codec}", f"side {side}", f"head_dim {d}"]
        lines += [f"poke {at} {data.hex()}" for at, data in pokes]
        files[name] = "\n".join(lines) + "\n"

    half = {"minus_one": 0xBC00, "inf": 0x7C00, "minus_inf": 0xFC00, "nan": 0x7E00, "nan_small": 0x7C01, "minus_zero": 0x8000}
    parts = [("hybrid", "key", 128, 2), ("hybrid", "value", 128, 1), ("scalar43", "key", 64, 1), ("scalar43", "value", 80, 1)]
    parts += [("k4v3", "key", 96, 1), ("k4v3", "value", 112, 1), ("k3v3", "key", 80, 1), ("k2v2", "key", 112, 1)]
    parts += [("k2v2", "value", 80, 1), ("k8v4", "key", 64, 1), ("k8v4", "value", 112, 1)]
    for codec, side, d, n_norms in parts:
        at = code_bytes(codec, side, d)
        page(f"good_{codec}_{side}_zero", "KVT_OK", codec, side, d)
        largest = [(at + 2 * i, bytes.fromhex("ff7b")) for i in (0, 64 * n_norms - 1)]
        any_code = (0, b"\x7f" if has_bytes(codec, side) else b"\xff")
        page(f"good_{codec}_{side}_limits", "KVT_OK", codec, side, d, any_code, *largest)
        for part in range(n_norms):
            what = ("norm", "residual")[part]
            for name, bits in half.items():
                cell = (0, 63, 31, 32, 17, 48)[list(half).index(name)]
                poke = (at + 128 * part + 2 * cell, struct.pack("<H", bits))
                page(f"{codec}_{side}_{what}_{name}", "KVT_ERROR_CORRUPT_PAGE", codec, side, d, poke)
    for d in (80, 96, 112):
        rest = 3 * (d // 64) * 256
        last = 2 * part_bytes(3, "value", d) - 1
        page(f"reserved_bit_low_{d}", "KVT_ERROR_CORRUPT_PAGE", "hybrid", "value", d, (rest, b"\x08"))
        page(f"reserved_bit_high_{d}", "KVT_ERROR_CORRUPT_PAGE", "scalar43", "value", d, (last, b"\x80"))
        page(f"reserved_bit_trellis_{d}", "KVT_ERROR_CORRUPT_PAGE", "k4v3", "value", d, (last, b"\x80"))
        page(f"good_rest_codes_{d}", "KVT_OK", "hybrid", "value", d, (rest, b"\x77"), (last, b"\x77"))
        page(f"good_bit_before_rest_{d}", "KVT_OK", "hybrid", "value", d, (rest - 1, b"\x88"))
    for d in (80, 112):
        tile, group = part_bytes(3, "key", d), part_bytes(2, "value", d)
        page(f"reserved_bit_key3_low_{d}", "KVT_ERROR_CORRUPT_PAGE", "k3v3", "key", d, (tile - 128, b"\x08"))
        page(f"reserved_bit_key3_high_{d}", "KVT_ERROR_CORRUPT_PAGE", "k3v2", "key", d, (4 * tile - 1, b"\x80"))
        page(f"good_key3_{d}", "KVT_OK", "k3v3", "key", d, (tile - 129, b"\xff"), (tile - 128, b"\x77"), (4 * tile - 1, b"\x77"))
        page(f"reserved_bit_value2_low_{d}", "KVT_ERROR_CORRUPT_PAGE", "k2v2", "value", d, (group - 256, b"\x04"))
        page(f"reserved_bit_value2_high_{d}", "KVT_ERROR_CORRUPT_PAGE", "k3v2", "value", d, (2 * group - 1, b"\x80"))
        page(f"good_value2_{d}", "KVT_OK", "k2v2", "value", d, (group - 257, b"\xff"), (group - 256, b"\x33"), (2 * group - 1, b"\x33"))
        page(f"good_key2_{d}", "KVT_OK", "k2v2", "key", d, (0, b"\xff"), (code_bytes("k2v2", "key", d) - 1, b"\xff"))
        page(f"good_value4_{d}", "KVT_OK", "k8v4", "value", d, (0, b"\xff"), (code_bytes("k8v4", "value", d) - 1, b"\xff"))
    page("good_value2_96", "KVT_OK", "k2v2", "value", 96, (code_bytes("k2v2", "value", 96) - 1, b"\xff"))
    for at in (0, 64 * 128 - 1):
        page(f"reserved_bit_key8_{at}", "KVT_ERROR_CORRUPT_PAGE", "k8v3", "key", 128, (at, b"\x80"))
        page(f"good_key8_{at}", "KVT_OK", "k8v4", "key", 128, (at, b"\x7f"))
    for side in ("key", "value"):
        last = page_bytes("f16", side, 64) - 2
        page(f"good_f16_{side}", "KVT_OK", "f16", side, 64, (0, b"\x00\x80"), (last, b"\xff\xfb"))
        page(f"f16_{side}_inf", "KVT_ERROR_CORRUPT_PAGE", "f16", side, 64, (0, b"\x00\x7c"))
        page(f"f16_{side}_minus_inf", "KVT_ERROR_CORRUPT_PAGE", "f16", side, 64, (126, b"\x00\xfc"))
        page(f"f16_{side}_nan", "KVT_ERROR_CORRUPT_PAGE", "f16", side, 64, (last, b"\x01\x7e"))
    return files


def check_worked_example():
    """Section 8."""
    codes, norms = encode_row("scalar43", "value", [1.0] + [0.0] * 63)
    assert codes == [2] * 64 and norms == [0x3D40]
    page = bytearray(page_bytes("scalar43", "value", 64))
    assert len(page) == 1664
    write_cell(page, "scalar43", "value", 64, 0, codes, norms)
    expected = bytearray(1664)
    for at, byte in ((0, 0x02), (256, 0x0A), (512, 0x02)):
        for w in range(16):
            expected[at + 4 * w] = byte
    expected[1536:1538] = b"\x40\x3d"
    assert page == expected
    x = decode_cell(page, "scalar43", "value", 64, 0, dense_rotation(64, D1), None)
    assert abs(x[0] - 1.00012) < 5e-6 and max(map(abs, x[1:])) < 1e-12


def check_sizes():
    table = {
        ("f16", "key"): (8192, 10240, 12288, 14336, 16384, 24576, 32768),
        ("f16", "value"): (8192, 10240, 12288, 14336, 16384, 24576, 32768),
        ("hybrid", "key"): (2304, 2816, 3328, 3840, 4352, 6400, 8448),
        ("scalar43", "key"): (2176, 2688, 3200, 3712, 4224, 6272, 8320),
        ("hybrid", "value"): (1664, 2176, 2688, 3200, 3200, 4736, 6272),
        ("scalar43", "value"): (1664, 2176, 2688, 3200, 3200, 4736, 6272),
        ("k4v3", "key"): (2176, 2688, 3200, 3712, 4224, 6272, 8320),
        ("k4v3", "value"): (1664, 2176, 2688, 3200, 3200, 4736, 6272),
        ("k3v3", "key"): (1664, 2176, 2432, 2944, 3200, 4736, 6272),
        ("k3v3", "value"): (1664, 2176, 2688, 3200, 3200, 4736, 6272),
        ("k2v2", "key"): (1152, 1408, 1664, 1920, 2176, 3200, 4224),
        ("k2v2", "value"): (1152, 1664, 1664, 2176, 2176, 3200, 4224),
        ("k8v4", "key"): (4224, 5248, 6272, 7296, 8320, 12416, 16512),
        ("k8v4", "value"): (2176, 2688, 3200, 3712, 4224, 6272, 8320),
    }
    for (codec, side), sizes in table.items():
        assert tuple(page_bytes(codec, side, d) for d in HEAD_DIMS) == sizes, (codec, side)


def check_places():
    """Every bit of a code has its own place, all within the codes' part; and the example of section 4.3."""
    for codec, side in (("hybrid", "value"), ("k4v3", "key"), ("k3v3", "key"), ("k2v2", "key"), ("k2v2", "value"), ("k8v4", "key"),
                        ("k8v4", "value")):  # fmt: skip
        for d in HEAD_DIMS:
            bits = code_bits(codec, side)
            places = [at for cell in range(64) for dim in range(d) for at in bit_places(bits, side, d, cell, dim)]
            assert len(set(places)) == len(places) == 64 * d * bits
            assert max(places) < 8 * code_bytes(codec, side, d)
    assert bit_places(3, "key", 128, 21, 77) == [8 * 1237 + 4, 8 * 1237 + 5, 8 * 1237 + 6]
    assert bit_places(3, "key", 128, 21, 93) == [8 * 1173 + 7, 8 * 1237 + 7, 8 * 1301 + 7]


def check_chains():
    """Every dim lies in one chain, and the circular steps back are those of section 4.4."""
    for d in HEAD_DIMS:
        for side in ("key", "value"):
            assert sorted(sum(chains(side, d), [])) == list(range(d))
        for c, dims in enumerate(chains("key", d)):
            lines = range(c, d // 8, 4)
            for e, dim in enumerate(dims):
                u, before = dim // 8, dims[e - 1] // 8
                assert before == (u - 4 if u >= 4 else lines[-1])


def main():
    check_worked_example()
    check_sizes()
    check_places()
    check_chains()
    tests = Path(__file__).resolve().parent.parent / "tests"
    files = {tests.parent / "cli" / "golden_digests.h": digest_header()}
    files |= {tests / "golden-errors" / f"{name}.txt": text for name, text in error_files().items()}
    for d in HEAD_DIMS:
        rotation, sketch = dense_rotation(d, D1), dense_rotation(d, D2)
        for codec in GOLDEN_CODECS:
            for side in ("key", "value"):
                path = tests / "golden" / f"{codec}_{side}_{d}.txt"
                files[path] = golden_page(codec, side, d, rotation, sketch)
    if sys.argv[1:] == ["--check"]:
        stale = [path.name for path, text in files.items() if not path.exists() or path.read_text() != text]
        if stale:
            sys.exit("differ from scripts/make_golden.py: " + " ".join(stale))
        return
    for path, text in files.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    print(f"{len(files)} files, {sum(map(len, files.values()))} bytes")


if __name__ == "__main__":
    main()
