"""Tokens to the elements that scores are reported for: words, sentences and parts of sentences as the text shows them."""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastshap import ops
from fastshap.ops.transfer import to_device
from fastshap.text.encode import Encoded, first_visible
from fastshap.text.own_groups import keys_of
from fastshap.text.words import unspaced, word_starts
from fastshap.types import Granularity, GranularityAggregationStrategy
from fastshap.types.grouping import OwnGroups

_CLOSING = "\"'”’»)\\]"
_WIDE_CLOSING = "”’」』）】》〉"
# A mark ends a sentence where white space follows; those of scripts without spaces end it anywhere.
_SENTENCE_END = re.compile(rf"[.?!…؟।۔]+[{_CLOSING}]*(?=\s)|[。！？｡]+[{_WIDE_CLOSING}]*")
_PART_END = re.compile(rf"[,;:.?!…،؛؟।۔]+[{_CLOSING}]*(?=\s)|[。！？｡，、；：]+[{_WIDE_CLOSING}]*")
_ABBREVIATIONS = frozenset(
    """mr. mrs. ms. dr. prof. sr. jr. st. mt. etc. cf. vs. nb. env. approx. min. max. resp. ex. ref. inc. ltd. co. fig.
    eq. gen. col. lt. sgt. capt. rev. hon. gov. sen. rep. ph.d. m.sc. b.sc. m.d. al. ca. vol. pp. ed. est. dept.
    a.m. p.m.""".split()
)
_DOTTED = re.compile(r"(?:[^\W\d_]\.){2,}")  # U.S., e.g., i.e.
_OPENING = "\"'“‘«(["


@dataclass(frozen=True)
class Scope:
    """What the T targets of a text are to its L tokens. A task says so.

    Attributes:
        positions: (T,) int64, the token at whose place the model gives each target's score; None: it gives one row of scores
            for the text.
        hidden: (T, L) bool, the tokens that a target's score does not depend on; None: it depends on all.
        own: the token that each of the T targets is. Targets are then grouped as these tokens are, and called by the elements
            that they form. None: each target stands by itself.
        joined: (t, T) float32: what is explained are these sums of the T targets' scores (a span's, or a difference of two),
            and ``hidden`` is (t, L). None: each target's score is explained. Not beside ``own``.
    """

    positions: Tensor | None = None
    hidden: Tensor | None = None
    own: Sequence[int] | None = None
    joined: Tensor | None = None


TEXT = Scope()  # the text as a whole: one row of scores, which depends on all tokens


