"""Text that cannot steer a terminal."""

from __future__ import annotations

import unicodedata


def printable(text: str) -> str:
    """The text with control and invisible formatting characters made visible, so that it cannot steer the terminal."""
    kept = "\u200c\u200d"  # joiners, which emoji and several scripts are spelt with
    return "".join(c if unicodedata.category(c)[0] != "C" or c in kept else " " if c in "\t\n\r" else "�" for c in text)


def named(text: str) -> str:
    """A name where no running text surrounds it: without white space around it, and never of white space alone.

    A line break by itself is ↵; other white space stands in quotes.
    """
    return text.strip() or "↵" * (text.count("\n") or text.count("\r")) or repr(text)
