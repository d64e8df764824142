"""Every operator against the formula of its docstring, written out in float64, on ragged and extreme shapes."""

import dataclasses
import importlib
from types import SimpleNamespace

import pytest
import torch

import fastshap
from fastshap import ops
from fastshap.errors import BackendUnavailableError, InvalidArgumentError, SlowBackendWarning
from fastshap.ops import backend
from fastshap.reference import segment_reduce
from helpers.operators import CASES, SHAPES, expected_points, expected_segments, make

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


@pytest.mark.parametrize("baseline", ["(k, D)", "(k, L, D)"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_set_is_its_members_one_by_one(baseline, dtype, monkeypatch):
    """Texts of one length, whole calls at once and in small parts: each row is that of its member alone; same noise."""
    x, rows = make([5, 5, 5], [4, 4, 4], 6, baseline=baseline, held=True, padding=0, dtype=dtype)
    gradients = torch.randn(2, 12, 5, 6).to(dtype)
    how = {"reduction": "sum", "input_x_gradient": True}
    for elements in (1 << 19, 100):
        monkeypatch.setattr("fastshap.reference.rows._BLOCK_ELEMENTS", elements)
        z = ops.perturb(x, rows)
        scores = ops.attribute(gradients, z, x, rows, **how)
        for member in range(3):
            alone = dataclasses.replace(rows, baseline=rows.baseline[member], members=None)
            its = rows.members == member
            assert torch.equal(ops.perturb(x, alone)[its], z[its])
            assert torch.equal(ops.attribute(gradients, z, x, alone, **how)[:, its], scores[:, its])


def test_non_contiguous_inputs():
    x, rows = make([4, 3], [2, 2], 6, baseline="(L, D)")
    strided = lambda t: t.repeat_interleave(2, -1)[..., ::2]  # noqa: E731
    z = ops.perturb(x, rows)
    views = dataclasses.replace(rows, baseline=strided(rows.baseline))
    assert strided(x).stride() == (12, 2)
    assert torch.equal(ops.perturb(strided(x), views), z)
    gradients = torch.randn(2, *z.shape)
    how = {"reduction": "sum", "input_x_gradient": True}
    ours = ops.attribute(strided(gradients), strided(z), strided(x), views, **how)
    assert torch.equal(ours, ops.attribute(gradients, z, x, rows, **how))


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


STRATEGIES = ("mean", "max", "min", "sum", "signed_max", "first", "last")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_segment_reduce_of_ragged_groups(strategy):
    torch.manual_seed(0)
    values = torch.randn(3, 20, dtype=torch.float64)
    values[torch.rand(3, 20) < 0.3] = torch.nan
    sizes = [0, 1, 5, 40, 0, 2, 0]
    members, offsets = torch.randint(0, 20, (sum(sizes),)), torch.tensor([0, *sizes]).cumsum(0)
    right, _ = expected_segments(values, members, offsets, strategy)
    torch.testing.assert_close(ops.segment_reduce(values, members, offsets, strategy), right, equal_nan=True)


# ---------------------------------------------------------------- torch.library


def attribute_all(z, x, rows, reduction="sum", times_input=True):
    gradients = torch.linspace(-1, 1, 2 * z.numel()).reshape(2, *z.shape).to(x.dtype)
    return ops.attribute(gradients, z, x, rows, reduction=reduction, input_x_gradient=times_input)


@pytest.fixture
def recorded(monkeypatch):
    """Every call of a registered operator: the operator and its arguments."""
    calls = []

    def recorder(operator):
        def call(*args, **kwargs):
            calls.append((operator, args, kwargs))
            return operator(*args, **kwargs)

        return call

    for name, file in (("perturb",) * 2, ("attribute",) * 2, ("segment_reduce", "segment"), ("moments",) * 2):
        module = importlib.import_module(f"fastshap.ops.{file}")
        monkeypatch.setattr(module, f"_{name}", recorder(getattr(module, f"_{name}")))
    return calls


@pytest.mark.parametrize("case", CASES, ids=str)
def test_opcheck_of_rows(case, recorded):
    x, rows = make([3, 0, 2], [2, 1, 1], 6, **case)
    z = ops.perturb(x, rows)
    attribute_all(z, x, rows)
    attribute_all(z, x, rows, "abs_mean", False)
    assert [str(call[0]) for call in recorded] == ["fastshap.perturb.default", *["fastshap.attribute.default"] * 2]
    for call in recorded:
        assert set(torch.library.opcheck(*call).values()) == {"SUCCESS"}


def test_opcheck_of_scores(recorded):
    """Without empty groups: opcheck compares NaN with NaN and finds them different."""
    values, members, offsets = torch.randn(2, 5), torch.tensor([3, 1, 0]), torch.tensor([0, 2, 3])
    ops.segment_reduce(values, members, offsets, "mean")
    ops.segment_reduce(values.double().T, members[2:], offsets[:0].new_tensor([0, 1]), "signed_max")
    ops.moments(torch.randn(2, 5, 3), pairs=True)
    ops.moments(torch.randn(3, 6, 2).transpose(0, 2), pairs=False)
    assert len(recorded) == 4
    for call in recorded:
        assert set(torch.library.opcheck(*call).values()) == {"SUCCESS"}


@pytest.mark.parametrize(
    "case",
    [{}, {"baseline": "(L, D)", "held": True, "side": "left"}, {"baseline": "(k, L, D)", "held": True, "side": "left"}],
    ids=str,
)
def test_compile(case):
    x, rows = make([3, 2], [2, 4], 6, **case)
    members, offsets = torch.tensor([3, 1, 0]), torch.tensor([0, 2, 2, 3])

    def scores(x, rows):
        z = ops.perturb(2 * x, rows)
        of_rows = attribute_all(z, 2 * x, rows)
        mean, error = ops.moments(of_rows, pairs=True)
        return z, of_rows, error, ops.segment_reduce(mean, members, offsets, "sum") + 1

    compiled = torch.compile(scores, backend="aot_eager", fullgraph=True)
    for ours, right in zip(compiled(x, rows), scores(x, rows), strict=True):
        torch.testing.assert_close(ours, right, rtol=0, atol=0, equal_nan=True)


@pytest.mark.filterwarnings(
    "ignore:Warning. Profiler clears events at the end of each cycle:UserWarning"
)  # torch 2.11's
def test_names_in_profiles():
    explain = fastshap.GradientShap(*fastshap.load_default_model())
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        explain("fine film")
    names = {event.key for event in profile.key_averages()}
    assert {"fastshap::perturb", "fastshap::attribute"} <= names


# ---------------------------------------------------------------- bad input


@pytest.fixture
def nothing_runs(monkeypatch):
    """Arguments must be refused before an operator starts to compute."""

    def run(*args, **kwargs):
        pytest.fail("the operator ran")

    for name in ("perturb", "attribute", "segment_reduce", "moments"):
        monkeypatch.setattr(f"fastshap.reference.{name}", run)


def meta(*shape, dtype=torch.float32):
    """A tensor of any size that takes no memory."""
    return torch.empty(*shape, dtype=dtype, device="meta")


def changed(**fields):
    """Four rows of two texts, 4 and 3 tokens, D = 6, with some fields replaced: by a tensor or a function of the old one."""
    x, rows = make([4, 3], [2, 2], 6, baseline="(L, D)", held=True)
    new = {name: value(getattr(rows, name)) if callable(value) else value for name, value in fields.items()}
    return x, dataclasses.replace(rows, **new)


MEMBERS = torch.tensor([0, 2, 1, 0])
TENSORS = ("token_offsets", "row_offsets", "alphas", "streams", "draws", "signs", "baseline", "held")
BAD_ROWS = [
    *((r"one device.*cpu, meta", {name: lambda t: t.to("meta")}) for name in TENSORS),
    *((f"{name} must be contiguous int64", {name: lambda t: t.int()}) for name in ("token_offsets", "row_offsets")),
    *((f"{name} must be contiguous int64", {name: lambda t: t.double()}) for name in ("streams", "draws")),
    ("draws must be contiguous int64", {"draws": lambda t: t.repeat_interleave(2)[::2]}),
    ("streams must be contiguous int64", {"streams": lambda t: t.T.contiguous().T}),
    *((f"{name} must be contiguous float32", {name: lambda t: t.double()}) for name in ("alphas", "signs")),
    *((f"{name} must be contiguous float32", {name: lambda t: t.bfloat16()}) for name in ("alphas", "signs")),
    ("held must be", {"held": lambda t: t.long()}),
    ("token_offsets must be", {"token_offsets": torch.zeros(0, dtype=torch.int64)}),
    ("token_offsets must be", {"token_offsets": lambda t: t[None]}),
    ("row_offsets must have shape", {"row_offsets": lambda t: t[1:]}),
    ("alphas", {"alphas": lambda t: t[:, None]}),
    (r"streams must have shape \(2, 3\); got \(2, 2\)", {"streams": lambda t: t[:, :2]}),
    (r"streams must have shape \(2, 3\); got \(1, 3\)", {"streams": lambda t: t[:1]}),
    (r"draws must have shape \(4,\); got \(3,\)", {"draws": lambda t: t[:3]}),
    (r"signs must have shape \(4,\); got \(2,\)", {"signs": lambda t: t[:2]}),
    (r"held must have shape \(7,\); got \(6,\)", {"held": lambda t: t[:6]}),
    (r"held must have shape \(7,\); got \(7, 1\)", {"held": lambda t: t[:, None]}),
    (r"baseline has shape \(5,\).*6", {"baseline": torch.zeros(5)}),
    (r"baseline has shape \(4, 5\).*6", {"baseline": torch.zeros(4, 5)}),
    (r"baseline has shape \(1, 4, 6\).*6", {"baseline": torch.zeros(1, 4, 6)}),
    (r"baseline has shape \(\).*6", {"baseline": torch.tensor(0.5)}),
    (r"2\^31", {"length": 2**28}),  # one row
    (r"2\^31", {"length": 2**31}),
    ("'left' or 'right'; got 'Left'", {"padding_side": "Left"}),
    # members of sets
    (r"set of baselines has shape \(4, 6, 6, 1\).*6", {"members": MEMBERS, "baseline": torch.zeros(4, 6, 6, 1)}),
    (r"set of baselines has shape \(3, 5\).*6", {"members": MEMBERS, "baseline": torch.zeros(3, 5)}),
    (r"set of baselines has shape \(0, 6\).*6", {"members": MEMBERS, "baseline": torch.zeros(0, 6)}),
    (r"members are for a set of baselines.*got a number", {"members": MEMBERS, "baseline": 0.5}),
    ("members must be contiguous int64", {"members": MEMBERS.int()}),
    (r"members must have shape \(4,\); got \(3,\)", {"members": MEMBERS[:3]}),
    (r"members must lie between 0 and 1; got 0 and 2", {"members": MEMBERS, "baseline": torch.zeros(2, 6)}),
    (r"members must lie between 0 and 3; got -1 and 1", {"members": MEMBERS - 1}),
    (r"text 4 tokens, and there is room for 3", {"members": MEMBERS, "baseline": torch.zeros(3, 3, 6)}),
    (r"one device.*cpu, meta", {"members": MEMBERS.to("meta")}),
]


@pytest.mark.parametrize(("message", "fields"), BAD_ROWS)
def test_bad_rows_are_refused(message, fields, nothing_runs):
    x, rows = changed(**fields)
    with pytest.raises(InvalidArgumentError, match=message):
        ops.perturb(x, rows)
    z = torch.zeros(4, 6, 6)
    with pytest.raises(InvalidArgumentError, match=message):
        ops.attribute(z[None], z, x, rows, reduction="sum", input_x_gradient=True)


BAD_X = [
    ("D > 0", lambda x: x[:, :0]),
    ("packed embeddings", lambda x: x[None]),
    ("floating-point", lambda x: x.long()),
    ("one device", lambda x: x.to("meta")),
    ("held must have shape", lambda x: x[:6]),
]


@pytest.mark.parametrize(("message", "change"), BAD_X)
def test_bad_embeddings_are_refused(message, change, nothing_runs):
    x, rows = changed()
    with pytest.raises(InvalidArgumentError, match=message):
        ops.perturb(change(x), rows)


BAD_GRADIENTS = [
    # (message, gradients, z), changes of right ones
    ("gradients must be", lambda g: g[0], lambda z: z),
    ("gradients must be", lambda g: g[:, :3], lambda z: z),
    ("gradients must be", lambda g: g[..., :5], lambda z: z),
    (r"\(4, 6, 6\).*\(3, 6, 6\)", lambda g: g[:, :3], lambda z: z[:3]),  # fewer rows than alphas
    (r"\(4, 6, 6\).*\(4, 5, 6\)", lambda g: g[:, :, :5], lambda z: z[:, :5]),  # not of the rows' length
    (r"\(4, 6, 6\).*\(4, 6, 5\)", lambda g: g[..., :5], lambda z: z[..., :5]),  # not of x's D
    ("one dtype.*bfloat16.*float32", lambda g: g.bfloat16(), lambda z: z),
    ("one dtype.*float16.*float32", lambda g: g, lambda z: z.half()),
    ("one dtype.*float16.*float32", lambda g: g.half(), lambda z: z.half()),
    ("one device.*cpu, meta", lambda g: g.to("meta"), lambda z: z),
    ("one device.*cpu, meta", lambda g: g, lambda z: z.to("meta")),
]


@pytest.mark.parametrize(("message", "of_gradients", "of_z"), BAD_GRADIENTS)
def test_bad_gradients_are_refused(message, of_gradients, of_z, nothing_runs):
    x, rows = changed()
    z = torch.zeros(4, rows.length, 6)
    gradients = torch.zeros(2, *z.shape)
    with pytest.raises(InvalidArgumentError, match=message):
        ops.attribute(of_gradients(gradients), of_z(z), x, rows, reduction="sum", input_x_gradient=True)


def test_unknown_reduction_is_refused(nothing_runs):
    x, rows = changed()
    z = torch.zeros(4, rows.length, 6)
    with pytest.raises(InvalidArgumentError, match=r"sum.*abs_mean.*'mean'"):
        ops.attribute(z[None], z, x, rows, reduction="mean", input_x_gradient=True)


def test_sizes_beyond_32_bits_are_refused(nothing_runs):
    many = {name: meta(2**20, dtype=dtype) for name, dtype in [("alphas", torch.float32), ("signs", torch.float32)]}
    x, rows = make([4], [2], 6, device="meta")
    rows = dataclasses.replace(rows, **many, draws=meta(2**20, dtype=torch.int64), length=2**11)
    with pytest.raises(InvalidArgumentError, match=r"2\^31; got 2147483648"):
        ops.perturb(x, rows)
    assert ops.perturb(x, dataclasses.replace(rows, length=2**11 - 1)).shape == (2**20, 2**11 - 1, 6)
    offsets, members = meta(2**16 + 1, dtype=torch.int64), meta(0, dtype=torch.int64)
    with pytest.raises(InvalidArgumentError, match=r"2\^31; got 2147483648"):
        ops.segment_reduce(meta(2**15, 1), members, offsets, "sum")
    with pytest.raises(InvalidArgumentError, match=r"2\^31"):
        ops.moments(meta(1, 4, 2**31), pairs=True)
    with pytest.raises(InvalidArgumentError, match="65535"):
        ops.moments(meta(2**16, 4, 1), pairs=True)
    texts = dataclasses.replace(
        rows,
        token_offsets=meta(2**16 + 1, dtype=torch.int64),
        row_offsets=meta(2**16 + 1, dtype=torch.int64),
        streams=meta(2**16, 3, dtype=torch.int64),
        length=4,
    )
    with pytest.raises(InvalidArgumentError, match="65535 texts"):
        ops.perturb(x, texts)


BAD_SEGMENTS = [
    ("'average'.*signed_max", {"strategy": "average"}),
    ("segment_reduce takes", {"values": torch.zeros(4)}),
    ("segment_reduce takes", {"members": torch.zeros(1, 3, dtype=torch.int64)}),
    ("segment_reduce takes", {"offsets": torch.zeros(0, dtype=torch.int64)}),
    ("members must be contiguous int64", {"members": torch.zeros(3, dtype=torch.int32)}),
    ("members must be contiguous int64", {"members": torch.zeros(6, dtype=torch.int64)[::2]}),
    ("offsets must be contiguous int64", {"offsets": torch.tensor([0.0, 3.0])}),
    ("one device.*cpu, meta", {"members": meta(3, dtype=torch.int64)}),
    ("one device.*cpu, meta", {"offsets": meta(2, dtype=torch.int64)}),
    ("one device.*cpu, meta", {"values": meta(2, 4)}),
]


@pytest.mark.parametrize(("message", "fields"), BAD_SEGMENTS)
def test_bad_segments_are_refused(message, fields, nothing_runs):
    good = {"values": torch.zeros(2, 4), "members": torch.tensor([0, 1, 2]), "offsets": torch.tensor([0, 3])}
    with pytest.raises(InvalidArgumentError, match=message):
        ops.segment_reduce(**{**good, "strategy": "sum", **fields})


@pytest.mark.parametrize("values", [torch.zeros(3, 4), torch.zeros(1, 0, 4), torch.zeros(1, 3, 4, dtype=torch.float64)])
def test_bad_samples_are_refused(values, nothing_runs):
    with pytest.raises(InvalidArgumentError, match=r"moments takes float32 values \(T, n, M\)"):
        ops.moments(values, pairs=True)


@pytest.mark.parametrize(
    ("backend", "dtype", "error", "message"),
    [
        ("cuda", torch.float32, InvalidArgumentError, "auto, triton, torch; got 'cuda'"),
        ("triton", torch.float32, BackendUnavailableError, "on a GPU; got torch.float32 on cpu"),
        ("triton", torch.float64, BackendUnavailableError, "on a GPU; got torch.float64 on cpu"),
    ],
)
def test_backends_that_cannot_run(backend, dtype, error, message, nothing_runs):
    x, rows = make([4, 3], [2, 2], 6, dtype=dtype)
    z = torch.zeros(4, rows.length, 6, dtype=dtype)
    members, offsets = torch.tensor([0, 1]), torch.tensor([0, 2])
    calls = [
        lambda: ops.perturb(x, rows, backend=backend),
        lambda: ops.attribute(z[None], z, x, rows, reduction="sum", input_x_gradient=True, backend=backend),
        lambda: ops.segment_reduce(x, members, offsets, "sum", backend=backend),
    ]
    if dtype == torch.float32:  # moments takes no other
        calls.append(lambda: ops.moments(z, pairs=True, backend=backend))
    for call in calls:
        with pytest.raises(error, match=message):
            call()


@pytest.mark.parametrize("missing", ["compiler", "triton"])
def test_without_a_compiler_torch_takes_over_with_one_warning(missing, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    if missing == "triton":
        monkeypatch.setenv("CC", "/usr/bin/cc")
        monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: None)
    backend._compiles.cache_clear()
    backend._told_of_torch.cache_clear()
    on_a_gpu = SimpleNamespace(is_cuda=True, dtype=torch.float32, device="cuda:0")
    try:
        what = "C compiler" if missing == "compiler" else "triton package"
        with pytest.warns(SlowBackendWarning, match=what) as told:
            assert [backend.with_triton("auto", on_a_gpu) for _ in range(2)] == [False, False]
        assert len(told) == 1
        with pytest.raises(BackendUnavailableError, match="triton"):
            backend.with_triton("triton", on_a_gpu)
    finally:
        backend._compiles.cache_clear()
        backend._told_of_torch.cache_clear()
