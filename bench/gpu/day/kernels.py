"""Kernels against eager torch, then against compiled torch, and the bandwidth of a copy."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Iterator
from typing import Any

import torch

from bench.console import say
from bench.gpu import operators
from bench.gpu.day.record import AbsentError, Record
from bench.gpu.operators import Case, Shape, Size

# A long run of one text: few programs unless rows are shared out too.
LONG_RUN = Shape("one text of 16 tokens, n = 1000", [16], 1000)
LONGER_RUN = Shape("one text of 64 tokens, n = 1000", [64], 1000)
SMALL, EQUAL, RAGGED = Size().shapes
BESIDE_EAGER = 768  # D of the cases that PyTorch runs too: it takes seconds for larger ones


def sizes(device: torch.device) -> list[Size]:
    """What comes first is what claims are made of; a CPU only rehearses."""
    if device.type == "cpu":
        return [Size((16,), (Shape(EQUAL.name, [5, 3], 2), Shape(LONG_RUN.name, [2], 4)), 1, 2**16)]
    return [
        Size((768,), (EQUAL, LONG_RUN, RAGGED, LONGER_RUN, SMALL), kernel_ms=100),
        Size((4096,), (EQUAL,), kernel_ms=100),
    ]


def measure(record: Record, device: torch.device) -> None:
    """The right numbers, the copy, every kernel beside eager torch; then the same formulas compiled."""
    record.case("check", lambda: operators.check_operators(device))
    record.case("copy", lambda: operators.copy_milliseconds(sizes(device)[0], device) | {"bytes": _copied(device)})
    for case in cases(device):
        if case.operator in ("perturb", "attribute") or case.shape == EQUAL.name:
            say(name_of(case))
            record.case(name_of(case), functools.partial(kernel_and_eager, case, device))
    for case in cases(device):
        if case.shape == EQUAL.name and (case.dim in (None, BESIDE_EAGER) or device.type == "cpu"):
            say(f"compiled {name_of(case)}")
            record.case(f"compiled {name_of(case)}", functools.partial(compiled, case, device))


def _copied(device: torch.device) -> int:
    """Read and written."""
    return 2 * sizes(device)[0].copy_bytes


def cases(device: torch.device) -> Iterator[Case]:
    for size in sizes(device):
        yield from operators.all_cases(size, device)


def name_of(case: Case) -> str:
    dim = "" if case.dim is None else f", D = {case.dim}"
    return f"{case.operator}, {case.shape}{dim}, {case.dtype}"


def _about(case: Case) -> dict[str, Any]:
    about = {name: getattr(case, name) for name in ("operator", "shape", "dim", "dtype", "least_bytes")}
    rows = case.formula is operators.perturb or case.formula is operators.attribute
    return about | {"elements": case.arguments[-1].token.numel() * case.dim if rows and case.dim else None}


def kernel_and_eager(case: Case, device: torch.device) -> dict[str, Any]:
    """Milliseconds, launches included; ``kernel_device``: at work on the device alone. A CPU's rehearsal has no kernel."""
    found = _about(case)
    if device.type == "cuda":
        found["kernel_device"] = operators.device_milliseconds(lambda: case.run("triton"), device)
        found["kernel"] = operators.milliseconds(lambda: case.run("triton"), 30, device)
    if case.dim in (None, BESIDE_EAGER) or device.type == "cpu":
        found["eager"] = operators.milliseconds(lambda: case.run("torch"), 30, device)
    return found


def compiled(case: Case, device: torch.device) -> dict[str, Any]:
    """The formula written plainly, with the layout looked up beforehand, by torch.compile."""
    if not any(map(shutil.which, ("cc", "gcc", "clang"))):
        raise AbsentError("torch.compile needs a C compiler")
    torch._dynamo.reset()
    run = torch.compile(case.formula, dynamic=False)
    found = _about(case) | {"compiled": operators.milliseconds(lambda: run(*case.arguments), 30, device)}
    if device.type == "cuda":
        found["compiled_device"] = operators.device_milliseconds(lambda: run(*case.arguments), device)
    return found
