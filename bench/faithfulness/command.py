"""Is the explanation true: methods x baselines x models, at equal model rows.

    python -m bench faithfulness [--only packaged,minilm]   measures what is not measured yet, and writes the table and picture
    python -m bench faithfulness --quick                    some texts of the packaged model, in seconds, nothing kept
    python -m bench faithfulness --report                   writes the table and picture again, from the figures there are

Each subject is kept in the results as soon as it is measured; ``--fresh`` measures it again. A run that was interrupted
goes on with the method where it was: scores lie in the cache of ``tools.assets``, as long as commit and versions are the same.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import hashlib
import json
import math
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers

from bench.console import say
from bench.faithfulness import hypotheses, report
from bench.faithfulness.methods import Bench, Method, checked_alike
from bench.faithfulness.subjects import FULL, QUICK, Plan, load
from bench.paths import RESULTS
from bench.record import commit, machine, versions
from fastshap import metrics
from fastshap.metrics.controls import with_scores
from tools.assets import cache_dir

RECORD = RESULTS / "faithfulness.json"


def measures(plan: Plan) -> list[metrics.Measure]:
    usual: list[metrics.Measure] = [
        *(metrics.Comprehensiveness(), metrics.Sufficiency(), metrics.LogOdds()),
        *(metrics.Comprehensiveness(metrics.AOPC_GRID), metrics.Sufficiency(metrics.AOPC_GRID)),
        *(metrics.Insertion(), metrics.Deletion()),
    ]
    return [*usual, metrics.NormalizedAOPC(beam=1)] if plan.normalised else usual


def measured(name: str, plan: Plan, kept: Path | None = None) -> dict[str, Any]:
    """All methods of one subject, beside fastshap's default.

    Args:
        kept: a directory for the methods' scores, so that a run that was interrupted goes on.
    """
    start = time.perf_counter()
    bench = Bench(load(name, plan), plan)
    outputs: dict[str, list[Any]] = {}
    rows: dict[str, dict[str, Any]] = {}
    for method in bench.methods():
        began = time.perf_counter()
        seeds = range(plan.seeds if method.random else 1)
        outputs[method.name] = [_kept(kept, bench, method, seed) for seed in seeds]
        for of_seed in outputs[method.name]:
            checked_alike(of_seed)
        seconds = time.perf_counter() - began
        rows[method.name] = {"rows": method.rows, "seeds": len(outputs[method.name])}
        say(f"{name}: {method.name}: {seconds:.1f} s")
    found: dict[str, Any] = {}
    claims: list[dict[str, Any]] = []
    for replacement, faithfulness in bench.faithfulness.items():
        say(f"{name}: measuring with {replacement}")
        table = faithfulness.compare(outputs, measures(plan), progress=False)
        found[replacement] = _plain(table)
        claims += [{"replacement": replacement, **one} for one in _claims(table, name)]
    return {
        "title": plan.title,
        "plan": dataclasses.asdict(plan),
        "methods": rows,
        "results": found,
        "claims": claims,
        "seconds": round(time.perf_counter() - start, 1),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "machine": machine(),
        "versions": versions(),
        "commit": commit(),
    }


def _kept(directory: Path | None, bench: Bench, method: Method, seed: int) -> list[Any]:
    """What the method gives, or gave in an earlier run."""
    if directory is None:
        return method.run(seed)
    path = directory / f"{method.name}, {seed}.pt"
    if path.is_file():
        scores = torch.load(path)
        return [with_scores(one, its) for one, its in zip(bench.reference, scores, strict=True)]
    found = method.run(seed)
    directory.mkdir(parents=True, exist_ok=True)
    torch.save([one.attributions for one in found], path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)
    return found


def _place(name: str, plan: Plan) -> Path:
    """Where scores are kept, outside the repository: of this code, these versions and this plan alone."""
    stamp = json.dumps([dataclasses.asdict(plan), versions(), commit()])
    return cache_dir() / "faithfulness" / f"{name}-{hashlib.sha256(stamp.encode()).hexdigest()[:12]}"


def _plain(table: metrics.FaithfulnessTable) -> dict[str, Any]:
    """Means, standard errors and paired differences from the first method; texts apart are not kept."""
    first = table.methods[0]
    found: dict[str, Any] = {}
    for label in table.measures:
        base = table[first, label]
        found[label] = {
            "texts": base.count,
            "skipped": dict(base.skipped),
            "higher_is_better": base.higher_is_better,
            "notes": dict(base.notes),
            "methods": {method: _figures(table, method, first, label) for method in table.methods},
        }
    return found


def _figures(table: metrics.FaithfulnessTable, method: str, first: str, label: str) -> dict[str, float | None]:
    one, difference = table[method, label], table.difference(method, first, label)
    figures = {
        "mean": one.mean,
        "standard_error": one.standard_error,
        "seed_standard_error": one.seed_standard_error,
        "difference": difference.mean,
        "difference_standard_error": difference.standard_error,
    }
    return {name: None if math.isnan(value) else round(value, 6) for name, value in figures.items()}


def _claims(table: metrics.FaithfulnessTable, subject: str) -> list[dict[str, Any]]:
    found = []
    for pair in hypotheses.HYPOTHESES:
        if pair.only not in (None, subject) or not {pair.method, pair.other} <= {*table.methods}:
            continue
        difference = table.difference(pair.method, pair.other, pair.measure)
        verdict = hypotheses.decided(
            pair, difference.mean, difference.standard_error, bool(difference.higher_is_better)
        )
        found.append(
            {
                "name": pair.name,
                "difference": round(difference.mean, 6),
                "standard_error": round(difference.standard_error, 6),
                "texts": difference.count,
                "verdict": verdict,
            }
        )
    return found


def quick() -> list[str]:
    """What is wrong with the figures of a few texts; nothing is kept."""
    (name,) = QUICK
    found = measured(name, QUICK[name])
    said = []
    for replacement, of_measures in found["results"].items():
        for label, its in of_measures.items():
            lost = [m for m, one in its["methods"].items() if one["mean"] is None]
            said += [f"{replacement}, {label}: no value of {', '.join(lost)}"] if lost else []
    print(report.tables({"hypotheses": hypotheses.stated(), "subjects": {name: found}}))
    return said


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench faithfulness",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="some texts, in seconds")
    parser.add_argument("--only", default=",".join(FULL), help=f"subjects: {','.join(FULL)}")
    parser.add_argument("--fresh", action="store_true", help="measure again")
    parser.add_argument("--report", action="store_true", help="measure nothing")
    options = parser.parse_args(arguments)
    names = options.only.split(",")
    if unknown := [one for one in names if one not in FULL]:
        parser.error(f"there is no subject {unknown[0]!r}; there are {', '.join(FULL)}")
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    if options.quick:
        wrong = quick()
        for line in wrong:
            say(f"WRONG: {line}")
        return 1 if wrong else 0
    for name in names if not options.report else []:
        if not options.fresh and name in read()["subjects"]:
            say(f"{name}: measured before")
            continue
        found = measured(name, FULL[name], _place(name, FULL[name]))
        record = read()  # again, as another part may have ended meanwhile
        record["subjects"][name] = found
        record["subjects"] = {one: record["subjects"][one] for one in FULL if one in record["subjects"]}
        RECORD.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    for path in report.write(read()):
        say(f"written: {path}")
    return 0


def read() -> dict[str, Any]:
    """The record, with the hypotheses as they stood before the run."""
    if RECORD.is_file():
        found: dict[str, Any] = json.loads(RECORD.read_text())
        return found
    return {"stated": hypotheses.WRITTEN, "hypotheses": hypotheses.stated(), "subjects": {}}
