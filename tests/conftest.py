"""Fixtures and markers of all tests.

What takes long to import is imported in fixtures: with ``-n auto`` the process that hands the tests out needs none of it, and
the others start only once it is ready.
"""

import functools
import importlib.metadata
import importlib.util
import json
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# As many processes as cores are at work already: one thread each, also of what tests start, and none that waits by spinning.
os.environ.update({"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"} if "PYTEST_XDIST_WORKER" in os.environ else {})

import pytest

from helpers.texts import SENTENCES

_version_of = importlib.metadata.version


def _without_build(name):
    """The version of torch as the package index's default build gives it: 2.15.0, where torch itself says 2.15.0+cu132."""
    return _version_of(name).split("+")[0] if name == "torch" else _version_of(name)


importlib.metadata.version = _without_build

# Files of the inner loop, `pytest -n auto -m quick`: something of each room, and nothing that takes long.
QUICK = {
    "engine": {"engine", "operator_count"},
    "front_door": {"explainer"},
    "guarantees": {"golden", "view"},
    "jobs": {"job_inputs"},
    "metrics": {"measures"},
    "models": {"adjoint", "default_model"},
    "operators": {"operators", "philox"},
    "output": {"looking", "summary"},
    "peers": {"captum", "interop"},
    "repository": {"house"},
    "service": {"asked", "batcher"},
    "tasks": {"first_token"},
    "text": {"inputs", "text"},
}
NOT_QUICK = ("slow", "gpu", "interpret", "browser", "ray", "serve", "not_quick")

VALIDATED = 4  # outputs of a test, by jsonschema, which takes longer than many an explanation
WITH_JSONSCHEMA = importlib.util.find_spec("jsonschema") is not None  # a machine that is lent may lack it

if os.environ.get("TRITON_INTERPRET") == "1":
    from helpers.interpreter import take_scalars_out_of_their_arrays

    take_scalars_out_of_their_arrays()


def pytest_report_header():
    return None if WITH_JSONSCHEMA else "jsonschema is not installed: fastshap's own reader alone checks outputs"


def pytest_collection_modifyitems(items):
    for item in items:
        quick = item.path.stem.removeprefix("test_") in QUICK.get(item.path.parent.name, ())
        if quick and not any(map(item.get_closest_marker, NOT_QUICK)):
            item.add_marker("quick")
        # Random models and few samples make noise. Here, as pyproject.toml would have every process import fastshap for it.
        item.add_marker(pytest.mark.filterwarnings("ignore::fastshap.errors.NoiseWarning"), append=False)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Each process gets one stretch of the tests, so that most fixtures are made once; who is done takes from others."""
    if config.getvalue("dist") != "load":
        return None
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


@functools.cache
def validator():
    from jsonschema import Draft202012Validator

    from fastshap.output.plain import SCHEMA_PATH

    return Draft202012Validator(json.loads(SCHEMA_PATH.read_text()))


@pytest.fixture(autouse=True)
def outputs_fit_the_schema(request, monkeypatch):
    """Every output of the suite comes back from JSON, which our own check reads by the schema; the first also by jsonschema."""
    import fastshap
    from fastshap.output.made import Maker

    made = []

    def keeping(method):
        def kept(*arguments):
            made.append(method(*arguments))
            return made[-1]

        return kept

    if "slow" not in request.keywords:  # where memory is watched over many calls
        for name in ("output", "failed"):
            monkeypatch.setattr(Maker, name, keeping(getattr(Maker, name)))
    yield
    for count, output in enumerate(made):
        text = output.to_json()
        for error in validator().iter_errors(json.loads(text)) if WITH_JSONSCHEMA and count < VALIDATED else ():
            raise error
        assert fastshap.AttributionOutput.from_json(text).to_json() == text


@pytest.fixture(scope="session")
def texts():
    return list(SENTENCES)


@pytest.fixture(scope="session")
def default_pair():
    import fastshap

    return fastshap.load_default_model()


@pytest.fixture
def loaded_once(default_pair):
    """Jobs and commands get the packaged model as it was loaded, and tried, before."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("fastshap.tasks.loading.load_default_model", lambda: default_pair)
        yield


@pytest.fixture(scope="session")
def bert_pair(default_pair):
    """A random BERT of three classes, with the packaged model's tokenizer."""
    from helpers import models

    tokenizer = default_pair[1]
    return models.bert(len(tokenizer)), tokenizer


@pytest.fixture(scope="session")
def byte_tokenizer():
    from helpers import models

    return models.byte_tokenizer()


@pytest.fixture(scope="session")
def llama_pair(byte_tokenizer):
    """A random two-layer Llama."""
    from helpers import models

    return models.llama(len(byte_tokenizer)), byte_tokenizer
