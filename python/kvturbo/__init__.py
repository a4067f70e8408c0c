"""kvturbo: compressed KV cache for language-model inference; the C API (kvturbo.h) on numpy arrays and torch tensors.

    codec = kvturbo.Codec("k4v3", head_dim=128)
    keys = codec.new_pages("key", n_cells=1000, heads=8)        # uint8 [8, 16, page bytes]
    codec.encode("key", rows, keys)                             # rows: float [8, 1000, 128]
    out = codec.attend(q, keys, values, n_cells=1000)           # q: float [queries, query heads, 128]
"""

from pathlib import Path as _Path

from ._library import PAGE_TOKENS, Error
from .codec import Codec, KeyMeans, RecentRows, Side, codec_names, library_version, page_bytes
from .header import Header

__version__ = library_version()
INCLUDE_FOLDER = str(_Path(__file__).parent / "include")  # kvturbo/kvturbo.h, of the wheel
LIBRARY_FOLDER = str(_Path(__file__).parent / "lib")  # for -L and the run path
__all__ = ["INCLUDE_FOLDER", "LIBRARY_FOLDER", "PAGE_TOKENS", "Codec", "Error", "Header", "KeyMeans", "RecentRows", "Side", "codec_names", "library_version", "page_bytes"]
