"""Two threads on half a CPU's cores each: the same numbers, a thread's modules its own, the user's settings untouched."""

import copy
import threading

import pytest
import torch

import fastshap
from fastshap.models.replicas import side_by_side
from helpers.checks import assert_equal
from helpers.texts import INPUTS, TARGETS

OPTIONS = {"n_perturbations": 6, "batch_size": 4}


@pytest.fixture(autouse=True)
def two_cores():
    usual = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(usual)


@pytest.fixture
def enough(monkeypatch):
    """Every text is."""
    monkeypatch.setattr("fastshap.engine.work.ENOUGH_TOKENS", 0)


@pytest.fixture
def workers(monkeypatch):
    """The threads that models run in, with the number of cores each uses; what is tried beforehand is left out."""
    monkeypatch.setattr("fastshap.tasks.classification.ClassificationTask.refresh", lambda self: None)
    seen = {}
    grad = torch.autograd.grad

    def watched(*arguments, **options):
        seen[threading.get_ident()] = torch.get_num_threads()
        return grad(*arguments, **options)

    monkeypatch.setattr(torch.autograd, "grad", watched)
    return seen


@pytest.mark.parametrize(
    "options",
    [{}, {"return_convergence_delta": True, "rtol": 0.5, "max_perturbations": 36}, {"reduction": "abs_mean"}],
    ids=str,
)
@pytest.mark.parametrize("task", ["classification", "generation"])
def test_the_same_numbers(bert_pair, llama_pair, monkeypatch, workers, task, options):
    pair, targets = (bert_pair, "all") if task == "classification" else (llama_pair, TARGETS)
    alone = fastshap.GradientShap(*pair, **OPTIONS | options)(INPUTS, targets)
    assert set(workers.values()) == {2}
    workers.clear()
    monkeypatch.setattr("fastshap.engine.work.ENOUGH_TOKENS", 0)
    both = fastshap.GradientShap(*pair, **OPTIONS | options)(INPUTS, targets)
    assert len(workers) >= 2
    assert threading.get_ident() not in workers
    assert set(workers.values()) == {1}
    assert_equal(both, alone)


def test_only_where_there_is_enough_to_do(default_pair, workers):
    fastshap.GradientShap(*default_pair)("not good at all")
    assert list(workers) == [threading.get_ident()]
    workers.clear()
    fastshap.GradientShap(*default_pair, batch_size="auto", n_perturbations=200)(" ".join(["good"] * 120))
    assert len(workers) == 2


def test_the_number_of_threads_stays(bert_pair, enough, monkeypatch):
    def number():
        found = []
        thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        return torch.get_num_threads(), *found

    explainer = fastshap.GradientShap(*bert_pair, **OPTIONS)
    before, running = number(), threading.active_count()
    explainer(INPUTS)
    assert number() == before == (2, 2)
    monkeypatch.setattr("fastshap.engine.run.ops.attribute", lambda *a, **k: 1 / 0)
    with pytest.raises(fastshap.ModelFailedError, match="ZeroDivisionError") as caught:
        explainer(INPUTS)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert number() == before
    assert threading.active_count() == running


def test_one_core_is_one_thread(bert_pair, enough, workers):
    torch.set_num_threads(1)
    fastshap.GradientShap(*bert_pair, **OPTIONS)(INPUTS)
    assert list(workers) == [threading.get_ident()]


def test_copies_share_parameters_and_nothing_else(bert_pair):
    model = copy.deepcopy(bert_pair[0])
    one, two = side_by_side(model, 2)
    assert one is model
    assert [id(p) for p in two.parameters()] == [id(p) for p in model.parameters()]
    assert not {id(m) for m in two.modules()} & {id(m) for m in model.modules()}
    assert not {b.data_ptr() for b in two.buffers()} & {b.data_ptr() for b in model.buffers()}
    assert two.config is not model.config


def test_what_might_not_be_copied_runs_alone(bert_pair, enough, workers):
    def runs_alone(model, **options):
        workers.clear()
        fastshap.GradientShap(model, bert_pair[1], **OPTIONS | options)(INPUTS)
        return list(workers) == [threading.get_ident()]

    model = copy.deepcopy(bert_pair[0])
    assert not runs_alone(model)
    handle = model.bert.encoder.layer[0].register_forward_hook(lambda *a: None)
    assert runs_alone(model)
    handle.remove()
    model.bert.forward = model.bert.forward
    assert runs_alone(model)
    del model.bert.forward
    assert runs_alone(model, inference_mode=lambda logits: 2 * logits)
    assert not runs_alone(model)


def test_changed_weights_are_seen(bert_pair, enough):
    model = copy.deepcopy(bert_pair[0])
    explainer = fastshap.GradientShap(model, bert_pair[1], **OPTIONS)
    explainer(INPUTS)
    with torch.no_grad():
        model.classifier.weight *= 3
        model.classifier.weight.data += 0.1
    fresh = fastshap.GradientShap(copy.deepcopy(model), bert_pair[1], **OPTIONS)
    assert_equal(explainer(INPUTS, 1), fresh(INPUTS, 1), tolerance=0)
    assert all(p.requires_grad for p in model.parameters())
