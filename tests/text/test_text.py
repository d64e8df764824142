"""Groups that show the original text."""

import time

import pytest
import sentencepiece
from tokenizers import Tokenizer, models, normalizers
from transformers import (
    BertGenerationTokenizer,
    ByT5Tokenizer,
    CanineTokenizer,
    PhobertTokenizer,
    PreTrainedTokenizerFast,
)
from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

from fastshap import Granularity
from fastshap.output.render.plot import label
from fastshap.text.encode import encode, join
from fastshap.text.groups import groups
from fastshap.text.inputs import Tokens
from fastshap.text.words import word_starts
from helpers.texts import SENTENCES


def elements(tokenizer, text, granularity):
    (encoded,) = encode(tokenizer, [text], max_length=None)
    members, shown = groups(encoded, granularity)
    flat = [i for member in members for i in member]
    assert flat == sorted(set(flat))
    return shown


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("It is magical. Or is it?", ["It is magical.", "Or is it?"]),
        ("Dr. Smith said no. He left.", ["Dr. Smith said no.", "He left."]),
        ("Made in the U.S. by hand, e.g. here. Wow!", ["Made in the U.S. by hand, e.g. here.", "Wow!"]),
        ('"It is dull." So he said.', ['"It is dull."', "So he said."]),
        ("What?! No... Really!!", ["What?!", "No...", "Really!!"]),
        ("Version 2.0 of example.com is out. Great.", ["Version 2.0 of example.com is out.", "Great."]),
        ("no end at all", ["no end at all"]),
        ("He said \u201cNo!\u201d twice. (Really.) Fine.", ["He said \u201cNo!\u201d", "twice.", "(Really.)", "Fine."]),
        ("很好。不好！真的？", ["很好。", "不好！", "真的？"]),
        ("هل هو جيد؟ نعم.", ["هل هو جيد؟", "نعم."]),
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


WORDS = [
    ("I didn't like it, it’s dull.", "I|didn't|like|it|,|it’s|dull|."),
    ("rock'n'roll, the dogs' 'yes'", "rock'n'roll|,|the|dogs|'|'|yes|'"),
    ("a state-of-the-art well--known end—or", "a|state-of-the-art|well|--|known|end|—|or"),
    ("$3.50, 1,000 at 10:30: 9/10", "$|3.50|,|1,000|at|10:30|:|9/10"),
    ("the U.S. army, e.g. at 3 p.m.", "the|U.S.|army|,|e.g.|at|3|p.m."),
    ("dull.The end. See example.com.", "dull|.|The|end|.|See|example.com|."),
    ("https://x.org/a?b=c, me@x.org", "https://x.org/a?b=c|,|me@x.org"),
    ("@film #great snake_case", "@film|#great|snake_case"),
    ("wow!!! what?! :) ... no...", "wow|!!!|what|?|!|:)|...|no|..."),
    ("Cafe\u0301 ❤\ufe0f 👍🏽👍 👨\u200d👩 🇩🇪🇫🇷", "Cafe\u0301|❤\ufe0f|👍🏽👍|👨\u200d👩|🇩🇪|🇫🇷"),
    ("हिन्दी में है।", "हिन्दी|में|है|।"),
    (" a\n\nb\n", "a|b"),
]


@pytest.mark.parametrize(("text", "words"), WORDS)
def test_words_as_people_read(text, words):
    starts = word_starts(text)
    assert [text[a:b].strip() for a, b in zip(starts, [*starts[1:], len(text)], strict=True)] == words.split("|")


@pytest.mark.parametrize("text", ["I didn't pay $3.50, it’s state-of-the-art in the U.S.!", "e.g. me@x.org: wow!!!"])
def test_every_tokenizer_gives_the_same_words(default_pair, byte_tokenizer, slow_tokenizers, text):
    starts = word_starts(text)
    words = [text[a:b].strip() for a, b in zip(starts, [*starts[1:], len(text)], strict=True)]
    for tokenizer in (default_pair[1], byte_tokenizer, *(slow_tokenizers[kind] for kind in ("bytes", "characters"))):
        assert [element.strip() for element in elements(tokenizer, text, Granularity.WORD)] == words


