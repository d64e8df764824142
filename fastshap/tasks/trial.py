"""What a model computes at a few points of its own, so that ways to run it can be compared: logits and gradients.

The points hang on the model's embeddings alone, never on a text: a model is judged the same whatever is explained first.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import grad

from fastshap.engine.memory import collect_young
from fastshap.engine.run import backward_only_once
from fastshap.models.locks import lock_of

ToLogits = Callable[[Mapping[str, Any]], Tensor]
_Found = TypeVar("_Found")

_ROWS = 4096  # tokens of the table that points are made of, at most
_LEAST = 2e-5  # of the largest gradient: what rounding explains in float32, whatever was measured
# Padding that is masked has a weight of exactly zero; what comes through is not rounding.
_LEAK = 1e-6


class Ran(NamedTuple):
    """One call of the model."""

    logits: Tensor  # (R, classes) or (R, L, V)
    gradients: Tensor  # (R, L, D), of one score of each row

    def row(self, number: int, columns: slice) -> Ran:
        """One row's real columns, as if it had run alone."""
        here = slice(number, number + 1)
        logits = self.logits[here]
        return Ran(logits[:, columns] if logits.ndim == 3 else logits, self.gradients[here, columns])

    def tells(self) -> bool:
        """Whether anything can be compared with this: finite, and hanging on the text."""
        finite = bool(self.gradients.isfinite().all()) and not bool(self.logits.isnan().any())
        return finite and bool((self.gradients != 0).any())


def ran(forward: ToLogits, z: Tensor, inputs: Mapping[str, Tensor], real: Tensor | None = None) -> Ran:
    """Logits at z (R, L, D), and the gradient of a mix of each row's logits: at the columns ``real`` (R, L), or at all."""
    z = z.detach().clone().requires_grad_()
    with torch.enable_grad():
        logits = forward({"inputs_embeds": z, **inputs})
        (gradients,) = grad(_mixed(logits, real), z)
    collect_young()
    return Ran(logits.detach(), gradients)


def _mixed(logits: Tensor, real: Tensor | None) -> Tensor:
    """() a sum of logits with different weights; of (R, L, V), two tokens' at each real column."""
    if logits.ndim == 3:
        real = torch.ones(logits.shape[:2], dtype=torch.bool) if real is None else real
        real = real.to(logits.device)
        place = (real.cumsum(1) - 1)[real]
        tokens = torch.stack([place * 7919 + 13, place * 104729 + 7], 1) % logits.shape[2]
        logits = logits[real].gather(1, tokens)
    weights = 1.0 + torch.arange(logits.shape[-1], device=logits.device).cos()
    return (logits.float() * weights).sum()


