"""Entities, and words with a label of one's own."""

import numpy as np
import pytest
import torch
from transformers import pipeline

import fastshap
from fastshap import Contrast, GradientShap
from helpers.checks import assert_equal, assert_same
from helpers.families import CONFIGURATIONS, tiny, with_slow_ones
from helpers.gradients import by_a_loop, by_captum, close
from helpers.texts import SENTENCES

LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
N = 6
TEXTS = [SENTENCES[0], SENTENCES[2], SENTENCES[4], SENTENCES[5]]
TEXT = "Dr. Smith loved the overproduced film, and Smith is right."


def model_of(family, tokenizer, labels=LABELS):
    names = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    model = tiny(family, "ForTokenClassification", tokenizer, **names)
    with torch.no_grad():  # so that some words are no entity, and some are
        getattr(model, "classifier", getattr(model, "score", None)).weight[0] *= 1.5
    return model


@pytest.fixture(scope="module")
def pair(default_pair):
    return model_of("Bert", default_pair[1]), default_pair[1]


@pytest.mark.filterwarnings("ignore")
def test_entities_are_the_pipelines(pair):
    """With its strategy "first": their kinds, their places and their scores."""
    theirs = pipeline("token-classification", model=pair[0], tokenizer=pair[1], aggregation_strategy="first")
    outputs = GradientShap(*pair, "auto", n_perturbations=2, on_error="record")(SENTENCES)
    found = 0
    for text, output, entities in zip(SENTENCES, outputs, theirs(SENTENCES), strict=True):
        named = [f"{one['entity_group']}: {text[one['start'] : one['end']]}" for one in entities]
        assert output.target_names == named
        if named:
            right = torch.tensor([float(one["score"]) for one in entities])
            torch.testing.assert_close(output.target_probabilities, right)
        found += len(named)
    assert found > 10


def test_an_entity_is_the_mean_of_its_words(pair, monkeypatch):
    """Against plain loops, with noise and without, and captum."""
    model = pair[0]
    targets = [[("Dr. Smith", "PER"), "overproduced", (43, 48)]]
    for noise_std in (0.1, 0):
        explainer = GradientShap(*pair, granularity="all_tokens", n_perturbations=N, noise_std=noise_std)
        (output,) = explainer(TEXT, targets)
        places = output.model_inputs_to_explain["target_positions"][0].tolist()
        assert [output.model_inputs_to_explain["input_ids"][0][i] for i in places[:3]] == pair[1].convert_tokens_to_ids(
            ["dr", ".", "smith"]
        )
        at = list(zip(places, output.targets.tolist(), strict=True))
        for row, its in zip(output.attributions, (at[:3], at[3:4], at[4:]), strict=True):

            def score(outputs, its=its):
                return torch.stack([outputs.logits[:, place, label] for place, label in its]).mean(0)

            close(row, by_a_loop(model, output, lambda outputs: score(outputs)[0]))
            if noise_std == 0:
                close(row, by_captum(model, output, score, monkeypatch))


@pytest.mark.parametrize("family", with_slow_ones(CONFIGURATIONS, "Bert", "XLNet", "GPT2"))
def test_alone_and_in_company(default_pair, family):
    model, tokenizer = model_of(family, default_pair[1]), default_pair[1]
    options = {"n_perturbations": 4, "inference_mode": "softmax", "return_convergence_delta": True}
    targets = [["gorgeous", ("dull", "LOC")], [(0, 9), "superb"], [0, 1], [("moment", "B-PER"), ("for one", "PER")]]
    together = GradientShap(model, tokenizer, "auto", **options)(TEXTS, targets)
    assert_equal(GradientShap(model, tokenizer, 1, **options)(TEXTS[::-1], targets[::-1])[::-1], together)


def test_runs_of_words(pair):
    """Of labels in several schemes, and of none."""
    words = "a film plot dull not bad".split()

    def entities(*labels):
        names = sorted({"O", *labels})
        task = GradientShap(model_of("Bert", pair[1], names), pair[1]).task
        (encoded,) = task.encode([" ".join(words)], max_length=None)
        logits = torch.zeros(len(encoded), len(names))
        for i, label in enumerate(labels):
            logits[i + 1, names.index(label)] = 1
        return [one.name for one in task.predicted(encoded, logits)]

    assert entities("B-X", "I-X", "B-X", "O", "I-X", "B-Y") == ["X: a film", "X: plot", "X: not", "Y: bad"]
    assert entities("B-X", "L-X", "I-X", "U-X", "I-X", "U-X") == ["X: a film", "X: plot", "X: dull", "X: not", "X: bad"]
    assert entities("S-X", "S-X", "B-X", "I-X", "E-X", "O") == ["X: a", "X: film", "X: plot dull not"]
    assert entities("NOUN", "NOUN", "VERB", "O", "NOUN", "I-NOUN") == ["NOUN: a film", "VERB: plot", "NOUN: not bad"]
    with pytest.raises(fastshap.InvalidArgumentError, match="no entity in this text: the label of every word is O"):
        entities(*["O"] * 6)


