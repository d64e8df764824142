"""Every natural way to hand over texts and targets gives the same explanation."""

import concurrent.futures
import copy
import itertools

import datasets
import numpy as np
import pandas
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import fastshap
from fastshap import FastshapError, GradientShap, InvalidArgumentError, InvalidTypeError, reproduce
from helpers.bad import BAD_FORMS

TEXTS = ["A gorgeous, witty film, but the ending is dull.", "not good at all"]


def same(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.targets.tolist() == other.targets.tolist()
        assert [e.strip().lower() for e in one.elements] == [e.strip().lower() for e in other.elements]
        torch.testing.assert_close(one.attributions, other.attributions, atol=1e-5, rtol=1e-4, equal_nan=True)


FORMS = {
    "tuple": lambda t: tuple(TEXTS),
    "generator": lambda t: (text for text in TEXTS),
    "numpy strings": lambda t: np.array(TEXTS),
    "pandas column": lambda t: pandas.DataFrame({"text": TEXTS})["text"],
    "data set column": lambda t: datasets.Dataset.from_dict({"text": TEXTS})["text"],
    "tokenised data set": lambda t: datasets.Dataset.from_dict({"text": TEXTS, "label": [0, 1], **t(TEXTS)}),
    "padded batch": lambda t: t(TEXTS, padding=True, return_tensors="pt"),
    "batch padded on the left": lambda t: t(TEXTS, padding=True, padding_side="left", return_tensors="pt"),
    "plain mapping": lambda t: dict(t(TEXTS, padding=True, return_tensors="pt")),
    "numpy mapping": lambda t: dict(t(TEXTS, padding=True, return_tensors="np")),
    "mapping of lists": lambda t: t(TEXTS),
    "list of batches": lambda t: [t(text, return_tensors="pt") for text in TEXTS],
    "one mapping of one text each": lambda t: [{"input_ids": t(text)["input_ids"]} for text in TEXTS],
    "id lists": lambda t: t(TEXTS)["input_ids"],
    "id tensors": lambda t: [torch.tensor(ids) for ids in t(TEXTS)["input_ids"]],
    "mixture": lambda t: [TEXTS[0], t(TEXTS[1])["input_ids"]],
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_texts(bert_pair, form):
    explainer = GradientShap(*bert_pair)
    expected = explainer(TEXTS)
    same(explainer(FORMS[form](bert_pair[1])), expected)
    same(list(explainer.iter_explain(FORMS[form](bert_pair[1]))), expected)


def test_one_text_in_every_form(bert_pair):
    tokenizer = bert_pair[1]
    explainer = GradientShap(*bert_pair)
    expected = explainer(TEXTS[1], 2)
    ids = tokenizer(TEXTS[1])["input_ids"]
    for form in (ids, tuple(ids), torch.tensor(ids), torch.tensor([ids]), np.array(ids), tokenizer(TEXTS[1])):
        same(explainer(form, 2), expected)
        same(list(explainer.iter_explain(form, [2])), expected)


def test_pairs_of_texts_keep_their_token_types(bert_pair):
    model, tokenizer = bert_pair[0], copy.deepcopy(bert_pair[1])
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    (output,) = GradientShap(model, tokenizer)(tokenizer("not good", "fine", return_tensors="pt"), 1)
    assert output.elements == ["not", "good", "fine"]
    assert output.model_inputs_to_explain["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1]]
    (plain,) = GradientShap(model, tokenizer)(tokenizer("not good", "fine")["input_ids"], 1)
    assert not torch.allclose(plain.attributions, output.attributions)  # without types all are of the first kind


def test_all_classes_and_single_classes(bert_pair):
    explainer = GradientShap(*bert_pair)
    everything = explainer(TEXTS, "all")
    assert [output.targets.tolist() for output in everything] == [[0, 1, 2]] * 2
    assert everything[0].target_names == ["LABEL_0", "LABEL_1", "LABEL_2"]
    same(list(explainer.iter_explain(TEXTS, "all")), everything)
    same(explainer(TEXTS, ["all", "all"]), everything)
    same(explainer(TEXTS, torch.tensor([[0, 1, 2]] * 2)), everything)
    one = explainer(TEXTS, "LABEL_1")
    for whole, single in zip(everything, one, strict=True):
        torch.testing.assert_close(whole.attributions[1:2], single.attributions, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("inputs", "error", "message"), BAD_FORMS, ids=[str(i) for i in range(len(BAD_FORMS))])
def test_bad_forms(bert_pair, inputs, error, message):
    with pytest.raises(error, match=message):
        GradientShap(*bert_pair)(inputs)


PAIR = ("not good", "fine")
PAIRS = {
    "tuple": lambda: [PAIR],
    "behind a text": lambda: ["fine", PAIR],
    "zip": lambda: zip(*[[text] for text in PAIR], strict=True),
    "array of tuples": lambda: np.array([PAIR, None], dtype=object)[:1],
    "pandas": lambda: pandas.Series([PAIR]),
    "pipeline": lambda: {"text": PAIR[0], "text_pair": PAIR[1]},
}
SEVERAL = {  # words, or a pair, or two texts: nobody knows
    "list": lambda: [list(PAIR)],
    "array": lambda: np.array([PAIR]),
    "list of arrays": lambda: [np.array(PAIR)],
    "data set": lambda: datasets.Dataset.from_dict({"texts": [list(PAIR)]})["texts"],
    "three": lambda: ["fine", (*PAIR, "third")],
}


@pytest.mark.parametrize("form", PAIRS)
def test_forms_of_pairs(bert_pair, form):
    explainer = GradientShap(*bert_pair)
    expected = explainer(bert_pair[1](*PAIR))
    same(explainer(PAIRS[form]())[-1:], expected)
    same(list(explainer.iter_explain(PAIRS[form]()))[-1:], expected)


@pytest.mark.parametrize("form", SEVERAL)
def test_several_strings_are_never_taken_for_one_text(bert_pair, form):
    message = r"Text \d: Several strings.*pair.*\(first, second\)"
    with pytest.raises(InvalidTypeError, match=message):
        GradientShap(*bert_pair)(SEVERAL[form]())
    with pytest.raises(InvalidTypeError, match=message):
        list(GradientShap(*bert_pair).iter_explain(SEVERAL[form]()))


@pytest.mark.parametrize("form", ["list", "data set"])
def test_several_strings_in_one_call_and_in_a_batch(form):
    """Nor anywhere else; under "record" it is their own error."""
    with pytest.raises(InvalidTypeError, match=r"Text \d: Several strings.*pair"):
        fastshap.explain(SEVERAL[form](), n_perturbations=1)
    texts = list(SEVERAL[form]())
    table = fastshap.BatchExplainer(n_perturbations=1, keep=())({"text": texts})
    errors = table.column("error").to_pylist()
    assert all(error.startswith("InvalidTypeError: A text must be a string") for error in errors)


def test_a_pair_as_a_mapping_holds_nothing_else(bert_pair):
    with pytest.raises(InvalidTypeError, match=r"holds text and text_pair, a string each.*zip"):
        GradientShap(*bert_pair)([{"text": "fine", "text_pair": "dull", "label": 1}])


def test_a_pair_is_no_generation_target(llama_pair):
    with pytest.raises(
        InvalidTypeError, match=r"Text 0: The target cannot be used\. A pair of texts is one input of a"
    ):
        GradientShap(*llama_pair)("Nobody", [PAIR])


def test_the_predicted_class_of_some_texts(bert_pair):
    explainer = GradientShap(*bert_pair)
    first, second = (output.targets.tolist() for output in explainer(TEXTS))
    other = (second[0] + 1) % 3
    for targets in ([None, other], iter([None, other]), np.array([None, other]), [[None], [other]]):
        found = list(explainer.iter_explain(TEXTS, targets))
        assert [output.targets.tolist() for output in found] == [first, [other]]
    same(explainer(TEXTS, [None, other]), found)
    same(explainer(TEXTS, [None, None]), explainer(TEXTS))
    assert explainer(TEXTS, [[other, None], "all"])[0].targets.tolist() == [other, *first]


def test_the_prediction_stands_on_every_output(bert_pair):
    """Also where targets are given; a text's is the same in any company."""
    model, tokenizer = bert_pair
    explainer = GradientShap(model, tokenizer)
    with torch.no_grad():
        expected = torch.stack([model(**tokenizer(text, return_tensors="pt")).logits[0].softmax(0) for text in TEXTS])
    for targets in (None, 1, "all", [[0, 2], None]):
        for output, right in zip(explainer(TEXTS, targets), expected, strict=True):
            assert output.predicted_label == f"LABEL_{int(right.argmax())}"
            assert output.probability == pytest.approx(float(right.max()), rel=1e-5)
            torch.testing.assert_close(output.target_probabilities, right[output.targets])
            again = reproduce(output, model, tokenizer).output
            assert (again.predicted_label, again.probability) == (output.predicted_label, output.probability)
            assert torch.equal(again.target_probabilities, output.target_probabilities)


@pytest.mark.parametrize("kind", ["multi_label_classification", "regression"])
def test_the_prediction_by_kind_of_problem(bert_pair, kind):
    model = copy.deepcopy(bert_pair[0])
    model.config.problem_type = kind
    (output,) = GradientShap(model, bert_pair[1])(TEXTS[0], [[0, 1, 2]])
    with torch.no_grad():
        logits = model(**bert_pair[1](TEXTS[0], return_tensors="pt")).logits[0]
    if kind == "regression":
        assert (output.predicted_label, output.probability, output.target_probabilities) == (None, None, None)
        assert GradientShap(model, bert_pair[1])(TEXTS[0])[0].targets.tolist() == [int(logits.argmax())]
    else:
        torch.testing.assert_close(output.target_probabilities, logits.sigmoid())
        assert output.probability == pytest.approx(float(logits.sigmoid().max()), rel=1e-5)


def test_no_prediction_where_a_logit_is_infinite(bert_pair):
    model = copy.deepcopy(bert_pair[0])
    with torch.no_grad():
        model.classifier.bias[2] = -torch.inf
    (output,) = GradientShap(model, bert_pair[1])(TEXTS[0], 0)
    assert (output.error, output.predicted_label, output.probability) == (None, None, None)
    assert output.target_probabilities is None


def test_labels_of_a_data_set_row_are_no_obstacle(bert_pair):
    row = {**bert_pair[1](TEXTS[0]), "labels": 1, "idx": 7, "text": TEXTS[0]}
    same(GradientShap(*bert_pair)([row]), GradientShap(*bert_pair)(TEXTS[0]))


def test_counts_of_texts_and_targets(bert_pair):
    explainer = GradientShap(*bert_pair)
    with pytest.raises(InvalidArgumentError, match=r"2 texts but 3 targets.*one class for all"):
        list(explainer.iter_explain(TEXTS, [0, 1, 2]))
    with pytest.raises(InvalidArgumentError, match=r"There is 1 text but 2 targets.*\[\[0, 1\]\]"):
        explainer(TEXTS[0], [0, 1])
    with pytest.raises(InvalidArgumentError, match="There is only 1 target for more texts"):
        list(explainer.iter_explain(iter(TEXTS), iter([0])))
    with pytest.raises(InvalidArgumentError, match="2 texts but more targets"):
        list(explainer.iter_explain(iter(TEXTS), iter([0, 1, 1])))
    with pytest.raises(InvalidArgumentError, match="2 texts but more targets"):
        list(explainer.iter_explain(iter(TEXTS), iter([0, 1, None])))
    found = []
    with pytest.raises(InvalidArgumentError, match="only 20 targets for more texts"):
        found.extend(explainer.iter_explain(iter(TEXTS * 25), [0] * 20))
    assert len(found) == 20
    with pytest.raises(InvalidTypeError, match=r"got (float|Tensor)"):
        explainer.iter_explain(TEXTS, torch.tensor(1.0))
    batch = bert_pair[1](TEXTS, padding=True, return_tensors="pt")
    same(list(explainer.iter_explain([batch], [0, 1])), explainer([batch], [0, 1]))
    assert len(list(explainer.iter_explain(iter(TEXTS), itertools.repeat(1)))) == 2
    assert list(explainer.iter_explain([])) == []


PROMPT, ENDING = "The ending is", "simply dull."


def test_forms_of_generation_targets(llama_pair):
    model, tokenizer = llama_pair
    explainer = GradientShap(model, tokenizer)
    expected = explainer(PROMPT, ENDING)
    ids = tokenizer(f" {ENDING}")["input_ids"]
    for target in (f" {ENDING}", [ENDING], ids, [ids], torch.tensor(ids), tokenizer(f" {ENDING}", return_tensors="pt")):
        same(explainer(PROMPT, target), expected)
        same(list(explainer.iter_explain(PROMPT, target)), expected)
    prompts = tokenizer([PROMPT, "Nobody"], padding=True, return_tensors="pt")
    outputs = explainer(prompts, [ENDING, ids])
    same(outputs[:1], expected)
    same(outputs[1:], explainer("Nobody", ENDING))
    same(list(explainer.iter_explain(iter([PROMPT, "Nobody"]), iter([ids, ENDING]))), outputs)
    same(explainer([PROMPT, "Nobody"], tokenizer([f" {ENDING}", f" {ENDING}"], return_tensors="pt")), outputs)


def test_generated_targets(llama_pair):
    model, tokenizer = llama_pair
    explainer = GradientShap(model, tokenizer)
    ids = tokenizer(PROMPT, return_tensors="pt")
    new = model.generate(**ids, max_new_tokens=5, do_sample=False)[:, ids["input_ids"].shape[1] :]
    (output,) = explainer(PROMPT, generation_kwargs={"max_new_tokens": 5})
    assert output.targets.tolist() == new[0].tolist()
    same([output], explainer(PROMPT, new))
    assert len(explainer(PROMPT)[0].targets) <= 20
    state = torch.get_rng_state()
    options = {"max_new_tokens": 6, "do_sample": True, "temperature": 3.0}
    first, again = (explainer(PROMPT, generation_kwargs=options)[0] for _ in range(2))
    assert first.targets.tolist() == again.targets.tolist()
    drawn = {
        tuple(GradientShap(*llama_pair, seed=s)(PROMPT, generation_kwargs=options)[0].targets.tolist())
        for s in range(4)
    }
    assert len(drawn) > 1
    assert torch.equal(state, torch.get_rng_state())


def test_the_model_writes_some_targets(llama_pair):
    explainer = GradientShap(*llama_pair)
    texts, targets, options = [PROMPT, "Nobody", PROMPT], [None, ENDING, None], {"max_new_tokens": 3}
    expected = [
        explainer(PROMPT, generation_kwargs=options)[0],
        explainer("Nobody", ENDING)[0],
        explainer(PROMPT, generation_kwargs=options)[0],
    ]
    same(explainer(texts, targets, generation_kwargs=options), expected)
    same(list(explainer.iter_explain(texts, iter(targets), generation_kwargs=options)), expected)
    same(explainer([PROMPT], [None]), explainer(PROMPT))


def test_bad_generation(llama_pair, bert_pair):
    explainer = GradientShap(*llama_pair)
    with pytest.raises(InvalidArgumentError, match="max_new_token"):
        explainer(PROMPT, generation_kwargs={"max_new_token": 5})
    with pytest.raises(InvalidArgumentError, match="beside targets"):
        explainer(PROMPT, ENDING, generation_kwargs={"max_new_tokens": 5})
    with pytest.raises(InvalidArgumentError, match="causal language models"):
        GradientShap(*bert_pair)(PROMPT, generation_kwargs={"max_new_tokens": 5})
    with pytest.raises(InvalidTypeError, match="Generation targets are None"):
        explainer(PROMPT, 5)
    long = [llama_pair[1]("film " * 300)["input_ids"][:250], PROMPT]
    outputs = GradientShap(*llama_pair, on_error="record")(long, [ENDING, ENDING])
    assert "as a string" in outputs[0].error
    assert outputs[1].error is None


def test_options_of_generation(llama_pair):
    explainer = GradientShap(*llama_pair)
    config = GenerationConfig(max_new_tokens=2)
    assert len(explainer(PROMPT, generation_kwargs={"generation_config": config})[0].targets) <= 2
    for name in ("max_new_tokens", "max_length"):  # at most as many as the model takes, and the prompt stays whole
        (output,) = explainer(PROMPT, generation_kwargs={name: 1000, "eos_token_id": list(range(0, 400, 2))})
        assert "".join(output.elements).startswith(PROMPT)
        assert not output.truncated
    for bad, message in (
        (5, "mapping"),
        ({"max_new_tokens": None}, "whole number"),
        ({"max_new_tokens": 2.5}, "whole number"),
        ({"num_beams": 0}, "could not generate"),
        ({"generation_config": {"a": 1}}, "GenerationConfig"),
    ):
        with pytest.raises(FastshapError, match=message):
            explainer(PROMPT, generation_kwargs=bad)
    filled = llama_pair[1]("film " * 300)["input_ids"]
    for ids in (filled[:256], filled):
        with pytest.raises(InvalidArgumentError, match="256"):
            explainer([ids])


def test_sampling_in_threads(llama_pair):
    """The generator is the process's, the models are not."""
    options = {"max_new_tokens": 6, "do_sample": True}
    explainers = [GradientShap(copy.deepcopy(llama_pair[0]), llama_pair[1], seed=k) for k in range(3)]
    expected = [explainer([PROMPT, "Nobody"], generation_kwargs=options) for explainer in explainers]
    state = torch.get_rng_state()
    for _ in range(3):
        with concurrent.futures.ThreadPoolExecutor() as pool:
            runs = [pool.submit(explainer, [PROMPT, "Nobody"], generation_kwargs=options) for explainer in explainers]
        for run, theirs in zip(runs, expected, strict=True):
            same(run.result(), theirs)
    assert torch.equal(state, torch.get_rng_state())


@pytest.fixture(scope="module")
def sentencepiece_like():
    """Tokenizers that put a space before every text."""
    pieces = [
        "<unk>",
        "<s>",
        "▁",
        "▁The",
        "▁capital",
        "▁is",
        "▁Paris",
        "Paris",
        "is",
        "capital",
        "\n",
        "北",
        "京",
        "東",
        ".",
    ]

    def build(normalizer, pre_tokenizer):
        core = Tokenizer(models.Unigram([(piece, -1.0 - (len(piece) < 3)) for piece in pieces], unk_id=0))
        if normalizer is not None:
            core.normalizer = normalizer
        if pre_tokenizer is not None:
            core.pre_tokenizer = pre_tokenizer
        core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
        core.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
        return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", bos_token="<s>")

    return [
        build(normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]), None),
        build(None, pre_tokenizers.Metaspace()),
    ]


@pytest.mark.parametrize(
    ("prompt", "target"), [("The capital is", "Paris."), ("The capital is\n", "Paris"), ("北京", "東京")]
)
def test_a_prompt_as_ids_goes_on_as_the_same_prompt_as_a_string(sentencepiece_like, prompt, target):
    torch.manual_seed(0)
    tiny = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=20, **tiny)).eval()
    for tokenizer in sentencepiece_like:
        explainer = GradientShap(model, tokenizer)
        string, ids = explainer(prompt, target), explainer([tokenizer(prompt)["input_ids"]], [target])
        shown = tokenizer.convert_ids_to_tokens(string[0].targets.tolist())
        assert shown[0] in ("▁Paris", "Paris", "東")
        assert ids[0].targets.tolist() == string[0].targets.tolist()


