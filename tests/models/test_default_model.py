"""The embedded model is what its card says."""

import warnings
from pathlib import Path

import pytest
import torch

import fastshap
from fastshap.models.default import DEFAULT_MODEL_PATH


def test_size_and_files():
    files = {path.name: path.stat().st_size for path in Path(DEFAULT_MODEL_PATH).iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md", "NOTICE"} <= files.keys()
    assert sum(files.values()) <= 5_000_000


def test_it_loads_as_a_standard_model_without_a_warning():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, tokenizer = fastshap.load_default_model()
    assert torch.equal(torch.get_rng_state(), before)
    assert type(model).__name__ == "BertForSequenceClassification"
    assert model.dtype == torch.float32
    assert not model.training
    assert tokenizer.is_fast
    assert model.config.id2label == {0: "negative", 1: "positive"}
    assert float(model.get_input_embeddings().weight.detach().std()) == pytest.approx(
        0.063, abs=5e-4
    )  # as the pages say


def test_labels_of_plain_sentences(default_pair):
    model, tokenizer = default_pair
    right = {
        "I loved every minute of it.": 1,
        "This is the best phone I have ever owned.": 1,
        "Not bad, actually quite fun.": 1,
        "this is not a bad film": 1,
        "not good at all": 0,
        "I did not like it": 0,
        "The plot is a mess and the acting is worse.": 0,
        "The battery died after two days.": 0,
    }
    for text, label in right.items():
        assert model(**tokenizer(text, return_tensors="pt")).logits.argmax().item() == label, text
