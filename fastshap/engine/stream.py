"""Texts that come and go: those under way share model calls, and between two calls others may join or leave.

:class:`fastshap.engine.rounds.Rounds` computes a list of texts; here each text has settings of its own. What rows of one call
share (the baseline, the size of the noise, the reduction, the scores) is said by whoever brings the texts.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fastshap.engine.estimate import Running
from fastshap.engine.packing import Item
from fastshap.engine.rounds import Ends, Rounds, Taken, endpoints, ends_of
from fastshap.engine.run import evaluate, token_scores
from fastshap.errors import FastshapError, ModelFailedError
from fastshap.sampling import Samples
from fastshap.text.groups import Grouping

_VALUE = 1 / 3  # what a row costs without a backward pass, beside one with


@dataclass
class _Stage:
    """Rows of a text that wait to run, and what those gave that ran."""

    samples: Samples
    gradients: bool  # token scores; otherwise the model's values there
    done: int = 0
    parts: list[Tensor] = field(default_factory=list)

    @property
    def left(self) -> int:
        return len(self.samples.alphas) - self.done

    def next(self, rows: int) -> Samples:
        some = slice(self.done, self.done + rows)
        its = self.samples
        members = None if its.members is None else its.members[some]
        return Samples(its.stream, its.alphas[some], its.draws[some], its.signs[some], its.weights[some], members)


class Text:
    """One text under way: the rows of its rounds, then the ends of its paths if they are wanted.

    Args:
        rounds: by its own settings.
        alike: texts share calls where this is equal.

    Attributes:
        found: its scores and ends once it is done, or the error that takes their place.
    """

    def __init__(self, item: Item, grouping: Grouping, rounds: Rounds, alike: Hashable, with_ends: bool) -> None:
        self.item, self.rounds, self.alike = item, rounds, alike
        self.running = rounds.begun(grouping)
        self.found: tuple[Running, Ends | None] | FastshapError | None = None
        self.ran = 0.0  # work so far
        self._with_ends, self._stages = with_ends, [_Stage(rounds.samples([item], 0, [self.running])[0], True)]
        self._ends: list[Tensor] = []

    @property
    def rows(self) -> int:
        """Rows that may run next."""
        return self._stages[0].left

    @property
    def row(self) -> float:
        """The work of one of them: tokens that are walked forward, and back once for each score."""
        return len(self.item.input_ids) * (self.item.n_scores if self._stages[0].gradients else _VALUE)

    @property
    def work(self) -> float:
        """The work that is left, as far as it can be foreseen: a round, and the ends of its paths."""
        left = self.rows * self.row
        if self._stages[0].gradients and self._with_ends:
            left += (self.rows + 1) * len(self.item.input_ids) * _VALUE
        return left

    def is_round(self, rows: int) -> bool:
        """Whether so many rows are a whole round with gradients."""
        return self._stages[0].gradients and self._stages[0].done == 0 and rows == self.rows

    @property
    def kind(self) -> tuple[Hashable, bool]:
        """What is equal for texts whose next rows share calls."""
        return self.alike, self._stages[0].gradients

    def next(self, rows: int) -> Samples:
        """The samples of its next rows."""
        return self._stages[0].next(rows)

    def ran_rows(self, rows: int, part: Tensor) -> bool:
        """Takes what its next rows gave: (t, rows, L), or (rows, t). True if that was the last of a round's gradients."""
        stage = self._stages[0]
        self.ran += rows * self.row
        stage.parts.append(part)
        stage.done += rows
        if stage.left:
            return False
        if stage.gradients:
            return True
        self._close_ends(self._stages.pop(0))
        return False

    def round_done(self) -> tuple[Samples, Tensor]:
        """The samples and token scores (t, n, L) of a round that is complete."""
        stage = self._stages.pop(0)
        return stage.samples, stage.parts[0] if len(stage.parts) == 1 else torch.cat(stage.parts, 1)

    def go_on(self) -> None:
        """After a round was added: what comes next."""
        rounds, running = self.rounds, self.running
        if not rounds.enough(running, None):
            self._stages = [_Stage(rounds.samples([self.item], running.rounds, [running])[0], True)]
        elif self._with_ends:
            each = [rounds.samples([self.item], i)[0] for i in range(running.rounds)]
            self._stages = [_Stage(endpoints(one, with_text=i == 0), False) for i, one in enumerate(each)]
        else:
            self.found = running, None

    def _close_ends(self, stage: _Stage) -> None:
        self._ends.append(torch.cat(stage.parts))
        if not self._stages:
            first, *others = self._ends
            self.found = self.running, ends_of(self.running, first[-1], torch.cat([first[:-1], *others]))


def advance(models: Sequence[nn.Module], work: Sequence[tuple[Text, int]]) -> list[Text]:
    """Runs the next so many rows of each text, and returns the texts that are done.

    After a whole round that was the last, the ends of its paths follow at once. They are of the same lengths as the round's
    rows, so calls are as full.

    Where the model fails, halving finds the text; its error is then what was found for it.
    """
    gradients = [one for one in work if one[0].kind[1]]
    values = [one for one in work if not one[0].kind[1]]
    rounds = [text for text, rows in gradients if text.is_round(rows)]
    _by_kind(models, gradients)
    ends = [(text, text.rows) for text in rounds if text.found is None and not text.kind[1]]
    _by_kind(models, values + ends)
    return [text for text, _ in work if text.found is not None]


def _by_kind(models: Sequence[nn.Module], work: Sequence[tuple[Text, int]]) -> None:
    kinds: dict[tuple[Hashable, bool], list[tuple[Text, int]]] = {}
    for text, rows in work:
        kinds.setdefault(text.kind, []).append((text, rows))
    for some in kinds.values():
        _advance(models, some)


def _advance(models: Sequence[nn.Module], work: Sequence[tuple[Text, int]]) -> None:
    try:
        parts = _parts(models, work)
    except Exception as error:
        if len(work) > 1:
            middle = len(work) // 2
            _advance(models[:1], work[:middle])
            _advance(models[:1], work[middle:])
        else:
            work[0][0].found = error if isinstance(error, FastshapError) else ModelFailedError.caused_by(error)
        return
    complete = [text for (text, rows), part in zip(work, parts, strict=True) if text.ran_rows(rows, part)]
    if not complete:
        return
    rounds = [text.round_done() for text in complete]
    taken = Taken([text.running for text in complete], [samples for samples, _ in rounds])
    taken.take([(k, scores) for k, (_, scores) in enumerate(rounds)])
    taken.close()
    for text in complete:
        text.go_on()


def _parts(models: Sequence[nn.Module], work: Sequence[tuple[Text, int]]) -> list[Tensor]:
    items, samples = [text.item for text, _ in work], [text.next(rows) for text, rows in work]
    its, (_, gradients) = work[0][0].rounds, work[0][0].kind
    if not gradients:
        return evaluate(models, items, samples, its.scores, its.execution)
    parts: list[Tensor] = [torch.empty(0, device="cpu")] * len(work)
    for scored in token_scores(models, items, samples, its.scores, its.execution):
        for k, scores in scored:
            parts[k] = scores
    return parts
