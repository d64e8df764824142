"""What a measure found, and what it found of several methods side by side."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from textwrap import wrap
from typing import Any

import numpy as np

from fastshap.errors import InvalidArgumentError

_WIDE = 18  # characters of a column's head


@dataclass(frozen=True, eq=False)
class MetricResult:
    """A measure's value for each text, their mean, and how sure it is.

    ``a - b`` of two results for the same texts is the paired difference: a result of the texts that both have.

    Attributes:
        name: what was measured.
        per_text: a value for each text, in their order; NaN where the text was skipped. With several seeds, their mean.
        skipped: how many texts were skipped, by reason.
        higher_is_better: None where neither is.
        notes: how often something else that matters was the case.
        seed_standard_error: the standard error of ``mean`` over the seeds of a random method; NaN with one seed. It is what
            other seeds would change for the same texts, and is contained in ``standard_error``.
    """

    name: str
    per_text: tuple[float, ...]
    skipped: Mapping[str, int] = field(default_factory=dict)
    higher_is_better: bool | None = None
    notes: Mapping[str, int] = field(default_factory=dict)
    seed_standard_error: float = math.nan

    @property
    def values(self) -> np.ndarray:
        """(n,) float64: the values of the texts that were not skipped."""
        found = np.array(self.per_text, np.float64)
        return found[~np.isnan(found)]

    @property
    def count(self) -> int:
        """n, the number of texts that were not skipped."""
        return len(self.values)

    @property
    def mean(self) -> float:
        """Over the texts; NaN if all were skipped."""
        return float(self.values.mean()) if self.count else math.nan

    @property
    def standard_error(self) -> float:
        """Of the mean, over the texts: their standard deviation (n - 1) over the root of n; NaN for fewer than two."""
        return float(self.values.std(ddof=1) / math.sqrt(self.count)) if self.count > 1 else math.nan

    def __sub__(self, other: MetricResult) -> MetricResult:
        if not isinstance(other, MetricResult):
            return NotImplemented
        if len(self.per_text) != len(other.per_text):
            raise InvalidArgumentError(
                f"Only results for the same texts have a paired difference; these are for {len(self.per_text)} and "
                f"{len(other.per_text)} texts."
            )
        both = tuple(a - b for a, b in zip(self.per_text, other.per_text, strict=True))
        lost = sum(map(math.isnan, both))
        return MetricResult(
            f"{self.name}, difference",
            both,
            {"skipped in one of the two": lost} if lost else {},
            self.higher_is_better,
            seed_standard_error=math.hypot(self.seed_standard_error, other.seed_standard_error),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON: NaN is None."""
        return {
            "name": self.name,
            "mean": _plain(self.mean),
            "standard_error": _plain(self.standard_error),
            "seed_standard_error": _plain(self.seed_standard_error),
            "texts": self.count,
            "skipped": dict(self.skipped),
            "higher_is_better": self.higher_is_better,
            "notes": dict(self.notes),
            "per_text": [_plain(one) for one in self.per_text],
        }

    def __str__(self) -> str:
        seeds = "" if math.isnan(self.seed_standard_error) else f" (over seeds ± {self.seed_standard_error:.4f})"
        text = f"{self.name}: {self.mean:.4f} ± {self.standard_error:.4f}{seeds}, {_texts(self.count)}"
        return f"{text}{_listed('; skipped ', self.skipped)}{_listed('; ', self.notes)}"

    def __repr__(self) -> str:
        return f"<MetricResult {self}>"


