"""Multiple choice: a text whose scores collect from all choices, which share its row; rows of several sequences at large."""

import pytest
import torch
from transformers import AutoModelForMultipleChoice, BertConfig, BertForMultipleChoice, DistilBertConfig, XLNetConfig

import fastshap
from fastshap.output.render.page import article
from fastshap.tasks import layout
from fastshap.tasks.base import layout as of_base
from fastshap.text.inputs import Choices
from helpers import models
from helpers.plain import apart, token_scores

ROWS = [
    {"text": "The film was dull, and so", "choices": ["I left.", "I stayed until the very end of it.", "it rained"]},
    {"text": "Superb acting!", "choices": ["I liked it.", "I did not."]},
    {"text": "She opened the door.", "choices": ["Nobody was there.", "Then", "It opened the window, and closed it."]},
]
N = 4


@pytest.fixture(scope="module")
def pair(default_pair):
    tokenizer = models.typed(default_pair[1])
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=36,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=48,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    return BertForMultipleChoice(config).eval(), tokenizer


def explain(pair, texts, targets=None, batch_size="auto", **options):
    return fastshap.GradientShap(*pair, batch_size, n_perturbations=N, **options)(texts, targets)


def pairs_of(tokenizer, row):
    return [tokenizer(row["text"], choice, return_tensors="pt") for choice in row["choices"]]


def logits_of(model, points, each):
    """(choices,), one choice after the other. ``points``: the embeddings of each choice's sequence."""
    found = [
        model(inputs_embeds=z[None, None], token_type_ids=tokens["token_type_ids"][None]).logits[0, 0]
        for z, tokens in zip(points, each, strict=True)
    ]
    return torch.stack(found)


def test_a_row_holds_the_text_once_and_each_choice_once(pair):
    outputs = explain(pair, ROWS, granularity="all_tokens")
    for output, row in zip(outputs, ROWS, strict=True):
        inputs, each = output.model_inputs_to_explain, pairs_of(pair[1], row)
        ids, mask = inputs["input_ids"][0], inputs["sequences_mask"][0].bool()
        for s, tokens in enumerate(each):
            assert ids[mask[:, s]].tolist() == tokens["input_ids"][0].tolist()
            assert inputs["token_type_ids"][0][mask[:, s]].tolist() == tokens["token_type_ids"][0].tolist()
        text = len(pair[1](row["text"])["input_ids"])
        assert mask.all(1).sum() == text
        assert len(ids) == text + sum(tokens["input_ids"].shape[1] - text for tokens in each)
        assert output.text == "\n".join((row["text"], *row["choices"]))
        assert sorted(set(output.segments)) == [*range(len(each) + 1)]


@pytest.mark.parametrize("mode", ["logits", "softmax", "log_softmax"])
@pytest.mark.parametrize("noise_std", [0.0, 0.1])
def test_against_a_plain_loop(pair, mode, noise_std):
    outputs = explain(pair, ROWS, "all", granularity="all_tokens", inference_mode=mode, noise_std=noise_std)
    transformed = fastshap.InferenceModes[mode.upper()]
    for output, row in zip(outputs, ROWS, strict=True):
        inputs, each = output.model_inputs_to_explain, pairs_of(pair[1], row)
        masks = inputs["sequences_mask"][0].bool().unbind(1)
        assert output.target_names == row["choices"]
        for target, scores in enumerate(output.attributions):

            def score(z, target=target, masks=masks, each=each):
                return transformed(logits_of(pair[0], [z[mask] for mask in masks], each))[target]

            assert apart(scores, token_scores(pair[0], inputs["input_ids"][0], score, N, noise_std)) < 5e-5


def test_the_models_own_choice(pair):
    outputs = explain(pair, ROWS, return_convergence_delta=True)
    for output, row in zip(outputs, ROWS, strict=True):
        tokens = pair[1]([row["text"]] * len(row["choices"]), row["choices"], padding=True, return_tensors="pt")
        with torch.no_grad():
            shares = pair[0](**{name: value[None] for name, value in tokens.items()}).logits[0].softmax(0)
        best = int(shares.argmax())
        assert output.targets.tolist() == [best]
        assert output.predicted_label == row["choices"][best]
        assert output.probability == pytest.approx(float(shares[best]), rel=1e-5)
        assert output.target_probabilities.tolist() == pytest.approx([float(shares[best])], rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, "auto"])
