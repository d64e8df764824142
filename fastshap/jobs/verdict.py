"""Does an output hold what its input asks for?"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from fastshap.errors import JobError
from fastshap.extras import needed
from fastshap.jobs.columns import Columns
from fastshap.jobs.digests import DIGEST, wrong
from fastshap.jobs.ids import Known, found, keys, short_hashes
from fastshap.jobs.inputs import rows_of
from fastshap.jobs.reading import Files
from fastshap.jobs.store import Store
from fastshap.jobs.summary import JobSummary
from fastshap.jobs.texts import text_hash, texts_in

if TYPE_CHECKING:
    import pyarrow as pa

_STATES = {
    "running": "is still running",
    "interrupted": "was interrupted",
    "switching": "is complete and was interrupted before it took the old output's place",
}
_COMPLETE = "Every row of the input is there exactly once"


@dataclass
class Verdict:
    """How an output and its input agree; ``good`` if they do.

    Attributes:
        state: "complete"; "running" or "interrupted" if the job has not ended; "switching" if an overwrite is complete but was
            interrupted before it took the old output's place.
        expected: how many rows the input has.
        summary: a summary of what is in the output.
        missing: how many ids of the input the output lacks.
        twice: how many ids the output holds more than once.
        surplus: how many ids the output holds that are not in the input.
        changed: how many rows have a text that has changed since.
        empty: how many rows have neither attributions nor an error.
        wrong: how many rows no longer hold what was written, by their digests, or have lost their digests.
        unchecked: how many rows an earlier version wrote without digests.
        damaged: the names of parts that cannot be read.
        replacing: "running" or "interrupted" if an overwrite has begun; the output is still the old one.
    """

    state: str
    expected: int
    summary: JobSummary
    missing: int = 0
    twice: int = 0
    surplus: int = 0
    changed: int = 0
    empty: int = 0
    wrong: int = 0
    unchecked: int = 0
    damaged: list[str] = field(default_factory=list)
    replacing: str = ""

    def __str__(self) -> str:
        """Whether all is well, in a few words, and a summary of the output."""
        shown = f"{'good' if self.good else 'not good'}: {'; '.join(self._findings()) or _COMPLETE}"
        return f"{shown}\n{self.summary}"

    @property
    def good(self) -> bool:
        """Every row of the input is in the output exactly once, with attributions or an error, as it was written."""
        wrong = self.missing or self.twice or self.surplus or self.changed or self.empty or self.wrong or self.damaged
        return self.state == "complete" and not wrong

    def lines(self) -> list[str]:
        """What to print on a terminal."""
        said = [f"input rows       {self.expected:,}", *self.summary.lines()]
        said += [f"{what:<16} {count:,}" for what, count in self._counts()]
        if self.unchecked:
            said.append(f"not checked      {self.unchecked:,} rows of an earlier version, which kept no digests")
        said += [f"damaged          {name}" for name in self.damaged]
        if self.replacing:
            said.append(
                f"An overwrite of this output {_STATES[self.replacing]}. Until it is complete, this is the output."
            )
        if self.good:
            return [*said, f"{_COMPLETE}."]
        if self.state != "complete":
            said.append(f"{self._of_state()}.")
        if self.state == "running":
            return said
        how = "--overwrite" if self.twice or self.surplus else "--resume"
        if self.changed and how == "--resume":
            how = "--resume --redo-changed (or --overwrite)"
        return [*said, f"The output is not complete; run it again with {how}."]

    def _counts(self) -> list[tuple[str, int]]:
        """What is wrong with rows, and how many are affected."""
        every = (
            ("missing", self.missing),
            ("there twice", self.twice),
            ("not in the input", self.surplus),
            ("text has changed", self.changed),
            ("without a result", self.empty),
            ("damaged rows", self.wrong),
        )
        return [(what, count) for what, count in every if count]

    def _of_state(self) -> str:
        return f"{'An overwrite' if self.state == 'switching' else 'The job'} {_STATES[self.state]}"

    def _findings(self) -> list[str]:
        """Why it is not good."""
        state = [] if self.state == "complete" else [self._of_state()]
        damaged = [f"damaged parts {len(self.damaged):,}"] if self.damaged else []
        return [*state, *(f"{what} {count:,}" for what, count in self._counts()), *damaged]


def verify(output: str | os.PathLike[str], source: str | os.PathLike[str]) -> Verdict:
    """Compares a job's output with its input: ids, texts, scores, and whether all parts are complete. Reads both to the end.

    It compares scores with the digest that was written beside them. That detects damage, not forgery.

    Args:
        output: the directory that :func:`fastshap.jobs.run` or ``fastshap run`` wrote.
        source: the input of that job.

    Raises:
        JobError: there is no output, or the input cannot be read.
        InvalidArgumentError: the input lacks a column.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as place:
        ...     source = pathlib.Path(place, "reviews.jsonl")
        ...     _ = source.write_text('{"id": 1, "text": "A gorgeous film."}')
        ...     summary = fastshap.jobs.run(source, f"{place}/scores", runner="local", n_perturbations=4)
        ...     fastshap.jobs.verify(f"{place}/scores", source).good
        True
    """
    store = Store(output)
    manifest = store.manifest()
    if manifest is None:
        raise JobError(f"{store.location} holds no output of fastshap run.")
    files = Files(source, Columns(**manifest["identity"]["columns"]))
    expected = rows_of(files.tables(texts=False), {})
    verdict = Verdict(_state(store, manifest), len(expected.ids), JobSummary(), replacing=_replacing(store, manifest))
    there = _looked_at(store, manifest, verdict)
    verdict.twice = len(there.twice())
    if expected.id_type == manifest["id_type"]:
        verdict.surplus = int((~found(there.sorted()[0], expected.ids.sorted())[0]).sum())
    else:
        verdict.surplus = len(there)
        there = Known()
    for table in files.tables():
        held, then = found(keys(table.column("id")), there.sorted())
        verdict.missing += int((~held).sum())
        now = short_hashes(map(text_hash, texts_in(table)))
        verdict.changed += int((held & (then != now)).sum())
    return verdict


def _looked_at(store: Store, manifest: dict[str, Any], verdict: Verdict) -> Known:
    """The ids in the output's parts. What is wrong with its rows is added to the verdict."""
    there = Known()
    for where, name in store.places(manifest):
        part = where.read(name)
        if part is None:
            verdict.damaged.append(name)
            continue
        verdict.summary.add(part)
        there.add(keys(part.column("id")), short_hashes(part.column("text_hash").to_pylist()))
        verdict.empty += int((_without_scores(part) & np.asarray(part.column("error").is_null())).sum())
        damaged = wrong(part)
        verdict.wrong += int(damaged.sum())
        verdict.unchecked += int((np.asarray(part.column(DIGEST).is_null()) & ~damaged).sum())
    return there


def _without_scores(part: pa.Table) -> np.ndarray:
    """(N,) whether each row has no attributions."""
    lengths = needed("pyarrow.compute", "tables").list_value_length(part.column("attributions"))
    return np.asarray(lengths.fill_null(0)) == 0


def _state(store: Store, manifest: dict[str, Any]) -> str:
    state: str = manifest["state"]
    return "interrupted" if state == "running" and not store.busy() else state


def _replacing(store: Store, manifest: dict[str, Any]) -> str:
    """How far an overwrite is that has not yet taken the output's place."""
    with contextlib.suppress(JobError):
        inner = store.next().manifest()
        if inner is not None and inner["job"] != manifest["job"]:
            return "running" if store.busy() else "interrupted"
    return ""
