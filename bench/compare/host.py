"""What fastshap's own code costs the host, apart from the model and the operators.

    python -m bench host [--before CHECKOUT] [--rounds 5]

2,000 short texts, with a model and operators that do next to nothing: processor time a text, garbage collection included, for
targets that are given and for predicted ones. Then calls of one text with a tiny model of 12 layers: what they take beyond a
bare forward and backward pass of their rows; and what a new explainer of that model adds to a call. CHECKOUT is the folder of
an earlier version (``git worktree add`` makes one), measured in the same run, in turn.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from bench.compare import pair_worker
from bench.compare.pairs import Worker
from bench.console import say
from bench.paths import ROOT

BARE = "small, bare"
# A figure: its unit, what it is, the workload, what is taken off, the texts of a run.
FIGURES = (
    ("µs a text", "class given", "host, class given", None, pair_worker.HOSTED),
    ("µs a text", "class predicted", "host, predicted", None, pair_worker.HOSTED),
    ("ms a call", "one text, class given, beyond a bare pass", "small, class given", BARE, pair_worker.SMALL),
    ("ms a call", "one text, class predicted, beyond a bare pass", "small, predicted", BARE, pair_worker.SMALL),
    ("ms", "a new explainer of a known model", "small, new explainer", "small, class given", pair_worker.SMALL),
)
UNITS = {"µs a text": 1e6, "ms a call": 1e3, "ms": 1e3}


def figures(seconds: dict[str, list[float]]) -> list[float]:
    """One for each of :data:`FIGURES`, from the processor seconds of each workload's runs: medians of their differences."""
    found = []
    for unit, _, workload, without, texts in FIGURES:
        less = [0.0] * len(seconds[workload]) if without is None else seconds[without]
        found.append(
            UNITS[unit] * statistics.median(a - b for a, b in zip(seconds[workload], less, strict=True)) / texts
        )
    return found


def main(arguments: list[str] | None = None) -> int:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(
        prog="python -m bench host", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", type=Path, help="the folder with an earlier checkout")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each workload")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    sides = {"before": options.before, "now": ROOT} if options.before else {"now": ROOT}
    workloads = dict.fromkeys(name for _, _, *both, _ in FIGURES for name in both if name)
    workers = {side: Worker(Path(checkout).resolve(), threads=1) for side, checkout in sides.items()}
    seconds: dict[str, dict[str, list[float]]] = {side: {name: [] for name in workloads} for side in sides}
    try:
        for number in range(options.rounds):
            say(f"round {number + 1} of {options.rounds}")
            for name in workloads:
                for side in [*sides][:: 1 if number % 2 else -1]:
                    seconds[side][name].append(workers[side].run(name)["cpu"])
    finally:
        for worker in workers.values():
            worker.close()
    columns = {side: figures(seconds[side]) for side in sides}
    print(f"{'':50}" + "".join(f"{side:>10}" for side in sides))
    for row, (unit, what, *_) in enumerate(FIGURES):
        print(f"{what:50}" + "".join(f"{columns[side][row]:10.2f}" for side in sides) + f"  {unit}")
    return 0
