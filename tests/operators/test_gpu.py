"""The kernels on a device: the operator matrix, whole explanations, memory, streams, repeatability. Run with ``-m gpu``.

Without a device these tests fail. With TRITON_INTERPRET=1 those that ask for ``device`` run on CPU tensors, kernels in Triton's
interpreter: a rehearsal, named "interpreter" in the test's id; those that ask for ``gpu`` need a real one.
"""

import copy
import dataclasses
import importlib
import os
import re
import warnings
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import fastshap
from fastshap import ops, reference
from fastshap.ops.transfer import to_host
from helpers import operators
from helpers.operators import (
    EXACT_STRATEGIES,
    SHAPES,
    alone,
    check_moments,
    excess,
    expected_scores,
    expected_segments,
    expected_z,
    make,
)
from helpers.subprocesses import pytest_alone

triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402

from fastshap.kernels.device import has_special_functions  # noqa: E402
from fastshap.kernels.philox import box_muller, philox4x32  # noqa: E402

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
NEEDED = "these tests need a CUDA or ROCm device, and torch.cuda.is_available() is False"

pytestmark = [
    pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION"),
    # Inductor's own: of what it could do faster, and of what it uses of torch.jit.
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning"),
    pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning"),
    # The profiler's own, of cycles that nobody asked for.
    pytest.mark.filterwarnings("ignore:Warning. Profiler clears events at the end of each cycle:UserWarning"),
    # numpy's, in the interpreter: 0 / 0 where the result is NaN or is not used.
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:divide by zero encountered:RuntimeWarning"),
]


@pytest.fixture(scope="session", params=["interpreter" if INTERPRETING else "device"])
def device():
    if INTERPRETING:
        return torch.device("cpu")
    assert torch.cuda.is_available(), NEEDED
    return torch.device("cuda", 0)


@pytest.fixture(scope="session")
def gpu():
    assert torch.cuda.is_available(), NEEDED
    assert not INTERPRETING, "this test needs compiled kernels; unset TRITON_INTERPRET"
    return torch.device("cuda", 0)


def moved(rows, device):
    tensors = {f.name: getattr(rows, f.name) for f in dataclasses.fields(rows)}
    return dataclasses.replace(rows, **{k: v.to(device) for k, v in tensors.items() if isinstance(v, torch.Tensor)})


def poisoned(function, *arguments, **options):
    """Calls with torch.empty and its kin full of NaN."""
    torch.use_deterministic_algorithms(True)
    try:
        return function(*arguments, **options)
    finally:
        torch.use_deterministic_algorithms(False)


# ---------------------------------------------------------------- the operator matrix

MATRIX_SHAPES = [
    *SHAPES,
    ([1, 0], [3, 1], 1),
    ([7], [3], 33),
    ([3, 9], [2, 3], 100),
    ([2, 5], [4, 1], 384),
    ([6, 1], [2, 3], 768),
    ([3], [3], 1536),
    ([1, 2], [2, 2], 4096),
    ([2], [2], 5120),
]
OPTIONS = [
    {},
    {"side": "left"},
    {"baseline": "(D,)"},
    {"baseline": "(L, D)", "side": "left"},
    {"held": True},
    {"held": True, "side": "left", "baseline": "(D,)"},
    {"held": True, "baseline": "(k, D)"},
    {"side": "left", "baseline": "(k, L, D)"},
    {"noise_std": 0.0},
    {"pairs": False, "padding": 0},
]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
REDUCTIONS = [(reduction, times) for reduction in ("sum", "abs_mean") for times in (True, False)]
# Every shape and every option in every dtype, but not every pair of the two: for attribute each is a kernel to compile.
SOME = [
    *((shape, OPTIONS[i % len(OPTIONS)]) for i, shape in enumerate(MATRIX_SHAPES)),
    *((([12, 2], [1, 5], 64), options) for options in OPTIONS),
]


def worst_normals(exact):
    """How far normals (tokens, an even D) may lie from the exact ones by the bounds that kernels/philox.py states.

    1e-6 absolute plus 1e-6 relative of the squared radius, which is much of a small radius; 2e-6 of sine and cosine.
    """
    pairs = exact.unflatten(1, (-1, 2))
    square = pairs.square().sum(-1, keepdim=True)
    radius, off = square.sqrt(), 1e-6 + 1e-6 * square
    error = torch.maximum(radius - (square - off).clamp_min(0).sqrt(), (square + off).sqrt() - radius)
    return (error * pairs.abs() / radius + 2e-6 * radius).flatten(1)


