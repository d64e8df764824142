"""What came of a job."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fastshap.jobs.progress import duration
from fastshap.jobs.recorded import kind_of
from fastshap.jobs.store import about_of

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass
class JobSummary:
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
        errors = table.column("error").to_pylist()
        self.errors.update(kind_of(error) for error in errors if error is not None)
        self.truncated += sum(table.column("truncated").to_pylist())
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
            shown.append(f"time             {duration(self.seconds)}, {self.rate:,.1f} texts a second")
            shown.append(f"start-up         {duration(self.startup)}")
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
