"""Is one checkout slower than another? The same workloads by both, in turn.

    python -m bench.compare.pairs BEFORE AFTER [--limit 1.03] [--pairs 7] [--runs 5] [--only NAME]

BEFORE and AFTER are folders with one checkout each. Both run with this interpreter's packages. A pair is two fresh processes.
They run each workload in turn, and take turns at going first. A pair's ratio is AFTER's smallest time over BEFORE's smallest
time. The median ratio of all pairs judges a workload. Times are processor times, because a busy machine disturbs them less;
ratios of wall times are shown beside them. The exit status is 1 if a workload's ratio exceeds the limit.
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
# Run in this way, the script's folder does not become a place to import from.
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
            raise SystemExit(f"{checkout} was asked for, but {used} was imported.")

    def run(self, workload: str) -> dict[str, Any]:
        """The seconds ``cpu`` and ``wall`` of one run, and the ``digest`` of its numbers."""
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
    """One workload run by both: the ratio of seconds, after over before, and whether the numbers are equal to the bit."""

    cpu: float
    wall: float
    equal: bool


def pair(before: Ask, after: Ask, workload: str, runs: int, first: int) -> Pair:
    """Runs each side ``runs`` times, in turn. If ``first`` is odd, AFTER goes first."""
    sides: tuple[Ask, Ask] = (before, after)
    found: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for k in range(runs):
        for side in (0, 1) if (first + k) % 2 == 0 else (1, 0):
            found[side].append(sides[side](workload))
    cpu, wall = (min(one[time] for one in found[1]) / min(one[time] for one in found[0]) for time in ("cpu", "wall"))
    return Pair(cpu, wall, len({one["digest"] for side in found for one in side}) == 1)


def names() -> list[str]:
    """The names of the workloads, from the worker's source. Nothing that it imports is imported here."""
    for node in ast.parse(WORKER.read_text()).body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "WORKLOADS":
            assert isinstance(node.value, ast.Dict)
            return [str(ast.literal_eval(key)) for key in node.value.keys if key is not None]
    raise AssertionError("The worker has no workloads.")


def table(found: dict[str, list[Pair]], limit: float) -> str:
    """A line for each workload: the median of the ratios (smallest to largest)."""
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
    parser.add_argument("before", type=Path, help="the folder with the earlier checkout")
    parser.add_argument("after", type=Path, help="the folder with the later checkout")
    parser.add_argument("--limit", type=float, default=1.03, help="largest median ratio of processor times allowed")
    parser.add_argument("--pairs", type=int, default=7, help="number of pairs of processes")
    parser.add_argument("--runs", type=int, default=5, help="number of runs of each workload in each process")
    parser.add_argument("--threads", type=int, default=1, help="number of threads of each process")
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
