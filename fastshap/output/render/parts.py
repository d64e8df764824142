"""The parts of a text that are shown apart: for example the two texts of a pair."""

from __future__ import annotations

from collections.abc import Sequence
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
    return parted(record.segments, len(record.elements), record)


def texts_of(record: Record) -> list[str]:
    """The text of each part; the whole text, where it has one."""
    parts = parts_of(record) if record.element_spans else []
    spans = [[span for span in record.element_spans[one.first : one.end] if span != (0, 0)] for one in parts]
    return [record.text[its[0][0] : its[-1][1]] for its in spans if its] or [record.text]


def parted(segments: Sequence[int], count: int, record: Record) -> list[Part]:
    """Likewise, of ``count`` elements of a record's text with these segments."""
    its = shown(record.model_task)
    if its.reads_on or len(set(segments)) < 2 or len(segments) != count:
        return []
    found, first = [], 0
    for number, run in groupby(segments):
        end = first + len(list(run))
        found.append(Part(its.segments[min(number, len(its.segments) - 1)], first, end))
        first = end
    return found
