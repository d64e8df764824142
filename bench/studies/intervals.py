"""Do intervals hold the truth, and does stopping at ``rtol`` shift the scores? The library's own rounds, drawn many times.

``python -m bench.studies.intervals`` computes a thousand rounds or more of each text and replays runs from them through the
code that outputs take their errors from. The truth is the mean of all these rounds. Writes ``bench/results/intervals.json``;
a quarter of an hour on one core.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
from typing import Any

import torch
import transformers
from torch import Tensor

import fastshap
from bench.paths import RESULTS
from fastshap.engine import estimate
from fastshap.engine import run as engine
from fastshap.engine.estimate import LEAST_ROUNDS, RoundMoments, Running, error_between, student_quantile, summaries
from fastshap.engine.packing import Item
from fastshap.engine.rounds import Rounds
from fastshap.text.groups import Grouping

RESULT = RESULTS / "intervals.json"
TIED = "weak but witty"  # its words differ by 1 % in size, with opposite signs
STOPPED = (
    TIED,
    "A gorgeous, witty film, but the ending is dull.",
    "not good at all",
    "Terrible service; I want my money back.",
    "The battery died after two days, the screen cracked after three, and nobody answered the phone.",
    "Simply wonderful.",
)


class OfOneText(fastshap.GradientShap):
    """As many rounds of one text as are wanted."""

    def _score(self, prepared: Any, groupings: Any, *rest: Any) -> Any:
        self.texts = list(zip(prepared, groupings, strict=True))
        return super()._score(prepared, groupings, *rest)

    def of(self, text: str, target: Any, count: int) -> tuple[Grouping, Tensor]:
        """The text's elements, and the token scores (count, T, n, L) of independent rounds."""
        self([text], [target])
        ((one, grouping),) = self.texts
        item = Item.of(one.encoded, one.targets, one.scope.positions, grouping.joined)
        rounds = Rounds(self._execution, self.task.scores)
        samples = [rounds.samples([item], round_)[0] for round_ in range(count)]
        items = [item] * count
        with self._desk.at_work() as model:
            groups = engine.token_scores([model], items, samples, self.task.scores, self._execution)
            found = dict(scored for group in groups for scored in group)
        return grouping, torch.stack([found[i] for i in range(count)])


def summarised(grouping: Grouping, rounds: Tensor, sampling: str) -> list[RoundMoments]:
    return [summaries([Running(grouping, sampling)], [scores])[0].moments for scores in rounds]


def run_of(grouping: Grouping, n: int, sampling: str, parts: list[RoundMoments]) -> Running:
    running = Running(grouping, sampling)
    for part in parts:
        running.add(n, part)
    return running


def selected_alone(running: Running) -> Tensor:
    """(t, G): the error of the selected token, as if no other could be the right one."""
    parts, grouping = running._rounds, running.grouping
    within = torch.stack([part.error for part in parts]).square().sum(0).sqrt() / len(parts)
    error = within if len(parts) < LEAST_ROUNDS else error_between(torch.stack([part.tokens for part in parts]))
    selected, cells = running.attributions, grouping.cells(len(error))
    kept = cells >= 0
    chosen = error[kept].where(running.tokens[kept] == selected.flatten()[cells[kept]], 0)
    return torch.zeros(selected.numel()).scatter_reduce(0, cells[kept], chosen, "amax").view_as(selected)


def coverage(grouping: Grouping, scores: Tensor, sampling: str, rounds: int, replicates: int) -> dict[str, float]:
    """Of runs of so many rounds, drawn from those given: the share of 95 % intervals that hold the truth, for the worst
    element, on average, and for the worst with the selected token's error alone; and half their width over the RMS error.
    """
    parts, n = summarised(grouping, scores, sampling), scores.shape[2]
    expected = grouping.reduce(scores.mean((0, 2)))
    seen = ~expected.isnan()
    draw = torch.Generator().manual_seed(0)
    held, alone, half, off = [], [], [], []
    for _ in range(replicates):
        chosen = torch.randint(len(parts), (rounds,), generator=draw).tolist()
        running = run_of(grouping, n, sampling, [parts[i] for i in chosen])
        quantile = student_quantile(0.975, running.freedom)
        off.append((running.attributions - expected)[seen])
        half.append(quantile * running.standard_error()[seen])
        held.append(off[-1].abs() <= half[-1])
        alone.append(off[-1].abs() <= quantile * selected_alone(running)[seen])
    shares = torch.stack(held).double().mean(0)
    size = torch.stack(off).square().mean(0).sqrt()
    return {
        "least": float(shares.min()),
        "mean": float(shares.mean()),
        "least, selected token's error": float(torch.stack(alone).double().mean(0).min()),
        "half width over error": float((torch.stack(half).median(0).values / size).median()),
    }


