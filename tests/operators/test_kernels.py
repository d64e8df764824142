"""The Triton kernels against float64 and eager torch, in Triton's interpreter, which needs a process of its own."""

import dataclasses
import itertools
import os
import re

import pytest
import torch

from fastshap import ops, reference
from fastshap.errors import BackendUnavailableError, InvalidArgumentError
from helpers.operators import (
    EXACT_STRATEGIES,
    SMALL_SHAPES,
    alone,
    check_attribute,
    check_moments,
    check_perturb,
    check_segment_reduce,
    make,
)
from helpers.selection import combined, covering
from helpers.subprocesses import pytest_alone

triton = pytest.importorskip("triton")

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
CASES = [
    {"side": "left", "pairs": False},
    {"baseline": "(D,)", "held": True, "padding": 0},
    {"baseline": "(L, D)", "side": "left", "padding": 1},
    {"baseline": "(k, L, D)", "held": True, "padding": 1},
    # In float32 only:
    {"padding": 0},
    {"baseline": "(L, D)", "pairs": False, "held": True},
    {"noise_std": 0.0, "side": "left", "held": True},
    {"noise_std": 0.0, "baseline": "(D,)"},
    {"baseline": "(k, D)", "side": "left", "pairs": False, "held": True},
    {"noise_std": 0.0, "baseline": "(k, L, D)", "padding": 0},
]
OF_A_CASE = {
    "side": "right",
    "baseline": 0.25,
    "held": False,
    "noise_std": 0.3,
    "pairs": True,
    "padding": 2,
}  # make's own
MATRIX = [
    {"shape": shape, "dtype": dtype, **OF_A_CASE, **case}
    for shape in SMALL_SHAPES
    for dtype in DTYPES
    for case in CASES[: None if dtype == torch.float32 else 4]
]
REDUCTIONS = [("sum", True), ("sum", False), ("abs_mean", True), ("abs_mean", False)]


def elements(case):
    """Of all rows of a case, which is what it costs, beside some constant."""
    tokens, rows, dim = case["shape"]
    return 100 + dim * sum(many * each for many, each in zip(tokens, rows, strict=True))


# Every shape meets every dtype and side. What else there is meets each other, and every shape with -m slow.
APART = [("shape", option) for option in MATRIX[0] if option not in ("shape", "dtype", "side")]
SELECTED = covering(MATRIX, elements, APART)


def named(values):
    return {str(value): value for value in values}


def matrix(test):
    """Parametrizes with all of MATRIX; cases outside the selection are marked whole_matrix."""
    parameters = [
        pytest.param(
            case["shape"],
            {name: value for name, value in case.items() if name != "shape"},
            id="-".join(map(str, case.values())),
            marks=() if place in SELECTED else pytest.mark.whole_matrix,
        )
        for place, case in enumerate(MATRIX)
    ]
    return pytest.mark.parametrize(("shape", "case"), parameters)(test)


interpreting = os.environ.get("TRITON_INTERPRET") == "1"

if interpreting:
    import triton.language as tl

    from fastshap.kernels.philox import box_muller, philox4x32

    @triton.jit
    def words_kernel(p_in, p_out, N: tl.constexpr):
        i = tl.arange(0, N)
        w0, w1, w2, w3 = philox4x32(
            tl.load(p_in + i).to(tl.uint32),
            tl.load(p_in + N + i).to(tl.uint32),
            tl.load(p_in + 2 * N + i).to(tl.uint32),
            tl.load(p_in + 3 * N + i).to(tl.uint32),
            tl.load(p_in + 4 * N + i).to(tl.uint32),
            tl.load(p_in + 5 * N + i).to(tl.uint32),
        )
        tl.store(p_out + i, w0.to(tl.int64))
        tl.store(p_out + N + i, w1.to(tl.int64))
        tl.store(p_out + 2 * N + i, w2.to(tl.int64))
        tl.store(p_out + 3 * N + i, w3.to(tl.int64))

    @triton.jit
    def box_muller_kernel(p_radius, p_angle, p_cosine, p_sine, count, N: tl.constexpr):
        i = tl.program_id(0) * N + tl.arange(0, N)
        radius = tl.load(p_radius + i, mask=i < count, other=0).to(tl.uint32)
        angle = tl.load(p_angle + i, mask=i < count, other=0).to(tl.uint32)
        cosine, sine = box_muller(radius, angle, False)
        tl.store(p_cosine + i, cosine, mask=i < count)
        tl.store(p_sine + i, sine, mask=i < count)


