"""A text with several others that may go with it: choices of what follows it, hypotheses about it.

The model reads the text with each of them as a pair. In a row the text stands once and each of the others once, so that the
text's scores collect what it does in all pairs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from fastshap.checks import counted
from fastshap.errors import FastshapError, InvalidArgumentError
from fastshap.tasks.base import Task
from fastshap.tasks.sequences import joined
from fastshap.tasks.tokens import refused_if_cut
from fastshap.text.encode import Encoded, after, beginning, without
from fastshap.text.inputs import Pair


def rows_of(
    task: Task, texts: Sequence[str], others: Sequence[Sequence[str]], called: str
) -> list[Encoded | FastshapError]:
    """A row for each text, with a sequence for each of its others.

    A text that is too long beside the longest of its others is cut to fit.

    Args:
        called: what the others are, such as "choice".
    """
    pairs: list[Any] = [Pair(text, other) for text, some in zip(texts, others, strict=True) for other in some]
    encoded = iter(task.encode(pairs, own_pairs=True, max_length=None))
    return [_row(task, [next(encoded) for _ in some], called) for some in others]


def _row(task: Task, pairs: Sequence[Encoded | FastshapError], called: str) -> Encoded | FastshapError:
    if error := next((one for one in pairs if isinstance(one, FastshapError)), None):
        return error
    each = [one for one in pairs if isinstance(one, Encoded)]
    if any(not one.parts for one in each):
        return InvalidArgumentError(
            f"The tokenizer leaves nothing of the text, or of a {called}; there is nothing to explain."
        )
    starts = [one.parts[0] for one in each]
    text = beginning(each[0], starts[0])
    if any(one.input_ids[:start] != text.input_ids for one, start in zip(each, starts, strict=True)):
        return InvalidArgumentError(f"The tokenizer reads the text in another way beside each {called}.")
    limit = task.max_length()
    if limit is not None and (over := max(map(len, each)) - limit) > 0:
        own = [i for i, special in enumerate(text.special) if not special]
        if over >= len(own):
            longest = counted(max(len(one) for one in each) - len(text), "token")
            return InvalidArgumentError(
                f"The longest {called} has {longest}, which leaves the text no room in the {limit} that the model takes; "
                "shorten it."
            )
        text = without(text, {*(own[:over] if task.cut_end() == "beginning" else own[-over:])})
        text = dataclasses.replace(text, truncated=True)
        if error := refused_if_cut(task, text):
            return error
    rest = [_bare(after(one, start)) for one, start in zip(each, starts, strict=True)]
    return joined([text, *rest], [[0, number] for number in range(1, len(rest) + 1)])


def _bare(encoded: Encoded) -> Encoded:
    """Without the white space that parted it from the text before."""
    lost = len(encoded.text) - len(encoded.text.lstrip())
    offsets = [(max(0, a - lost), max(0, b - lost)) for a, b in encoded.offsets]
    return dataclasses.replace(encoded, text=encoded.text[lost:], offsets=offsets)
