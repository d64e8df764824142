"""Rows to model calls: which rows share a call, and all that calls need, sent to the device together.

Every text asks for n rows (perturbed copies). Texts are sorted by number of scores and length and cut into calls. What calls
need beside the embeddings is laid out on the host for many calls at a time and sent in three copies, so that nothing is left
to send between one call and the next. A call whose rows are of one length has no attention mask, where the model does without.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastshap.engine.budget import Budget
from fastshap.engine.cutting import Piece, plan
from fastshap.engine.members import Members
from fastshap.ops import Rows
from fastshap.ops.transfer import to_device
from fastshap.sampling import Samples
from fastshap.settings import Settings
from fastshap.text.encode import Encoded

if TYPE_CHECKING:
    from fastshap.engine.graphs import Graphs

# Arrays begin at multiples of 16 bytes, as tensors of their own would.
_ALIGNMENT = 16
_ONE = torch.zeros(1, dtype=torch.int64, device="cpu")  # no target in particular


class Item(NamedTuple):
    """One text to explain: L tokens, T targets, t scores to differentiate. All on the CPU."""

    input_ids: Sequence[int]  # L
    targets: Tensor  # (T,) int64
    special: Sequence[bool]  # L
    extra: Mapping[str, Sequence[int]]  # L each: further inputs of the model
    joined: Tensor | None = None  # (t, T) float32: the scores as sums over targets; None: one a target, t = T
    positions: Tensor | None = None  # (T,) int64: the token at whose place each target's score is; None: one row a text
    sequences: Sequence[
        Sequence[int]
    ] = ()  # S lists of tokens' places, where the model reads these and not the text itself
    vectors: Tensor | None = None  # (T, E) float32: what each target is, where that is no number
    moved: Tensor | None = None  # (L, D) float32: what is added to the text's embeddings

    @classmethod
    def of(
        cls,
        encoded: Encoded,
        targets: Tensor | None,
        positions: Tensor | None,
        joined: Tensor | None = None,
        vectors: Tensor | None = None,
    ) -> Item:
        """A tokenised text; without ``targets`` one for each of the rows that are asked for."""
        if targets is None:
            targets = _ONE if positions is None else torch.zeros(len(positions), dtype=torch.int64, device="cpu")
        return cls(
            encoded.input_ids, targets, encoded.special, encoded.extra, joined, positions, encoded.sequences, vectors
        )

    @property
    def n_scores(self) -> int:
        """t."""
        return self.targets.numel() if self.joined is None else len(self.joined)

    def kind(self, equal_lengths: bool) -> tuple[int, ...]:
        """Texts share a call if these are equal: t, S, and the sequences' lengths if need be."""
        return self.n_scores, len(self.sequences), *(map(len, self.sequences) if equal_lengths else ())


@dataclass(frozen=True)
class Layout:
    """How rows of several texts lie in a call, as the model allows: found by trying it."""

    padding_side: str = "right"
    equal_lengths: bool = False  # only texts of one length share a call
    maskless: bool = False  # rows of one length need no attention mask


@dataclass(frozen=True)
class Execution:
    """How calls are made: by the settings, which decide the numbers, and by what decides none.

    ``baseline`` is that of the settings, in numbers. ``with_text``: there is one text, and each call has the text itself as a
    last row, which gets no score. ``with_ids``: calls have input_ids beside the embeddings. ``variances``: a list to which each
    text adds how its scores vary along the path (fastshap.engine.learned). ``graphs``: of small calls, where they are wanted.
    """

    settings: Settings
    layout: Layout
    backend: str
    budget: Budget
    baseline: float | Tensor | Members
    with_text: bool = False
    with_ids: bool = False
    variances: list[np.ndarray] | None = None
    graphs: Graphs | None = None


@dataclass(frozen=True)
class Call:
    """What one model call gets; the task turns it into scores (R, T)."""

    # inputs_embeds (R, L, D), attention_mask (R, L) and position_ids where needed, extra inputs
    inputs: dict[str, Tensor]
    targets: Tensor  # (R, T) int64
    joined: Tensor | None = None  # (R, t, T) float32, as for an item
    # (R, 1) int64, 0 .. R, and (R, T) int64, -L .. -1: the columns of the targets' positions, counted from the end
    at: tuple[Tensor, Tensor] | None = None
    kept: int = 0  # columns at the end that hold all of these
    # (R, S, W) int64: the columns that each sequence is made of, padded with -1; None: each row is one sequence
    sequences: Tensor | None = None
    padding_side: str = "right"  # of rows and sequences
    widths: tuple[int, ...] = ()  # S, the longest of each sequence
    apart: bool = False  # the model takes no padding: sequences of several lengths run one after the other
    vectors: Tensor | None = None  # (R, T, E) float32, as for an item

    @property
    def places(self) -> tuple[Tensor, Tensor]:
        """``logits[call.places]`` of (R, L, ...) are the rows (R, T, ...) at the targets' positions.

        Raises:
            ValueError: the task named no positions.
        """
        if self.at is None:
            raise ValueError("The targets of this call have no positions.")
        return self.at