class Grouping:
    """The elements of one text, and what turns token scores into theirs.

    T targets and L tokens become t targets and G elements. Where targets are tokens themselves (``scope.own``), the t targets
    are the elements that they form. An element is hidden from a target where any of its tokens is. Where the caller ``joins``
    the targets' scores by ``joined`` before it takes gradients, the token scores that it brings have t rows, not T.

    Args:
        given: what :func:`groups` found before.

    Attributes:
        joined: (t, T) float32, what makes sums or means of the targets; None where the caller cannot or need not join them.
    """

    def __init__(
        self,
        encoded: Encoded,
        granularity: Granularity | OwnGroups,
        strategy: GranularityAggregationStrategy,
        backend: str = "auto",
        joins: bool = False,
        given: tuple[list[list[int]], list[str]] | None = None,
        scope: Scope = TEXT,
    ) -> None:
        self.encoded = encoded
        self.strategy = strategy.value
        self.backend = backend
        self.scope = scope
        self.members = given[0] if given else members_of(encoded, granularity)
        if not given and scope.own is not None and isinstance(granularity, OwnGroups):
            # Each token of the target is explained, also where no group holds it.
            held = {token for member in self.members for token in member}
            self.members = sorted([*self.members, *([token] for token in scope.own if token not in held)])
        if given:
            self.elements = given[1]
        self.joined = scope.joined if scope.joined is not None else self._as_sums() if joins else None

    @cached_property
    def elements(self) -> list[str]:
        """The elements as the text shows them."""
        return [_shown(self.encoded, member) for member in self.members]

    @cached_property
    def spans(self) -> list[tuple[int, int]]:
        """Where each element begins and ends in the text."""
        return [span(self.encoded, member) for member in self.members]

    @cached_property
    def segments(self) -> list[int]:
        """Which part of the text each element stands in, from 0."""
        parts = self.encoded.parts
        return [bisect.bisect_right(parts, member[0]) for member in self.members]

    @property
    def linear(self) -> bool:
        """Whether a group's score is a sum of its tokens', so that it can be formed sample by sample."""
        return self.strategy in ("sum", "mean") or all(len(member) == 1 for member in self.members)

    @cached_property
    def _own(self) -> dict[int, list[int]]:
        """The elements that targets form, with the targets of each."""
        number = {token: i for i, token in enumerate(self.scope.own or ())}
        formed = ([number[i] for i in member if i in number] for member in self.members)
        return {element: targets for element, targets in enumerate(formed) if targets}

    @cached_property
    def _target_members(self) -> list[list[int]] | None:
        """For each of the t targets the rows of token scores that it is made of; None: each row is one."""
        if self.scope.own is None:
            return None
        return list(self._own.values()) if self.joined is None else [[i] for i in range(len(self._own))]

    def _as_sums(self) -> Tensor | None:
        if self.scope.own is None or not self.linear or len(self._own) == len(self.scope.own):
            return None
        joined = torch.zeros(len(self._own), len(self.scope.own), device="cpu")
        for row, targets in zip(joined, self._own.values(), strict=True):
            row[targets] = 1 / len(targets) if self.strategy == "mean" else 1
        return joined

    @cached_property
    def _hidden(self) -> Tensor | None:
        """(t, G) bool."""
        if self.scope.hidden is None:
            return None
        flat, offsets = _flat_on_host(self.members)
        hidden = np.logical_or.reduceat(self.scope.hidden.numpy()[:, flat], offsets[:-1], axis=1)  # (T, G)
        if self.scope.own is not None:
            flat, offsets = _flat_on_host(list(self._own.values()))
            hidden = np.logical_or.reduceat(hidden[flat], offsets[:-1], axis=0)
        return torch.from_numpy(hidden)

    def names(self, target_names: list[str]) -> list[str]:
        """The t targets' names."""
        return target_names if self.scope.own is None else [self.elements[i] for i in self._own]

    def reduce(self, tokens: Tensor) -> Tensor:
        """Token scores (T, L) to attributions (t, G), what is hidden NaN."""
        scores = self._reduce(tokens, self.members)
        if self._target_members is not None:
            scores = self._reduce(scores.T, self._target_members).T
        return self.hide(scores).contiguous()

    @property
    def keeps_targets(self) -> bool:
        """Whether each of the targets that the caller's token scores are for is reported as it is."""
        if self.scope.own is None or self.joined is not None:
            return True
        return self._target_members == [[i] for i in range(len(self.scope.own))]

    def ends(self, values: Tensor) -> Tensor:
        """Of values (T, L), those of the token that FIRST or LAST takes for each group, (t, G)."""
        at, members = 0 if self.strategy == "first" else -1, self._target_members
        rows = list(range(len(values))) if members is None else [member[at] for member in members]
        return self.hide(values[rows][:, [member[at] for member in self.members]])

    def cells(self, targets: int) -> Tensor:
        """(T, L) int64: which of the t G attributions each token score goes into, counted row after row; -1 for none."""
        members = self._target_members
        rows = torch.arange(targets, device="cpu") if members is None else _places(members, targets)
        columns = _places(self.members, len(self.encoded))
        cells = rows[:, None] * len(self.members) + columns
        return cells.where((rows[:, None] >= 0) & (columns >= 0), -1)

    def hide(self, scores: Tensor) -> Tensor:
        """(t, G) with NaN for the elements that a target cannot see."""
        return scores if self._hidden is None else scores.masked_fill(self._hidden, torch.nan)

    def reduce_targets(self, values: Tensor) -> Tensor:
        """One value for each of the T targets to the t targets."""
        return values if self._target_members is None else self._reduce(values[None], self._target_members)[0]

    def unassigned(self, tokens: Tensor) -> Tensor:
        """(t,): the total of what no visible element shows."""
        others = sorted({*range(len(self.encoded))}.difference(*self.members))
        total = tokens[:, others].sum(1)  # (T,)
        if self._hidden is not None:
            places = _places(self.members, len(self.encoded))
            unseen = self._hidden[:, places] & (places >= 0)  # (t, L)
            rows = self._target_members or [[i] for i in range(len(unseen))]
            for targets, tokens_of_row in zip(rows, unseen, strict=True):
                total[targets] += tokens[targets][:, tokens_of_row].sum(1)
        return self.reduce_targets(total)

    def _reduce(self, values: Tensor, members: list[list[int]], backend: str = "torch") -> Tensor:
        """On the host unless a backend is named."""
        return ops.segment_reduce(values, *_flat(members, values.device), self.strategy, backend=backend)


