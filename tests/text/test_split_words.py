"""Texts that come as words: each word is an element, and the model gets the tokens that it was trained on."""

import json

import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import PreTrainedTokenizerFast

import fastshap
from fastshap import AttributionOutput, GradientShap, InvalidArgumentError, InvalidTypeError, Words
from helpers.checks import assert_equal, assert_same
from helpers.families import tiny
from helpers.models import byte_tokenizer, typed

WORDS = ["The", "film", "'s", "end", "was", "New York", "moving!!"]
OTHER = ["n't", "dull", "."]
LABELS = {"id2label": {0: "O", 1: "B-PER", 2: "B-LOC"}, "label2id": {"O": 0, "B-PER": 1, "B-LOC": 2}}


@pytest.fixture(scope="module")
def tagger(default_pair):
    return tiny("Bert", "ForTokenClassification", default_pair[1], **LABELS), default_pair[1]


def test_words_are_elements_and_ids_are_the_tokenizers(bert_pair):
    tokenizer = bert_pair[1]
    outputs = GradientShap(*bert_pair, "auto", n_perturbations=4)([Words(WORDS), "a text", Words(OTHER)])
    for output, words in ((outputs[0], WORDS), (outputs[2], OTHER)):
        assert output.elements == words
        assert output.text == " ".join(words)
        assert [output.text[slice(*span)] for span in output.element_spans] == words
        encoding = tokenizer(words, is_split_into_words=True)
        assert output.model_inputs_to_explain["input_ids"][0].tolist() == encoding["input_ids"]
        numbers = [{encoding.word_ids()[token] for token in member} for member in output.element_tokens]
        assert numbers == [{number} for number in range(len(words))]


def test_every_granularity(bert_pair):
    explainer = GradientShap(*bert_pair, "auto", n_perturbations=2)
    elements = {
        one: explainer(Words([*WORDS, ".", "Ok", "then"]), granularity=one)[0].elements
        for one in ("tokenizer_word", "token", "part_sentence", "sentence")
    }
    assert elements["tokenizer_word"] == [*WORDS, ".", "Ok", "then"]
    assert elements["token"][:4] == ["The", "film", "'", "s"]
    assert elements["sentence"] == ["The film 's end was New York moving!!", ".", "Ok then"]
    (own,) = explainer(Words(WORDS), granularity=lambda text: [(0, text.index(" end"))])
    assert own.elements == ["The film 's"]


def test_alone_in_company_and_windowed(bert_pair):
    many = [Words(WORDS), Words(OTHER), "plain text", Words(WORDS * 30)]
    options = {"n_perturbations": 4, "return_convergence_delta": True, "granularity_aggregation_strategy": "sum"}
    together = GradientShap(*bert_pair, "auto", long_text="window", **options)(many)
    alone = GradientShap(*bert_pair, 1, long_text="window", **options)
    for one, output in zip(many, together, strict=True):
        assert_same(alone(one)[0].attributions, output.attributions)
    assert together[3].elements == WORDS * 30
    with pytest.warns(fastshap.TruncationWarning):
        (cut,) = GradientShap(*bert_pair, "auto", n_perturbations=2)(Words(WORDS * 30))
    assert cut.truncated
    assert cut.elements == (WORDS * 30)[: len(cut.elements)]


def test_results_keep_them(bert_pair, tmp_path):
    (output,) = GradientShap(*bert_pair, "auto", n_perturbations=4)(Words(WORDS), "all")
    assert "New York" in str(output)
    assert "New York" in output._repr_html_()
    assert_equal([AttributionOutput.from_json(output.to_json())], [output])
    fastshap.write_parquet([output], tmp_path / "one.parquet")
    (read,) = fastshap.read_parquet(tmp_path / "one.parquet")
    assert_equal([read], [output])
    assert fastshap.reproduce(read, *bert_pair).identical
    assert json.loads(output.to_json())["elements"] == WORDS


def test_a_tokenizers_result_that_came_split(bert_pair):
    model, tokenizer = bert_pair
    explainer = GradientShap(model, tokenizer, "auto", n_perturbations=2)
    expected = explainer([Words(WORDS), Words(["good"])])
    for given in (
        tokenizer([WORDS, ["good"]], is_split_into_words=True),
        tokenizer([WORDS, ["good"]], is_split_into_words=True, padding=True, return_tensors="pt"),
    ):
        for ours, theirs in zip(explainer(given), expected, strict=True):
            assert [one.lower() for one in theirs.elements] == [one.lower() for one in ours.elements]
            assert torch.equal(ours.attributions, theirs.attributions)
    (pair,) = GradientShap(model, typed(tokenizer), "auto", n_perturbations=2)(
        typed(tokenizer)(WORDS, OTHER, is_split_into_words=True)
    )
    assert [one.lower() for one in pair.elements] == [one.lower() for one in WORDS + OTHER]
    assert pair.segments == [0] * len(WORDS) + [1] * len(OTHER)


