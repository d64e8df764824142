"""Cases for the operators, their results in float64 by plain loops, and the checks that every backend has to pass.

The noise of the oracle is computed in float64 from the Philox words, so that no float32 approximation is taken for the truth.
"""

import itertools
import math

import torch

from fastshap import ops
from fastshap.reference import philox4x32

SHAPES = [
    # (tokens a text, rows a text, D)
    ([1], [1], 8),
    ([5, 3, 1], [4, 2, 3], 7),
    ([12, 2], [1, 5], 64),
    ([6, 0, 4], [2, 2, 2], 12),  # a text without tokens
    ([3, 4], [0, 3], 5),  # a text without rows
    ([40], [2], 1030),
]

# For the interpreter, which takes about 10 ms a block of noise.
SMALL_SHAPES = [
    ([1], [1], 8),
    ([3, 1, 2], [3, 2, 1], 7),
    ([2, 0, 3], [2, 2, 1], 12),  # a text without tokens
    ([2, 3], [0, 3], 5),  # a text without rows
    ([5, 2], [1, 4], 36),
    ([12], [2], 100),  # several blocks
    ([2, 1], [2, 1], 384),
    ([1], [2], 768),
    ([2], [1], 1030),  # blocks that end within a call
    ([1], [1], 4096),
]

CASES = [
    {},
    {"side": "left"},
    {"baseline": "(D,)"},
    {"baseline": "(L, D)", "side": "left"},
    {"baseline": "(k, D)", "held": True},
    {"baseline": "(k, L, D)", "side": "left"},
    {"baseline": "(k, L, D)", "noise_std": 0.0, "dtype": torch.bfloat16},
    {"held": True},
    {"noise_std": 0.0},
    {"pairs": False},
    {"dtype": torch.bfloat16},
    {"dtype": torch.float16, "held": True},
    {"dtype": torch.float64, "side": "left"},
]

EXACT_STRATEGIES = ("max", "min", "signed_max", "first", "last")  # these pick one of the values