def test_alone_and_in_company(pair, batch_size):
    together = explain(pair, ROWS * 2, "all", inference_mode="softmax")
    for row, output in zip(ROWS * 2, together, strict=True):
        (alone,) = explain(pair, row, "all", batch_size, inference_mode="softmax")
        assert apart(output.attributions, alone.attributions) < 1e-5


@pytest.mark.parametrize(
    "sharing", [layout.NOTHING_SHARED, layout.Sharing("right", False)], ids=["no_padding", "with_mask"]
)
def test_however_rows_may_be_padded(pair, monkeypatch, sharing):
    """A model that takes no padding reads one sequence after the other, and only rows of equal lengths share a call."""
    right = explain(pair, ROWS, "all")
    monkeypatch.setattr(of_base, "find_layout", lambda *_: sharing)
    twice = [*ROWS, ROWS[1], {"text": "Superb acting!", "choices": ["I hated it.", "You did not."]}]
    for given in (explain(pair, twice, "all"), explain(pair, twice, "all", 1)):
        for output, theirs in zip(given, right, strict=False):
            assert apart(output.attributions, theirs.attributions) < 1e-5


def test_scores_add_up(pair):
    options = {"granularity_aggregation_strategy": "sum", "return_convergence_delta": True, "noise_std": 0.0}
    for output, row in zip(explain(pair, ROWS, "all", **options), ROWS, strict=True):
        each = pairs_of(pair[1], row)
        table = pair[0].get_input_embeddings()
        points = [table(tokens["input_ids"][0]) for tokens in each]
        with torch.no_grad():
            difference = logits_of(pair[0], points, each) - logits_of(pair[0], [0 * z for z in points], each)
        total = output.attributions.sum(1) + output.unassigned
        torch.testing.assert_close(total - output.convergence_delta, difference, rtol=1e-4, atol=1e-4)


def test_targets(pair):
    by_number, by_text = explain(pair, ROWS, [0, [1, 0], 2]), explain(pair, ROWS, ["I left.", ["I did not.", 0], 2])
    for one, other in zip(by_number, by_text, strict=True):
        assert torch.equal(one.attributions, other.attributions)
        assert one.target_names == other.target_names
    assert [output.targets.tolist() for output in explain(pair, ROWS, 1)] == [[1]] * 3
    assert [output.targets.tolist() for output in explain(pair, ROWS, torch.tensor([0, 1, 2]))] == [[0], [1], [2]]
    assert explain(pair, ROWS[:2], [None, "all"])[1].targets.tolist() == [0, 1]
    explainer = fastshap.GradientShap(*pair, "auto", n_perturbations=N)
    assert [output.targets.tolist() for output in explainer.iter_explain(iter(ROWS), iter([0, [1, 0], 2]))] == [
        [0],
        [1, 0],
        [2],
    ]
    assert explainer.task.spelled_targets(["1", "I left."], 2) == [[1, "I left."]] * 2
    assert explainer.task.spelled_targets([], 2) is None


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([3], "out of range; the choices are 0 to 2"),
        ([-1], "out of range"),
        (["nothing"], "No choice is 'nothing'; the choices are 'I left.'"),
        ([[1.5]], "number of a choice"),
        ([0, 1], "1 text but 2 targets"),
        ([[]], "no target"),
        (2.5, "Targets among choices"),
        ({"a": 1}, "Targets among choices"),
    ],
)
def test_targets_that_there_are_not(pair, targets, message):
    with pytest.raises(fastshap.FastshapError, match=message):
        explain(pair, ROWS[:1], targets)


@pytest.mark.parametrize("mode", ["softmax", "log_softmax"])
def test_probabilities_of_a_single_choice(pair, mode):
    """They are constant: the text is refused, and its neighbours are not."""
    alone = {"text": "a film", "choices": ["I left."]}
    with pytest.raises(fastshap.InvalidArgumentError, match="of a single choice is constant"):
        explain(pair, [alone], inference_mode=mode)
    good, bad = explain(pair, [ROWS[0], alone], inference_mode=mode, on_error="record")
    assert good.error is None
    assert "single choice" in bad.error
    assert explain(pair, [alone])[0].attributions.abs().max() > 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a text alone", "This model chooses among texts"),
        (("a", "b"), "This model chooses among texts"),
        ([1, 2], "This model chooses among texts"),
        ({"text": "a", "choices": []}, "a mapping of text, a string, and choices"),
        ({"text": "a", "choices": "bc"}, "a mapping of text, a string, and choices"),
        ({"text": "a", "choices": ["b"], "more": 1}, "got the keys text, choices, more"),
        ({"text": "a", "choices": ["b", " "]}, "Of a pair, one text cannot be used"),
        (
            {"text": "a", "choices": ["b", "good " * 70]},
            "The longest choice has 71 tokens, which leaves the text no room in the 64",
        ),
    ],
)
def test_texts_that_are_none(pair, text, message):
    with pytest.raises(fastshap.FastshapError, match=message):
        explain(pair, [text])
    bad, good = explain(pair, [text, ROWS[1]], on_error="record")
    assert bad.error is not None
    assert apart(good.attributions, explain(pair, ROWS[1])[0].attributions) < 1e-5


