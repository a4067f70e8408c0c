"""A serializer for LMCache (0.5): KV chunks are stored as pages of codes, encoded and decoded on the CPU, where LMCache keeps them.

Importing this module registers the type "kvturbo", for an L2 adapter's configuration:

    {"type": "fs", "base_path": "/cache", "serde": {"type": "kvturbo", "codec": "k4v3", "head_dim": 128}}

    python -m kvturbo.lmcache server ...        LMCache's command line, with the type registered

Options: codec; head_dim; condition (true): keys are stored less their mean over the chunk, which is stored beside them; n_threads (all
processors of this process): for one chunk; max_workers (1): chunks at a time.

Stored bytes: magic "KVTL", version u16, flags u16 (bit 0: means), the header of docs/format.md section 6 whose model hash is that of the
key's model name, the means fp16 [layers, kv heads, head_dim] if flagged, key pages [layers, kv heads, pages], value pages likewise.
"""

from __future__ import annotations

import hashlib
import os
import struct
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from lmcache.v1.distributed.api import MemoryLayoutDesc, ObjectKey
from lmcache.v1.distributed.serde.async_processor import AsyncSerdeProcessor
from lmcache.v1.distributed.serde.base import Deserializer, SerdeProcessor, Serializer
from lmcache.v1.distributed.serde.factory import get_registered_serde_types, register_serde_factory
from lmcache.v1.memory_management import MemoryObj

from .codec import Codec
from .header import Header

NAME = "kvturbo"
_PREFIX = struct.Struct("<4sHH")
_MAGIC, _VERSION, _HAS_MEANS = b"KVTL", 1, 1