def test_no_space_after_a_template(llama_pair):
    tokenizer = llama_pair[1]
    for prompt in ("It is<|end|>", tokenizer("It is<|end|>")["input_ids"]):
        (output,) = GradientShap(*llama_pair)([prompt], ["so"])
        assert output.target_names == ["so"]


def test_borders_between_prompt_and_target(llama_pair):
    """A space parts them unless the prompt ends a line or the script has none."""
    explainer = GradientShap(*llama_pair)

    def joined(prompt, target):
        (output,) = explainer(prompt, target)
        return "".join(output.elements), "".join(output.target_names)

    assert joined("The film ", "dull") == joined("The film", " dull") == ("The film dull", " dull")
    assert joined("user\n", "dull") == ("user\ndull", "dull")
    assert joined("电影", "很好") == ("电影很好", "很好")


def test_under_inference_mode_and_another_default_device(bert_pair):
    explainer = GradientShap(*bert_pair, return_convergence_delta=True)
    expected = explainer(TEXTS)
    with torch.inference_mode():
        inside = explainer(TEXTS)
    same(inside, expected)
    assert not any(value.is_inference() for value in (inside[0].attributions, inside[0].unassigned, inside[0].targets))
    torch.set_default_device("meta")
    try:
        same(explainer(TEXTS), expected)
    finally:
        torch.set_default_device(None)
