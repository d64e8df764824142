"""What came of a job."""

from __future__ import annotations

import textwrap
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fastshap.jobs.progress import duration
from fastshap.jobs.recorded import kind_of, message_of
from fastshap.jobs.store import about_of
from fastshap.output.noise import LEAST
from fastshap.output.visible import printable

if TYPE_CHECKING:
    import pyarrow as pa

_WIDE = 110  # characters of an error's message on a terminal


@dataclass
class JobSummary:
    """What came of a job.

    Attributes:
        rows: in the output, from this run and those before it.
        errors: rows with a recorded error, by its kind.
        messages: for each kind of error, the message of the first.
        truncated: rows whose text was longer than the model takes.
        noisy: rows with a target whose scores are mostly noise: reliability below 0.5. Rows of earlier versions do not count.
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
    noisy: int = 0
    samples: int = 0
    before: int = 0
    damaged: int = 0
    redone: int = 0
    seconds: float = 0.0
    startup: float = 0.0
    padding: float | None = None
    versions: dict[str, set[str]] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """One line about the rows and, if it is known, a second about the time."""
        failed = self.errors.total()
        kinds = (
            f" ({', '.join(f'{printable(kind)} {count:,}' for kind, count in self.errors.most_common())})"
            if failed
            else ""
        )
        explained = f"{self.rows - failed:,} explained{self._cut()}{self._noise()}"
        shown = f"{_rows(self.rows)}: {explained}, {failed:,} with an error{kinds}"
        return f"{shown}\n{duration(self.seconds)}, {self.rate:,.1f} texts a second" if self.seconds else shown

    def add(self, table: pa.Table) -> None:
        """Rows of the output."""
        self.rows += len(table)
        for name, version in (about_of(table) or {}).get("versions", {}).items():
            self.versions.setdefault(name, set()).add(version)
        errors = table.column("error").to_pylist()
        for error in errors:
            if error is not None:
                self.errors[kind_of(error)] += 1
                self.messages.setdefault(kind_of(error), message_of(error))
        self.truncated += sum(table.column("truncated").to_pylist())
        if "reliability" in table.schema.names:  # parts of earlier versions lack it
            self.noisy += sum(map(_is_noisy, table.column("reliability").to_pylist()))
        samples = table.column("n_perturbations").to_pylist()
        self.samples += sum(count for count, error in zip(samples, errors, strict=True) if error is None)

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
            "noisy": self.noisy,
            "samples": self.samples,
        }

    def lines(self) -> list[str]:
        """For a terminal."""
        failed = self.errors.total()
        shown = [f"rows             {self.rows:,}" + (f" ({self.before:,} from before)" if self.before else "")]
        shown.append(f"explained        {self.rows - failed:,}" + self._cut())
        shown.append(f"errors           {failed:,}")
        for kind, count in self.errors.most_common():
            shown.append(f"  {kind:<28} {count:,}")
            if message := self.messages.get(kind):
                shown.append(
                    f"    {'' if count == 1 else 'the first: '}{textwrap.shorten(message, _WIDE, placeholder=' …')}"
                )
        if self.rows > failed:
            shown.append(f"samples          {self.samples:,} ({self.samples / (self.rows - failed):.1f} a text)")
        if self.seconds:
            shown.append(f"time             {duration(self.seconds)}, {self.rate:,.1f} texts a second")
            shown.append(f"start-up         {duration(self.startup)}")
        if self.padding is not None:
            shown.append(f"padding          {self.padding:.1%} of the model calls' positions")
        if self.noisy:
            shown.append(f"mostly noise     {self.noisy:,} (reliability below {LEAST})")
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

    def _noise(self) -> str:
        return f" ({self.noisy:,} of them mostly noise)" if self.noisy else ""

    def _cut(self) -> str:
        return f" ({self.truncated:,} truncated to what the model takes)" if self.truncated else ""


def _is_noisy(shares: list[float] | None) -> bool:
    return any(share < LEAST for share in shares or ())


def _rows(count: int) -> str:
    return f"{count:,} {'row' if count == 1 else 'rows'}"
