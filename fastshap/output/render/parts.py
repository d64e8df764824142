"""The parts of a text that are shown apart: for example the two texts of a pair."""

from __future__ import annotations

from itertools import groupby
from typing import NamedTuple

from fastshap.output.record import Record
from fastshap.tasks import shown


class Part(NamedTuple):
    """One part: its name, and its elements from ``first`` up to ``end``."""

    name: str
    first: int
    end: int


def parts_of(record: Record) -> list[Part]:
    """All parts in reading order; none where a text has one, where they read on as one text, or are not known."""
    its = shown(record.model_task)
    if its.reads_on or len(set(record.segments)) < 2 or len(record.segments) != len(record.elements):
        return []
    found, first = [], 0
    for number, run in groupby(record.segments):
        end = first + len(list(run))
        found.append(Part(its.segments[min(number, len(its.segments) - 1)], first, end))
        first = end
    return found
