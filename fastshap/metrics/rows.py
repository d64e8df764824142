"""Runs the steps of many measures, texts and methods side by side, so that their rows share model calls, each row once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastshap.errors import FastshapError
from fastshap.explainer import GradientShap
from fastshap.metrics.explained import Explained
from fastshap.metrics.measures import Measure, Skip, Target
from fastshap.metrics.perturbed import Replacement
from fastshap.tasks import baselines

NOT_FINITE = "the model's score is NaN or infinite"

_Row = tuple[Any, bytes, bytes]  # the score, the text with its targets, the tokens that are replaced


class Job(NamedTuple):
    """One measure of one target of one text."""

    explained: Explained
    target: int
    measure: Measure
    mode: Any  # the score that is looked at


class Rows:
    """Finds the scores of perturbed rows.

    Args:
        explainer_of: gives the explainer of a score.
    """

    def __init__(self, explainer_of: Callable[[Any], GradientShap], replacement: Replacement) -> None:
        self._explainer_of = explainer_of
        self._replacement = replacement

    def values(self, jobs: Sequence[Job], report: Callable[[int], None]) -> list[float | str]:
        """Each job's value, or why it has none. What is the same for several jobs is found once.

        Args:
            report: told of so many more jobs that have ended.
        """
        found: dict[int, float | str] = {}
        memos: dict[tuple[Any, ...], dict[Any, Any]] = {}
        known: dict[_Row, np.ndarray | str] = {}
        steps = {i: job.measure.steps(_target(job, memos)) for i, job in enumerate(jobs)}
        answers: dict[int, np.ndarray | None] = dict.fromkeys(steps)
        while answers:
            asked: dict[int, np.ndarray] = {}
            before = len(found)
            for i, answer in answers.items():
                try:
                    asked[i] = next(steps[i]) if answer is None else steps[i].send(answer)
                except StopIteration as end:
                    found[i] = end.value
                except Skip as skip:
                    found[i] = skip.reason
            rows = {i: self._rows(jobs[i], asked[i]) for i in asked}
            self._find({row: (jobs[i].explained, mask) for i in rows for row, mask in rows[i]}, known)
            answers = {}
            for i, own in rows.items():
                values = [known[row] for row, _ in own]
                problem = next((one for one in values if isinstance(one, str)), None)
                if problem is not None:
                    found[i] = problem
                else:
                    answers[i] = np.array([one[jobs[i].target] for one in values]) / _weight(jobs[i])  # type: ignore[index]
            report(len(found) - before)
        return [found[i] for i in range(len(jobs))]

    def _rows(self, job: Job, masks: np.ndarray) -> list[tuple[_Row, np.ndarray]]:
        tokens = masks.astype(np.float32) @ job.explained.belongs.astype(np.float32) > 0  # (m, L)
        return [((job.mode, job.explained.key, one.tobytes()), one) for one in tokens]

    def _find(self, wanted: dict[_Row, tuple[Explained, np.ndarray]], known: dict[_Row, Any]) -> None:
        new = {row: how for row, how in wanted.items() if row not in known}
        for mode in dict.fromkeys(row[0] for row in new):
            items = {}
            for row, (explained, tokens) in new.items():
                if row[0] is mode:
                    try:
                        items[row] = self._replacement.apply(explained.item, tokens)
                    except Skip as skip:
                        known[row] = skip.reason
            explainer = self._explainer_of(mode)
            with working(explainer):
                explainer._try_model(iter([explained.encoded for explained, _ in new.values()]))
                replaced = self._replacement.baseline
                if replaced is not None:
                    replaced = baselines.in_numbers(explainer.settings.baseline, explainer.task)
                found = explainer._work().at_texts([*items.values()], explainer.task.scores, replaced)
            for row, value in zip(items, found, strict=True):
                if isinstance(value, FastshapError):
                    known[row] = f"{type(value).__name__}: {value}"
                else:
                    known[row] = value.double().numpy() if bool(value.isfinite().all()) else NOT_FINITE


@contextlib.contextmanager
def working(explainer: GradientShap) -> Iterator[None]:
    """The explainer's model is at work: it is as explanations run it, and one caller's."""
    with explainer._desk.at_work() as model, explainer.task.running_on(model):
        explainer._replicas.begin()
        yield


def _weight(job: Job) -> float:
    return 1.0 if job.measure.of_explained_score else job.explained.weight(job.target)


def _target(job: Job, memos: dict[tuple[Any, ...], dict[Any, Any]]) -> Target:
    its = job.explained
    memo = memos.setdefault((job.mode, its.key, job.target, str(its.members)), {})
    return Target(its.scores[job.target], its.draws, its.is_sum(job.target), memo)
