"""How far a job is, for a person who waits."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

from fastshap.output.progress import room

_EVERY = 30.0  # seconds between two lines, where there is no terminal for a bar


class JobProgress:
    """A bar on standard error where that is a terminal; elsewhere a line now and then."""

    def __init__(self, total: int, before: int, shown: bool) -> None:
        self._total, self._before, self._done = total, before, before
        self._start = self._last = time.monotonic()
        self._shown = shown
        self._bar = tqdm(
            total=total,
            initial=before,
            unit=" texts",
            leave=False,
            disable=None if shown else True,
            **room(),  # type: ignore[arg-type]
            bar_format="{percentage:3.0f}%|{bar}| {n:,.0f} of {total:,.0f} texts{postfix}",
            postfix="starting",
        )

    def begin(self, when: float) -> None:
        """The first text could be explained at this time."""
        self._start = self._last = when

    def add(self, count: int) -> None:
        """So many more texts are explained."""
        self._done += count
        now = time.monotonic()
        rate = (self._done - self._before) / max(now - self._start, 1e-9)
        left = (self._total - self._done) / rate
        said = f"{rate:,.1f} a second, {duration(left)} left"
        if not self._bar.disable:
            self._bar.set_postfix_str(said, refresh=False)
            self._bar.update(count)
        elif self._shown and now - self._last >= _EVERY:
            self._last = now
            share = self._done / self._total
            print(
                f"fastshap: {self._done:,} of {self._total:,} texts ({share:.0%}), {said}", file=sys.stderr, flush=True
            )

    def close(self) -> None:
        self._bar.close()


def duration(seconds: float) -> str:
    """A length of time for people: 4.2 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60:,} h {minutes % 60} min"