@dataclass(frozen=True)
class Batch:
    """One model call's rows on the device; ``call`` still lacks its inputs_embeds."""

    pieces: Sequence[Piece]
    input_ids: Tensor  # (M,) packed
    rows: Rows
    call: Call
    weights: Tensor | None  # (R,) of the samples, where they are not all 1
    moved: Tensor | None  # (M, D) packed, as for items


def planned(
    items: Sequence[Item],
    samples: Sequence[Samples],
    execution: Execution,
    backward: bool,
    apart: Collection[int] = (),
) -> Iterator[list[Piece]]:
    """The calls for all samples of all items; see :func:`plan`."""
    return plan(
        [len(item.input_ids) for item in items],
        [item.kind(execution.layout.equal_lengths) for item in items],
        [len(sample.alphas) for sample in samples],
        execution.budget,
        execution.layout.equal_lengths,
        backward,
        apart,
    )


def sent(
    calls: Sequence[Sequence[Piece]],
    items: Sequence[Item],
    samples: Sequence[Samples],
    execution: Execution,
    device: torch.device,
) -> list[Batch]:
    """What the calls need, sent to the device together."""
    cargo = _Cargo()
    laid_out = [_lay_out(pieces, items, samples, execution, cargo) for pieces in calls]
    baseline = execution.baseline
    if isinstance(baseline, Members):
        baseline = baseline.at(device, max(length for length, _, _ in laid_out))
    elif isinstance(baseline, Tensor):
        baseline = baseline.to(device)
    tensors = cargo.send(device)
    return [
        _batch(pieces, items, length, kept, {name: tensors[i] for name, i in numbers.items()}, baseline, execution)
        for pieces, (length, kept, numbers) in zip(calls, laid_out, strict=True)
    ]


def columns(tokens: int, length: int, padding_side: str) -> slice:
    """Where a text's tokens lie in a row."""
    start = length - tokens if padding_side == "left" else 0
    return slice(start, start + tokens)


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


def _lay_out(
    pieces: Sequence[Piece], items: Sequence[Item], samples: Sequence[Samples], execution: Execution, cargo: _Cargo
) -> tuple[int, int, dict[str, int]]:
    """Loads what one call needs; its L, the columns at its end that are asked for, and where all lies in the cargo."""
    layout = execution.layout
    texts = [items[piece.item] for piece in pieces]
    drawn = [(samples[piece.item], slice(piece.lo, piece.hi)) for piece in pieces]
    lengths = [len(text.input_ids) for text in texts]
    counts = [piece.hi - piece.lo for piece in pieces]
    rows, length, side = sum(counts), max(lengths), layout.padding_side
    own = [text.targets.numel() for text in texts]
    arrays = {
        "input_ids": _side_by_side([text.input_ids for text in texts], np.int64),
        "token_offsets": _offsets(lengths),
        "row_offsets": _offsets(counts),
        "alphas": np.concatenate([sample.alphas[part] for sample, part in drawn]),
        "streams": np.array([sample.stream for sample, _ in drawn], np.int64),
        "draws": np.concatenate([sample.draws[part] for sample, part in drawn]),
        "signs": np.concatenate([sample.signs[part] for sample, part in drawn]),
        "targets": _targets(texts, own).repeat(counts, 0),
    }
    kept = 0
    if texts[0].positions is not None:
        # A text of fewer targets asks for its last token's again, and its scores leave that out.
        last = np.minimum(np.arange(max(own)), np.array(own)[:, None] - 1)
        places = [text.positions.numpy()[some] for text, some in zip(texts, last, strict=True)]  # type: ignore[union-attr]
        at = np.stack(places) - (np.array(lengths)[:, None] if side == "left" else length)
        arrays |= {"row": np.arange(rows)[:, None], "at": at.repeat(counts, 0)}
        kept = int(-at.min(initial=0))
    if texts[0].vectors is not None:
        some = [np.minimum(np.arange(max(own)), count - 1) for count in own]
        vectors = [text.vectors.numpy()[one] for text, one in zip(texts, some, strict=True)]  # type: ignore[union-attr]
        arrays["vectors"] = np.stack(vectors).repeat(counts, 0)
    if texts[0].sequences:
        arrays["sequences"] = _sequences(texts, lengths, length, side).repeat(counts, 0)
    if execution.with_ids:
        arrays["input input_ids"] = _table([text.input_ids for text in texts], length, side).repeat(counts, 0)
    for name in {name: None for text in texts for name in text.extra}:
        values = [text.extra.get(name) or [0] * size for text, size in zip(texts, lengths, strict=True)]
        arrays[f"input {name}"] = _table(values, length, side).repeat(counts, 0)
    if not texts[0].sequences and (not layout.maskless or min(lengths) < length):
        mask = _there(lengths, length, side).astype(np.int64).repeat(counts, 0)
        arrays["input attention_mask"] = mask
        if side == "left":
            arrays["input position_ids"] = (mask.cumsum(1) - 1).clip(0)
    if any(text.joined is not None for text in texts):
        joined = np.zeros((len(texts), texts[0].n_scores, max(own)), np.float32)
        for room, text, count in zip(joined, texts, own, strict=True):
            room[:, :count] = np.eye(count, dtype=np.float32) if text.joined is None else text.joined.numpy()
        arrays["joined"] = joined.repeat(counts, 0)
    if not execution.settings.perturb_special_tokens:
        arrays["held"] = _side_by_side([text.special for text in texts], np.bool_)
    if texts[0].moved is not None:
        arrays["moved"] = np.concatenate([text.moved.numpy() for text in texts])  # type: ignore[union-attr]
    weights = np.concatenate([sample.weights[part] for sample, part in drawn])
    if (weights != 1).any():
        arrays["weights"] = weights
    if isinstance(execution.baseline, Members):
        arrays["members"] = np.concatenate([sample.members[part] for sample, part in drawn])  # type: ignore[index]
    return length, kept, {name: cargo.add(array) for name, array in arrays.items()}


