"""What ``python -m bench`` found, written down: JSON, tables in Markdown, two pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.compare.pictures import draw
from bench.compare.tables import markdown


def write(record: dict[str, Any], directory: Path) -> list[Path]:
    """comparison.json, comparison.md and the pictures."""
    directory.mkdir(parents=True, exist_ok=True)
    data, text = directory / "comparison.json", directory / "comparison.md"
    data.write_text(json.dumps(record, indent=1) + "\n")
    text.write_text(markdown(record))
    return [data, text, *draw(record, directory)]
