"""Zero-shot classification: the user's labels, each in a hypothesis that a model of entailment reads beside the text."""

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    pipeline,
)

import fastshap
from fastshap.output.render.page import article
from helpers import models
from helpers.plain import apart, token_scores

TEXTS = ["A gorgeous, witty film.", "The bank raised its interest rates, and nobody was surprised.", "Superb acting"]
LABELS = ["cinema", "money and banks", "sports"]
N = 4
CLASSES = {0: "contradiction", 1: "neutral", 2: "ENTAILMENT"}


def made(tokenizer, classes=CLASSES, positions=64):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=36,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=48,
        max_position_embeddings=positions,
        initializer_range=0.2,
        id2label=classes,
        label2id={label: i for i, label in classes.items()},
    )
    return BertForSequenceClassification(config).eval()


@pytest.fixture(scope="module")
def pair(default_pair):
    tokenizer = models.typed(default_pair[1])
    return made(tokenizer), tokenizer


def explain(pair, texts, targets=None, batch_size="auto", task="zero_shot", **options):
    return fastshap.GradientShap(*pair, batch_size, n_perturbations=N, task=task, **options)(texts, targets)


def logits_of(model, points, types):
    """(labels, classes)"""
    return torch.stack(
        [model(inputs_embeds=z[None], token_type_ids=one[None]).logits[0] for z, one in zip(points, types, strict=True)]
    )


def parts(output):
    inputs = output.model_inputs_to_explain
    masks = inputs["sequences_mask"][0].bool().unbind(1)
    return inputs["input_ids"][0], masks, [inputs["token_type_ids"][0][mask] for mask in masks]


@pytest.mark.parametrize("mode", ["logits", "softmax"])
@pytest.mark.parametrize("noise_std", [0.0, 0.1])
def test_against_a_plain_loop(pair, mode, noise_std):
    outputs = explain(pair, TEXTS, LABELS, granularity="all_tokens", inference_mode=mode, noise_std=noise_std)
    transformed = fastshap.InferenceModes[mode.upper()]
    for output, text in zip(outputs, TEXTS, strict=True):
        assert output.target_names == LABELS
        ids, masks, types = parts(output)
        for mask, one, label in zip(masks, types, LABELS, strict=True):
            tokens = pair[1](text, f"This example is {label}.")
            assert ids[mask].tolist() == tokens["input_ids"]
            assert one.tolist() == tokens["token_type_ids"]
        for target, scores in enumerate(output.attributions):

            def score(z, target=target, masks=masks, types=types):
                return transformed(logits_of(pair[0], [z[mask] for mask in masks], types)[:, 2])[target]

            assert apart(scores, token_scores(pair[0], ids, score, N, noise_std)) < 5e-5


@pytest.mark.parametrize("labels", [LABELS, ["cinema"]])
@pytest.mark.parametrize("classes", [CLASSES, {0: "entailment", 1: "not_entailment"}])
def test_the_prediction_is_that_of_the_pipeline(default_pair, labels, classes):
    pair = made(default_pair[1], classes), default_pair[1]
    theirs = pipeline("zero-shot-classification", model=pair[0], tokenizer=pair[1])(TEXTS, labels)
    for output, right in zip(explain(pair, TEXTS, labels, inference_mode="softmax"), theirs, strict=True):
        assert output.predicted_label == right["labels"][0]
        assert output.probability == pytest.approx(right["scores"][0], rel=1e-4)
        by_label = dict(zip(right["labels"], right["scores"], strict=True))
        assert output.target_probabilities.tolist() == pytest.approx([by_label[label] for label in labels], rel=1e-4)
        assert output.attributions.abs().max() > 0


def test_a_label_alone_is_weighed_against_its_contradiction(pair):
    (output,) = explain(pair, TEXTS[0], "cinema", granularity="all_tokens", inference_mode="softmax")
    ids, (mask,), types = parts(output)
    assert mask.all()
    right = token_scores(pair[0], ids, lambda z: logits_of(pair[0], [z], types)[0, [0, 2]].softmax(0)[1], N)
    assert apart(output.attributions[0], right) < 5e-5
    (plain,) = explain(pair, TEXTS[0], "cinema", granularity="all_tokens")
    right = token_scores(pair[0], ids, lambda z: logits_of(pair[0], [z], types)[0, 2], N)
    assert apart(plain.attributions[0], right) < 5e-5


@pytest.mark.parametrize("batch_size", [1, 2, "auto"])
def test_alone_and_in_company(pair, batch_size):
    labels = [LABELS, ["x", "a b c"], ["very good", "bad", "so so", "dull"]]
    together = explain(pair, TEXTS, labels, inference_mode="softmax")
    for text, wanted, output in zip(TEXTS, labels, together, strict=True):
        (alone,) = explain(pair, text, wanted, batch_size, inference_mode="softmax")
        assert apart(output.attributions, alone.attributions) < 1e-5
        assert output.target_names == wanted
    streamed = fastshap.GradientShap(*pair, "auto", n_perturbations=N, task="zero_shot").iter_explain(
        iter(TEXTS), labels
    )
    assert [output.target_names for output in streamed] == labels