def test_targets_as_given(pair):
    explainer = GradientShap(*pair, n_perturbations=N)
    given = [("film", "LOC"), ((4, 9), "B-PER"), (43, 48), 2, (4, "O"), "overproduced"]
    (output,) = explainer(TEXT, [given])
    kinds = [name.split(": ")[1] for name in output.target_names]
    assert kinds == ["film", "Smith", "Smith", ".", "loved", "overproduced"]
    assert output.target_names[:2] == ["LOC: film", "PER: Smith"]
    assert output.target_weights is None
    assert LABELS[output.targets[0]] in ("B-LOC", "I-LOC")
    assert LABELS[output.targets[1]] == "B-PER"
    for i, one in enumerate(given):  # one by itself, too
        (alone,) = explainer(TEXT, [one])
        assert_same(alone.attributions[0], output.attributions[i])
    for number in (np.int64(2), np.int32(2), torch.tensor(2)):
        (alone,) = explainer(TEXT, [number])
        assert_same(alone.attributions[0], output.attributions[3])
        (alone,) = explainer(TEXT, [[(number, "O")]])
        assert alone.target_names[0].startswith("O: ")
    (output,) = explainer(TEXT, [[("film", "PER"), ("film", "LOC"), Contrast(("film", "PER"), ("film", "LOC"))]])
    assert output.target_names[2] == "PER: film rather than LOC: film"
    assert_same(output.attributions[2], output.attributions[0] - output.attributions[1])
    (named,) = explainer(TEXT, [["LOC: film", "B-LOC: film"]])  # as outputs name their targets
    assert named.target_names == ["LOC: film"] * 2
    mixed = explainer([TEXT, TEXTS[0]], [None, ["film"]])
    assert [len(one.target_names) for one in mixed] == [len(explainer(TEXT)[0].target_names), 1]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("Smith", "'Smith' occurs 2 times in the text; give the characters that you mean"),
        ("plot", "'plot' does not occur in the text."),
        (("film", "ORG"), "The model has no label 'ORG'; its labels are O, B-PER, I-PER, B-LOC, I-LOC."),
        (99, "The text has 17 tokens, counted from 0, and none at 99."),
        ((3, 4), "No token of the text stands at"),
        (1.5, "Targets of a text are None"),
        ([], "A text has no target"),
        (Contrast("film", (32, 37)), "A contrast of '.*: film' with itself"),
    ],
)
def test_targets_that_are_none(pair, target, message):
    explainer = GradientShap(*pair, n_perturbations=2)
    with pytest.raises(fastshap.FastshapError, match=message):
        explainer(TEXT, [target])
    outputs = GradientShap(*pair, n_perturbations=2, on_error="record")([TEXT, TEXT], [target, "film"])
    assert [one.error is None for one in outputs] == [False, True]


def test_sums_files_and_reproduction(pair, tmp_path):
    explainer = GradientShap(
        *pair,
        "auto",
        granularity_aggregation_strategy="sum",
        n_perturbations=400,
        noise_std=0,
        return_convergence_delta=True,
    )
    (output,) = explainer(TEXT, [[("Dr. Smith", "PER"), "film"]])
    ids = output.model_inputs_to_explain["input_ids"]
    x = pair[0].get_input_embeddings()(ids)
    places, weights = output.model_inputs_to_explain["target_positions"][0], output.target_weights
    with torch.no_grad():
        at, base = (weights @ pair[0](inputs_embeds=z).logits[0, places, output.targets] for z in (x, 0 * x))
    total = output.attributions.sum(1) + output.unassigned
    torch.testing.assert_close(total, at - base + output.convergence_delta, atol=1e-4, rtol=1e-4)
    assert (output.convergence_delta.abs() < 0.05 * (at - base).abs().max()).all()
    fastshap.write_jsonl([output], tmp_path / "some.jsonl")
    fastshap.write_parquet([output], tmp_path / "some.parquet")
    for (back,) in (fastshap.read_jsonl(tmp_path / "some.jsonl"), fastshap.read_parquet(tmp_path / "some.parquet")):
        assert back.to_json() == output.to_json()
        again = fastshap.reproduce(back, *pair)
        assert again.identical
        assert not again.changed
    assert output.model_task == "token_classification"
    assert "PER: Dr. Smith" in str(output)
    output.to_html(tmp_path / "page.html")
    assert "entity" in (tmp_path / "page.html").read_text()
    few = model_of("Bert", pair[1], LABELS[:2]), pair[1]
    with pytest.raises(fastshap.InvalidArgumentError, match="this model has 2 labels"):
        fastshap.reproduce(output, *few)


def test_what_the_shell_says(pair):
    task = GradientShap(*pair).task
    assert (
        task.spelled_targets(["PER: film", "B-LOC: dull", "film: PER", 3], 2)
        == [[("film", "PER"), ("dull", "B-LOC"), "film: PER", 3]] * 2
    )
    assert task.spelled_targets([], 2) is None


def test_one_label_has_no_probability(pair):
    model = model_of("Bert", pair[1], ["NAME"])
    assert GradientShap(model, pair[1], n_perturbations=2)("ok")[0].target_names == ["NAME: ok"]
    with pytest.raises(fastshap.InvalidArgumentError, match="SOFTMAX of a single label is constant"):
        GradientShap(model, pair[1], inference_mode="softmax")
