"""Ways to the logits of a language model's targets, without those of every position and token where the model allows it.

Each takes the model, a call and further options of the model's forward, and returns (R, T), the targets' own logits;
(R, T, V) at the targets' places; or (R, columns, V) for at least the last columns that the call asks for.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from fastshap.engine.packing import Call

Way = Callable[[Any, Call, Mapping[str, Any]], Tensor]


def full_logits(model: Any, call: Call, options: Mapping[str, Any]) -> Tensor:
    """(R, L, V)."""
    logits: Tensor = model(**call.inputs, **options).logits
    return logits


def kept_logits(model: Any, call: Call, options: Mapping[str, Any]) -> Tensor:
    """(R, kept, V): the model leaves out the columns before the first that is asked for."""
    logits: Tensor = model(**call.inputs, logits_to_keep=call.kept, **options).logits
    return logits


def target_logits(model: Any, call: Call, options: Mapping[str, Any]) -> Tensor:
    """(R, T): the output layer multiplies with the targets' rows alone; what the model does to its result stays in force.

    Raises:
        ValueError: the output layer is not a plain linear one, or the model does not use it as one.
    """
    head = _plain_head(model)

    def multiplied(hidden: Tensor) -> Tensor:
        at = hidden[call.places].unsqueeze(2)  # (R, T, 1, D)
        logits = at @ head.weight[call.targets].unsqueeze(3)  # (R, T, 1, 1)
        if head.bias is not None:
            logits = logits + head.bias[call.targets][..., None, None]
        return logits.squeeze(3)

    with _instead(head, multiplied):
        logits: Tensor = model(**call.inputs, **options).logits
    if logits.shape != (*call.targets.shape, 1):
        raise ValueError(f"The model made {tuple(logits.shape)} of the targets' logits.")
    return logits.squeeze(2)


def placed_logits(model: Any, call: Call, options: Mapping[str, Any]) -> Tensor:
    """(R, T, V): the output layer sees the targets' places alone.

    Raises:
        ValueError: as for :func:`target_logits`.
    """
    head = _plain_head(model)
    with _instead(head, lambda hidden: F.linear(hidden[call.places], head.weight, head.bias)):
        logits: Tensor = model(**call.inputs, **options).logits
    if logits.shape[:2] != call.targets.shape:
        raise ValueError(f"The model made {tuple(logits.shape)} of the logits at {tuple(call.targets.shape)} places.")
    return logits


def _plain_head(model: Any) -> nn.Linear:
    head = output_layer(model)
    if type(head) is not nn.Linear or type(head.weight) not in (nn.Parameter, Tensor) or "forward" in vars(head):
        raise ValueError("The output layer is not a plain linear one.")
    return head


def output_layer(model: Any) -> Any:
    """The layer that makes the logits; None where the model does not say which."""
    try:
        return model.get_output_embeddings()
    except (AttributeError, NotImplementedError):
        return None


def head_of(model: Any) -> Any:
    """What the output layer is and what hangs on it; where that has changed, a way that was exact may be so no more."""
    head = output_layer(model)
    if head is None:
        return None
    return type(head), "forward" in vars(head), (*head._forward_pre_hooks,), (*head._forward_hooks,)


@contextlib.contextmanager
def _instead(head: nn.Linear, compute: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """The layer computes this in this thread; in others, which may use the model meanwhile, what it always does."""
    thread = threading.get_ident()

    def forward(hidden: Tensor) -> Tensor:
        if threading.get_ident() != thread:
            return F.linear(hidden, head.weight, head.bias)
        return compute(hidden)

    head.forward = forward  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        del head.forward