def stopped(
    grouping: Grouping, scores: Tensor, sampling: str, rtol: float, replicates: int, most: int = 64
) -> dict[str, float]:
    """By how much the largest score of runs that stop at ``rtol`` is too large, in per cent of it, and their mean samples."""
    parts, n = summarised(grouping, scores, sampling), scores.shape[2]
    means = [part.groups[0] for part in parts if part.groups is not None]
    expected = torch.stack(means).double().mean(0)
    top = int(expected.abs().argmax())
    draw = torch.Generator().manual_seed(0)
    off, used = [], []
    for _ in range(replicates):
        running = Running(grouping, sampling)
        for i in torch.randint(len(parts), (most,), generator=draw).tolist():
            running.add(n, parts[i])
            if running.meets(rtol):
                break
        off.append(float(running.attributions[0, top] / expected[top]) - 1)
        used.append(running.samples)
    shift = torch.tensor(off, dtype=torch.float64)
    return {
        "bias, %": 100 * float(shift.mean()),
        "its standard error": 100 * float(shift.std()) / replicates**0.5,
        "samples": sum(used) / replicates,
    }


def covered(pair: tuple[Any, Any], replicates: int) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for strategy in ("signed_max", "max", "min"):
        options: dict[str, Any] = {
            "granularity": "sentence",
            "granularity_aggregation_strategy": strategy,
            "batch_size": 256,
        }
        for sampling, n in itertools.product(("antithetic", "iid"), (10, 20, 50)):
            explainer = OfOneText(*pair, n_perturbations=n, sampling=sampling, seed=5, **options)
            grouping, scores = explainer.of(TIED, 1, 1000)
            for rounds in (1, 4, 8, 16) if n == 10 else (1,):
                name = f"{strategy}, {sampling}, n={n}, rounds={rounds}"
                table[name] = coverage(grouping, scores, sampling, rounds, replicates)
                print(name, table[name], flush=True)
    return table


def biases(pair: tuple[Any, Any], replicates: int) -> dict[str, Any]:
    table: dict[str, Any] = {}
    required = estimate._LEAST_FREEDOM
    for sampling, n in (("antithetic", 5), ("iid", 5), ("antithetic", 4), ("antithetic", 10)):
        pools = [
            OfOneText(*pair, 256, n_perturbations=n, sampling=sampling, seed=11).of(text, 1, 2000) for text in STOPPED
        ]
        for rtol in {4: (0.5,), 5: (0.1, 0.2), 10: (0.05, 0.1, 0.2)}[n]:
            for least in (0, required):
                estimate._LEAST_FREEDOM = least
                found = [stopped(*pool, sampling, rtol, replicates) for pool in pools]
                shifts = [each["bias, %"] for each in found]
                name = f"{sampling}, n={n}, rtol={rtol}, {least or 'any'} degrees of freedom"
                table[name] = {
                    "bias, %": shifts,
                    "mean bias, %": sum(shifts) / len(shifts),
                    "standard error of each": max(each["its standard error"] for each in found),
                    "mean samples": sum(each["samples"] for each in found) / len(found),
                }
                print(name, table[name], flush=True)
    estimate._LEAST_FREEDOM = required
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--replicates", type=int, default=1500)
    replicates = parser.parse_args().replicates
    pair = fastshap.load_default_model()
    record = {
        "what": f'coverage of 95 % intervals on "{TIED}" as one sentence, and the bias of runs that stop at rtol on '
        f"{len(STOPPED)} texts, word by word; packaged model, {replicates} runs each",
        "machine": f"{platform.machine()}, no GPU, torch {torch.__version__}, transformers {transformers.__version__}",
        "coverage": covered(pair, replicates),
        "stopped": biases(pair, replicates),
    }
    RESULT.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
