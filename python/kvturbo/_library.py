"""libkvturbo.so by ctypes: where it is, its functions' types, its structures, and statuses as exceptions."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, c_char_p, c_float, c_int, c_int64, c_size_t, c_uint16, c_uint32, c_uint64, c_void_p
from pathlib import Path

PAGE_TOKENS = 64  # KVT_PAGE_TOKENS
HEADER_BYTES = 64  # KVT_HEADER_BYTES
API_VERSION = "0.1."  # declarations below are those of kvturbo.h 0.1

_FILE_NAME = "libkvturbo.so.0"


class Error(RuntimeError):
    """A call of the library failed. `code` is its kvt_status, `name` the call's name; the text is the library's own."""

    def __init__(self, name: str, code: int) -> None:
        super().__init__(f"{name}: {library.kvt_status_string(code).decode()}")
        self.name = name
        self.code = code


class AttentionStruct(Structure):
    """kvt_attention, field by field. Strides are in bytes."""

    _fields_ = [
        ("struct_size", c_uint32),
        ("n_streams", c_uint32),
        ("n_kv_heads", c_uint32),
        ("n_group", c_uint32),
        ("n_queries", c_uint32),
        ("n_cells", c_uint32),
        ("k_pages", c_void_p),
        ("k_page_stride", c_size_t),
        ("k_head_stride", c_size_t),
        ("k_stream_stride", c_size_t),
        ("v_pages", c_void_p),
        ("v_page_stride", c_size_t),
        ("v_head_stride", c_size_t),
        ("v_stream_stride", c_size_t),
        ("q", c_void_p),
        ("q_query_stride", c_size_t),
        ("q_head_stride", c_size_t),
        ("q_stream_stride", c_size_t),
        ("mask", c_void_p),
        ("mask_query_stride", c_size_t),
        ("mask_head_stride", c_size_t),
        ("mask_stream_stride", c_size_t),
        ("slopes", c_void_p),
        ("sinks", c_void_p),
        ("scale", c_float),
        ("logit_softcap", c_float),
        ("out", c_void_p),
        ("out_query_stride", c_size_t),
        ("out_head_stride", c_size_t),
        ("out_stream_stride", c_size_t),
        ("key_scale", c_void_p),
        ("key_scale_head_stride", c_size_t),
        ("key_mean", c_void_p),
        ("key_mean_head_stride", c_size_t),
        ("key_mean_stream_stride", c_size_t),
        ("key_mean_unit", c_void_p),
        ("key_mean_unit_head_stride", c_size_t),
        ("key_mean_unit_stream_stride", c_size_t),
        ("mean_cells", c_uint32),
        ("n_exact", c_uint32),
        ("exact_k", c_void_p),
        ("exact_k_head_stride", c_size_t),
        ("exact_k_stream_stride", c_size_t),
        ("exact_v", c_void_p),
        ("exact_v_head_stride", c_size_t),
        ("exact_v_stream_stride", c_size_t),
        ("n_recent", c_uint32),
        ("recent_window", c_uint32),
        ("recent_own", c_uint32),
        ("recent_cells", c_void_p),
        ("recent_cells_stream_stride", c_size_t),
        ("recent_k", c_void_p),
        ("recent_k_head_stride", c_size_t),
        ("recent_k_stream_stride", c_size_t),
        ("recent_v", c_void_p),
        ("recent_v_head_stride", c_size_t),
        ("recent_v_stream_stride", c_size_t),
        ("recent_pinned", c_uint32),
    ]


class HeaderStruct(Structure):
    """kvt_header."""

    _fields_ = [
        ("struct_size", c_uint32),
        ("codec", c_int),
        ("head_dim_k", c_uint32),
        ("head_dim_v", c_uint32),
        ("n_kv_heads", c_uint32),
        ("n_layers", c_uint32),
        ("n_cells", c_uint64),
        ("model_hash", c_uint64),
    ]


# name: (result, arguments). A c_int result is a kvt_status, and what is not KVT_OK is raised.
_FUNCTIONS = {
    "kvt_version": (c_char_p, []),
    "kvt_status_string": (c_char_p, [c_int]),
    "kvt_codec_from_name": (c_int, [c_char_p, POINTER(c_int)]),
    "kvt_codec_name": (c_char_p, [c_int]),
    "kvt_codec_create": (c_int, [c_int, c_uint32, c_uint32, POINTER(c_void_p)]),
    "kvt_codec_destroy": (None, [c_void_p]),
    "kvt_codec_isa": (c_char_p, [c_void_p]),
    "kvt_page_bytes": (c_size_t, [c_void_p, c_int]),
    "kvt_page_bytes_for": (c_size_t, [c_int, c_int, c_uint32]),
    "kvt_encode": (c_int, [c_void_p, c_int, c_void_p, c_size_t, c_size_t, c_void_p, c_void_p, c_size_t]),
    "kvt_decode": (c_int, [c_void_p, c_int, c_void_p, c_size_t, c_size_t, c_size_t, c_void_p, c_size_t]),
    "kvt_validate_pages": (c_int, [c_void_p, c_int, c_void_p, c_size_t, c_size_t]),
    "kvt_header_write": (c_int, [POINTER(HeaderStruct), c_void_p, c_size_t]),
    "kvt_header_read": (c_int, [c_void_p, c_size_t, POINTER(HeaderStruct)]),
    "kvt_attend_workspace_bytes": (c_size_t, [c_void_p, POINTER(AttentionStruct), c_uint32]),
    "kvt_attend_thread": (c_int, [c_void_p, POINTER(AttentionStruct), c_void_p, c_uint32, c_uint32]),
    "kvt_attend": (c_int, [c_void_p, POINTER(AttentionStruct)]),
}


def _raise_on_error(result: int, function: object, _arguments: tuple) -> int:
    if result != 0:
        raise Error(function.__name__, result)  # type: ignore[attr-defined]
    return result


def _load() -> ctypes.CDLL:
    """The library of the wheel, which lies in this package; in a source tree the one that the system finds."""
    bundled = Path(__file__).parent / "lib" / _FILE_NAME
    try:
        # CDLL releases the interpreter's lock during a call: threads encode and attend side by side.
        loaded = ctypes.CDLL(str(bundled) if bundled.exists() else _FILE_NAME)
    except OSError as error:
        raise ImportError(
            f"kvturbo: {error}: install the wheel, or name the folder of {_FILE_NAME} in LD_LIBRARY_PATH"
        ) from error
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(loaded, name)
        function.restype = result
        function.argtypes = arguments
        if result is c_int:
            function.errcheck = _raise_on_error
    version = loaded.kvt_version().decode()
    if not version.startswith(API_VERSION):
        raise ImportError(f"kvturbo: {loaded._name} is version {version}, and this package needs {API_VERSION}x: install matching ones")
    return loaded


library = _load()
