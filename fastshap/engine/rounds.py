"""Independent rounds of samples until the errors are small enough, and how far scores are from adding up."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fastshap.engine import learned
from fastshap.engine.estimate import RoundMoments, Running, Summary, summaries
from fastshap.engine.packing import Execution, Item
from fastshap.engine.run import Forward, Report, evaluate, token_scores
from fastshap.ops.transfer import to_host
from fastshap.sampling import PathDensity, Samples, draw_all
from fastshap.settings import Settings
from fastshap.text.groups import Grouping
from fastshap.types.baselines import BaselineSet

Stage = Callable[[int, float], Report | None]  # of so much work, and the share of all that is left that it makes up


@dataclass(frozen=True)
class Rounds:
    """Computes texts on models that are equal.

    Args:
        scores: the targets' scores (R, T) of a model's call.
    """

    execution: Execution
    scores: Forward

    @property
    def _settings(self) -> Settings:
        return self.execution.settings

    @property
    def _pairs(self) -> bool:
        return self._settings.sampling == "antithetic"

    def samples(self, items: Sequence[Item], round_: int, running: Sequence[Running] | None = None) -> list[Samples]:
        """Those of one round of each text. ``running``: what came before, which a learned density depends on."""
        its = self._settings
        density: PathDensity
        if not isinstance(its.path_density, str):
            density = its.path_density
        elif round_ == 0 or running is None:
            density = None
        else:
            density = np.stack([_density(one) for one in running])
        return draw_all(
            its.seed,
            [item.input_ids for item in items],
            its.n_perturbations,
            its.sampling,
            round_,
            density,
            len(its.baseline) if isinstance(its.baseline, BaselineSet) else None,
        )

    def enough(self, running: Running, rounds: int | None) -> bool:
        """Whether a text needs no further round; ``rounds``: just so many, whatever ``rtol`` asks for."""
        its = self._settings
        if rounds is not None:
            return running.rounds == rounds
        if its.rtol is None or its.max_perturbations is None:
            return True
        if not bool(running.tokens.isfinite().all()) or running.meets(its.rtol):
            return True
        return running.samples + its.n_perturbations > its.max_perturbations

    def run(
        self,
        models: Sequence[nn.Module],
        items: Sequence[Item],
        groupings: Sequence[Grouping],
        stage: Stage,
        rounds: int | None = None,
    ) -> list[Running]:
        """The scores of every text. Texts that have enough leave; the others share calls."""
        n = self._settings.n_perturbations
        running = [Running(grouping, self._settings.sampling) for grouping in groupings]
        if learns := self._settings.path_density == "auto" or self.execution.variances is not None:
            for one in running:
                one.learned = learned.Learned(self._pairs)
        active = list(range(len(items)))
        while active:
            left = [items[i] for i in active]
            samples = self.samples(left, running[active[0]].rounds, [running[i] for i in active])
            found: list[Summary] = []
            spreads: list[tuple[int, Tensor]] = []
            work = n * sum(item.n_scores * len(item.input_ids) for item in left)
            report = stage(work, 1 if self._settings.rtol is None else 0.5)  # how many rounds are to come, nobody knows
            for scored in token_scores(models, left, samples, self.scores, self.execution, report):
                ours = [active[k] for k, _ in scored]
                each = summaries([running[i] for i in ours], [scores for _, scores in scored])
                found += [one._replace(places=[ours[place] for place in one.places]) for one in each]
                if learns:
                    spreads += [(k, learned.spreads(scores, samples[k], self._pairs)) for k, scores in scored]
            for summary in _on_host(found):
                for i, moments in summary.of_each():
                    running[i].add(n, moments)
            if learns:
                for (k, _), spread in zip(spreads, to_host([spread for _, spread in spreads]), strict=True):
                    running[active[k]].learned.add(samples[k], spread.numpy())  # type: ignore[union-attr]
            active = [i for i in active if not self.enough(running[i], rounds)]
        if self.execution.variances is not None:
            self.execution.variances.extend(map(_variance, running))
        return running

    def deltas(self, models: Sequence[nn.Module], items: Sequence[Item], running: Sequence[Running]) -> list[Tensor]:
        """(T,) or (t,) for each text: the sum of its token scores minus (F(x) - mean F(b_i)) over the samples of all rounds."""
        baselines: list[list[Tensor]] = [[] for _ in items]
        at_text: list[Tensor] = [torch.zeros(0, device="cpu")] * len(items)
        for round_ in range(max(its.rounds for its in running)):
            some = [i for i in range(len(items)) if running[i].rounds > round_]
            left = [items[i] for i in some]
            ends = [_endpoints(samples, with_text=round_ == 0) for samples in self.samples(left, round_)]
            values = evaluate(models, left, ends, self.scores, self.execution)
            for i, value in zip(some, values, strict=True):
                if round_ == 0:
                    at_text[i], value = value[-1], value[:-1]
                baselines[i].append(value)
        return [
            its.tokens.sum(1) - (own - torch.cat(values).mean(0))
            for its, own, values in zip(running, at_text, baselines, strict=True)
        ]


def at_texts(
    models: Sequence[nn.Module],
    items: Sequence[Item],
    forward: Forward,
    execution: Execution,
    baseline: float | Tensor | None = None,
) -> list[Tensor]:
    """What ``forward`` gives for the texts themselves, one row each, on the CPU.

    Args:
        baseline: what lies in the place of each token that its item does not call special; None: the token itself.
    """
    replaces = baseline is not None
    there = np.full(1, replaces, np.float32)
    here = Samples((0, 0, 0), there, np.zeros(1, np.int64), *np.ones((2, 1), np.float32))
    plain = dataclasses.replace(execution.settings, noise_std=0.0, baseline=0.0, perturb_special_tokens=not replaces)
    execution = dataclasses.replace(execution, settings=plain, baseline=0.0 if baseline is None else baseline)
    values = evaluate(models, items, [here] * len(items), forward, execution)
    return [value[0] for value in values]


def _variance(running: Running) -> np.ndarray:
    return running.learned.variance(running.tokens.numpy())  # type: ignore[union-attr]


def _density(running: Running) -> np.ndarray:
    return learned.density([_variance(running)])


def _on_host(found: Sequence[Summary]) -> list[Summary]:
    waiting = iter(to_host([tensor for summary in found for tensor in summary.moments if tensor is not None]))
    return [
        summary._replace(moments=RoundMoments(*(None if one is None else next(waiting) for one in summary.moments)))  # type: ignore[arg-type]
        for summary in found
    ]


def _endpoints(sample: Samples, with_text: bool) -> Samples:
    """The noisy baseline of every sample, and the text itself last where wanted."""
    if not with_text:
        return sample._replace(alphas=np.ones_like(sample.alphas))
    return Samples(
        sample.stream,
        np.append(np.ones_like(sample.alphas), np.float32(0)),
        np.append(sample.draws, sample.draws[-1]),
        np.append(sample.signs, np.float32(1)),
        np.append(sample.weights, np.float32(1)),
        None if sample.members is None else np.append(sample.members, sample.members[-1]),
    )
