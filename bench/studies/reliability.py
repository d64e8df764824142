"""Is ``output.reliability`` the share of the scores' squared size that a repeated run finds again?

``python -m bench.studies.reliability`` explains texts with three models under many settings, each with several seeds. The truth
of a setting and text is the mean product of two runs over the mean square of one, ``s.s' / s.s``, over all pairs of its other
runs. Outputs are put in ten bins by their own reliability. For a language model a second table has the reliability by what is
explained, the noise, and n. Writes ``bench/results/reliability.json`` and prints both as Markdown;
about 20 minutes on one core.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from torch import Tensor

import fastshap
from bench.models import Subject, subject
from bench.paths import RESULTS
from fastshap.engine import run as engine
from fastshap.engine.estimate import LEAST_ROUNDS, Running, reliability, summaries
from fastshap.engine.packing import Item
from fastshap.sampling import draw_samples
from fastshap.text.groups import Grouping

RESULT = RESULTS / "reliability.json"
BINS = 10
TARGETS = (" Paris", " Celsius", " rain", " snow", " smoking", " yeast")
FOIL = " the"  # what a contrast takes the target's logit against
MODES = ("logits", "softmax", "log_softmax", "contrast")
NOISES = (0.1, 0.02, 0.005)
SAMPLES = (10, 30, 100)
# Runs of a language model's text, by noise and n: the bins' first, then those of the table by mode alone.
RUNS_OF_ALL_MODES = [
    ((0.1, 10), 8),
    ((0.02, 10), 8),
    *(((noise, n), 1) for n in SAMPLES for noise in NOISES if (noise, n) not in ((0.1, 10), (0.02, 10))),
]
RUNS = 8  # of a classifier's text under each setting
TEXTS = {"embedded": 6, "minilm": 4}


class Setting(NamedTuple):
    """What is explained, and how."""

    model: str
    mode: str
    noise_std: float
    n: int
    sampling: str = "antithetic"
    rounds: int = 1  # of n samples each

    @property
    def unbiased(self) -> bool:
        """Whether standard errors are right on average; those of one antithetic run of few samples are too large (ADR 7)."""
        return self.sampling == "iid" or self.rounds >= LEAST_ROUNDS or self.n >= 20


SETTINGS = [
    *(Setting("embedded", "logits", noise, n) for noise in (0.1, 0.02) for n in (4, 6, 10, 20)),
    *(Setting("embedded", "logits", noise, n, "iid") for noise in (0.1, 0.02) for n in (4, 10)),
    *(Setting("minilm", "logits", noise, n) for noise in (0.1, 0.02) for n in (4, 6, 10, 20)),
    *(Setting("minilm", "logits", noise, n, "iid") for noise in (0.1, 0.02) for n in (4, 6)),
    *(Setting(name, "logits", noise, n, "iid") for name in TEXTS for noise in (0.3, 1.0) for n in (4, 8)),
    *(Setting(name, "logits", noise, 4, "antithetic", 5) for name in TEXTS for noise in (0.1, 0.3, 1.0)),
]


class Runs(NamedTuple):
    """The runs of one text under one setting."""

    setting: Setting
    text: int
    errors: list[float]  # sum of the squared standard errors
    products: list[list[float]]  # (runs, runs) of the runs' scores
    reliability: list[float]  # as the outputs say

    def truth(self, run: int) -> float:
        """Of all runs but one: mean product of two, over the mean square of one."""
        others = np.delete(np.delete(np.array(self.products), run, 0), run, 1)
        count = len(others)
        square = np.trace(others) / count
        return float((others.sum() - np.trace(others)) / (count * (count - 1)) / square)


def runs_of(setting: Setting, text: int, each: list[tuple[Tensor, Tensor]]) -> Runs:
    """Of the scores and standard errors, (1, G) each, of some runs."""
    scores = torch.stack([score[0].double().nan_to_num() for score, _ in each])
    errors = [float(error[0].double().nan_to_num().square().sum()) for _, error in each]
    shares = [float(reliability(*one)[0]) for one in each]
    return Runs(setting, text, errors, (scores @ scores.T).tolist(), shares)


def of_classifier(name: str, settings: list[Setting]) -> Iterator[Runs]:
    """Whole outputs of a classifier's texts."""
    chosen = subject(name, TEXTS[name])
    explainer = fastshap.GradientShap(chosen.model, chosen.tokenizer, "auto")
    for setting in settings:
        options: dict[str, Any] = {"n_perturbations": setting.n, "sampling": setting.sampling}
        options["noise_std"] = setting.noise_std
        if setting.rounds > 1:
            options |= {"rtol": 1e-9, "max_perturbations": setting.n * setting.rounds}
        each = [explainer(chosen.texts, seed=seed, **options) for seed in range(RUNS)]
        for text in range(len(chosen.texts)):
            yield runs_of(setting, text, [(run[text].attributions, run[text].standard_error) for run in each])


