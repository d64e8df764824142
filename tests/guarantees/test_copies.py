"""Explainers that are pickled or copied."""

import copy
import dataclasses
import multiprocessing
import pickle
import threading

import pytest
import torch
from torch import nn

from fastshap import GradientShap, InvalidTypeError

TEXTS = ["A gorgeous, witty film.", "not good at all"]


def doubled(logits):
    return 2 * logits


class Mine(GradientShap):
    """A class of the user's own."""

    def __init__(self, pair, mine):
        super().__init__(*pair, n_perturbations=3)
        self.mine = mine


def pickled(explainer):
    return pickle.loads(pickle.dumps(explainer))


def assert_same(ours, right):
    for one, other in zip(ours, right, strict=True):
        assert torch.equal(one.attributions, other.attributions)
        assert one.to_dict()["settings"] == other.to_dict()["settings"]


@pytest.mark.parametrize("copied", [pickled, copy.copy, copy.deepcopy])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch_size": "auto", "granularity": "token", "seed": 5, "baseline": 0.1, "on_error": "record"},
        {"inference_mode": doubled, "rtol": 0.5, "return_convergence_delta": True},
        {"device": ["cpu", "cpu"]},
    ],
    ids=["defaults", "settings", "function", "devices"],
)
@pytest.mark.parametrize("used", [False, True])
def test_a_copy_gives_the_same(bert_pair, copied, options, used):
    explainer = GradientShap(*bert_pair, n_perturbations=4, **options)
    if used:
        explainer(TEXTS)
    own = copied(explainer)
    assert (own.model is explainer.model) == (copied is copy.copy)
    assert own._replicas.further == explainer._replicas.further
    assert_same(own(TEXTS), explainer(TEXTS))
    assert_same(own(TEXTS, seed=7), explainer(TEXTS, seed=7))


@pytest.mark.parametrize("copied", [pickled, copy.copy, copy.deepcopy])
def test_a_copy_of_a_language_models_explainer(llama_pair, copied):
    explainer = GradientShap(*llama_pair, n_perturbations=2)
    (right,), (ours,) = explainer("The film is", [" good"]), copied(explainer)("The film is", [" good"])
    torch.testing.assert_close(ours.attributions, right.attributions, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("copied", [pickled, copy.copy, copy.deepcopy])
def test_a_class_of_the_users_own(bert_pair, copied):
    explainer = Mine(bert_pair, ["something"])
    explainer.settings = dataclasses.replace(explainer.settings, seed=9)  # by hand
    own = copied(explainer)
    assert type(own) is Mine
    assert own.mine == ["something"]
    assert (own.mine is explainer.mine) == (copied is copy.copy)
    assert_same(own(TEXTS), explainer(TEXTS))


def test_a_copy_is_one_of_its_own(bert_pair):
    """What is done with it, or found out by it, is not the other's."""
    explainer = GradientShap(*bert_pair, n_perturbations=4, baseline=torch.zeros(bert_pair[0].config.hidden_size))
    for own in (pickled(explainer), copy.deepcopy(explainer)):
        with torch.no_grad():
            own.model.classifier.weight.zero_()
        assert not own(TEXTS, 1)[0].attributions.any()
        assert explainer(TEXTS, 1)[0].attributions.any()
    own = copy.copy(explainer)
    own._budget.shrink(2, 4)
    own.settings = dataclasses.replace(own.settings, seed=3)
    assert explainer._budget.rows(2) == 4


def test_a_copy_made_while_another_thread_explains(bert_pair):
    explainer = GradientShap(*bert_pair, n_perturbations=4)
    right, stop = explainer(TEXTS), threading.Event()

    def work():
        while not stop.is_set():
            explainer(TEXTS)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for copied in (pickled, copy.copy, copy.deepcopy) * 3:
            assert_same(copied(explainer)(TEXTS), right)
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("used", [False, True])
def test_a_function_without_a_name_is_told(bert_pair, used):
    explainer = GradientShap(*bert_pair, inference_mode=lambda logits: 2 * logits)
    right = explainer(TEXTS) if used else None
    with pytest.raises(InvalidTypeError, match=r"its inference_mode cannot .*lambda.* the top of a module"):
        pickle.dumps(explainer)
    for copied in (copy.copy, copy.deepcopy):
        assert_same(copied(explainer)(TEXTS), right or explainer(TEXTS))


def test_picklers_that_take_such_functions(bert_pair):
    cloudpickle = pytest.importorskip("cloudpickle")
    explainer = GradientShap(*bert_pair, inference_mode=lambda logits: 2 * logits)
    assert_same(pickle.loads(cloudpickle.dumps(explainer))(TEXTS), explainer(TEXTS))


@pytest.mark.parametrize("kind", ["a lock", "a tensor with a history"])
def test_a_model_that_cannot_be_pickled_is_told(bert_pair, kind):
    model = copy.deepcopy(bert_pair[0])
    held = threading.Lock() if kind == "a lock" else (nn.Parameter(torch.ones(2)) * 2)
    model.held = held
    explainer = GradientShap(model, bert_pair[1])
    right = explainer(TEXTS)
    with pytest.raises(InvalidTypeError, match="The explainer cannot be copied with its model"):
        copy.deepcopy(explainer)
    if kind == "a lock":
        with pytest.raises(InvalidTypeError, match=r"as its model cannot .*lock"):
            pickle.dumps(explainer)
    assert_same(copy.copy(explainer)(TEXTS), right)


def explained(queue, explainer):
    queue.put([one.attributions.tolist() for one in explainer(TEXTS)])


@pytest.mark.slow
def test_an_explainer_for_a_spawned_process(bert_pair):
    context = multiprocessing.get_context("spawn")
    explainer, queue = GradientShap(*bert_pair, n_perturbations=4), context.Queue()
    right = explainer(TEXTS)
    process = context.Process(target=explained, args=(queue, explainer))
    process.start()
    found = queue.get(timeout=600)
    process.join()
    for ours, other in zip(found, right, strict=True):
        assert torch.allclose(torch.tensor(ours), other.attributions, atol=1e-5)
