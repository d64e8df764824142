"""Rows to model calls: which rows share a call, and all that calls need, sent to the device together.

Every text asks for n rows (perturbed copies). Texts are sorted by number of targets and length and cut into calls of at most
``batch_size`` rows. What calls need beside the embeddings is laid out on the host for many calls at a time and sent in three
copies, so that nothing is left to send between one call and the next.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastshap.ops import MOST_TEXTS, Rows
from fastshap.sampling import Samples

# Tokens of one model call under batch_size="auto", padding included.
_TOKENS_PER_CALL = 2048
# Calls whose inputs are sent together.
_CALLS_AHEAD = 64
# Kernels read fastest from addresses that are multiples of 16 bytes, and are compiled once where all are.
_ALIGNMENT = 16


@dataclass(frozen=True)
class Item:
    """One text to explain: L tokens, T targets. All on the CPU."""

    input_ids: Tensor  # (L,) int64
    targets: Tensor  # (T,) int64
    special: Tensor  # (L,) bool
    extra: dict[str, Tensor]  # (L,) each: further inputs of the model


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


@dataclass(frozen=True)
class Call:
    """What one model call gets; the task turns it into scores (R, T)."""

    inputs: dict[str, Tensor]  # inputs_embeds (R, L, D), attention_mask (R, L), position_ids where needed, extra inputs
    targets: Tensor  # (R, T) int64
    row: Tensor  # (R, 1) int64: 0 .. R
    before: Tensor  # (R, T) int64: where a text ends in its targets, the column before each of them


@dataclass(frozen=True)
class Batch:
    """One model call's rows on the device; ``call`` still lacks its inputs_embeds."""

    pieces: Sequence[Piece]
    input_ids: Tensor  # (M,) packed
    rows: Rows
    call: Call
    weights: Tensor | None  # (R,) of the samples, where they are not all 1


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
            if room == 0 or mixed or len(call) == MOST_TEXTS:
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


def planned(items: Sequence[Item], samples: Sequence[Samples], settings: Settings) -> Iterator[list[Piece]]:
    """The calls for all samples of all items."""
    return plan(
        [len(item.input_ids) for item in items],
        [len(item.targets) for item in items],
        [len(sample.alphas) for sample in samples],
        settings.batch_size,
        settings.equal_lengths,
    )


def halves(pieces: Sequence[Piece]) -> tuple[list[Piece], list[Piece]]:
    """The first and the second half of a call's rows."""
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


def batches(
    calls: Iterable[Sequence[Piece]],
    items: Sequence[Item],
    samples: Sequence[Samples],
    settings: Settings,
    device: torch.device,
) -> Iterator[list[Batch]]:
    """The calls in groups, the inputs of each group sent to the device together."""
    if isinstance(settings.baseline, Tensor):
        settings = dataclasses.replace(settings, baseline=settings.baseline.to(device))
    waiting = iter(calls)
    while ahead := list(itertools.islice(waiting, _CALLS_AHEAD)):
        cargo = _Cargo()
        described = [_describe(pieces, items, samples, settings, cargo) for pieces in ahead]
        tensors = cargo.send(device)
        yield [
            _batch(pieces, {name: tensors[number] for name, number in numbers.items()}, settings)
            for pieces, numbers in zip(ahead, described, strict=True)
        ]


def columns(tokens: int, length: int, padding_side: str) -> slice:
    """Where a text's tokens lie in a row."""
    start = length - tokens if padding_side == "left" else 0
    return slice(start, start + tokens)


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """A host array on the device, without waiting where that is possible."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def to_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors of one dtype on the CPU: from a GPU in a single copy, which alone is waited for."""
    if not tensors or not tensors[0].is_cuda:
        return [tensor.cpu() for tensor in tensors]
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    host = torch.empty(flat.shape, dtype=flat.dtype, device="cpu", pin_memory=True)
    host.copy_(flat, non_blocking=True)
    torch.cuda.current_stream(flat.device).synchronize()
    parts = host.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