def test_choices_are_for_models_that_choose(bert_pair):
    with pytest.raises(fastshap.InvalidTypeError, match="for models that choose among them"):
        fastshap.GradientShap(*bert_pair)(ROWS[:1])
    (failed,) = fastshap.GradientShap(*bert_pair, on_error="record")(ROWS[:1])
    assert failed.text == "\n".join((ROWS[0]["text"], *ROWS[0]["choices"]))


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_long_text_is_cut_to_fit(pair, side, monkeypatch):
    monkeypatch.setattr(pair[1], "truncation_side", side)
    words = " ".join(f"good{i}" for i in range(40))
    with pytest.warns(fastshap.TruncationWarning):
        (output,) = explain(pair, {"text": words, "choices": ["a b c d e f", "x"]}, 0)
    assert output.truncated
    mask = output.model_inputs_to_explain["sequences_mask"][0]
    assert mask.sum(0).max() == 64
    kept = [element for element, segment in zip(output.elements, output.segments, strict=True) if segment == 0]
    assert ("good0" in kept) is (side == "right")
    assert ("good39" in kept) is (side == "left")
    assert fastshap.reproduce(output, *pair).identical


def test_files_and_what_comes_of_them(pair, tmp_path):
    (output,) = explain(pair, ROWS[0], "all", inference_mode="softmax")
    assert output.model_task == "multiple_choice"
    assert output.classes is None
    fastshap.write_jsonl([output], tmp_path / "some.jsonl")
    fastshap.write_parquet([output], tmp_path / "some.parquet")
    for (back,) in (fastshap.read_jsonl(tmp_path / "some.jsonl"), fastshap.read_parquet(tmp_path / "some.parquet")):
        assert back.to_json() == output.to_json()
        again = fastshap.reproduce(back, *pair)
        assert again.identical
        assert not again.changed
    assert '<span class="q">choice</span>' in article(output, "t")
    assert "predicted" in str(output)


def test_choices_as_an_entry(pair):
    row = Choices("Superb acting!", ("I liked it.", "I did not."))
    assert torch.equal(explain(pair, [row])[0].attributions, explain(pair, ROWS[1])[0].attributions)


@pytest.mark.parametrize(
    "config",
    [
        DistilBertConfig(dim=36, n_layers=2, n_heads=3, hidden_dim=48, initializer_range=0.3),
        XLNetConfig(d_model=36, n_layer=2, n_head=3, d_inner=48, initializer_range=0.3),
    ],
    ids=lambda config: config.model_type,
)
def test_other_families(config, default_pair):
    tokenizer = default_pair[1]
    torch.manual_seed(0)
    config.vocab_size = len(tokenizer)
    model = AutoModelForMultipleChoice.from_config(config).eval()
    for output, row in zip(explain((model, tokenizer), ROWS, "all"), ROWS, strict=True):
        (alone,) = explain((model, tokenizer), row, "all", 1)
        assert apart(output.attributions, alone.attributions) < 1e-5


def test_warming_up(pair):
    fastshap.warm_up(fastshap.GradientShap(*pair, n_perturbations=N))


def test_a_long_text_is_an_error_where_that_is_asked_for(pair):
    with pytest.raises(fastshap.InvalidArgumentError, match="more tokens than the 64 that the model takes"):
        explain(pair, {"text": "good " * 70, "choices": ["a", "b"]}, long_text="error")
    with pytest.raises(fastshap.InvalidArgumentError, match="long_text='window' is for classifiers"):
        explain(pair, {"text": "good " * 70, "choices": ["a", "b"]}, long_text="window")
