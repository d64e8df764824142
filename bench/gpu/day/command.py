"""``python -m bench.gpu --day``."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from bench.gpu.day import report
from bench.gpu.day.leading import lead
from bench.gpu.day.record import ABSENT, OK, Record, cases
from bench.gpu.day.steps import steps

_END = 8.0  # seconds kept for ending processes and for the table


def main(arguments: list[str]) -> int:
    """Runs a day; 0 if no case failed, 1 if some did. A refuted claim is a result, no failure."""
    begun = time.monotonic()
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu", description="All that only a GPU can show, in minutes."
    )
    parser.add_argument("--day", action="store_true", required=True)
    parser.add_argument("--out", type=Path, required=True, help="a folder, new or empty: four files are written there")
    parser.add_argument("--minutes", type=float, default=9.0, help="how long it may take in all (default: 9)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a rehearsal at the least size")
    options = parser.parse_args(arguments)
    out: Path = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if (out / "results.jsonl").exists():
        parser.error(f"{out} holds the results of another day")
    deadline = begun + 60 * options.minutes - _END
    Record(out / "results.jsonl", "day").write("device", OK, data=options.device)

    def goes_on() -> bool:
        report.write(out)
        environment = cases(out / "results.jsonl").get(("environment", "environment"))
        return environment is None or environment["status"] != ABSENT

    lead(steps(out, options.device), out, deadline, goes_on)
    print(report.write(out, (time.monotonic() - begun) / 60))
    if not goes_on():
        print("The day ended at once: there is no GPU. --device cpu rehearses it.")
        return 2
    return 0 if report.all_ran(out) else 1
