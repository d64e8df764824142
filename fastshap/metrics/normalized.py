"""Normalised AOPC: where a method's AOPC lies between the worst and the best that any order of the elements reaches.

d(S) = f(x) - f(x without S)      AOPC of an order = 1/G sum_i d(its first i elements), i = 1..G
normalised AOPC = (AOPC - lower) / (upper - lower)      lower, upper: over all G! orders

The bounds are exact where elements are few: of the sets of elements, 2^G, each is run once, and the best order to each set goes
over the best to one with an element less. Beyond, a beam search keeps the best few sets of each size.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fastshap.checks import one_of, whole
from fastshap.metrics.measures import Measure, Skip, Steps, Target, first_of, ranked, with_text

_MOST_EXACT = 16  # elements; 65,536 rows a text
_FLAT = 1e-9  # a range of AOPC that is none
EXACT, BEAM = "exact bounds", "bounds by beam search"

_Bounds = tuple[float, float]


@dataclass(frozen=True)
class NormalizedAOPC(Measure):
    """AOPC over all numbers of elements, on the scale from the worst order of the elements (0) to the best (1).

    So models, and texts, can be compared. Source: Edin et al. 2025, "Normalized AOPC", arXiv 2408.08137. A text for which
    every order gives the same is skipped. Results note for how many texts the bounds are exact. Those of a beam search may
    be too narrow, so that a value lies outside 0 to 1.

    Args:
        kind: "comprehensiveness" replaces the most important elements first (higher is better), "sufficiency" the least
            important ones (lower is better).
        exact_up_to: elements up to which the bounds are exact, which takes 2^G rows; 16 at most.
        beam: width of the beam search beyond, which takes up to ``beam G^2`` rows.
    """

    kind: str = "comprehensiveness"
    exact_up_to: int = 8
    beam: int = 5
    higher_is_better: ClassVar[bool] = True

    def __post_init__(self) -> None:
        one_of(self.kind, "kind", ("comprehensiveness", "sufficiency"))
        whole(self.exact_up_to, "exact_up_to", least=0, most=_MOST_EXACT)
        whole(self.beam, "beam", least=1)
        object.__setattr__(self, "higher_is_better", self.kind == "comprehensiveness")

    def steps(self, target: Target) -> Steps:
        size = len(target.scores)
        order = ranked(target.scores)
        if self.kind == "sufficiency":
            order = order[::-1]
        f = yield with_text(first_of(order, range(1, size + 1)))
        aopc = float((f[0] - f[1:]).mean())
        lower, upper = yield from self._bounds(target, size)
        if upper - lower < _FLAT:
            raise Skip("every order of the elements has the same AOPC")
        return (aopc - lower) / (upper - lower)

    def note(self, size: int) -> str:
        """How the bounds of a text of so many elements are found."""
        return EXACT if size <= self.exact_up_to else f"{BEAM} of width {self.beam}"

    def _bounds(self, target: Target, size: int) -> Generator[np.ndarray, np.ndarray, _Bounds]:
        """The same for all methods, which ask for the same rows."""
        exact = size <= self.exact_up_to
        key = "bounds", None if exact else self.beam
        if exact:
            f = yield _masks(range(1 << size), size)
            if key not in target.memo:
                target.memo[key] = _exact(f[0] - f, size)
        elif key not in target.memo:
            target.memo[key] = yield from _searched(size, self.beam)
        bounds: _Bounds = target.memo[key]
        return bounds

    def __str__(self) -> str:
        return f"normalised AOPC {self.kind}"


def _exact(d: np.ndarray, size: int) -> _Bounds:
    """From d (2^G,), of the sets that the bits of their numbers say."""
    numbers = np.arange(1 << size)
    counts = sum((numbers >> i) & 1 for i in range(size))
    found = []
    for sign in (-1, 1):
        best = np.full(1 << size, -np.inf)
        best[0] = 0
        for count in range(1, size + 1):
            these = numbers[counts == count]
            without = these[:, None] & ~(1 << np.arange(size))
            before = np.where(without != these[:, None], best[without], -np.inf).max(1)
            best[these] = before + sign * d[these]
        found.append(sign * best[-1] / size)
    return float(found[0]), float(found[1])


def _searched(size: int, width: int) -> Generator[np.ndarray, np.ndarray, _Bounds]:
    """By beam search, for both bounds at once."""
    (f,) = yield _masks([0], size)
    beams: dict[int, dict[int, float]] = {sign: {0: 0.0} for sign in (-1, 1)}
    for _ in range(size):
        further = {}
        for sign, beam in beams.items():
            totals: dict[int, float] = {}
            for number, total in beam.items():
                for i in range(size):
                    if not number >> i & 1:
                        larger = number | 1 << i
                        totals[larger] = max(total, totals.get(larger, -np.inf))
            further[sign] = totals
        wanted = sorted({*further[-1], *further[1]})
        values = yield _masks(wanted, size)
        d = dict(zip(wanted, (f - values).tolist(), strict=True))
        for sign, totals in further.items():
            each = sorted(((total + sign * d[number], -number) for number, total in totals.items()), reverse=True)
            beams[sign] = {-number: total for total, number in each[:width]}
    lower, upper = (sign * max(beams[sign].values()) / size for sign in (-1, 1))
    return lower, upper


def _masks(numbers: Sequence[int], size: int) -> np.ndarray:
    """(sets, G) bool: the elements of each set, from its number's bits."""
    wide = -(-size // 8)
    bits = np.frombuffer(b"".join(number.to_bytes(wide, "little") for number in numbers), np.uint8)
    return np.unpackbits(bits.reshape(-1, wide), axis=1, bitorder="little")[:, :size].astype(np.bool_)
