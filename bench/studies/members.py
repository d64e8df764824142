"""Whether the two samples of an antithetic pair should share a member of a set of baselines (docs/adr/0023).

``python -m bench.studies.members embedded`` draws rounds of n samples as the library does, and with members shared by pairs.
Both have one expectation, so the spread of rounds is the error. ``--share 0.2`` draws fewer rounds, for a larger model. Adds to
``bench/results/members.json``.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import transformers

import fastshap
from bench.models import Subject, held_out_sentences, subject
from bench.paths import RESULTS
from fastshap.engine import run as engine
from fastshap.engine.budget import Budget
from fastshap.engine.packing import Item
from fastshap.models.view import Desk
from fastshap.reference.moments import moments
from fastshap.sampling import Samples, draw_samples

RESULT = RESULTS / "members.json"
TEXTS, BACKGROUND = 6, 20
ROUNDS = {10: 240, 20: 160, 50: 80}  # by n
DESIGNS = ("iid", "own", "shared")


def background() -> fastshap.BaselineSet:
    """Sentences that are not explained."""
    return fastshap.BaselineSet(held_out_sentences(BACKGROUND, seed=1))


def _drawn(design: str, item: Item, n: int, round_: int) -> Samples:
    drawn = draw_samples(7, item.input_ids, n, "iid" if design == "iid" else "antithetic", round_, baselines=BACKGROUND)
    if design != "shared" or drawn.members is None:
        return drawn
    return drawn._replace(members=drawn.members[drawn.draws])


def _rounds(explainer: Any, subject_: Subject, item: Item, design: str, n: int, rounds: int) -> Iterator[torch.Tensor]:
    """(1, n, L) of one round after the other."""
    samples = [_drawn(design, item, n, round_) for round_ in range(rounds)]
    with Desk(subject_.model).at_work() as model, explainer.task.running_on(model):
        execution = dataclasses.replace(explainer._execution, budget=Budget(128, engine.device_of(model)))
        for group in engine.token_scores(
            [model], [item] * len(samples), samples, explainer.task.scores, execution, None
        ):
            yield from (scores for _, scores in group)


def measure(subject_: Subject, noise_std: float, rounds: dict[int, int]) -> dict[str, Any]:
    """By n: relative root mean square errors of all tokens' scores, and estimated over true variances, by design."""
    options: dict[str, Any] = {"granularity": "all_tokens", "noise_std": noise_std, "baseline": background()}
    explainer = fastshap.GradientShap(subject_.model, subject_.tokenizer, "auto", **options)
    outputs = explainer(subject_.texts)
    table: dict[str, Any] = {}
    for n, count in rounds.items():
        errors: dict[str, list[float]] = {design: [] for design in DESIGNS}
        ratios: dict[str, list[float]] = {design: [] for design in DESIGNS}
        for output in outputs:
            item = Item(
                output.model_inputs_to_explain["input_ids"][0].tolist(),
                output.targets,
                [False] * len(output.elements),
                {},
            )
            means, own = {}, {}
            for design in DESIGNS:
                found = [
                    moments(scores, design != "iid") for scores in _rounds(explainer, subject_, item, design, n, count)
                ]
                means[design] = np.stack([mean[0].numpy() for mean, _ in found]).astype(np.float64)
                own[design] = np.stack([error[0].numpy() for _, error in found]).astype(np.float64)
            size = (np.mean([mean.mean(0) for mean in means.values()], 0) ** 2).sum()
            for design in DESIGNS:
                variance = means[design].var(0, ddof=1).sum()
                errors[design].append(variance / size)
                ratios[design].append((own[design] ** 2).mean(0).sum() / variance)
        table[str(n)] = {"rounds": count} | {
            design: {
                "relative_error": round(float(np.mean(errors[design]) ** 0.5), 4),
                "error_over_own": round(float(np.mean(np.array(errors[design]) / np.array(errors["own"])) ** 0.5), 3),
                "estimated_over_true": round(float(np.mean(ratios[design]) ** 0.5), 3),
            }
            for design in DESIGNS
        }
        print(subject_.name, noise_std, n, table[str(n)], flush=True)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.studies.members")
    parser.add_argument("model", choices=("embedded", "minilm"))
    parser.add_argument("--noise", type=float, default=0.1)
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--n", type=int, nargs="+", default=[*ROUNDS])
    given = parser.parse_args()
    record = json.loads(RESULT.read_text()) if RESULT.exists() else {"models": {}}
    rounds = {n: round(ROUNDS[n] * given.share) for n in given.n}
    found = measure(subject(given.model, TEXTS), given.noise, rounds)
    record["models"][f"{given.model}, noise {given.noise}"] = found
    record |= {
        "what": f"{TEXTS} held-out sentences, {BACKGROUND} background sentences, signed scores of all tokens",
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, no GPU",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    RESULT.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
