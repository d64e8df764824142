"""A model on several devices: itself, and copies that are kept equal to it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from fastshap.errors import UnsupportedModelError
from fastshap.models.provenance import checksum, version_of
from fastshap.models.tree import modules_of, tensors_of

_PLAIN = (Tensor, nn.Parameter)


class Replicas:
    """Copies are made when they are first needed, and made again where the model was changed."""

    def __init__(self, model: nn.Module, further: Sequence[torch.device]) -> None:
        self._model = model
        self.further = further
        self._copies: list[nn.Module] = []
        self._copied: tuple[Any, Any] | None = None
        self._looked = False  # at the values, since the call began

    def begin(self) -> None:
        """A call begins. It looks at the values of the weights at least once."""
        self._looked = False

    def models(self, running: nn.Module) -> list[nn.Module]:
        """``running`` (the model, or a view of it) and copies of it, which are in the state that the model is in now."""
        if self.further:
            seen = version_of(self._model), hooks_of(self._model)
            if self._copied is None or self._copied[0] != seen or not self._looked:
                values = self._values()
                if self._copied != (seen, values):
                    self._copies = []  # first, so that there is room for the new ones
                    self._copies = [_copied(running, device) for device in self.further]
                    self._copied = seen, values
                self._looked = True
        return [running, *self._copies]

    def _values(self) -> Any:
        """Checksums that show whether weights have changed. Changes through .data show nowhere else. Reads all weights."""
        sums = [checksum(t) for t in tensors_of(self._model) if type(t) in _PLAIN and t.is_floating_point()]
        return torch.stack([one.to(sums[0].device) for one in sums]).tolist() if sums else []


def side_by_side(model: nn.Module, count: int) -> list[nn.Module]:
    """The model and copies that share its parameters, for threads of their own: whatever modules keep is each copy's own.

    The model alone where a copy might not be what it is: with hooks, replaced methods, compiled or quantised parts.
    """
    if (
        count < 2
        or not all(map(is_plain, modules_of(model)))
        or any(type(p) is not nn.Parameter for p in model.parameters())
    ):
        return [model]
    shared = {id(parameter): parameter for parameter in model.parameters()}
    try:
        return [model, *(copy.deepcopy(model, dict(shared)) for _ in range(count - 1))]
    except Exception:  # it holds a lock, an open file, a tensor with a history
        return [model]


def _copied(model: nn.Module, device: torch.device) -> nn.Module:
    """A copy on another device. Its weights go straight there, so that the model's own device needs no room for them."""
    try:
        moved = {id(tensor): _moved(tensor, device) for tensor in tensors_of(model) if type(tensor) in _PLAIN}
        return copy.deepcopy(model, moved).to(device)
    except Exception as error:
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot be copied to a second device, as something in it cannot be copied "
            f"({type(error).__name__}: {error}). Name one device."
        ) from error


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    there = tensor.detach().to(device, copy=True)
    made = nn.Parameter(there, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else there
    vars(made).update(vars(tensor))
    return made


def is_plain(module: nn.Module) -> bool:
    """Whether a module is as its class made it: without hooks, a forward of its own, or compiled parts."""
    plain = "forward" not in vars(module) and getattr(module, "_compiled_call_impl", None) is None
    return plain and not any(hooks_on(module))


def hooks_on(module: nn.Module) -> tuple[Mapping[int, Any], ...]:
    """All that hang on it, of each kind."""
    return module._forward_pre_hooks, module._forward_hooks, module._backward_pre_hooks, module._backward_hooks


def watched() -> bool:
    """Whether hooks hang on all modules there are."""
    return any(
        getattr(torch_module, f"_global_{kind}_hooks")
        for kind in ("forward", "forward_pre", "backward", "backward_pre")
    )


def hooks_of(model: nn.Module) -> list[tuple[int | None, ...]]:
    """What changes with the hooks of the model's modules."""
    return [(*module._forward_pre_hooks, None, *module._forward_hooks) for module in modules_of(model)]
