"""Running an explanation again, and knowing what it was run with."""

import copy
import dataclasses
import json

import pytest
import torch
from tokenizers import normalizers
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

import fastshap
from fastshap.models.provenance import checksum, configuration_of, model_fingerprint, tokenizer_fingerprint

TEXTS = ["A gorgeous, witty film, but the ending is dull.", "not good at all", "Dr. Smith loved it!"]


def stored(output):
    """As it comes back from a file."""
    return fastshap.AttributionOutput.from_json(output.to_json())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"granularity": "sentence", "granularity_aggregation_strategy": "sum", "return_convergence_delta": True},
        {"granularity": "all_tokens", "inference_mode": "softmax", "perturb_special_tokens": False},
        {"reduction": "abs_mean", "sampling": "iid", "input_x_gradient": False, "n_perturbations": 7},
        {"rtol": 0.2, "n_perturbations": 6, "path_density": 1.0, "seed": 12345678901},
        {"baseline": 0.25, "noise_std": 0.0, "granularity_aggregation_strategy": "first"},
        {"baseline": "mean", "rtol": 0.5, "max_perturbations": 40},
        {"baseline": fastshap.BaselineSet(["An ordinary film.", "ok"]), "sampling": "iid", "path_density": 1.0},
    ],
    ids=str,
)
def test_classifications_come_again(bert_pair, options):
    explainer = fastshap.GradientShap(*bert_pair, batch_size="auto", **options)
    for output in explainer(TEXTS, "all"):
        again = fastshap.reproduce(stored(output), *bert_pair)
        assert again.same
        assert again.changed == {}
        assert again.output.elements == output.elements
        assert again.output.target_names == output.target_names
        assert (again.output.rounds, again.output.n_perturbations) == (output.rounds, output.n_perturbations)
        torch.testing.assert_close(
            again.output.standard_error, output.standard_error, equal_nan=True, atol=1e-5, rtol=1e-3
        )
        assert "the same" in str(again)


def test_a_baseline_of_a_texts_own_shape(bert_pair):
    length = len(bert_pair[1](TEXTS[0])["input_ids"])
    baseline = torch.linspace(-1, 1, length * bert_pair[0].config.hidden_size).view(length, -1)
    (output,) = fastshap.GradientShap(*bert_pair, baseline=baseline)(TEXTS[0])
    assert fastshap.reproduce(stored(output), *bert_pair).same


@pytest.mark.parametrize("granularity", ["token", "word", "sentence"])
def test_generations_come_again(llama_pair, granularity):
    explainer = fastshap.GradientShap(*llama_pair, granularity=granularity)
    outputs = explainer(["The film is", "Dr. Smith"], [" not good at all. Yesterday", "loved it"])
    outputs += explainer("The battery", generation_kwargs={"max_new_tokens": 4})
    outputs += explainer([[5, 6, 7, 300, 301]], [[8, 9, 310]])
    for output in outputs:
        again = fastshap.reproduce(stored(output), *llama_pair)
        assert again.same
        assert again.output.elements == output.elements


def test_alone_it_is_the_same_to_the_bit(default_pair):
    (output,) = fastshap.GradientShap(*default_pair, batch_size="auto")(TEXTS[0])
    again = fastshap.reproduce(output, *default_pair)
    assert again.identical
    assert again.largest_difference == again.relative_difference == 0


@pytest.mark.parametrize("mode", ["logits", "softmax"])
@pytest.mark.parametrize("granularity", ["token", "sentence"])
def test_scores_that_are_zero_in_truth(default_pair, mode, granularity):
    """The entries of a gradient behind a LayerNorm cancel: what is left is float32's rounding, another one in other batches."""
    options = {"inference_mode": mode, "granularity": granularity, "input_x_gradient": False}
    explainer = fastshap.GradientShap(*default_pair, batch_size="auto", **options)
    output, *_ = explainer([TEXTS[0], "x y z", "Dull."] * 3, [["positive", "negative"]] * 9)
    again = fastshap.reproduce(stored(output), *default_pair)
    assert not again.identical
    assert again.same
    moved = stored(output)
    moved.attributions[0, 0] += 1e-4
    assert not fastshap.reproduce(moved, *default_pair).same


def test_another_model_is_noticed(default_pair):
    (output,) = fastshap.GradientShap(*default_pair)(TEXTS[0])
    model, tokenizer = copy.deepcopy(default_pair)
    with torch.no_grad():
        model.classifier.weight[1, 0] += 0.5
    again = fastshap.reproduce(stored(output), model, tokenizer)
    assert not again.same
    assert again.changed.keys() == {"model_fingerprint"}
    assert again.relative_difference > 1e-5
    assert "DIFFERENT" in str(again)
    assert "model_fingerprint: was" in str(again)
    half = fastshap.reproduce(stored(output), copy.deepcopy(default_pair[0]).to(torch.bfloat16), tokenizer)
    assert {"dtype", "model_fingerprint"} <= half.changed.keys()


