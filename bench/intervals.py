"""Do intervals hold the truth, and does stopping at ``rtol`` shift the scores? The library's own rounds, drawn many times.

``python -m bench.intervals`` computes, for each text, a long run that gives the truth and thousands of rounds, and replays runs from
them through the code that outputs take their errors from. Adds to ``bench/results/intervals.json``; about 20 minutes on one core.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import fastshap
from fastshap import engine
from fastshap.estimate import Running, summaries
from fastshap.explainer import _item
from fastshap.groups import Grouping


class Pool(fastshap.GradientShap):
    """Rounds of one text, as many as wanted."""

    def _computed(self, texts: Any, rounds: Any) -> Any:
        self.text = texts[0]
        return super()._computed(texts, rounds)

    def prepared(self, text: str, target: Any) -> None:
        self([text], [target])

    @property
    def grouping(self) -> Grouping:
        return self.text[1]

    def rounds(self, count: int, first: int = 0) -> Tensor:
        """(count, T, n, L): the token scores of independent rounds, numbered from ``first``."""
        one, grouping = self.text
        samples = [self._samples([one], round_)[0] for round_ in range(first, first + count)]
        items = [_item(one.encoded, one.targets, grouping.joined)] * count
        with engine.frozen(self.model):
            groups = engine.token_scores(
                [self.model], items, samples, self.task.scores, self._settings, self._budget
            )
            found = dict(scored for group in groups for scored in group)
        return torch.stack([found[i] for i in range(count)])
