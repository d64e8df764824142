"""``warm_up``: the first text of a service waits for nothing that a later one does not wait for."""

import copy

import pytest
import torch

import fastshap
from fastshap import GradientShap, UnsupportedModelError, warm_up
from fastshap.tasks import layout

TEXTS = [
    "A gorgeous, witty film.",
    "no",
    "The battery died after two days, and nobody could tell me why on earth it had to be this one.",
    "unwarrantedly incomprehensible",
]
FEW = {"n_perturbations": 4, "batch_size": 2}


@pytest.fixture
def trials(monkeypatch):
    """One entry for each time that a model is tried."""
    found, real = [], layout._layout
    monkeypatch.setattr(layout, "_layout", lambda *args: found.append(1) or real(*args))
    return found


@pytest.mark.parametrize("options", [{}, {"rtol": 0.5, "max_perturbations": 64}, {"batch_size": "auto"}], ids=str)
def test_the_first_text_tries_nothing_any_more(trials, options):
    model, tokenizer = fastshap.load_default_model()
    explainer = GradientShap(model, tokenizer, **{**FEW, **options})
    warm_up(explainer)
    assert len(trials) == 1
    explainer(TEXTS)
    assert len(trials) == 1


def test_numbers_are_those_without(default_pair):
    cold, warm = (GradientShap(*default_pair, **FEW) for _ in range(2))
    warm_up(warm)
    assert all(
        torch.equal(one.attributions, other.attributions) for one, other in zip(cold(TEXTS), warm(TEXTS), strict=True)
    )


def test_a_text_that_does_not_fit_is_left_out_and_a_model_that_does_not_is_named(default_pair):
    short = torch.zeros(3, default_pair[0].get_input_embeddings().weight.shape[1])
    warm_up(GradientShap(*default_pair, baseline=short, **FEW))  # there are more tokens in the longer text
    with pytest.raises(fastshap.InvalidArgumentError):
        warm_up(GradientShap(*default_pair, baseline=short[:1], **FEW))


def test_a_model_that_cannot_be_explained_is_said(default_pair):
    model = copy.deepcopy(default_pair[0])
    forward = model.forward
    model.forward = lambda *args, **kwargs: forward(*args, **{**kwargs, "inputs_embeds": None})
    with pytest.raises((UnsupportedModelError, fastshap.ModelFailedError)):
        warm_up(GradientShap(model, default_pair[1], **FEW))


@pytest.fixture
def launches(monkeypatch):
    """The launches that an H100 would get. None takes place: what the kernels would write is zero."""
    pytest.importorskip("triton")
    from bench.static.compiled import SM90, recorded
    from fastshap.ops import backend

    monkeypatch.setattr(backend, "_triton_runs", lambda _: True)
    monkeypatch.setattr(torch, "empty", torch.zeros)
    monkeypatch.setattr(torch.Tensor, "new_empty", torch.Tensor.new_zeros)
    with recorded(SM90) as found:
        yield found


@pytest.mark.parametrize(
    ("pair", "options"),
    [
        ("default_pair", {}),
        ("default_pair", {"granularity_aggregation_strategy": "max", "noise_std": 0.0}),
        ("default_pair", {"reduction": "abs_mean", "perturb_special_tokens": False, "sampling": "iid"}),
        ("default_pair", {"return_convergence_delta": True, "baseline": "vector"}),
        ("default_pair", {"baseline": "[MASK]", "perturb_special_tokens": False}),
        ("default_pair", {"baseline": fastshap.BaselineSet(["An ordinary film.", "ok"])}),
        ("default_pair", {"baseline": fastshap.BaselineSet(torch.ones(3, 128)), "noise_std": 0.0}),
        ("llama_pair", {}),
        ("llama_pair", {"granularity": "token", "granularity_aggregation_strategy": "signed_max"}),
    ],
    ids=str,
)
def test_no_later_text_needs_another_variant_of_a_kernel(pair, options, request):
    model, tokenizer = request.getfixturevalue(pair)
    launches = request.getfixturevalue("launches")
    if options.get("baseline") == "vector":
        options = options | {"baseline": torch.ones(model.get_input_embeddings().weight.shape[1])}
    explainer = GradientShap(model, tokenizer, backend="triton", **{**FEW, **options})
    warm_up(explainer)
    known, count = set(map(repr, launches)), len(launches)
    assert {launch.kernel.__name__ for launch in launches} >= {"perturb_kernel", "attribute_kernel", "moments_kernel"}
    explainer(TEXTS)
    for n in (3, 5):
        explainer(TEXTS[::-1], n_perturbations=n, batch_size=7)
    if pair == "default_pair":
        explainer(TEXTS, targets="all")
    assert len(launches) > 2 * count
    assert set(map(repr, launches)) == known