@pytest.fixture
def noise_error(monkeypatch):
    """expected_z and expected_scores of that error alone, in place of the noise."""
    noise = operators.noise

    def error(stream, draw, tokens, dim):
        return worst_normals(noise(stream, draw, tokens, dim + dim % 2))[:, :dim]

    def of(function, x, rows, *arguments):
        with monkeypatch.context() as patch:
            patch.setattr(operators, "noise", error)
            baseline = 0.0 if not isinstance(rows.baseline, torch.Tensor) else torch.zeros_like(rows.baseline)
            bare = dataclasses.replace(rows, baseline=baseline, signs=torch.ones_like(rows.signs))
            return function(x, bare, *arguments)

    return of


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shape", MATRIX_SHAPES, ids=str)
def test_perturb(device, noise_error, shape, options, dtype):
    """No further from float64 than eager torch, plus what normals may be off and five float32 roundings."""
    x, rows = make(*shape, dtype=dtype, device=device, **options)
    z = poisoned(ops.perturb, x, rows, backend="triton")
    eager = ops.perturb(x, rows, backend="torch")
    right, shown = expected_z(x, rows)
    assert z.device == device
    assert z.dtype == dtype
    assert z.shape == right.shape
    off, _ = noise_error(expected_z, torch.zeros_like(x), rows)
    tolerance = 5e-7 * (1 + right.abs()) + off
    if INTERPRETING and dtype == torch.bfloat16:  # the interpreter cuts bfloat16 off, which devices round
        tolerance = tolerance + 2**-7 * right.abs()
    assert excess(z, eager, right, tolerance) <= 0
    assert (z.cpu()[~shown] == 0).all()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "options"), SOME, ids=str)
def test_attribute(device, noise_error, shape, options, dtype):
    """No further from float64 than eager torch, plus what normals may be off and a dozen float32 roundings."""
    x, rows = make(*shape, dtype=dtype, device=device, **options)
    z = ops.perturb(x, rows, backend="torch")
    gradients = torch.randn(2, *z.shape).to(device, dtype)
    _, shown = expected_z(x, rows)
    for reduction, times_input in REDUCTIONS:
        how = {"reduction": reduction, "input_x_gradient": times_input}
        scores = poisoned(ops.attribute, gradients, z, x, rows, **how, backend="triton")
        eager = ops.attribute(gradients, z, x, rows, **how, backend="torch")
        right, scale = expected_scores(gradients, z, x, rows, reduction, times_input)
        assert scores.device == device
        assert scores.dtype == torch.float32
        assert scores.shape == right.shape
        tolerance = 5e-7 * scale
        if reduction == "sum" and times_input:
            tolerance = tolerance + noise_error(
                lambda x, rows: expected_scores(gradients.abs(), z, x, rows, "sum", True)[0].abs(),
                torch.zeros_like(x),
                rows,
            )
        assert excess(scores, eager, right, tolerance) <= 0
        assert (scores.cpu()[:, ~shown] == 0).all()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_views_with_strides(device, dtype):
    shape = ([2, 1], [1, 2], 12) if INTERPRETING else ([4, 3], [2, 3], 40)
    x, rows = make(*shape, dtype=dtype, baseline="(L, D)", device=device)
    strided = torch.stack([x, -x], -1).flatten(1)[:, ::2]
    z = ops.perturb(x, rows, backend="triton")
    assert torch.equal(ops.perturb(strided, rows, backend="triton"), z)
    turned = dataclasses.replace(rows, baseline=rows.baseline.T.contiguous().T)
    assert torch.equal(ops.perturb(x, turned, backend="triton"), z)
    gradients = torch.randn(2, *z.shape, dtype=dtype, device=device)
    views = {
        "targets apart": gradients.transpose(0, 1).contiguous().transpose(0, 1),
        "tokens apart": gradients.transpose(1, 2).contiguous().transpose(1, 2),
        "elements apart": gradients.transpose(2, 3).contiguous().transpose(2, 3),
        "part of a wider one": torch.cat([gradients, gradients], -1)[..., : shape[2]],
        "one for all rows": gradients[:, :1].expand_as(gradients),
    }
    for name, view in views.items():
        for reduction, times_input in REDUCTIONS:
            how = {"reduction": reduction, "input_x_gradient": times_input, "backend": "triton"}
            right = ops.attribute(view.contiguous(), z, x, rows, **how)
            assert torch.equal(ops.attribute(view, z, strided, rows, **how), right), name


def ragged_groups(columns, sizes):
    members = torch.randint(0, columns, (sum(sizes),))
    return members, torch.tensor([0, *sizes]).cumsum(0)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("strategy", reference.segment.STRATEGIES)
