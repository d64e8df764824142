"""What a day consists of, in its order: which processes run which files."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from bench.gpu.day.leading import Lane, Step
from bench.paths import ROOT

_STRICT = "addopts=--strict-markers --strict-config"  # without what needs plugins, which need not be there
_PYTEST = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "bench.gpu.day.plugin", "--tb=short")
_ORDERLY = frozenset({0, 1, 5})  # all passed; some failed; there was none left to run
_ON_ANY_MACHINE = (
    "tests/operators/test_philox.py",
    "tests/operators/test_operators.py",
    "tests/engine/test_operator_count.py",
    "tests/engine/test_nothing_waits.py",
)
ON_A_GPU = ("tests/operators/test_gpu.py", "tests/tasks/test_families_gpu.py", "tests/engine/test_graphs_gpu.py")
# Of the GPU's tests, what the rehearsal runs in Triton's interpreter.
_INTERPRETED = "(test_moments and 5) or test_words_equal or (test_shows_in_profiles and moments)"
_MOST_PROCESSES = 12  # each holds half a gigabyte of the GPU for its context


def steps(out: Path, device: str) -> list[Step]:
    """``share``: seconds of nine minutes; what a step leaves goes to the later ones."""
    return [
        Step("environment", [_work("environment", out, device)], share=50),
        Step("tests", list(_tests(out, device)), share=135),
        Step("kernels", [_work("kernels", out, device)], share=105),
        Step("calls", [_work("calls", out, device)], share=80),
        Step("explanations", [_work("explanations", out, device)], share=110, quiet=120),
        Step("memory", [_work("memory", out, device)], share=50),
    ]


def _work(step: str, out: Path, device: str) -> Lane:
    command = (sys.executable, "-m", "bench.gpu.day.work", step, "--device", device, "--out", str(out))
    return Lane("0", command, _path())


def _path() -> dict[str, str]:
    """The project as it lies here, before any that is installed."""
    given = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": os.pathsep.join([str(ROOT), *([given] if given else [])]), "HF_HUB_OFFLINE": "1"}


def _tests(out: Path, device: str) -> Iterator[Lane]:
    def lane(name: str, *arguments: str, **environment: str) -> Lane:
        own = {"FASTSHAP_DAY": str(out / "results.jsonl"), "FASTSHAP_DAY_LANE": name, "OMP_NUM_THREADS": "1"}
        plugins = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        command = (*_PYTEST, "--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml"), "-o", _STRICT, *arguments)
        return Lane(name, command, {**_path(), **plugins, **own, **environment}, _ORDERLY)

    any_machine = [str(ROOT / name) for name in _ON_ANY_MACHINE]
    if device == "cpu":
        yield lane("cpu", "-m", "not slow", *any_machine)
        yield lane("interpreter", "-m", "gpu", "-k", _INTERPRETED, str(ROOT / ON_A_GPU[0]), TRITON_INTERPRET="1")
        return
    on_a_gpu = [str(ROOT / name) for name in ON_A_GPU]
    parts = max(1, min(_MOST_PROCESSES, (os.cpu_count() or 2) - 2))
    for part in range(parts):
        yield lane(f"gpu {part}", "-m", "gpu", *on_a_gpu, FASTSHAP_DAY_PART=f"{part}/{parts}")
    yield lane("cpu", "-m", "not slow", *any_machine)
