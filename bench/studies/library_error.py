"""The error of the library's own runs against its own expectation: antithetic and independent samples, n by n.

``python -m bench.studies.library_error embedded --texts 8 --reference 20000`` and the same for minilm: for each text a long run
gives the expectation and its standard error, and rounds of n samples, drawn as the library draws them, give the error of
one run. Adds to ``bench/results/library_error.json``. A language model's errors are too large for this
(docs/adr/0007): bench.studies.estimators has it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import platform
from typing import Any

import numpy as np
import torch
import transformers

import fastshap
from bench.interpolation import calls_for
from bench.models import Subject, subject
from bench.paths import RESULTS
from fastshap.engine import run as engine
from fastshap.engine.budget import Budget
from fastshap.engine.packing import Execution, Item
from fastshap.models.view import Desk
from fastshap.sampling import draw_samples

RESULT = RESULTS / "library_error.json"
SAMPLES = (10, 20, 50, 100, 200)
REPLICATES = 40
REDUCTIONS = {"signed": "sum", "abs_mean": "abs_mean"}


def estimates(
    subject_: Subject, execution: Execution, forward: Any, item: Item, sampling: str, n: int, rounds: range
) -> np.ndarray:
    """(rounds, L): the means of so many independent rounds of n samples."""
    samples = [draw_samples(7, item.input_ids, n, sampling, round_) for round_ in rounds]
    with Desk(subject_.model).at_work() as model:
        execution = dataclasses.replace(execution, budget=Budget(128, engine.device_of(model)))
        groups = engine.token_scores([model], [item] * len(samples), samples, forward, execution)
        found = dict(scored for group in groups for scored in group)
    return np.stack([found[i][0].mean(0).numpy() for i in range(len(samples))])


def measure(subject_: Subject, noise_std: float, reference: int) -> dict[str, Any]:
    """Relative mean square errors by reduction, sampling, n and text, and the reference's own standard error."""
    explainer = fastshap.GradientShap(subject_.model, subject_.tokenizer, "auto", "all_tokens", noise_std=noise_std)
    outputs = explainer(subject_.texts)
    table: dict[str, Any] = {}
    for kind, reduction in REDUCTIONS.items():
        settings = dataclasses.replace(explainer.settings, reduction=reduction)
        execution = dataclasses.replace(explainer._execution, settings=settings)
        square_errors: dict[tuple[str, int], list[float]] = {}
        own: list[float] = []
        for output in outputs:
            ids = output.model_inputs_to_explain["input_ids"].flatten().cpu()
            item = Item(ids.tolist(), output.targets, [False] * len(ids), {})
            many = reference if kind == "signed" else reference // 4
            rounds = estimates(
                subject_, execution, explainer.task.scores, item, "antithetic", 100, range(1000, 1000 + many // 100)
            )
            expected, scale = rounds.mean(0), float((rounds.mean(0) ** 2).mean())
            own.append(float(rounds.var(0, ddof=1).mean() / len(rounds)) / scale)
            for sampling in ("iid", "antithetic"):
                for n in SAMPLES if sampling == "antithetic" and kind == "signed" else (10, 50):
                    found = estimates(subject_, execution, explainer.task.scores, item, sampling, n, range(REPLICATES))
                    square_errors.setdefault((sampling, n), []).append(float(((found - expected) ** 2).mean()) / scale)
        table[f"{kind} reference error"] = math.sqrt(np.mean(own))
        table |= {f"{kind} {sampling} {n}": values for (sampling, n), values in square_errors.items()}
        for n in (10, 50):
            table[f"{kind} ratio of variances {n}"] = ratio(square_errors["antithetic", n], square_errors["iid", n])
    table["samples for 10 %"] = {
        "iid": calls_for({n: table[f"signed iid {n}"] for n in (10, 50)}),
        "antithetic": calls_for({n: table[f"signed antithetic {n}"] for n in SAMPLES}),
    }
    return table


def ratio(ours: list[float], theirs: list[float]) -> tuple[float, float]:
    """The ratio of two sums over texts, and its standard error by leaving out one text at a time."""
    texts = len(ours)
    without = [(sum(ours) - ours[i]) / (sum(theirs) - theirs[i]) for i in range(texts)]
    return sum(ours) / sum(theirs), math.sqrt(
        (texts - 1) / texts * float(((np.array(without) - np.mean(without)) ** 2).sum())
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("subject", choices=["embedded", "minilm"])
    parser.add_argument("--texts", type=int, default=8)
    parser.add_argument("--reference", type=int, default=20_000)
    arguments = parser.parse_args()
    subject_ = subject(arguments.subject, arguments.texts)
    for noise_std in (0.1, 0.02):
        table = measure(subject_, noise_std, arguments.reference)
        record = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
        record["what"] = (
            "relative square errors of the library's token scores by text; 'reference error' is relative and root mean square"
        )
        record["machine"] = (
            f"{platform.machine()}, no GPU, torch {torch.__version__}, transformers {transformers.__version__}"
        )
        record[f"{arguments.subject} {noise_std}"] = {
            "texts": arguments.texts,
            "reference": arguments.reference,
        } | table
        RESULT.write_text(json.dumps(record, indent=1) + "\n")
        print(arguments.subject, noise_std, json.dumps(table, indent=1), flush=True)


if __name__ == "__main__":
    main()
