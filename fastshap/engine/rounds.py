"""Independent rounds of samples until the errors are small enough, and how far scores are from adding up."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

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


class Ends(NamedTuple):
    """What the model gives at the ends of a text's paths, each (T,) or (t,), over the samples of all rounds."""

    value: Tensor  # at the text
    baseline: Tensor  # the mean at the noisy baselines
    delta: Tensor  # the sum of all token scores minus the difference of these


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
        running = [self.begun(grouping) for grouping in groupings]
        n = self._settings.n_perturbations
        active = list(range(len(items)))
        while active:
            left, ours = [items[i] for i in active], [running[i] for i in active]
            samples = self.samples(left, ours[0].rounds, ours)
            work = n * sum(item.n_scores * len(item.input_ids) for item in left)
            report = stage(work, 1 if self._settings.rtol is None else 0.5)  # how many rounds are to come, nobody knows
            taken = Taken(ours, samples)
            for scored in token_scores(models, left, samples, self.scores, self.execution, report):
                taken.take(scored)
            taken.close()
            active = [i for i in active if not self.enough(running[i], rounds)]
        if self.execution.variances is not None:
            self.execution.variances.extend(map(_variance, running))
        return running

    def begun(self, grouping: Grouping) -> Running:
        """A text's scores, before the first round."""
        running = Running(grouping, self._settings.sampling)
        if self._settings.path_density == "auto" or self.execution.variances is not None:
            running.learned = learned.Learned(self._settings.sampling == "antithetic")
        return running

    def ends(self, models: Sequence[nn.Module], items: Sequence[Item], running: Sequence[Running]) -> list[Ends]:
        """Those of each text that was explained."""
        baselines: list[list[Tensor]] = [[] for _ in items]
        at_text: list[Tensor] = [torch.zeros(0, device="cpu")] * len(items)
        for round_ in range(max(its.rounds for its in running)):
            some = [i for i in range(len(items)) if running[i].rounds > round_]
            left = [items[i] for i in some]
            ends = [endpoints(samples, with_text=round_ == 0) for samples in self.samples(left, round_)]
            values = evaluate(models, left, ends, self.scores, self.execution)
            for i, value in zip(some, values, strict=True):
                if round_ == 0:
                    at_text[i], value = value[-1], value[:-1]
                baselines[i].append(value)
        each = zip(running, at_text, baselines, strict=True)
        return [ends_of(its, value, torch.cat(values)) for its, value, values in each]


class Taken:
    """One round of some texts: takes token scores as they come, which stay on the device, and adds all up at the end.

    Args:
        running: what came before, of each text.
        samples: those of each.
    """

    def __init__(self, running: Sequence[Running], samples: Sequence[Samples]) -> None:
        self._running, self._samples = running, samples
        self._found: list[Summary] = []
        self._spreads: list[tuple[int, Tensor]] = []

    def take(self, scored: Sequence[tuple[int, Tensor]]) -> None:
        """Texts' numbers, and their token scores (t, n, L)."""
        places = [k for k, _ in scored]
        each = summaries([self._running[k] for k in places], [scores for _, scores in scored])
        self._found += [one._replace(places=[places[place] for place in one.places]) for one in each]
        for k, scores in scored:
            if self._running[k].learned is not None:
                pairs = self._running[k].sampling == "antithetic"
                self._spreads.append((k, learned.spreads(scores, self._samples[k], pairs)))

    def close(self) -> None:
        """Adds what was taken to what came before."""
        for summary in _on_host(self._found):
            for k, moments in summary.of_each():
                self._running[k].add(len(self._samples[k].alphas), moments)
        if self._spreads:
            on_host = to_host([spread for _, spread in self._spreads])
            for (k, _), spread in zip(self._spreads, on_host, strict=True):
                self._running[k].learned.add(self._samples[k], spread.numpy())  # type: ignore[union-attr]


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


def ends_of(running: Running, value: Tensor, at_baselines: Tensor) -> Ends:
    """From the value at the text (T,), and those at the noisy baselines (samples, T)."""
    baseline = at_baselines.mean(0)
    return Ends(value, baseline, running.tokens.sum(1) - (value - baseline))


def endpoints(sample: Samples, with_text: bool) -> Samples:
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
