"""What a person wants to see of a job: how far it is, and what came of it."""

from __future__ import annotations

import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from fastshap.jobs.store import about_of
from fastshap.output.progress import room

if TYPE_CHECKING:
    import pyarrow as pa

_EVERY = 30.0  # seconds between two lines, where there is no terminal for a bar


@dataclass
class Summary:
    """What came of a job.

    Attributes:
        rows: in the output, from this run and those before it.
        errors: rows with a recorded error, by its kind.
        truncated: rows whose text was longer than the model takes.
        samples: samples used for all rows.
        before: rows that earlier runs had written.
        damaged: parts of earlier runs that did not read or held other scores than were written; their rows were computed again.
        redone: rows of earlier runs whose text had changed, and that were computed again.
        versions: of each library, those that rows were computed with.
        seconds: of this run, from when the first text could be explained.
        startup: seconds before that: reading ids, starting workers, loading models.
        padding: share of the model calls' positions that were padding, in this run; None where nothing was computed.
    """

    rows: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    truncated: int = 0
    samples: int = 0
    before: int = 0
    damaged: int = 0
    redone: int = 0
    seconds: float = 0.0
    startup: float = 0.0
    padding: float | None = None
    versions: dict[str, set[str]] = field(default_factory=dict)

    def add(self, table: pa.Table) -> None:
        """Rows of the output."""
        self.rows += len(table)
        for name, version in (about_of(table) or {}).get("versions", {}).items():
            self.versions.setdefault(name, set()).add(version)
        kinds = [error.split(":")[0] for error in table.column("error").to_pylist() if error is not None]
        self.errors.update(kinds)
        self.truncated += sum(table.column("truncated").to_pylist())
        self.samples += sum(table.column("n_perturbations").to_pylist())

    @property
    def rate(self) -> float:
        """Texts a second in this run, after start-up."""
        return (self.rows - self.before) / self.seconds if self.seconds > 0 else 0.0

    def plain(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "rows": self.rows,
            "errors": dict(self.errors),
            "truncated": self.truncated,
            "samples": self.samples,
        }

    def lines(self) -> list[str]:
        """For a terminal."""
        failed = self.errors.total()
        shown = [f"rows             {self.rows:,}" + (f" ({self.before:,} from before)" if self.before else "")]
        shown.append(f"explained        {self.rows - failed:,}" + self._cut())
        shown.append(f"errors           {failed:,}")
        shown += [f"  {kind:<28} {count:,}" for kind, count in self.errors.most_common()]
        if self.rows > failed:
            shown.append(f"samples          {self.samples:,} ({self.samples / (self.rows - failed):.1f} a text)")
        if self.seconds:
            shown.append(f"time             {span(self.seconds)}, {self.rate:,.1f} texts a second")
            shown.append(f"start-up         {span(self.startup)}")
        if self.padding is not None:
            shown.append(f"padding          {self.padding:.1%} of the model calls' positions")
        if self.damaged:
            shown.append(f"damaged parts    {self.damaged:,}, their rows computed again")
        if self.redone:
            shown.append(f"changed texts    {self.redone:,}, explained again")
        for name, some in self.versions.items():
            if len(some) > 1:
                shown.append(
                    f"{name:<16} {', '.join(sorted(some))}: rows of several versions, see each part's metadata"
                )
        return shown

    def _cut(self) -> str:
        return f" ({self.truncated:,} truncated to what the model takes)" if self.truncated else ""


class Progress:
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
        said = f"{rate:,.1f} a second, {span(left)} left"
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


def span(seconds: float) -> str:
    """A length of time for people: 4.2 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60:,} h {minutes % 60} min"