def test_segment_reduce(device, strategy, dtype):
    torch.manual_seed(3)
    values = torch.randn(5, 150).to(dtype)
    values[torch.rand(5, 150) < 0.2] = torch.nan
    values[:, :4] = torch.nan
    values[0, 10:20] = torch.tensor([2.0, -2.0]).repeat(5)  # equal sizes: the first counts
    members, offsets = ragged_groups(150, [3, 0, 1, 32, 33, 150, 0, 7])
    members[:3] = torch.arange(3)  # nothing but NaN
    members, offsets, values = members.to(device), offsets.to(device), values.to(device)
    right, scale = expected_segments(values, members, offsets, strategy)
    assert right[:, [0, 1, 6]].isnan().all()
    filled = ~right.isnan()
    eager = reference.segment_reduce(values, members, offsets, strategy).cpu()
    for view in (values, values.T.contiguous().T, torch.stack([values, -values], -1)[..., 0]):
        out = poisoned(ops.segment_reduce, view, members, offsets, strategy, backend="triton").cpu()
        assert out.dtype == dtype
        assert torch.equal(out.isnan(), right.isnan())
        if strategy in EXACT_STRATEGIES:
            assert torch.equal(out[filled].double(), right[filled])
        else:
            tolerance = torch.finfo(dtype).eps * scale
            assert excess(out[filled], eager[filled], right[filled], tolerance[filled]) <= 0
    nothing = torch.zeros(0, dtype=torch.int64, device=device)
    empty = ops.segment_reduce(values, nothing, offsets[:1], strategy, backend="triton")
    assert empty.shape == (5, 0)


@pytest.mark.gpu
@pytest.mark.parametrize("pairs", [True, False])
@pytest.mark.parametrize("samples", [1, 2, 3, 4, 5, 10, 33])
def test_moments(device, samples, pairs):
    torch.manual_seed(4)
    values = torch.randn(3, samples, 200, device=device) + 2
    for view in (values, values.transpose(1, 2).contiguous().transpose(1, 2)):
        ours = check_moments(view, pairs)
        again = poisoned(ops.moments, view, pairs=pairs, backend="triton")
        assert all(torch.equal(a.nan_to_num(7), b.nan_to_num(7)) for a, b in zip(ours, again, strict=True))
    mean, error = ops.moments(values[..., :0], pairs=pairs, backend="triton")
    assert mean.shape == error.shape == (3, 0)


# ---------------------------------------------------------------- random numbers


@triton.jit
def _words_kernel(p_in, p_out, N: tl.constexpr):
    i = tl.program_id(0) * N + tl.arange(0, N)
    count = tl.num_programs(0) * N
    w0, w1, w2, w3 = philox4x32(
        tl.load(p_in + i).to(tl.uint32),
        tl.load(p_in + count + i).to(tl.uint32),
        tl.load(p_in + 2 * count + i).to(tl.uint32),
        tl.load(p_in + 3 * count + i).to(tl.uint32),
        tl.load(p_in + 4 * count + i).to(tl.uint32),
        tl.load(p_in + 5 * count + i).to(tl.uint32),
    )
    tl.store(p_out + i, w0.to(tl.int64))
    tl.store(p_out + count + i, w1.to(tl.int64))
    tl.store(p_out + 2 * count + i, w2.to(tl.int64))
    tl.store(p_out + 3 * count + i, w3.to(tl.int64))


@triton.jit
def _box_muller_kernel(p_in, p_out, PTX: tl.constexpr, N: tl.constexpr):
    i = tl.program_id(0) * N + tl.arange(0, N)
    count = tl.num_programs(0) * N
    radius = tl.load(p_in + i).to(tl.uint32)
    angle = tl.load(p_in + count + i).to(tl.uint32)
    cosine, sine = box_muller(radius, angle, PTX)
    tl.store(p_out + i, cosine)
    tl.store(p_out + count + i, sine)


@pytest.fixture(params=["portable", "own"])
def instructions(request, device, monkeypatch):
    """Normals in portable Triton, and with whatever the device has; True where that is inline PTX."""
    if request.param == "portable":
        for module in ("perturb", "attribute"):
            monkeypatch.setattr(f"fastshap.kernels.{module}.has_special_functions", lambda: False)
        return False
    assert has_special_functions() == (torch.version.cuda is not None and not INTERPRETING)
    return has_special_functions()


@pytest.mark.gpu
def test_words_equal_torch_bitwise(device):
    torch.manual_seed(1)
    words = torch.randint(0, 2**32, (6, 4096))
    words[:, 0], words[:, 1] = 0, 2**32 - 1
    out = torch.full((4, 4096), -1, device=device)
    _words_kernel[(16,)](words.to(device), out, N=256)
    assert torch.equal(out.cpu(), torch.stack(reference.philox4x32(tuple(words[:4]), tuple(words[4:]))))


