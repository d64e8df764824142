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
        ran: its work so far.
        walked: its rows so far, times its tokens.
    """

    def __init__(self, item: Item, grouping: Grouping, rounds: Rounds, alike: Hashable, with_ends: bool) -> None:
        self.item, self.rounds, self.alike = item, rounds, alike
        self.running = rounds.begun(grouping)
        self.found: tuple[Running, Ends | None] | FastshapError | None = None
        self.ran, self.walked = 0.0, 0
        self._with_ends = with_ends
        # One with gradients; or the ends of the paths, of each round, as rounds differ in their random streams.
        self._stages = [_Stage(rounds.samples([item], 0, [self.running])[0], True)]
        self._samples = 0  # of rounds that are done

    @property
    def rows(self) -> int:
        """Rows that may run next."""
        return sum(stage.left for stage in self._stages)

    @property
    def row(self) -> float:
        """The work of one of them: tokens that are walked forward, and back once for each score."""
        return len(self.item.input_ids) * (self.item.n_scores if self.kind[1] else _VALUE)

    @property
    def work(self) -> float:
        """The work that is left, as far as it can be foreseen: a round, and the ends of all paths so far."""
        left = self.rows * self.row
        if self.kind[1] and self._with_ends:
            ends = self._samples + len(self._stages[0].samples.alphas) + 1
            left += ends * len(self.item.input_ids) * _VALUE
        return left

    def is_all(self, rows: int) -> bool:
        """Whether so many rows are a whole first round with gradients, so that the ends of its paths are as many."""
        return self.kind[1] and self._samples == self._stages[0].done == 0 and rows == self.rows

    @property
    def kind(self) -> tuple[Hashable, bool]:
        """What is equal for texts whose next rows share calls."""
        return self.alike, self._stages[0].gradients

    def next(self, rows: int) -> list[Samples]:
        """The samples of its next rows, of each round apart."""
        return [stage.next(some) for stage, some in self._shares(rows)]

    def _shares(self, rows: int) -> list[tuple[_Stage, int]]:
        """The stages that the next rows are of."""
        found = []
        for stage in self._stages:
            if some := min(rows, stage.left):
                found.append((stage, some))
                rows -= some
        return found

    def ran_rows(self, rows: int, parts: Sequence[Tensor]) -> bool:
        """Takes what its next rows gave: (t, rows, L), or (rows, t), of each round. True if that was the last of a round's
        gradients."""
        self.ran += rows * self.row
        self.walked += rows * len(self.item.input_ids)
        for (stage, some), part in zip(self._shares(rows), parts, strict=True):
            stage.parts.append(part)
            stage.done += some
        if self.rows or self.kind[1]:
            return not self.rows
        first, *others = [torch.cat(stage.parts) for stage in self._stages]
        self.found = self.running, ends_of(self.running, first[-1], torch.cat([first[:-1], *others]))
        return False

    def round_done(self) -> tuple[Samples, Tensor]:
        """The samples and token scores (t, n, L) of a round that is complete."""
        (stage,) = self._stages
        self._samples += len(stage.samples.alphas)
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


def advance(models: Sequence[nn.Module], work: Sequence[tuple[Text, int]]) -> list[Text]:
    """Runs the next so many rows of each text, and returns the texts that are done.

    Where all gradients of a text run here, the ends of its paths follow at once. They are as many, and of the same lengths, so
    calls are as full.

    Where the model fails, halving finds the text; its error is then what was found for it.
    """
    gradients = [one for one in work if one[0].kind[1]]
    values = [one for one in work if not one[0].kind[1]]
    whole = [text for text, rows in gradients if text.is_all(rows)]
    _by_kind(models, gradients)
    ends = [(text, text.rows) for text in whole if text.found is None and not text.kind[1]]
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


def _parts(models: Sequence[nn.Module], work: Sequence[tuple[Text, int]]) -> list[list[Tensor]]:
    """What the next rows of each text give, of each round apart."""
    each = [text.next(rows) for text, rows in work]
    items = [text.item for (text, _), its in zip(work, each, strict=True) for _ in its]
    samples = [one for its in each for one in its]
    rounds, (_, gradients) = work[0][0].rounds, work[0][0].kind
    found: list[Tensor] = [torch.empty(0, device="cpu")] * len(items)
    if gradients:
        for scored in token_scores(models, items, samples, rounds.scores, rounds.execution):
            for k, scores in scored:
                found[k] = scores
    else:
        found = evaluate(models, items, samples, rounds.scores, rounds.execution)
    flat = iter(found)
    return [[next(flat) for _ in its] for its in each]
