"""Classifiers that read the first token alone: once the last layer has attended, it need not go on with the other tokens.

Which models are so is found by trying: where the logits stay as they are when the last layer is cut down to its first row, what
is cut off has no part in them, nor in their gradients.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastshap.engine import backward_only_once

# What follows a layer's attention and takes each token by itself: in BERT and its kin, in DistilBERT, in ModernBERT.
_AFTER_ATTENTION = ("attention.output", "sa_layer_norm", "mlp_norm")


class Cut(NamedTuple):
    """Where the rows of all tokens but the first are cut off: at the input of a part of the last layer."""

    layer: str
    part: str


def cuts(model: nn.Module) -> list[Cut]:
    """Where a model can be cut, if its head reads the first token alone."""
    if backward_only_once(model):
        return []  # a compiled graph is made for all rows
    found = []
    for name, layers in model.named_modules():
        if isinstance(layers, nn.ModuleList) and len(layers) > 0:
            for part in _AFTER_ATTENTION:
                with contextlib.suppress(AttributeError):
                    layers[-1].get_submodule(part)
                    found.append(Cut(f"{name}.{len(layers) - 1}", part))
    return found


def points(model: Any, tokens: int) -> Tensor:
    """(2, tokens, D) embeddings, each unlike the others, so that reading any token but the first makes a difference."""
    table = next(model.get_input_embeddings().parameters())
    noise = torch.randn(2, tokens, table.shape[1], generator=torch.Generator("cpu").manual_seed(0), device="cpu")
    return (noise.to(table.device) * table.float().std()).to(table.dtype)


@contextlib.contextmanager
def first_token_alone(model: nn.Module, cut: Cut | None) -> Iterator[None]:
    """Calls from this thread leave out what lies behind ``cut``; those from others, who may use the model too, nothing.

    Nothing is left out either while hooks could see that something is missing.
    """
    if cut is None or _is_watched(model, cut):
        yield
        return
    thread = threading.get_ident()

    def first_rows(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if threading.get_ident() != thread or not all(isinstance(one, Tensor) and one.ndim == 3 for one in arguments):
            return None
        return tuple(one[:, :1] for one in arguments)

    handle = model.get_submodule(cut.layer).get_submodule(cut.part).register_forward_pre_hook(first_rows)
    try:
        yield
    finally:
        handle.remove()


def _is_watched(model: nn.Module, cut: Cut) -> bool:
    """Whether hooks hang on the last layer, on the modules around it, or on those beside it."""
    seen = []
    module = model
    for name in cut.layer.split("."):
        seen += [module, *module.children()]
        module = module.get_submodule(name)
    return any(one._forward_hooks or one._forward_pre_hooks for one in [*seen, *module.modules()])
