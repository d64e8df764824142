"""Small models, made here: nothing is downloaded."""

import importlib.metadata
import json
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# As many processes as cores are at work already: one thread each, also of what tests start, and none that waits by spinning.
os.environ.update({"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"} if "PYTEST_XDIST_WORKER" in os.environ else {})

import pytest
import torch
from jsonschema import Draft202012Validator
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

import fastshap
from fastshap.output.plain import SCHEMA_PATH
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
    "models": {"adjoint", "default_model"},
    "operators": {"operators", "philox"},
    "output": {"looking", "summary"},
    "peers": {"captum", "interop"},
    "repository": {"house"},
    "tasks": {"first_token"},
    "text": {"inputs", "text"},
}
NOT_QUICK = ("slow", "gpu", "interpret", "browser", "ray", "starts_python")

_VALIDATOR = Draft202012Validator(json.loads(SCHEMA_PATH.read_text()))

VALIDATED = 10  # outputs of a test, by jsonschema, which takes longer than many an explanation

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    for item in items:
        quick = item.path.stem.removeprefix("test_") in QUICK.get(item.path.parent.name, ())
        if quick and not any(map(item.get_closest_marker, NOT_QUICK)):
            item.add_marker("quick")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Each process gets one stretch of the tests, so that most fixtures are made once; who is done takes from others."""
    if config.getvalue("dist") != "load":
        return None
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


@pytest.fixture(autouse=True)
def outputs_fit_the_schema(request, monkeypatch):
    """Every output of the suite comes back from JSON, which our own check reads by the schema; the first also by jsonschema."""
    made = []

    def keeping(method):
        def kept(*arguments):
            made.append(method(*arguments))
            return made[-1]

        return kept

    if "slow" not in request.keywords:  # where memory is watched over many calls
        for name in ("_output", "_failed"):
            monkeypatch.setattr(fastshap.GradientShap, name, keeping(getattr(fastshap.GradientShap, name)))
    yield
    for count, output in enumerate(made):
        text = output.to_json()
        for error in _VALIDATOR.iter_errors(json.loads(text)) if count < VALIDATED else ():
            raise error
        assert fastshap.AttributionOutput.from_json(text).to_json() == text


@pytest.fixture(scope="session")
def texts():
    return list(SENTENCES)


@pytest.fixture(scope="session")
def default_pair():
    return fastshap.load_default_model()


@pytest.fixture(scope="session")
def bert_pair(default_pair):
    """A random BERT of three classes, large weights so that it is far from linear, with the embedded model's tokenizer."""
    # Seconds of importing, which processes that tests start mostly do without.
    from transformers import BertConfig, BertForSequenceClassification

    tokenizer = default_pair[1]
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=36,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=64,
        max_position_embeddings=128,
        num_labels=3,
        initializer_range=0.3,
    )
    return BertForSequenceClassification(config).eval(), tokenizer


@pytest.fixture(scope="session")
def byte_tokenizer():
    """A byte-level BPE tokenizer in GPT-2's manner."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|end|>"], initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())
    )
    core.train_from_iterator(SENTENCES * 3, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|end|>", pad_token="<|end|>", clean_up_tokenization_spaces=False
    )


@pytest.fixture(scope="session")
def llama_pair(byte_tokenizer):
    """A random two-layer Llama with untied embeddings."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(byte_tokenizer),
        hidden_size=36,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=12,
        max_position_embeddings=256,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config).eval(), byte_tokenizer