def interpreted(marked):
    """Runs the tests below with these marks and TRITON_INTERPRET=1, which must be set before Triton is imported."""
    done = pytest_alone("-m", marked, __file__, timeout=900, TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"^(\d+) passed, \d+ deselected in ", done.stdout, re.MULTILINE)  # nothing skipped
    assert passed, done.stdout
    return int(passed[1])


def test_the_interpreter_suite():
    """Of the large products, a selection in which most two values of two options meet, and every value is there."""
    assert interpreted("interpret and not whole_matrix") >= 180


@pytest.mark.slow
def test_the_whole_interpreter_suite():
    assert interpreted("interpret") >= 700


def test_the_selection_covers_the_matrix():
    """Every shape with every dtype and side, and every two other options, as far as they meet in the matrix at all."""
    selected = [MATRIX[place] for place in SELECTED]
    for one, other in set(itertools.combinations(MATRIX[0], 2)).difference(APART):
        whole = {(str(case[one]), str(case[other])) for case in MATRIX}
        assert {(str(case[one]), str(case[other])) for case in selected} == whole, (one, other)
    assert len(selected) < len(MATRIX) / 3
    for option in MATRIX[0]:
        assert {str(case[option]) for case in selected} == {str(case[option]) for case in MATRIX}


@pytest.fixture(autouse=True)
def _interpreter(request):
    if request.node.get_closest_marker("interpret") and not interpreting:
        pytest.fail("Set TRITON_INTERPRET=1 to run the tests marked interpret.")


@pytest.fixture
def poisoned(monkeypatch):
    """What the launchers allocate is full of NaN, so that what a kernel leaves unwritten shows. Shapes, in order."""
    shapes = []

    def poison(allocate):
        def allocated(*args, **kwargs):
            tensor = allocate(*args, **kwargs)
            if tensor.is_floating_point():
                tensor.fill_(torch.nan)
                shapes.append(tuple(tensor.shape))
            return tensor

        return allocated

    monkeypatch.setattr(torch, "empty", poison(torch.empty))
    monkeypatch.setattr(torch.Tensor, "new_empty", poison(torch.Tensor.new_empty))
    return shapes


# ---------------------------------------------------------------- perturb and attribute


@pytest.mark.interpret
@matrix
def test_perturb(shape, case, poisoned):
    x, rows = make(*shape, **case)
    assert tuple(check_perturb(x, rows).shape) in poisoned


@pytest.mark.interpret
@matrix
def test_attribute(shape, case, poisoned):
    x, rows = make(*shape, **case)
    z = ops.perturb(x, rows, backend="torch")
    gradients = torch.randn(1, *z.shape).to(x.dtype)
    scores = check_attribute(gradients, z, x, rows, "sum", True)
    assert tuple(scores.shape) in poisoned


@pytest.mark.interpret
@combined(shape=named(SMALL_SHAPES), weighted=named(REDUCTIONS), dtype=named(DTYPES))
def test_reductions_of_three_targets(shape, weighted, dtype, poisoned):
    reduction, times_input = weighted
    x, rows = make(*shape, held=True, dtype=dtype, padding=1)
    z = ops.perturb(x, rows, backend="torch")
    gradients = torch.randn(3, *z.shape).to(dtype)
    scores = check_attribute(gradients, z, x, rows, reduction, times_input)
    assert tuple(scores.shape) in poisoned


@pytest.fixture
def shared_by(monkeypatch):
    """Sets by how many programs a text's rows are shared."""
    from fastshap.kernels import attribute, perturb

    def share(programs):
        for module in (attribute, perturb):
            monkeypatch.setattr(module, "splits", lambda *_: programs)

    return share


