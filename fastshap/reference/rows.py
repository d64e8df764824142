"""How the rows of one model call are laid out, shared by the operators that walk them.

N texts lie packed one after another: text n owns the tokens ``token_offsets[n]:token_offsets[n + 1]`` of x (M, D) and the rows
``row_offsets[n]:row_offsets[n + 1]`` of z (R, L, D). A row holds its text's tokens at columns 0.. (padding on the right) or at
the last columns (padding on the left).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fastshap.reference.philox import normals

# Elements of the float32 working set of one block: large enough to hide dispatch, small enough for the cache.
_BLOCK_ELEMENTS = 1 << 19


@dataclass(frozen=True)
class Even:
    """N texts of L tokens each, all with the same n draws: z is (N, n, L, D), and whole calls are computed at once."""

    texts: int
    rows: int  # n
    tokens: int  # L
    member: Tensor  # (n,) int64: which of the distinct draws a row takes
    draws: Tensor  # (distinct,) int64

    def parts(self, dim: int) -> Iterator[slice]:
        """Texts, so many at a time that the working set stays bounded."""
        step = max(1, _BLOCK_ELEMENTS // max(1, self.rows * self.tokens * dim))
        return (slice(lo, min(lo + step, self.texts)) for lo in range(0, self.texts, step))

    def noise(self, streams: Tensor, part: slice, dim: int) -> Tensor:
        """e of the distinct draws, (texts, distinct, L, D) float32, without signs."""
        texts, distinct = part.stop - part.start, len(self.draws)
        rows = texts * distinct
        e = normals(
            streams[part].repeat_interleave(distinct * self.tokens, 0),
            self.draws.repeat_interleave(self.tokens).repeat(texts),
            torch.arange(self.tokens, device=streams.device).repeat(rows),
            dim,
        )
        return e.reshape(texts, distinct, self.tokens, dim)

    def noise_of(self, rows: Tensor, streams: Tensor, dim: int) -> Tensor:
        """e of some rows of the call (m,), (m, L, D) float32, without signs."""
        draws = self.draws[self.member[rows % self.rows]]
        e = normals(
            streams[rows // self.rows].repeat_interleave(self.tokens, 0),
            draws.repeat_interleave(self.tokens),
            torch.arange(self.tokens, device=rows.device).repeat(len(rows)),
            dim,
        )
        return e.reshape(len(rows), self.tokens, dim)

    @property
    def in_pairs(self) -> bool:
        """Whether rows 2k and 2k + 1 share a draw, and no others do."""
        return self.rows == 2 * len(self.draws) and bool((self.member[::2] == self.member[1::2]).all())


def even(token_offsets: Tensor, row_offsets: Tensor, length: int, draws: Tensor) -> Even | None:
    """The call as an :class:`Even` one, if it is."""
    texts = len(row_offsets) - 1
    count = len(draws) // max(1, texts)
    if not texts or not count or not _equal_steps(token_offsets, length) or not _equal_steps(row_offsets, count):
        return None
    first = draws[:count]
    if texts > 1 and bool((draws.view(texts, count) != first).any()):
        return None
    distinct, member = torch.unique_consecutive(first, return_inverse=True)
    return Even(texts, count, length, member, distinct)


def _equal_steps(offsets: Tensor, step: int) -> bool:
    return all(after - before == step for before, after in itertools.pairwise(offsets.tolist()))


@dataclass(frozen=True)
class Span:
    """Some rows of one text."""

    text: int
    tokens: slice  # of x (M, D)
    rows: slice  # of z (R, L, D)
    columns: slice  # of z, where the tokens lie


def blocks(
    token_offsets: Tensor, row_offsets: Tensor, length: int, dim: int, padding_side: str
) -> Iterator[list[Span]]:
    """The rows of a call as spans, gathered into blocks of bounded size."""
    tokens, rows = token_offsets.tolist(), row_offsets.tolist()
    block: list[Span] = []
    used = 0
    for text in range(len(tokens) - 1):
        count = tokens[text + 1] - tokens[text]
        start = length - count if padding_side == "left" else 0
        # An even number of rows a span keeps antithetic pairs together, which halves the noise to generate.
        step = max(2, _BLOCK_ELEMENTS // max(1, count * dim) // 2 * 2)
        for lo in range(rows[text], rows[text + 1], step):
            hi = min(lo + step, rows[text + 1])
            size = (hi - lo) * count * dim
            if block and used + size > _BLOCK_ELEMENTS:
                yield block
                block, used = [], 0
            columns = slice(start, start + count)
            block.append(Span(text, slice(tokens[text], tokens[text + 1]), slice(lo, hi), columns))
            used += size
    if block:
        yield block


def block_noise(block: list[Span], streams: Tensor, draws: Tensor, signs: Tensor, dim: int) -> list[Tensor]:
    """The signed noise e of every span, (rows, tokens, D) float32 each, from one pass of the generator."""
    flat_streams, flat_draws, flat_positions, members = [], [], [], []
    for span in block:
        count = span.tokens.stop - span.tokens.start
        unique, member = torch.unique_consecutive(draws[span.rows], return_inverse=True)
        flat_streams.append(streams[span.text].expand(len(unique) * count, 3))
        flat_draws.append(unique.repeat_interleave(count))
        flat_positions.append(torch.arange(count, device=draws.device).repeat(len(unique)))
        members.append((len(unique), count, member))
    noise = normals(torch.cat(flat_streams), torch.cat(flat_draws), torch.cat(flat_positions), dim)
    parts = noise.split([unique * count for unique, count, _ in members])
    return [
        part.view(unique, count, dim)[member].mul_(signs[span.rows, None, None])
        for span, part, (unique, count, member) in zip(block, parts, members, strict=True)
    ]


def promoted(tensor: Tensor) -> Tensor:
    """The tensor in the precision to compute in: float32, or float64 where it is float64 already."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def baseline_of(span: Span, baseline: float | Tensor, members: Tensor | None) -> float | Tensor:
    """The baseline at the span's tokens: a number, (D,) or (tokens, D), of a set (rows, 1 or tokens, D); float32."""
    if not isinstance(baseline, Tensor):
        return baseline
    if members is not None:
        return members_of(baseline, members[span.rows], span.tokens.stop - span.tokens.start)
    baseline = promoted(baseline)
    return baseline if baseline.ndim == 1 else baseline[: span.tokens.stop - span.tokens.start]


def members_of(baseline: Tensor, members: Tensor, tokens: int) -> Tensor:
    """(m, 1 or tokens, D) float32: some members of a set (k, D) or (k, positions, D)."""
    chosen = baseline[members]
    return promoted(chosen[:, None] if chosen.ndim == 2 else chosen[:, :tokens])
