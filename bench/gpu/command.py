"""The kernels and whole explanations on a GPU, against torch, torch.compile, interpreto and captum.

    python -m bench.gpu [--device cuda|cpu] [--quick] [--tiny] [--out FILE]
    python -m bench.gpu --day --out DIR        (see bench.gpu.day)

On a GPU the result goes to ``bench/results/gpu_<device>.json``. On a CPU the torch side and the explanations run with smaller
models, to show that the benchmark works: the result goes to standard output and says that nothing in it is a GPU result.
Nothing is reported unless the operators give the right numbers first.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import warnings
from pathlib import Path
from typing import Any

import torch

import fastshap
from bench.console import say
from bench.gpu import explanations, operators
from bench.gpu.operators import CheckFailedError, Shape, check_operators
from bench.paths import RESULTS, ROOT

CPU_NOTE = "Run on a CPU, to show that the benchmark works. Nothing in it is a GPU result."
GPU_NOTE = "Run on the GPU named under device."


def sizes(device: torch.device, quick: bool, tiny: bool) -> tuple[operators.Size, explanations.Size]:
    """How much to measure; a CPU gets small shapes and shallow models whatever is asked for."""
    one = {"fastshap": ("auto",), "interpreto": (4,), "captum": (2,)}
    if tiny:
        return (
            operators.Size((16,), (Shape("2 texts", [5, 3], 2),), 1, 2**16, ()),
            explanations.Size(one, texts=2, longest=4, prompt=3, n=4, layers=1, narrow=True, repeats=1),
        )
    if device.type == "cpu":
        return (
            operators.Size((768, 4096), (Shape("2 texts", [16, 8], 4),), 1, 2**26, ("float32",)),
            explanations.Size(one, texts=2, longest=12, prompt=6, n=4, layers=2, repeats=2 if quick else 5),
        )
    if quick:
        some = {"fastshap": ("auto", 128), "interpreto": (16,), "captum": (8,)}
        return (
            operators.Size(shapes=operators.Size().shapes[:2], kernel_ms=40),
            explanations.Size(some, texts=16, repeats=3),
        )
    return operators.Size(), explanations.Size()


def environment(device: torch.device) -> dict[str, Any]:
    """Where this was run, with which versions."""
    on_gpu = device.type == "cuda"
    packages = ("torch", "triton", "transformers", "interpreto", "captum", "numpy")
    return {
        "gpu_result": on_gpu,
        "note": GPU_NOTE if on_gpu else CPU_NOTE,
        "device": torch.cuda.get_device_name(device)
        if on_gpu
        else f"CPU, {platform.machine()}, {torch.get_num_threads()} threads",
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") if on_gpu else None,
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "versions": {"fastshap": fastshap.__version__, **{name: _version(name) for name in packages}},
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "triton_default_fp_fusion": os.environ.get("TRITON_DEFAULT_FP_FUSION"),
        "commit": _output("git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40"),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip().splitlines()[0] if done.stdout.strip() else None


def main(arguments: list[str] | None = None) -> int:
    """Checks, measures, and writes one JSON object."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu", description=__doc__.splitlines()[0] if __doc__ else None
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="fewer shapes, batch sizes and repetitions")
    parser.add_argument(
        "--tiny", action="store_true", help="the least that runs all of the code; its times mean nothing"
    )
    parser.add_argument("--out", type=Path, help="where to write the JSON")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda, but torch.cuda.is_available() is False")
    device = torch.device("cuda", torch.cuda.current_device()) if options.device == "cuda" else torch.device("cpu")
    out: Path | None = options.out
    if device.type == "cpu" or options.tiny:
        if out is not None and out.resolve().is_relative_to(RESULTS.resolve()):
            parser.error("bench/results holds results of GPUs; write this one elsewhere")
    elif out is None:
        out = RESULTS / f"gpu_{re.sub('[^a-z0-9]+', '_', torch.cuda.get_device_name(device).lower()).strip('_')}.json"
    result = environment(device)
    say(f"{result['device']}. {result['note']}")
    try:
        check_operators(device)
    except CheckFailedError as error:
        say(f"No report: {error}")
        return 1
    of_operators, of_explanations = sizes(device, options.quick, options.tiny)
    result |= {"quick": options.quick, "tiny": options.tiny}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the peers' own
        result |= operators.measure_operators(of_operators, device)
        result["explanations"] = explanations.measure_explanations(of_explanations, device)
    text = json.dumps(result, indent=1)
    if out is None:
        print(text)
    else:
        out.write_text(text + "\n")
        say(f"Wrote {out}")
    return 0
