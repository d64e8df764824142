"""Which tensors a step uses that it neither makes nor is given."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from fastshap.models.tree import tensors_of


class OutsideTensorError(RuntimeError):
    """A step uses a tensor that may be gone when it runs again, such as a table that a module keeps for the last length."""


def outside_of(step: Callable[[], Any], model: nn.Module, given: Iterable[Tensor]) -> None:
    """Runs the step.

    Raises:
        OutsideTensorError: it uses a tensor that is none of the model's weights and buffers, was not given, and was not made by
            an operator of the step.
    """
    with _Watch([*tensors_of(model), *given]):
        step()


class _Watch(TorchDispatchMode):
    """A tensor from outside exists all the time, so its memory cannot be that of one that was made inside."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self._known = {_place(tensor) for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        is_new = func is torch.ops.aten.lift_fresh.default  # made by torch.tensor
        for one in () if is_new else tree_iter((args, kwargs)):
            if isinstance(one, Tensor) and one.numel() and _place(one) not in self._known:
                raise OutsideTensorError(
                    f"{func} uses a tensor {tuple(one.shape)} that is no weight or buffer of the model and was made before"
                )
        out = func(*args, **(kwargs or {}))
        self._known.update(_place(one) for one in tree_iter(out) if isinstance(one, Tensor))
        return out


def _place(tensor: Tensor) -> tuple[torch.device, int]:
    return tensor.device, tensor.untyped_storage().data_ptr()
