"""The result of an explanation: its data, and what can be done with them."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from fastshap import interop, plain
from fastshap.disk import whole
from fastshap.errors import InvalidArgumentError
from fastshap.extras import needed
from fastshap.record import Record

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console


class AttributionOutput(Record):
    __slots__ = ()
    __doc__ = Record.__doc__

    def show(self, console: Console | None = None) -> None:
        """Prints the elements with their scores below them, one block a target; blue speaks for the target, orange against.

        Args:
            console: a rich console; by default standard output, with colour where it is a terminal and NO_COLOR is not set.
        """
        from fastshap.render.terminal import show

        show(self, console)

    def to_html(self, path: str | os.PathLike[str], title: str = "fastshap") -> None:
        """Writes a page that stands by itself: it fetches nothing and runs no script. See :func:`fastshap.write_html`."""
        from fastshap.render.page import write_page

        with whole(path) as beside, beside.open("w", encoding="utf-8", newline="\n") as file:
            write_page([self], file, title)

    def _repr_html_(self) -> str:
        """What notebooks show."""
        import secrets

        from fastshap.render.page import fragment

        return fragment(self, f"fs{secrets.token_hex(4)}")

    def plot(self, target: int = 0, top: int = 20, ax: Any = None) -> Any:
        """Draws the strongest elements with error bars, in reading order; for a generation a heat map of all targets.

        Args:
            target: the row of ``attributions`` to draw, for a classification.
            top: elements at most, for a classification.
            ax: a matplotlib Axes; by default a new figure's.

        Returns:
            The Axes.

        Raises:
            MissingPackageError: matplotlib is not installed.
        """
        from fastshap.render.plot import plot

        return plot(self, target, top, ax)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and strings, fit for JSON: NaN is None, infinities are strings. ``from_dict`` takes it back."""
        return plain.to_plain(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> AttributionOutput:
        """The output that ``to_dict`` was called on, to the bit; a function as inference mode comes back as its name.

        Raises:
            InvalidArgumentError: ``data`` is no output, or one of a later version.
        """
        output: AttributionOutput = plain.from_plain(cls, data)
        return output

    def to_json(self) -> str:
        """One line of JSON, as fastshap/schemas/output-1.json describes it."""
        return json.dumps(self.to_dict(), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> AttributionOutput:
        """The output that ``to_json`` was called on. For files of many see :func:`fastshap.read_jsonl`."""
        try:
            data = json.loads(text)
        except ValueError as error:
            raise InvalidArgumentError(f"This is no JSON: {error}.") from None
        return cls.from_dict(data)

    def to_pandas(self) -> pd.DataFrame:
        """A row for each target and element: target, element, start, end (in ``text``), attribution, standard_error.

        Raises:
            MissingPackageError: pandas is not installed.
        """
        pandas = needed("pandas", "tables")
        targets, elements = self.attributions.shape
        spans = self.element_spans or [(0, 0)] * elements
        return pandas.DataFrame(
            {
                "target": [name for name in self.target_names for _ in range(elements)],
                "element": self.elements * targets,
                "start": [start for start, _ in spans] * targets,
                "end": [end for _, end in spans] * targets,
                "attribution": self.attributions.flatten().numpy(),
                "standard_error": self.standard_error.flatten().numpy(),
            }
        )

    def to_interpreto(self) -> Any:
        """interpreto's own output object, for its ``plot_attributions`` and its Insertion and Deletion metrics.

        See :func:`fastshap.interop.to_interpreto`.
        """
        return interop.to_interpreto(self)

    def to_shap(self) -> Any:
        """A ``shap.Explanation``, which ``shap.plots.text`` draws. See :func:`fastshap.interop.to_shap`."""
        return interop.to_shap(self)

    def to_captum(self, true_class: str = "–") -> list[Any]:
        """A captum ``VisualizationDataRecord`` for each target. See :func:`fastshap.interop.to_captum`."""
        return interop.to_captum(self, true_class)


class AttributionOutputs(list[AttributionOutput]):
    """The outputs of one call, in the order of its texts."""
