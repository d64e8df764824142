"""What runs beside the model: operators and copies between model calls, and large tensors alive."""

import weakref
from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fastshap
from helpers.checks import large_tensors

# These make a view of what is there: no kernel runs.
VIEWS = {"unbind", "expand", "unsqueeze", "detach", "alias", "view", "slice", "select", "split_with_sizes", "squeeze"}
TEXTS = [
    "not good at all",
    "A gorgeous, witty film.",
    "ok",
    "Simply wonderful.",
    "Terrible service; I want my money back.",
]


class Recorder(TorchDispatchMode):
    """Names of operators, a list for each stretch between two model calls (a backward pass is one too)."""

    def __init__(self):
        super().__init__()
        self.stretches = [[]]
        self.inside = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if not self.inside:
            self.stretches[-1].append(function._schema.name.split("::")[1].rstrip("_"))
        return function(*args, **(kwargs or {}))

    @contextmanager
    def model_call(self):
        self.inside += 1
        yield
        self.inside -= 1
        self.stretches.append([])


@contextmanager
def recorded(model, monkeypatch, first):
    """A recorder that knows forward and backward passes as the model's; ``first`` is done before it begins."""
    recorder = Recorder()
    forward, grad = model.forward, torch.autograd.grad

    def called(*args, **kwargs):
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        with recorder.model_call():
            return forward(*args, **kwargs)

    def differentiated(*args, **kwargs):
        with recorder.model_call():
            return grad(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(model, "forward", called)
        patched.setattr(torch.autograd, "grad", differentiated)
        first()
        recorder.stretches[:] = [[]]
        with recorder:
            yield recorder


@pytest.mark.parametrize("mode", ["logits", "softmax"])
@pytest.mark.parametrize("task", ["classification", "generation"])
def test_four_operators_between_model_calls(bert_pair, llama_pair, task, mode, monkeypatch):
    """Lookup of embeddings, perturb, the targets' scores, attribute; nothing is copied, nothing comes to the host."""
    model, tokenizer = bert_pair if task == "classification" else llama_pair
    targets = 1 if task == "classification" else ["fine film"] * len(TEXTS)
    explainer = fastshap.GradientShap(model, tokenizer, batch_size=4, n_perturbations=8, inference_mode=mode)
    with recorded(model, monkeypatch, lambda: explainer(TEXTS, targets)) as recorder:  # what is done once is done
        explainer(TEXTS, targets)
    between = [[name for name in stretch if name not in VIEWS] for stretch in recorder.stretches[1:-1]]
    forwards = sum("perturb" in stretch for stretch in between) + 1
    assert forwards == len(TEXTS) * 8 // 4
    names = {name for stretch in between for name in stretch}
    scoring = {
        # A target's own logits are made inside the model; the scores of a word's tokens are joined by one product.
        ("classification", "logits"): {"gather"},
        ("classification", "softmax"): {"_softmax", "gather"},
        ("generation", "logits"): {"bmm"},
        ("generation", "softmax"): {"index", "_softmax", "gather", "bmm"},
    }[task, mode]
    assert names == {"embedding", "perturb", "attribute"} | scoring
    for stretch in between:
        assert len(stretch) <= 4
        # After a forward pass the targets' scores; after a backward pass attribute, and the next call's rows.
        assert set(stretch) == scoring or stretch in (["attribute"], ["attribute", "embedding", "perturb"])


def test_z_and_one_gradient_are_all_that_is_large(bert_pair, monkeypatch):
    """When scores are taken from a gradient, nothing else of R x L x D is alive."""
    model, tokenizer = bert_pair
    rows, length, width = 30, len(tokenizer(TEXTS[1])["input_ids"]), model.config.hidden_size
    explainer = fastshap.GradientShap(model, tokenizer, batch_size=rows, n_perturbations=rows)
    explainer(TEXTS[1], 1)
    before = large_tensors(rows * length * width)
    attribute, seen = fastshap.ops.attribute, []

    def watched(*args, **kwargs):
        now = large_tensors(rows * length * width)
        seen.append([shape for pointer, shape in now.items() if pointer not in before])
        return attribute(*args, **kwargs)

    monkeypatch.setattr(fastshap.ops, "attribute", watched)
    explainer(TEXTS[1], 1)
    (shapes,) = seen
    assert len(shapes) == 2
    assert all(shape in ((rows, length, width), (1, rows, length, width)) for shape in shapes)


def test_one_gradient_at_a_time(bert_pair, monkeypatch):
    """The gradient of one target is gone before the next target's is made."""
    monkeypatch.setattr("fastshap.engine.run._TOKENS_TOGETHER", {"cpu": 0})
    explainer = fastshap.GradientShap(*bert_pair, batch_size=30, n_perturbations=30)
    explainer(TEXTS[1], 1)  # what is tried once is tried
    grad, alive, made = torch.autograd.grad, [], []

    def watched(*args, **kwargs):
        alive.append(sum(gradient() is not None for gradient in made))
        gradients = grad(*args, **kwargs)
        made.append(weakref.ref(gradients[0]))
        return gradients

    monkeypatch.setattr(torch.autograd, "grad", watched)
    explainer(TEXTS[1], [[0, 1, 2]])
    assert alive == [0, 0, 0]


def test_the_count_sees_a_tensor_that_stays(bert_pair):
    kept = torch.zeros(30, 8, 36)
    assert (30, 8, 36) in large_tensors(kept.numel()).values()