@pytest.mark.parametrize("text", ["½ cup of New York", "½", "film's end", "good", "a b"])
def test_a_tokenizers_result_of_a_text_is_a_text(bert_pair, text):
    explainer = GradientShap(*bert_pair, "auto", n_perturbations=2)
    assert explainer(bert_pair[1](text))[0].elements == [one.lower() for one in explainer(text)[0].elements]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (Words([]), "has no words"),
        (Words(["a", ""]), "Word 1, counted from 0, is empty"),
        (Words(["a", " \n"]), "Word 1, counted from 0, is empty"),
        (Words(["a", "b", None]), "Word 2, counted from 0, must be a string; got NoneType"),
        (Words(["a", "\u200b", "b"]), "nothing of word 1, counted from 0"),
        (Words(["\ud800"]), "Word 0, counted from 0, holds half of a surrogate pair"),
        ((Words(["a"]), Words(["b"])), "A pair is of two strings"),
        (["a", "b"], "fastshap.Words"),
    ],
)
def test_what_is_wrong_with_words(bert_pair, given, said):
    bad, good = GradientShap(*bert_pair, "auto", n_perturbations=2, on_error="record")([given, Words(OTHER)])
    assert said in bad.error
    assert good.elements == OTHER


@pytest.mark.parametrize("given", ["a text", 5, None, {"a": 1}, b"a"])
def test_words_are_a_list(given):
    with pytest.raises(InvalidTypeError, match="takes a list of strings"):
        Words(given)


def test_token_classification(tagger):
    explainer = GradientShap(*tagger, "auto", n_perturbations=4)
    (output,) = explainer(Words(WORDS), [[5, (1, "LOC"), ("film", "LOC")]])
    assert [name.split(": ")[1] for name in output.target_names] == ["New York", "film", "film"]
    first = [member[0] for member in output.element_tokens]
    assert output.model_inputs_to_explain["target_positions"][0].tolist() == [first[5], first[1], first[1]]
    assert torch.equal(output.attributions[1], output.attributions[2])
    assert fastshap.reproduce(output, *tagger).identical
    with pytest.raises(InvalidArgumentError, match="words 0 to 6, counted from 0, and none is 7"):
        explainer(Words(WORDS), [[7]])
    with pytest.raises(InvalidArgumentError, match="none is 559"):
        explainer([Words(WORDS * 80), Words(WORDS * 80)], [[0], [559]])
    # A text's numbers are those of tokens, as before.
    (text,) = explainer(["The film's end"], [[3]])
    assert text.model_inputs_to_explain["target_positions"][0].tolist() == [3]


def test_predicted_entities_are_runs_of_words(tagger):
    """A word has the label of its first token."""
    model, tokenizer = tagger
    words = WORDS + OTHER + WORDS[::-1]
    (output,) = GradientShap(*tagger, "auto", n_perturbations=2)(Words(words))
    encoding = tokenizer(words, is_split_into_words=True, return_tensors="pt")
    with torch.no_grad():
        labels = model(**encoding).logits[0].argmax(-1).tolist()
    first = [encoding.word_ids().index(number) for number in range(len(words))]
    inside = [word for word, place in zip(words, first, strict=True) if labels[place]]
    assert " ".join(name.split(": ")[1] for name in output.target_names) == " ".join(inside)
    assert output.model_inputs_to_explain["target_positions"][0].tolist() == [place for place in first if labels[place]]


def test_masks_and_scores_of_ones_own(default_pair):
    tokenizer = default_pair[1]
    model = tiny("Bert", "ForMaskedLM", tokenizer)
    (output,) = GradientShap(model, tokenizer, "auto", n_perturbations=2)(
        Words(["The", "[MASK]", "is", "dull."]), [["film"]]
    )
    assert output.elements == ["The", "[MASK]", "is", "dull."]
    assert output.target_names == ["film"]

    def size(outputs, inputs):
        return outputs.logits.square().mean((1, 2))[:, None]

    (own,) = GradientShap(model, tokenizer, "auto", n_perturbations=2, score=size)(Words(WORDS))
    assert own.elements == WORDS


def test_tokenizers_without_a_space_before_words(bert_pair):
    tokenizer = byte_tokenizer()
    model = tiny("Bert", "ForSequenceClassification", tokenizer)
    explainer = GradientShap(model, tokenizer, "auto", n_perturbations=2)
    with pytest.raises(InvalidArgumentError, match=r"reads 'Thefilm'\. Load it with add_prefix_space=True"):
        explainer(Words(WORDS))
    assert explainer(Words(["film"]))[0].elements == ["film"]
    ids = tokenizer(WORDS, is_split_into_words=True)
    (output,) = explainer(ids)  # of a model that was trained so
    assert output.elements == WORDS
    assert output.model_inputs_to_explain["input_ids"][0].tolist() == ids["input_ids"]
    core = byte_tokenizer().backend_tokenizer
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    spaced = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>", pad_token="<|end|>")
    (output,) = GradientShap(model, spaced, "auto", n_perturbations=2)(Words(WORDS))
    assert output.elements == WORDS
    assert output.text == " ".join(WORDS)
    special = ["film", "<|end|>"]  # which never has a space in it
    assert GradientShap(model, spaced, "auto", n_perturbations=2)(Words(special))[0].elements == special


def test_tasks_that_read_a_text(llama_pair, default_pair):
    for pair, options, targets in (
        (llama_pair, {}, ["dull"]),
        ((tiny("Bert", "ForQuestionAnswering", default_pair[1]), default_pair[1]), {}, None),
        ((tiny("Bert", "Model", default_pair[1]), default_pair[1]), {"task": "similarity"}, ["dull"]),
    ):
        with pytest.raises(InvalidTypeError, match="join them by spaces"):
            GradientShap(*pair, "auto", n_perturbations=2, **options)([Words(OTHER)], targets)
