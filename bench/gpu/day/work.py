"""One step's measurements, in a process of its own: ``python -m bench.gpu.day.work STEP --device DEVICE --out DIR``."""

from __future__ import annotations

import argparse
import importlib
import sys
import warnings
from pathlib import Path

from bench.gpu.day.record import Record

STEPS = ("environment", "kernels", "calls", "explanations", "memory")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.day.work")
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("--device", choices=("cuda", "cpu"), required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # those of other libraries: what is asked here are numbers
    record = Record(options.out / "results.jsonl", options.step)
    step = importlib.import_module(f"bench.gpu.day.{options.step}")
    import torch

    device = torch.device("cuda", 0) if options.device == "cuda" else torch.device("cpu")
    step.measure(record, device)
    return 0


if __name__ == "__main__":
    sys.exit(main())
