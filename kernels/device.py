"""What launchers ask of the device, and tensors as kernels take them. No device code.

Kernels read 128 bits at once from addresses that are multiples of 16 bytes. The launchers see to it that the embedding-sized
tensors lie so, so that one variant of a kernel serves all of them and none is compiled late.
"""

import functools
import os

import torch
import triton
from torch import Tensor

_ALIGNMENT = 16
_PROCESSORS = 132  # of an H100: for launches that are recorded, and in Triton's interpreter


def lanes() -> int:
    """Threads of a warp: 64 on AMD's accelerators."""
    return 64 if torch.version.hip is not None else 32


def generation(device: torch.device) -> int:
    """The first number of an NVIDIA GPU's compute capability; 0 on AMD's and in Triton's interpreter."""
    if torch.version.hip is not None or os.environ.get("TRITON_INTERPRET") == "1":
        return 0
    if device.type == "cuda":
        return _generation(device)
    return int(triton.runtime.driver.active.get_current_target().arch) // 10  # of launches that are recorded


@functools.cache
def _generation(device: torch.device) -> int:
    return int(torch.cuda.get_device_capability(device)[0])


def has_special_functions() -> bool:
    """Whether inline PTX runs here: on NVIDIA GPUs, neither on AMD's nor in Triton's interpreter."""
    return torch.version.cuda is not None and os.environ.get("TRITON_INTERPRET") != "1"


@functools.cache
def processors(device: torch.device) -> int:
    """Multiprocessors of the device."""
    if device.type != "cuda":
        return _PROCESSORS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def packed(tensor: Tensor) -> Tensor:
    """Contiguous, from a multiple of 16 bytes on; a copy only where the tensor is not."""
    return _aligned(tensor.contiguous())


def strided(tensor: Tensor, unit: int) -> Tensor:
    """Likewise, but any strides that are multiples of ``unit`` elements will do, of the last dimension 1."""
    *strides, last = tensor.stride()
    fits = last == 1 and not any(stride % unit for stride in strides)
    return _aligned(tensor if fits else tensor.contiguous())


def _aligned(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.contiguous_format) if tensor.data_ptr() % _ALIGNMENT else tensor