@pytest.mark.gpu
def test_box_muller_against_float64(device, instructions):
    torch.manual_seed(2)
    few = torch.arange(1024)
    ends = torch.cat([few, 2**32 - 1 - few])
    radius = torch.cat([ends, torch.randint(0, 2**32, (4096,))])
    corners = (torch.arange(8)[:, None] * 2**29 + torch.arange(-128, 128)).flatten() % 2**32
    angle = torch.cat([corners, torch.randint(0, 2**32, (4096,))])
    fixed = torch.full_like(radius, 0x20000000)

    def run(radius_words, angle_words):
        words = torch.stack([radius_words, angle_words]).to(device)
        out = torch.full(words.shape, torch.nan, device=device)
        _box_muller_kernel[(words.shape[1] // 256,)](words, out, PTX=instructions, N=256)
        return out.cpu().double()

    square = -2 * ((radius.double() + 0.5) / 2**32).log()
    first, second = run(radius, torch.zeros_like(radius))  # at angle 0 the cosine is 1 to 1e-7
    assert ((first**2 - square).abs() <= 1e-6 + 1.2e-6 * square).all()
    assert (second.abs() <= 1e-7 * first.abs()).all()
    exact = torch.pi * angle.double() / 2**31
    cosine, sine = run(fixed, angle) / run(fixed, torch.zeros_like(angle))[0]
    assert (cosine - exact.cos()).abs().max() <= 2e-6
    assert (sine - exact.sin()).abs().max() <= 2e-6


@pytest.mark.gpu
@pytest.mark.parametrize("dim", [1, 8, 37, 768])
def test_normals_equal_torchs(device, instructions, noise_error, dim):
    """x = 0 and alpha = 1 leave the noise alone in z; gradients of 1 leave its sum in the scores."""
    x, rows = make([3, 5], [4, 3], dim, baseline=0.0, noise_std=1.0, padding=0, device=device)
    x, rows = torch.zeros_like(x), dataclasses.replace(rows, alphas=torch.ones_like(rows.alphas))
    z, torchs = (ops.perturb(x, rows, backend=backend) for backend in ("triton", "torch"))
    (right, _), (off, _) = expected_z(x, rows), noise_error(expected_z, x, rows)
    assert excess(z, torchs, right, off + 1e-12) <= 0
    how = {"reduction": "sum", "input_x_gradient": True, "backend": "triton"}
    scores = ops.attribute(torch.ones_like(z)[None], z, x, rows, **how)
    assert ((scores.cpu()[0] + right.sum(-1)).abs() <= off.sum(-1) + 1e-6 * right.abs().sum(-1)).all()


# ---------------------------------------------------------------- repeatability and company


def both(x, rows, gradients=None):
    """z and the scores of all four kinds."""
    z = ops.perturb(x, rows, backend="triton")
    if gradients is None:
        gradients = torch.stack([z.sin(), z.cos()])
    kinds = [{"reduction": reduction, "input_x_gradient": times} for reduction, times in REDUCTIONS]
    return [z, *(ops.attribute(gradients, z, x, rows, **how, backend="triton") for how in kinds)]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_operators_repeat_bitwise(device, dtype):
    shape = ([3, 1], [3, 2], 40) if INTERPRETING else ([9, 300, 1], [6, 5, 4], 200)
    x, rows = make(*shape, dtype=dtype, held=True, device=device)
    first = both(x, rows)
    for _ in range(1 if INTERPRETING else 20):
        assert all(torch.equal(a, b) for a, b in zip(both(x, rows), first, strict=True))
    values = torch.randn(3, 10, 500, device=device)
    members, offsets = (tensor.to(device) for tensor in ragged_groups(500, [40, 0, 7, 100]))
    again = [
        (*ops.moments(values, pairs=True, backend="triton"), ops.segment_reduce(values[:, 0], members, offsets, "sum"))
        for _ in range(2)
    ]
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(*again, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_who_shares_the_rows_does_not_show(device, dtype, monkeypatch):
    """Bitwise, whether one program has all rows of a token or several do."""
    from fastshap.kernels import attribute, perturb

    shape = ([3, 1], [5, 2], 40) if INTERPRETING else ([30, 9], [101, 8], 768)
    x, rows = make(*shape, dtype=dtype, held=True, device=device)
    found = []
    for programs in (1, 2, 3, 64):
        for module in (attribute, perturb):
            monkeypatch.setattr(module, "splits", lambda *_, programs=programs: programs)
        found.append(both(x, rows))
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_company_does_not_show(device, dtype, side):
    """A text's rows are bitwise the same alone and among others."""
    tokens, counts = ([2, 3, 1], [3, 2, 1]) if INTERPRETING else ([9, 170, 3], [6, 5, 4])
    x, rows = make(tokens, counts, 72, dtype=dtype, side=side, device=device)
    together = both(x, rows)
    for n in range(3):
        here = slice(sum(counts[:n]), sum(counts[: n + 1]))
        start = rows.length - tokens[n] if side == "left" else 0
        z, *scores = both(*alone(x, rows, n, length=tokens[n], side=side))
        columns = slice(start, start + tokens[n])
        assert torch.equal(z, together[0][here, columns])
        assert all(torch.equal(a, b[:, here, columns]) for a, b in zip(scores, together[1:], strict=True))


# ---------------------------------------------------------------- whole explanations

PROMPTS = ["Nobody answered.", "The film was long. I liked it, though."][: 1 if INTERPRETING else 2]
ENDINGS = ["The ending.", "Of course, gladly!"][: len(PROMPTS)]
STRATEGIES = list(fastshap.GranularityAggregationStrategy)


@pytest.fixture(params=["classification", "generation"])
def task(request):
    """A model with its tokenizer and the arguments of a call; the model is a copy, as devices and dtypes are changed."""
    if request.param == "classification":
        model, tokenizer = request.getfixturevalue("default_pair")
        texts = ["not good at all", "ok"] if INTERPRETING else request.getfixturevalue("texts")
        return copy.deepcopy(model), tokenizer, (texts, "all")
    model, tokenizer = request.getfixturevalue("llama_pair")
    return copy.deepcopy(model), tokenizer, (PROMPTS, ENDINGS)


def on_cpu_and(device, task, **options):
    """The same explanations by torch on the CPU and by the kernels on the device."""
    model, tokenizer, arguments = task
    cpu = fastshap.GradientShap(model.cpu(), tokenizer, backend="torch", **options)(*arguments)
    there = fastshap.GradientShap(model, tokenizer, device=device, backend="triton", **options)(*arguments)
    return cpu, there


def assert_same_explanations(right, outputs, bound=1e-4):
    assert len(right) == len(outputs)
    for a, b in zip(right, outputs, strict=True):
        assert a.elements == b.elements
        assert torch.equal(a.targets, b.targets)
        assert a.n_perturbations == b.n_perturbations
        assert a.rounds == b.rounds
        assert b.attributions.device.type == "cpu"
        assert torch.equal(a.attributions.isnan(), b.attributions.isnan())
        for name, factor in (("attributions", 1), ("unassigned", 1), ("standard_error", 10)):
            ours, theirs = getattr(b, name).nan_to_num(), getattr(a, name).nan_to_num()
            error = (ours - theirs).abs().max() / a.attributions.nan_to_num().abs().max()
            assert error <= factor * bound, f"{name}: {error:.1e} of the largest score"


@pytest.mark.gpu
@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: s.name)
def test_explanations_equal_those_on_the_cpu(device, task, strategy):
    assert_same_explanations(*on_cpu_and(device, task, granularity_aggregation_strategy=strategy))


MANNERS = [
    {"granularity": "all_tokens", "batch_size": 7},
    {"granularity": "sentence", "batch_size": "auto", "sampling": "iid"},
    {"reduction": "abs_mean"},
    {"reduction": "abs_mean", "input_x_gradient": False},
    {"perturb_special_tokens": False, "baseline": 0.05, "n_perturbations": 9},
    {"return_convergence_delta": True, "inference_mode": "log_softmax", "noise_std": 0.0},
    {"baseline": fastshap.BaselineSet(["An ordinary film.", "ok"]), "return_convergence_delta": True},
    {"baseline": "mean"},
]


@pytest.mark.gpu
@pytest.mark.parametrize("manner", MANNERS, ids=str)
def test_explanations_of_other_kinds(device, task, manner):
    cpu, there = on_cpu_and(device, task, **manner)
    assert_same_explanations(cpu, there)
    for a, b in zip(cpu, there, strict=True):
        if a.convergence_delta is not None:
            assert (a.convergence_delta - b.convergence_delta).abs().max() <= 1e-4 * a.attributions.nansum(
                1
            ).abs().max()


@pytest.mark.gpu
def test_explanations_with_rtol(device, task):
    cpu, there = on_cpu_and(device, task, rtol=0.25, max_perturbations=80, granularity_aggregation_strategy="sum")
    assert max(output.rounds for output in cpu) > 1
    assert_same_explanations(cpu, there)


@pytest.mark.gpu
def test_explanations_repeat_bitwise_and_know_no_company(device, task):
    model, tokenizer, (texts, targets) = task
    model.set_attn_implementation("eager")  # the fused backward passes of attention may add in any order
    explainer = fastshap.GradientShap(model, tokenizer, batch_size=16, device=device, backend="triton")
    first, again = explainer(texts, targets), explainer(texts, targets)
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a.attributions.nan_to_num(), b.attributions.nan_to_num())
        assert torch.equal(a.standard_error.nan_to_num(), b.standard_error.nan_to_num())
    alone = explainer(texts[:1], targets if isinstance(targets, str) else targets[:1])
    assert_same_explanations(first[:1], alone)  # matrix products of another shape round otherwise


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_models_in_half_precision(device, task, dtype):
    """No further from float32 with the same weights than torch's operators come in the same precision."""
    model, tokenizer, arguments = task
    half = model.to(dtype)
    truth = fastshap.GradientShap(copy.deepcopy(half).cpu().float(), tokenizer)(*arguments)
    errors = {}
    for backend in ("torch", "triton"):
        outputs = fastshap.GradientShap(half, tokenizer, device=device, backend=backend)(*arguments)
        pairs = [
            (a.attributions.nan_to_num(), b.attributions.nan_to_num()) for a, b in zip(truth, outputs, strict=True)
        ]
        errors[backend] = max(((a - b).abs().max() / a.abs().max()).item() for a, b in pairs)
    assert errors["triton"] <= 1.5 * errors["torch"] + 0.01, errors
    assert errors["triton"] < 0.5, errors


# ---------------------------------------------------------------- PyTorch's own machinery


def every_operator(device, dtype=torch.float32):
    """Calls of all operators, by name."""
    x, rows = make([9, 4], [6, 5], 96, dtype=dtype, held=True, device=device)
    z = ops.perturb(x, rows, backend="triton")
    gradients = torch.randn(2, *z.shape, device=device).to(dtype)
    values = torch.randn(3, 10, 500, device=device)
    members, offsets = (tensor.to(device) for tensor in ragged_groups(500, [40, 3, 7, 100]))
    how = {"reduction": "sum", "input_x_gradient": True}
    return {
        "perturb": lambda: ops.perturb(x, rows, backend="triton"),
        "attribute": lambda: ops.attribute(gradients, z, x, rows, **how, backend="triton"),
        "segment_reduce": lambda: ops.segment_reduce(values[:, 0], members, offsets, "sum", backend="triton"),
        "moments": lambda: ops.moments(values, pairs=True, backend="triton"),
    }


@pytest.mark.gpu
def test_torch_compile(device):
    x, rows = make([5, 3], [2, 4], 64, device=device)
    members, offsets = (tensor.to(device) for tensor in ragged_groups(20, [4, 3]))

    def whole(x, values):
        z = ops.perturb(2 * x, rows, backend="triton")
        scores = ops.attribute(z.sin()[None], z, 2 * x, rows, reduction="sum", input_x_gradient=True, backend="triton")
        mean, error = ops.moments(values + 1, pairs=True, backend="triton")
        return 3 * scores, error, ops.segment_reduce(2 * mean, members, offsets, "signed_max", backend="triton")

    values = torch.randn(2, 6, 20, device=device)
    # Inductor takes Triton for its own code generation, which an interpreter in its place breaks.
    compiled = torch.compile(whole, fullgraph=True, backend="aot_eager" if INTERPRETING else "inductor")
    for a, b in zip(compiled(x, values), whole(x, values), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["perturb", "attribute", "segment_reduce", "moments"])
def test_shows_in_profiles_under_its_name(device, name):
    call = every_operator(device)[name]
    call()
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    seen = {event.key for event in profile.key_averages()}
    assert f"fastshap::{name}" in seen
    if device.type == "cuda":
        kernel = {"segment_reduce": "segment_kernel"}.get(name, f"{name}_kernel")
        assert any(kernel in event for event in seen), seen


@pytest.mark.gpu
def test_auto_takes_the_kernels(gpu):
    x, rows = make([5, 3], [2, 4], 64, device=gpu)
    z = ops.perturb(x, rows)
    assert torch.equal(z, ops.perturb(x, rows, backend="triton"))
    assert not torch.equal(z, ops.perturb(x, rows, backend="torch"))  # the normals differ in their last bits
    assert ops.perturb(x.double(), rows).dtype == torch.float64  # which no kernel takes


# ---------------------------------------------------------------- the device itself

NAMES = ["perturb", "attribute", "segment_reduce", "moments"]


@contextmanager
def waits_are(mode):
    """What PyTorch does where the host waits for the device: "error", "warn" or "default" (nothing)."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the mode is a prototype
        torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.cuda.set_sync_debug_mode(before)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_no_host_synchronisation(gpu, name, dtype):
    call = every_operator(gpu, dtype)[name]
    call()  # compiles
    with waits_are("error"):
        call()
        with pytest.raises(RuntimeError, match="synchroniz"):
            torch.ones(1, device=gpu).item()  # the mode is on


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_allocates_outputs_only(gpu, name):
    call = every_operator(gpu, torch.bfloat16)[name]
    call()
    torch.cuda.synchronize(gpu)
    before = torch.cuda.memory_allocated(gpu)
    torch.cuda.reset_peak_memory_stats(gpu)
    out = call()
    torch.cuda.synchronize(gpu)
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in (out if isinstance(out, tuple) else (out,))
    }
    own = sum(-(-size // 512) * 512 for size in storages.values())  # the allocator's blocks are multiples of 512 bytes
    assert torch.cuda.memory_allocated(gpu) - before == own
    assert torch.cuda.max_memory_allocated(gpu) - before == own


@pytest.mark.gpu
def test_runs_on_the_current_stream(gpu):
    x, rows = make([300] * 8, [4] * 8, 768)
    real, rows = x.to(gpu), moved(rows, gpu)
    right = both(real, rows)
    late = torch.zeros_like(real)
    torch.cuda.synchronize(gpu)
    stream = torch.cuda.Stream(gpu)
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)  # clock cycles: a launch on another stream would read zeros meanwhile
        late.copy_(real)
        ours = both(late, rows)
    stream.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(ours, right, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{}, {"inference_mode": "softmax"}, {"reduction": "abs_mean"}], ids=str)
@pytest.mark.parametrize("lengths", ["of one length", "of several lengths"])
def test_nothing_of_ours_waits_between_model_calls(gpu, task, lengths, options, monkeypatch, record_property):
    """All of a call of the explainer but the model itself, and the one fetching of each round's results, which has to wait.

    transformers looks at values of its masks in some paths: where it does is written down, and is no fault of ours.
    """
    model, tokenizer, (texts, targets) = task
    texts = texts[:1] * 3 if lengths == "of one length" else texts
    targets = targets if isinstance(targets, str) else targets[:1] * 3 if lengths == "of one length" else targets
    explainer = fastshap.GradientShap(model, tokenizer, batch_size=4, device=gpu, **options)
    inside, fetched, waited = [0], [], {}

    def of_the_model(call):
        def called(*args, **kwargs):
            if inside[0]:
                return call(*args, **kwargs)
            inside[0] += 1
            try:
                with warnings.catch_warnings(record=True) as found, waits_are("warn"):
                    warnings.simplefilter("always")
                    return call(*args, **kwargs)
            finally:
                inside[0] -= 1
                for one in found:
                    if "synchroniz" in str(one.message):
                        place = f"{one.filename.split('site-packages/')[-1]}:{one.lineno}"
                        waited[place] = waited.get(place, 0) + 1

        return called

    def fetching(tensors):
        fetched.append(len(tensors))
        with waits_are("default"):
            return to_host(tensors)

    monkeypatch.setattr(type(model), "forward", of_the_model(type(model).forward))
    monkeypatch.setattr(torch.autograd, "grad", of_the_model(torch.autograd.grad))
    for module in ("rounds", "run"):
        monkeypatch.setattr(f"fastshap.engine.{module}.to_host", fetching)
    explainer(texts, targets)  # the model is tried as it is now, kernels are compiled
    fetched.clear()
    waited.clear()
    with waits_are("error"):
        explainer(texts, targets)
        with pytest.raises(RuntimeError, match="synchroniz"):
            torch.ones(1, device=gpu).item()  # the mode is on
    record_property("waits_inside_the_model", waited)
    assert len(fetched) <= 2  # the explanation, and what the model predicts for the texts
    assert not [place for place in waited if place.startswith(str(Path(fastshap.__file__).parent))]


@pytest.mark.gpu
def test_explanations_on_a_side_stream(gpu, task):
    """The default stream is busy meanwhile: what ran there would come too late."""
    model, tokenizer, arguments = task
    model.set_attn_implementation("eager")  # the fused backward passes of attention may add in any order
    explainer = fastshap.GradientShap(model, tokenizer, batch_size=16, device=gpu)
    right = explainer(*arguments)
    torch.cuda.synchronize(gpu)
    stream = torch.cuda.Stream(gpu)
    torch.cuda._sleep(400_000_000)
    with torch.cuda.stream(stream):
        ours = explainer(*arguments)
    torch.cuda.synchronize(gpu)
    for a, b in zip(ours, right, strict=True):
        assert torch.equal(a.attributions.nan_to_num(), b.attributions.nan_to_num())
        assert torch.equal(a.standard_error.nan_to_num(), b.standard_error.nan_to_num())


# Compiled forms of each kernel for one model and one manner; a classifier's own probabilities take points without noise.
VARIANTS = {
    "classification": {"perturb": 2, "attribute": 1, "segment": 1, "moments": 1},
    "generation": {"perturb": 1, "attribute": 1, "segment": 1, "moments": 1},
}


@pytest.mark.gpu
def test_as_many_variants_as_expected(gpu, task, texts, record_property):
    """Texts, rows and samples of any number run what the first texts compiled: nothing is compiled late."""
    model, tokenizer, (few, targets) = task
    kind = "classification" if isinstance(targets, str) else "generation"
    kernels = {
        name: getattr(importlib.import_module(f"fastshap.kernels.{name}"), f"{name}_kernel") for name in VARIANTS[kind]
    }
    for kernel in kernels.values():
        kernel.device_caches.clear()

    def compiled():
        return {name: len(kernel.device_caches[gpu.index][0]) for name, kernel in kernels.items()}

    fastshap.GradientShap(model, tokenizer, batch_size=4, device=gpu)(few, targets)
    first = compiled()
    many = [text for text in texts if text.strip()][:40]
    endings = targets if isinstance(targets, str) else [("A fine, long film." * (1 + k % 3)) for k in range(len(many))]
    for rows, n in ((1, 10), (7, 9), ("auto", 16)):
        fastshap.GradientShap(model, tokenizer, batch_size=rows, n_perturbations=n, device=gpu)(many, endings)
    record_property("variants", {"first": first, "in_the_end": compiled()})
    assert compiled() == VARIANTS[kind], f"after the first texts {first}"


@pytest.mark.gpu
def test_runs_on_the_tensors_device(gpu):
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one device only")
    other = torch.device("cuda", 1)
    x, rows = make([9, 4], [6, 5], 96)
    with torch.cuda.device(gpu):
        here, there = both(x.to(gpu), moved(rows, gpu)), both(x.to(other), moved(rows, other))
        assert torch.cuda.current_device() == gpu.index
    for a, b in zip(here, there, strict=True):
        assert b.device == other
        torch.testing.assert_close(a.cpu(), b.cpu(), atol=1e-5, rtol=1e-5)
    with pytest.raises(fastshap.errors.InvalidArgumentError, match="one device"):
        ops.perturb(x.to(other), moved(rows, gpu))


@pytest.mark.gpu
def test_more_elements_than_32_bits_count(gpu):
    """Two targets' gradients of 1.1 * 2^30 elements each: the last row, token and target are where they belong."""
    tokens, count, dim = 256, 1100, 4096
    if torch.cuda.mem_get_info(gpu)[0] < 9 * 2**30:
        pytest.skip("needs 9 GiB of free device memory")
    x, rows = make([tokens], [count], dim, dtype=torch.bfloat16)
    rows = dataclasses.replace(rows, length=tokens)
    last = dataclasses.replace(
        rows,
        row_offsets=torch.tensor([0, 3]),
        **{name: getattr(rows, name)[-3:] for name in ("alphas", "draws", "signs")},
    )
    x, rows, last = x.to(gpu), moved(rows, gpu), moved(last, gpu)
    z = ops.perturb(x, rows, backend="triton")
    few = ops.perturb(x, last, backend="triton")
    assert torch.equal(z[-3:], few)
    gradients = torch.zeros(2, *z.shape, dtype=torch.bfloat16, device=gpu)
    assert gradients.numel() > 2**31
    gradients[:, -3:] = torch.stack([few, -few])
    for reduction, times_input in REDUCTIONS:
        how = {"reduction": reduction, "input_x_gradient": times_input, "backend": "triton"}
        scores = ops.attribute(gradients, z, x, rows, **how)
        assert (scores[:, :-3] == 0).all()
        assert torch.equal(scores[:, -3:], ops.attribute(gradients[:, -3:], few, x, last, **how))


# ---------------------------------------------------------------- that all this runs the first time there is a device


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device; the tests themselves run on it")
def test_without_a_device_they_are_all_collected_and_fail_and_say_why():
    done = pytest_alone("-m", "gpu", "--tb=no", "-rE", __file__, COLUMNS="1000")
    assert done.returncode == 1, done.stdout + done.stderr
    cases = [line.split(" - ") for line in done.stdout.splitlines() if line.startswith("ERROR ")]
    assert len(cases) > 450
    assert {case.split("::")[1].split("[")[0] for case, _ in cases} == {
        name
        for name, value in globals().items()
        if name.startswith("test_") and any(mark.name == "gpu" for mark in getattr(value, "pytestmark", []))
    }
    assert all(NEEDED in why for _, why in cases)
    assert re.search(rf"^{len(cases)} errors? in |, {len(cases)} errors? in ", done.stdout, re.MULTILINE), (
        "nothing passes"
    )


# One case of each test that can do without a device: a representative of each kernel and a whole
# explanation, and the others, which take as long.
REHEARSED = {
    "short": [
        "test_attribute[interpreter-([5, 3, 1], [4, 2, 3], 7)-{'side': 'left'}-torch.float32]",
        "test_segment_reduce[interpreter-signed_max-torch.float32]",
        "test_moments[interpreter-5-True]",
        "test_words_equal_torch_bitwise",
        "test_box_muller_against_float64[interpreter-portable]",
        "test_normals_equal_torchs[interpreter-portable-37]",
        "test_explanations_equal_those_on_the_cpu[interpreter-generation-SUM]",
    ],
    "long": [
        "test_perturb[interpreter-([5, 3, 1], [4, 2, 3], 7)-{'held': True}-torch.bfloat16]",
        "test_views_with_strides[interpreter-torch.float16]",
        "test_operators_repeat_bitwise[interpreter-torch.bfloat16]",
        "test_company_does_not_show[interpreter-torch.float32-left]",
        "test_shows_in_profiles_under_its_name[interpreter-moments]",
    ],
}


@pytest.mark.parametrize("which", ["short", pytest.param("long", marks=pytest.mark.slow)])
def test_a_rehearsal_in_the_interpreter(which):
    few = REHEARSED[which]
    done = pytest_alone("-m", "gpu", *(f"{__file__}::{name}" for name in few), TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(few)} passed" in done.stdout
