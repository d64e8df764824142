"""Time of every tool on a workload: the best batch size of each, then all in turn."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Sequence
from typing import Any

from bench.compare.peers import Runner, Tool, prepare_fastshap, tools_for
from bench.compare.workloads import Workload
from bench.console import say

LESSER_SECONDS = 60.0  # a tool that is not one of the core is timed until it has taken so long in all


def timed(runner: Runner, batch_size: Any, n: int) -> float:
    """Seconds of one run."""
    start = time.perf_counter()
    runner.run(batch_size, n, 0)
    return time.perf_counter() - start


def sweep(workload: Workload, cap: float) -> dict[str, Any]:
    """Each tool's best batch size: a warm run and a timed run at each point of its grid.

    A grid point that would exceed the tool's share of the cap (in seconds) is left out, and the record says so.
    """
    tools = tools_for(workload)
    found: dict[str, Any] = {"texts": len(workload.ids), "targets": len(workload.targets[0]), "tools": {}}
    for tool in tools:
        say(f"{workload.name}: batch size of {tool.name}")
        grid, left_out = sweep_tool(tool, workload, cap / len(tools))
        found["tools"][tool.name] = {
            "unit": tool.unit,
            "best": min(grid, key=lambda batch_size: grid[batch_size]),
            "seconds": {str(batch_size): taken for batch_size, taken in grid.items()},
            "left_out": left_out,
        }
    return found


def sweep_tool(tool: Tool, workload: Workload, cap: float) -> tuple[dict[Any, float], list[Any]]:
    """Seconds of each grid point, and the points left out; at least one is measured."""
    runner, start = tool.prepare(workload), time.perf_counter()
    grid: dict[Any, float] = {}
    left_out = []
    for batch_size in tool.grid(workload):
        if grid and time.perf_counter() - start + 2 * min(grid.values()) > cap:
            left_out.append(batch_size)
            continue
        runner.run(batch_size, workload.n, 0)
        grid[batch_size] = timed(runner, batch_size, workload.n)
    return grid, left_out


def best_sizes(swept: dict[str, Any]) -> dict[str, Any]:
    return {name: its["best"] for name, its in swept["tools"].items()}


def interleaved(workload: Workload, best: dict[str, Any], rounds: int, cap: float) -> dict[str, Any]:
    """All tools in turn, round after round; after ``cap`` seconds no round beyond the third begins.

    A round beforehand is not counted. A language model, whose rounds take minutes, goes without.
    """
    tools = tools_for(workload)
    runners = {tool.name: tool.prepare(workload) for tool in tools}
    taken: dict[str, list[float | None]] = {tool.name: [] for tool in tools}
    if not workload.causal:
        say(f"{workload.name}: a round beforehand")
        for tool in tools:
            timed(runners[tool.name], best[tool.name], workload.n)
    start = time.perf_counter()
    for number in range(rounds):
        if number >= 3 and time.perf_counter() - start > cap:
            break
        say(f"{workload.name}: round {number + 1} of {rounds}")
        gc.collect()
        # Each round begins with another tool, so that none is always in the wake of the same one.
        turn = number % len(tools)
        for tool in tools[turn:] + tools[:turn]:
            past = [value for value in taken[tool.name] if value is not None]
            if past and not tool.core and sum(past) + past[-1] > LESSER_SECONDS:
                taken[tool.name].append(None)
                continue
            taken[tool.name].append(timed(runners[tool.name], best[tool.name], workload.n))
    return {
        "title": workload.title,
        "texts": len(workload.ids),
        "tokens": sum(map(len, workload.ids)),
        "targets": len(workload.targets[0]),
        "n": workload.n,
        "rows": workload.rows,
        "tools": {name: {"batch_size": best[name]} | summary(values) for name, values in taken.items()},
        "ratios": {
            name: {other: ratios(taken[name], taken[other]) for other in taken if other != name} for name in taken
        },
    }


def summary(values: Sequence[float | None]) -> dict[str, Any]:
    """The median, and each round's seconds, None where a round was left out."""
    return {"median": statistics.median(v for v in values if v is not None), "seconds": list(values)}


def ratios(ours: Sequence[float | None], theirs: Sequence[float | None]) -> dict[str, float]:
    """The ratio of each round in which both ran: median, least and largest."""
    each = [a / b for a, b in zip(ours, theirs, strict=True) if a is not None and b is not None]
    return {"median": statistics.median(each), "min": min(each), "max": max(each)}


def finding_targets(workload: Workload, best: Any, rounds: int) -> dict[str, Any]:
    """What the predicted classes cost: fastshap without targets against with targets given."""
    given, found = prepare_fastshap(workload), prepare_fastshap(workload, targets=False)
    found.run(best, workload.n, 0)
    each = [(timed(found, best, workload.n), timed(given, best, workload.n)) for _ in range(rounds)]
    return ratios([one for one, _ in each], [other for _, other in each])
