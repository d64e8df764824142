"""What is noted of the processes that explain, in case they die.

The class goes to its process by value: imports of the package, torch among them, would cost that process seconds and 300 MB.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from typing import Any

from fastshap.extras import needed


class Ledger:
    """What workers have begun and not ended: which batch, or which row, was at hand when one died."""

    def __init__(self) -> None:
        self._begun: Counter[str] = Counter()
        self._first: float | None = None
        self._padding = [0, 0]

    def begin(self, key: str) -> int:
        """Notes that this is begun, and returns how often it was before, without an end."""
        self._first = self._first or time.time()
        self._begun[key] += 1
        return self._begun[key] - 1

    def end(self, keys: list[str], padding: int = 0, positions: int = 0) -> None:
        """Notes that these ended, and the positions of the model calls that it took."""
        for key in keys:
            self._begun.pop(key, None)
        self._padding = [self._padding[0] + padding, self._padding[1] + positions]

    def first(self) -> float:
        """When the first batch was begun, in seconds since the epoch."""
        return self._first or time.time()

    def padding(self) -> tuple[int, int]:
        """Positions that were padding, and all of them."""
        return self._padding[0], self._padding[1]


def started(ray: Any, **options: Any) -> Any:
    """A ledger in a process of its own."""
    here, cloudpickle = sys.modules[__name__], needed("ray.cloudpickle", "ray")
    cloudpickle.register_pickle_by_value(here)
    try:
        return ray.remote(Ledger).options(num_cpus=0, **options).remote()
    finally:
        cloudpickle.unregister_pickle_by_value(here)
