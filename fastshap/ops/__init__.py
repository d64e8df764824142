"""The operators behind one door: arguments are checked here, and the backend is chosen here.

Each is registered with PyTorch as ``fastshap::perturb``, ``fastshap::attribute``, ``fastshap::segment_reduce`` and
``fastshap::moments``: that is their name in profiles, and torch.compile takes them as they are. Behind the name stands Triton
on CUDA and ROCm tensors and :mod:`fastshap.reference` elsewhere. This package alone imports :mod:`fastshap.kernels`.
"""

from fastshap.ops.attribute import REDUCTIONS, attribute
from fastshap.ops.backend import BACKENDS, check_backend
from fastshap.ops.moments import moments
from fastshap.ops.perturb import perturb
from fastshap.ops.rows import MOST_TEXTS, Rows
from fastshap.ops.segment import segment_reduce

__all__ = [
    "BACKENDS",
    "MOST_TEXTS",
    "REDUCTIONS",
    "Rows",
    "attribute",
    "check_backend",
    "moments",
    "perturb",
    "segment_reduce",
]
