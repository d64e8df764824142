"""Pairs of texts as one input of a classifier: inference between sentences, cross-encoders."""

import itertools

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaForSequenceClassification
from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

import fastshap
from fastshap import GradientShap, InvalidTypeError
from fastshap.sampling import draw_samples
from helpers.texts import SENTENCES

PAIRS = [
    ("A gorgeous, witty film, but the ending is dull.", "The ending is not good."),
    ("not good at all", "Nobody answered the phone, and the battery died after two days. The screen cracked!"),
    ("Simply wonderful.", "ok"),
    ("Dr. Smith loved it. Would I watch it again?", "Dr. Smith loved it. Would I watch it again?"),
]
N = 6
KINDS = ["BERT", "BERT, slow", "RoBERTa"]


def roberta():
    """With a tokenizer that puts two separators between the texts, and has no token types."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    named = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=named, initial_alphabet=alphabet)
    core.train_from_iterator(SENTENCES * 3, trainer)
    core.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=126,
        model_input_names=["input_ids", "attention_mask"],
    )
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=36,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=64,
        max_position_embeddings=128,
        type_vocab_size=1,
        num_labels=3,
        initializer_range=0.3,
    )
    return RobertaForSequenceClassification(config).eval(), tokenizer


@pytest.fixture(scope="module")
def kinds(bert_pair, tmp_path_factory):
    """Models by the names in ``KINDS``, with their tokenizers."""
    model, tokenizer = bert_pair
    place = tmp_path_factory.mktemp("slow") / "vocab.txt"
    vocabulary = tokenizer.get_vocab()
    place.write_text("\n".join(sorted(vocabulary, key=vocabulary.get)), encoding="utf-8")
    slow = BertTokenizerLegacy(str(place))
    assert not slow.is_fast
    return {"BERT": bert_pair, "BERT, slow": (model, slow), "RoBERTa": roberta()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_pair_in_every_form(kinds, kind):
    """As a tuple, as a pipeline takes it, and as a tokenizer returns it, alone and with others."""
    model, tokenizer = kinds[kind]
    explainer = GradientShap(model, tokenizer, n_perturbations=N)
    outputs = explainer(PAIRS)
    rows = [tokenizer(*pair) for pair in PAIRS]
    batch = tokenizer(*map(list, zip(*PAIRS, strict=True)), padding=True, return_tensors="pt")
    forms = {
        "mappings": explainer([{"text": first, "text_pair": second} for first, second in PAIRS]),
        "ids": explainer(rows),
        "a batch of ids": explainer(batch),
        "one at a time": [explainer([pair])[0] for pair in PAIRS],
        "one mapping": [explainer({"text": first, "text_pair": second})[0] for first, second in PAIRS],
        "a stream": list(explainer.iter_explain(iter(PAIRS))),
        "zip": explainer(zip(*zip(*PAIRS, strict=True), strict=True)),
    }
    for pair, row, output in zip(PAIRS, rows, outputs, strict=True):
        assert output.text == "\n".join(pair)
        assert output.model_inputs_to_explain["input_ids"][0].tolist() == row["input_ids"]
        with torch.no_grad():
            logits = model(**{name: torch.tensor([values]) for name, values in row.items()}).logits[0]
        assert output.predicted_label == model.config.id2label[int(logits.argmax())]
        assert output.probability == pytest.approx(float(logits.softmax(0).max()), rel=1e-4)
    for form, others in forms.items():
        for one, other in zip(outputs, others, strict=True):
            largest = float(one.attributions.abs().max())
            torch.testing.assert_close(
                one.attributions,
                other.attributions,
                rtol=0,
                atol=1e-5 * largest,
                msg=lambda m, form=form: f"{form}: {m}",
            )
            assert one.segments == other.segments


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("granularity", ["token", "word", "part_sentence", "sentence"])
def test_no_element_crosses_from_one_text_to_the_other(kinds, kind, granularity):
    """Also where neither text ends a sentence, and where both are the same."""
    explainer = GradientShap(*kinds[kind], "auto", granularity, n_perturbations=2)
    for (first, second), output in zip(PAIRS, explainer(PAIRS), strict=True):
        border = len(first) + 1
        assert {*output.segments} == {0, 1}
        assert output.segments == sorted(output.segments)
        for element, (start, end), segment in zip(output.elements, output.element_spans, output.segments, strict=True):
            assert (start >= border) if segment else (end < border)
            assert (second[start - border : end - border] if segment else first[start:end]) == element
        of_texts = [explainer(text)[0].elements for text in (first, second)]
        for number, elements in enumerate(of_texts):
            ours = [element for element, one in zip(output.elements, output.segments, strict=True) if one == number]
            assert ours == elements


def test_segments_of_all_tokens(bert_pair):
    (output,) = GradientShap(*bert_pair, granularity="all_tokens", n_perturbations=2)(PAIRS[2:3])
    marks = [i for i, element in enumerate(output.elements) if element == "[SEP]"]
    assert output.segments == [0] * (marks[0] + 1) + [1] * (marks[1] - marks[0])


@pytest.mark.parametrize("kind", KINDS)
def test_company_and_padding_change_nothing(kinds, kind):
    together = GradientShap(*kinds[kind], "auto", n_perturbations=N, return_convergence_delta=True)(PAIRS)
    for pair, output in zip(PAIRS, together, strict=True):
        (alone,) = GradientShap(*kinds[kind], 1, n_perturbations=N, return_convergence_delta=True)([pair])
        for name in ("attributions", "standard_error", "unassigned"):
            one, other = getattr(output, name), getattr(alone, name)
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * float(output.attributions.abs().max()))
    mixed = GradientShap(*kinds[kind], "auto", n_perturbations=N)([SENTENCES[0], *PAIRS, SENTENCES[1]])
    for one, other in zip(mixed[1:-1], together, strict=True):
        torch.testing.assert_close(
            one.attributions, other.attributions, rtol=0, atol=1e-5 * float(one.attributions.abs().max())
        )
    assert {*mixed[0].segments} == {0}


@pytest.mark.parametrize("kind", KINDS)
def test_the_elements_of_both_texts_and_the_rest_add_up(kinds, kind):
    explainer = GradientShap(
        *kinds[kind], "auto", "word", "sum", n_perturbations=16, noise_std=0, return_convergence_delta=True
    )
    model, tokenizer = kinds[kind]
    for pair, output in zip(PAIRS, explainer(PAIRS, 1), strict=True):
        inputs = tokenizer(*pair, return_tensors="pt")
        given = {name: value for name, value in inputs.items() if name != "input_ids"}
        x = model.get_input_embeddings()(inputs["input_ids"])
        with torch.no_grad():
            difference = model(inputs_embeds=x, **given).logits - model(inputs_embeds=0 * x, **given).logits
        total = output.attributions[0].sum() + output.unassigned[0]
        torch.testing.assert_close(total - output.convergence_delta[0], difference[0, 1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_against_captum(kinds, kind, monkeypatch):
    """captum's GradientShap with the same positions on the path and no noise; it weights the input where we weight 0."""
    attr = pytest.importorskip("captum.attr")
    model, tokenizer = kinds[kind]
    for pair in PAIRS[:2]:
        (output,) = GradientShap(model, tokenizer, "auto", "all_tokens", noise_std=0, n_perturbations=N)([pair], 2)
        inputs = tokenizer(*pair, return_tensors="pt")
        ids = inputs.pop("input_ids")
        positions = 1 - draw_samples(0, ids[0].tolist(), N, "antithetic").alphas.astype(np.float64)
        monkeypatch.setattr(np.random, "uniform", lambda low, high, size, positions=positions: positions.copy())

        def forward(z, inputs=inputs):
            return model(inputs_embeds=z, **{name: value.expand(len(z), -1) for name, value in inputs.items()}).logits

        x = model.get_input_embeddings()(ids).detach()
        theirs = attr.GradientShap(forward).attribute(x, torch.zeros_like(x), n_samples=N, stdevs=0.0, target=2)
        assert (output.attributions - theirs.sum(-1)).abs().max() < 1e-4 * theirs.sum(-1).abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_the_longer_text_is_cut_first(kinds, kind):
    long, short = "The film was not dull but witty. " * 40, "The ending is good."
    model, tokenizer = kinds[kind]
    explainer = GradientShap(model, tokenizer, "auto", n_perturbations=2, on_error="record")
    with pytest.warns(fastshap.TruncationWarning):
        outputs = explainer([(long, short), (short, long), (short, short)])
    assert [output.truncated for output in outputs] == [True, True, False]
    for output, kept in zip(outputs, (1, 0), strict=False):
        whole = [element for element, one in zip(output.elements, output.segments, strict=True) if one == kept]
        assert [element.lower() for element in whole] == ["the", "ending", "is", "good", "."]
        assert output.model_inputs_to_explain["input_ids"].shape[1] == explainer.task.max_length()


