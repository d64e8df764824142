"""What several tests compare, and what must be left as it was."""

import gc
import random
from dataclasses import fields

import numpy as np
import torch

import fastshap
from fastshap.output.record import Record

FIELDS = ("attributions", "standard_error", "unassigned", "convergence_delta")


def assert_equal(ours, right, tolerance=1e-5):
    """All numbers, to a share of the largest attribution, or of the largest of their own kind.

    A convergence delta is a difference of sums: a share of the sum of what is added up.
    """
    assert len(ours) == len(right)
    for one, other in zip(ours, right, strict=True):
        assert (one.elements, one.target_names) == (other.elements, other.target_names)
        assert (one.rounds, one.n_perturbations, one.converged) == (
            other.rounds,
            other.n_perturbations,
            other.converged,
        )
        sizes = other.attributions.abs().nan_to_num()
        largest = sizes.max().item()
        assert largest > 0
        for name in FIELDS:
            a, b = getattr(one, name), getattr(other, name)
            assert (a is None) == (b is None)
            if b is not None:
                summed = sizes.sum(-1).max().item() if name == "convergence_delta" else largest
                size = max(summed, b.abs().nan_to_num().max().item())
                torch.testing.assert_close(
                    a, b, atol=tolerance * size, rtol=0, equal_nan=True, msg=lambda m, name=name: f"{name}: {m}"
                )


def assert_same(ours, right):
    torch.testing.assert_close(ours, right, atol=1e-5 * right.nan_to_num().abs().max().item(), rtol=0, equal_nan=True)


def snapshot(model, tokenizer):
    """All that an explanation must leave as it was."""
    core = tokenizer.backend_tokenizer
    settings_of_tokenizer = {k: repr(v) for k, v in vars(tokenizer).items() if not k.startswith("_tokenizer")}
    return {
        "weights": {name: value.clone() for name, value in model.state_dict().items()},
        "requires_grad": [parameter.requires_grad for parameter in model.parameters()],
        "gradients": [parameter.grad is None for parameter in model.parameters()],
        "training": [module.training for module in model.modules()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()],
        "config": model.config.to_dict(),
        "tokenizer": (settings_of_tokenizer, core.truncation, core.padding, len(tokenizer)),
        "random": (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()),
        "torch": (torch.is_grad_enabled(), torch.get_default_dtype(), torch.is_inference_mode_enabled()),
    }


def assert_unchanged(before, after):
    for name, value in before["weights"].items():
        assert torch.equal(value, after["weights"][name])
    for part in before.keys() - {"weights"}:
        assert before[part] == after[part], part


def large_tensors(elements):
    """Storages of at least so many elements that Python can reach, without the model's own (they live in the graph)."""
    gc.collect()
    found = {}
    for thing in gc.get_objects():
        if type(thing) is torch.Tensor and thing.device.type == "cpu":
            storage = thing.untyped_storage()
            if storage.nbytes() >= elements * thing.element_size():
                found[storage.data_ptr()] = tuple(thing.shape)
    return found


def assert_identical(one, other):
    """Every field, tensors to the bit."""
    assert type(one) is type(other) is fastshap.AttributionOutput
    for field in fields(Record):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if field.name == "model_inputs_to_explain":
            assert a.keys() == b.keys()
            a, b = list(a.values()), list(b.values())
        for x, y in zip(a, b, strict=True) if isinstance(a, list) else [(a, b)]:
            if isinstance(x, torch.Tensor):
                assert (x.dtype, x.shape) == (y.dtype, y.shape), field.name
                assert torch.equal(x.nan_to_num(-7), y.nan_to_num(-7)), field.name
                assert torch.equal(x.isnan(), y.isnan()) if x.is_floating_point() else True
            else:
                assert x == y, field.name
