#!/usr/bin/env python3
"""Decode attention of PyTorch's cuDNN backend on the GPU at hand: a second fp16 yardstick beside kvturbo_cuda_bench's own.

Contiguous fp16 keys and values, 8 kv heads, head dim 128, one query head each; other tensors at each step, so that no cache holds them.
Prints a markdown table: us of one step, GB/s of keys and values read."""
import sys

try:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
except ImportError:
    sys.exit("cuda_sdpa.py: no PyTorch here: install torch, or leave this part out")
if not torch.cuda.is_available():
    sys.exit("cuda_sdpa.py: PyTorch finds no GPU")

HEADS, DIM = 8, 128
print(f"PyTorch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}, {torch.cuda.get_device_name()}\n")
print("| shape | us | GB/s |\n|---|---|---|")
for n_streams, n_cells in ((1, 32768), (1, 131072), (8, 32768), (8, 131072), (32, 32768)):
    step_bytes = 2 * 2 * n_streams * HEADS * n_cells * DIM
    n_sets = max(1, min(16, int(1.5e9 // step_bytes) + 1))
    sets = [[torch.randn(n_streams, HEADS, n, DIM, device="cuda", dtype=torch.float16) for n in (1, n_cells, n_cells)] for _ in range(n_sets)]
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        for q, k, v in sets:
            torch.nn.functional.scaled_dot_product_attention(q, k, v)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for q, k, v in sets:
                torch.nn.functional.scaled_dot_product_attention(q, k, v)
    times = []
    for _ in range(7):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) * 1000 / n_sets)
    us = sorted(times)[len(times) // 2]
    print(f"| B{n_streams} {n_cells // 1024}K | {us:.1f} | {step_bytes / us / 1e3:.0f} |", flush=True)
    del sets, graph
    torch.cuda.empty_cache()
