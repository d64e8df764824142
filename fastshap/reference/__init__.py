"""The operators in plain torch: the oracle for the GPU kernels, and the path that runs where there is no GPU kernel."""

from fastshap.reference.attribute import attribute
from fastshap.reference.moments import moments
from fastshap.reference.perturb import perturb
from fastshap.reference.philox import normals, philox4x32
from fastshap.reference.segment import segment_reduce

__all__ = ["attribute", "moments", "normals", "perturb", "philox4x32", "segment_reduce"]
