"""Rows to batches to gradients to token scores. Knows no task and no tokenizer.

Every text asks for n rows (perturbed copies). Rows of many texts share model calls: texts are sorted by number of targets and
length, cut into calls of at most ``batch_size`` rows, and one backward pass per target runs for a whole call.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastshap import ops
from fastshap.locks import lock_of
from fastshap.sampling import Samples

# Tokens of one model call under batch_size="auto", padding included.
_TOKENS_PER_CALL = 2048


@dataclass(frozen=True)
class Item:
    """One text to explain: L tokens, T targets. All on the CPU."""

    input_ids: Tensor  # (L,) int64
    targets: Tensor  # (T,) int64
    special: Tensor  # (L,) bool
    extra: dict[str, Tensor]  # (L,) each: further inputs of the model


@dataclass(frozen=True)
class Call:
    """What one model call gets; the task turns it into scores (R, T)."""

    inputs: dict[str, Tensor]  # inputs_embeds (R, L, D), attention_mask (R, L), position_ids where needed, extra inputs
    targets: Tensor  # (R, T) int64
    ends: Tensor  # (R,) int64: the column after each row's last token


@dataclass(frozen=True)
class Settings:
    """How rows are drawn and scored."""

    noise_std: float
    baseline: float | Tensor
    reduction: str
    input_x_gradient: bool
    perturb_special_tokens: bool
    batch_size: int | str
    backend: str
    padding_side: str = "right"
    equal_lengths: bool = False  # only texts of one length share a call


@dataclass(frozen=True)
class Piece:
    """The samples ``lo:hi`` of one item."""

    item: int
    lo: int
    hi: int


Forward = Callable[[Call], Tensor]


def plan(
    lengths: Sequence[int], targets: Sequence[int], rows: Sequence[int], batch_size: int | str, equal_lengths: bool
) -> Iterator[list[Piece]]:
    """Cuts the rows of all items into calls: one number of targets a call, longest first, so that padding stays small."""
    order = sorted(range(len(lengths)), key=lambda i: (targets[i], lengths[i]), reverse=True)
    call: list[Piece] = []
    room = 0
    first = -1
    for item in order:
        lo = 0
        while lo < rows[item]:
            mixed = first >= 0 and (
                targets[item] != targets[first] or (equal_lengths and lengths[item] != lengths[first])
            )
            if room == 0 or mixed:
                if call:
                    yield call
                call, first = [], item
                # Pairs of samples share their noise, so an even number is kept where "auto" is free to choose.
                room = batch_size if isinstance(batch_size, int) else max(2, _TOKENS_PER_CALL // lengths[item] // 2 * 2)
            hi = min(lo + room, rows[item])
            call.append(Piece(item, lo, hi))
            room -= hi - lo
            lo = hi
    if call:
        yield call


def token_scores(
    model: nn.Module, items: Sequence[Item], samples: Sequence[Samples], forward: Forward, settings: Settings
) -> Iterator[tuple[int, Tensor]]:
    """The scores of every target, sample and token: (number of the item, (T, n, L) float32 on the CPU), as they are ready."""
    # A text's samples are kept apart until all are there, so that the order of summation never depends on the batches.
    partial: dict[int, Tensor] = {}
    for pieces, scores in _run(
        _plan(items, samples, settings),
        lambda pieces: _call_scores(model, items, samples, pieces, forward, settings),  # (T, R, L)
    ):
        row = 0
        for piece in pieces:
            item = items[piece.item]
            length, count = len(item.input_ids), piece.hi - piece.lo
            columns = _columns(length, scores.shape[-1], settings.padding_side)
            held = partial.get(piece.item)
            if held is None:
                held = scores.new_empty(len(item.targets), len(samples[piece.item].alphas), length)
                partial[piece.item] = held
            held[:, piece.lo : piece.hi] = scores[:, row : row + count, columns]
            row += count
            if piece.hi == held.shape[1]:
                weights = torch.from_numpy(samples[piece.item].weights)
                yield piece.item, partial.pop(piece.item).cpu() * weights[:, None]


def evaluate(
    model: nn.Module, items: Sequence[Item], samples: Sequence[Samples], forward: Forward, settings: Settings
) -> list[Tensor]:
    """What ``forward`` gives for every row, without gradients: (rows, ...) on the CPU for each item."""
    parts: list[list[Tensor]] = [[] for _ in items]

    def call_values(pieces: Sequence[Piece]) -> Tensor:
        rows = _rows(model, items, samples, pieces, settings)
        with torch.no_grad():
            x = _embed(model, items, pieces)
            z = ops.perturb(x, rows, backend=settings.backend)
            return forward(_call(items, pieces, z, settings)).cpu()

    for pieces, values in _run(_plan(items, samples, settings), call_values):
        for piece, part in zip(pieces, values.split([p.hi - p.lo for p in pieces]), strict=True):
            parts[piece.item].append(part)
    return [torch.cat(part) for part in parts]


def _run(
    calls: Iterator[list[Piece]], run: Callable[[Sequence[Piece]], Tensor]
) -> Iterator[tuple[Sequence[Piece], Tensor]]:
    """Runs one call after another; a call that does not fit into the device's memory is run as two of half the rows."""
    for call in calls:
        waiting: list[Sequence[Piece]] = [call]
        while waiting:
            pieces = waiting.pop()
            try:
                result = run(pieces)
            except torch.OutOfMemoryError:
                if sum(piece.hi - piece.lo for piece in pieces) == 1:
                    raise
                result = None  # the halves run outside this block, which keeps the failed call's tensors alive
            if result is None:
                waiting += reversed(_halves(pieces))
            else:
                yield pieces, result


