"""Codec: pages, encoding, decoding and attention. Shapes are given as [axis, axis]; `...` stands for any leading axes."""

from __future__ import annotations

import ctypes
import math
from concurrent.futures import ThreadPoolExecutor
from ctypes import byref, c_int, c_void_p
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ._arrays import floats, like, view
from ._library import PAGE_TOKENS, AttentionStruct, library

Side = Literal["key", "value"]
_SIDES = {"key": 0, "value": 1}


def codec_id(name: str) -> int:
    """The number of a codec. Raises Error for an unknown name."""
    found = c_int()
    library.kvt_codec_from_name(name.encode(), byref(found))
    return found.value


def codec_names() -> list[str]:
    """All codecs of the loaded library, by number."""
    names: list[str] = []
    while (name := library.kvt_codec_name(len(names))) is not None:
        names.append(name.decode())
    return names


def library_version() -> str:
    """The version of the loaded library."""
    return library.kvt_version().decode()


def page_bytes(codec: str, side: Side, head_dim: int) -> int:
    """Bytes of one page, 64 tokens of one kv head. A token costs a 64th of it."""
    size = library.kvt_page_bytes_for(codec_id(codec), _side(side), head_dim)
    if size == 0:
        raise ValueError(f"no pages for head dim {head_dim}: it must be 64, 80, 96, 112, 128, 192 or 256")
    return size


@dataclass
class RecentRows:
    """The newest cells in fp16, which queries attend instead of their codes (kvturbo.h, kvt_attention).

    cells: [n_streams, n] or [n], oldest first, -1 for no entry.
    keys: raw (not conditioned), [n_streams, n_kv_heads, n, head_dim_k] or without streams; values likewise.
    window: how many of them a query attends exactly, 1 to 64.
    own: the entry of query 0's own token, if the queries' tokens are the last entries in their order; by default the last entry.
    """

    cells: Any
    keys: Any
    values: Any
    window: int
    own: int | None = None


@dataclass
class KeyMeans:
    """What was subtracted from keys before they were encoded: codes * units[..., None], one mean for every n_cells cells.

    codes: int8 [n_streams, n_kv_heads, n_means, head_dim_k] or without streams; units: float [n_streams, n_kv_heads, n_means].
    n_cells: a multiple of 64.
    """

    codes: Any
    units: Any
    n_cells: int = 512

    @classmethod
    def of(cls, means: Any, n_cells: int = 512) -> KeyMeans:
        """The nearest ones to means, float [..., n_means, head_dim_k]. Subtract values(), not means, from the keys."""
        wanted = floats(means, "means")
        units = np.abs(wanted).max(axis=-1) / 127
        codes = np.rint(wanted / np.where(units > 0, units, 1)[..., None]).astype(np.int8)
        return cls(codes, units, n_cells)

    def values(self) -> np.ndarray:
        """float32 [..., n_means, head_dim_k]"""
        return self.codes * floats(self.units, "units")[..., None]