class FaithfulnessTable:
    """Measures of several methods for the same texts.

    A measure's results hold the same texts for all methods: a text that one method has no value for is skipped in all.

    ``table[method, measure]`` is a :class:`MetricResult`; a measure is named by its label or by itself.

    Attributes:
        methods: their names.
        measures: the labels of the measures.
        results: by method and label.
        settings: how texts were perturbed, and which score was looked at.
    """

    def __init__(self, results: Mapping[tuple[str, str], MetricResult], settings: Mapping[str, str]) -> None:
        self.results = dict(results)
        self.methods = list(dict.fromkeys(method for method, _ in results))
        self.measures = list(dict.fromkeys(label for _, label in results))
        self.settings = dict(settings)

    def __getitem__(self, place: tuple[str, Any]) -> MetricResult:
        method, measure = place
        if (found := self.results.get((method, str(measure)))) is None:
            raise InvalidArgumentError(
                f"There is no {str(measure)!r} of {method!r}; methods are {', '.join(self.methods)}, measures "
                f"{', '.join(self.measures)}."
            )
        return found

    def difference(self, method: str, other: str, measure: Any) -> MetricResult:
        """``method``'s result minus ``other``'s, text by text."""
        return self[method, measure] - self[other, measure]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON: the results, and their paired differences from the first method's."""
        first = self.methods[0]
        return {
            "settings": self.settings,
            "methods": {m: {label: self[m, label].to_dict() for label in self.measures} for m in self.methods},
            "differences_from": first,
            "differences": {
                m: {label: self.difference(m, first, label).to_dict() for label in self.measures}
                for m in self.methods[1:]
            },
        }

    def __str__(self) -> str:
        first, better = self.methods[0], {True: "(higher)", False: "(lower)", None: ""}
        heads = [[*_wrapped(label), better[self[first, label].higher_is_better]] for label in self.measures]
        height = max(map(len, heads))
        rows = [["", *line] for line in zip(*([""] * (height - len(head)) + head for head in heads), strict=True)]
        rows += [[m, *(_figure(self[m, label]) for label in self.measures)] for m in self.methods]
        if len(self.methods) > 1:
            rows.append([f"difference from {first}", *[""] * len(heads)])
        for m in self.methods[1:]:
            rows.append([f"  {m}", *(_figure(self.difference(m, first, label), "+") for label in self.measures)])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        said: dict[str, list[str]] = {}
        for label in self.measures:
            one = self[first, label]
            said.setdefault(f"{_texts(one.count)}{_listed('; skipped ', one.skipped)}", []).append(label)
        counts = [*said] if len(said) == 1 else [f"{', '.join(labels)}: {what}" for what, labels in said.items()]
        how = "; ".join(f"{name}: {value}" for name, value in self.settings.items())
        few = (
            []
            if all(self[first, label].count > 1 for label in self.measures)
            else ["A standard error takes two texts."]
        )
        return "\n".join([*lines, *counts, *few, how])

    def __repr__(self) -> str:
        return f"<FaithfulnessTable of {', '.join(self.methods)}: {', '.join(self.measures)}>"


def gathered(values: Sequence[float | str], **of_result: Any) -> MetricResult:
    """A result, of each text's value or the reason why it was skipped."""
    reasons = Counter(one for one in values if isinstance(one, str))
    per_text = tuple(math.nan if isinstance(one, str) else float(one) for one in values)
    return MetricResult(per_text=per_text, skipped=dict(reasons), **of_result)


def over_seeds(of_seeds: Sequence[Sequence[float | str]]) -> tuple[list[float | str], float]:
    """Each text's mean over the seeds, or why it is skipped, and the standard error of the texts' mean over the seeds."""
    each: list[float | str] = []
    for of_text in zip(*of_seeds, strict=True):
        reasons = [one for one in of_text if isinstance(one, str)]
        each.append(reasons[0] if reasons else float(np.mean(of_text)))  # type: ignore[arg-type]
    kept = [i for i, one in enumerate(each) if not isinstance(one, str)]
    if len(of_seeds) < 2 or not kept:
        return each, math.nan
    means = [float(np.mean([float(of_seed[i]) for i in kept])) for of_seed in of_seeds]
    return each, float(np.std(means, ddof=1) / math.sqrt(len(means)))


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else value


def _texts(count: int) -> str:
    return f"{count} text{'' if count == 1 else 's'}"


def _wrapped(label: str) -> list[str]:
    """In lines, none of which begins with a percent sign."""
    return [line.replace("\xa0", " ") for line in wrap(label.replace(" %", "\xa0%"), _WIDE)]


def _figure(result: MetricResult, sign: str = "") -> str:
    return f"{result.mean:{sign}.3f} ± {result.standard_error:.3f}"


def _listed(before: str, counts: Mapping[str, int]) -> str:
    return before + ", ".join(f"{count} ({reason})" for reason, count in counts.items()) if counts else ""
