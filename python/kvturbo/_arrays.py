"""Arrays of others as numpy arrays that share their memory: numpy, torch on the CPU, and whatever speaks DLPack."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np


def _is_torch(array: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def view(array: Any, name: str) -> np.ndarray:
    """A numpy array on the same memory. torch's bfloat16, which numpy lacks, becomes a float32 copy."""
    if isinstance(array, np.ndarray):
        return array
    if _is_torch(array):
        if array.device.type != "cpu":
            raise TypeError(f"{name} is on {array.device}: move it to the CPU with .cpu()")
        array = array.detach()
        return array.float().numpy() if str(array.dtype) == "torch.bfloat16" else array.numpy()
    if hasattr(array, "__dlpack__"):
        return np.from_dlpack(array)
    return np.asarray(array)


def floats(array: Any, name: str, dtype: type = np.float32) -> np.ndarray:
    """As `view`, of that float type, the last axis contiguous: a copy only where that is needed."""
    viewed = view(array, name)
    if viewed.dtype.kind not in "fiu":
        raise TypeError(f"{name} holds {viewed.dtype}, not numbers: give floats")
    with np.errstate(over="ignore"):  # beyond the target type is infinity, which the library judges
        viewed = viewed.astype(dtype, copy=False)
    if viewed.ndim and viewed.shape[-1] > 1 and viewed.strides[-1] != viewed.itemsize:
        viewed = np.ascontiguousarray(viewed)
    return viewed


def like(result: np.ndarray, example: Any) -> Any:
    """The result in the kind of array that the caller works with: a torch tensor beside a torch tensor."""
    return sys.modules["torch"].from_numpy(result) if _is_torch(example) else result
