"""Few of many cases, so that every two values of two options still meet."""

import itertools
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import pytest

Case = Mapping[str, Any]
Apart = Collection[tuple[str, str]]  # options of which not every two values must meet


def pairs_of(case: Case, apart: Apart = ()) -> set[Any]:
    """Every option with its value, and every two of them, by name."""
    each = [(name, str(value)) for name, value in case.items()]
    every = itertools.combinations(each, 2)
    return {*each, *((one, other) for one, other in every if (one[0], other[0]) not in apart)}


def covering(cases: Iterable[Case], cost: Callable[[Case], float] = lambda case: 1.0, apart: Apart = ()) -> list[int]:
    """The places of cheap cases in which every value is, and every two values of two options meet that meet in any case.

    Args:
        apart: options, in the order that they have in a case, of which not every two values must meet.
    """
    cases = list(cases)
    pairs = [pairs_of(case, apart) for case in cases]
    costs = [cost(case) for case in cases]
    left, chosen = set[Any]().union(*pairs), list[int]()
    while left:
        best = max(range(len(cases)), key=lambda place: len(left & pairs[place]) / costs[place])
        left -= pairs[best]
        chosen.append(best)
    for place in sorted(chosen, key=lambda place: -costs[place]):  # what the others have made needless
        others = [other for other in chosen if other != place]
        if pairs[place] <= set[Any]().union(*(pairs[other] for other in others)):
            chosen = others
    return sorted(chosen)


def combined(
    cost: Callable[[Case], float] = lambda case: 1.0, apart: Apart = (), **options: Mapping[str, Any]
) -> pytest.MarkDecorator:
    """Parametrizes with all combinations of named values; those outside a covering selection are marked whole_matrix."""
    everything = [dict(zip(options, names, strict=True)) for names in itertools.product(*options.values())]
    chosen = set(covering(everything, cost, apart))
    parameters = [
        pytest.param(
            *(options[option][name] for option, name in case.items()),
            id="-".join(case.values()),
            marks=() if place in chosen else pytest.mark.whole_matrix,
        )
        for place, case in enumerate(everything)
    ]
    return pytest.mark.parametrize(tuple(options), parameters)