class Prepares(fastshap.GradientShap):
    """Keeps what it explained last: a text's tokens and target, and its elements."""

    prepared: list[tuple[Any, Any]]

    def _score(self, prepared: Any, groupings: Any, *rest: Any) -> Any:
        self.prepared = list(zip(prepared, groupings, strict=True))
        return super()._score(prepared, groupings, *rest)


def of_language_model(chosen: Subject, known: set[tuple[Setting, int]]) -> Iterator[Runs]:
    """A language model's runs, but for those that are known.

    All modes explain the same points, from one forward pass; the numbers are those of outputs.
    """
    explainer = Prepares(chosen.model, chosen.tokenizer, "auto", n_perturbations=1)
    foil = chosen.tokenizer(FOIL)["input_ids"][0]

    def scores(model: Any, call: Any) -> Tensor:
        """(R, modes)."""
        logits = model(**call.inputs, use_cache=False, logits_to_keep=call.kept).logits[call.places][:, 0]
        one = logits.gather(1, call.targets[:, :1])
        known = one - logits.logsumexp(1, keepdim=True)
        return torch.cat([one, known.exp(), known, one - logits[:, foil : foil + 1]], 1)

    for (noise, n), runs in RUNS_OF_ALL_MODES:
        for text, (prompt, target) in enumerate(zip(chosen.texts, TARGETS, strict=True)):
            if (Setting(chosen.name, MODES[-1], noise, n), text) in known:
                continue
            explainer([prompt], [target])
            ((one, grouping),) = explainer.prepared
            count = len(MODES)
            item = Item.of(one.encoded, one.targets.repeat(count), one.scope.positions.repeat(count))
            settings = dataclasses.replace(explainer.settings, noise_std=noise)
            execution = dataclasses.replace(explainer._execution, settings=settings)
            samples = [draw_samples(seed, item.input_ids, n, settings.sampling) for seed in range(runs)]
            with explainer._desk.at_work() as model:
                groups = engine.token_scores([model], [item] * runs, samples, scores, execution)
                found = dict(scored for group in groups for scored in group)
            for i, mode in enumerate(MODES):
                each = [in_groups(grouping, found[run][i : i + 1], settings.sampling) for run in range(runs)]
                yield runs_of(Setting(chosen.name, mode, noise, n), text, each)


def in_groups(grouping: Grouping, scores: Tensor, sampling: str) -> tuple[Tensor, Tensor]:
    """The attributions and standard errors (1, G) of an output, from token scores (1, n, L)."""
    running = Running(grouping, sampling)
    (summary,) = summaries([running], [scores])
    running.add(scores.shape[1], next(summary.of_each())[1])
    return running.attributions, running.standard_error()


def binned(found: list[Runs], by_others: bool) -> list[dict[str, Any]]:
    """Outputs in ten bins of equal width: their mean reliability and the mean of the truth.

    Args:
        by_others: put an output in its bin by the mean reliability of the other runs of its text and setting. By its own, what
            came out low by chance is below the truth, and what came out high is above it (regression to the mean).
    """
    rows: list[tuple[float, float, float]] = []
    for runs in found:
        own = np.array(runs.reliability)
        if len(own) > 2:
            place = (own.sum() - own) / (len(own) - 1) if by_others else own
            rows += [(place[i], own[i], runs.truth(i)) for i in range(len(own))]
    bins = []
    for b in range(BINS):
        inside = np.array([row[1:] for row in rows if min(int(row[0] * BINS), BINS - 1) == b]).reshape(-1, 2)
        if len(inside):
            estimate, truth = inside.mean(0).tolist()
            bins.append({"bin": b / BINS, "outputs": len(inside), "reliability": estimate, "truth": truth})
    return bins


GROUPS = {
    "classifiers, unbiased standard errors": lambda runs: runs.setting.model != "smollm2" and runs.setting.unbiased,
    "classifiers, one antithetic run of less than 20": lambda runs: (
        runs.setting.model != "smollm2" and not runs.setting.unbiased
    ),
    "SmolLM2, probabilities": lambda runs: runs.setting.model == "smollm2" and runs.setting.mode == "softmax",
    "SmolLM2, logits, log-probabilities and contrasts": lambda runs: (
        runs.setting.model == "smollm2" and runs.setting.mode != "softmax"
    ),
    "all": lambda runs: True,
}


def of_settings(found: list[Runs]) -> list[dict[str, Any]]:
    """Means over the texts of each setting: reliability, the truth, and the estimated over the true variance."""
    each: dict[Setting, list[tuple[float, float, float]]] = {}
    for runs in found:
        products, count = np.array(runs.products), len(runs.reliability)
        if count > 2:
            square = float(np.trace(products)) / count
            again = (float(products.sum()) - count * square) / (count * (count - 1))
            one = float(np.mean(runs.reliability)), again / square, float(np.mean(runs.errors)) / (square - again)
            each.setdefault(runs.setting, []).append(one)
    names = ("reliability", "truth", "variance")
    return [one._asdict() | dict(zip(names, np.mean(rows, 0).tolist(), strict=True)) for one, rows in each.items()]


