"""Every operator against the formula of its docstring, written out in float64, on ragged and extreme shapes."""

import dataclasses

import pytest
import torch

from fastshap import ops
from fastshap.errors import BackendUnavailableError, InvalidArgumentError
from fastshap.reference import normals, segment_reduce

SHAPES = [
    # (tokens a text, rows a text, D)
    ([1], [1], 8),
    ([5, 3, 1], [4, 2, 3], 7),
    ([12, 2], [1, 5], 64),
    ([6, 0, 4], [2, 2, 2], 12),  # a text without tokens
    ([3, 4], [0, 3], 5),  # a text without rows
    ([40], [2], 1030),
]


def make(tokens, rows, dim, dtype=torch.float32, side="right", baseline=0.25, held=False, noise_std=0.3, seed=0):
    torch.manual_seed(seed)
    texts, count = len(tokens), sum(rows)
    x = torch.randn(sum(tokens), dim).to(dtype)
    offsets = lambda counts: torch.tensor([0, *counts]).cumsum(0)  # noqa: E731
    shape = {"(D,)": (dim,), "(L, D)": (max(tokens), dim)}.get(baseline)
    alphas = torch.rand(count)
    alphas[::3] *= 1e-4  # positions so close to x that the noise is generated again
    described = ops.Rows(
        token_offsets=offsets(tokens),
        row_offsets=offsets(rows),
        alphas=alphas,
        streams=torch.randint(0, 2**32, (texts, 3)) % torch.tensor([2**32, 2**32, 9]),
        draws=torch.cat([torch.arange(n) // 2 for n in rows]),
        signs=torch.cat([1.0 - 2.0 * (torch.arange(n) % 2) for n in rows]),
        baseline=baseline if shape is None else torch.randn(shape),
        noise_std=noise_std,
        held=torch.rand(sum(tokens)) < 0.3 if held else None,
        length=max(tokens) + 2,
        padding_side=side,
    )
    return x, described


def expected_points(x, rows):
    """For each row: its text's columns, x, the noisy baseline and z, float64, by plain loops."""
    points = []
    for n in range(len(rows.token_offsets) - 1):
        lo, hi = rows.token_offsets[n].item(), rows.token_offsets[n + 1].item()
        start = rows.length - (hi - lo) if rows.padding_side == "left" else 0
        own = x[lo:hi].double()
        base = rows.baseline
        if isinstance(base, torch.Tensor):
            base = base.double() if base.ndim == 1 else base[: hi - lo].double()
        for r in range(rows.row_offsets[n].item(), rows.row_offsets[n + 1].item()):
            positions = torch.arange(hi - lo)
            stream, draw = rows.streams[n].expand(hi - lo, 3), rows.draws[r].expand(hi - lo)
            noise = normals(stream, draw, positions, x.shape[1]).double() * rows.signs[r].double()
            noisy = base + rows.noise_std * noise
            if rows.held is not None:
                noisy = torch.where(rows.held[lo:hi, None], own, noisy)
            alpha = rows.alphas[r].double()
            points.append((slice(start, start + hi - lo), own, noisy, (1 - alpha) * own + alpha * noisy))
    return points


CASES = [
    {},
    {"side": "left"},
    {"baseline": "(D,)"},
    {"baseline": "(L, D)", "side": "left"},
    {"held": True},
    {"noise_std": 0.0},
    {"dtype": torch.bfloat16},
    {"dtype": torch.float16, "held": True},
    {"dtype": torch.float64, "side": "left"},
]
ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-6, torch.float16: 2**-11, torch.bfloat16: 2**-8}


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_perturb(shape, case):
    x, rows = make(*shape, **case)
    z = ops.perturb(x, rows)
    assert z.shape == (sum(shape[1]), rows.length, shape[2])
    assert z.dtype == x.dtype
    for row, (columns, _, _, point) in enumerate(expected_points(x, rows)):
        tolerance = ROUNDING[x.dtype] * (1 + point.abs())
        assert ((z[row, columns].double() - point).abs() <= tolerance).all()
        padding = torch.ones(rows.length, dtype=torch.bool)
        padding[columns] = False
        assert (z[row, padding] == 0).all()


@pytest.mark.parametrize("reduction", ["sum", "abs_mean"])
@pytest.mark.parametrize("times_input", [True, False])
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_attribute(shape, case, reduction, times_input):
    x, rows = make(*shape, **case)
    z = ops.perturb(x, rows)
    gradients = torch.randn(2, *z.shape).to(x.dtype)
    scores = ops.attribute(gradients, z, x, rows, reduction=reduction, input_x_gradient=times_input)
    assert scores.shape == gradients.shape[:3]
    assert scores.dtype == torch.float32
    for row, (columns, own, noisy, _) in enumerate(expected_points(x, rows)):
        for target in range(2):
            product = gradients[target, row, columns].double()
            if times_input:
                product = product * (own - noisy if reduction == "sum" else z[row, columns].double())
            right = product.sum(-1) if reduction == "sum" else product.abs().mean(-1)
            # z carries 2^-25 of x, divided by alpha >= 2^-7, in each of D terms.
            tolerance = 2e-5 * (1 + product.abs().sum(-1))
            assert ((scores[target, row, columns] - right).abs() <= tolerance).all()
            padding = torch.ones(rows.length, dtype=torch.bool)
            padding[columns] = False
            assert (scores[target, row, padding] == 0).all()


def test_blocks_do_not_show(monkeypatch):
    x, rows = make([9, 5, 7], [6, 5, 7], 16)
    z = ops.perturb(x, rows)
    gradients = torch.randn(1, *z.shape)
    scores = ops.attribute(gradients, z, x, rows, reduction="sum", input_x_gradient=True)
    monkeypatch.setattr("fastshap.reference.rows._BLOCK_ELEMENTS", 300)
    assert torch.equal(ops.perturb(x, rows), z)
    assert torch.equal(ops.attribute(gradients, z, x, rows, reduction="sum", input_x_gradient=True), scores)


def test_non_contiguous_inputs():
    x, rows = make([4, 3], [2, 2], 6)
    strided = torch.randn(12, 7).T[:, ::1][:, :6].T.T  # (7, 6), neither contiguous nor a copy
    strided[:] = x
    z = ops.perturb(strided, rows)
    assert torch.equal(z, ops.perturb(x, rows))


def test_segment_reduce_by_hand():
    values = torch.tensor([[1.0, -5.0, 5.0, 2.0, float("nan"), 3.0], [0.0, 1.0, -1.0, 4.0, 4.0, -7.0]])
    members = torch.tensor([0, 1, 2, 5, 3, 4, 4])
    offsets = torch.tensor([0, 3, 5, 5, 6, 7])  # {0,1,2} {5,3} {} {4} {4}
    nan = float("nan")
    golden = {
        "sum": [[1.0, 5.0, nan, nan, nan], [0.0, -3.0, nan, 4.0, 4.0]],
        "mean": [[1 / 3, 2.5, nan, nan, nan], [0.0, -1.5, nan, 4.0, 4.0]],
        "max": [[5.0, 3.0, nan, nan, nan], [1.0, 4.0, nan, 4.0, 4.0]],
        "min": [[-5.0, 2.0, nan, nan, nan], [-1.0, -7.0, nan, 4.0, 4.0]],
        "signed_max": [[-5.0, 3.0, nan, nan, nan], [1.0, -7.0, nan, 4.0, 4.0]],
        "first": [[1.0, 3.0, nan, nan, nan], [0.0, -7.0, nan, 4.0, 4.0]],
        "last": [[5.0, 2.0, nan, nan, nan], [-1.0, 4.0, nan, 4.0, 4.0]],
    }
    for strategy, right in golden.items():
        ours = segment_reduce(values, members, offsets, strategy)
        torch.testing.assert_close(ours, torch.tensor(right), equal_nan=True)


def test_segment_reduce_leaves_nan_out():
    values = torch.tensor([[float("nan"), 2.0, -3.0, float("nan")]])
    members, offsets = torch.arange(4), torch.tensor([0, 4])
    right = {"sum": -1, "mean": -0.5, "max": 2, "min": -3, "signed_max": -3, "first": 2, "last": -3}
    for strategy, value in right.items():
        assert segment_reduce(values, members, offsets, strategy).item() == value


def test_segment_reduce_without_groups():
    empty = torch.zeros(0, dtype=torch.int64)
    assert segment_reduce(torch.zeros(3, 4), empty, torch.tensor([0]), "sum").shape == (3, 0)


def test_bad_arguments_are_refused():
    x, rows = make([4, 3], [2, 2], 6)
    with pytest.raises(InvalidArgumentError, match="D > 0"):
        ops.perturb(x[:, :0], rows)
    with pytest.raises(InvalidArgumentError, match="signs must have shape"):
        ops.perturb(x, dataclasses.replace(rows, signs=rows.signs[:2]))
    with pytest.raises(InvalidArgumentError, match=r"\(5,\).*6"):
        ops.perturb(x, dataclasses.replace(rows, baseline=torch.zeros(5)))
    with pytest.raises(InvalidArgumentError, match="one device"):
        ops.perturb(x, dataclasses.replace(rows, alphas=rows.alphas.to("meta")))
    with pytest.raises(InvalidArgumentError, match="gradients must be"):
        ops.attribute(torch.zeros(1, 2, 3, 6), ops.perturb(x, rows), x, rows, reduction="sum", input_x_gradient=True)
    with pytest.raises(InvalidArgumentError, match="auto, triton, torch"):
        ops.perturb(x, rows, backend="cuda")
    with pytest.raises(BackendUnavailableError, match="triton"):
        ops.perturb(x, rows, backend="triton")
