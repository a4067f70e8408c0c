"""A KV cache for HuggingFace transformers (5.24 or later), on the CPU: keys and values are kept as pages of codes.

    model = AutoModelForCausalLM.from_pretrained(..., attn_implementation="kvturbo")
    cache = KvturboCache(model.config, codec="k4v3")
    model.generate(**inputs, cache=cache)

With attn_implementation="kvturbo" attention runs on the codes. With any other the layers hand out decoded keys and values, which costs
the memory of one uncompressed layer for the time of its attention.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface, Cache
from transformers.cache_utils import CacheLayerMixin
from transformers.masking_utils import sdpa_mask

from .codec import Codec, KeyMeans, RecentRows

_NAME = "kvturbo"
_MEAN_CELLS = 512  # cells that share a mean of their keys
_MEAN_SKIPS = 4  # the first tokens are often attention sinks, with keys unlike all others
_MEAN_ROWS = 16  # so many more make a mean


class KvturboLayer(CacheLayerMixin):
    """One layer's keys and values.

    codec: a name, see kvturbo.codec_names().
    recent: newest tokens that each query attends in fp16, 0 to 64; sinks: first tokens that are kept in fp16, 0 to 64. 0 for codec f16.
    on_codes: update() hands out the new states only, for the attention function "kvturbo".
    Keys are stored less a mean, one for every 512 cells and sequence: that of the 512 cells before, and for the first 512 that of the first
    update's tokens, if they are 20 or more.
    """

    is_croppable = True

    def __init__(self, codec: str = "k4v3", recent: int = 48, sinks: int = 4, on_codes: bool = False) -> None:
        super().__init__()
        self.codec_name, self.on_codes = codec, on_codes
        self.recent, self.sinks = (0, 0) if codec == "f16" else (recent, sinks)
        self.n_tokens = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        if key_states.device.type != "cpu":
            raise ValueError(f"kvturbo's cache works on the CPU, and this model is on {key_states.device}: move it with .to('cpu')")
        self.device, self.dtype = key_states.device, key_states.dtype
        batch, heads, _, head_dim = key_states.shape
        self.codec = Codec(self.codec_name, head_dim, value_states.shape[-1])
        self.k_pages = self.codec.new_pages("key", 0, batch, heads=heads)
        self.v_pages = self.codec.new_pages("value", 0, batch, heads=heads)
        self.means = KeyMeans(np.zeros((batch, heads, 0, head_dim), np.int8), np.zeros((batch, heads, 0), np.float32), _MEAN_CELLS)
        self.block_sum, self.block_rows = np.zeros((batch, heads, head_dim), np.float32), 0  # keys of the newest 512-cell block
        # fp16 rows: the first tokens, and the newest ones. While an update is attended, the newest include all its tokens.
        self.sink_rows = [_halves(states[:, :, :0]) for states in (key_states, value_states)]
        self.recent_rows = [_halves(states[:, :, :0]) for states in (key_states, value_states)]
        self.n_before = 0  # of the recent rows, those older than the last update
        self.is_initialized = True

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Stores [batch, kv heads, n, head_dim] and returns the states of all tokens, or, on_codes, the new ones."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        n = key_states.shape[-2]
        cells = np.arange(self.n_tokens, self.n_tokens + n)
        self.k_pages = self._grown(self.k_pages, self.n_tokens + n)
        self.v_pages = self._grown(self.v_pages, self.n_tokens + n)
        halves = [_halves(key_states), _halves(value_states)]
        self._encode_keys(halves[0].astype(np.float32), cells)
        self.codec.encode("value", halves[1], self.v_pages, cells)
        n_sinks = max(0, min(n, self.sinks - self.n_tokens))
        self.n_before = min(self.recent, self.recent_rows[0].shape[2])
        for i in range(2):
            self.sink_rows[i] = np.concatenate([self.sink_rows[i], halves[i][:, :, :n_sinks]], axis=2)
            if self.recent:
                older = self.recent_rows[i][:, :, self.recent_rows[i].shape[2] - self.n_before :]
                self.recent_rows[i] = np.concatenate([older, halves[i]], axis=2)
        self.n_tokens += n
        if self.on_codes:
            # The attention function is given these tensors, and finds the layer through them.
            key_states.kvturbo_layer = self
            return key_states, value_states
        return self._decoded()

    def attend(self, query: torch.Tensor, mask: torch.Tensor | None, scale: float | None, **options: Any) -> torch.Tensor:
        """query [batch, heads, n, head_dim], of the tokens of the last update, to [batch, n, heads, head_dim]."""
        q = query.transpose(1, 2)
        n_queries = q.shape[1]
        if self.sinks:
            options.update(exact_keys=self.sink_rows[0], exact_values=self.sink_rows[1])
        n_rows = self.recent_rows[0].shape[2]
        if n_rows:
            cells = np.broadcast_to(np.arange(self.n_tokens - n_rows, self.n_tokens, dtype=np.int32), (q.shape[0], n_rows))
            options["recent"] = RecentRows(cells, *self.recent_rows, window=self.recent, own=self.n_before)
        if self.codec_name != "f16":
            options["key_means"] = self.means
        out = self.codec.attend(q, self.k_pages, self.v_pages, self.n_tokens, scale=scale, mask=mask,
                                causal=mask is None and n_queries > 1, n_threads=torch.get_num_threads(), **options)
        for i in range(2):  # the next update needs no more of them
            self.recent_rows[i] = self.recent_rows[i][:, :, max(0, n_rows - self.recent) :].copy()
        self.n_before = min(self.n_before, self.recent_rows[0].shape[2])
        return out.to(query.dtype)

    @property
    def nbytes(self) -> int:
        """All that the layer keeps: pages, exact rows, means."""
        arrays = [self.k_pages, self.v_pages, self.means.codes, self.means.units, self.block_sum, *self.sink_rows, *self.recent_rows] if self.is_initialized else []
        return sum(array.nbytes for array in arrays)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.n_tokens + query_length, 0

    def get_seq_length(self) -> int:
        return self.n_tokens

    def get_max_length(self) -> int:
        return -1

    def reset(self) -> None:
        self.is_initialized = False
        self.n_tokens = 0

    def crop(self, tokens_to_remove: int) -> None:
        """Removes the newest tokens; the number is negative, as everywhere in transformers."""
        if tokens_to_remove > 0:
            raise ValueError(f"crop takes the number of tokens to remove as a negative number, and was given {tokens_to_remove}")
        n = min(-tokens_to_remove, self.n_tokens)
        self.n_tokens -= n
        if not self.is_initialized:
            return
        n_means = -(-self.n_tokens // _MEAN_CELLS)
        self.means = KeyMeans(self.means.codes[:, :, :n_means], self.means.units[:, :, :n_means], _MEAN_CELLS)
        for i in range(2):
            self.sink_rows[i] = self.sink_rows[i][:, :, : self.n_tokens]
            self.recent_rows[i] = self.recent_rows[i][:, :, : max(0, self.recent_rows[i].shape[2] - n)]

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        if self.is_initialized:
            self._each_batch_array(lambda array: array[indices.cpu().numpy()])

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.is_initialized:
            self._each_batch_array(lambda array: np.repeat(array, repeats, axis=0))

    def offload(self) -> None:
        """Nothing to do: the pages are in the CPU's memory."""

    def prefetch(self) -> None:
        """Nothing to do: the pages are in the CPU's memory."""

    def _each_batch_array(self, change: Any) -> None:
        self.k_pages, self.v_pages, self.block_sum = change(self.k_pages), change(self.v_pages), change(self.block_sum)
        self.means = KeyMeans(change(self.means.codes), change(self.means.units), _MEAN_CELLS)
        self.sink_rows = [change(rows) for rows in self.sink_rows]
        self.recent_rows = [change(rows) for rows in self.recent_rows]

    def _encode_keys(self, keys: np.ndarray, cells: np.ndarray) -> None:
        """keys [batch, kv heads, n, head_dim] into consecutive cells, each block of 512 less its mean."""
        if self.codec_name == "f16":
            self.codec.encode("key", keys, self.k_pages, cells)
            return
        starts = np.flatnonzero(cells % _MEAN_CELLS == 0)
        for part in np.split(np.arange(len(cells)), starts[starts > 0]):
            block, rows = cells[part[0]] // _MEAN_CELLS, keys[:, :, part]
            if block == self.means.codes.shape[2]:
                self._add_mean(rows)
            mean = self.means.codes[:, :, block] * self.means.units[:, :, block, None]
            self.codec.encode("key", rows - mean[:, :, None], self.k_pages, cells[part])
            self.block_sum += rows.sum(axis=2)
            self.block_rows += len(part)

    def _add_mean(self, rows: np.ndarray) -> None:
        """The mean of a new block, which rows are the first of."""
        if self.block_rows:
            mean = self.block_sum / self.block_rows
        elif rows.shape[2] >= _MEAN_SKIPS + _MEAN_ROWS:
            mean = rows[:, :, _MEAN_SKIPS:].mean(axis=2)
        else:
            mean = np.zeros_like(self.block_sum)
        new = KeyMeans.of(mean[:, :, None], _MEAN_CELLS)
        self.means = KeyMeans(np.concatenate([self.means.codes, new.codes], axis=2),
                              np.concatenate([self.means.units, new.units.astype(np.float32)], axis=2), _MEAN_CELLS)
        self.block_sum, self.block_rows = np.zeros_like(self.block_sum), 0

    def _grown(self, pages: np.ndarray, n_cells: int) -> np.ndarray:
        """With room for n_cells: an eighth more than needed, so that copying stays rare."""
        n_pages = -(-n_cells // 64)
        if n_pages <= pages.shape[2]:
            return pages
        grown = np.zeros((*pages.shape[:2], n_pages + n_pages // 8, pages.shape[3]), np.uint8)
        grown[:, :, : pages.shape[2]] = pages
        return grown

    def _decoded(self) -> tuple[torch.Tensor, torch.Tensor]:
        """All tokens' keys and values, the exact ones in place."""
        keys = self.codec.decode("key", self.k_pages, self.n_tokens)
        if self.codec_name != "f16":
            keys += np.repeat(self.means.values(), _MEAN_CELLS, axis=2)[:, :, : self.n_tokens]
        states = [keys, self.codec.decode("value", self.v_pages, self.n_tokens)]
        for i in range(2):
            n_sinks, n_recent = self.sink_rows[i].shape[2], min(self.recent, self.recent_rows[i].shape[2])
            states[i][:, :, :n_sinks] = self.sink_rows[i]
            states[i][:, :, self.n_tokens - n_recent :] = self.recent_rows[i][:, :, self.recent_rows[i].shape[2] - n_recent :]
        return torch.from_numpy(states[0]).to(self.dtype), torch.from_numpy(states[1]).to(self.dtype)


class KvturboCache(Cache):
    """A cache of KvturboLayers for a model's config, which also says whether attention runs on the codes."""

    def __init__(self, config: Any, codec: str = "k4v3", recent: int = 48, sinks: int = 4) -> None:
        config = config.get_text_config(decoder=True)
        foreign = sorted(set(getattr(config, "layer_types", None) or []) - {"full_attention", "sliding_attention"})
        if foreign:
            raise ValueError(f"this model has layers of the kinds {', '.join(foreign)}, whose state is no KV cache: use transformers' own cache")
        on_codes = config._attn_implementation == _NAME
        super().__init__(layers=[KvturboLayer(codec, recent, sinks, on_codes) for _ in range(config.num_hidden_layers)])

    @property
    def nbytes(self) -> int:
        return sum(layer.nbytes for layer in self.layers)


def _halves(states: torch.Tensor) -> np.ndarray:
    return states.detach().to(torch.float16).numpy()


def _attention(module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor | None,
               scaling: float | None = None, dropout: float = 0.0, softcap: float | None = None, s_aux: torch.Tensor | None = None,
               **kwargs: Any) -> tuple[torch.Tensor, None]:
    layer = getattr(key, "kvturbo_layer", None)
    if layer is None:
        raise ValueError("attn_implementation='kvturbo' needs its cache: pass cache=KvturboCache(model.config)")
    if dropout:
        raise ValueError("attn_implementation='kvturbo' is for inference: call model.eval()")
    return layer.attend(query, attention_mask, scaling, logit_softcap=softcap or 0.0, sinks=s_aux), None


AttentionInterface.register(_NAME, _attention)
AttentionMaskInterface.register(_NAME, sdpa_mask)
