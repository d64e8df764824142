"""What must hold for whatever comes in."""

import math

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastshap.engine.budget import Budget
from fastshap.engine.cutting import plan
from fastshap.reference import segment_reduce
from fastshap.sampling import draw_samples
from fastshap.text.groups import _SENTENCE_END, _abbreviates


@st.composite
def ragged(draw):
    groups = draw(st.lists(st.lists(st.integers(0, 9), max_size=6), max_size=7))
    values = draw(st.lists(st.floats(-8, 8, width=32) | st.just(math.nan), min_size=10, max_size=10))
    return groups, values


@given(ragged())
@settings(max_examples=150, deadline=None)
def test_segments_against_plain_python(case):
    groups, values = case
    members = torch.tensor([i for group in groups for i in group], dtype=torch.int64)
    offsets = torch.tensor([0, *map(len, groups)]).cumsum(0)
    rules = {
        "sum": math.fsum,
        "mean": lambda there: math.fsum(there) / len(there),
        "max": max,
        "min": min,
        "first": lambda there: there[0],
        "last": lambda there: there[-1],
        "signed_max": lambda there: max(there, key=abs),
    }
    for strategy, rule in rules.items():
        ours = segment_reduce(torch.tensor([values]), members, offsets, strategy)[0]
        for group, value in zip(groups, ours.tolist(), strict=True):
            there = [values[i] for i in group if not math.isnan(values[i])]
            assert math.isnan(value) if not there else math.isclose(value, rule(there), rel_tol=1e-5, abs_tol=1e-5)


@given(
    st.lists(st.tuples(st.integers(1, 400), st.integers(1, 3), st.integers(1, 30)), min_size=1, max_size=12),
    st.integers(1, 40) | st.just("auto"),
    st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_plans_hold_every_row_once(items, batch_size, equal):
    lengths, targets, rows = (list(column) for column in zip(*items, strict=True))
    seen = []
    for call in plan(lengths, targets, rows, Budget(batch_size, torch.device("cpu")), equal):
        assert batch_size == "auto" or sum(piece.hi - piece.lo for piece in call) <= batch_size
        assert len({targets[piece.item] for piece in call}) == 1
        assert not equal or len({lengths[piece.item] for piece in call}) == 1
        seen += [(piece.item, i) for piece in call for i in range(piece.lo, piece.hi)]
    assert sorted(seen) == [(item, i) for item, count in enumerate(rows) for i in range(count)]


@given(
    st.integers(-(2**63), 2**63 - 1),
    st.lists(st.integers(0, 2**31), min_size=1, max_size=20),
    st.integers(1, 70),
    st.sampled_from(["antithetic", "iid"]),
)
@settings(max_examples=100, deadline=None)
def test_samples_lie_inside_and_repeat(seed, ids, n, sampling):
    first, again = (draw_samples(seed, ids, n, sampling) for _ in range(2))
    assert np.array_equal(first.alphas, again.alphas)
    assert ((first.alphas > 0) & (first.alphas < 1)).all()
    assert len(first.alphas) == len(first.draws) == len(first.signs) == n


@given(st.text(max_size=200))
@settings(max_examples=200, deadline=None)
def test_sentence_marks_never_fail(text):
    for match in _SENTENCE_END.finditer(text):
        assert isinstance(_abbreviates(text, match), bool)
