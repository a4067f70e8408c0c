"""The header of a stored cache (docs/format.md, section 6)."""

from __future__ import annotations

import ctypes
from ctypes import byref
from dataclasses import dataclass

from ._library import HEADER_BYTES, HeaderStruct, library
from .codec import codec_id


@dataclass(frozen=True)
class Header:
    """What a reader must know before it reads pages. `model_hash` is yours to choose; 0 means none."""

    codec: str
    head_dim_k: int
    head_dim_v: int
    n_kv_heads: int
    n_layers: int
    n_cells: int
    model_hash: int = 0

    BYTES = HEADER_BYTES

    def to_bytes(self) -> bytes:
        """The 64 bytes. Raises Error for a codec, head dim or count that the format cannot hold."""
        fields = HeaderStruct(ctypes.sizeof(HeaderStruct), codec_id(self.codec), self.head_dim_k, self.head_dim_v, self.n_kv_heads,
                              self.n_layers, self.n_cells, self.model_hash)
        buffer = ctypes.create_string_buffer(HEADER_BYTES)
        library.kvt_header_write(byref(fields), buffer, HEADER_BYTES)
        return buffer.raw

    @staticmethod
    def from_bytes(data: bytes) -> Header:
        """Reads and checks the first 64 bytes. Raises Error for foreign, newer, damaged or missing ones."""
        fields = HeaderStruct(struct_size=ctypes.sizeof(HeaderStruct))
        head = bytes(data[:HEADER_BYTES])
        library.kvt_header_read(head, len(head), byref(fields))
        return Header(library.kvt_codec_name(fields.codec).decode(), fields.head_dim_k, fields.head_dim_v, fields.n_kv_heads,
                      fields.n_layers, fields.n_cells, fields.model_hash)