def test_scores_add_up(pair):
    options = {"granularity_aggregation_strategy": "sum", "return_convergence_delta": True, "noise_std": 0.0}
    for output in explain(pair, TEXTS, LABELS, inference_mode="softmax", **options):
        ids, masks, types = parts(output)
        points = [pair[0].get_input_embeddings()(ids[mask]) for mask in masks]
        with torch.no_grad():
            shares, base = (
                logits_of(pair[0], some, types)[:, 2].softmax(0) for some in (points, [0 * z for z in points])
            )
        total = output.attributions.sum(1) + output.unassigned
        torch.testing.assert_close(total - output.convergence_delta, shares - base, rtol=1e-4, atol=1e-5)


def test_another_hypothesis(pair):
    template = "It is about {}!"
    (output,) = explain(pair, TEXTS[0], LABELS, hypothesis_template=template)
    assert "It is about cinema!" in output.text
    assert output.segments[-1] == 3
    back = fastshap.AttributionOutput.from_json(output.to_json())
    assert back.hypothesis_template == back.settings.changes()["hypothesis_template"] == template
    assert fastshap.reproduce(back, *pair).identical
    with pytest.raises(fastshap.InvalidTypeError, match="with exactly one"):
        explain(pair, TEXTS[0], LABELS, hypothesis_template=None)
    with pytest.raises(fastshap.InvalidArgumentError, match="add task='zero_shot'"):
        fastshap.GradientShap(*pair, hypothesis_template=template)
    (plain,) = explain(pair, TEXTS[0], LABELS)
    older = plain.to_dict()
    del older["settings"]["hypothesis_template"]  # a file from before there was one
    assert fastshap.AttributionOutput.from_dict(older).hypothesis_template == "This example is {}."


def test_files_and_what_comes_of_them(pair, tmp_path):
    (output,) = explain(pair, TEXTS[1], [*LABELS, "more"], inference_mode="softmax")
    assert output.model_task == "zero_shot"
    fastshap.write_jsonl([output], tmp_path / "some.jsonl")
    fastshap.write_parquet([output], tmp_path / "some.parquet")
    for (back,) in (fastshap.read_jsonl(tmp_path / "some.jsonl"), fastshap.read_parquet(tmp_path / "some.parquet")):
        assert back.to_json() == output.to_json()
        again = fastshap.reproduce(back, *pair)
        assert again.identical
        assert not again.changed
    assert '<span class="q">label</span>' in article(output, "t")
    assert "money and banks" in str(output)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (None, "needs labels"),
        ([["a"], ["b"]], "1 text but 2 lists of labels"),
        ([["a", " "]], "label is empty"),
        ([[]], "Targets of zero-shot classification are labels"),
        ([[1, 2]], "Targets of zero-shot classification are labels"),
        (3, "Targets of zero-shot classification are labels"),
        ({"a": 1}, "Targets of zero-shot classification are labels"),
    ],
)
def test_labels_that_are_none(pair, targets, message):
    with pytest.raises(fastshap.FastshapError, match=message):
        explain(pair, TEXTS[:1], targets)


def test_texts_that_cannot_be_used(pair):
    texts = [TEXTS[0], "", ("a", "b"), [1, 2, 3], TEXTS[2]]
    outputs = explain(pair, texts, LABELS, on_error="record")
    assert [output.error is None for output in outputs] == [True, False, False, False, True]
    assert apart(outputs[4].attributions, explain(pair, TEXTS[2], LABELS)[0].attributions) < 1e-5


def test_a_long_text_is_cut_as_the_pipeline_cuts_it(pair):
    long = " ".join(["good", "film"] * 50)
    with pytest.warns(fastshap.TruncationWarning):
        (output,) = explain(pair, long, LABELS)
    ids, masks, _ = parts(output)
    assert output.truncated
    longest = pair[1](long, "This example is money and banks.", truncation="only_first", max_length=64)["input_ids"]
    assert ids[masks[1]].tolist() == longest


def test_only_where_it_is_asked_for(pair, bert_pair):
    assert fastshap.GradientShap(*pair).task.name == "classification"
    with pytest.raises(fastshap.UnsupportedModelError, match="label entailment"):
        fastshap.GradientShap(*bert_pair, task="zero_shot")
    task = fastshap.GradientShap(*pair, task="zero_shot").task
    assert task.spelled_targets(["a", "b"], 2) == [["a", "b"]] * 2


def test_a_decoder(byte_tokenizer):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(byte_tokenizer), n_embd=36, n_layer=2, n_head=3, initializer_range=0.2)
    config.pad_token_id = byte_tokenizer.pad_token_id
    config.id2label, config.label2id = CLASSES, {label: i for i, label in CLASSES.items()}
    model = AutoModelForSequenceClassification.from_config(config).eval()
    for output, text in zip(explain((model, byte_tokenizer), TEXTS, LABELS), TEXTS, strict=True):
        (alone,) = explain((model, byte_tokenizer), text, LABELS, 1)
        assert apart(output.attributions, alone.attributions) < 1e-5


def test_warming_up(pair):
    fastshap.warm_up(fastshap.GradientShap(*pair, n_perturbations=N, task="zero_shot"))


def test_a_long_text_is_an_error_where_that_is_asked_for(pair):
    with pytest.raises(fastshap.InvalidArgumentError, match="more tokens than the 64 that the model takes"):
        explain(pair, "good " * 70, LABELS, long_text="error")
    with pytest.raises(fastshap.InvalidArgumentError, match="long_text='window' is for classifiers"):
        explain(pair, "good " * 70, LABELS, long_text="window")
