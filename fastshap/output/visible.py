"""Text that cannot steer a terminal."""

from __future__ import annotations

import re
import unicodedata

_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_BREAKS = "\t\n\r\u2028\u2029"
_JOINERS = "\u200c\u200d"  # which emoji and several scripts are spelt with
_SPACE = re.compile(r"\s")


def printable(text: str) -> str:
    """The text with control and invisible formatting characters made visible, so that it cannot steer the terminal."""
    steering = {c for c in set(text) if unicodedata.category(c) in _HIDDEN} - set(_JOINERS)
    return text.translate({ord(c): " " if c in _BREAKS else "�" for c in steering})


def named(text: str) -> str:
    """A name where no running text surrounds it: without white space around it; of white space alone, signs for it (↵, ␣)."""
    return text.strip() or _SPACE.sub("␣", re.sub("\r\n?|\n", "↵", text)) or repr(text)
