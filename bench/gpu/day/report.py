"""The table of claims, with what is absent and what failed."""

from __future__ import annotations

import collections
import json
from pathlib import Path
from typing import Any

from bench.gpu.day.claims import CLAIMS
from bench.gpu.day.record import FAILED, OK, cases
from bench.gpu.day.verdicts import NOT_RUN, PROVED, REFUTED, Found, first_line, judged


def write(out: Path, minutes: float | None = None) -> str:
    """Writes claims.json and claims.md by what was found so far, and returns the latter."""
    found = Found(cases(out / "results.jsonl"))
    rows = [(claim, judged(claim.judge, found)) for claim in CLAIMS]
    steps = collections.defaultdict[str, collections.Counter[str]](collections.Counter)
    failures = []
    for (step, case), line in found.cases.items():
        if case == "(step)" or step == "day":
            continue
        if not case.startswith("(collected"):
            steps[step][line["status"]] += 1
        if line["status"] == FAILED:
            failures.append((step, case, first_line(line["why"])))
    counts = collections.Counter(verdict.status for _, verdict in rows)
    summary: dict[str, Any] = {
        "environment": found.environment,
        "minutes": minutes,
        "counts": {status: counts[status] for status in (PROVED, REFUTED, NOT_RUN)},
        "claims": [{"claim": c.text, "source": c.source, "verdict": v.status, "why": v.why} for c, v in rows],
        "steps": {step: dict(statuses) for step, statuses in steps.items()},
        "seconds": {step: line["seconds"] for (step, case), line in found.cases.items() if case == "(step)"},
        "failures": [{"step": step, "case": case, "why": why} for step, case, why in failures],
    }
    text = _markdown(summary)
    _replace(out / "claims.json", json.dumps(summary, indent=1) + "\n")
    _replace(out / "claims.md", text)
    return text


def _replace(path: Path, text: str) -> None:
    """Whole or not at all."""
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(text)
    fresh.replace(path)


def _cell(text: Any) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")


def _markdown(summary: dict[str, Any]) -> str:
    about = summary["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in about.get("versions", {}).items() if version)
    lines = [
        "# GPU day",
        "",
        f"{about.get('device', 'The environment is not known')}. {about.get('note', '')}".strip(),
        f"{about.get('date', '')}, commit {about.get('commit')}, driver {about.get('driver')}, CUDA {about.get('cuda')}.",
        f"{versions}.",
        "" if summary["minutes"] is None else f"It took {summary['minutes']:.1f} minutes.",
        "",
        ", ".join(f"{count} {status}" for status, count in summary["counts"].items()) + ".",
        "",
        "| claim | verdict | figure or reason | said in |",
        "| --- | --- | --- | --- |",
        *(
            f"| {_cell(row['claim'])} | **{row['verdict']}** | {_cell(row['why'])} | {_cell(row['source'])} |"
            for row in summary["claims"]
        ),
        "",
        "## Absent",
        "",
        *([f"- {name}: {loss}" for name, loss in about.get("absent", {}).items()] or ["Nothing."]),
        "",
        "## Steps",
        "",
        *(
            f"- {step}: {', '.join(f'{count} {status}' for status, count in statuses.items())}"
            + (f"; {summary['seconds'][step]:.0f} seconds" if step in summary["seconds"] else "; not ended")
            for step, statuses in summary["steps"].items()
        ),
        "",
        "## Failures",
        "",
        *([f"- {one['step']}, {one['case']}: {one['why']}" for one in summary["failures"]] or ["None."]),
        "",
    ]
    return "\n".join(lines)


def all_ran(out: Path) -> bool:
    """Whether no case failed; claims that are refuted are a result like any other."""
    return all(line["status"] != FAILED for line in cases(out / "results.jsonl").values())


def some_ran(out: Path) -> bool:
    return any(line["status"] == OK for line in cases(out / "results.jsonl").values())
