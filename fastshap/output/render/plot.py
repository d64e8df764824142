"""A result as a picture, with matplotlib."""

from __future__ import annotations

from typing import Any

import torch

from fastshap.errors import InvalidArgumentError
from fastshap.extras import needed
from fastshap.output.record import Record
from fastshap.output.render import wording
from fastshap.output.render.parts import parts_of
from fastshap.output.visible import named, printable
from fastshap.tasks import shown

# As in the terminal: blue supports the target, orange opposes it.
FOR, AGAINST = "#2166de", "#d6600a"
_NEUTRAL = "#d9dce0"  # of what may be zero
_QUIET = "#5f646b"  # of what tells parts of a text apart
_PLAIN = "\ngrey: the 95 % interval contains zero"
_LONGEST = 32  # characters of a label


def plot(record: Record, target: int, top: int, ax: Any, uncertain: bool = False) -> Any:
    """See :meth:`fastshap.AttributionOutput.plot`."""
    if record.error is not None:
        raise InvalidArgumentError(f"This text was not explained, so there is nothing to draw: {record.error}")
    axes = shown(record.model_task).map_axes
    if axes is not None:
        return _heat_map(record, axes, ax, uncertain)
    scores = record.attributions[target]
    strongest = scores.abs().argsort(descending=True, stable=True)[: max(1, top)].sort().values
    order = _with_headings(record, strongest.tolist())
    errors = record.standard_error[target].nan_to_num(0).tolist()
    values, deviations = (
        torch.tensor([torch.nan if isinstance(one, str) else column[one] for one in order])
        for column in (scores.tolist(), errors)
    )
    unsure = [False] * len(scores) if uncertain else wording.uncertain(record, target)
    plain = [not isinstance(one, str) and unsure[one] for one in order]
    names = [one if isinstance(one, str) else label(record.elements[one]) for one in order]
    ax = bars(names, values, deviations, deviations, ax, plain)
    for text, one in zip(ax.get_yticklabels(), order, strict=True):
        if isinstance(one, str):
            text.set(fontstyle="italic", color=_QUIET)
    ax.set_title(f"target {label(record.target_names[target])}", parse_math=False, loc="left")
    known = record.degrees_of_freedom > 0
    ax.set_xlabel(
        printable(f"part of the {wording.explained(record)}")
        + (", with its standard error" if known else "")
        + (_PLAIN if any(plain) else ""),
        parse_math=False,
    )
    return ax


def _with_headings(record: Record, elements: list[int]) -> list[int | str]:
    """Elements, with the name of each part before the first of its own."""
    order: list[int | str] = list(elements)
    for part in parts_of(record):
        first = next((one for one in order if not isinstance(one, str) and part.first <= one < part.end), None)
        if first is not None:
            order.insert(order.index(first), part.name)
    return order


def bars(
    names: list[str],
    values: torch.Tensor,
    below: torch.Tensor,
    above: torch.Tensor,
    ax: Any,
    plain: list[bool] | None = None,
) -> Any:
    """Horizontal bars, the first name on top, with error bars from ``below`` to ``above`` the values; all (n,).

    Args:
        plain: which of them have no colour.
    """
    ax = ax or _axes(figsize=(6, 0.8 + 0.28 * len(names)))
    places = range(len(names))
    colours = [FOR if value >= 0 else AGAINST for value in values.tolist()]
    hatches = ["" if value >= 0 else "///" for value in values.tolist()]  # told apart without colour too
    for i, without in enumerate(plain or ()):
        if without:
            colours[i], hatches[i] = _NEUTRAL, ""
    ax.barh(places, values.numpy(), color=colours, hatch=hatches, edgecolor="white", linewidth=0)
    ax.errorbar(
        values.numpy(),
        places,
        xerr=torch.stack((below, above)).numpy(),
        fmt="none",
        ecolor="black",
        elinewidth=1,
        capsize=2,
    )
    ax.set_yticks(places, names)
    for text in ax.get_yticklabels():
        text.set_parse_math(False)  # a $ in a text is a $
    ax.invert_yaxis()
    ax.axvline(0, color="black", linewidth=0.8)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
    return ax


def _heat_map(record: Record, axes: tuple[str, str], ax: Any, uncertain: bool) -> Any:
    """(t, G): what each target drew on; what it could not see stays blank, and what may be zero has the colour of zero."""
    rows, columns = record.attributions.shape
    ax = ax or _axes(figsize=(1.5 + 0.42 * columns, 1.6 + 0.36 * rows))
    largest = float(record.attributions.abs().nan_to_num(0).max()) or 1.0
    colours = needed("matplotlib.colors").LinearSegmentedColormap.from_list("fastshap", [AGAINST, "#f5f5f5", FOR])
    scores, plain = record.attributions, ""
    if not uncertain:
        unsure = torch.tensor([wording.uncertain(record, t) for t in range(rows)])
        scores = scores.masked_fill(unsure, 0)
        plain = _PLAIN if bool(unsure.any()) else ""
    image = ax.imshow(scores.numpy(), cmap=colours, vmin=-largest, vmax=largest, aspect="auto")
    ax.set_xticks(range(columns), [label(element) for element in record.elements], rotation=60, ha="right")
    ax.set_yticks(range(rows), [label(name) for name in record.target_names])
    for text in (*ax.get_xticklabels(), *ax.get_yticklabels()):
        text.set_parse_math(False)
    for part in parts_of(record):
        middle = (part.first + part.end - 1) / 2
        ax.text(middle, -0.6, part.name, ha="center", va="bottom", fontstyle="italic", color=_QUIET)
        if part.first:
            ax.axvline(part.first - 0.5, color=_QUIET, linewidth=0.8)
    ax.set_ylabel(axes[0])
    ax.set_xlabel(axes[1] + plain.replace("grey", "pale"))
    bar = ax.figure.colorbar(image, ax=ax)
    bar.set_label(printable(f"part of the {wording.explained(record)}"), parse_math=False)
    return ax


def _axes(figsize: tuple[float, float]) -> Any:
    _, ax = needed("matplotlib.pyplot", "plot").subplots(figsize=figsize, layout="constrained")
    return ax


def label(text: str) -> str:
    """One line of printable characters, not too long."""
    line = printable(" ".join(named(text).split()))
    return line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…"
