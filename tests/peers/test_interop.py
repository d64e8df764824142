"""The forms of other libraries, in the hands of those libraries."""

import copy
import html
import re
import warnings

import numpy as np
import pytest
import torch

import fastshap

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import interpreto
    import shap
    from captum.attr import visualization
    from interpreto.attributions.metrics import Deletion, Insertion
    from interpreto.visualizations.attributions import plot_attributions

pytestmark = pytest.mark.filterwarnings("ignore")

TEXT = "A gorgeous, witty film, but the ending is dull."
GRANULARITIES = ["all_tokens", "token", "word", "part_sentence", "sentence"]


@pytest.fixture
def page(monkeypatch):
    """What a library shows in a notebook."""
    shown = []
    monkeypatch.setattr("interpreto.visualizations.attributions.display", shown.append)
    return shown


# ------------------------------------------------------------------ interpreto


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("targets", [None, "all"])
def test_interpreto_measures_and_plots_a_classification(default_pair, page, granularity, targets):
    model, tokenizer = copy.deepcopy(default_pair)
    texts = [f"{TEXT} Still, go and see it.", "Not good at all. Never again, I say!"]  # interpreto wants two elements
    outputs = fastshap.GradientShap(model, tokenizer, granularity=granularity)(texts, targets)
    theirs = [output.to_interpreto() for output in outputs]
    for output, other in zip(outputs, theirs, strict=True):
        assert type(other) is interpreto.attributions.base.AttributionOutput
        assert torch.equal(other.attributions, output.attributions)
        assert other.elements == output.elements
        indices = other.granularity.get_indices(other.model_inputs_to_explain, tokenizer)
        assert indices == [output.element_tokens]
    insertion, curves = Insertion(model, tokenizer, n_perturbations=20).evaluate(theirs)
    deletion, _ = Deletion(model, tokenizer, n_perturbations=20).evaluate(theirs)
    assert 0 < insertion < 1
    assert 0 < deletion < 1
    assert [len(one) for one in curves] == [len(output.target_names) for output in outputs]
    plot_attributions(theirs[0])
    assert "gorgeous" in page[-1].data


def test_interpretos_metrics_find_our_scores_better_than_the_opposite(default_pair):
    model, tokenizer = copy.deepcopy(default_pair)
    texts = [TEXT, "I loved every minute of it.", "Terrible customer service, I want my money back."]
    outputs = [output.to_interpreto() for output in fastshap.GradientShap(model, tokenizer, n_perturbations=50)(texts)]
    found = {}
    for sign in (1, -1):
        found[sign] = Insertion(model, tokenizer).evaluate(outputs)[0] - Deletion(model, tokenizer).evaluate(outputs)[0]
        for output in outputs:
            output.attributions = -output.attributions
    assert found[1] > 0.2
    assert found[-1] < -0.2


@pytest.mark.parametrize("granularity", ["token", "word"])
def test_interpreto_measures_and_plots_a_generation(llama_pair, page, granularity):
    model, tokenizer = copy.deepcopy(llama_pair)
    (output,) = fastshap.GradientShap(model, tokenizer, granularity=granularity)("The film is", "not good at all")
    theirs = output.to_interpreto()
    assert torch.equal(theirs.attributions.isnan(), output.attributions.isnan())
    auc, curves = Insertion(model, tokenizer, n_perturbations=5).evaluate([theirs])
    assert 0 <= auc <= 1
    assert len(curves[0]) == len(output.target_names)
    plot_attributions(theirs)
    assert "GenerationVisualization" in page[-1].data


# ------------------------------------------------------------------ shap


def test_shap_draws_one_target(default_pair):
    (output,) = fastshap.GradientShap(*default_pair, granularity_aggregation_strategy="sum")("5 < 6,  but\n$x$ is dull")
    explanation = output.to_shap()
    assert type(explanation) is shap.Explanation
    assert "".join(explanation.data) == "5 < 6,  but\n$x$ is dull"
    assert np.array_equal(explanation.values, output.attributions[0].double().numpy())
    drawn = shap.plots.text(explanation, display=False)
    assert "dull" in drawn
    assert "<br" in drawn or "svg" in drawn


def test_shap_draws_several_targets_and_generations(bert_pair, llama_pair):
    (classes,) = fastshap.GradientShap(*bert_pair, granularity="all_tokens")(TEXT, "all")
    explanation = classes.to_shap()
    assert explanation.values.shape == (len(classes.elements), 3)
    assert explanation.data[0].strip() == "[CLS]"
    drawn = shap.plots.text(explanation, display=False)
    assert all(name in drawn for name in classes.target_names)
    (written,) = fastshap.GradientShap(*llama_pair)("The film is", "not good at all")
    explanation = written.to_shap()
    assert "".join(explanation.data) == "The film is not good at all"
    assert np.isfinite(explanation.values).all()
    assert "good" in shap.plots.text(explanation, display=False)


# ------------------------------------------------------------------ captum


def test_captum_draws(default_pair):
    (output,) = fastshap.GradientShap(*default_pair, return_convergence_delta=True)("not good at all, <b>bold</b>")
    (record,) = output.to_captum(true_class="negative")
    assert type(record) is visualization.VisualizationDataRecord
    assert float(record.word_attributions.abs().max()) == 1
    assert record.pred_prob == output.probability
    assert record.attr_score == pytest.approx(float(output.attributions.sum()))
    assert record.convergence_score == float(output.convergence_delta[0])
    drawn = visualization.visualize_text([record]).data
    assert "<b>bold" not in drawn
    words = [
        html.unescape(word).strip()
        for word in re.findall(r"line-height:1.75\"><font color=\"black\"> (.*?)\s*</font>", drawn)
    ]
    assert words == output.elements


def test_captum_names_the_prediction_for_given_targets_too(default_pair):
    (output,) = fastshap.GradientShap(*default_pair)("not good at all", "all")
    for record in output.to_captum():
        assert (record.pred_class, record.pred_prob) == ("negative", output.probability)
    assert [record.attr_class for record in output.to_captum()] == ["negative", "positive"]


def test_captum_draws_generations(llama_pair):
    (output,) = fastshap.GradientShap(*llama_pair)("The film is", "not good at all")
    records = output.to_captum()
    assert [record.attr_class for record in records] == output.target_names
    assert all(torch.isfinite(record.word_attributions).all() for record in records)
    assert "good" in visualization.visualize_text(records).data


def test_words_that_came_split(default_pair):
    words = ["The", "film", "'s", "end", "was", "New York"]
    (output,) = fastshap.GradientShap(*default_pair, "auto")(fastshap.Words(words))
    assert [piece.strip() for piece in output.to_shap().data] == words
    assert [html.unescape(element) for element in output.to_captum()[0].raw_input_ids] == words
    assert output.to_interpreto().elements == words


def test_errors_are_not_handed_on(default_pair):
    (output,) = fastshap.GradientShap(*default_pair, on_error="record")([""])
    for form in (output.to_interpreto, output.to_shap, output.to_captum):
        with pytest.raises(fastshap.InvalidArgumentError, match="nothing to hand on"):
            form()
