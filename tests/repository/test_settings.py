"""A parameter is stated once: one that is invented in fastshap/settings/__init__.py alone is found everywhere."""

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastshap
from fastshap.settings import DEFAULTS, PARAMETERS, Settings

ROOT = Path(fastshap.__file__).parents[1]
FIELD = """    warmth: float = parameter(
        0.5,
        check=checks.finite,
        option=float,
        help="How warm it is.",
        doc="how warm it is, in degrees.",
        schema={"type": "number"},
    )

    def __post_init__"""

EVERYWHERE = """
import inspect, json, sys
import fastshap
from fastshap import BatchExplainer
from fastshap.jobs.job import identity
from fastshap.jobs.columns import Columns
from fastshap.output.plain import schema
from tools.settings import attributes, copies, signature, table
from typer.testing import CliRunner
from fastshap.cli import app

pair = fastshap.load_default_model()

# Python: signature, docstring, attribute, call, an error for a wrong value.
assert inspect.signature(fastshap.GradientShap).parameters["warmth"].default == 0.5
assert "warmth: how warm it is, in degrees." in fastshap.GradientShap.__doc__
explainer = fastshap.GradientShap(*pair, n_perturbations=2, warmth=3)
(output,) = explainer("not good at all")
assert explainer.warmth == output.warmth == output.settings.warmth == 3.0
assert explainer("fine", warmth=4)[0].warmth == 4
assert fastshap.explain("fine", warmth=4)[0].warmth == 4
for wrong in (lambda: fastshap.GradientShap(*pair, warmth="hot"), lambda: explainer("fine", warmth="hot")):
    try:
        wrong()
    except fastshap.InvalidTypeError as error:
        assert "warmth must be a number" in str(error)
    else:
        raise AssertionError

# Files: JSON, its schema, Parquet; a file older than the parameter has its default.
assert schema()["properties"]["settings"]["properties"]["warmth"] == {"type": "number"}
plain = output.to_dict()
assert plain["settings"]["warmth"] == 3
assert fastshap.AttributionOutput.from_json(output.to_json()).warmth == 3
fastshap.write_parquet([output], sys.argv[1])
assert next(fastshap.read_parquet(sys.argv[1])).warmth == 3
del plain["settings"]["warmth"]
assert fastshap.AttributionOutput.from_dict(plain).warmth == 0.5
plain["settings"]["warmth"] = "hot"
try:
    fastshap.AttributionOutput.from_dict(plain)
except fastshap.InvalidArgumentError as error:
    assert "settings.warmth" in str(error)
else:
    raise AssertionError

# Reproduced, told apart by a job, named on a page.
again = fastshap.reproduce(output, *pair)
assert again.identical and again.output.warmth == 3
columns = Columns("text", "id")
cold, warm = (identity(BatchExplainer(n_perturbations=2, warmth=w), columns) for w in (1, 2))
assert cold != warm and cold["settings"]["warmth"] == 1
output.to_html(sys.argv[1])
assert "warmth=3.0" in open(sys.argv[1]).read()

# The shell: help and value.
for command in ("explain", "run"):
    assert "How warm it is." in CliRunner().invoke(app, [command, "--help"], terminal_width=120).output
done = CliRunner().invoke(app, ["explain", "fine", "--json", "--warmth", "7", "--n-perturbations", "2"])
assert json.loads(done.stdout)["settings"]["warmth"] == 7

# What is copied for those who read without running.
assert "| `warmth` | `0.5` | How warm it is. |" in table()
assert "warmth: float\\n" in attributes() and "warmth: float = 0.5," in signature()
assert any('"warmth"' in text for text in copies().values())
"""


def test_an_invented_parameter_is_found_everywhere(tmp_path):
    for room in ("fastshap", "kernels", "tools", "docs"):
        shutil.copytree(ROOT / room, tmp_path / room, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    stated = tmp_path / "fastshap" / "settings" / "__init__.py"
    text = stated.read_text()
    assert text.count("    def __post_init__") == 1
    stated.write_text(text.replace("    def __post_init__", FIELD))
    done = subprocess.run(
        [sys.executable, "-c", EVERYWHERE, str(tmp_path / "outputs.parquet")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


def test_copies_are_up_to_date():
    from tools.settings import copies

    for path, text in copies().items():
        assert path.read_text() == text, f"run python -m tools.settings: {path.name} differs"


def test_nobody_else_states_a_parameter():
    """A parameter's name stands in few other modules: those that do something with its value."""
    uses = {
        path.relative_to(ROOT / "fastshap").as_posix()
        for path in (ROOT / "fastshap").rglob("*.py")
        if "path_density" in path.read_text()
    }
    assert uses == {
        *("settings/__init__.py", "explainer.py", "sampling.py", "engine/rounds.py"),  # explainer: for type checkers
        *("checks.py", "one_call.py", "__init__.py"),  # its check, and the function that finds its numbers
    }


def test_settings_are_checked_and_compared():
    assert Settings() == Settings(baseline=None)
    assert Settings(granularity="token") != Settings()
    assert Settings(baseline=torch.zeros(3)) == Settings(baseline=torch.zeros(3))
    assert Settings(baseline=torch.zeros(3)) != Settings(baseline=torch.zeros(3).double())
    assert Settings(baseline=torch.zeros(3)) != Settings()
    assert Settings(rtol=0.1).max_perturbations == 640
    assert Settings(rtol=0.1, seed=3).changes() == {"rtol": 0.1, "seed": 3}
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().seed = 3
    with pytest.raises(fastshap.InvalidArgumentError, match="no use without rtol"):
        Settings(max_perturbations=30)


@pytest.mark.parametrize("name", PARAMETERS)
def test_what_is_said_of_a_parameter(name):
    its = PARAMETERS[name]
    assert its.help.endswith(".")
    assert its.doc.endswith(".")
    kept = its.check(DEFAULTS[name], name)
    assert its.check(its.from_plain(its.to_plain(kept)), name) == kept
    assert dataclasses.replace(Settings(), **{name: kept}) == Settings()
