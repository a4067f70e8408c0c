#!/usr/bin/env python3
"""Writes a Llama model with random weights as GGUF, for speed measurements only: what it generates means nothing, and no quality
figure may come from it.

Its heads have 128 dims, as in most models of today, and its weights are small, so that attention dominates at long context and a
benchmark shows the cache rather than the matrix products. A real model with the same cache has far more weights and gains less.
The tokenizer is copied from another GGUF file, SmolLM2's for instance.

    scripts/make_random_model.py TOKENIZER.gguf OUT.gguf
    scripts/make_random_model.py --layers 8 --heads 8 --kv-heads 2 --type f16 TOKENIZER.gguf OUT.gguf
    scripts/make_random_model.py --type q4_0 --layers 32 --heads 32 --kv-heads 8 --embedding 4096 --ffn 14336 TOKENIZER.gguf OUT.gguf

Needs the package gguf: if Python lacks it, it goes to a virtual environment in the cache (scripts/cache_folder.sh).
"""
import argparse
import os
import subprocess
import sys
from pathlib import Path

GGUF_REQUIREMENT = "gguf==0.19.0"


def cache_folder():
    if "KVTURBO_CACHE" in os.environ:
        return Path(os.environ["KVTURBO_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "kvturbo"


def restart_with_gguf():
    """Replaces this process by the same command under a Python that has gguf."""
    folder = cache_folder() / "venv-gguf"
    python = folder / "bin" / "python3"
    if Path(sys.prefix) == folder:
        sys.exit(f"{folder}: the package gguf does not load; remove the folder and try again")
    if not (folder / "complete").exists():
        print(f"  installing {GGUF_REQUIREMENT} in {folder}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", GGUF_REQUIREMENT], check=True)
        (folder / "complete").touch()
    os.execv(python, [str(python), *sys.argv])


try:
    import gguf
    import numpy as np
except ImportError:
    restart_with_gguf()


def copy_tokenizer(source, writer):
    """All tokenizer.* fields but the chat template. Returns the number of tokens."""
    reader = gguf.GGUFReader(source)
    for field in reader.fields.values():
        if not field.name.startswith("tokenizer.") or field.name.startswith("tokenizer.chat_template"):
            continue
        kind = field.types[0]
        writer.add_key_value(field.name, field.contents(), kind, field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None)
    tokens = reader.fields.get("tokenizer.ggml.tokens")
    if tokens is None:
        sys.exit(f"{source}: no tokenizer in it")
    return len(tokens.data)


class RandomWeights:
    def __init__(self, writer, kind):
        self.writer = writer
        self.kind = kind
        self.generator = np.random.default_rng(1)
        self.bytes = 0

    def add_matrix(self, name, n_out, n_in):
        # Rows of unit gain keep activations near 1 through all layers.
        if self.kind == "q4_0":
            # Codes drawn as bytes, as quickly as they can be written: 16 levels of the block's scale, 4.61 of it in root mean square.
            blocks = np.frombuffer(self.generator.bytes(n_out * n_in // 32 * 18), dtype=np.uint8).reshape(n_out, n_in // 32, 18).copy()
            blocks[:, :, :2] = np.frombuffer(np.float16(1 / (4.61 * np.sqrt(n_in))).tobytes(), dtype=np.uint8)
            data = blocks.reshape(n_out, n_in // 32 * 18)
            self.writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType.Q4_0)
            self.bytes += data.nbytes
            return
        weights = self.generator.standard_normal((n_out, n_in), dtype=np.float32) / np.float32(np.sqrt(n_in))
        if self.kind == "f16":
            data = weights.astype(np.float16)
            self.writer.add_tensor(name, data)
        else:
            data = gguf.quants.quantize(weights, gguf.GGMLQuantizationType.Q8_0)
            self.writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        self.bytes += data.nbytes

    def add_norm(self, name, n):
        self.writer.add_tensor(name, np.ones(n, dtype=np.float32))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("tokenizer", help="GGUF file to take the tokenizer from")
    parser.add_argument("out", help="GGUF file to write")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--kv-heads", type=int, default=4)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--embedding", type=int, default=512, help="width of the residual stream, a multiple of 32")
    parser.add_argument("--ffn", type=int, default=512, help="width of the feed-forward layer, a multiple of 32")
    parser.add_argument("--context", type=int, default=131072)
    parser.add_argument("--type", choices=("q8_0", "q4_0", "f16"), default="q8_0", help="of the weights")
    options = parser.parse_args()
    if options.heads % options.kv_heads:
        parser.error("--heads must be a multiple of --kv-heads")

    writer = gguf.GGUFWriter(options.out, "llama")
    writer.add_name(f"random weights, {options.layers} layers, head dim {options.head_dim}: for speed only")
    writer.add_block_count(options.layers)
    writer.add_context_length(options.context)
    writer.add_embedding_length(options.embedding)
    writer.add_feed_forward_length(options.ffn)
    writer.add_head_count(options.heads)
    writer.add_head_count_kv(options.kv_heads)
    writer.add_key_length(options.head_dim)
    writer.add_value_length(options.head_dim)
    writer.add_rope_dimension_count(options.head_dim)
    writer.add_rope_freq_base(500000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(getattr(gguf.LlamaFileType, "MOSTLY_" + options.type.upper()))
    n_vocab = copy_tokenizer(options.tokenizer, writer)
    writer.add_vocab_size(n_vocab)

    weights = RandomWeights(writer, options.type)
    q_width, kv_width = options.heads * options.head_dim, options.kv_heads * options.head_dim
    weights.add_matrix("token_embd.weight", n_vocab, options.embedding)  # also the output matrix
    weights.add_norm("output_norm.weight", options.embedding)
    for layer in range(options.layers):
        block = f"blk.{layer}."
        weights.add_norm(block + "attn_norm.weight", options.embedding)
        weights.add_matrix(block + "attn_q.weight", q_width, options.embedding)
        weights.add_matrix(block + "attn_k.weight", kv_width, options.embedding)
        weights.add_matrix(block + "attn_v.weight", kv_width, options.embedding)
        weights.add_matrix(block + "attn_output.weight", options.embedding, q_width)
        weights.add_norm(block + "ffn_norm.weight", options.embedding)
        weights.add_matrix(block + "ffn_gate.weight", options.ffn, options.embedding)
        weights.add_matrix(block + "ffn_up.weight", options.ffn, options.embedding)
        weights.add_matrix(block + "ffn_down.weight", options.embedding, options.ffn)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    kv_bytes = 2 * 2 * kv_width * options.layers
    print(f"{options.out}: {weights.bytes / 1e6:.0f} MB of weights; the f16 cache takes {kv_bytes:,} bytes per token, "
          f"{kv_bytes * 32768 / 1e6:.0f} MB at 32,768 tokens")


if __name__ == "__main__":
    main()
