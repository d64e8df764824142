"""The result of an explanation: its data, and what can be done with them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, SupportsIndex, overload

import torch

from fastshap import checks
from fastshap.errors import InvalidArgumentError, InvalidTypeError, recorded
from fastshap.extras import needed
from fastshap.models.provenance import Provenance
from fastshap.output import interop, plain
from fastshap.output.disk import replacing
from fastshap.output.record import Record
from fastshap.output.visible import printable
from fastshap.settings import Settings
from fastshap.types import ModelTask

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console


class Top(NamedTuple):
    """One element of :meth:`AttributionOutput.top`."""

    element: str
    attribution: float
    standard_error: float  #: NaN where there is none
    place: int  #: among the elements, the column of ``attributions``
    span: tuple[int, int]  #: where it stands in ``text``; (0, 0) for special tokens


class Row(NamedTuple):
    """One element's score for one target."""

    target: str
    element: str
    start: int
    end: int
    attribution: float
    standard_error: float
    target_probability: float
    reliability: float  #: of the target
    segment: float  #: the part of the text, from 0


class AttributionOutput(Record):
    __slots__ = ()
    __doc__ = Record.__doc__

    @classmethod
    def failed(
        cls,
        error: Exception,
        text: str = "",
        *,
        model_task: ModelTask,
        settings: Settings | None = None,
        provenance: Provenance | None = None,
    ) -> AttributionOutput:
        """The output of a text that was not explained: without targets and elements, ``error`` says why.

        ``on_error="record"`` gives such outputs.

        Args:
            error: what was wrong; the output's ``error`` is the name of its class, a colon, and its message.
            text: the text, as far as there was one.
            model_task: what was to be explained.
            settings: the parameters that it was to be explained with; by default those of an explainer.
            provenance: the model that was to explain it.

        Example:
            >>> from fastshap import AttributionOutput, InvalidArgumentError, ModelTask
            >>> error = InvalidArgumentError("The text is empty.")
            >>> AttributionOutput.failed(error, model_task=ModelTask.CLASSIFICATION).error
            'InvalidArgumentError: The text is empty.'
        """
        from transformers import BatchEncoding  # here, so that importing fastshap loads no more of it than it must

        return cls(
            attributions=torch.zeros(0, 0, device="cpu"),
            elements=[],
            model_inputs_to_explain=BatchEncoding({}),
            targets=torch.zeros(0, dtype=torch.int64, device="cpu"),
            model_task=model_task,
            error=recorded(error),
            text=text,
            settings=settings or Settings(),
            provenance=provenance or Provenance(),
        )

    def __str__(self) -> str:
        """What :meth:`show` prints, without colour."""
        from fastshap.output.render.terminal import lines_of

        return lines_of(self)

    def __repr__(self) -> str:
        from fastshap.output.render.listing import name_of

        return f"AttributionOutput({name_of(self)})"

    def top(self, n: int = 5, target: int | str = 0) -> list[Top]:
        """The elements of the largest absolute scores, the largest first; what a causal target cannot see is left out.

        None of a text that was not explained.

        Args:
            n: so many at most.
            target: a target's number, or its name.

        Raises:
            InvalidArgumentError: there is no such target.
        """
        most = checks.whole(n, "n", least=0)
        if self.error is not None:
            return []
        t = self.number_of(target)
        scores = self.attributions[t]
        order = scores.abs().nan_to_num(-1).argsort(descending=True, stable=True).tolist()
        seen = [i for i in order if not math.isnan(scores[i])][:most]
        errors = self.standard_error[t].tolist() if self.standard_error.numel() else [math.nan] * len(scores)
        spans = self.element_spans or [(0, 0)] * len(scores)
        return [Top(self.elements[i], float(scores[i]), errors[i], i, spans[i]) for i in seen]

    def number_of(self, target: int | str) -> int:
        """A target's number, the row of ``attributions``: from its name, or counted from the end where negative.

        Raises:
            InvalidArgumentError: there is no such target, or no target at all.
        """
        if self.error is not None:
            raise InvalidArgumentError(f"This text was not explained, so it has no targets: {printable(self.error)}")
        names = self.target_names
        if isinstance(target, str):
            found = [t for t, name in enumerate(names) if target in (name, name.strip())]
            if found:
                return found[0]
            raise InvalidArgumentError(f"There is no target {target!r}; there are {', '.join(map(repr, names))}.")
        number = checks.whole(target, "target", least=-(2**63), also="a target's name")
        if not -len(names) <= number < len(names):
            raise InvalidArgumentError(f"There are {len(names)} targets; target {number} is none of them.")
        return number % len(names)

    def show(self, console: Console | None = None, uncertain: bool = False) -> None:
        """Prints the elements with their scores below them, one block a target; blue supports the target, orange opposes it.

        Args:
            console: a rich console; by default standard output, with colour where it is a terminal and NO_COLOR is not set.
            uncertain: colour elements too whose 95 % interval contains zero.
        """
        from fastshap.output.render.terminal import show

        show(self, console, uncertain)

    def to_html(self, path: str | os.PathLike[str], title: str = "fastshap", uncertain: bool = False) -> None:
        """Writes a page that stands by itself: it fetches nothing and runs no script. See :func:`fastshap.write_html`."""
        from fastshap.output.render.page import write_page

        with replacing(path) as beside, beside.open("w", encoding="utf-8", newline="\n") as file:
            write_page([self], file, title, uncertain=uncertain)

    def _repr_html_(self) -> str:
        """What notebooks show."""
        import secrets

        from fastshap.output.render.page import fragment

        return fragment(self, f"fs{secrets.token_hex(4)}")

    def plot(self, target: int | str = 0, top: int = 20, ax: Any = None, uncertain: bool = False) -> Any:
        """Draws the strongest elements with error bars, in reading order; for a generation a heat map of all targets.

        Args:
            target: the number or name of the target to draw, for a classification.
            top: elements at most, for a classification.
            ax: a matplotlib Axes; by default a new figure's.
            uncertain: colour elements too whose 95 % interval contains zero.

        Returns:
            The Axes.

        Raises:
            MissingPackageError: matplotlib is not installed.
        """
        from fastshap.output.render.plot import plot

        return plot(self, 0 if self.error is not None else self.number_of(target), top, ax, uncertain)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and strings, fit for JSON: NaN is None, infinities are strings. ``from_dict`` takes it back."""
        return plain.to_plain(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> AttributionOutput:
        """The output that ``to_dict`` was called on, to the bit; a function as inference mode comes back as its name.

        Raises:
            InvalidArgumentError: ``data`` is no output, or one of a later version; the message names the field.
        """
        output: AttributionOutput = plain.from_plain(cls, data)
        return output

    def to_json(self) -> str:
        """One line of JSON, as fastshap/schemas/output-3.json describes it."""
        return json.dumps(self.to_dict(), allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> AttributionOutput:
        """The output that ``to_json`` was called on. For files of many see :func:`fastshap.read_jsonl`.

        Raises:
            InvalidArgumentError: ``text`` is no JSON, no output, or one of a later version; the message names the field.
        """
        if not isinstance(text, str | bytes):
            raise InvalidTypeError(f"from_json takes a string; got {type(text).__name__}.")
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InvalidArgumentError(f"This is no JSON: {error}.") from None
        return cls.from_dict(data)

    def to_pandas(self) -> pd.DataFrame:
        """A row for each target and element.

        Columns: target, element, start, end (in ``text``), attribution, standard_error, target_probability, the target's
        reliability, and segment (the part of the text, from 0). They are NaN where they are not known.

        Raises:
            MissingPackageError: pandas is not installed.
        """
        pandas = needed("pandas", "tables")
        return pandas.DataFrame(list(self.rows()), columns=Row._fields)

    def rows(self) -> Iterator[Row]:
        """A row for each target and element, as :meth:`to_pandas` has them."""
        spans = self.element_spans or [(0, 0)] * len(self.elements)
        known = self.target_probabilities
        probabilities = [math.nan] * len(self.target_names) if known is None else known.tolist()
        shares = self.reliability.tolist()
        segments: list[float] = [*self.segments] or [math.nan] * len(self.elements)
        all_scores = zip(self.attributions.tolist(), self.standard_error.tolist(), strict=True)
        of_targets = zip(self.target_names, probabilities, shares, all_scores, strict=True)
        for target, probability, share, (scores, errors) in of_targets:
            elements = zip(self.elements, spans, scores, errors, segments, strict=True)
            for element, (start, end), score, error, segment in elements:
                yield Row(target, element, start, end, score, error, probability, share, segment)

    def to_interpreto(self) -> Any:
        """interpreto's own output object, for its ``plot_attributions`` and its Insertion and Deletion metrics.

        See :func:`fastshap.output.interop.to_interpreto`.
        """
        return interop.to_interpreto(self)

    def to_shap(self) -> Any:
        """A ``shap.Explanation``, which ``shap.plots.text`` draws. See :func:`fastshap.output.interop.to_shap`."""
        return interop.to_shap(self)

    def to_captum(self, true_class: str = "–") -> list[Any]:
        """A captum ``VisualizationDataRecord`` for each target. See :func:`fastshap.output.interop.to_captum`."""
        return interop.to_captum(self, true_class)


class AttributionOutputs(list[AttributionOutput]):
    """The outputs of one call, in the order of its texts: a list that shows itself, a line for each output."""

    @overload
    def __getitem__(self, index: SupportsIndex) -> AttributionOutput: ...

    @overload
    def __getitem__(self, index: slice) -> AttributionOutputs: ...

    def __getitem__(self, index: SupportsIndex | slice) -> AttributionOutput | AttributionOutputs:
        found = super().__getitem__(index)
        return AttributionOutputs(found) if isinstance(index, slice) else found  # type: ignore[arg-type, return-value]

    if not TYPE_CHECKING:  # a type checker knows the names that there are

        def __getattr__(self, name: str) -> NoReturn:
            what = f"{type(self).__name__!r} has no {name!r}"
            if not name.startswith("_") and hasattr(AttributionOutput, name):
                what += ": this is a list of outputs; take one: outputs[0]"
            raise AttributeError(what, name=name, obj=self)

    def __repr__(self) -> str:
        from fastshap.output.render.listing import lines_of

        return lines_of(self)

    def to_html(self, path: str | os.PathLike[str], title: str = "fastshap", uncertain: bool = False) -> None:
        """Writes one page of all outputs that stands by itself. See :func:`fastshap.write_html`."""
        from fastshap.output.render.page import write_page

        with replacing(path) as beside, beside.open("w", encoding="utf-8", newline="\n") as file:
            write_page(self, file, title, uncertain=uncertain)

    def _repr_html_(self) -> str:
        """What notebooks show: the first of them, and how many more there are."""
        import secrets

        from fastshap.output.render.listing import fragment

        return fragment(self, f"fs{secrets.token_hex(4)}")
