"""How many samples reach an error, read off errors at several n."""

from __future__ import annotations

import math

import numpy as np


def calls_for(square_errors: dict[int, list[float]], level: float = 0.1) -> float:
    """Samples for this relative root mean square error: between two n on a log scale; beyond the last as 1 / n."""
    before: tuple[int, float] | None = None
    for n, values in square_errors.items():
        here = math.sqrt(np.mean(values))
        if here <= level:
            if before is None:
                return n * (here / level) ** 2
            share = math.log(before[1] / level) / math.log(before[1] / here)
            return float(before[0] * (n / before[0]) ** share)
        before = n, here
    assert before is not None
    return before[0] * (before[1] / level) ** 2
