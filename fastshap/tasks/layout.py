"""How rows of several texts may share a model call: found by running the model at points of several lengths."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastshap.engine.packing import columns
from fastshap.errors import UnsupportedModelError
from fastshap.tasks.embeddings import by_ids, same_from_ids, told
from fastshap.tasks.subject import Subject, own_embeddings, takes
from fastshap.tasks.trial import Judge, Ran, ToLogits, as_written, far, leaks, points, ran
from fastshap.text.encode import Encoded

_LENGTHS = (5, 23, 24)  # little padding and much, and no multiple of what a model may cut texts into
_LONGEST = 600  # tokens, at most, to reach beyond a model's local attention
_COMPANY = (0.4, 1.5, 0.8)  # sizes of the rows beside which a row has to come out as it does alone
_LOCAL = ("window", "kernel", "chunk", "block", "local", "stride")  # in the names of such sizes


class Sharing(NamedTuple):
    """How rows of several texts may share a model call."""

    padding_side: str | None  # None: only rows of one length may
    maskless: bool  # rows of one length need no attention mask
    in_place: bool = False  # the model writes into its inputs_embeds, so it gets a copy


NOTHING_SHARED = Sharing(None, False)


def find_layout(subject: Subject, texts: Iterable[Encoded]) -> Sharing | None:
    """Tries the model: where may padding stand, and the mask be missing, without changing what it computes?

    The texts decide nothing but whether the model computes the same from ids as from embeddings.

    Returns:
        None where nothing the model was tried on gave numbers that tell.

    Raises:
        UnsupportedModelError: the model cannot be run on ``inputs_embeds``, or computes something else from them.
    """
    if getattr(subject.model.config, "attention_type", None) == "block_sparse":
        raise UnsupportedModelError(
            f"{subject.model_name} changes its attention from block_sparse to full for a short text, and stays so: its scores "
            "depend on the texts before. Load it with attention_type='original_full'."
        )
    sizes = lengths(subject.model.config, subject.max_length())
    with as_written(subject.model), told(subject, "fails where it is tried"):
        layout = None
        if subject.found("embeddings", lambda: same_from_ids(subject, texts) or None):
            fits = False
            with _if_there_is_room():
                layout = subject.found("layout", lambda: _layout(subject, sizes))
                fits = True
            if not fits:  # here, where nothing keeps the failed call's tensors alive
                layout = _in_little_room(subject, sizes)
    subject.in_place = layout is not None and layout.in_place
    return layout


def _in_little_room(subject: Subject, sizes: Sequence[int]) -> Sharing | None:
    """Where the trial does not fit into the device's memory: less is tried, on fewer tokens, and rows share less.

    It is not remembered for other explainers, as there may be more room by then.
    """
    for size in sorted(sizes, reverse=True)[1:]:
        with _if_there_is_room():
            found = _layout(subject, [size], _COMPANY[:1])
            return None if found is None else NOTHING_SHARED._replace(in_place=found.in_place)
    return NOTHING_SHARED


def _layout(subject: Subject, sizes: Sequence[int], company: Sequence[float] = _COMPANY) -> Sharing | None:
    """How rows may share a call, found with points of so many tokens each, shortest first."""
    extra = subject.extra()
    z = points(subject.model, [*sizes, *[sizes[-1]] * len(company)], subject.ordinary_tokens())
    if not z:
        return None
    # Rows of one length that differ in all that a model could share among rows: the order of tokens, and their size.
    z, others = z[: len(sizes)], [size * point for size, point in zip(company, z[len(sizes) :], strict=True)]
    in_place = False

    def forward(inputs: Mapping[str, Any]) -> Tensor:
        return subject.logits_in_company(subject.model, own_embeddings(inputs) if in_place else inputs)

    with told(subject, "gives no gradients of inputs_embeds", by_ids(subject)):
        try:
            first = ran(forward, z[0], masked(z[0], extra))
        except RuntimeError as error:
            in_place = "leaf Variable" in str(error) and "in-place" in str(error)
            if not in_place:
                raise
            first = ran(forward, z[0], masked(z[0], extra))
        rest = [ran(forward, one, masked(one, extra)) for one in (*z[1:], *others)]
    found = [first, *rest]
    if not all(one.tells() for one in found):
        return None
    alone, together = found[: len(z)], found[len(z) - 1 :]
    inputs = masked(z[-1], extra)
    judge = Judge(forward, together, z[-1], inputs)
    subject.check_model(forward, z[-1], inputs, alone[-1], judge)
    if not judge.spread:
        return None
    maskless = _maskless(subject, forward, torch.cat([z[-1], *others]), together, judge)
    return Sharing(_side(subject, forward, z, alone, judge), maskless, in_place)


def _side(subject: Subject, forward: ToLogits, z: Sequence[Tensor], alone: Sequence[Ran], judge: Judge) -> str | None:
    for side in ("right", "left"):
        if side == "left" and not takes(subject.model, "position_ids"):
            continue
        with _refused():
            if harmless(forward, z, alone, judge, subject.extra(), side):
                return side
    return None


def _maskless(subject: Subject, forward: ToLogits, z: Tensor, alone: Sequence[Ran], judge: Judge) -> bool:
    inputs = masked(z, subject.extra())
    together = ran(forward, z, inputs)
    apart = max(judge.difference(together.row(i, slice(None)), one) for i, one in enumerate(alone))
    if apart > judge.most:
        raise UnsupportedModelError(
            f"{subject.model_name} gives a text other numbers beside a second one than alone (apart by {apart:.3g} of the "
            "largest): its rows mix, or its outputs hang on chance. Neither can be explained."
        )
    fits = False
    with _refused():
        fits = without_mask(forward, z, alone, judge, inputs)
    return fits  # noqa: RET504


def lengths(config: Any, most: int | None) -> list[int]:
    """How long the points are on which padding is tried: some short, and one beyond what the model mixes locally."""
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    sizes = [
        value
        for name, values in vars(config).items()
        if any(word in name for word in _LOCAL)
        for value in (values if isinstance(values, list | tuple) else [values])
        if isinstance(value, int) and _LENGTHS[-1] <= value + 7 <= min(_LONGEST, most or _LONGEST)
    ]
    wanted = [*_LENGTHS, *(size + 7 for size in sorted(sizes)[-1:])]
    return sorted({min(length, most or length) for length in wanted})


def masked(z: Tensor, extra: Sequence[str]) -> dict[str, Tensor]:
    """What the model gets beside z (R, L, D) where all of it is text."""
    ones = torch.ones(z.shape[:2], dtype=torch.int64, device=z.device)
    return {"attention_mask": ones, **{name: torch.zeros_like(ones) for name in extra}}


def padded(points: Sequence[Tensor], side: str, filled: Sequence[bool]) -> tuple[Tensor, Tensor]:
    """(R, L, D) points in one call, padded with zeros or with what is far from them, and the mask (R, L) of what is real."""
    longest = max(point.shape[1] for point in points)
    rows, mask = [], torch.zeros(len(points), longest, dtype=torch.int64, device=points[0].device)
    for i, (point, away) in enumerate(zip(points, filled, strict=True)):
        mask[i, columns(point.shape[1], longest, side)] = 1
        room = longest - point.shape[1]
        padding = far(point, room) if away else point.new_zeros(1, room, point.shape[2])
        rows.append(torch.cat([padding, point] if side == "left" else [point, padding], 1))
    return torch.cat(rows), mask


def harmless(
    forward: ToLogits, points: Sequence[Tensor], alone: Sequence[Ran], judge: Judge, extra: Sequence[str], side: str
) -> bool:
    """Whether points of several lengths, padded in one call, come out as they do alone."""
    if len(points) < 2:
        return False
    rows, right = [*points, *points[:-1]], [*alone, *alone[:-1]]  # the longest, the last, has no padding
    filled = [True] * len(points) + [False] * (len(points) - 1)
    z, mask = padded(rows, side, filled)
    inputs = {"attention_mask": mask, **{name: torch.zeros_like(mask) for name in extra}}
    if side == "left":
        inputs["position_ids"] = (mask.cumsum(1) - 1).clamp_min(0)
    together = ran(forward, z, inputs, mask.bool())
    for i, (point, theirs) in enumerate(zip(rows, right, strict=True)):
        ours = together.row(i, columns(point.shape[1], z.shape[1], side))
        padding = together.gradients[i][mask[i] == 0]
        if not judge.agree(ours, theirs) or leaks(padding, theirs.gradients):
            return False
    return True


def without_mask(
    forward: ToLogits, z: Tensor, alone: Sequence[Ran], judge: Judge, inputs: Mapping[str, Tensor]
) -> bool:
    """Whether rows of one length come out the same where no mask is passed."""
    bare = {name: value for name, value in inputs.items() if name != "attention_mask"}
    together = ran(forward, z, bare)
    return all(judge.agree(together.row(i, slice(None)), theirs) for i, theirs in enumerate(alone))


@contextlib.contextmanager
def _if_there_is_room() -> Iterator[None]:
    """What does not fit into the device's memory is left out."""
    try:
        yield
    except torch.OutOfMemoryError:
        return


@contextlib.contextmanager
def _refused() -> Iterator[None]:
    """A way that the model refuses is none."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception:
        return