def _halves(pieces: Sequence[Piece]) -> tuple[list[Piece], list[Piece]]:
    room = sum(piece.hi - piece.lo for piece in pieces) // 2
    first: list[Piece] = []
    second: list[Piece] = []
    for piece in pieces:
        middle = min(piece.hi, piece.lo + room)
        room -= middle - piece.lo
        if middle > piece.lo:
            first.append(Piece(piece.item, piece.lo, middle))
        if middle < piece.hi:
            second.append(Piece(piece.item, middle, piece.hi))
    return first, second


def _plan(items: Sequence[Item], samples: Sequence[Samples], settings: Settings) -> Iterator[list[Piece]]:
    return plan(
        [len(item.input_ids) for item in items],
        [len(item.targets) for item in items],
        [len(sample.alphas) for sample in samples],
        settings.batch_size,
        settings.equal_lengths,
    )


def _call_scores(
    model: nn.Module,
    items: Sequence[Item],
    samples: Sequence[Samples],
    pieces: Sequence[Piece],
    forward: Forward,
    settings: Settings,
) -> Tensor:
    rows = _rows(model, items, samples, pieces, settings)
    with torch.inference_mode(False), torch.no_grad():
        x = _embed(model, items, pieces)
        z = ops.perturb(x, rows, backend=settings.backend)
        call = _call(items, pieces, z.requires_grad_(), settings)
        with torch.enable_grad():
            totals = forward(call).sum(0).unbind()  # rows do not mix, so one pass gives every row's gradient
        scores = []
        for i, total in enumerate(totals):
            (gradient,) = torch.autograd.grad(total, z, retain_graph=i + 1 < len(totals))
            scores.append(
                ops.attribute(
                    gradient[None],
                    z.detach(),
                    x,
                    rows,
                    reduction=settings.reduction,
                    input_x_gradient=settings.input_x_gradient,
                    backend=settings.backend,
                )
            )
        return torch.cat(scores)


def _rows(
    model: nn.Module, items: Sequence[Item], samples: Sequence[Samples], pieces: Sequence[Piece], settings: Settings
) -> ops.Rows:
    device = device_of(model)
    lengths = [len(items[piece.item].input_ids) for piece in pieces]
    parts = [(samples[piece.item], slice(piece.lo, piece.hi)) for piece in pieces]
    held = None
    if not settings.perturb_special_tokens:
        held = torch.cat([items[piece.item].special for piece in pieces]).to(device)
    baseline = settings.baseline
    return ops.Rows(
        token_offsets=_offsets(lengths).to(device),
        row_offsets=_offsets([piece.hi - piece.lo for piece in pieces]).to(device),
        alphas=torch.from_numpy(np.concatenate([s.alphas[part] for s, part in parts])).to(device),
        streams=torch.tensor([s.stream for s, _ in parts], dtype=torch.int64, device="cpu").to(device),
        draws=torch.from_numpy(np.concatenate([s.draws[part] for s, part in parts])).to(device),
        signs=torch.from_numpy(np.concatenate([s.signs[part] for s, part in parts])).to(device),
        baseline=baseline.to(device) if isinstance(baseline, Tensor) else baseline,
        noise_std=settings.noise_std,
        held=held,
        length=max(lengths),
        padding_side=settings.padding_side,
    )


def _call(items: Sequence[Item], pieces: Sequence[Piece], z: Tensor, settings: Settings) -> Call:
    rows, length = z.shape[:2]
    mask = torch.zeros(rows, length, dtype=torch.int64, device="cpu")
    extra = {name: torch.zeros_like(mask) for piece in pieces for name in items[piece.item].extra}
    targets, ends = [], []
    row = 0
    for piece in pieces:
        item, count = items[piece.item], piece.hi - piece.lo
        columns = _columns(len(item.input_ids), length, settings.padding_side)
        mask[row : row + count, columns] = 1
        for name, values in extra.items():
            values[row : row + count, columns] = item.extra.get(name, 0)
        targets += [item.targets] * count
        ends += [columns.stop] * count
        row += count
    inputs = {"inputs_embeds": z, "attention_mask": mask.to(z.device)}
    inputs |= {name: values.to(z.device) for name, values in extra.items()}
    if settings.padding_side == "left":
        inputs["position_ids"] = (mask.cumsum(1) - 1).clamp_min(0).to(z.device)
    return Call(inputs, torch.stack(targets).to(z.device), torch.tensor(ends, device=z.device))


def _columns(tokens: int, length: int, padding_side: str) -> slice:
    start = length - tokens if padding_side == "left" else 0
    return slice(start, start + tokens)


def _offsets(counts: Sequence[int]) -> Tensor:
    return torch.tensor([0, *counts], dtype=torch.int64, device="cpu").cumsum(0)


def _embed(model: Any, items: Sequence[Item], pieces: Sequence[Piece]) -> Tensor:
    table = model.get_input_embeddings()
    ids = torch.cat([items[piece.item].input_ids for piece in pieces])
    return table(ids.to(device_of(model)))


def device_of(model: Any) -> torch.device:
    """Where the model's input embeddings lie."""
    return next(model.get_input_embeddings().parameters()).device


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, no parameter asking for a gradient, one caller at a time; put back as it was."""
    with lock_of(model):
        training = [module for module in model.modules() if module.training]
        wanting = [parameter for parameter in model.parameters() if parameter.requires_grad]
        try:
            for module in training:
                module.training = False
            for parameter in wanting:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter in wanting:
                parameter.requires_grad_(True)
            for module in training:
                module.training = True
