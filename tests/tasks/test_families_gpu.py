"""Families of models with every task, and the queue of a service, on a GPU as on the CPU. Run with ``-m gpu``."""

import copy

import families
import pytest
import torch

import fastshap

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore")]
BOUND = 1e-4  # of the largest score


@pytest.fixture(scope="module")
def gpu():
    assert torch.cuda.is_available(), "these tests need a CUDA or ROCm device, and torch.cuda.is_available() is False"
    return torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("task", "family", "name"),
    [
        pytest.param(*case, id="-".join(case[:2]))
        for case in families.cases()
        if families.cell_of(*case[:2]).startswith("yes")
    ],
)
def test_tasks_equal_those_on_the_cpu(gpu, task, family, name):
    model, words = families.made(task, family, name)
    texts, targets, options = families.asked(task)
    common = {"n_perturbations": families.SAMPLES, "granularity": "all_tokens", **options}
    there = copy.deepcopy(model).to(gpu)
    right = fastshap.GradientShap(model, words, "auto", backend="torch", **common)(texts, targets)
    outputs = fastshap.GradientShap(there, words, "auto", backend="triton", **common)(texts, targets)
    assert [one.targets.tolist() for one in outputs] == [one.targets.tolist() for one in right]
    assert families.apart(outputs, right) < BOUND


def test_a_queue_gives_what_explain_gives(gpu, default_pair, texts):
    model, tokenizer = copy.deepcopy(default_pair[0]).to(gpu), default_pair[1]
    explainer = fastshap.GradientShap(model, tokenizer, batch_size="auto")
    right = explainer(texts)
    with fastshap.Batcher(explainer) as batcher:
        waiting = [batcher.submit(text) for text in texts for _ in range(3)]
        outputs = [one.result() for one in waiting]
    assert families.apart(outputs, [one for one in right for _ in range(3)]) < BOUND