SHARED = {
    "one text, pairs": ([2], [7], 36, {}),
    "one text, left": ([2], [6], 36, {"side": "left", "padding": 1}),
    "texts of different sizes": ([2, 3, 1, 2], [5, 1, 0, 8], 7, {"side": "left"}),
    "tokens held": ([3, 1], [4, 3], 12, {"held": True, "baseline": "(L, D)"}),
    "independent draws": ([2, 1], [5, 2], 384, {"pairs": False, "baseline": "(D,)", "dtype": torch.bfloat16}),
    "no noise": ([2, 1], [3, 2], 12, {"noise_std": 0.0}),
    "a set": ([3, 1], [5, 2], 12, {"baseline": "(k, L, D)", "side": "left"}),
}


@pytest.mark.interpret
@combined(case=SHARED, weighted=named(REDUCTIONS[:3:2]), apart=[("case", "weighted")])
def test_scores_do_not_depend_on_who_shares_the_rows(case, weighted, shared_by, poisoned):
    """Bitwise, however many programs share the rows: fewer than there are pairs, as many, more."""
    tokens, rows, dim, how = case
    x, rows = make(tokens, rows, dim, **how)
    z = ops.perturb(x, rows, backend="torch")
    gradients = torch.randn(2, *z.shape).to(x.dtype)
    reduction, times_input = weighted
    found = []
    for programs in (1, 2, 3, 5):
        shared_by(programs)
        found.append(check_attribute(gradients, z, x, rows, reduction, times_input))
    assert all(torch.equal(found[0], other) for other in found[1:])


@pytest.mark.interpret
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=name, marks=() if name in ("one text, pairs", "a set") else pytest.mark.whole_matrix)
        for name, case in SHARED.items()
    ],
)
def test_points_do_not_depend_on_who_shares_the_rows(case, shared_by, poisoned):
    tokens, rows, dim, how = case
    x, rows = make(tokens, rows, dim, **how)
    found = []
    for programs in (1, 2, 3, 5):
        shared_by(programs)
        found.append(check_perturb(x, rows))
    assert all(torch.equal(found[0], other) for other in found[1:])


@pytest.mark.interpret
def test_small_launches_share_rows_and_large_ones_do_not():
    from fastshap.kernels.sharing import splits

    cpu = torch.device("cpu")  # counts as an H100: 132 multiprocessors
    assert splits(32, 1, 1000, cpu, 16) == 66
    assert splits(32, 1, 1000, cpu, 32) == 132
    assert splits(16, 1, 10, cpu, 16) == 5  # two rows each
    assert splits(512 * 8, 8, 80, cpu, 16) == 1
    assert splits(128 * 8, 1, 1000, cpu, 16) == 2
    assert splits(32, 1, 1, cpu, 16) == 1


VIEWS = {
    "batch transposed": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
    "last dimension strided": lambda t: t.repeat_interleave(2, -1)[..., ::2],
    "last dimension outermost": lambda t: t.movedim(-1, 0).contiguous().movedim(0, -1),
    "part of a larger tensor": lambda t: torch.cat([t, t], -1)[..., : t.shape[-1]],
    "expanded": lambda t: t[:1].expand_as(t),
}


@pytest.mark.interpret
@combined(dim=named([7, 12]), view=VIEWS, dtype=named(DTYPES), apart=[("view", "dtype")])
def test_views(view, dim, dtype, poisoned):
    x, rows = make([2, 1], [1, 2], dim, padding=1, dtype=dtype, baseline="(L, D)")
    rows = dataclasses.replace(rows, baseline=view(rows.baseline))
    x = view(x)
    assert not (x.is_contiguous() and rows.baseline.is_contiguous())
    z = check_perturb(x, rows)
    gradients = view(torch.randn(3, *z.shape).to(dtype))
    assert not gradients.is_contiguous()
    for reduction, times_input in REDUCTIONS:
        check_attribute(gradients, view(z), x, rows, reduction, times_input)


