"""Which texts run next: short ones in the order in which they came, and long ones in between, a few rows at a time."""

from __future__ import annotations

from collections import deque

from fastshap.engine.stream import Text

_LARGEST = 3  # times a turn's work, where short texts wait for several turns
_SHARE = 0.25  # of the work, for long texts while short ones wait


class Lanes:
    """Texts under way.

    A text is long if it takes more work than one turn has room for. Long texts get a quarter of the work while short ones
    wait, and all of it otherwise, so that neither kind waits for the other to end.
    """

    def __init__(self) -> None:
        self._texts: deque[Text] = deque()
        self._credit = 0.0  # what long texts may use

    def __len__(self) -> int:
        return len(self._texts)

    def add(self, text: Text) -> None:
        """A text joins, as the last."""
        self._texts.append(text)

    def remove(self, texts: set[Text]) -> None:
        """Texts leave."""
        if texts:
            self._texts = deque(text for text in self._texts if text not in texts)

    def work(self, room: float) -> tuple[float, float]:
        """What is left to do for short texts, and for long ones."""
        left = [0.0, 0.0]
        for text in self._texts:
            left[_is_long(text, room)] += text.work
        return left[0], left[1]

    def next(self, room: float) -> list[tuple[Text, int]]:
        """The rows of the next turn, of about so much work, and at least one."""
        short = [text for text in self._texts if not _is_long(text, room)]
        long = [text for text in self._texts if _is_long(text, room)]
        for_long = 0.0
        if long:
            self._credit = min(self._credit + room * (_SHARE if short else 1), max(room, long[0].row))
            for_long = self._credit if self._credit >= long[0].row or not short else 0.0
        # Where short texts wait, whoever comes now waits for them anyway: a larger turn has fuller calls.
        waiting = sum(text.work for text in short)
        more = max(1.0, min(_LARGEST, waiting / room / 2))
        chosen = _short_rows(short, room * more - min(for_long, room * _SHARE))
        if for_long:
            rows = _long_rows(long, for_long)
            self._credit = max(0.0, self._credit - sum(count * text.row for text, count in rows))
            chosen += rows
        return chosen


def _is_long(text: Text, room: float) -> bool:
    return text.ran + text.work > room


def _short_rows(texts: list[Text], room: float) -> list[tuple[Text, int]]:
    """All rows of the oldest text, then of those nearest to it in length, which need least padding beside it."""
    if not texts:
        return []
    length = len(texts[0].item.input_ids)
    chosen: list[tuple[Text, int]] = []
    for text in sorted(texts, key=lambda text: abs(len(text.item.input_ids) - length)):  # the order of age among equals
        work = text.work
        if work <= room or not chosen:
            chosen.append((text, text.rows))
            room -= work
        if room <= 0:
            break
    return chosen


def _long_rows(texts: list[Text], room: float) -> list[tuple[Text, int]]:
    """Rows of the oldest that have room, at least one."""
    chosen: list[tuple[Text, int]] = []
    for text in texts:
        rows = min(text.rows, int(room // text.row))
        if rows == 0 and chosen:
            break
        chosen.append((text, max(1, rows)))
        room -= max(1, rows) * text.row
        if room <= 0:
            break
    return chosen
