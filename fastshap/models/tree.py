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
    found: dict[int, nn.Module] = {}
    waiting: list[nn.Module] = [model]
    while waiting:
        module = waiting.pop()
        if id(module) not in found:
            found[id(module)] = module
            if module._modules:
                waiting += [child for child in reversed(module._modules.values()) if child is not None]
    return list(found.values())


def tensors_of(model: nn.Module) -> list[Tensor]:
    """Its parameters and buffers, each once."""
    found: dict[int, Tensor] = {}
    for module in modules_of(model):
        for held in (module._parameters, module._buffers):
            for tensor in held.values() if held else ():
                if tensor is not None:
                    found[id(tensor)] = tensor
    return list(found.values())