def unassigned(groupings: Sequence[Grouping], tokens: Sequence[Tensor]) -> list[Tensor]:
    """:meth:`Grouping.unassigned` of many texts, of each one's token scores (T, L)."""
    found: dict[int, Tensor] = {}
    alike: dict[int, list[int]] = {}
    for i, (grouping, scores) in enumerate(zip(groupings, tokens, strict=True)):
        if grouping.scope.hidden is None and grouping.scope.own is None:
            alike.setdefault(scores.shape[0], []).append(i)
    for places in alike.values():
        flat, _ = _side_by_side([groupings[i] for i in places])
        together = torch.cat([tokens[i] for i in places], 1).numpy()
        other = np.ones(together.shape[1], np.bool_)
        other[flat] = False
        counts = np.add.reduceat(other, _starts(groupings[i] for i in places), dtype=np.int64)
        two = np.flatnonzero(counts == 2)  # most often
        others = np.flatnonzero(other)[np.repeat(counts == 2, counts)].reshape(-1, 2)
        totals = together[:, others[:, 0]] + together[:, others[:, 1]]
        found |= {places[k]: torch.from_numpy(total.copy()) for k, total in zip(two.tolist(), totals.T, strict=True)}
    return [
        found[i] if i in found else grouping.unassigned(scores)
        for i, (grouping, scores) in enumerate(zip(groupings, tokens, strict=True))
    ]


def reduce_samples(groupings: Sequence[Grouping], samples: Tensor) -> Tensor:
    """Token scores of every sample (T, n, M), the texts' tokens side by side, to (t, n, G) likewise.

    For linear strategies. Several texts at once must be alike in t, and keep their targets.
    """
    first, (targets, n, _) = groupings[0], samples.shape
    flat, offsets = _side_by_side(groupings)
    where = to_device(flat, samples.device), to_device(offsets, samples.device)
    scores = ops.segment_reduce(samples.flatten(0, 1), *where, first.strategy, backend=first.backend)
    scores = scores.unflatten(0, (targets, n))  # (T, n, G)
    if not first.keeps_targets:
        rows = first._target_members or []
        reduced = first._reduce(scores.flatten(1).T, rows, first.backend).T  # (t, n G)
        scores = reduced.unflatten(1, scores.shape[1:])
    masks: list[Any] = [grouping._hidden for grouping in groupings if grouping.scope.hidden is not None]
    if not masks:
        return scores
    return scores.masked_fill(to_device(torch.cat(masks, 1).numpy(), scores.device)[:, None], torch.nan)


def _side_by_side(groupings: Sequence[Grouping]) -> tuple[np.ndarray, np.ndarray]:
    """The members of all groups of texts whose tokens stand side by side, and where each group's begin and end."""
    members = [*itertools.chain.from_iterable([grouping.members for grouping in groupings])]
    flat, offsets = _flat_on_host(members)
    ends = offsets[[*itertools.accumulate([len(grouping.members) for grouping in groupings], initial=0)]]
    return flat + np.repeat(_starts(groupings), np.diff(ends)), offsets


def _starts(groupings: Iterable[Grouping]) -> list[int]:
    """Where the tokens of each text begin, side by side."""
    return [*itertools.accumulate([len(grouping.encoded) for grouping in groupings], initial=0)][:-1]


def _places(members: list[list[int]], length: int) -> Tensor:
    """(length,): which member each index belongs to; -1 for none."""
    places = torch.full((length,), -1, device="cpu")
    for number, member in enumerate(members):
        places[member] = number
    return places


