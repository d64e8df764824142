"""Places of a text by what stands there."""

import pytest

import fastshap
from fastshap.text.encode import encode
from fastshap.text.spans import span_in, tokens_at

TEXT = "The art of the party: art is not a part, but an end."


@pytest.mark.parametrize(
    ("given", "span"),
    [("of", (8, 10)), ("part", (35, 39)), ("party: art", (15, 25)), ("no", (29, 31)), ((4, 7), (4, 7))],
)
def test_what_is_found(given, span):
    """Whole words first: the part of "party" is none."""
    assert span_in(TEXT, given) == span


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("art", r"'art' occurs 2 times in the text; give the characters that you mean, one of \(4, 7\), \(22, 25\)."),
        ("film", "'film' does not occur in the text."),
        (" ", "' ' does not occur in the text."),
        ((3, 3), r"The characters \(3, 3\) are no part of the text, which has 52;"),
        ((50, 53), "no part of the text"),
        ((-2, 3), "no part of the text"),
        ((1, 2, 3), r"a string or the characters \(start, end\); got \(1, 2, 3\)."),
        (1.5, "a string or the characters"),
    ],
)
def test_what_is_not(given, message):
    with pytest.raises(fastshap.FastshapError, match=message):
        span_in(TEXT, given)


def test_tokens_at_a_place(default_pair):
    (encoded,) = encode(default_pair[1], [TEXT], max_length=None)
    for word in ("of", "party", "party: art is"):
        tokens = tokens_at(encoded, span_in(TEXT, word))
        assert [encoded.tokens[i] for i in tokens] == default_pair[1].tokenize(word)
    assert tokens_at(encoded, (0, len(TEXT))) == [i for i in range(len(encoded)) if not encoded.special[i]]