def test_a_pair_that_cannot_be_used_says_which_kind_is_wrong_and_harms_no_other(bert_pair, llama_pair):
    explainer = GradientShap(*bert_pair, n_perturbations=2, on_error="record")
    outputs = explainer([PAIRS[0], ("", "fine"), ("fine", "  "), ("fine", "half a \ud800 pair"), PAIRS[1]])
    assert [output.error is None for output in outputs] == [True, False, False, False, True]
    assert all("Of a pair, one text cannot be used." in output.error for output in outputs[1:4])
    assert outputs[1].text == "\nfine"
    for wrong in (("a", "b", "c"), ["a", "b"], ["a", "b", "c"]):
        with pytest.raises(
            InvalidTypeError, match=r"Text 1: Several strings.*A pair of texts is a tuple of two strings"
        ):
            GradientShap(*bert_pair)(["fine", wrong])
    for wrong in ({"text": "a", "text_pair": None}, {"text": ["a"], "text_pair": ["b"]}, {"text_pair": "b"}):
        with pytest.raises(InvalidTypeError, match="A pair as a mapping holds text and text_pair, a string each"):
            GradientShap(*bert_pair)(wrong)
    with pytest.raises(
        InvalidTypeError, match="Text 0: A pair of texts is one input of a classifier; LlamaForCausalLM"
    ):
        GradientShap(*llama_pair)([PAIRS[0]], ["so"])


@pytest.mark.parametrize("kind", KINDS)
def test_saved_loaded_and_computed_again(kinds, kind, tmp_path):
    explainer = GradientShap(*kinds[kind], "auto", n_perturbations=N)
    outputs = [explainer([pair])[0] for pair in PAIRS]
    fastshap.write_jsonl(outputs, tmp_path / "some.jsonl")
    fastshap.write_parquet(outputs, tmp_path / "some.parquet")
    backs = [*fastshap.read_jsonl(tmp_path / "some.jsonl"), *fastshap.read_parquet(tmp_path / "some.parquet")]
    for output, back in zip(itertools.cycle(outputs), backs, strict=False):
        assert back.to_json() == output.to_json()
        again = fastshap.reproduce(back, *kinds[kind])
        assert again.identical, again
        assert again.output.segments == output.segments