@pytest.mark.interpret
@pytest.mark.parametrize(
    ("dim", "dtype", "baseline"),
    [
        (7, torch.bfloat16, "(L, D)"),
        *(pytest.param(7, dtype, "(L, D)", marks=pytest.mark.whole_matrix) for dtype in DTYPES[:2]),
        (100, torch.float32, "(L, D)"),
        (12, torch.bfloat16, "(k, L, D)"),
    ],
    ids=str,
)
def test_repeats_and_neighbours_do_not_show(dim, dtype, baseline):
    """Bitwise: the same call twice, and a text on its own, with other padding on the other side."""
    x, rows = make([1, 0, 3], [2, 1, 3], dim, dtype=dtype, baseline=baseline, held=True, padding=0)
    z = ops.perturb(x, rows, backend="triton")
    gradients = torch.randn(2, *z.shape).to(dtype)
    runs = [
        ops.attribute(gradients, z, x, rows, reduction=reduction, input_x_gradient=times_input, backend="triton")
        for reduction, times_input in REDUCTIONS
        for _ in range(2)
    ]
    assert torch.equal(ops.perturb(x, rows, backend="triton"), z)
    assert all(torch.equal(*twice) for twice in zip(runs[::2], runs[1::2], strict=True))
    for text, tokens in enumerate([1, 0, 3]):
        of_text = slice(rows.row_offsets[text].item(), rows.row_offsets[text + 1].item())
        own_x, own = alone(x, rows, text, length=4, side="left")
        own_z = ops.perturb(own_x, own, backend="triton")
        assert torch.equal(own_z[:, 4 - tokens :], z[of_text, :tokens])
        own_gradients = torch.zeros(2, *own_z.shape, dtype=dtype)
        own_gradients[:, :, 4 - tokens :] = gradients[:, of_text, :tokens]
        for (reduction, times_input), together in zip(REDUCTIONS, runs[::2], strict=True):
            how = {"reduction": reduction, "input_x_gradient": times_input, "backend": "triton"}
            scores = ops.attribute(own_gradients, own_z, own_x, own, **how)
            assert torch.equal(scores[:, :, 4 - tokens :], together[:, of_text, :tokens])


STRIDED = [
    {"alphas": lambda t: torch.stack([t, t + 9], -1)[:, 0]},
    {"signs": lambda t: t[:1].expand_as(t)},
    {"held": lambda t: torch.stack([t, ~t], -1)[:, 0]},
]


@pytest.mark.interpret
@pytest.mark.parametrize("change", STRIDED, ids=lambda change: next(iter(change)))
def test_strided_vectors_are_right_or_refused(change):
    x, rows = make([3, 2], [2, 3], 8, held=True)
    views = dataclasses.replace(rows, **{name: view(getattr(rows, name)) for name, view in change.items()})
    try:
        check_perturb(x, views)
    except InvalidArgumentError as error:
        assert "contiguous" in str(error)  # noqa: PT017


@pytest.mark.interpret
def test_nothing_to_do():
    for shape in (([2, 1], [0, 0], 8), ([0], [2], 8), ([], [], 8)):
        x, rows = make([2], [2], shape[2])
        tokens, count = sum(shape[0]), sum(shape[1])
        rows = dataclasses.replace(
            rows,
            token_offsets=torch.tensor([0, *shape[0]]).cumsum(0),
            row_offsets=torch.tensor([0, *shape[1]]).cumsum(0),
            streams=torch.zeros(len(shape[0]), 3, dtype=torch.int64),
            **{name: getattr(rows, name)[:count] for name in ("alphas", "draws", "signs")},
            length=max([*shape[0], 0]),
        )
        x = torch.cat([x, x])[:tokens]
        z = ops.perturb(x, rows, backend="triton")
        assert z.shape == (count, rows.length, 8)
        scores = ops.attribute(z[None], z, x, rows, reduction="sum", input_x_gradient=True, backend="triton")
        assert scores.shape == (1, count, rows.length)


@pytest.mark.interpret
def test_float64_is_refused():
    x, rows = make([2], [2], 8, dtype=torch.float64)
    z = ops.perturb(x, rows)
    members, offsets = torch.tensor([0]), torch.tensor([0, 1])
    with pytest.raises(BackendUnavailableError, match=r"torch\.float64 on cpu"):
        ops.perturb(x, rows, backend="triton")
    with pytest.raises(BackendUnavailableError, match=r"torch\.float64 on cpu"):
        ops.attribute(z[None], z, x, rows, reduction="sum", input_x_gradient=True, backend="triton")
    with pytest.raises(BackendUnavailableError, match=r"torch\.float64 on cpu"):
        ops.segment_reduce(x, members, offsets, "sum", backend="triton")


# ---------------------------------------------------------------- segments and samples

