"""What tokens look like in the text, for tokenizers and token ids that come without character offsets."""

from __future__ import annotations

import unicodedata
import weakref
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]

BEGINS = ("▁", "Ġ")  # SentencePiece, byte-level BPE: mark a word's first token
_CONTINUES = "##"  # WordPiece: marks every further token
_GOES_ON = "@@"  # marks every token but the word's last
_ENDS = "</w>"  # marks a word's last token
_schemes: weakref.WeakKeyDictionary[Any, str | None] = weakref.WeakKeyDictionary()


def scheme(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The marker by which the vocabulary tells where words begin or end; None where it has none (characters, bytes)."""
    if tokenizer not in _schemes:
        tokens = list(tokenizer.get_vocab())
        counts = {marker: sum(token.startswith(marker) for token in tokens) for marker in (*BEGINS, _CONTINUES)}
        counts |= {marker: sum(token.endswith(marker) for token in tokens) for marker in (_GOES_ON, _ENDS)}
        best = max(counts, key=lambda marker: counts[marker])
        _schemes[tokenizer] = best if counts[best] > len(tokens) // 100 else None
    return _schemes[tokenizer]


def words(tokens: Sequence[str], marker: str | None) -> list[int]:
    """The number of the word that each token belongs to, by the tokens' markers."""
    if marker in BEGINS:
        begins = [token.startswith(marker) for token in tokens]
    elif marker == _CONTINUES:
        begins = [not token.startswith(marker) for token in tokens]
    elif marker == _GOES_ON:
        begins = [False, *(not token.endswith(marker) for token in tokens[:-1])]
    elif marker == _ENDS:
        begins = [False, *(token.endswith(marker) for token in tokens[:-1])]
    else:
        begins = [False] * len(tokens)  # white space alone tells
    numbers, number = [], 0
    for i, begin in enumerate(begins):
        number += begin and i > 0
        numbers.append(number)
    return numbers


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """What the tokenizer makes of ids, nothing left out or tidied up."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def spell(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], tokens: Sequence[str], marker: str | None
) -> tuple[str, list[Span]]:
    """A text that reads as the tokens do, and the characters of each token in it.

    Tokens that only together make a character (bytes of an emoji, say) share its characters.
    """
    numbers = words(tokens, marker)
    text, spans, start = "", [], 0
    for end in range(1, len(ids) + 1):
        piece = decode(tokenizer, ids[start:end])
        if (not piece or piece.endswith("�")) and end < len(ids) and end - start < 4:
            continue
        if marker in (_CONTINUES, _GOES_ON, _ENDS):
            piece = piece.strip().removeprefix(_CONTINUES).removesuffix(_GOES_ON).removesuffix(_ENDS)
        apart = start > 0 and numbers[start] != numbers[start - 1]
        text += " " * (apart and not piece[:1].isspace())
        spans += [(len(text), len(text) + len(piece))] * (end - start)
        text += piece
        start = end
    return text, spans


def align(text: str, spelled: str, spans: Sequence[Span]) -> list[Span] | None:
    """The same spans in the text itself, where the two read alike but for case, accents and white space; else None.

    The spelled text may end earlier, when the tokens were cut.
    """
    theirs, ours = _folded(text), _folded(spelled)
    if not ours or [c for c, _ in theirs[: len(ours)]] != [c for c, _ in ours]:
        return None
    place = {at: theirs[k][1] for k, (_, at) in reversed(list(enumerate(ours)))}
    last = {at: theirs[k][1] + 1 for k, (_, at) in enumerate(ours)}
    found: list[Span] = []
    for a, b in spans:
        inside = [at for at in range(a, b) if at in place]
        before = found[-1] if found else (0, 0)
        if inside:
            found.append((place[inside[0]], _with_marks(text, last[inside[-1]])))
        else:  # white space belongs to what follows, a mark alone to what it marks
            found.append((before[1], before[1]) if spelled[a:b].isspace() else before)
    return found if all(x[0] <= y[0] for x, y in pairwise(found)) else None


def _with_marks(text: str, end: int) -> int:
    """The end of a span, beyond the accents and joiners that belong to its last character."""
    while end < len(text) and unicodedata.category(text[end])[0] in "MC" and not text[end].isspace():
        end += 1
    return end


def _folded(text: str) -> list[tuple[str, int]]:
    """Each visible character without case and accents, with its place."""
    return [
        (part, at)
        for at, character in enumerate(text)
        for part in unicodedata.normalize("NFKD", character.casefold())
        if not part.isspace() and unicodedata.category(part)[0] not in "MC"
    ]
