"""What a benchmark says while it runs."""

from __future__ import annotations

import sys


def say(line: str) -> None:
    """Progress, apart from the result."""
    print(line, file=sys.stderr, flush=True)
