"""Whether what was found bears a claim out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bench.gpu.day.record import ABSENT, FAILED, OK, SKIPPED, STARTED, UNFINISHED, Line

PROVED, REFUTED, NOT_RUN = "proved", "refuted", "not run"


@dataclass(frozen=True)
class Verdict:
    """``why``: the figure, the first failure, or what is missing."""

    status: str
    why: str


class NotRunError(Exception):
    """A claim cannot be judged; the text says what is missing."""


@dataclass(frozen=True)
class Found:
    """All cases of a day, by step and name."""

    cases: Mapping[tuple[str, str], Line]

    @property
    def environment(self) -> dict[str, Any]:
        line = self.cases.get(("environment", "environment"))
        return (line or {}).get("data") or {}

    @property
    def on_a_gpu(self) -> bool:
        """By what the leader was asked for: that holds also where the environment's own case fails."""
        leader = self.cases.get(("day", "device"))
        return leader is not None and leader["data"] == "cuda"

    def data(self, step: str, case: str) -> dict[str, Any]:
        """What a case gave.

        Raises:
            NotRunError: it gave nothing.
        """
        line = self.cases.get((step, case))
        if line is None:
            raise NotRunError(f"the case did not begin: {step}, {case}")
        if line["status"] != OK:
            raise NotRunError(f"{case}: {line['status']}, {first_line(line['why'])}")
        return line["data"] or {}

    def beginning(self, step: str, start: str) -> list[tuple[str, dict[str, Any]]]:
        """What the cases gave whose names begin so, those that gave something."""
        found = [
            (case, line["data"] or {})
            for (its, case), line in self.cases.items()
            if its == step and case.startswith(start) and line["status"] == OK
        ]
        if not found:
            raise NotRunError(f"no case of {step} ended well: {start}")
        return found

    def tests(self, function: str) -> tuple[int | None, list[Line]]:
        """How many tests of a function were collected, and those that began."""
        counts = [
            line["data"][function]
            for (step, case), line in self.cases.items()
            if step == "tests" and case.startswith("(collected") and function in (line["data"] or {})
        ]
        begun = [
            line
            for (step, case), line in self.cases.items()
            if step == "tests" and case.split("::")[-1].split("[")[0] == function
        ]
        return (sum(counts) if counts else None), begun


Judge = Callable[[Found], Verdict]


def judged(judge: Judge, found: Found) -> Verdict:
    """A verdict whatever happens; a CPU proves nothing about a GPU."""
    try:
        verdict = judge(found)
    except NotRunError as missing:
        verdict = Verdict(NOT_RUN, str(missing))
    except Exception as error:
        verdict = Verdict(NOT_RUN, f"cannot be judged: {type(error).__name__}: {error}")
    if found.on_a_gpu or verdict.status == NOT_RUN:
        return verdict
    return Verdict(NOT_RUN, f"no GPU; the rehearsal would say {verdict.status}: {verdict.why}")


def first_line(text: Any) -> str:
    """The line that says most: the last of a traceback, shortened."""
    rows = [row.strip() for row in str(text).splitlines() if row.strip()]
    errors = [row[2:].strip() for row in rows if row.startswith("E ")]
    return (errors or rows or ["no reason given"])[0 if errors else -1][:200]


def by_tests(*functions: str) -> Judge:
    """Proved if all tests of these functions passed, refuted if one failed."""

    def judge(found: Found) -> Verdict:
        passed, lost = 0, []
        for function in functions:
            wanted, begun = found.tests(function)
            by = {status: [line for line in begun if line["status"] == status] for status in _STATES}
            if by[FAILED]:
                worst = by[FAILED][0]
                return Verdict(REFUTED, f"{len(by[FAILED])} failed, {worst['case'].split('::')[-1]}: {_reason(worst)}")
            passed += len(by[OK])
            if by[SKIPPED]:
                lost.append(f"{function}: {first_line(by[SKIPPED][0]['why'])}")
            elif wanted is None or len(by[OK]) < wanted:
                lost.append(f"{function}: {len(by[OK])} of {'unknown' if wanted is None else wanted} ran")
        if lost:
            raise NotRunError("; ".join(lost))
        return Verdict(PROVED, f"{passed} tests passed")

    return judge


_STATES = (OK, FAILED, SKIPPED, UNFINISHED, STARTED, ABSENT)


def _reason(line: Line) -> str:
    return first_line(line["why"])


def at_most(figure: float, limit: float, text: str) -> Verdict:
    return Verdict(PROVED if figure <= limit else REFUTED, text)


def worst(pairs: Iterable[tuple[str, float]], limit: float, unit: str) -> Verdict:
    """The largest of named figures is within a limit."""
    name, figure = max(pairs, key=lambda pair: pair[1])
    return at_most(figure, limit, f"at worst {figure:.3g} {unit} (limit {limit:g}): {name}")