# The kernels divide by a count that may be zero and throw the result away; numpy, below the interpreter, would warn.
divides_by_zero = pytest.mark.filterwarnings("ignore:(invalid value|divide by zero) encountered:RuntimeWarning")


def ragged(targets, columns, seed=0):
    """Scores with ties and NaN, and groups: long, short, empty, of NaN only, with members out of order and more than once."""
    torch.manual_seed(seed)
    values = torch.randn(targets, columns)
    values[:, 1] = -values[:, 0]
    values[torch.rand(targets, columns) < 0.2] = torch.nan
    sizes = [0, 2, 1, 0, 31, 32, 33, 3, 0, 70]
    members = torch.randint(5, columns, (sum(sizes),))
    members[:2] = torch.tensor([1, 0])
    members[2] = 2
    values[:, 2] = torch.nan
    values[:, 3], values[:, 4] = 9, -9
    members[-60], members[-10] = 4, 3  # equals far apart in the group of 70
    return values, members, torch.tensor([0, *sizes]).cumsum(0)


LAYOUTS = {
    "contiguous": lambda t: t,
    "transposed": lambda t: t.transpose(0, -1).contiguous().transpose(0, -1),
    "every other": lambda t: t.repeat_interleave(2, -1)[..., ::2],
    "expanded": lambda t: t[:1].expand_as(t),
}


@divides_by_zero
@pytest.mark.interpret
@combined(
    targets=named([1, 3]),
    layout=LAYOUTS,
    strategy=named(["sum", "mean", *EXACT_STRATEGIES]),
    apart=[("layout", "strategy")],
)
def test_segment_reduce(targets, layout, strategy, poisoned):
    values, members, offsets = ragged(targets, 50)
    out = check_segment_reduce(layout(values), members, offsets, strategy)
    assert out.isnan().any()
    assert not out.isnan().all()
    assert tuple(out.shape) in poisoned
    again = ops.segment_reduce(layout(values), members, offsets, strategy, backend="triton")
    assert torch.equal(again.view(torch.int32), out.view(torch.int32))


@divides_by_zero
@pytest.mark.interpret
@pytest.mark.parametrize("strategy", ["sum", "mean", *EXACT_STRATEGIES])
def test_segments_over_targets(strategy, poisoned):
    """Groups of targets are groups of columns of the transposed scores."""
    values, _, _ = ragged(5, 9)
    members, offsets = torch.tensor([4, 0, 2, 1, 3]), torch.tensor([0, 3, 3, 5])
    check_segment_reduce(values.T, members, offsets, strategy)


@pytest.mark.interpret
@pytest.mark.parametrize("strategy", EXACT_STRATEGIES)
def test_segments_of_infinite_values(strategy, poisoned):
    inf = torch.inf
    values = torch.tensor([[inf, -inf, 1.0, torch.nan, -inf, -inf]])
    members, offsets = torch.tensor([0, 1, 2, 3, 1, 2, 4, 5, 2]), torch.tensor([0, 4, 6, 8, 9])
    check_segment_reduce(values, members, offsets, strategy)


@pytest.mark.interpret
@pytest.mark.parametrize("strategy", ["sum", "signed_max"])
def test_segments_without_members(strategy, poisoned):
    none = torch.zeros(0, dtype=torch.int64)
    out = check_segment_reduce(torch.randn(2, 4), none, torch.zeros(4, dtype=torch.int64), strategy)
    assert out.shape == (2, 3)
    assert out.isnan().all()
    assert check_segment_reduce(torch.randn(2, 4), none, torch.zeros(1, dtype=torch.int64), strategy).shape == (2, 0)
    assert check_segment_reduce(torch.randn(2, 0), none, torch.zeros(2, dtype=torch.int64), strategy).isnan().all()


@divides_by_zero
@pytest.mark.interpret
@combined(
    size=named([(1, 1), (3, 7), (2, 128), (1, 300)]),
    layout=LAYOUTS,
    samples=named([1, 2, 3, 4, 5, 8, 21]),
    pairs=named([True, False]),
)
def test_moments(size, layout, samples, pairs, poisoned):
    targets, columns = size
    torch.manual_seed(samples)
    values = layout(torch.randn(targets, samples, columns) + torch.linspace(-5, 5, columns))
    mean, error = check_moments(values, pairs)
    assert poisoned.count((targets, columns)) >= 2
    again = ops.moments(values, pairs=pairs, backend="triton")
    assert torch.equal(torch.stack(again).view(torch.int32), torch.stack((mean, error)).view(torch.int32))