def _flat(members: list[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    flat, offsets = _flat_on_host(members)
    return to_device(flat, device), to_device(offsets, device)


def _flat_on_host(members: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """All indices one after the other, and where each member's begin and end."""
    offsets = np.array([0, *itertools.accumulate(map(len, members))], np.int64)
    return np.fromiter(itertools.chain.from_iterable(members), np.int64, offsets[-1]), offsets


def groups(encoded: Encoded, granularity: Granularity | OwnGroups) -> tuple[list[list[int]], list[str]]:
    """The token indices of every element, in reading order, and the elements as the text shows them."""
    members = members_of(encoded, granularity)
    return members, [_shown(encoded, member) for member in members]


def members_of(encoded: Encoded, granularity: Granularity | OwnGroups) -> list[list[int]]:
    """The token indices of every element, in reading order. No element holds tokens of two parts of the text.

    Raises:
        InvalidArgumentError, InvalidTypeError: groups of one's own do not fit the text.
    """
    if granularity is Granularity.ALL_TOKENS:
        return [[i] for i in range(len(encoded))]
    if granularity is Granularity.TOKEN:
        return [[i] for i in range(len(encoded)) if not encoded.special[i]]
    keys = _keys(encoded, granularity)
    if encoded.parts:
        keys = [None if key is None else (bisect.bisect_right(encoded.parts, i), key) for i, key in enumerate(keys)]
    gathered: dict[Any, list[int]] = {}
    for i, key in enumerate(keys):
        if key in gathered:
            gathered[key].append(i)
        elif key is not None:
            gathered[key] = [i]
    return [gathered[key] for key in sorted(gathered)]


def _shown(encoded: Encoded, member: list[int]) -> str:
    start, end = span(encoded, member)
    return encoded.text[start:end] or encoded.tokens[member[0]]


def span(encoded: Encoded, member: list[int]) -> tuple[int, int]:
    """Where the element begins and ends in the text; (0, 0) for special tokens."""
    if encoded.special[member[0]]:
        return 0, 0
    return min(encoded.offsets[i][0] for i in member), max(encoded.offsets[i][1] for i in member)


def _keys(encoded: Encoded, granularity: Granularity | OwnGroups) -> Sequence[Any]:
    """What tokens of one element have in common, growing along the text; None for special tokens."""
    if isinstance(granularity, OwnGroups):
        return keys_of(encoded, granularity)
    if encoded.split and granularity in (Granularity.WORD, Granularity.TOKENIZER_WORD):
        return encoded.words
    if granularity is Granularity.WORD:
        return _word_keys(encoded)
    return (
        _tokenizer_word_keys(encoded)
        if granularity is Granularity.TOKENIZER_WORD
        else _sentence_keys(encoded, granularity)
    )


def _word_keys(encoded: Encoded) -> Sequence[Any]:
    """The word that a token begins in; without spaces between words, the tokenizer's word within it too."""
    text, starts = encoded.text, word_starts(encoded.text)
    if text.isascii():
        return [
            None
            if word is None
            else _run(text, starts, first_visible(text, (begin, end)))
            if text[begin : begin + 1].isspace()
            else bisect.bisect_right(starts, begin)
            for word, (begin, end) in zip(encoded.words, encoded.offsets, strict=True)
        ]
    keys: list[tuple[int, int] | None] = []
    piece, before = 0, None
    for word, span in zip(encoded.words, encoded.offsets, strict=True):
        first = first_visible(text, span)
        if word != before and first > 0 and (unspaced(text[first - 1]) or unspaced(text[first : first + 1])):
            piece += 1
        before = word
        keys.append(None if word is None else (_run(text, starts, first), piece))
    return keys


def _run(text: str, starts: list[int], first: int) -> int:
    """How many words have begun where a token does; one of white space alone belongs to what follows."""
    return bisect.bisect_right(starts, first) + text[first : first + 1].isspace()


def _tokenizer_word_keys(encoded: Encoded) -> list[tuple[int, int] | None]:
    """The tokenizer's word and the run of text between white space: some tokenizers take a whole text for one word."""
    starts = [match.start() for match in re.finditer(r"\S+", encoded.text)]
    return [
        None if word is None else (word, _run(encoded.text, starts, first_visible(encoded.text, span)))
        for word, span in zip(encoded.words, encoded.offsets, strict=True)
    ]


def _sentence_keys(encoded: Encoded, granularity: Granularity) -> list[int | None]:
    pattern = _SENTENCE_END if granularity is Granularity.SENTENCE else _PART_END
    ends = [match.end() for match in pattern.finditer(encoded.text) if not _abbreviates(encoded.text, match)]
    return [
        None if special else bisect.bisect_right(ends, first_visible(encoded.text, span))
        for special, span in zip(encoded.special, encoded.offsets, strict=True)
    ]


def _abbreviates(text: str, match: re.Match[str]) -> bool:
    """Whether the full stop matched ends an abbreviation, so that the sentence goes on."""
    mark = match.group()
    if mark.rstrip("\"'”’»)]") != ".":
        return False
    begin = match.start()
    while begin > 0 and not text[begin - 1].isspace():
        begin -= 1
    word = text[begin : match.start() + 1].lstrip(_OPENING)
    return word.lower() in _ABBREVIATIONS or _DOTTED.fullmatch(word) is not None
