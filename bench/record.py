"""What every record says: machine, versions and commit."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from bench.paths import ROOT

PACKAGES = ("torch", "transformers", "interpreto", "captum", "shap", "triton", "fastshap-text")


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def machine() -> dict[str, Any]:
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "platform": f"{platform.system()} {platform.machine()}",
    }


def commit() -> str | None:
    """The commit, with a plus where files other than results differ from it."""
    try:
        run = lambda *words: subprocess.run(  # noqa: E731
            ["git", *words], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = run("status", "--porcelain", "-uno", ".", ":!bench/results")
        return run("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
