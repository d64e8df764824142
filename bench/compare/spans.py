"""A span of a continuation as one score, beside its tokens one by one."""

from __future__ import annotations

import statistics
import time
from typing import Any

import fastshap
from bench.compare.workloads import NOISE_STD, Workload
from bench.console import say

_TOKENS = 8


def spans(workload: Workload, rounds: int) -> dict[str, Any]:
    """Seconds for the log-probability of the first tokens of each text's target: as one span, and each by itself, in turn."""
    explainer = fastshap.GradientShap(
        workload.model,
        workload.tokenizer,
        "auto",
        n_perturbations=workload.n,
        noise_std=NOISE_STD,
        inference_mode="log_softmax",
    )
    pairs = [
        (ids[: len(ids) - len(target)], target[:_TOKENS])
        for ids, target in zip(workload.ids, workload.targets, strict=True)
    ]

    def together() -> None:
        explainer([prompt for prompt, _ in pairs], [target for _, target in pairs], span=True)

    def one_by_one() -> None:
        for k in range(min(len(target) for _, target in pairs)):
            explainer([prompt + target[:k] for prompt, target in pairs], [target[k : k + 1] for _, target in pairs])

    together()  # the model is tried
    seconds: dict[str, list[float]] = {"span": [], "one by one": []}
    for number in range(rounds):
        for name, run in (("span", together), ("one by one", one_by_one))[:: 1 if number % 2 else -1]:
            say(f"{workload.name}: {name}, round {number + 1} of {rounds}")
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    ratios = [a / b for a, b in zip(*seconds.values(), strict=True)]
    return {
        "tokens": _TOKENS,
        "seconds": seconds,
        "ratio": statistics.median(ratios),
        "least": min(ratios),
        "most": max(ratios),
    }
