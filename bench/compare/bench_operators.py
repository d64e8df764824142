"""The operators alone at MiniLM's shape: ``pytest bench --benchmark-only``."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastshap import ops
from fastshap.sampling import draw_samples

TOKENS, SAMPLES, DIM = 96, 10, 384


@pytest.fixture(params=["antithetic", "iid"])
def call(request: Any) -> tuple[torch.Tensor, ops.Rows]:
    """Ten rows of one text."""
    samples = draw_samples(0, range(TOKENS), SAMPLES, request.param)
    rows = ops.Rows(
        token_offsets=torch.tensor([0, TOKENS]),
        row_offsets=torch.tensor([0, SAMPLES]),
        alphas=torch.from_numpy(samples.alphas),
        streams=torch.tensor([samples.stream]),
        draws=torch.from_numpy(samples.draws),
        signs=torch.from_numpy(samples.signs),
        baseline=0.0,
        noise_std=0.1,
        held=None,
        length=TOKENS,
        padding_side="right",
    )
    return torch.randn(TOKENS, DIM), rows


def test_perturb(benchmark: Any, call: tuple[torch.Tensor, ops.Rows]) -> None:
    """Noise, baseline and interpolation."""
    x, rows = call
    assert benchmark(ops.perturb, x, rows).shape == (SAMPLES, TOKENS, DIM)


@pytest.mark.parametrize("reduction", ["sum", "abs_mean"])
def test_attribute(benchmark: Any, call: tuple[torch.Tensor, ops.Rows], reduction: str) -> None:
    """One target's gradients to token scores."""
    x, rows = call
    z = ops.perturb(x, rows)
    gradients = torch.randn(1, *z.shape)
    scores = benchmark(ops.attribute, gradients, z, x, rows, reduction=reduction, input_x_gradient=True)
    assert scores.shape == (1, SAMPLES, TOKENS)