def of_modes(found: list[Runs]) -> list[dict[str, Any]]:
    """A language model's reliability, by what is explained, noise and n: the mean over the runs of each prompt."""
    rows: dict[Setting, list[float]] = {}
    for runs in found:
        if runs.setting.model == "smollm2":
            rows.setdefault(runs.setting, []).append(float(np.mean(runs.reliability)))
    return [
        {"mode": one.mode, "noise_std": one.noise_std, "n": one.n, "reliability": values}
        for one, values in rows.items()
    ]


def markdown(record: dict[str, Any]) -> str:
    lines = []
    for name, how in record["bins"].items():
        for said, bins in how.items():
            lines += [f"{name}; {said}:", "", "| bin | outputs | reliability | truth | difference |"]
            lines += ["| --- | --- | --- | --- | --- |"]
            for row in bins:
                values = f"{row['reliability']:.3f} | {row['truth']:.3f} | {row['reliability'] - row['truth']:+.3f}"
                lines.append(f"| {row['bin']:.1f} to {row['bin'] + 1 / BINS:.1f} | {row['outputs']} | {values} |")
            lines.append("")
    lines += ["| model | explained | noise | n | sampling | rounds | reliability | truth | estimated / true variance |"]
    lines += ["| --- " * 9 + "|"]
    for row in record["by setting"]:
        *said, share, truth, variance = row.values()
        lines.append(f"| {' | '.join(map(str, said))} | {share:.2f} | {truth:.2f} | {variance:.2f} |")
    return "\n".join([*lines, "", markdown_of_modes(record.get("modes", []))])


def markdown_of_modes(rows: list[dict[str, Any]]) -> str:
    """Medians over the prompts, with the lowest and the highest; how many prompts, where not all."""
    known = {(row["mode"], row["noise_std"], row["n"]): row["reliability"] for row in rows}
    lines = ["| explained | noise | " + " | ".join(f"n = {n}" for n in SAMPLES) + " |"]
    lines += ["| --- " * (2 + len(SAMPLES)) + "|"]

    def cell(values: list[float]) -> str:
        if not values:
            return ""
        some = "" if len(values) == len(TARGETS) else f", {len(values)} prompts"
        return f"{np.median(values):.2f} ({min(values):.2f} to {max(values):.2f}{some})"

    for mode in MODES:
        for noise in NOISES:
            cells = [cell(known.get((mode, noise, n), [])) for n in SAMPLES]
            lines.append(f"| {mode} | {noise:g} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--raw", type=Path, help="keep every run's squares and products there; read before")
    arguments = parser.parse_args()
    found: list[Runs] = []
    if arguments.raw is not None and arguments.raw.is_file():
        found = [Runs(Setting(*one[0]), *one[1:]) for one in map(json.loads, arguments.raw.read_text().splitlines())]
    for runs in measured({(runs.setting, runs.text) for runs in found}):
        found.append(runs)
        if arguments.raw is not None:
            with arguments.raw.open("a") as file:
                file.write(json.dumps(runs) + "\n")
    record = {
        "what": "several runs of a text and setting; truth: mean s.s' / mean s.s of the other runs",
        "machine": f"{platform.machine()}, no GPU, torch {torch.__version__}, transformers {transformers.__version__}",
        "settings": [setting._asdict() for setting in SETTINGS],
        "runs": RUNS,
        "texts": TEXTS,
        "language model": {"prompts": len(TARGETS), "modes": MODES, "noise": NOISES, "samples": SAMPLES},
        "bins": {
            name: {
                "by the output's own reliability": binned([one for one in found if of(one)], by_others=False),
                "by that of other runs": binned([one for one in found if of(one)], by_others=True),
            }
            for name, of in GROUPS.items()
        },
        "by setting": of_settings(found),
        "modes": of_modes(found),
    }
    RESULT.write_text(json.dumps(record, indent=1) + "\n")
    print(markdown(record))


def measured(known: set[tuple[Setting, int]]) -> Iterator[Runs]:
    """All runs but those that are known."""
    start = time.process_time()
    for name, count in TEXTS.items():
        left = [one for one in SETTINGS if one.model == name and (one, count - 1) not in known]
        if left:
            yield from of_classifier(name, left)
        print(f"{name}: {time.process_time() - start:.0f} s", file=sys.stderr, flush=True)
    for runs in of_language_model(subject("smollm2", len(TARGETS)), known):
        print(*runs.setting, runs.text, f"{time.process_time() - start:.0f} s", file=sys.stderr, flush=True)
        yield runs


if __name__ == "__main__":
    main()
