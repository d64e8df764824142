"""Which rows there are and which are done, 16 bytes a row or fewer: a million rows are no load, a hundred million still fit."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

_BYTES = 16


def keys(ids: pa.ChunkedArray) -> np.ndarray:
    """(N,) what stands for each id: whole numbers themselves, 16 bytes of BLAKE2 for strings."""
    if str(ids.type) == "int64":
        numbers: np.ndarray = ids.to_numpy()
        return numbers
    digests = [hashlib.blake2b(one.encode(), digest_size=_BYTES).digest() for one in ids.to_pylist()]
    return np.array(digests, f"S{_BYTES}")


def short_hashes(hashes: Iterable[str | None]) -> np.ndarray:
    """(N,) uint64: the first half of each text hash, 0 where there is none."""
    return np.array([0 if one is None else int(one[:16], 16) for one in hashes], np.uint64)


Sorted = tuple[np.ndarray, np.ndarray]  # (N,) keys in order, and (N,) their texts' hashes, 0 where not known


class Known:
    """Ids, with the hash of each one's text where that is known."""

    def __init__(self) -> None:
        self._added: list[Sorted] = []

    def add(self, some: np.ndarray, texts: np.ndarray | None = None) -> None:
        """(N,) each."""
        if len(some):
            self._added.append((some, np.zeros(len(some), np.uint64) if texts is None else texts))

    def __len__(self) -> int:
        return sum(len(some) for some, _ in self._added)

    def sorted(self) -> Sorted:
        """All of them, for :func:`found`."""
        if not self._added:
            return np.zeros(0, np.int64), np.zeros(0, np.uint64)
        every, texts = (np.concatenate(columns) for columns in zip(*self._added, strict=True))
        order = np.argsort(every, kind="stable")
        self._added = [(every[order], texts[order])]
        return self._added[0]

    def twice(self) -> np.ndarray:
        """Keys that are there more than once, in order."""
        every, _ = self.sorted()
        return np.unique(every[1:][every[1:] == every[:-1]])


def found(wanted: np.ndarray, known: Sorted) -> Sorted:
    """(N,) whether each of ``wanted`` is among the sorted keys, and (N,) its text's hash there, 0 where it is not."""
    every, texts = known
    if not len(every) or not len(wanted):
        return np.zeros(len(wanted), bool), np.zeros(len(wanted), np.uint64)
    places = np.searchsorted(every, wanted).clip(max=len(every) - 1)
    there = every[places] == wanted
    return there, np.where(there, texts[places], np.uint64(0))


def missing(wanted: Known, there: Known) -> int:
    """How many ids of one the other lacks."""
    held, _ = found(wanted.sorted()[0], there.sorted())
    return int((~held).sum())
