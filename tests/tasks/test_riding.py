"""One text: its own row rides in the calls with gradients, where that is cheaper, and nothing else changes."""

import copy

import pytest
import torch

import fastshap
from fastshap.engine.work import Work
from helpers.checks import assert_equal

TEXT = "A gorgeous, witty film, but the ending is dull."
TARGETS = [None, 1, "negative", "all", [[1, None]], [[0, 1, 1]]]


@pytest.fixture
def riding(monkeypatch):
    """Lets it ride, or not, whatever it costs."""
    return lambda may: monkeypatch.setattr(Work, "text_may_ride", lambda self, item, weights: may)


@pytest.fixture
def pair(default_pair):
    return copy.deepcopy(default_pair[0]), default_pair[1]


def calls_of(model):
    """Rows of each call of the model, and whether they had gradients."""
    seen = []

    def look(module, args, kwargs):
        if kwargs.get("inputs_embeds") is not None:
            seen.append((len(kwargs["inputs_embeds"]), torch.is_grad_enabled()))

    model.register_forward_pre_hook(look, with_kwargs=True)
    return seen


def facts(output):
    return output.targets.tolist(), output.target_names, output.predicted_label


@pytest.mark.parametrize("targets", TARGETS, ids=str)
@pytest.mark.parametrize(
    "options", [{}, {"granularity": "token", "reduction": "abs_mean"}, {"n_perturbations": 7}], ids=str
)
def test_the_same_as_without(pair, riding, targets, options):
    explainer = fastshap.GradientShap(*pair, batch_size="auto", **options)
    riding(False)
    plain = explainer(TEXT, targets)
    riding(True)
    ours = explainer(TEXT, targets)
    assert_equal(ours, plain)
    assert facts(ours[0]) == facts(plain[0])
    assert ours[0].probability == pytest.approx(plain[0].probability, rel=1e-5)
    torch.testing.assert_close(ours[0].target_probabilities, plain[0].target_probabilities)


@pytest.mark.parametrize(("batch_size", "rows"), [("auto", [11]), (20, [11]), (4, [5, 5, 3])])
def test_no_pass_for_the_prediction(pair, riding, batch_size, rows):
    riding(True)
    explainer = fastshap.GradientShap(*pair, batch_size=batch_size)
    seen = calls_of(pair[0])
    explainer(TEXT)  # the model is tried
    for targets in (None, 1):
        seen.clear()
        explainer(TEXT, targets)
        assert seen == [(count, True) for count in rows]
    for texts, options in (([TEXT, "fine"], {}), (TEXT, {"rtol": 0.5}), (TEXT, {"return_convergence_delta": True})):
        seen.clear()
        explainer(texts, **options)
        assert any(not gradients for _, gradients in seen)


def test_calls_that_do_not_fit_are_halved(pair, riding):
    explainer = fastshap.GradientShap(*pair, batch_size="auto")
    riding(False)
    expected = explainer(TEXT)
    riding(True)
    full = []

    def forward(module, args, kwargs):
        if full and torch.is_grad_enabled() and len(kwargs["inputs_embeds"]) > 7:  # 11, with the text's own
            full.append(1)
            raise torch.OutOfMemoryError("made up")

    pair[0].register_forward_pre_hook(forward, with_kwargs=True)
    explainer(TEXT)  # a model with a hook is tried again
    full.append(1)
    assert_equal(explainer(TEXT), expected)
    assert len(full) == 2


@pytest.mark.parametrize("targets", [None, 0])
def test_a_model_that_fails_or_is_not_finite(pair, riding, targets):
    """The errors are those of the plain way."""
    riding(True)
    explainer = fastshap.GradientShap(*pair, on_error="record")
    factor = 1.0
    pair[0].classifier.register_forward_hook(lambda module, args, logits: logits * (1 / factor))
    assert explainer(TEXT, targets)[0].error is None
    factor = torch.nan
    assert "NonFiniteError" in explainer(TEXT, targets)[0].error
    factor = 0
    assert "division by zero" in explainer(TEXT, targets)[0].error


def test_errors_of_the_text_and_its_target(pair, riding):
    riding(True)
    explainer = fastshap.GradientShap(*pair)
    with pytest.raises(fastshap.InvalidArgumentError, match=r"Text 0.*empty"):
        explainer(" ")
    with pytest.raises(fastshap.InvalidArgumentError, match="no label"):
        explainer(TEXT, "neutral")
    with pytest.warns(fastshap.TruncationWarning):
        assert explainer("fine " * 600)[0].truncated


def test_where_nothing_is_predicted_nothing_rides(pair, riding):
    riding(True)
    pair[0].config.problem_type = "regression"
    explainer = fastshap.GradientShap(*pair, batch_size="auto")
    explainer(TEXT, 1)
    seen = calls_of(pair[0])
    explainer(TEXT, 1)
    explainer(TEXT, 1)
    assert seen[-1] == (10, True)
    assert explainer(TEXT)[0].predicted_label is None
    assert seen[-1] == (11, True)  # the largest logit is the target


def test_large_models_let_it_run_alone(pair):
    """A row more, with gradients, costs more there than what a call takes beside its sums."""
    long = pair[0].config.max_position_embeddings * "fine "
    explainer = fastshap.GradientShap(*pair, batch_size="auto", n_perturbations=2)
    seen = calls_of(pair[0])
    explainer(TEXT)
    seen.clear()
    explainer(TEXT)
    assert [gradients for _, gradients in seen] == [True]
    seen.clear()
    with pytest.warns(fastshap.TruncationWarning):
        explainer(long)
    assert [gradients for _, gradients in seen] == [False, True]
