#!/usr/bin/env python3
"""kvturbo's serializer beside LMCache's own ones, on a model's keys and values: bytes, speed on this CPU, error.

    examples/lmcache_serde.py MODEL.gguf TEXT [--chunks 4]

Needs kvturbo, lmcache, torch, transformers, gguf and accelerate. A chunk is 256 tokens, as in LMCache. The divergence is the mean KL of the
next-token distributions of the 64 tokens behind a text whose cache was stored and restored, against the same text's own cache.
"""

import argparse
import logging
import time
from pathlib import Path

import torch
from lmcache.v1.distributed.api import MemoryLayoutDesc, ObjectKey
from lmcache.v1.distributed.serde import SerdeConfig
from lmcache.v1.distributed.serde.factory import _SERDE_FACTORY_REGISTRY
from lmcache.v1.memory_management import MemoryObjMetadata, TensorMemoryObj
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

import kvturbo.lmcache  # noqa: F401, registers "kvturbo"

CHUNK, BEHIND = 256, 64
KEY = ObjectKey(chunk_hash=b"chunk", model_name="model", kv_rank=0)


def memory(tensor: torch.Tensor) -> TensorMemoryObj:
    metadata = MemoryObjMetadata(tensor.shape, tensor.dtype, 0, tensor.nbytes, 0, shapes=[tensor.shape], dtypes=[tensor.dtype])
    return TensorMemoryObj(tensor.flatten().view(torch.uint8), metadata, None)


def stored_and_restored(config: SerdeConfig, chunks: list[torch.Tensor]) -> tuple[list[torch.Tensor], int, float, float]:
    """The restored chunks, the bytes of one, and the seconds to store and to load one. Timed without LMCache's queue."""
    processor = _SERDE_FACTORY_REGISTRY[config.type](config.kwargs)
    serializer, deserializer = processor._serializer, processor._deserializer
    size = serializer.estimate_serialized_size(MemoryLayoutDesc([chunks[0].shape], [chunks[0].dtype]))
    restored, store, load = [], [], []
    for chunk in chunks:
        target, result = memory(torch.empty(size, dtype=torch.uint8)), torch.empty_like(chunk)
        start = time.perf_counter()
        target.set_used_size(serializer.serialize(memory(chunk), target, KEY))
        store.append(time.perf_counter() - start)
        start = time.perf_counter()
        deserializer.deserialize(target, memory(result), KEY)
        load.append(time.perf_counter() - start)
        restored.append(result)
    n_bytes = target.get_size()
    processor.close()
    return restored, n_bytes, min(store), min(load)


def to_chunks(cache: DynamicCache, n: int) -> list[torch.Tensor]:
    """[2, layers, tokens, heads * head_dim] in bfloat16, as LMCache holds them."""
    whole = torch.stack([torch.stack([layer.keys[0], layer.values[0]]) for layer in cache.layers], dim=1)  # [2, layers, heads, tokens, d]
    whole = whole[:, :, :, :n].transpose(2, 3).flatten(3).to(torch.bfloat16)
    return [chunk.contiguous() for chunk in whole.split(CHUNK, dim=2)]


def to_cache(chunks: list[torch.Tensor], n_heads: int) -> DynamicCache:
    whole = torch.cat(chunks, dim=2).float().unflatten(3, (n_heads, -1)).transpose(2, 3)
    cache = DynamicCache()
    for layer in range(whole.shape[1]):
        cache.update(whole[0, layer][None].contiguous(), whole[1, layer][None].contiguous(), layer)
    return cache


@torch.no_grad()
def main() -> None:
    logging.disable(logging.ERROR)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--chunks", type=int, default=4)
    options = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(options.model.parent, gguf_file=options.model.name, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(options.model.parent, gguf_file=options.model.name)
    n = options.chunks * CHUNK
    tokens = tokenizer(options.text.read_text()[: 16 * n], return_tensors="pt").input_ids[:, : n + BEHIND]
    cache = DynamicCache()
    model(tokens[:, :n], cache=cache)
    chunks = to_chunks(cache, n)
    n_heads, head_dim = cache.layers[0].keys.shape[1], cache.layers[0].keys.shape[3]

    def logs_behind(some_chunks):
        return model(tokens[:, n:], cache=to_cache(some_chunks, n_heads)).logits[0].log_softmax(-1)

    reference = logs_behind(chunks)
    whole = torch.cat(chunks, dim=2).float()
    print(f"| serde | bytes per token (bf16: {chunks[0].nbytes // CHUNK:,}) | times smaller | store ms a chunk | load ms a chunk | "
          "error of keys | error of values | mean KL divergence |\n|---|---|---|---|---|---|---|---|")
    serdes = [SerdeConfig("fp8", {})]
    serdes += [SerdeConfig("turboquant", {"preset": "turboquant_4bit_nc", "head_dim": head_dim})]
    serdes += [SerdeConfig("kvturbo", {"codec": codec, "head_dim": head_dim}) for codec in ("k8v4", "k4v3", "k3v3", "k2v2")]
    for config in serdes:
        name = " ".join([config.type, *(str(v) for k, v in config.kwargs.items() if k in ("codec", "preset"))])
        try:
            restored, n_bytes, store, load = stored_and_restored(config, chunks)
        except RuntimeError as error:
            print(f"| {name} | does not run here: {str(error).splitlines()[0]} | | | | | | |")
            continue
        result = torch.cat(restored, dim=2).float()
        errors = [float((result[side] - whole[side]).norm() / whole[side].norm()) for side in (0, 1)]
        divergence = (reference.exp() * (reference - logs_behind(restored))).sum(-1).mean()
        print(f"| {name} | {n_bytes / CHUNK:,.0f} | {chunks[0].nbytes / n_bytes:.2f} | {1e3 * store:.1f} | {1e3 * load:.1f} | "
              f"{errors[0]:.3f} | {errors[1]:.3f} | {float(divergence):.4f} |", flush=True)


if __name__ == "__main__":
    main()
