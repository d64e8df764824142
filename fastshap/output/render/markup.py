"""Text as HTML, where what is not seen is marked and nothing that it holds is markup."""

from __future__ import annotations

import re
from html import escape

# Characters that are not seen, or that reorder what is: controls, formats and fillers, but for the joiners U+200C and U+200D,
# which many scripts are spelt with, the signs of Arabic and its kin that enclose digits, and a line's end.
_INVISIBLE = re.compile(
    "[\x01-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\u3164\ufeff\uffa0\ufff0-\ufffb\U00013430-\U0001345f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
    "|\r(?!\n)"
)
# What HTML or UTF-8 cannot hold.
_IMPOSSIBLE = re.compile("[\0\ud800-\udfff]")


def _possible(value: str) -> str:
    return _IMPOSSIBLE.sub("\ufffd", value)


def marked(value: str) -> str:
    """Text as HTML of the same textContent; what is not seen stands in a box with its code, cut off from the rest."""
    found = _INVISIBLE.sub(
        lambda one: f'<i class="u" data-u="U+{ord(one[0]):04X}">{one[0]}</i>', escape(_possible(value))
    )
    return found.replace("\r", "&#13;")


def plain(value: str) -> str:
    """Text for an attribute or a title, where what is not seen is spelt out."""
    return escape(_INVISIBLE.sub(lambda one: f"[U+{ord(one[0]):04X}]", _possible(value)))