def make(
    tokens,
    rows,
    dim,
    *,
    dtype=torch.float32,
    side="right",
    baseline=0.25,
    held=False,
    noise_std=0.3,
    pairs=True,
    padding=2,
    seed=0,
    device="cpu",
):
    """Embeddings (M, D) and Rows.

    Args:
        baseline: a number, "(D,)" or "(L, D)"; of a set "(k, D)" or "(k, L, D)", whose members are in x's dtype.
        padding: columns beyond the longest text.
    """
    torch.manual_seed(seed)
    texts, count = len(tokens), sum(rows)
    x = torch.randn(sum(tokens), dim).to(dtype)
    shapes = {"(D,)": (dim,), "(L, D)": (max(tokens), dim), "(k, D)": (3, dim), "(k, L, D)": (3, max(tokens) + 1, dim)}
    shape, of_a_set = shapes.get(baseline), str(baseline).startswith("(k")
    alphas = torch.rand(count)
    alphas[::3] *= 1e-4  # positions so close to x that the noise is generated again
    alphas[4::5] = 1.0
    share = 2 if pairs else 1
    on = lambda tensor: tensor.to(device)  # noqa: E731
    offsets = lambda counts: on(torch.tensor([0, *counts]).cumsum(0))  # noqa: E731
    signs = [1.0 - 2.0 * (torch.arange(n) % share) for n in rows]
    described = ops.Rows(
        token_offsets=offsets(tokens),
        row_offsets=offsets(rows),
        alphas=on(alphas),
        streams=on(torch.randint(0, 2**32, (texts, 3)) % torch.tensor([2**32, 2**32, 9])),
        draws=on(torch.cat([torch.arange(n) // share for n in rows])),
        signs=on(torch.cat(signs)),
        baseline=baseline if shape is None else on(torch.randn(shape).to(dtype if of_a_set else torch.float32)),
        noise_std=noise_std,
        held=on(torch.rand(sum(tokens)) < 0.3) if held else None,
        length=max(tokens) + padding,
        padding_side=side,
        members=on(torch.randint(0, 3, (count,))) if of_a_set else None,
    )
    return on(x), described


def alone(x, rows, text, *, length, side):
    """What :func:`make` returned, for one of its texts, with other padding."""
    lo, hi = rows.token_offsets[text].item(), rows.token_offsets[text + 1].item()
    of_rows = slice(rows.row_offsets[text].item(), rows.row_offsets[text + 1].item())
    return x[lo:hi], ops.Rows(
        token_offsets=torch.tensor([0, hi - lo], device=x.device),
        row_offsets=torch.tensor([0, of_rows.stop - of_rows.start], device=x.device),
        alphas=rows.alphas[of_rows],
        streams=rows.streams[text : text + 1],
        draws=rows.draws[of_rows],
        signs=rows.signs[of_rows],
        baseline=rows.baseline,
        noise_std=rows.noise_std,
        held=None if rows.held is None else rows.held[lo:hi],
        length=length,
        padding_side=side,
        members=None if rows.members is None else rows.members[of_rows],
    )


# ---------------------------------------------------------------- float64 truth


def noise(stream, draw, tokens, dim):
    """Standard normals (tokens, D), float64, of one text's stream (three numbers) and one draw."""
    k0, k1, around = stream
    quad, position = torch.arange(-(-dim // 4))[None], torch.arange(tokens)[:, None]
    counter = (quad, position, torch.tensor(draw), torch.tensor(around << 8))
    w0, w1, w2, w3 = (word.double() for word in philox4x32(counter, (torch.tensor(k0), torch.tensor(k1))))
    normals = []
    for radius_word, angle_word in ((w0, w1), (w2, w3)):
        radius = (-2 * ((radius_word + 0.5) / 2**32).log()).sqrt()
        angle = angle_word * (2 * math.pi / 2**32)
        normals += [radius * angle.cos(), radius * angle.sin()]
    return torch.stack(normals, -1).flatten(1)[:, :dim]


def expected_points(x, rows):
    """For each row: its text's columns, x, the noisy baseline and z, float64, by plain loops."""
    x, alphas, signs = x.cpu().double(), rows.alphas.tolist(), rows.signs.tolist()
    token_offsets, row_offsets = rows.token_offsets.tolist(), rows.row_offsets.tolist()
    points = []
    for text, stream in enumerate(rows.streams.tolist()):
        lo, hi = token_offsets[text], token_offsets[text + 1]
        start = rows.length - (hi - lo) if rows.padding_side == "left" else 0
        own = x[lo:hi]
        for row in range(row_offsets[text], row_offsets[text + 1]):
            base = rows.baseline if rows.members is None else rows.baseline[rows.members[row].item()]
            if isinstance(base, torch.Tensor):
                base = base.cpu().double() if base.ndim == 1 else base[: hi - lo].cpu().double()
            draw = rows.draws[row].item()
            noisy = base + rows.noise_std * signs[row] * noise(stream, draw, hi - lo, x.shape[1])
            if rows.held is not None:
                noisy = torch.where(rows.held[lo:hi, None].cpu(), own, noisy)
            alpha = alphas[row]
            points.append((slice(start, start + hi - lo), own, noisy, (1 - alpha) * own + alpha * noisy))
    return points


def expected_z(x, rows):
    """z (R, L, D) and which columns hold tokens (R, L)."""
    z = torch.zeros(rows.alphas.shape[0], rows.length, x.shape[1], dtype=torch.float64)
    shown = torch.zeros(z.shape[:2], dtype=torch.bool)
    for row, (columns, _, _, point) in enumerate(expected_points(x, rows)):
        z[row, columns] = point
        shown[row, columns] = True
    return z, shown


def expected_scores(gradients, z, x, rows, reduction, times_input):
    """Scores (T, R, L), and the sum of |gradient| (1 + |factor|) to measure errors by (over D for abs_mean)."""
    gradients, z = gradients.cpu().double(), z.cpu().double()
    scores = torch.zeros(gradients.shape[:3], dtype=torch.float64)
    scale = torch.zeros_like(scores)
    for row, (columns, own, noisy, _) in enumerate(expected_points(x, rows)):
        factor = torch.ones_like(own)
        if times_input:
            factor = own - noisy if reduction == "sum" else z[row, columns]
        for target in range(gradients.shape[0]):
            product = gradients[target, row, columns] * factor
            size = gradients[target, row, columns].abs() * (1 + factor.abs())
            if reduction == "sum":
                scores[target, row, columns], scale[target, row, columns] = product.sum(-1), size.sum(-1)
            else:
                scores[target, row, columns], scale[target, row, columns] = product.abs().mean(-1), size.mean(-1)
    return scores, scale


def expected_segments(values, members, offsets, strategy):
    """Groups (T, G), and the sum of their members' absolute values."""
    members, offsets = members.tolist(), offsets.tolist()
    out, scale = [], []
    for line in values.tolist():
        for lo, hi in itertools.pairwise(offsets):
            group = [line[member] for member in members[lo:hi] if not math.isnan(line[member])]
            out.append(_reduced(group, strategy) if group else math.nan)
            scale.append(sum(map(abs, group)))
    shape = (values.shape[0], len(offsets) - 1)
    return (torch.tensor(column, dtype=torch.float64).reshape(shape) for column in (out, scale))


def _reduced(group, strategy):
    return {
        "sum": lambda: math.fsum(group),
        "mean": lambda: math.fsum(group) / len(group),
        "max": lambda: max(group),
        "min": lambda: min(group),
        "signed_max": lambda: max(group, key=abs),  # the first of equals
        "first": lambda: group[0],
        "last": lambda: group[-1],
    }[strategy]()


def expected_moments(values, pairs):
    """Mean and standard error (T, M) over samples (T, n, M), from the formulas of fastshap.reference.moments."""
    values = values.cpu().double()
    targets, samples, columns = values.shape
    means = torch.empty(targets, columns, dtype=torch.float64)
    errors = torch.full_like(means, math.nan)
    for target in range(targets):
        for column in range(columns):
            series = values[target, :, column].tolist()
            mean = math.fsum(series) / samples
            means[target, column] = mean
            if samples < 4:
                continue
            variance = math.fsum((value - mean) ** 2 for value in series) / (samples - 1)
            total = samples * variance  # the variance of the sum of the samples
            if pairs:
                both = [(a + b) / 2 for a, b in zip(series[::2], series[1::2], strict=False)]
                squares = [(b - a) ** 2 for a, b in itertools.pairwise(both)]
                total = 4 * len(both) * math.fsum(squares) / len(squares) / 2 + (variance if samples % 2 else 0)
            errors[target, column] = math.sqrt(total) / samples
    return means, errors


# ---------------------------------------------------------------- checks of the Triton backend


def excess(ours, eager, right, tolerance):
    """By how much an error goes beyond that of eager torch plus the tolerance, at worst; NaN anywhere gives NaN."""
    ours, eager = ours.cpu().double(), eager.cpu().double()
    return ((ours - right).abs() - (eager - right).abs() - tolerance).max().item() if right.numel() else 0.0


def check_perturb(x, rows):
    """Triton's z against float64 and eager torch.

    2e-6 of 1 + |z|: normals are good to about 1e-6, and five float32 roundings come on top. In half precision the same holds
    and no rounding step is added: where two nearly equal numbers round apart, both are half a step away. Triton's interpreter
    cuts bfloat16 off instead of rounding it, which GPUs do not: there, and only there, one step (2^-7) comes on top.
    """
    cut = 2**-7 if x.dtype == torch.bfloat16 and x.device.type == "cpu" else 0
    ours, eager = (ops.perturb(x, rows, backend=backend) for backend in ("triton", "torch"))
    right, shown = expected_z(x, rows)
    assert ours.shape == right.shape
    assert ours.dtype == x.dtype
    assert excess(ours, eager, right, 2e-6 * (1 + right.abs()) + cut * right.abs()) <= 0
    assert (ours.cpu()[~shown] == 0).all()
    if rows.held is not None:
        assert torch.equal(ours.cpu()[shown][_held(rows)], _repeated(x, rows)[_held(rows)])
    return ours


def _token_of_row(rows):
    """The token of x of every shown column of every row, in order."""
    token_offsets, row_offsets = rows.token_offsets.tolist(), rows.row_offsets.tolist()
    tokens = [
        torch.arange(token_offsets[text], token_offsets[text + 1]).repeat(row_offsets[text + 1] - row_offsets[text])
        for text in range(len(token_offsets) - 1)
    ]
    return torch.cat(tokens)


def _repeated(x, rows):
    return x.cpu()[_token_of_row(rows)]


def _held(rows):
    return rows.held.cpu()[_token_of_row(rows)]


def check_attribute(gradients, z, x, rows, reduction, times_input):
    """Triton's scores against float64 and eager torch.

    5e-7 of the sum of |gradient| (1 + |factor|): the factor holds a normal, good to about 1e-6 times noise_std = 0.3, and the
    sum over D takes at most twelve float32 roundings in a tree.
    """
    how = {"reduction": reduction, "input_x_gradient": times_input}
    ours, eager = (ops.attribute(gradients, z, x, rows, **how, backend=backend) for backend in ("triton", "torch"))
    right, scale = expected_scores(gradients, z, x, rows, reduction, times_input)
    assert ours.shape == gradients.shape[:3]
    assert ours.dtype == torch.float32
    assert excess(ours, eager, right, 5e-7 * scale) <= 0
    _, shown = expected_z(x, rows)
    assert (ours.cpu()[:, ~shown] == 0).all()
    return ours


def check_segment_reduce(values, members, offsets, strategy):
    """Triton's groups against float64 and eager torch. Sums of dozens of numbers in two orders: 1e-6 of their absolute sum."""
    ours, eager = (ops.segment_reduce(values, members, offsets, strategy, backend=name) for name in ("triton", "torch"))
    right, scale = expected_segments(values, members, offsets, strategy)
    assert ours.shape == right.shape
    assert ours.dtype == values.dtype
    if strategy in EXACT_STRATEGIES:
        torch.testing.assert_close(ours.cpu().double(), right, rtol=0, atol=0, equal_nan=True)
    else:
        assert torch.equal(ours.cpu().isnan(), right.isnan())
        there = ~right.isnan()
        assert excess(ours.cpu()[there], eager.cpu()[there], right[there], 1e-6 * scale[there]) <= 0
    return ours


def check_moments(values, pairs):
    """Triton's mean and standard error against float64 and eager torch.

    Two float32 roundings a sample, each of the size of the values: 2^-22 of the largest for the mean; for the error, where the
    mean is of the size of the values' spread, 1e-5 of itself.
    """
    ours, eager = (ops.moments(values, pairs=pairs, backend=backend) for backend in ("triton", "torch"))
    right = expected_moments(values, pairs)
    largest = values.cpu().double().abs().amax(1)
    assert excess(ours[0], eager[0], right[0], 2**-22 * largest) <= 0
    if values.shape[1] < 4:
        assert ours[1].isnan().all()
    else:
        assert excess(ours[1], eager[1], right[1], 1e-5 * right[1] + 1e-7 * largest) <= 0
    return ours
