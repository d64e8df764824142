"""What a learned path density saves: the library's own runs against references of their own (docs/adr/0022).

``python -m bench.studies.densities minilm`` and so on for embedded and smollm2: fits a density on some texts with
:func:`fastshap.fit_path_density`, and measures the error of runs on other texts, against a long run that shares no sample with
them. Adds to ``bench/results/densities.json``, text by text. ``--only 0 1`` measures these texts alone, so that
processes can share the work; ``--fit`` only fits. A language model is asked for the probability of a word.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fcntl
import itertools
import json
import math
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

import fastshap
from bench.interpolation import calls_for
from bench.models import PROMPTS, subject
from bench.paths import RESULTS
from fastshap.engine import learned
from fastshap.engine import run as engine
from fastshap.engine.budget import Budget
from fastshap.engine.packing import Execution, Item
from fastshap.models.view import Desk
from fastshap.sampling import draw_samples

RESULT = RESULTS / "densities.json"
NOISE = 0.1
SHORT_PROMPTS = [
    ("The opposite of hot is", "cold"),
    ("The Earth revolves around the", "Sun"),
    ("The capital of Italy is", "Rome"),
    ("A week has seven", "days"),
    ("The chemical symbol for gold is", "Au"),
    ("The United States of", "America"),
]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is measured of a model: texts to fit on and to judge, and for each method the samples of a run and the runs."""

    fit: int
    texts: int
    fit_samples: int
    block: int  # samples of one run of the reference
    blocks: tuple[int, int]  # at least and at most so many
    enough: float  # relative standard error of the reference
    runs: dict[str, dict[int, int]]


PLANS = {
    "embedded": Plan(
        fit=16,
        texts=8,
        fit_samples=200,
        block=200,
        blocks=(15, 15),
        enough=0.0,
        runs={
            "iid": {10: 60},
            "uniform": {10: 30, 20: 30, 50: 10},
            "learned": {10: 30, 20: 30, 50: 10},
            "uniform, rounds of 10": {50: 10},
            "auto, rounds of 10": {50: 10},
        },
    ),
    "minilm": Plan(
        fit=12,
        texts=8,
        fit_samples=100,
        block=200,
        blocks=(10, 10),
        enough=0.0,
        runs={"iid": {10: 80}, "uniform": {100: 15}, "learned": {100: 15}},
    ),
    "smollm2": Plan(
        fit=6,
        texts=6,
        fit_samples=100,
        block=200,
        blocks=(4, 14),
        enough=0.0295,
        runs={"iid": {10: 60}, "uniform": {50: 20}, "learned": {50: 30}},
    ),
}


class Runs:
    """One text's token scores from the library's engine."""

    def __init__(self, explainer: Any, item: Item) -> None:
        self.explainer, self.item, self.rows = explainer, item, 0

    def means(self, sampling: str, n: int, rounds: range, density: Any) -> np.ndarray:
        """(rounds, L): those of so many independent rounds of n samples."""
        return np.stack([scores.mean(1)[0].numpy() for _, scores in self._each(sampling, n, rounds, density)])

    def rounds(self, n: int, rounds: range, learns: bool) -> np.ndarray:
        """(L,) the mean of rounds; the density of each is learned from those before."""
        seen, found, density = learned.Learned(True), [], None
        for round_ in rounds:
            ((sample, scores),) = self._each("antithetic", n, range(round_, round_ + 1), density)
            found.append(scores.mean(1).numpy())
            if learns:
                seen.add(sample, learned.spreads(scores, sample, True).numpy())
                density = learned.density([seen.variance(np.mean(found, 0))])[None]
        return np.mean(found, 0)[0]

    def _each(self, sampling: str, n: int, rounds: range, density: Any) -> list[tuple[Any, torch.Tensor]]:
        samples = [draw_samples(7, self.item.input_ids, n, sampling, round_, density) for round_ in rounds]
        self.rows += n * len(rounds)
        task = self.explainer.task
        with Desk(self.explainer.model).at_work() as model, task.running_on(model):
            execution: Execution = self.explainer._execution
            execution = dataclasses.replace(execution, budget=Budget(32, engine.device_of(model)))
            groups = engine.token_scores([model], [self.item] * len(samples), samples, task.scores, execution)
            found = dict(itertools.chain.from_iterable(groups))
        return [(sample, found[i]) for i, sample in enumerate(samples)]


def texts_of(name: str, plan: Plan) -> tuple[Any, Any, list[Any], list[Any]]:
    """The explainer's model and tokenizer, and (text, target) to fit on and to judge."""
    if name == "smollm2":
        its = subject(name, 1)
        return its.model, its.tokenizer, PROMPTS[: plan.fit], SHORT_PROMPTS[: plan.texts]
    its = subject(name, plan.fit + plan.texts)
    pairs = [(text, None) for text in its.texts]
    return its.model, its.tokenizer, pairs[plan.texts :], pairs[: plan.texts]


def item_of(explainer: Any, text: str, target: str | None) -> Item:
    """The text; for a language model the prompt, with the word's first token as its target."""
    ids = explainer.tokenizer(text)["input_ids"]
    if target is None:
        (output,) = explainer(text, n_perturbations=1)
        return Item(ids, output.targets, [False] * len(ids), {})
    first = explainer.tokenizer(" " + target, add_special_tokens=False)["input_ids"][0]
    return Item(ids, torch.tensor([first]), [False] * len(ids), {}, None, torch.tensor([len(ids) - 1]))


