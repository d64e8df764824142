"""Draws the picture in README from a real explanation: ``python -m tools.readme_image``."""

from __future__ import annotations

import io
import re
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

import fastshap
from fastshap.output.render.terminal import show

TEXTS = ("A gorgeous, witty film, but the ending is dull.", "not good at all")
OUT = Path(__file__).parent.parent / "docs" / "images" / "explain.svg"
_GREY = [(40, 40, 40)] * 8
_THEME = TerminalTheme((255, 255, 255), (40, 40, 40), _GREY, [*_GREY[:7], (255, 255, 255)])


def main() -> None:
    """Writes docs/images/explain.svg."""
    explainer = fastshap.GradientShap(*fastshap.load_default_model(), batch_size="auto", n_perturbations=50)
    console = Console(record=True, width=116, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    for text, output in zip(TEXTS, explainer(list(TEXTS)), strict=True):
        console.print(Text(text, style="italic"))
        show(output, console)
        console.print()
    svg = console.export_svg(title="fastshap explain", theme=_THEME)
    # The picture stands alone: no font is fetched from anywhere.
    svg = re.sub(r"@font-face\s*\{.*?\}", "", svg, flags=re.DOTALL).replace("Fira Code, monospace", "monospace")
    OUT.write_text(re.sub(r"[ \t]+\n", "\n", svg))


if __name__ == "__main__":
    main()