def test_the_tokenizers_own_words(default_pair):
    shown = elements(default_pair[1], "didn't! U.S.", Granularity.TOKENIZER_WORD)
    assert shown == ["didn", "'", "t", "!", "U", ".", "S", "."]


def test_without_spaces_words_are_the_tokenizers(default_pair, byte_tokenizer):
    assert elements(default_pair[1], "iphone手机。", Granularity.WORD) == ["iphone", "手", "机", "。"]
    assert elements(byte_tokenizer, "电影很好。不好", Granularity.WORD) == ["电影很好", "。", "不好"]


def test_contractions_of_token_ids(default_pair):
    tokenizer = default_pair[1]
    (encoded,) = encode(tokenizer, [Tokens(tokenizer("I didn't, it’s 'so'")["input_ids"])], max_length=None)
    assert groups(encoded, Granularity.WORD)[1] == ["i", "didn't", ",", "it’s", "'", "so", "'"]


@pytest.mark.parametrize("text", ["a+" * 20000, "a." * 20000, "!?" * 20000, "www." + "!" * 20000, "👍\u200d" * 20000])
def test_words_of_a_long_run_take_no_long_time(text):
    start = time.process_time()
    word_starts(text)
    assert time.process_time() - start < 5


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


TEXT = "Café GORGEOUS, unbelievably so! 👍 ok"


@pytest.fixture(scope="module")
def slow_tokenizers(tmp_path_factory, default_pair):
    """One tokenizer without character offsets for each way of marking words."""
    folder = tmp_path_factory.mktemp("slow")
    vocabulary = sorted(default_pair[1].get_vocab(), key=default_pair[1].get_vocab().get)
    (folder / "vocab.txt").write_text("\n".join([*vocabulary, "👍"]))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*SENTENCES, TEXT] * 3),
        model_prefix=str(folder / "spiece"),
        vocab_size=120,
        hard_vocab_limit=False,
        character_coverage=1.0,
        minloglevel=2,
    )
    (folder / "bpe.txt").write_text("\n".join(f"{token} 1" for token in ["Ca@@", "fé", "so!", "ok"]))
    (folder / "merges.txt").write_text("\n".join(["C a 1", "f é</w> 1", "s o 1", "so !</w> 1", "o k</w> 1", ""]))
    return {
        "WordPiece": BertTokenizerLegacy(str(folder / "vocab.txt")),
        "SentencePiece": BertGenerationTokenizer(str(folder / "spiece.model")),
        "bytes": ByT5Tokenizer(),
        "characters": CanineTokenizer(),
        "BPE": PhobertTokenizer(str(folder / "bpe.txt"), str(folder / "merges.txt")),
    }


@pytest.mark.parametrize("kind", ["WordPiece", "SentencePiece", "bytes", "characters", "BPE"])
def test_tokenizers_without_offsets_show_the_text(slow_tokenizers, kind):
    tokenizer = slow_tokenizers[kind]
    assert not tokenizer.is_fast
    expected = ["Café", "GORGEOUS", ",", "unbelievably", "so", "!", "👍", "ok"]
    if kind == "BPE":
        assert elements(tokenizer, "Café so! ok", Granularity.TOKEN) == ["Ca", "fé", "so!", "ok"]
        assert elements(tokenizer, "Café so! ok", Granularity.WORD) == ["Café", "so!", "ok"]
        return
    assert [element.strip() for element in elements(tokenizer, TEXT, Granularity.WORD)] == expected
    sentences = [element.strip() for element in elements(tokenizer, TEXT, Granularity.SENTENCE)]
    assert sentences == ["Café GORGEOUS, unbelievably so!", "👍 ok"]
    one_word = [element.strip() for element in elements(tokenizer, "unbelievably", Granularity.WORD)]
    assert one_word == ["unbelievably"]


