"""Host to device and back, without waiting where that is possible."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """A host array on the device, without waiting where that is possible."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def to_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors of one dtype on the CPU: from a GPU in a single copy, which alone is waited for."""
    if not tensors or not tensors[0].is_cuda:
        return [tensor if tensor.is_cpu else tensor.cpu() for tensor in tensors]
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    host = torch.empty(flat.shape, dtype=flat.dtype, device="cpu", pin_memory=True)
    host.copy_(flat, non_blocking=True)
    torch.cuda.current_stream(flat.device).synchronize()
    parts = host.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]