@pytest.mark.interpret
@pytest.mark.parametrize("pairs", [True, False])
def test_moments_of_one_column_do_not_depend_on_others(pairs):
    torch.manual_seed(0)
    values = torch.randn(2, 6, 200)
    mean, error = ops.moments(values, pairs=pairs, backend="triton")
    for column in (0, 127, 128, 199):
        own = ops.moments(values[1:, :, column : column + 1], pairs=pairs, backend="triton")
        assert torch.equal(torch.cat(own).flatten(), torch.stack([mean[1, column], error[1, column]]))
    assert ops.moments(values[:, :, :0], pairs=pairs, backend="triton")[0].shape == (2, 0)


# ---------------------------------------------------------------- random numbers


def words_of(counters_and_keys):
    """(4, K) int64 from (6, K) int64, K a power of two."""
    out = torch.full((4, counters_and_keys.shape[1]), -1)
    words_kernel[(1,)](counters_and_keys, out, N=counters_and_keys.shape[1])
    return out


@pytest.mark.interpret
def test_words_equal_torch_bitwise():
    torch.manual_seed(1)
    words = torch.randint(0, 2**32, (6, 1024))
    for i, edge in enumerate((0, 1, 2**31 - 1, 2**31, 2**32 - 1)):
        words[:, i] = edge
        words[i, 8 + i] = edge
    right = torch.stack(reference.philox4x32(tuple(words[:4]), tuple(words[4:])))
    assert torch.equal(words_of(words), right)


@pytest.mark.interpret
def test_words_known_answers():
    """The vectors that Random123 publishes for philox4x32-10: counter, key, words."""
    known = [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([2**32 - 1] * 4, [2**32 - 1] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ]
    table = torch.tensor([counter + key for counter, key, _ in known] + [[0] * 6]).T.contiguous()
    assert words_of(table).T[:3].tolist() == [words for _, _, words in known]


def hard_words():
    """2^18 random words, and those at which conversions and branches change: powers of two, eighths of a turn, the ends."""
    torch.manual_seed(2)
    edges = [2**i for i in range(33)] + [i * 2**29 for i in range(9)] + [2**24 * 255, 2**32 - 2**8]
    near = {edge + step for edge in edges for step in (-129, -128, -2, -1, 0, 1, 2, 128, 129)}
    extreme = torch.tensor(sorted(word for word in near if 0 <= word < 2**32))
    return torch.cat([extreme, torch.randint(0, 2**32, (2**18,))])


def pairs_of(radius_words, angle_words):
    """Cosine and sine times radius, float64 copies of the kernel's float32."""
    count = radius_words.shape[0]
    cosine, sine = torch.full((2, count), torch.nan).unbind()
    block = 1 << 16
    box_muller_kernel[(triton.cdiv(count, block),)](radius_words, angle_words, cosine, sine, count, N=block)
    return cosine.double(), sine.double()


@pytest.mark.interpret
def test_radius_of_normals():
    words = hard_words()
    for angle in (0, 0x2AAAAAAA, 0xD5555555):
        cosine, sine = pairs_of(words, torch.full_like(words, angle))
        square = -2 * ((words.double() + 0.5) / 2**32).log()
        assert ((cosine**2 + sine**2 - square).abs() <= 1e-6 + 1e-6 * square).all(), angle


@pytest.mark.interpret
def test_angle_of_normals():
    words = hard_words()
    assert {0, 1, 2**31, 2**32 - 1} <= set(words.tolist())
    radius_word = 2**30
    cosine, sine = pairs_of(torch.full_like(words, radius_word), words)
    radius = (-2 * torch.tensor((radius_word + 0.5) / 2**32, dtype=torch.float64).log()).sqrt()
    angle = words.double() * (2 * torch.pi / 2**32)
    assert (cosine / radius - angle.cos()).abs().max() <= 2e-6
    assert (sine / radius - angle.sin()).abs().max() <= 2e-6