def test_what_cannot_come_again_says_so(default_pair, bert_pair, llama_pair):
    (failed,) = fastshap.GradientShap(*default_pair, on_error="record")([""])
    with pytest.raises(fastshap.InvalidArgumentError, match="nothing to compute again"):
        fastshap.reproduce(failed, *default_pair)
    (output,) = fastshap.GradientShap(*bert_pair)(TEXTS[0], 2)
    with pytest.raises(fastshap.UnsupportedModelError, match="explains a classification"):
        fastshap.reproduce(output, *llama_pair)
    with pytest.raises(fastshap.InvalidArgumentError, match="class 2, and this model has 2 classes"):
        fastshap.reproduce(output, *default_pair)
    tiny = BertConfig(vocab_size=1200, hidden_size=12, num_hidden_layers=1, num_attention_heads=1, num_labels=3)
    with pytest.raises(fastshap.InvalidArgumentError, match="outside the model's embedding table"):
        fastshap.reproduce(output, BertForSequenceClassification(tiny), bert_pair[1])


# ------------------------------------------------------------------ provenance


def test_provenance(default_pair):
    (output,) = fastshap.GradientShap(*default_pair)("fine")
    found = output.provenance
    assert (found.model, found.model_class, found.dtype) == ("sentiment", "BertForSequenceClassification", "float32")
    assert found.attention == default_pair[0].config._attn_implementation
    assert found.device == "cpu"
    assert found.versions["torch"] == torch.__version__
    assert found.versions["fastshap"] == fastshap.__version__
    assert len(found.model_fingerprint) == len(found.tokenizer_fingerprint) == 16


def test_fingerprints_follow_the_weights_and_nothing_else(default_pair, tmp_path):
    model, tokenizer = default_pair
    first = model_fingerprint(model)
    twin = copy.deepcopy(model)
    assert model_fingerprint(twin) == first
    twin.save_pretrained(tmp_path)
    assert model_fingerprint(type(model).from_pretrained(tmp_path)) == first
    with torch.no_grad():
        weight = twin.bert.encoder.layer[1].output.dense.weight
        weight[3, 5], weight[3, 6] = weight[3, 6].clone(), weight[3, 5].clone()  # a sum of the bits would not notice
    assert model_fingerprint(twin) != first
    assert model_fingerprint(copy.deepcopy(model).half()) != first
    before = tokenizer_fingerprint(tokenizer)
    other = AutoTokenizer.from_pretrained(fastshap.models.default.DEFAULT_MODEL_PATH)
    other(["a", "b c d"], padding=True, truncation=True, max_length=4)
    assert tokenizer_fingerprint(other) == before
    other.add_tokens(["unheardof"])
    assert tokenizer_fingerprint(other) != before


