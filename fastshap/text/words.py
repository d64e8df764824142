"""What people read as a word, found in the text alone, so that it is the same for every tokenizer (docs/adr/0016)."""

from __future__ import annotations

import re
import unicodedata

# A character that belongs to the one before it (an accent, an invisible sign, a skin tone) is looked for as _MARK.
_MARK, _JOINER = "\u0301", "\u200d"
_UNUSUAL = re.compile(r"[^\x00-\x7f\w\s]")
_SKIN_TONES = range(0x1F3FB, 0x1F400)

_PART = rf"[\w{_MARK}{_JOINER}]"
_LETTER = r"[^\W\d_]"
_SENTENCE_GOES_ON = r"(?!(?<=[a-zß-öø-ÿа-яё]\.)[A-ZÀ-ÖØ-ÞА-ЯЁ])"  # "dull.The" lacks a space
_JOIN = "|".join(
    (
        rf"['’‘＇‐‑-](?={_PART})",  # didn't, state-of-the-art
        rf"(?<={_LETTER})\.(?={_LETTER}){_SENTENCE_GOES_ON}",  # example.com
        r"(?<=\d)[.,:/](?=\d)",  # 3.50, 1,000, 10:30, 9/10
    )
)
_WORD = re.compile(
    r"(?=\S)(?:"  # otherwise each of these is tried at each space
    + "|".join(
        (
            r"\w+(?!\S)",  # most words: nothing else can match them
            r"(?:[A-Za-z][A-Za-z\d+.-]{0,19}://|www\.)\S*[\w/]",
            r"\w[\w.+-]{0,63}@\w+(?:[-.]\w+)+",  # an address of mail
            rf"(?:(?:{_LETTER}{_MARK}*\.)+{_LETTER}{_MARK}*|Ph\.D|[BM]\.Sc)(?!{_PART})\.?",  # U.S., e.g.
            rf"[@#]?{_PART}+(?:(?:{_JOIN}){_PART}+)*",  # with @name and #topic
            "[\U0001f1e6-\U0001f1ff]{2}",  # a flag
            r"(?<!\S)[!-/:-@\[-`{-~…]+(?!\S)",  # marks that stand alone: "...", ":-)"
            rf"([^\w\s])(?:\1|{_MARK}|{_JOINER}\S?)*",  # any other mark, or a run of it
        )
    )
    + ")"
)
# Scripts that put no space between words, by the beginnings of their characters' Unicode names.
_UNSPACED = ("CJK", "IDEOGRAPHIC", "FULLWIDTH", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")


def word_starts(text: str) -> list[int]:
    """Where each word begins; it ends before the white space that follows it, or where the next begins.

    Letters, digits and what belongs to them are a word; apostrophes and hyphens between them join, as do full stops between
    letters and ``. , : /`` between digits. So are addresses, ``@name``, ``#topic`` and letters with dots (U.S.). Every other
    mark is a word, as is a run of one mark, and a run of ASCII's that stands between white space.
    """
    if not text.isascii():
        text = _UNUSUAL.sub(_belonging, text)
    return [match.start() for match in _WORD.finditer(text)]


def _belonging(match: re.Match[str]) -> str:
    character = match.group()
    belongs = unicodedata.category(character) in ("Mn", "Mc", "Me", "Cf") or ord(character) in _SKIN_TONES
    return _MARK if belongs and character != _JOINER else character


def unspaced(character: str) -> bool:
    """Whether it is of a script that puts no space between words; False for no character."""
    return bool(character) and unicodedata.name(character, "").startswith(_UNSPACED)
