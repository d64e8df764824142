"""Text that cannot steer a terminal."""

from __future__ import annotations

import unicodedata


def printable(text: str) -> str:
    """The text with control and invisible formatting characters made visible, so that it cannot steer the terminal."""
    kept = "\u200c\u200d"  # joiners, which emoji and several scripts are spelt with
    return "".join(c if unicodedata.category(c)[0] != "C" or c in kept else " " if c in "\t\n\r" else "�" for c in text)
