"""fastshap, interpreto, captum and shap on the same texts and models in one process, beside what no tool can do without.

    python -m bench [--only a,b] [--fresh] [--output DIR]   all workloads, about an hour on 2 cores
    python -m bench --quick [--output DIR]                  the same at small size, nothing fetched, nothing kept

A whole run fetches public models once. You can interrupt and resume it: what is measured lies in ``partial.json`` beside the
results. It is taken from there as long as code, versions and settings are the same. A quick run exits with 1 if a figure that
does not depend on the machine is wrong.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import hashlib
import json
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

from bench.compare import equal_error, long_list, memory, report, spans, tables, timing, verdicts, work, workloads
from bench.console import say
from bench.paths import RESULTS, ROOT
from bench.record import commit, machine, versions

# What figures depend on; the report does not.
SOURCES = (
    "fastshap/**/*.py",
    "kernels/*.py",
    "bench/*.py",
    "bench/compare/workloads.py",
    "bench/compare/peers.py",
    "bench/compare/timing.py",
    "bench/compare/work.py",
    "bench/compare/memory.py",
    "bench/compare/long_list.py",
    "bench/compare/equal_error.py",
    "bench/compare/spans.py",
)


def each(a: Any, b: Any, c: Any, d: Any, p: Any) -> dict[str, Any]:
    return {"a": a, "b": b, "c": c, "d": d, "p": p}


@dataclass(frozen=True)
class Plan:
    """How much is measured, by workload; caps in seconds. On (d) and (p) some parts take ``few`` of the target's tokens."""

    sweep_texts: dict[str, int] = field(default_factory=lambda: each(100, 6, 4, 4, 4))
    sweep_cap: dict[str, float] = field(default_factory=lambda: each(40, 80, 60, 90, 60))
    rounds: dict[str, int] = field(default_factory=lambda: each(5, 5, 5, 5, 3))
    time_cap: dict[str, float] = field(default_factory=lambda: each(150, 150, 150, 1200, 600))
    work_texts: dict[str, int] = field(default_factory=lambda: each(500, 12, 8, 1, 1))
    error_texts: dict[str, int] = field(default_factory=lambda: each(20, 6, 4, 4, 4))
    error_sizes: dict[str, tuple[int, ...]] = field(
        default_factory=lambda: each((2, 5, 10, 20, 50, 100), (2, 10, 40), (2, 10, 20), (2, 4, 16), (4, 16))
    )
    error_independent: dict[str, int] = field(default_factory=lambda: each(20, 40, 20, 16, 16))
    error_cap: dict[str, float] = field(default_factory=lambda: each(60, 160, 90, 60, 700))
    error_runs: int = 40
    few: int = 2


QUICK = Plan(
    sweep_texts=each(6, 4, 3, 2, 2),
    rounds=each(2, 2, 2, 2, 2),
    work_texts=each(12, 4, 3, 2, 2),
    error_texts=each(6, 3, 2, 2, 2),
    error_sizes=each((2, 10, 20), (10, 20), (10, 20), (4, 16), (4, 16)),
    error_independent=each(12, 12, 12, 12, 12),
    error_cap=each(*[1e9] * 5),
    error_runs=9,
)


class Store:
    """Parts measured, kept in a file as soon as they are there. Without a file nothing is kept."""

    def __init__(self, path: Path | None, stamp: str, fresh: bool = False) -> None:
        self.path, self.stamp = path, stamp
        self.parts: dict[str, Any] = {}
        if path is not None and path.is_file() and not fresh:
            kept = json.loads(path.read_text())
            if kept.get("stamp") == stamp:
                self.parts = kept["parts"]

    def part(self, name: str, run: Callable[[], Any]) -> Any:
        """What ``run`` returns, or what it returned in an earlier run."""
        if name in self.parts:
            say(f"{name}: measured before")
            return self.parts[name]["result"]
        start = time.perf_counter()
        result = json.loads(json.dumps(run()))
        self.parts[name] = {"result": result, "seconds": time.perf_counter() - start}
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            beside = self.path.with_suffix(".new")
            beside.write_text(json.dumps({"stamp": self.stamp, "parts": self.parts}))
            os.replace(beside, self.path)
        return result

    @property
    def seconds(self) -> float:
        return float(sum(part["seconds"] for part in self.parts.values()))


