"""A model on several devices: itself, and copies that are kept equal to it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Replicas:
    """Copies are made when they are first needed, and made again where the model was changed."""

    def __init__(self, model: nn.Module, further: Sequence[torch.device]) -> None:
        self._model = model
        self._further = further
        self._copies: list[nn.Module] = []
        self._copied: Any = None

    def models(self) -> list[nn.Module]:
        """The model and its copies, which are in the state that the model is in now."""
        if self._further:
            state = self._state()
            if state != self._copied:
                self._copies = []  # first, so that there is room for the new ones
                self._copies = [copy.deepcopy(self._model).to(device) for device in self._further]
                self._copied = state
        return [self._model, *self._copies]

    def _state(self) -> Any:
        """What tells whether the model has changed."""
        # Changes through .data leave no trace but in the values: in the sum of their bits, and in that of the values.
        plain = [
            t.detach() for t in _tensors(self._model) if type(t) in (Tensor, nn.Parameter) and t.is_floating_point()
        ]
        sums = [t.reshape(-1).view(_BITS[t.element_size()]).sum(dtype=torch.int64) for t in plain]
        sums += [t.sum(dtype=torch.float64).view(torch.int64) for t in plain]
        together = torch.stack([one.to(sums[0].device) for one in sums]).tolist() if sums else []
        return version_of(self._model), together, hooks_of(self._model)


def version_of(model: nn.Module) -> list[tuple[int, int, torch.dtype]]:
    """What changes with the model's parameters and buffers, but for changes through ``.data``."""
    return [(tensor.data_ptr(), tensor._version, tensor.dtype) for tensor in _tensors(model)]


def hooks_of(model: nn.Module) -> list[tuple[int | None, ...]]:
    """What changes with the hooks of the model's modules."""
    return [(*module._forward_pre_hooks, None, *module._forward_hooks) for module in model.modules()]


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
