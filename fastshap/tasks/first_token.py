"""Classifiers that read the first token alone: once the last layer has attended, it need not go on with the other tokens.

Which models are so is found by trying: the logits must stay as they are with NaN in the last layer's other rows, so that they
hang on the first one alone, and logits and gradients must stay with those rows cut off.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastshap.engine.run import backward_only_once
from fastshap.models.replicas import is_plain, watched
from fastshap.models.tree import modules_of

# What follows a layer's attention and takes each token by itself: in BERT and its kin, in DistilBERT, in ModernBERT.
_AFTER_ATTENTION = ("attention.output", "sa_layer_norm", "mlp_norm")
_KNOWN = ("transformers.", "torch.nn.")
_PLAIN = (bool, int, float, str)  # values that a module may go by


class Cut(NamedTuple):
    """Where the rows of all tokens but the first are cut off: at the input of a part of the last layer."""

    layer: str
    part: str


def structure_of(model: nn.Module) -> Any:
    """What a model is made of; where that has changed, a cut that was right may be so no more."""
    return [_structure_of(module) for module in modules_of(model)]


def _structure_of(module: nn.Module) -> tuple[Any, ...]:
    plain = [(name, value) for name, value in vars(module).items() if type(value) in _PLAIN and name != "training"]
    return id(module), type(module), is_plain(module), plain


def configuration(model: nn.Module) -> Any:
    """What else a cut may hang on: which token a head reads may stand in the configuration."""
    kinds: set[Any] = set(map(type, modules_of(model)))
    return repr(vars(model.config)), {kind: kind.forward for kind in kinds}, watched()


def cuts(model: nn.Module) -> list[Cut]:
    """Where a model can be cut, if its head reads the first token alone.

    Nowhere if anything in it is not as transformers and PyTorch make it, or hooks could see that something is missing.
    """
    stock = all(is_plain(module) and type(module).__module__.startswith(_KNOWN) for module in modules_of(model))
    if not stock or watched() or backward_only_once(model):
        return []
    found = []
    for name, layers in model.named_modules():
        if isinstance(layers, nn.ModuleList) and len(layers) > 0:
            for part in _AFTER_ATTENTION:
                with contextlib.suppress(AttributeError):
                    layers[-1].get_submodule(part)
                    found.append(Cut(f"{name}.{len(layers) - 1}", part))
    return found


@contextlib.contextmanager
def first_token_alone(model: nn.Module, cut: Cut | None, poisoned: bool = False) -> Iterator[None]:
    """Calls from this thread leave out what lies behind ``cut``; those from others, who may use the model too, nothing.

    Args:
        poisoned: the other rows are NaN, instead of being left out.
    """
    if cut is None:
        yield
        return
    hook = _FirstRows(threading.get_ident(), poisoned)
    handle = model.get_submodule(f"{cut.layer}.{cut.part}").register_forward_pre_hook(hook)
    try:
        yield
    finally:
        hook.thread = None
        handle.remove()


class _FirstRows:
    """The hook. A copy of it, in a copy of the model, does nothing."""

    def __init__(self, thread: int | None = None, poisoned: bool = False) -> None:
        self.thread, self.poisoned = thread, poisoned

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if threading.get_ident() != self.thread:
            return None
        if not arguments or not all(isinstance(one, Tensor) and one.ndim == 3 for one in arguments):
            raise ValueError("The part of the layer does not take rows of tokens.")
        if self.poisoned:
            return tuple(torch.cat([one[:, :1], torch.full_like(one[:, 1:], torch.nan)], 1) for one in arguments)
        return tuple(one[:, :1] for one in arguments)

    def __deepcopy__(self, memo: Any) -> _FirstRows:
        return _FirstRows()

    def __reduce__(self) -> Any:
        return _FirstRows, ()