def measure_workload(name: str, load: Callable[[str], workloads.Workload], plan: Plan, store: Store) -> dict[str, Any]:
    """All parts of one workload. The model is loaded when the first part that is not there needs it."""
    loaded: list[workloads.Workload] = []

    def workload() -> workloads.Workload:
        if not loaded:
            say(f"{name}: loading")
            loaded.append(load(name))
        return loaded[0]

    def lighter(count: int) -> workloads.Workload:
        return workload().few_targets(count) if workload().causal else workload()

    if name == "e":
        return {"list": store.part("e/list", lambda: long_list.long_list(workload(), workload().n))}
    found = {}
    found["sweep"] = swept = store.part(
        f"{name}/sweep", lambda: timing.sweep(lighter(plan.few).some(plan.sweep_texts[name]), plan.sweep_cap[name])
    )
    best = timing.best_sizes(swept)
    found["time"] = timed = store.part(
        f"{name}/time", lambda: timing.interleaved(workload(), best, plan.rounds[name], plan.time_cap[name])
    )
    if name == "d":
        found["span"] = store.part("d/span", lambda: spans.spans(workload(), min(3, plan.rounds[name])))
    if name in "ab":  # where the target is the predicted class
        found["targets"] = store.part(
            f"{name}/targets", lambda: timing.finding_targets(workload(), best["fastshap"], min(3, plan.rounds[name]))
        )
    found["work"] = store.part(f"{name}/work", lambda: work.work(workload().some(plan.work_texts[name]), best))
    found["memory"] = store.part(f"{name}/memory", lambda: memory.peak_memory(lighter(plan.few), best))
    found["error"] = store.part(
        f"{name}/error",
        lambda: equal_error.measure(
            lighter(1).some(plan.error_texts[name]),
            plan.error_sizes[name],
            plan.error_independent[name],
            best,
            timed,
            plan.error_cap[name],
            plan.error_runs,
        ),
    )
    return found


def stamp_of(plan: Plan) -> str:
    """Changes with the code measured, the versions, the threads and the settings."""
    digest = hashlib.sha256(json.dumps([dataclasses.asdict(plan), versions(), torch.get_num_threads()]).encode())
    for pattern in SOURCES:
        for path in sorted(ROOT.glob(pattern)):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small models, few texts, under 100 seconds")
    parser.add_argument("--only", default=",".join(workloads.NAMES), help="workloads, by letter: a,b,c,d,p,e")
    parser.add_argument("--fresh", action="store_true", help="measure everything anew")
    parser.add_argument("--output", type=Path, help="a directory for JSON, Markdown and pictures")
    options = parser.parse_args(arguments)
    names = options.only.split(",")
    if unknown := [name for name in names if name not in workloads.NAMES]:
        parser.error(f"there is no workload {unknown[0]!r}; there are {', '.join(workloads.NAMES)}")
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    plan = QUICK if options.quick else Plan()
    output: Path | None = options.output or (None if options.quick else RESULTS)
    store = Store(None if options.quick or output is None else output / "partial.json", stamp_of(plan), options.fresh)
    load = workloads.small if options.quick else workloads.full
    if options.quick:
        say("Quick: few texts; b, c, d and p are small models with random weights, made here.")
    found = {name: measure_workload(name, load, plan, store) for name in names}
    record = {
        "quick": options.quick,
        "machine": machine(),
        "versions": versions(),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "seconds": round(store.seconds, 1),
        "plan": dataclasses.asdict(plan),
        "workloads": found,
    }
    print(tables.markdown(record))
    if output is not None:
        for path in report.write(record, output):
            say(f"written: {path}")
    wrong = verdicts.failures(found)
    for line in wrong:
        say(f"WRONG: {line}")
    return 1 if wrong else 0
