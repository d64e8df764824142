"""Where this is, and what is not there."""

from __future__ import annotations

import importlib.util
import shutil
from typing import Any

import torch

from bench.gpu.command import environment
from bench.gpu.day.record import AbsentError, Record

# What some case wants, and what goes missing without it.
WANTED = {
    "interpreto": "the comparison with interpreto",
    "captum": "the comparison with captum",
    "triton": "all kernels",
    "pytest": "all tests",
    "hypothesis": "tests of any input",
    "jsonschema": "a second check of outputs in tests",
}


def measure(record: Record, device: torch.device) -> None:
    """One case: all of it."""
    record.case("environment", lambda: here(device))


def here(device: torch.device) -> dict[str, Any]:
    """Versions, the device, and ``absent``: a name with what goes missing."""
    if device.type == "cuda" and not torch.cuda.is_available():
        raise AbsentError("there is no GPU: torch.cuda.is_available() is False")
    absent = {name: loss for name, loss in WANTED.items() if importlib.util.find_spec(name) is None}
    if not any(map(shutil.which, ("cc", "gcc", "clang"))):
        absent["a C compiler"] = "torch.compile, and the first start of Triton"
    found = {**environment(device), "absent": absent}
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        properties = torch.cuda.get_device_properties(device)
        found |= {"memory_bytes": total, "free_bytes": free, "devices": torch.cuda.device_count()}
        found |= {"multiprocessors": properties.multi_processor_count}
    return found