def measured(runs: Runs, plan: Plan, fitted: Callable[[], tuple[float, ...]]) -> dict[str, Any]:
    """Relative mean square errors of one text's runs by method and n, freed of the reference's own error."""
    found: dict[tuple[str, int], np.ndarray] = {}  # (runs, L)
    for method, counts in plan.runs.items():
        for n, count in counts.items():
            if method.endswith("rounds of 10"):
                each = [
                    runs.rounds(10, range(100 + k * n, 100 + k * n + n // 10), "auto" in method) for k in range(count)
                ]
                found[method, n] = np.stack(each)
                continue
            sampling = "iid" if method == "iid" else "antithetic"
            found[method, n] = runs.means(sampling, n, range(count), fitted() if method == "learned" else None)
    least, most = plan.blocks
    blocks = runs.means("antithetic", plan.block, range(1000, 1000 + least), fitted())
    while True:
        expected = blocks.mean(0)
        own = float(blocks.var(0, ddof=1).sum()) / len(blocks)
        scale = float((expected**2).sum()) - own
        if len(blocks) >= most or math.sqrt(own / scale) <= plan.enough:
            break
        further = range(1000 + len(blocks), 1002 + len(blocks))
        blocks = np.concatenate([blocks, runs.means("antithetic", plan.block, further, fitted())])
    errors: dict[str, dict[str, float]] = {}  # n as text, as JSON has it
    for (method, n), means in found.items():
        errors.setdefault(method, {})[str(n)] = (float(((means - expected) ** 2).sum(1).mean()) - own) / scale
    return {
        "tokens": len(runs.item.input_ids),
        "reference samples": plan.block * len(blocks),
        "relative standard error of the reference": math.sqrt(own / scale),
        "rows": runs.rows,
        "relative square errors": errors,
    }


@contextlib.contextmanager
def record() -> Iterator[dict[str, Any]]:
    """The record, to change; other processes wait."""
    with (Path(tempfile.gettempdir()) / "densities.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
        yield found
        RESULT.write_text(json.dumps(found, indent=1) + "\n")


def fitted(name: str) -> tuple[float, ...]:
    """The density for a model, from the record. Another process may still be fitting it."""
    while True:
        with record() as found:
            if "density" in found[name]:
                return tuple(found[name]["density"])
        time.sleep(5)


def summary(texts: dict[str, Any]) -> dict[str, Any]:
    """Samples for 10 % error, and as a share of what i.i.d. needs, with standard errors by leaving out one text at a time."""
    each = [one["relative square errors"] for one in texts.values()]

    def needs(some: list[Any]) -> dict[str, float]:
        return {
            method: calls_for({int(n): [one[method][n] for one in some] for n in counts})
            for method, counts in each[0].items()
        }

    found = needs(each)
    shares = {method: samples / found["iid"] for method, samples in found.items()}
    without = [needs(each[:i] + each[i + 1 :]) for i in range(len(each))] if len(each) > 1 else []
    factor = (len(each) - 1) / len(each)
    deviation = {
        method: math.sqrt(factor * sum((one[method] / one["iid"] - share) ** 2 for one in without))
        for method, share in shares.items()
    }
    return {"samples for 10 % error": found, "share of i.i.d.": shares, "its standard error over texts": deviation}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("subject", choices=[*PLANS])
    parser.add_argument("--only", type=int, nargs="*")
    parser.add_argument("--fit", action="store_true")
    arguments = parser.parse_args()
    plan = PLANS[arguments.subject]
    model, tokenizer, others, judged = texts_of(arguments.subject, plan)
    mode = "softmax" if arguments.subject == "smollm2" else "logits"
    explainer = fastshap.GradientShap(model, tokenizer, "auto", "all_tokens", inference_mode=mode, noise_std=NOISE)
    with record() as found:
        its = found.setdefault(arguments.subject, {"texts": {}})
        found["what"] = (
            "samples for 10 % error by path density, from the library's own runs; antithetic but for iid; noise 0.1"
        )
        found["machine"] = (
            f"{platform.machine()}, no GPU, torch {torch.__version__}, transformers {transformers.__version__}"
        )
        known = "density" in its
    if not (known or arguments.only):
        targets = [target.removesuffix(".") for _, target in others] if mode == "softmax" else None
        density = fastshap.fit_path_density(
            explainer, [text for text, _ in others], targets, n_perturbations=plan.fit_samples
        )
        with record() as found:
            found[arguments.subject]["density"] = density
        print(density, flush=True)
    for i in [] if arguments.fit else arguments.only or range(len(judged)):
        text, target = judged[i]
        done = measured(Runs(explainer, item_of(explainer, text, target)), plan, lambda: fitted(arguments.subject))
        with record() as found:
            texts = found[arguments.subject]["texts"]
            texts[text if target is None else f"{text} [{target}]"] = done
            found[arguments.subject]["summary"] = summary(texts)
            print(text, target, json.dumps(done), json.dumps(found[arguments.subject]["summary"]), flush=True)


if __name__ == "__main__":
    main()
