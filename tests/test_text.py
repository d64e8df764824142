"""Groups that show the original text."""

import pytest
from tokenizers import Tokenizer, models, normalizers
from transformers import PreTrainedTokenizerFast

from fastshap import Granularity
from fastshap.text import Encoded, _rebuild, encode, groups, join


def elements(tokenizer, text, granularity):
    (encoded,) = encode(tokenizer, [text], max_length=None)
    members, shown = groups(encoded, granularity)
    flat = [i for member in members for i in member]
    assert flat == sorted(set(flat))
    return shown


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("Interpreto is magical. Or is it?", ["Interpreto is magical.", "Or is it?"]),
        ("Dr. Smith said no. He left.", ["Dr. Smith said no.", "He left."]),
        ("Made in the U.S. by hand, e.g. here. Wow!", ["Made in the U.S. by hand, e.g. here.", "Wow!"]),
        ('"It is dull." So he said.', ['"It is dull."', "So he said."]),
        ("What?! No... Really!!", ["What?!", "No...", "Really!!"]),
        ("Version 2.0 of example.com is out. Great.", ["Version 2.0 of example.com is out.", "Great."]),
        ("no end at all", ["no end at all"]),
    ],
)
def test_sentences(default_pair, byte_tokenizer, text, sentences):
    assert elements(default_pair[1], text, Granularity.SENTENCE) == sentences
    assert [s.strip() for s in elements(byte_tokenizer, text, Granularity.SENTENCE)] == sentences


def test_parts_of_sentences(default_pair):
    text = "Well, it is 1,000 times better; Mr. Smith agrees: good."
    assert elements(default_pair[1], text, Granularity.PART_SENTENCE) == [
        *("Well,", "it is 1,000 times better;", "Mr. Smith agrees:", "good."),
    ]


def test_words_keep_case_and_accents(default_pair, byte_tokenizer):
    text = "Café GORGEOUS, unbelievably so!"
    assert elements(default_pair[1], text, Granularity.WORD) == ["Café", "GORGEOUS", ",", "unbelievably", "so", "!"]
    assert "".join(elements(byte_tokenizer, text, Granularity.WORD)) == text


def test_tokens_and_special_tokens(default_pair):
    assert elements(default_pair[1], "not good", Granularity.ALL_TOKENS) == ["[CLS]", "not", "good", "[SEP]"]
    assert elements(default_pair[1], "not good", Granularity.TOKEN) == ["not", "good"]


def test_special_token_written_in_the_text_is_text(default_pair):
    assert elements(default_pair[1], "a [SEP] b", Granularity.TOKEN) == ["a", "[SEP]", "b"]


def test_no_group_holds_input_and_target(byte_tokenizer):
    first, second = encode(byte_tokenizer, ["The film was", " simply dull. Yes."], max_length=None)
    for granularity in Granularity:
        members, shown = groups(join(first, second), granularity)
        assert not any(min(m) < len(first) <= max(m) for m in members)
        assert "".join(shown) == "The film was simply dull. Yes."
    assert groups(join(first, second), Granularity.SENTENCE)[1] == ["The film was", " simply dull.", " Yes."]


@pytest.mark.parametrize(
    ("tokens", "text", "words"),
    [
        (["[CLS]", "un", "##believ", "##ably", "good", "[SEP]"], "unbelievably good", ["unbelievably", "good"]),
        (["<s>", "▁un", "believ", "ably", "▁good", "</s>"], "unbelievably good", ["unbelievably", "good"]),
        (["Ġun", "believ", "ably", "Ġgood"], "unbelievably good", ["unbelievably", "good"]),
    ],
)
def test_tokenizers_without_offsets(tokens, text, words):
    special = [token.startswith(("[", "<")) for token in tokens]
    rebuilt, offsets = _rebuild(tokens, special)
    assert rebuilt == text
    encoded = Encoded(rebuilt, list(range(len(tokens))), special, offsets, tokens, None, False, len(tokens))
    assert groups(encoded, Granularity.WORD)[1] == words


def test_a_tokenizer_that_takes_a_text_for_one_word():
    """SentencePiece vocabularies without a pre-tokenizer, as Llama 2's and Mistral's: white space parts the words."""
    vocabulary = ["<unk>", "▁", "▁The", "▁film", "▁is", "▁du", "ll", "."]
    core = Tokenizer(models.Unigram([(piece, -1.0) for piece in vocabulary], unk_id=0))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)
    first, second = encode(tokenizer, ["The film", " is dull."], max_length=None, add_special_tokens=False)
    assert set(first.words) == {0}
    words = [word.strip() for word in groups(join(first, second), Granularity.WORD)[1]]
    assert words == ["The", "film", "is", "dull."]


def test_tokenizer_state_is_put_back(default_pair):
    tokenizer = default_pair[1]
    core = tokenizer.backend_tokenizer
    core.enable_truncation(max_length=17, stride=2)
    core.enable_padding(length=9)
    try:
        before = core.truncation, core.padding
        (encoded,) = encode(tokenizer, ["a b c d e f"], max_length=5)
        assert (len(encoded), encoded.truncated) == (5, True)
        assert (core.truncation, core.padding) == before
    finally:
        core.no_truncation()
        core.no_padding()
