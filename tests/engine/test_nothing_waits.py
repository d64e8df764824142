"""Nothing waits for the device, and nothing is copied, between the sending of calls and the one fetching of results.

The engine runs on the device "meta", whose tensors have shapes and no values. Whoever reads a value gets an error, as does
whoever copies to the host; so each ``.item()``, ``.tolist()``, ``if tensor`` and ``.cpu()`` of ours fails here, also those that
PyTorch does not show on a CPU. A dispatch mode tells of copies to the device. What only a GPU can show is in
tests/operators/test_gpu.py: a wait within an operator or an allocation, and the kernels themselves.
"""

import copy
import dataclasses
import inspect
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fastshap
from fastshap import ops
from fastshap.engine.members import Members
from fastshap.engine.rounds import Rounds

META = torch.device("meta")
TEXTS = ["not good at all", "A gorgeous, witty film.", "ok", "Terrible service; I want my money back."]


class Watched(TorchDispatchMode):
    """Raises where values are read, or an operator has tensors of two devices, unless that was announced.

    transformers reads values in its masks: it gets an answer, and is named in ``others``.
    """

    def __init__(self):
        super().__init__()
        self.announced, self.sent, self.others = None, Counter(), set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default and args[0].device == META:
            for frame in inspect.stack()[1:]:
                if "/transformers/" in frame.filename:
                    self.others.add(frame.function)
                    return True
                if "/fastshap/" in frame.filename:
                    break
            raise AssertionError("a value is read")
        out = function(*args, **(kwargs or {}))
        tensors = [one for one in tree_leaves((args, kwargs, out)) if isinstance(one, torch.Tensor)]
        if len({one.device.type for one in tensors}) > 1:
            assert self.announced, f"{function} copies between devices"
            self.sent[self.announced] += 1
        return out

    def sending(self, name, send):
        """``send`` with leave to copy."""

        def sent(*args):
            self.announced = name
            try:
                return send(*args)
            finally:
                self.announced = None

        return sent


@pytest.fixture
def on_meta(bert_pair, llama_pair, monkeypatch):
    """Explains on the CPU, then lets the engine do the same work on meta; what was sent, how often was fetched, who read."""

    def run(task, work="run", **options):
        model, tokenizer = bert_pair if task == "classification" else llama_pair
        explainer = fastshap.GradientShap(model, tokenizer, **{"batch_size": 4, "n_perturbations": 8, **options})
        seen = []
        real = getattr(Rounds, work)

        def recorded(self, models, *arguments):
            seen.append((self, arguments))
            return real(self, models, *arguments)

        with monkeypatch.context() as patched:
            patched.setattr(Rounds, work, recorded)
            explainer(TEXTS, 1 if task == "classification" else ["fine film"] * len(TEXTS))
        ((its, arguments),) = seen
        if isinstance(its.execution.baseline, Members):
            its.execution.baseline.at(META, 64)  # once a device; later calls find them there
        elif isinstance(its.execution.baseline, torch.Tensor):
            its = dataclasses.replace(
                its, execution=dataclasses.replace(its.execution, baseline=torch.zeros(36, device=META))
            )
        watched, fetched = Watched(), []

        def fetch(tensors):
            fetched.append(len(tensors))
            return [torch.zeros(tensor.shape, dtype=tensor.dtype) for tensor in tensors]

        there = copy.deepcopy(model).to(META)
        with monkeypatch.context() as patched:
            for module in ("rounds", "run"):
                patched.setattr(f"fastshap.engine.{module}.to_host", fetch)
            for module in ("engine.packing", "text.groups"):
                patched.setattr(f"fastshap.{module}.to_device", watched.sending(module, ops.transfer.to_device))
            with watched:
                getattr(its, work)([there], *arguments)
        return watched.sent, len(fetched), watched.others

    return run


OPTIONS = [
    {},
    {"batch_size": "auto"},
    {"inference_mode": "softmax"},
    {"granularity": "all_tokens", "granularity_aggregation_strategy": "max"},
    {"reduction": "abs_mean"},
    {"perturb_special_tokens": False},
    {"baseline": "mean"},
    {"baseline": fastshap.BaselineSet(["An ordinary film.", "ok"])},
    {"baseline": fastshap.BaselineSet(torch.linspace(-1, 1, 72).view(2, 36)), "perturb_special_tokens": False},
]


@pytest.mark.parametrize(
    ("task", "options"),
    [
        pytest.param(task, options, id=f"{task} {options}", marks=() if usual else pytest.mark.slow)
        for i, options in enumerate(OPTIONS)
        for task in ("classification", "generation")
        for usual in [i == 0 or (task == "generation") == i % 2]  # each option with one of the tasks
    ],
)
def test_values_are_sent_together_and_fetched_once(on_meta, task, options):
    sent, fetched, others = on_meta(task, **options)
    assert fetched == 1
    # What all calls need goes in one copy for each of three dtypes at most. Groups' members follow at the end.
    assert 0 < sent["engine.packing"] <= 3
    assert sent["text.groups"] <= 6 * len(TEXTS)
    assert others <= {"find_packed_sequence_indices", "_ignore_causal_mask_sdpa", "_ignore_bidirectional_mask_sdpa"}


@pytest.mark.parametrize("task", ["classification", "generation"])
def test_calls_without_gradients_neither(on_meta, task):
    """Those of the convergence delta, at the texts and at their noisy baselines."""
    sent, fetched, _ = on_meta(task, work="ends", return_convergence_delta=True, granularity_aggregation_strategy="sum")
    assert fetched == 1
    assert 0 < sent["engine.packing"] <= 3


WRONG = {
    "item": lambda scores: scores.sum().item(),
    "tolist": lambda scores: scores.tolist(),
    "bool": lambda scores: bool((scores > 0).any()),
    "to the host": lambda scores: scores.cpu(),
    "to the device": lambda scores: torch.zeros(3).to(scores.device),
    "numpy": lambda scores: scores.numpy(),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
def test_what_waits_or_copies_is_found(on_meta, wrong, monkeypatch):
    """Each of these after attribute, where a GPU would be waited for."""
    attribute = ops.attribute

    def waiting(*args, **options):
        scores = attribute(*args, **options)
        if scores.device == META:
            wrong(scores)
        return scores

    monkeypatch.setattr(ops, "attribute", waiting)
    with pytest.raises((AssertionError, RuntimeError, NotImplementedError, TypeError)):
        on_meta("classification")


def test_a_call_that_is_sent_alone_is_found(on_meta, monkeypatch):
    """The bound on what is sent fails where each call's inputs travel by themselves."""
    monkeypatch.setattr("fastshap.engine.run._CALLS_AHEAD", 1)
    sent, _, _ = on_meta("classification")
    assert sent["engine.packing"] > 3
