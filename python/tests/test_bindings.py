"""The bindings against plain numpy attention, against the golden pages of the C library, and with wrong input."""

import math
import pickle
import sys
import threading
import unittest
from pathlib import Path

try:
    import numpy as np
except ImportError:
    print("skipped: python3 has no numpy")
    sys.exit(77)

import kvturbo
from kvturbo import Codec, Error, Header, RecentRows

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
sys.path.append(str(ROOT / "scripts"))
import make_golden  # noqa: E402

try:
    import torch
except ImportError:
    torch = None

# Attention against float64 on the decoded rows. The kernels round queries to 8 bits, at worst 3 sigma / 127 a step: scores of standard
# deviation 1 move by 3 / 127 / sqrt(12) = 0.7 %, and so do weights and output. Three times that is allowed.
KERNEL_ERROR = 0.02


def gaussian(*shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def plain_attention(q, keys, values, scale, addend=0.0, sinks=None, softcap=0.0):
    """[queries, heads, d] over [kv heads, cells, d] in float64; addend: [heads or 1, queries, cells]."""
    n_group = q.shape[1] // keys.shape[0]
    keys, values = (np.repeat(x.astype(np.float64), n_group, axis=0) for x in (keys, values))
    scores = scale * np.einsum("qhd,hcd->hqc", q.astype(np.float64), keys)
    if softcap:
        scores = softcap * np.tanh(scores / softcap)
    weights = np.exp(scores + addend)
    total = weights.sum(-1, keepdims=True)
    if sinks is not None:
        total = total + np.exp(sinks.astype(np.float64))[:, None, None]
    return np.einsum("hqc,hcd->qhd", weights / total, values)


class Base(unittest.TestCase):
    def assert_close(self, got, wanted, tolerance):
        """Relative error of the whole array, in the Euclidean norm."""
        error = np.linalg.norm(np.asarray(got, np.float64) - wanted) / np.linalg.norm(wanted)
        self.assertLess(error, tolerance)


class Sizes(Base):
    def test_names_and_sizes(self):
        names = kvturbo.codec_names()
        self.assertEqual(names[:4], ["f16", "hybrid", "scalar43", "k4v3"])
        self.assertEqual(kvturbo.page_bytes("k4v3", "key", 128), 4224)  # docs/format.md, section 1
        self.assertEqual(kvturbo.page_bytes("k4v3", "value", 128), 3200)
        codec = Codec("k4v3", 128, 64)
        self.assertEqual((codec.page_bytes("key"), codec.page_bytes("value")), (4224, 1664))
        self.assertEqual(codec.new_pages("key", 65, heads=3).shape, (3, 2, 4224))
        self.assertIn(codec.isa, ["scalar", "avx2", "avxvnni", "avx512", "neon"])

    def test_codec_survives_pickling(self):
        codec = pickle.loads(pickle.dumps(Codec("k3v2", 64, 80)))
        self.assertEqual((codec.name, codec.head_dim_k, codec.head_dim_v), ("k3v2", 64, 80))

    def test_header(self):
        header = Header("k4v3", 128, 64, n_kv_heads=8, n_layers=32, n_cells=1000, model_hash=2**63 + 1)
        data = header.to_bytes()
        self.assertEqual((len(data), data[:4]), (Header.BYTES, b"KVTC"))
        self.assertEqual(Header.from_bytes(data + b"pages"), header)
        for damaged in (data[:63], b"XXXX" + data[4:], data[:8] + b"\xff\xff" + data[10:]):
            with self.assertRaises(Error):
                Header.from_bytes(damaged)
        with self.assertRaises(Error):
            Header("k4v3", 100, 64, 8, 32, 1000).to_bytes()


class Rows(Base):
    def test_round_trip_of_heads(self):
        for name, tolerance in (("f16", 1e-3), ("k8v4", 0.15), ("k4v3", 0.25)):
            codec = Codec(name, 96)
            rows = gaussian(2, 3, 70, 96)
            for side in ("key", "value"):
                pages = codec.encode(side, rows)
                self.assertEqual(pages.shape, (2, 3, 2, codec.page_bytes(side)))
                codec.validate(side, pages)
                self.assert_close(codec.decode(side, pages, 70), rows, tolerance)
                self.assertFalse(codec.decode(side, pages)[:, :, 70:].any())

    def test_cells_are_written_where_asked(self):
        codec = Codec("f16", 64)
        rows = gaussian(3, 64).astype(np.float16).astype(np.float32)
        pages = codec.new_pages("key", 200)
        self.assertIs(codec.encode("key", rows, pages, cells=[130, 5, 64]), pages)
        decoded = codec.decode("key", pages)
        np.testing.assert_array_equal(decoded[[130, 5, 64]], rows)
        self.assertEqual(np.count_nonzero(decoded.any(-1)), 3)
        np.testing.assert_array_equal(codec.decode("key", pages, first=64, n_cells=1), rows[2:])

    def test_strided_and_half_input_gives_the_same_bytes(self):
        codec = Codec("k4v3", 64)
        rows = gaussian(5, 4, 64).astype(np.float16)
        wanted = codec.encode("key", rows.astype(np.float32).transpose(1, 0, 2).copy())
        np.testing.assert_array_equal(codec.encode("key", rows.transpose(1, 0, 2)), wanted)
        np.testing.assert_array_equal(codec.encode("key", rows.astype(np.float32).transpose(1, 0, 2)), wanted)

    def test_golden_pages(self):
        for path in sorted(GOLDEN.glob("*_80.txt")):
            name, side, rows, cells, page = read_golden(path)
            codec = Codec(name, 80)
            np.testing.assert_array_equal(codec.encode(side, rows, codec.new_pages(side, 64), cells)[0], page, path.name)


def read_golden(path):
    """Codec, side, rows, their cells and the page that they make. The rows' formulas are those of scripts/make_golden.py."""
    lines = [line.split() for line in path.read_text().splitlines()]
    fields = {line[0]: line[1] for line in lines if len(line) == 2}
    page = np.zeros(int(fields["page_bytes"]), np.uint8)
    specs = [line[1:] for line in lines if line[0] == "row"]
    for _, offset, digits in (line for line in lines if line[0] == "bytes"):
        part = np.frombuffer(bytes.fromhex(digits), np.uint8)
        page[int(offset) : int(offset) + len(part)] = part
    rows = np.array([make_golden.row_values(spec, int(fields["head_dim"])) for spec in specs], np.float32)
    return fields["codec"], fields["side"], rows, [int(spec[0]) for spec in specs], page


class Attention(Base):
    heads, kv_heads, cells, head_dim = 6, 2, 150, 64

    def setUp(self):
        self.codec = Codec("k4v3", self.head_dim)
        self.keys, self.values = gaussian(2, self.kv_heads, self.cells, self.head_dim)
        self.k_pages, self.v_pages = self.codec.encode("key", self.keys), self.codec.encode("value", self.values)
        self.k = self.codec.decode("key", self.k_pages, self.cells)
        self.v = self.codec.decode("value", self.v_pages, self.cells)
        self.q = gaussian(4, self.heads, self.head_dim, seed=2)
        self.scale = 1 / math.sqrt(self.head_dim)

    def check(self, wanted, tolerance=KERNEL_ERROR, **arguments):
        self.assert_close(self.codec.attend(self.q, self.k_pages, self.v_pages, self.cells, **arguments), wanted, tolerance)

    def test_plain_and_threads(self):
        wanted = plain_attention(self.q, self.k, self.v, self.scale)
        self.check(wanted)
        self.check(wanted, n_threads=3)
        self.check(plain_attention(self.q, self.k, self.v, 0.05), scale=0.05)

    def test_fewer_cells(self):
        got = self.codec.attend(self.q, self.k_pages, self.v_pages, 65)
        self.assert_close(got, plain_attention(self.q, self.k[:, :65], self.v[:, :65], self.scale), KERNEL_ERROR)
        self.assertFalse(self.codec.attend(self.q, self.k_pages, self.v_pages, 0).any())

    def test_masks(self):
        seen = np.arange(self.cells) <= np.arange(self.cells - 4, self.cells)[:, None]
        wanted = plain_attention(self.q, self.k, self.v, self.scale, np.where(seen, 0, -np.inf))
        self.check(wanted, causal=True)
        self.check(wanted, mask=seen)
        self.check(wanted, mask=np.where(seen, 0, -np.inf))
        by_head = gaussian(self.heads, 4, self.cells, seed=3).astype(np.float16)
        slopes = np.linspace(0.5, 1.5, self.heads)
        self.check(plain_attention(self.q, self.k, self.v, self.scale, slopes[:, None, None] * by_head), mask=by_head, slopes=slopes)

    def test_sinks_and_softcap(self):
        sinks = np.linspace(-1, 3, self.heads)
        self.check(plain_attention(self.q, self.k, self.v, self.scale, sinks=sinks, softcap=2.0), sinks=sinks, logit_softcap=2.0)

    def test_conditioned_keys(self):
        means = kvturbo.KeyMeans.of(5 * gaussian(self.kv_heads, -(-self.cells // 64), self.head_dim, seed=4), n_cells=64)
        mean = means.values()[:, np.arange(self.cells) // 64]
        channel = 1 + gaussian(self.kv_heads, self.head_dim, seed=5) ** 2
        raw = self.keys * channel[:, None] + mean
        self.k_pages = self.codec.encode("key", (raw - mean) / channel[:, None])
        decoded = self.codec.decode("key", self.k_pages, self.cells) * channel[:, None] + mean
        self.check(plain_attention(self.q, decoded, self.v, self.scale), key_scale=channel, key_means=means)
        with self.assertRaises(ValueError):
            self.check(decoded, key_means=kvturbo.KeyMeans(means.codes[:, :1], means.units[:, :1], 64))

    def test_exact_and_recent_rows(self):
        n_exact, n_recent, window = 4, 10, 6
        cells = np.arange(self.cells - n_recent, self.cells)
        mixed_k, mixed_v = self.k.copy(), self.v.copy()
        for mixed, raw in ((mixed_k, self.keys), (mixed_v, self.values)):
            mixed[:, :n_exact] = raw[:, :n_exact]
            mixed[:, -window:] = raw[:, -window:]
        recent = RecentRows(cells, self.keys[:, cells], self.values[:, cells], window)
        wanted = plain_attention(self.q, mixed_k, mixed_v, self.scale)
        arguments = dict(exact_keys=self.keys[:, :n_exact], exact_values=self.values[:, :n_exact], recent=recent)
        self.check(wanted, **arguments)
        # And the exact rows matter: without them the result is further away.
        plain = self.codec.attend(self.q, self.k_pages, self.v_pages, self.cells)
        exact = self.codec.attend(self.q, self.k_pages, self.v_pages, self.cells, **arguments)
        self.assertLess(np.linalg.norm(exact - wanted), np.linalg.norm(plain - wanted))

    def test_streams(self):
        shift = [np.stack([p, np.roll(p, 1, axis=0)]) for p in (self.k_pages, self.v_pages)]
        got = self.codec.attend(np.stack([self.q, self.q / 2]), *shift, self.cells)
        self.assert_close(got[0], plain_attention(self.q, self.k, self.v, self.scale), KERNEL_ERROR)
        self.assert_close(got[1], plain_attention(self.q / 2, self.k[::-1], self.v[::-1], self.scale), KERNEL_ERROR)

    def test_masks_of_streams(self):
        pages = [np.stack([p, p]) for p in (self.k_pages, self.v_pages)]
        seen = np.ones((2, 1, 4, self.cells), bool)
        seen[1, ..., :100] = False
        got = self.codec.attend(np.stack([self.q, self.q]), *pages, self.cells, mask=seen)
        self.assert_close(got[0], plain_attention(self.q, self.k, self.v, self.scale), KERNEL_ERROR)
        self.assert_close(got[1], plain_attention(self.q, self.k[:, 100:], self.v[:, 100:], self.scale), KERNEL_ERROR)

    def test_many_threads_share_a_codec(self):
        wanted = self.codec.attend(self.q, self.k_pages, self.v_pages, self.cells)
        results = [None] * 4

        def run(i):
            results[i] = self.codec.attend(self.q, self.k_pages, self.v_pages, self.cells)

        threads = [threading.Thread(target=run, args=(i,)) for i in range(len(results))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for result in results:
            np.testing.assert_array_equal(result, wanted)


class Refusals(Base):
    def refused(self, kind, text, call):
        with self.assertRaisesRegex(kind, text):
            call()

    def test_codecs(self):
        self.refused(Error, "kvt_codec_from_name: ", lambda: Codec("k9v9"))
        self.refused(Error, "kvt_codec_create: .*head dim", lambda: Codec("k4v3", 100))
        self.refused(ValueError, "head dim 100", lambda: kvturbo.page_bytes("k4v3", "key", 100))
        self.refused(ValueError, "'key' or 'value'", lambda: kvturbo.page_bytes("k4v3", "both", 64))

    def test_rows(self):
        codec, rows = Codec("k4v3", 64), gaussian(3, 64)
        pages = codec.new_pages("key", 64)
        self.refused(ValueError, "rows have shape", lambda: codec.encode("key", rows[:, :60]))
        self.refused(ValueError, "3 integers", lambda: codec.encode("key", rows, pages, [1, 2]))
        self.refused(ValueError, "3 integers", lambda: codec.encode("key", rows, pages, [1.0, 2.0, 3.0]))
        self.refused(IndexError, "65 cells are asked of 1 key pages", lambda: codec.encode("key", rows, pages, [1, 64, 2]))
        self.refused(Error, "kvt_encode: .*cell", lambda: codec.encode("key", rows, pages, [1, -1, 2]))
        self.refused(ValueError, "leading axes", lambda: codec.encode("key", rows, pages[None]))
        self.refused(ValueError, "value pages", lambda: codec.encode("value", rows, pages))
        self.refused(ValueError, "uint8", lambda: codec.encode("key", rows, pages.astype(np.int16)))
        with self.assertRaises(Error) as raised:
            codec.encode("key", rows * np.float32(np.inf), pages)
        self.assertEqual(raised.exception.code, 14)  # KVT_ERROR_NOT_FINITE
        self.assertFalse(pages.any())
        pages.flags.writeable = False
        self.refused(ValueError, "read-only", lambda: codec.encode("key", rows, pages))
        self.refused(TypeError, "not numbers", lambda: codec.encode("key", rows.astype(complex)))

    def test_pages(self):
        codec = Codec("k4v3", 64)
        pages = codec.new_pages("key", 64)
        self.refused(IndexError, "65 cells", lambda: codec.decode("key", pages, 65))
        self.refused(IndexError, "negative", lambda: codec.decode("key", pages, 2, first=-1))
        pages[0, -128:] = 0xFF
        self.refused(Error, "kvt_validate_pages: ", lambda: codec.validate("key", pages))

    def test_attention(self):
        codec, q = Codec("k4v3", 64), gaussian(1, 4, 64)
        k, v = codec.new_pages("key", 100, heads=2), codec.new_pages("value", 100, heads=2)
        self.refused(IndexError, "129 cells", lambda: codec.attend(q, k, v, 129))
        self.refused(IndexError, "129 cells are asked of 2 value", lambda: codec.attend(q, codec.new_pages("key", 129, heads=2), v, 129))
        self.refused(ValueError, "q has shape", lambda: codec.attend(q[0], k, v, 100))
        self.refused(ValueError, "v_pages has shape", lambda: codec.attend(q, k, v[:1], 100))
        self.refused(ValueError, "4 query heads cannot share 3", lambda: codec.attend(q, k[[0, 0, 1]], v[[0, 0, 1]], 100))
        self.refused(ValueError, "mask has shape", lambda: codec.attend(q, k, v, 100, mask=np.zeros((1, 99))))
        self.refused(ValueError, "exclude each other", lambda: codec.attend(q, k, v, 100, mask=np.zeros((1, 100)), causal=True))
        self.refused(ValueError, "together", lambda: codec.attend(q, k, v, 100, exact_keys=gaussian(2, 4, 64)))
        self.refused(ValueError, "sinks has shape", lambda: codec.attend(q, k, v, 100, sinks=np.zeros(3)))
        rows = gaussian(2, 65, 64)
        self.refused(Error, "kvt_attend: ", lambda: codec.attend(q, k, v, 100, exact_keys=rows, exact_values=rows))


class DlpackArray:
    """An array that speaks DLPack and nothing else."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **arguments):
        return self.array.__dlpack__(**arguments)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


class Foreign(Base):
    def test_dlpack(self):
        codec, rows = Codec("k4v3", 64), gaussian(70, 64)
        np.testing.assert_array_equal(codec.encode("key", DlpackArray(rows)), codec.encode("key", rows))

    @unittest.skipIf(torch is None, "no torch here")
    def test_torch(self):
        codec, rows = Codec("k4v3", 64), gaussian(2, 70, 64)
        wanted = codec.encode("key", rows)
        pages = codec.encode("key", torch.from_numpy(rows))
        self.assertIsInstance(pages, torch.Tensor)
        np.testing.assert_array_equal(pages.numpy(), wanted)
        target = torch.zeros_like(pages)
        self.assertIs(codec.encode("key", torch.from_numpy(rows), target), target)
        self.assertTrue(torch.equal(target, pages))
        rounded = torch.from_numpy(rows).bfloat16()
        np.testing.assert_array_equal(codec.encode("key", rounded).numpy(), codec.encode("key", rounded.float().numpy()))
        self.assertIsInstance(codec.decode("key", pages, 70), torch.Tensor)
        q = torch.from_numpy(gaussian(3, 4, 64))
        out = codec.attend(q, pages, codec.encode("value", torch.from_numpy(rows)), 70)
        np.testing.assert_array_equal(out.numpy(), codec.attend(q.numpy(), wanted, codec.encode("value", rows), 70))


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[1:]])
