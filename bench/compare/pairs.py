"""Is one checkout slower than another? The same workloads by both, in turn.

    python -m bench.compare.pairs BEFORE AFTER [--limit 1.03] [--pairs 7] [--runs 5] [--only NAME]

BEFORE and AFTER are folders with a checkout each; both run with this interpreter's packages. A pair is two fresh processes,
which run each workload in turn, and each time the other one begins. A pair's ratio is the least time of the one over the
least time of the other, and a workload is judged by the median ratio of all pairs. Times are the processor's, so that a busy
machine disturbs less; ratios of wall times are shown beside them. Exit status 1: a workload's ratio exceeds the limit.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.console import say

WORKER = Path(__file__).with_name("pair_worker.py")
# Unlike a script's folder, a path run so does not become a place to import from.
START = "import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__')"
Ask = Callable[[str], dict[str, Any]]


class Worker:
    """A process that runs workloads with one checkout's fastshap."""

    def __init__(self, checkout: Path, threads: int) -> None:
        environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": str(threads)}
        self._process = subprocess.Popen(
            [sys.executable, "-c", START, str(WORKER)],
            cwd=checkout,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        used = Path(self._answer()["fastshap"])
        if used != checkout / "fastshap":
            self.close()
            raise SystemExit(f"{checkout} was asked for, and {used} was imported.")

    def run(self, workload: str) -> dict[str, Any]:
        """One run's seconds ``cpu`` and ``wall``, and the ``digest`` of its numbers."""
        assert self._process.stdin is not None
        self._process.stdin.write(workload + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self.close()
            raise SystemExit(f"A run ended with status {self._process.returncode}; its errors stand above.")
        return dict(json.loads(line))

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()


@dataclass(frozen=True)
class Pair:
    """A workload by both, once: seconds after over seconds before, and whether the numbers are equal to the bit."""

    cpu: float
    wall: float
    equal: bool


def pair(before: Ask, after: Ask, workload: str, runs: int, first: int) -> Pair:
    """So many runs of each, in turn; ``first`` is odd where the later one begins."""
    sides: tuple[Ask, Ask] = (before, after)
    found: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for k in range(runs):
        for side in (0, 1) if (first + k) % 2 == 0 else (1, 0):
            found[side].append(sides[side](workload))
    cpu, wall = (min(one[time] for one in found[1]) / min(one[time] for one in found[0]) for time in ("cpu", "wall"))
    return Pair(cpu, wall, len({one["digest"] for side in found for one in side}) == 1)


def names() -> list[str]:
    """The workloads, read off the worker without importing what it imports."""
    for node in ast.parse(WORKER.read_text()).body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "WORKLOADS":
            assert isinstance(node.value, ast.Dict)
            return [str(ast.literal_eval(key)) for key in node.value.keys if key is not None]
    raise AssertionError("The worker has no workloads.")


def table(found: dict[str, list[Pair]], limit: float) -> str:
    """A line for each workload: median (least to largest) of the ratios."""
    lines = [f"{'after / before':20}  {'processor time':20}  {'wall time':20}  numbers"]
    for workload, pairs in found.items():
        cells = [workload, spread([one.cpu for one in pairs]), spread([one.wall for one in pairs])]
        equal = "equal" if all(one.equal for one in pairs) else "differ"
        slower = f"   slower than {limit:g}" if workload in slowed(found, limit) else ""
        lines.append("  ".join(f"{cell:20}" for cell in cells) + f"  {equal}{slower}")
    return "\n".join(lines)


def spread(ratios: Sequence[float]) -> str:
    return f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"


def slowed(found: dict[str, list[Pair]], limit: float) -> list[str]:
    """Workloads whose median ratio of processor times exceeds the limit."""
    return [workload for workload, pairs in found.items() if statistics.median(one.cpu for one in pairs) > limit]


def main(arguments: list[str] | None = None) -> int:
    """Runs all pairs and prints the table."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.compare.pairs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("before", type=Path, help="a checkout")
    parser.add_argument("after", type=Path, help="another")
    parser.add_argument("--limit", type=float, default=1.03, help="largest median ratio of processor times")
    parser.add_argument("--pairs", type=int, default=7, help="pairs of processes")
    parser.add_argument("--runs", type=int, default=5, help="runs of a workload in each process")
    parser.add_argument("--threads", type=int, default=1, help="threads of each process")
    parser.add_argument("--only", action="append", choices=names(), help="a workload; may be given several times")
    options = parser.parse_args(arguments)
    if options.pairs < 1 or options.runs < 1:
        parser.error("--pairs and --runs must be at least 1")
    for checkout in (options.before, options.after):
        if not (checkout / "fastshap" / "__init__.py").is_file():
            parser.error(f"{checkout} is no checkout of fastshap")
    found: dict[str, list[Pair]] = {workload: [] for workload in options.only or names()}
    for number in range(options.pairs):
        say(f"pair {number + 1} of {options.pairs}")
        workers = [Worker(checkout.resolve(), options.threads) for checkout in (options.before, options.after)]
        try:
            for workload, pairs in found.items():
                pairs.append(pair(workers[0].run, workers[1].run, workload, options.runs, number))
        finally:
            for worker in workers:
                worker.close()
    print(table(found, options.limit))
    return 1 if slowed(found, options.limit) else 0


if __name__ == "__main__":
    sys.exit(main())
