#!/usr/bin/env python3
"""kvturbo's cache in HuggingFace transformers, beside their own ones: bytes, divergence from the uncompressed cache, and greedy text.

    examples/transformers_cache.py MODEL.gguf TEXT [--tokens 1024] [--codec k4v3]

Needs kvturbo, torch, transformers, gguf and accelerate. The divergence is the mean KL of the next-token distributions over the second
half of the text, which is read in one piece, so that every token's attention goes through the compressed cache.
"""

import argparse
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Cache, DynamicCache
from transformers.cache_utils import Fp8QuantizedLayer

from kvturbo.transformers import KvturboCache


def load(path: Path, attention: str):
    return AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation=attention).eval()


def stock_bytes(cache: Cache) -> int:
    """Of transformers' caches, at 16 bits where this model, being on the CPU, uses 32."""
    total = 0
    for layer in cache.layers:
        if isinstance(layer, Fp8QuantizedLayer):
            total += layer._quantized_keys[0].numel() + layer._quantized_values[0].numel()
        else:
            total += 2 * (layer.keys.numel() + layer.values.numel())
    return total


@torch.no_grad()
def read(model, tokens: torch.Tensor, cache: Cache) -> tuple[torch.Tensor, float]:
    """Log-probabilities at the second half of the tokens, in pieces of 64, and the seconds that it took."""
    start = time.perf_counter()
    # Fp8QuantizedLayer attends its first update uncompressed: only pieces show what a cache does.
    parts = [model(piece, cache=cache).logits for piece in tokens.split(64, dim=1)]
    seconds = time.perf_counter() - start
    return torch.cat(parts, dim=1)[0, tokens.shape[1] // 2 :].log_softmax(-1), seconds


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--codec", default="k4v3")
    options = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(options.model.parent, gguf_file=options.model.name)
    stock, ours = load(options.model, "sdpa"), load(options.model, "kvturbo")
    tokens = tokenizer(options.text.read_text()[: 16 * options.tokens], return_tensors="pt").input_ids[:, : options.tokens]
    prompt = tokenizer("The capital of France is", return_tensors="pt").input_ids

    def fp8_cache():
        return Cache(layer_class_to_replicate=Fp8QuantizedLayer)

    reference = None
    print(f"| cache ({tokens.shape[1]} tokens) | bytes per token | mean KL divergence | seconds to read | greedy text |\n|---|---|---|---|---|")
    for name, model, make in (("DynamicCache, as fp16", stock, DynamicCache), ("Fp8QuantizedLayer", stock, fp8_cache),
                              (f"kvturbo {options.codec}, decoded", stock, lambda: KvturboCache(stock.config, options.codec)),
                              (f"kvturbo {options.codec}, on the codes", ours, lambda: KvturboCache(ours.config, options.codec))):
        cache = make()
        logs, seconds = read(model, tokens, cache)
        reference = logs if reference is None else reference
        divergence = (reference.exp() * (reference - logs)).sum(-1).mean()
        size = cache.nbytes if isinstance(cache, KvturboCache) else stock_bytes(cache)
        text = tokenizer.decode(model.generate(prompt, cache=make(), max_new_tokens=12, do_sample=False)[0, prompt.shape[1] :])
        print(f"| {name} | {size / tokens.shape[1]:,.0f} | {float(divergence):.4f} | {seconds:.1f} | {text.strip()!r} |", flush=True)


if __name__ == "__main__":
    main()
