"""A model's modules and tensors. PyTorch's own walks build names on the way, which takes ten times as long."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator

from torch import Tensor, nn

_standing: weakref.WeakKeyDictionary[nn.Module, list[nn.Module]] = weakref.WeakKeyDictionary()


@contextlib.contextmanager
def standing(*trees: list[nn.Module]) -> Iterator[None]:
    """Inside the context, :func:`modules_of` returns these lists for their models and does not walk the models again."""
    before = [(modules[0], _standing.get(modules[0])) for modules in trees]
    _standing.update({modules[0]: modules for modules in trees})
    try:
        yield
    finally:
        for model, known in before:
            if known is None:
                _standing.pop(model, None)
            else:
                _standing[model] = known


def modules_of(model: nn.Module) -> list[nn.Module]:
    """As ``model.modules()`` gives them, each once, parents first."""
    known = _standing.get(model)
    if known is not None:
        return known
    found = {id(model): model}
    _walk(model, found)
    return list(found.values())


def _walk(module: nn.Module, found: dict[int, nn.Module]) -> None:
    for child in module._modules.values():
        if child is not None and id(child) not in found:
            found[id(child)] = child
            if child._modules:
                _walk(child, found)


def tensors_of(model: nn.Module) -> list[Tensor]:
    """Its parameters and buffers, each once."""
    return list(
        {
            id(tensor): tensor
            for module in modules_of(model)
            for held in (module._parameters, module._buffers)
            if held
            for tensor in held.values()
            if tensor is not None
        }.values()
    )


def first_parameter(model: nn.Module) -> nn.Parameter:
    """As ``next(model.parameters())`` gives it."""
    return next(one for module in modules_of(model) for one in module._parameters.values() if one is not None)