@dataclass(frozen=True)
class Chunk:
    """Where the parts of a stored chunk lie, from its shape [2, layers, tokens, kv heads * head_dim]."""

    codec: Codec
    n_layers: int
    n_tokens: int
    n_heads: int
    has_means: bool

    @staticmethod
    def of(shape: torch.Size, codec: Codec, has_means: bool) -> Chunk:
        if len(shape) != 4 or shape[0] != 2 or shape[3] % codec.head_dim_k:
            raise ValueError(f"kvturbo serde: chunks are [2, layers, tokens, kv heads * {codec.head_dim_k}], and this one is {list(shape)}: "
                             "set head_dim to the model's; models with one latent for keys and values cannot be stored")
        return Chunk(codec, int(shape[1]), int(shape[2]), int(shape[3]) // codec.head_dim_k, has_means)

    @property
    def means_shape(self) -> tuple[int, int, int]:
        return self.n_layers, self.n_heads, self.codec.head_dim_k if self.has_means else 0

    def pages_shape(self, side: str) -> tuple[int, int, int, int]:
        return self.n_layers, self.n_heads, -(-self.n_tokens // 64), self.codec.page_bytes(side)  # type: ignore[arg-type]

    @property
    def n_bytes(self) -> int:
        pages = sum(int(np.prod(self.pages_shape(side))) for side in ("key", "value"))
        return _PREFIX.size + Header.BYTES + 2 * int(np.prod(self.means_shape)) + pages

    def split(self, data: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Means, key pages and value pages, as views of a buffer of n_bytes."""
        parts, at = [], _PREFIX.size + Header.BYTES
        for shape, kind in ((self.means_shape, np.float16), (self.pages_shape("key"), np.uint8), (self.pages_shape("value"), np.uint8)):
            size = int(np.prod(shape)) * np.dtype(kind).itemsize
            parts.append(data[at : at + size].view(kind).reshape(shape))
            at += size
        return parts[0], parts[1], parts[2]

    def head(self, model_name: str) -> bytes:
        """Prefix and header: the same bytes for all chunks of this shape, codec and model."""
        model_hash = int.from_bytes(hashlib.blake2b(model_name.encode(), digest_size=8).digest(), "little")
        header = Header(self.codec.name, self.codec.head_dim_k, self.codec.head_dim_v, self.n_heads, self.n_layers, self.n_tokens, model_hash)
        return _PREFIX.pack(_MAGIC, _VERSION, _HAS_MEANS if self.has_means else 0) + header.to_bytes()


class _Worker:
    """What both directions share."""

    def __init__(self, codec: Codec, condition: bool, n_threads: int) -> None:
        self.codec, self.condition = codec, condition and codec.name != "f16"
        self.pool = ThreadPoolExecutor(n_threads)

    def each_layer(self, work, n_layers: int) -> None:
        # The library releases the interpreter's lock.
        list(self.pool.map(work, range(n_layers)))


def _tensor(obj: MemoryObj, name: str) -> torch.Tensor:
    if obj.tensor is None:
        raise ValueError(f"kvturbo serde: {name} has no tensor")
    if obj.tensor.device.type != "cpu":
        raise ValueError(f"kvturbo serde: {name} is on {obj.tensor.device}, and this serde works on the CPU")
    return obj.tensor


class KvturboSerializer(_Worker, Serializer):
    def estimate_serialized_size(self, layout_desc: MemoryLayoutDesc) -> int:
        """Exact: a page's size depends on nothing but the codec."""
        if len(layout_desc.shapes) != 1:
            raise ValueError(f"kvturbo serde: objects hold one tensor, and this one {len(layout_desc.shapes)}")
        return Chunk.of(layout_desc.shapes[0], self.codec, self.condition).n_bytes

    def serialize(self, src: MemoryObj, dst: MemoryObj, key: ObjectKey) -> int:
        states = _tensor(src, "source")
        chunk = Chunk.of(states.shape, self.codec, self.condition)
        data = _tensor(dst, "destination").view(torch.uint8).flatten().numpy()
        if len(data) < chunk.n_bytes:
            raise ValueError(f"kvturbo serde: {chunk.n_bytes} bytes do not fit a destination of {len(data)}")
        data = data[: chunk.n_bytes]
        means, key_pages, value_pages = chunk.split(data)
        key_pages[...] = 0
        value_pages[...] = 0

        def encode(layer: int) -> None:
            # [2, tokens, heads, head_dim] -> [2, heads, tokens, head_dim]
            rows = states[:, layer].float().reshape(2, chunk.n_tokens, chunk.n_heads, -1).transpose(1, 2).numpy()
            keys = rows[0]
            if chunk.has_means:
                means[layer] = keys.mean(axis=1)
                keys = keys - means[layer][:, None].astype(np.float32)
            self.codec.encode("key", keys, key_pages[layer])
            self.codec.encode("value", rows[1], value_pages[layer])

        self.each_layer(encode, chunk.n_layers)
        head = chunk.head(key.model_name)
        data[: len(head)] = np.frombuffer(head, np.uint8)
        return chunk.n_bytes


class KvturboDeserializer(_Worker, Deserializer):
    def deserialize(self, src: MemoryObj, dst: MemoryObj, key: ObjectKey) -> None:
        states = _tensor(dst, "destination")
        data = _tensor(src, "source").view(torch.uint8).flatten().numpy()
        if len(data) < _PREFIX.size + Header.BYTES:
            raise ValueError(f"kvturbo serde: {len(data)} bytes are too few for a stored chunk")
        magic, version, flags = _PREFIX.unpack(data[: _PREFIX.size].tobytes())
        if (magic, version) != (_MAGIC, _VERSION) or flags & ~_HAS_MEANS:
            raise ValueError("kvturbo serde: these bytes are no chunk of this serde, or of a newer version of it")
        chunk = Chunk.of(states.shape, self.codec, bool(flags & _HAS_MEANS))
        wanted = chunk.head(key.model_name)
        if data[: len(wanted)].tobytes() != wanted:
            found = Header.from_bytes(data[_PREFIX.size : _PREFIX.size + Header.BYTES].tobytes())
            raise ValueError(f"kvturbo serde: the stored chunk is of another model, shape or codec: {found}, wanted {Header.from_bytes(wanted[_PREFIX.size :])}")
        if len(data) < chunk.n_bytes:
            raise ValueError(f"kvturbo serde: the stored chunk has {len(data)} of {chunk.n_bytes} bytes")
        means, key_pages, value_pages = chunk.split(data[: chunk.n_bytes])
        if not np.isfinite(means).all():
            raise ValueError("kvturbo serde: the stored means are not finite")

        def decode(layer: int) -> None:
            self.codec.validate("key", key_pages[layer])
            self.codec.validate("value", value_pages[layer])
            keys = self.codec.decode("key", key_pages[layer], chunk.n_tokens)
            if chunk.has_means:
                keys += means[layer][:, None]
            for side, rows in enumerate((keys, self.codec.decode("value", value_pages[layer], chunk.n_tokens))):
                states[side, layer].view(chunk.n_tokens, chunk.n_heads, -1).copy_(torch.from_numpy(rows).transpose(0, 1))

        self.each_layer(decode, chunk.n_layers)


def create(options: dict[str, object]) -> SerdeProcessor:
    """The factory that LMCache calls with the options of its configuration."""
    known = {"codec", "head_dim", "condition", "n_threads", "max_workers"}
    unknown = sorted(set(options) - known)
    if unknown:
        raise ValueError(f"kvturbo serde: unknown option {', '.join(unknown)}: there are {', '.join(sorted(known))}")
    codec = Codec(str(options.get("codec", "k4v3")), int(options.get("head_dim", 128)))  # type: ignore[call-overload]
    condition = options.get("condition", True)
    if not isinstance(condition, bool):
        raise ValueError(f"kvturbo serde: condition is {condition!r}: it must be true or false")
    n_threads = int(options.get("n_threads", len(os.sched_getaffinity(0))))  # type: ignore[call-overload]
    return AsyncSerdeProcessor(KvturboSerializer(codec, condition, n_threads), KvturboDeserializer(codec, condition, n_threads),
                               max_workers=int(options.get("max_workers", 1)))  # type: ignore[call-overload]


if NAME not in get_registered_serde_types():
    register_serde_factory(NAME, create)

if __name__ == "__main__":
    from lmcache.cli.main import main

    sys.exit(main())