@pytest.mark.parametrize("kind", ["bytes", "characters"])
@pytest.mark.parametrize(
    "words",
    [
        ["हिन्दी", "में", "लिखा", "है", "और", "अच्छा", "है"],
        ["Cafe\u0301", "crème"],
        ["I", "❤\ufe0f", "you"],
        ["بِكُمْ", "هنا"],
    ],
)
def test_accents_and_joiners_stay_with_their_letters(slow_tokenizers, kind, words):
    tokenizer, text = slow_tokenizers[kind], " ".join(words)
    assert [element.strip() for element in elements(tokenizer, text, Granularity.WORD)] == words
    (string,), (ids,) = (encode(tokenizer, [s], max_length=None) for s in (text, Tokens(tokenizer(text)["input_ids"])))
    assert groups(string, Granularity.WORD)[0] == groups(ids, Granularity.WORD)[0]


def test_unknown_tokens_do_not_hide_the_words(slow_tokenizers):
    shown = elements(slow_tokenizers["WordPiece"], "a 漢 gorgeous film", Granularity.WORD)
    assert shown == ["a", "[UNK]", "gorgeous", "film"]


def test_cut_texts_without_offsets(slow_tokenizers):
    (encoded,) = encode(slow_tokenizers["WordPiece"], [TEXT], max_length=6)
    assert (len(encoded), encoded.truncated) == (6, True)
    assert groups(encoded, Granularity.WORD)[1][:2] == ["Café", "GORGEOUS"]


def test_token_ids_are_read_back(default_pair, byte_tokenizer):
    text = "Café GORGEOUS, unbelievably so! 👍 ok"
    for tokenizer in (default_pair[1], byte_tokenizer):
        (encoded,) = encode(tokenizer, [Tokens(tokenizer(text)["input_ids"])], max_length=None)
        assert encoded.input_ids == tokenizer(text)["input_ids"]
        shown = [element.strip() for element in groups(encoded, Granularity.WORD)[1]]
        if tokenizer is byte_tokenizer:
            assert shown == ["Café", "GORGEOUS", ",", "unbelievably", "so", "!", "👍", "ok"]
        else:  # an uncased vocabulary keeps neither case nor accents
            assert shown[:5] == ["cafe", "gorgeous", ",", "unbelievably", "so"]


def test_token_ids_that_no_text_would_get(byte_tokenizer):
    """A model may write what its tokenizer would have written otherwise: letter by letter, say."""
    letters = byte_tokenizer.convert_tokens_to_ids(list("ĠunderstoodĠso")) + byte_tokenizer("é👍!")["input_ids"]
    (encoded,) = encode(byte_tokenizer, [Tokens(letters)], max_length=None)
    assert encoded.text == " understood soé👍!"
    assert [element.strip() for element in groups(encoded, Granularity.WORD)[1]] == ["understood", "soé", "👍", "!"]
    assert len(groups(encoded, Granularity.TOKEN)[0]) == len(letters)


def test_token_ids_beyond_the_vocabulary_and_between_special_ones(byte_tokenizer):
    end = byte_tokenizer.eos_token_id
    ids = [end, *byte_tokenizer("It is.")["input_ids"], end, *byte_tokenizer("So what")["input_ids"], 5000]
    (encoded,) = encode(byte_tokenizer, [Tokens(ids)], max_length=None)
    assert encoded.special[0]
    assert encoded.tokens[-1] == "<5000>"
    assert groups(encoded, Granularity.WORD)[1][:3] == ["It", " is", "."]


def test_a_tokenizer_that_takes_a_text_for_one_word():
    """SentencePiece vocabularies without a pre-tokenizer, as Llama 2's and Mistral's: white space parts the words."""
    vocabulary = ["<unk>", "▁", "▁The", "▁film", "▁is", "▁du", "ll", "."]
    core = Tokenizer(models.Unigram([(piece, -1.0) for piece in vocabulary], unk_id=0))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)
    first, second = encode(tokenizer, ["The film", " is dull."], max_length=None, add_special_tokens=False)
    assert set(first.words) == {0}
    for granularity, ending in ((Granularity.WORD, ["dull", "."]), (Granularity.TOKENIZER_WORD, ["dull."])):
        words = [word.strip() for word in groups(join(first, second), granularity)[1]]
        assert words == ["The", "film", "is", *ending]


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


def test_labels_of_what_cannot_be_seen():
    assert [label(text) for text in ("\n", "\r\n\n", " \t", " film\n", "didn't")] == ["↵", "↵↵", "␣␣", "film", "didn't"]
