"""A result as coloured words in a terminal, readable without colour too."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Iterator

from rich.cells import cell_len
from rich.console import Console
from rich.style import Style
from rich.text import Text

from fastshap.output.record import Record
from fastshap.output.render import wording
from fastshap.output.render.parts import Part, parts_of
from fastshap.output.visible import named, printable

# Blue and orange: told apart by people who do not tell red from green.
_FOR, _AGAINST = (33, 102, 222), (214, 96, 10)
_PAPER = (245, 245, 245)


def show(output: Record, console: Console | None = None, uncertain: bool = False) -> None:
    """Prints the elements with their scores below them, one block a target; blue supports the target, orange opposes it.

    Args:
        console: a rich console; by default standard output, with colour where it is a terminal and NO_COLOR is not set.
        uncertain: colour elements too whose 95 % interval contains zero.
    """
    console = console or Console(highlight=False)
    if output.error is not None:
        console.print(Text(f"not explained: {printable(output.error)}", style="bold"))
        return
    if (predicted := wording.prediction(output)) is not None:
        console.print(Text(printable(predicted)))
    rows = zip(output.target_names, output.attributions.tolist(), output.standard_error.tolist(), strict=True)
    few, any_plain = console.color_system in ("standard", "windows"), False
    for t, (name, row, errors) in enumerate(rows):
        known = wording.probability(output, t)
        about = ["" if known is None else f"probability {known:.3f}", wording.reliability(output, t)]
        console.print(
            Text(", ".join(filter(None, [f"target {printable(named(name))}", *about])), style="bold"), soft_wrap=True
        )
        unsure = [False] * len(row) if uncertain else wording.uncertain(output, t)
        any_plain |= any(unsure)
        looks = [not plain for plain in unsure]
        width = max(20, console.width - 2)
        style = _few_colours if few else _style
        for part in parts_of(output) or [Part("", 0, len(row))]:
            its = slice(part.first, part.end)
            words = zip(output.elements[its], row[its], errors[its], looks[its], strict=True)
            lines = [*_lines(words, wording.largest_of(row), width, style)]
            if part.name and lines:
                console.print(Text(f"  {part.name}", style="dim"))
            for line in lines:
                console.print(Text("  ").append_text(line), soft_wrap=True)
        if remarks := ", ".join(wording.remainders(output, t, "+.3f")):
            console.print(Text(f"  {remarks}", style="dim"), soft_wrap=True)
    legend = _legend(output, console.color_system is not None, any_plain)
    for line in Text(legend, style="dim").wrap(console, max(20, console.width - 2)):
        console.print(Text("  ").append_text(line))


def lines_of(output: Record) -> str:
    """What :func:`show` prints, without colour."""
    file = io.StringIO()
    show(output, Console(file=file, color_system=None, force_jupyter=False, highlight=False))
    return "\n".join(line.rstrip() for line in file.getvalue().rstrip().split("\n"))


def _lines(
    words: Iterable[tuple[str, float, float, bool]], largest: float, width: int, style: Callable[[float], Style]
) -> Iterator[Text]:
    """Rows of words, of their scores and of the standard errors, as wide as the terminal.

    Args:
        words: each with its score, standard error, and whether it has colour.
        largest: the score of full colour.
    """
    form = wording.form_of(largest)
    block, used = (Text(), Text(), Text()), 0
    for element, score, error, has_colour in words:
        if math.isnan(score):
            continue
        shown = printable(" ".join(named(element).split()))
        below = [f"{score:{form}}", "" if math.isnan(error) else f"±{error:{form[1:]}}"]
        cell = max(cell_len(shown), *map(len, below)) + 1
        if used and used + cell > width:
            yield from (line for line in block if line.plain.strip())
            block, used = (Text(), Text(), Text()), 0
        above, *numbers = block
        above.append(shown, style=style(wording.share(score, largest)) if has_colour else Style())
        above.append(" " * (cell - cell_len(shown)))
        for line, number in zip(numbers, below, strict=True):
            line.append(number.ljust(cell), style="dim")
        used += cell
    if used:
        yield from (line for line in block if line.plain.strip())


def _style(strength: float) -> Style:
    """Background from paper to full colour by strength; text black or white, whichever stands out."""
    end = _FOR if strength >= 0 else _AGAINST
    share = min(1.0, abs(strength))
    red, green, blue = (round(p + (e - p) * share) for p, e in zip(_PAPER, end, strict=True))
    dark = 0.299 * red + 0.587 * green + 0.114 * blue < 140
    return Style(color="bright_white" if dark else "black", bgcolor=f"rgb({red},{green},{blue})", bold=share > 0.5)


def _few_colours(strength: float) -> Style:
    """The same on a terminal of sixteen colours: which side, for all but the weakest."""
    if abs(strength) < 0.1:
        return Style()
    return Style(color="bright_white", bgcolor="blue") if strength > 0 else Style(color="black", bgcolor="yellow")


def _legend(output: Record, coloured: bool, any_plain: bool) -> str:
    plus, minus = ("blue (+)", "orange (-)") if coloured else ("+", "-")
    side = f"{plus} supports the target, {minus} opposes it" if output.reduction == "sum" else "larger weighs more"
    known = "± standard error; " if output.degrees_of_freedom > 0 else ""
    parts = [
        f"explains the {wording.explained(output)}, one score per {wording.unit(output)}: {side}",
        f"{known}{', '.join((*wording.drawn(output), f'seed {output.seed}'))}",
    ]
    if coloured and any_plain:
        parts.append(wording.of_uncertain(output))
    parts += filter(None, [wording.sequences(output)])
    if output.truncated:
        parts.append("the text was cut to what the model takes")
    if bool(output.attributions.isnan().any()):
        parts.append("each block shows what its target could see")
    return printable("; ".join(parts))
