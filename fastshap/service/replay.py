"""Explanations of an audit log, computed again."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

from fastshap.errors import FastshapError, InvalidArgumentError
from fastshap.explainer import GradientShap
from fastshap.models.provenance import Provenance
from fastshap.output.output import AttributionOutput
from fastshap.output.plain import tensor
from fastshap.output.visible import printable
from fastshap.reproduction import Reproduction, compared, reproduce
from fastshap.service.audit import Line
from fastshap.service.instances import Reader
from fastshap.service.limits import Limits
from fastshap.service.problems import ProblemError
from fastshap.settings import PARAMETERS, Settings
from fastshap.types.targets import Contrast

_OF_TARGETS = ("target", "targets", "contrast")
_ANY = Limits(max_targets=2**31)  # the service took what is read here


@dataclasses.dataclass(frozen=True)
class Replayed:
    """What came of one line.

    Attributes:
        line: the line.
        found: what came of computing it again; None if it was not.
        problem: why not.
    """

    line: Line
    found: Reproduction | None
    problem: str | None = None

    @property
    def good(self) -> bool:
        return self.found is not None and self.found.same

    def __str__(self) -> str:
        what = str(self.found) if self.found is not None else f"not computed again: {printable(self.problem or '')}"
        return f"{self.line.number}: {printable(self.line.id)}: {what}"


def replay(line: Line, model: Any, tokenizer: Any, task: str | None, texts: Mapping[str, dict[str, Any]]) -> Replayed:
    """Computes an explanation again and compares the scores.

    Args:
        task: its name, where the model leaves a choice.
        texts: from :func:`texts_of`, for lines that hold none.
    """
    if line.error is not None or line.output is None:
        return Replayed(line, None, f"the text was not explained then ({line.error})")
    try:
        if line.whole:
            return Replayed(line, reproduce(AttributionOutput.from_dict(line.output), model, tokenizer))
        if (given := texts.get(line.id)) is None:
            return Replayed(line, None, "the line holds no text; hand it in with --texts")
        return Replayed(line, _with_text(line, line.output, given, model, tokenizer, task))
    except ProblemError as problem:
        return Replayed(line, None, f"the text that was handed in: {problem.message}")
    except FastshapError as error:
        return Replayed(line, None, str(error))


def texts_of(path: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
    """The instances of a file of JSON lines, by their ids: a request's id, a slash and the instance's number (or 0 without).

    Raises:
        InvalidArgumentError: the file does not read, or a line is no object with an id.
    """
    found = {}
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                data = _parsed(line)
                if not isinstance(data, dict) or not isinstance(data.get("id"), str):
                    raise InvalidArgumentError(
                        f"{printable(os.fspath(path))}, line {number}: a line is an object with an id and the fields of an "
                        'instance, such as {"id": "…/0", "text": "…"}.'
                    )
                own = data.pop("id")
                found[own if "/" in own else f"{own}/0"] = data
    except OSError as error:
        raise InvalidArgumentError(f"{printable(os.fspath(path))}: {error.strerror}.") from None
    return found


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _with_text(
    line: Line, then: Mapping[str, Any], given: dict[str, Any], model: Any, tokenizer: Any, task: str | None
) -> Reproduction:
    """From the text itself, where the log has only settings and scores, and the targets if they are classes."""
    plain = dict(then["settings"])
    plain["n_perturbations"] //= plain.pop("rounds")
    settings = Settings.from_plain(plain).named()
    adds_up = then["convergence_delta"] is not None
    explainer = GradientShap(model, tokenizer, "auto", task=task, return_convergence_delta=adds_up, **settings)
    has_classes = explainer.task.targets_are_classes
    known = (*PARAMETERS, "max_new_tokens", *(_OF_TARGETS if has_classes else ()))
    asked = Reader(explainer, _ANY).asked({name: value for name, value in given.items() if name not in known})
    target = _classes(then) if has_classes else asked.target
    if target is None and line.target_given:
        raise InvalidArgumentError("the request had a target of its own; hand it in with the text")
    targets = None if target is None else [target]
    written = None if target is not None or line.max_new_tokens is None else {"max_new_tokens": line.max_new_tokens}
    (again,) = explainer.explain([asked.text], targets, generation_kwargs=written, progress=False)
    rows = then["attributions"]
    before = tensor(rows, len(rows), len(rows[0]))
    if before.shape != again.attributions.shape:
        raise InvalidArgumentError(
            f"the text that was handed in has {again.attributions.shape[1]} words and {again.attributions.shape[0]} targets, "
            f"and the line has {before.shape[1]} and {before.shape[0]}"
        )
    its = {one.name for one in dataclasses.fields(Provenance)}
    provenance = Provenance(**{name: value for name, value in then["provenance"].items() if name in its})
    return compared(before, provenance, again, explainer)


def _classes(then: Mapping[str, Any]) -> list[Any]:
    """The targets that a line holds: classes, and contrasts of two."""
    classes, weights = then["targets"], then["target_weights"]
    if weights is None:
        return list(classes)
    rows = [{weight: one for one, weight in zip(classes, row, strict=True) if weight} for row in weights]
    return [Contrast(row[1], row[-1]) if -1 in row else row[1] for row in rows]
