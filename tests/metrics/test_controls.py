"""Controls and other libraries' methods, as the measures take them."""

import pytest
import torch

import fastshap
from fastshap import metrics
from fastshap.metrics import controls, peers

TEXTS = ["A gorgeous, witty film, but the ending is cliché.", "unbelievably good", "ok", ""]


@pytest.fixture(scope="module")
def explainer(default_pair):
    return fastshap.GradientShap(*default_pair, "auto", "tokenizer_word", n_perturbations=8, on_error="record")


@pytest.fixture(scope="module")
def outputs(explainer):
    return list(explainer(TEXTS))


def table(output):
    """Embeddings (1, L, D) of an output's tokens."""
    return output.model_inputs_to_explain["input_ids"]


def probability(model, output, ids):
    with torch.no_grad():
        return torch.softmax(model(input_ids=ids).logits, -1)[0, output.classes[0]]


def test_leave_one_out_is_what_the_probability_falls_by(default_pair, outputs):
    model, _ = default_pair
    found = controls.leave_one_out(metrics.Faithfulness(*default_pair), outputs)
    assert found[3].error == outputs[3].error
    for output, one in zip(outputs[:2], found[:2], strict=True):
        ids = table(output)
        whole = probability(model, output, ids)
        for g, tokens in enumerate(output.element_tokens):
            kept = [i for i in range(ids.shape[1]) if i not in tokens]
            assert abs(float(one.attributions[0, g] - (whole - probability(model, output, ids[:, kept])))) < 1e-5


def test_gradient_norm_is_of_the_gradient_at_the_text(default_pair, explainer, outputs):
    model, _ = default_pair
    found = controls.gradient_norm(explainer, outputs)
    for output, one in zip(outputs[:3], found[:3], strict=True):
        x = model.get_input_embeddings()(table(output)).detach().requires_grad_()
        score = model(inputs_embeds=x).logits[0, output.classes[0]]
        (g,) = torch.autograd.grad(score, x)
        tokens = g[0].abs().mean(-1)
        wanted = torch.stack([tokens[list(members)].mean() for members in output.element_tokens])
        torch.testing.assert_close(one.attributions[0], wanted, rtol=1e-4, atol=1e-7)


def test_random_order_depends_on_seed_and_text_alone(outputs):
    first, other = controls.random_order(outputs), controls.random_order(outputs, seed=1)
    assert torch.equal(controls.random_order(outputs[1:2])[0].attributions, first[1].attributions)
    assert not torch.equal(first[0].attributions, other[0].attributions)
    assert controls.word_length(outputs)[1].attributions.tolist() == [[12.0, 4.0]]


def test_captum_gives_what_its_path_integral_is(default_pair, explainer, outputs):
    pytest.importorskip("captum")
    theirs = peers.captum_integrated_gradients(explainer, outputs, n_steps=200)
    ours = fastshap.GradientShap(*default_pair, "auto", "tokenizer_word", n_perturbations=400, noise_std=0.0)(TEXTS[:2])
    for a, b in zip(ours, theirs[:2], strict=True):
        assert (a.attributions - b.attributions).norm() < 0.01 * a.attributions.norm()
    drawn = peers.captum_gradient_shap(explainer, outputs, n_samples=8, with_input=True)
    again = peers.captum_gradient_shap(explainer, outputs, n_samples=8, with_input=True)
    assert torch.equal(drawn[0].attributions, again[0].attributions)
    assert theirs[3].error == outputs[3].error


@pytest.mark.parametrize("method", ["Saliency", "Occlusion", "KernelShap"])
def test_interpreto_scores_the_same_words(explainer, outputs, method):
    pytest.importorskip("interpreto")
    found = peers.interpreto_scores(explainer, outputs, method, n_perturbations=8)
    assert [one.elements for one in found] == [one.elements for one in outputs]
    assert all(bool(one.attributions.isfinite().all()) for one in found[:3])
    faithful = metrics.Faithfulness(explainer.model, explainer.tokenizer)
    compared = faithful.compare({"fastshap": outputs, method: found}, [metrics.Comprehensiveness()])
    assert compared[method, metrics.Comprehensiveness()].count == 2


def test_interpretos_words_are_the_tokenizers(default_pair):
    pytest.importorskip("interpreto")
    explainer = fastshap.GradientShap(*default_pair, n_perturbations=2)
    with pytest.raises(fastshap.InvalidArgumentError, match="tokenizer_word"):
        peers.interpreto_scores(explainer, explainer("I didn't like it"), "Saliency")
