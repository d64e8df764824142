"""Results of texts that come again within one call: they are not computed again."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

MOST = 2048  # texts that are remembered, those that came last


class Seen:
    """What was computed, under what decides it."""

    def __init__(self) -> None:
        self._state: Any = None
        self._found: dict[Hashable, Any] = {}

    def results(self, keys: Sequence[Hashable], state: Any, compute: Callable[[list[int]], Sequence[Any]]) -> list[Any]:
        """The result for each key.

        Args:
            state: the model's; where it differs from before, nothing is known.
            compute: results for the places of some keys, all different; not called for none.
        """
        if self._state != state:
            self._found.clear()
        new: dict[Hashable, int] = {}
        for i, key in enumerate(keys):
            if key not in self._found:
                new.setdefault(key, i)
        found: dict[Hashable, Any] = dict(zip(new, compute(list(new.values())) if new else (), strict=True))
        found |= {key: self._found.pop(key) for key in keys if key in self._found}
        self._found |= found  # the most recent last
        for key in list(self._found)[: max(0, len(self._found) - MOST)]:
            del self._found[key]
        self._state = state
        return [found[key] for key in keys]