class Codec:
    """A codec for one pair of head dims. Immutable; any number of threads may use it at once."""

    def __init__(self, name: str = "k4v3", head_dim: int = 128, head_dim_v: int | None = None) -> None:
        """Head dims: 64, 80, 96, 112, 128, 192 or 256. Raises Error for an unknown codec or head dim."""
        self._handle = c_void_p()  # __del__ needs it even if the next line raises
        self.id = codec_id(name)
        self.name = name
        self.head_dim_k = head_dim
        self.head_dim_v = head_dim if head_dim_v is None else head_dim_v
        library.kvt_codec_create(self.id, self.head_dim_k, self.head_dim_v, byref(self._handle))

    def __del__(self) -> None:
        library.kvt_codec_destroy(self._handle)

    def __repr__(self) -> str:
        return f"Codec({self.name!r}, head_dim={self.head_dim_k}, head_dim_v={self.head_dim_v})"

    def __reduce__(self) -> tuple:
        return Codec, (self.name, self.head_dim_k, self.head_dim_v)

    @property
    def isa(self) -> str:
        """The kernels in use: "avx512", "avx2", ... Chosen once a process, or named by KVTURBO_ISA."""
        return library.kvt_codec_isa(self._handle).decode()

    def page_bytes(self, side: Side) -> int:
        """Bytes of one page (64 tokens of one kv head)."""
        return library.kvt_page_bytes(self._handle, _side(side))

    def head_dim(self, side: Side) -> int:
        return self.head_dim_v if _side(side) else self.head_dim_k

    def new_pages(self, side: Side, n_cells: int, *leading: int, heads: int | None = None) -> np.ndarray:
        """Empty pages for n_cells cells: zeros, uint8 [*leading, heads, n_pages, page_bytes]; every cell decodes to zeros."""
        axes = leading if heads is None else (*leading, heads)
        return np.zeros((*axes, -(-n_cells // PAGE_TOKENS), self.page_bytes(side)), np.uint8)

    def encode(self, side: Side, rows: Any, pages: Any = None, cells: Any = None) -> Any:
        """Encodes rows into cells and returns the pages.

        rows: float [..., n, head_dim], finite.
        pages: uint8 [..., n_pages, page_bytes], written in place; None makes new ones that just hold the cells.
        cells: int [n], the cell of each row, the same for all leading axes; by default 0 .. n - 1. Of two rows for one cell the later stays.
        Two threads must not write one page at once. Raises IndexError for cells beyond the pages, and Error for negative cells and
        for rows that are not finite; of several heads, those before the refused one are written by then.
        """
        which = _side(side)
        x = floats(rows, "rows")
        if x.ndim < 2 or x.shape[-1] != self.head_dim(side):
            raise ValueError(f"rows have shape {list(x.shape)}: they must be [..., n, {self.head_dim(side)}]")
        n = x.shape[-2]
        targets = np.arange(n, dtype=np.int64) if cells is None else np.ascontiguousarray(view(cells, "cells"))
        if targets.shape != (n,) or targets.dtype.kind not in "iu":
            raise ValueError(f"cells must be {n} integers, one for each row")
        targets = targets.astype(np.int64, copy=False)
        n_cells = int(targets.max()) + 1 if n else 0
        made = pages is None
        if made:
            pages = like(self.new_pages(side, n_cells, *x.shape[:-2]), rows)
        p = self._pages(side, pages, n_cells)
        if p.shape[:-2] != x.shape[:-2]:
            raise ValueError(f"rows have the leading axes {list(x.shape[:-2])}, and pages {list(p.shape[:-2])}: they must be the same")
        if not p.flags.writeable:
            raise ValueError("pages are read-only: give a writable array")
        if x.strides[-2] % x.itemsize or x.strides[-2] < x.shape[-1] * x.itemsize:
            x = np.ascontiguousarray(x)
        for index in np.ndindex(*x.shape[:-2]):
            head, head_pages = x[index], p[index]
            library.kvt_encode(self._handle, which, _address(head), head.strides[0] // x.itemsize, n, _address(targets),
                               _address(head_pages), head_pages.strides[0])
        return pages

    def decode(self, side: Side, pages: Any, n_cells: int | None = None, first: int = 0) -> Any:
        """The cells first .. first + n_cells - 1 (by default all) of pages [..., n_pages, page_bytes]: float32 [..., n_cells, head_dim].

        Any bytes decode to some numbers; `validate` checks bytes that come from outside.
        """
        which = _side(side)
        p = self._pages(side, pages, 0)
        if n_cells is None:
            n_cells = p.shape[-2] * PAGE_TOKENS - first
        self._pages(side, pages, first + n_cells)
        if first < 0 or n_cells < 0:
            raise IndexError("first and n_cells must not be negative")
        rows = np.empty((*p.shape[:-2], n_cells, self.head_dim(side)), np.float32)
        for index in np.ndindex(*p.shape[:-2]):
            head_pages, head = p[index], rows[index]
            library.kvt_decode(self._handle, which, _address(head_pages), head_pages.strides[0], first, n_cells, _address(head),
                               rows.shape[-1])
        return like(rows, pages)

    def validate(self, side: Side, pages: Any) -> None:
        """Raises Error if pages [..., n_pages, page_bytes] hold bytes that no encoder writes (docs/format.md, section 7)."""
        p = self._pages(side, pages, 0)
        for index in np.ndindex(*p.shape[:-2]):
            library.kvt_validate_pages(self._handle, _side(side), _address(p[index]), p[index].strides[0], p.shape[-2])

    def attend(self, q: Any, k_pages: Any, v_pages: Any, n_cells: int, *, scale: float | None = None, mask: Any = None,
               causal: bool = False, logit_softcap: float = 0.0, slopes: Any = None, sinks: Any = None, key_scale: Any = None,
               key_means: KeyMeans | None = None, exact_keys: Any = None, exact_values: Any = None, recent: RecentRows | None = None,
               n_threads: int = 1) -> Any:
        """softmax(scale * Q K^T + mask) V on the codes, grouped-query: query head h reads kv head h // (n_heads / n_kv_heads).

        q: float [n_queries, n_heads, head_dim_k]. Returns float32 [n_queries, n_heads, head_dim_v].
        k_pages: uint8 [n_kv_heads, n_pages, page_bytes]; v_pages likewise. Cells 0 .. n_cells - 1 are attended.
        With one more axis [n_streams, ...] in front of q and both pages: independent sequences, and so of the result.
        scale: by default 1 / sqrt(head_dim_k).
        mask: float, added to the scores, or bool, True for cells to attend; [n_queries, n_cells], or with [n_heads] or
            [n_streams, n_heads] in front, where 1 stands for the same for all.
        causal: the queries are the last n_queries cells, and each sees the cells up to its own. Not together with mask.
        slopes, sinks: float [n_heads]: ALiBi slopes that multiply the mask; one score more in the softmax's denominator.
        key_scale, key_means: where keys were encoded as (k - mean) / key_scale; key_scale: float [n_kv_heads, head_dim_k].
        exact_keys, exact_values: float [n_kv_heads, n, head_dim], n <= 64, raw rows of the first n cells, attended in fp16;
            [n_streams, ...] with streams.
        recent: the newest rows, attended in fp16.
        n_threads: the result depends on it within rounding.
        """
        a, kept = self._attention(q, k_pages, v_pages, n_cells, scale, mask, causal, logit_softcap, slopes, sinks, key_scale,
                                  key_means, exact_keys, exact_values, recent)
        out = kept["out"]
        if n_threads <= 1:
            library.kvt_attend(self._handle, byref(a))
        else:
            self._attend_threads(a, n_threads)
        return like(out if view(q, "q").ndim == 4 else out[0], q)

    # ---- checks, and the C structure --------------------------------------------------------------------------------

    def _pages(self, side: Side, pages: Any, n_cells: int) -> np.ndarray:
        """The pages as uint8 [..., n_pages, page_bytes], if they are that and hold n_cells cells."""
        p = view(pages, f"{side} pages")
        size = self.page_bytes(side)
        if p.dtype != np.uint8 or p.ndim < 2 or p.shape[-1] != size or (p.size and p.strides[-1] != 1) or p.strides[-2] < size:
            raise ValueError(f"{side} pages are {p.dtype} {list(p.shape)}: they must be uint8 [..., n_pages, {size}], pages contiguous")
        if n_cells > p.shape[-2] * PAGE_TOKENS:
            raise IndexError(f"{n_cells} cells are asked of {p.shape[-2]} {side} pages, which hold {p.shape[-2] * PAGE_TOKENS}")
        return p

    def _attention(self, q: Any, k_pages: Any, v_pages: Any, n_cells: int, scale: float | None, mask: Any, causal: bool,
                   logit_softcap: float, slopes: Any, sinks: Any, key_scale: Any, key_means: KeyMeans | None, exact_keys: Any,
                   exact_values: Any, recent: RecentRows | None) -> tuple[AttentionStruct, dict[str, np.ndarray]]:
        """The structure, and the arrays it points into."""
        if n_cells < 0:
            raise IndexError("n_cells must not be negative")
        queries = floats(q, "q")
        with_streams = queries.ndim == 4
        if queries.ndim not in (3, 4) or queries.shape[-1] != self.head_dim_k:
            raise ValueError(f"q has shape {list(queries.shape)}: it must be [n_queries, n_heads, {self.head_dim_k}], or with [n_streams] in front")
        queries = queries if with_streams else queries[None]
        n_streams, n_queries, n_heads, _ = queries.shape

        def streamed(array: np.ndarray, axes: tuple[int | None, ...], name: str) -> np.ndarray:
            """With a stream axis in front, and of that shape (None: any)."""
            array = array if with_streams else array[None]
            wanted = (n_streams, *axes)
            if array.ndim != len(wanted) or any(w is not None and s != w for s, w in zip(array.shape, wanted)):
                shown = ["any" if w is None else w for w in (wanted if with_streams else wanted[1:])]
                raise ValueError(f"{name} has shape {list(array.shape[0 if with_streams else 1:])}: it must be {shown}")
            return array

        k = streamed(self._pages("key", k_pages, n_cells), (None, None, None), "k_pages")
        n_kv_heads = k.shape[1]
        v = streamed(self._pages("value", v_pages, n_cells), (n_kv_heads, None, None), "v_pages")
        if n_kv_heads == 0 or n_heads % n_kv_heads:
            raise ValueError(f"{n_heads} query heads cannot share {n_kv_heads} kv heads: give a multiple")
        out = np.empty((n_streams, n_queries, n_heads, self.head_dim_v), np.float32)
        kept = {"q": queries, "k": k, "v": v, "out": out}
        a = AttentionStruct(struct_size=ctypes.sizeof(AttentionStruct), n_streams=n_streams, n_kv_heads=n_kv_heads,
                            n_group=n_heads // n_kv_heads, n_queries=n_queries, n_cells=n_cells, logit_softcap=logit_softcap,
                            scale=1 / math.sqrt(self.head_dim_k) if scale is None else scale)
        a.k_pages, a.v_pages, a.q, a.out = _address(k), _address(v), _address(queries), _address(out)
        a.k_stream_stride, a.k_head_stride, a.k_page_stride, _ = k.strides
        a.v_stream_stride, a.v_head_stride, a.v_page_stride, _ = v.strides
        a.q_stream_stride, a.q_query_stride, a.q_head_stride, _ = queries.strides
        a.out_stream_stride, a.out_query_stride, a.out_head_stride, _ = out.strides

        bits = _mask(mask, causal, n_streams, n_heads, n_queries, n_cells)
        if bits is not None:
            kept["mask"] = bits
            a.mask, a.mask_query_stride = _address(bits), bits.strides[-2]
            a.mask_stream_stride = bits.strides[0] if bits.shape[0] > 1 else 0
            a.mask_head_stride = bits.strides[1] if bits.shape[1] > 1 else 0
        for name, array, shape in (("slopes", slopes, (n_heads,)), ("sinks", sinks, (n_heads,)),
                                   ("key_scale", key_scale, (n_kv_heads, self.head_dim_k))):
            if array is not None:
                kept[name] = _of_shape(np.ascontiguousarray(floats(array, name)), shape, name)
                setattr(a, name, _address(kept[name]))
        a.key_scale_head_stride = self.head_dim_k * 4
        if key_means is not None:
            n_means = -(-n_cells // key_means.n_cells)
            codes = streamed(np.ascontiguousarray(view(key_means.codes, "key means"), np.int8), (n_kv_heads, None, self.head_dim_k), "key means")
            units = streamed(np.ascontiguousarray(floats(key_means.units, "units of key means")), (n_kv_heads, codes.shape[2]), "units of key means")
            if codes.shape[2] < n_means:
                raise ValueError(f"{codes.shape[2]} key means of {key_means.n_cells} cells are too few for {n_cells} cells: give {n_means}")
            kept["key_mean"], kept["key_mean_unit"] = codes, units
            a.key_mean, a.key_mean_stream_stride, a.key_mean_head_stride = _address(codes), codes.strides[0], codes.strides[1]
            a.key_mean_unit = _address(units)
            a.key_mean_unit_stream_stride, a.key_mean_unit_head_stride = units.strides[0], units.strides[1]
            a.mean_cells = key_means.n_cells

        def half_rows(keys: Any, values: Any, name: str) -> int:
            """Fills name_k, name_v and their strides; returns the number of rows."""
            n_rows = None
            for letter, rows, head_dim in (("k", keys, self.head_dim_k), ("v", values, self.head_dim_v)):
                halves = np.ascontiguousarray(floats(rows, f"{name} rows", np.float16))
                halves = streamed(halves, (n_kv_heads, n_rows, head_dim), f"{name} rows")
                n_rows = halves.shape[2]
                kept[f"{name}_{letter}"] = halves
                setattr(a, f"{name}_{letter}", _address(halves))
                setattr(a, f"{name}_{letter}_stream_stride", halves.strides[0])
                setattr(a, f"{name}_{letter}_head_stride", halves.strides[1])
            return n_rows or 0

        if (exact_keys is None) != (exact_values is None):
            raise ValueError("exact_keys and exact_values go together: give both or none")
        if exact_keys is not None:
            a.n_exact = half_rows(exact_keys, exact_values, "exact")
        if recent is not None:
            a.n_recent = half_rows(recent.keys, recent.values, "recent")
            cells = streamed(np.ascontiguousarray(view(recent.cells, "recent cells"), np.int32), (a.n_recent,), "recent cells")
            kept["recent_cells"] = cells
            a.recent_cells, a.recent_cells_stream_stride = _address(cells), cells.strides[0]
            a.recent_window = recent.window
            a.recent_own = a.n_recent - 1 if recent.own is None else recent.own
        return a, kept

    def _attend_threads(self, a: AttentionStruct, n_threads: int) -> None:
        size = library.kvt_attend_workspace_bytes(self._handle, byref(a), n_threads)
        memory = np.zeros(size + 63, np.uint8)
        start = _address(memory) + -_address(memory) % 64
        with ThreadPoolExecutor(n_threads) as pool:
            shares = [pool.submit(library.kvt_attend_thread, self._handle, byref(a), start, t, n_threads) for t in range(n_threads)]
            for share in shares:
                share.result()


def _side(side: Side) -> int:
    if side not in _SIDES:
        raise ValueError(f"side {side!r}: it must be 'key' or 'value'")
    return _SIDES[side]


def _address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def _of_shape(array: np.ndarray, shape: tuple[int, ...], name: str) -> np.ndarray:
    if array.shape != shape:
        raise ValueError(f"{name} has shape {list(array.shape)}: it must be {list(shape)}")
    return array


def _mask(mask: Any, causal: bool, n_streams: int, n_heads: int, n_queries: int, n_cells: int) -> np.ndarray | None:
    """fp16 [n_streams or 1, n_heads or 1, n_queries, n_cells], cells contiguous; None for no mask."""
    if causal:
        if mask is not None:
            raise ValueError("causal and mask exclude each other: put the causal part into the mask")
        if n_queries > n_cells:
            raise ValueError(f"causal: {n_queries} queries cannot be the last of {n_cells} cells")
        mask = np.arange(n_cells) <= np.arange(n_cells - n_queries, n_cells)[:, None]
    if mask is None:
        return None
    values = view(mask, "mask")
    if values.dtype == bool:
        values = np.where(values, np.float16(0), np.float16(-np.inf))
    values = np.ascontiguousarray(floats(values, "mask", np.float16))
    full = values.reshape((1,) * max(0, 4 - values.ndim) + values.shape)
    allowed = ({1, n_streams}, {1, n_heads}, {n_queries}, {n_cells})
    if values.ndim < 2 or full.ndim != 4 or any(size not in sizes for size, sizes in zip(full.shape, allowed)):
        raise ValueError(f"mask has shape {list(values.shape)}: it must be [{n_streams} or 1, {n_heads} or 1, {n_queries}, {n_cells}], "
                         "or without the first axes")
    return full