def test_an_explainer_notices_weights_that_change(default_pair):
    model, tokenizer = copy.deepcopy(default_pair)
    explainer = fastshap.GradientShap(model, tokenizer)
    (before,) = explainer("fine")
    with torch.no_grad():
        model.classifier.bias += 1
    (after,) = explainer("fine")
    assert before.provenance.model_fingerprint != after.provenance.model_fingerprint


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.float64, torch.int8])
@pytest.mark.parametrize("size", [0, 1, 3, (1 << 15) - 1, (1 << 15) + 1, (1 << 20) + 77])
def test_checksums_depend_on_every_element(dtype, size):
    values = torch.arange(size).to(dtype)
    found = checksum(values).item()
    assert checksum(values.clone()[None].T).item() == found
    for place in {0, size // 2, size - 1} if size else ():
        changed = values.clone()
        changed[place] = not changed[place] if dtype == torch.bool else -changed[place] - 1
        assert checksum(changed).item() != found


def test_words_of_an_earlier_version_come_again(default_pair):
    """When words were the tokenizer's: an output's own groups are taken."""
    (output,) = fastshap.GradientShap(*default_pair, granularity="tokenizer_word")("I didn't like it.")
    assert output.elements[1:4] == ["didn", "'", "t"]
    output.settings = dataclasses.replace(output.settings, granularity=fastshap.Granularity.WORD)
    again = fastshap.reproduce(stored(output), *default_pair)
    assert again.same
    assert again.output.elements == output.elements


# ------------------------------------------------------------------ configuration and labels


def test_what_changed_outside_the_weights_is_named(default_pair):
    """The same weights with another epsilon, another activation, or other labels."""
    (output,) = fastshap.GradientShap(*default_pair)(TEXTS[0])
    state, tokenizer = default_pair[0].state_dict(), default_pair[1]
    for name, value, was in (("layer_norm_eps", 1e-2, "1e-12"), ("hidden_act", "relu", '"gelu"')):
        config = copy.deepcopy(default_pair[0].config)
        setattr(config, name, value)
        other = BertForSequenceClassification(config)
        other.load_state_dict(state)
        again = fastshap.reproduce(stored(output), other.eval(), tokenizer)
        assert not again.same
        changed = {key: pair for key, pair in again.changed.items() if key != "model"}
        assert changed == {f"configuration.{name}": (was, json.dumps(value))}
        assert f"configuration.{name}: was {was}, is" in str(again)
    renamed = copy.deepcopy(default_pair[0])
    renamed.config.id2label = {0: "bad", 1: "good"}
    again = fastshap.reproduce(stored(output), renamed, tokenizer)
    assert again.same
    assert again.changed.keys() == {"labels_fingerprint", "target_names"}
    assert again.changed["target_names"] == ("positive", "good")


def test_what_a_file_says_of_its_model_cannot_steer_the_terminal(default_pair):
    evil = "\x1b]0;title\x07\x1b]52;c;eA==\x07\x1b[2J"
    data = fastshap.GradientShap(*default_pair)(TEXTS[0])[0].to_dict()
    data["provenance"] |= {"model": evil, "configuration": json.dumps({evil: evil}), "versions": {evil: evil}}
    data["target_names"] = [evil]
    output = fastshap.AttributionOutput.from_dict(data)
    said = str(fastshap.reproduce(output, *default_pair))
    assert not set(said) & {"\x1b", "\x07"}
    assert "model: was �]0;title�" in said
    for configuration in ("{", "[]", "[" * 10**5):  # files may hold anything for it
        output.provenance = dataclasses.replace(output.provenance, configuration=configuration)
        assert "configuration" in str(fastshap.reproduce(output, *default_pair))
    failed = fastshap.GradientShap(*default_pair, on_error="record")([""])[0]
    failed.error = evil
    with pytest.raises(fastshap.InvalidArgumentError) as caught:
        fastshap.reproduce(failed, *default_pair)
    assert "\x1b" not in str(caught.value)


def test_another_tokenizer_is_named(default_pair):
    """The same vocabulary with another rule; the output's own tokens are taken, so that the numbers are the same."""
    (output,) = fastshap.GradientShap(*default_pair)(TEXTS[0])
    other = copy.deepcopy(default_pair[1])
    other.backend_tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    again = fastshap.reproduce(stored(output), default_pair[0], other)
    assert again.same
    assert again.changed.keys() == {"tokenizer_fingerprint"}
    assert "tokenizer_fingerprint: was" in str(again)


def test_the_configuration_s_fingerprint_follows_what_numbers_can_depend_on(default_pair, llama_pair, tmp_path):
    model = copy.deepcopy(default_pair[0])
    first = configuration_of(model)
    assert len(first[1]) == len(first[2]) == 16
    for name, value in (("use_cache", False), ("output_hidden_states", True), ("_name_or_path", "elsewhere")):
        setattr(model.config, name, value)
        assert configuration_of(model) == first
    model.save_pretrained(tmp_path)
    assert configuration_of(type(model).from_pretrained(tmp_path)) == first
    model.config.problem_type = "multi_label_classification"  # in memory, with a fingerprint in the cache
    assert [a == b for a, b in zip(configuration_of(model), first, strict=True)] == [False, False, True]
    model.config.problem_type = None
    model.config.id2label[1] = "good"
    assert [a == b for a, b in zip(configuration_of(model), first, strict=True)] == [True, True, False]
    writer = copy.deepcopy(llama_pair[0])
    before = configuration_of(writer)
    writer.generation_config.max_new_tokens = 7
    assert configuration_of(writer)[1] != before[1]


def test_an_output_without_a_configuration_says_unknown(default_pair):
    (output,) = fastshap.GradientShap(*default_pair)(TEXTS[0])
    old = output.to_dict()
    for name in ("configuration", "configuration_fingerprint", "labels_fingerprint"):
        del old["provenance"][name]
    again = fastshap.reproduce(fastshap.AttributionOutput.from_dict(old), *default_pair)
    assert again.changed.keys() == {"configuration_fingerprint", "labels_fingerprint"}
    assert "configuration_fingerprint: was unknown, is" in str(again)