class _Cargo:
    """Arrays that travel together, one buffer for each dtype."""

    def __init__(self) -> None:
        self._arrays: list[np.ndarray] = []

    def add(self, array: np.ndarray) -> int:
        """The number under which :meth:`send` returns it."""
        self._arrays.append(np.ascontiguousarray(array))
        return len(self._arrays) - 1

    def send(self, device: torch.device) -> list[Tensor]:
        out: list[Tensor] = [torch.empty(0, device="cpu")] * len(self._arrays)
        for dtype in {array.dtype for array in self._arrays}:
            numbers = [i for i, array in enumerate(self._arrays) if array.dtype == dtype]
            sizes = [-(-self._arrays[i].nbytes // _ALIGNMENT) * _ALIGNMENT // dtype.itemsize for i in numbers]
            buffer = np.zeros(sum(sizes), dtype)
            starts = np.cumsum([0, *sizes])
            for i, start in zip(numbers, starts, strict=False):
                buffer[start : start + self._arrays[i].size] = self._arrays[i].ravel()
            for i, part in zip(numbers, to_device(buffer, device).split(sizes), strict=True):
                out[i] = part[: self._arrays[i].size].view(self._arrays[i].shape)
        return out


def _describe(
    pieces: Sequence[Piece], items: Sequence[Item], samples: Sequence[Samples], settings: Settings, cargo: _Cargo
) -> dict[str, int]:
    """Loads what one call needs; where it lies in the cargo."""
    texts = [items[piece.item] for piece in pieces]
    drawn = [(samples[piece.item], slice(piece.lo, piece.hi)) for piece in pieces]
    lengths = [len(text.input_ids) for text in texts]
    counts = [piece.hi - piece.lo for piece in pieces]
    rows, length, targets = sum(counts), max(lengths), len(texts[0].targets)
    mask = np.zeros((rows, length), np.int64)
    extra = {name: np.zeros_like(mask) for text in texts for name in text.extra}
    before = np.zeros((rows, targets), np.int64)
    row = 0
    for text, count in zip(texts, counts, strict=True):
        here, there = slice(row, row + count), columns(len(text.input_ids), length, settings.padding_side)
        mask[here, there] = 1
        for name, values in extra.items():
            if name in text.extra:
                values[here, there] = text.extra[name].numpy()
        before[here] = there.stop - targets - 1 + np.arange(targets)
        row += count
    arrays = {
        "input_ids": np.concatenate([text.input_ids.numpy() for text in texts]),
        "token_offsets": np.cumsum([0, *lengths], dtype=np.int64),
        "row_offsets": np.cumsum([0, *counts], dtype=np.int64),
        "alphas": np.concatenate([sample.alphas[part] for sample, part in drawn]),
        "streams": np.array([sample.stream for sample, _ in drawn], np.int64),
        "draws": np.concatenate([sample.draws[part] for sample, part in drawn]),
        "signs": np.concatenate([sample.signs[part] for sample, part in drawn]),
        "targets": np.concatenate(
            [text.targets.numpy()[None].repeat(count, 0) for text, count in zip(texts, counts, strict=True)]
        ),
        "row": np.arange(rows)[:, None],
        "before": before,
        "attention_mask": mask,
    }
    arrays |= {f"extra {name}": values for name, values in extra.items()}
    if settings.padding_side == "left":
        arrays["position_ids"] = (mask.cumsum(1) - 1).clip(0)
    if not settings.perturb_special_tokens:
        arrays["held"] = np.concatenate([text.special.numpy() for text in texts])
    weights = np.concatenate([sample.weights[part] for sample, part in drawn])
    if (weights != 1).any():
        arrays["weights"] = weights
    return {name: cargo.add(array) for name, array in arrays.items()}


def _batch(pieces: Sequence[Piece], sent: dict[str, Tensor], settings: Settings) -> Batch:
    inputs = {name.removeprefix("extra "): tensor for name, tensor in sent.items() if name.startswith("extra ")}
    inputs["attention_mask"] = sent["attention_mask"]
    if "position_ids" in sent:
        inputs["position_ids"] = sent["position_ids"]
    layout: dict[str, Any] = {name: sent[name] for name in ("token_offsets", "row_offsets", "alphas", "streams")}
    rows = Rows(
        **layout,
        draws=sent["draws"],
        signs=sent["signs"],
        baseline=settings.baseline,
        noise_std=settings.noise_std,
        held=sent.get("held"),
        length=sent["attention_mask"].shape[1],
        padding_side=settings.padding_side,
    )
    return Batch(
        pieces, sent["input_ids"], rows, Call(inputs, sent["targets"], sent["row"], sent["before"]), sent.get("weights")
    )