def _sequences(texts: Sequence[Item], lengths: Sequence[int], length: int, side: str) -> np.ndarray:
    """(texts, S, W) int64: the columns of each sequence, padded with -1 on the side where padding may stand."""
    width = max(len(one) for text in texts for one in text.sequences)
    table = np.full((len(texts), len(texts[0].sequences), width), -1, np.int64)
    for rows, text, own in zip(table, texts, lengths, strict=True):
        shift = columns(own, length, side).start
        for row, one in zip(rows, text.sequences, strict=True):
            row[columns(len(one), width, side)] = np.array(one) + shift
    return table


def _side_by_side(rows: Sequence[Sequence[int] | np.ndarray], dtype: Any) -> np.ndarray:
    return np.fromiter(itertools.chain.from_iterable(rows), dtype, sum(map(len, rows)))


def _targets(texts: Sequence[Item], own: Sequence[int]) -> np.ndarray:
    """(texts, T) int64."""
    if min(own) == max(own):  # most often
        return torch.stack([text.targets for text in texts]).numpy()
    return _table([text.targets.numpy() for text in texts], max(own))


def _offsets(sizes: Sequence[int]) -> np.ndarray:
    return np.array([*itertools.accumulate(sizes, initial=0)], np.int64)


def _table(rows: Sequence[Sequence[int] | np.ndarray], width: int, padding_side: str = "right") -> np.ndarray:
    """Rows of numbers, filled up with zeros: (rows, width) int64."""
    table = np.zeros((len(rows), width), np.int64)
    table[_there([len(row) for row in rows], width, padding_side)] = _side_by_side(rows, np.int64)
    return table


def _there(lengths: Sequence[int], width: int, padding_side: str) -> np.ndarray:
    """(rows, width) bool: whether a row of so many numbers has one there."""
    places, sizes = np.arange(width), np.array(lengths)[:, None]
    return places >= width - sizes if padding_side == "left" else places < sizes


def _batch(
    pieces: Sequence[Piece],
    items: Sequence[Item],
    length: int,
    kept: int,
    given: dict[str, Tensor],
    baseline: float | Tensor,
    execution: Execution,
) -> Batch:
    layout: dict[str, Any] = {name: given[name] for name in ("token_offsets", "row_offsets", "alphas", "streams")}
    side, apart = execution.layout.padding_side, execution.layout.equal_lengths
    rows = Rows(
        **layout,
        draws=given["draws"],
        signs=given["signs"],
        baseline=baseline,
        noise_std=execution.settings.noise_std,
        held=given.get("held"),
        length=length,
        padding_side=side,
        members=given.get("members"),
    )
    inputs = {name.removeprefix("input "): tensor for name, tensor in given.items() if name.startswith("input ")}
    at = (given["row"], given["at"]) if "at" in given else None
    texts = [items[piece.item].sequences for piece in pieces]
    widths = tuple(max(map(len, some)) for some in zip(*texts, strict=True))
    further = {name: given.get(name) for name in ("joined", "sequences", "vectors")}
    call = Call(inputs, given["targets"], at=at, kept=kept, padding_side=side, widths=widths, apart=apart, **further)
    return Batch(pieces, given["input_ids"], rows, call, given.get("weights"), given.get("moved"))