@torch.no_grad()
def points(model: Any, lengths: Sequence[int], usable: Sequence[int]) -> list[Tensor]:
    """One point (1, L, D) for each length: half tokens of the model, half noise of their size; none with NaN or infinity.

    Args:
        usable: ids to take tokens from.

    Returns:
        Nothing where no token has a finite embedding.
    """
    table = model.get_input_embeddings()
    device = next(table.parameters()).device
    some = usable[:: max(1, len(usable) // _ROWS)]
    x = table(torch.tensor([list(some)], device=device))[0]
    x = x[x.isfinite().all(1)]
    if len(x) == 0:
        return []
    generator = torch.Generator("cpu").manual_seed(0)
    made = []
    size = x.float().std() if len(x) > 1 else x.float().abs().max()
    for length in lengths:
        ids = torch.randint(len(x), (length,), generator=generator, device="cpu").to(x.device)
        noise = torch.randn(length, x.shape[1], generator=generator, device="cpu").to(x.device)
        made.append(_within(0.5 * x[ids].float() + noise * size, x.dtype)[None])
    return made


def far(point: Tensor, columns: int) -> Tensor:
    """(1, columns, D), far from zero and from each other."""
    generator = torch.Generator("cpu").manual_seed(1)
    noise = torch.randn(1, columns, point.shape[2], generator=generator, device="cpu").to(point.device)
    return _within((5 * noise + 3) * point.float().std(), point.dtype)


def _within(values: Tensor, dtype: torch.dtype) -> Tensor:
    """In that precision, and so far below its largest number that a model can go on from there."""
    most = min(torch.finfo(one).max for one in (dtype, values.dtype)) / 8
    return values.clamp(-most, most).to(dtype)


class Judge:
    """Tells rounding from another function.

    Args:
        forward: runs the model.
        plain: what the model computes at points of one length, each alone.
        z: the first of those points (1, L, D).
    """

    def __init__(self, forward: ToLogits, plain: Sequence[Ran], z: Tensor, inputs: Mapping[str, Tensor]) -> None:
        values = torch.cat([one.logits.float().flatten(0, -2) for one in plain])
        values = values.where(values.isfinite(), 0.0)  # tokens that are never predicted
        # How far logits lie apart: beside a large bias, a share of their own size would say nothing.
        self.spread = float((values.amax(0) - values.amin(0)).max())
        self.eps = _eps(plain[0].logits, z)
        self.least, self.most = max(_LEAST, 4 * self.eps), max(1e-3, 32 * self.eps)
        self._forward, self._plain, self._z, self._inputs = forward, plain[0], z, inputs

    @cached_property
    def tolerance(self) -> float:
        """What rounding explains: measured, at a point that differs by rounding."""
        generator = torch.Generator("cpu").manual_seed(2)
        noise = torch.randn(self._z.shape, generator=generator, device="cpu").to(self._z.device)
        moved = ran(self._forward, (self._z.float() * (1 + self.eps * noise)).to(self._z.dtype), self._inputs)
        rounding = 8 * self.difference(moved, self._plain)
        return min(max(self.least, rounding), self.most) if rounding == rounding else self.most

    def difference(self, ours: Ran, theirs: Ran) -> float:
        """The larger of the logits' difference as a share of their spread, and of the gradients' as one of the largest."""
        if ours.logits.shape != theirs.logits.shape or ours.gradients.shape != theirs.gradients.shape:
            return float("inf")
        right = theirs.logits.float()
        apart = (ours.logits.float() - right).abs()
        apart = (apart - 32 * self.eps * right.abs()).clamp_min(0)
        apart = apart.where(ours.logits != theirs.logits, 0.0)  # infinities have no difference
        logits = apart.max() / self.spread if self.spread else apart.max() * float("inf")
        gradients = (ours.gradients.float() - theirs.gradients.float()).abs().max()
        worst = torch.stack([logits.nan_to_num(torch.inf), gradients / theirs.gradients.float().abs().max()])
        return float(worst.nan_to_num(torch.inf).max())

    def agree(self, ours: Ran, theirs: Ran) -> bool:
        """Whether the two differ by no more than rounding explains. NaN agrees with nothing."""
        apart = self.difference(ours, theirs)
        return apart <= self.least or (apart <= self.most and apart <= self.tolerance)  # measured where it matters


def leaks(gradient: Tensor, largest: Tensor) -> bool:
    """Whether a row hangs on columns that it should not see: their gradient is not zero."""
    return gradient.numel() > 0 and not bool(gradient.float().abs().max() <= _LEAK * largest.float().abs().max())


def _eps(logits: Tensor, z: Tensor) -> float:
    """The relative precision of the model's numbers."""
    coarse = max(torch.finfo(one.dtype).eps for one in (logits, z))
    tf32 = z.is_cuda and z.dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest"
    return max(coarse, 2**-10) if tf32 else coarse


def near(ours: Tensor, theirs: Tensor) -> bool:
    """The same logits but for rounding, as a share of the largest. NaN agrees with nothing, infinity with itself."""
    if ours.shape != theirs.shape:
        return False
    tolerance = max(1e-5, 4 * torch.finfo(ours.dtype).eps)
    ours, theirs = ours.float(), theirs.float()
    largest = theirs.abs().where(theirs.isfinite(), 0).max()
    return bool(((ours == theirs) | ((ours - theirs).abs() <= tolerance * largest)).all())


@contextlib.contextmanager
def as_written(model: nn.Module) -> Iterator[None]:
    """Compiled models run as they were written: a graph for each shape that is tried would take minutes."""
    stance = getattr(torch.compiler, "set_stance", None) if backward_only_once(model) else None
    with contextlib.nullcontext() if stance is None else stance("force_eager"):
        yield


_known: weakref.WeakKeyDictionary[Any, tuple[Any, dict[Any, Any]]] = weakref.WeakKeyDictionary()


def remembered(model: Any, state: Any, what: Any, find: Callable[[], _Found | None]) -> _Found | None:
    """What ``find`` found of a model in this state, now or before; None is not remembered.

    Args:
        state: what changes where the model does.
        what: names what is found.
    """
    with lock_of(remembered):
        before, found = _known.get(model, (None, {}))
    if before != state:
        found = {}
    if what not in found:
        new = find()
        if new is None:
            return None
        found[what] = new
        with lock_of(remembered):
            _known[model] = (state, found)
    result: _Found = found[what]
    return result
