"""Looking at results: printed, in lists, the strongest elements, tables for spreadsheets, side by side."""

import copy
import csv
import dataclasses
import io
import math
import pickle

import pytest
import torch
from rich.console import Console
from transformers import LlamaConfig, LlamaForSequenceClassification

import fastshap
from helpers.pages import EVIL, Parsed

TEXTS = ["A gorgeous, witty film, but the ending isn't dull.", "not good at all", ""]


@pytest.fixture(scope="module")
def explainer(default_pair):
    return fastshap.GradientShap(*default_pair, on_error="record")


@pytest.fixture(scope="module")
def outputs(explainer):
    return fastshap.AttributionOutputs(explainer(TEXTS, ["all", "positive", None]))


# ------------------------------------------------------------------ printed


def test_an_output_prints_as_it_shows(outputs, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    for output in outputs:
        drawn = io.StringIO()
        output.show(Console(file=drawn, width=80, color_system=None))
        assert str(output).split() == drawn.getvalue().split()
        assert "\x1b" not in str(output)
    assert "predicted positive, probability 0." in str(outputs[0])
    assert "target negative, probability 0." in str(outputs[0])
    assert (
        "explains the logit, one score per word (mean of its tokens): + supports the target, - opposes it"
        in " ".join(str(outputs[0]).split())
    )
    assert "blue" not in str(outputs[0])
    assert str(outputs[2]).startswith("not explained: InvalidArgumentError")


def test_a_short_name(outputs):
    assert repr(outputs[1]) == "AttributionOutput('not good at all', ['positive'], 4 elements)"
    assert all(len(repr(output)) < 150 and "\n" not in repr(output) for output in outputs)


def test_a_list_prints_a_line_for_each(outputs):
    lines = str(outputs).split("\n")
    assert repr(outputs) == str(outputs)
    assert len(lines) == 3
    assert lines[0].startswith("1. 'A gorgeous, witty film, but the ending …': predicted positive, probability 0.")
    assert "gorgeous +1." in lines[0]
    assert "target positive: not -" in lines[1]
    assert "not explained" in lines[2]
    many = fastshap.AttributionOutputs([outputs[1]] * 1234)
    assert str(many).split("\n")[100:] == ["… and 1,134 more"]
    assert "1,214 more" in many._repr_html_()
    assert str(many[:0]) == "no outputs"


def test_a_list_stays_one_when_sliced(outputs):
    assert isinstance(outputs[:2], fastshap.AttributionOutputs)
    assert isinstance(outputs[0], fastshap.AttributionOutput)
    assert outputs[:2] == list(outputs)[:2]
    assert isinstance(outputs, list)


def test_a_list_in_a_notebook_and_as_a_page(outputs, tmp_path):
    found = Parsed(outputs._repr_html_())
    assert TEXTS[1] in found.sentences
    names = [attrs["name"] for tag, attrs in found.tags if tag == "input" and attrs["type"] == "radio"]
    assert len(set(names)) == 1  # the one output of two targets
    assert Parsed(outputs._repr_html_()).tags[-1] != found.tags[-1] or names != [
        attrs.get("name") for tag, attrs in Parsed(outputs._repr_html_()).tags if tag == "input"
    ]
    outputs.to_html(tmp_path / "all.html", title="All")
    assert Parsed((tmp_path / "all.html").read_text()).text.startswith("All")


def test_nothing_that_is_printed_steers_a_terminal(outputs):
    for text in (*EVIL, "\x9b2J\x1b]52;c;eA==\x07"):
        evil = fastshap.AttributionOutput.from_dict(outputs[1].to_dict())
        evil.text, evil.elements, evil.target_names = text, [text] * 4, [text]
        evil.predicted_label = text
        for name in ("n_perturbations", "seed"):
            object.__setattr__(evil.settings, name, text)
        for shown in (str(evil), repr(evil), str(fastshap.AttributionOutputs([evil]))):
            assert not any(ord(c) < 32 and c != "\n" for c in shown)
            assert not set(shown) & {"\x7f", "\x9b", "\x85", "\u202e", "\u2067", "\u200b"}
        evil.error = text
        assert "\x1b" not in str(evil) + repr(evil) + str(fastshap.AttributionOutputs([evil]))


# ------------------------------------------------------------------ the strongest


def test_top(outputs, llama_pair):
    first, second, third = outputs[0].top(3, "positive")
    assert (first.element, second.element, third.element) == ("gorgeous", "witty", "dull")
    assert first.attribution == outputs[0].attributions[1, 1].item()
    assert first.standard_error == outputs[0].standard_error[1, 1].item()
    assert first.place == 1
    assert outputs[0].text[slice(*third.span)] == "dull"
    assert len(outputs[0].top(99)) == len(outputs[0].elements)
    assert outputs[0].top() == outputs[0].top(5, -2)
    assert outputs[2].top() == []
    with pytest.raises(fastshap.InvalidArgumentError, match="target 2 is none of them"):
        outputs[0].top(3, 2)
    with pytest.raises(fastshap.InvalidArgumentError, match="no target 'neutral'; there are 'negative', 'positive'"):
        outputs[0].top(3, "neutral")
    with pytest.raises(fastshap.InvalidTypeError, match="target's name"):
        outputs[0].top(3, 1.5)
    (written,) = fastshap.GradientShap(*llama_pair)("The film is", "not good")
    assert {one.element for one in written.top(99)} == set(written.elements[:3])
    assert len(written.top(99, 1)) == 4


# ------------------------------------------------------------------ spreadsheets


def test_csv(outputs, tmp_path):
    path = tmp_path / "outputs.csv"
    assert fastshap.write_csv(iter(outputs), path) == 3
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    frames = [output.to_pandas() for output in outputs]
    assert list(rows[0]) == ["text", *frames[0].columns]
    assert [row["text"] for row in rows] == ["1"] * len(frames[0]) + ["2"] * len(frames[1])
    for row, written in zip(rows, (row for frame in frames for row in frame.itertuples()), strict=True):
        assert (row["target"], row["element"]) == (written.target, written.element)
        for name in ("attribution", "standard_error", "target_probability"):
            assert torch.tensor(float(row[name])) == torch.tensor(getattr(written, name))
    assert outputs[0].to_pandas().target_probability.iloc[-1] == pytest.approx(outputs[0].probability)


def test_no_cell_is_a_formula_and_nan_is_empty(outputs, tmp_path):
    evil = fastshap.AttributionOutput.from_dict(outputs[1].to_dict())
    evil.attributions[0, 1] = math.nan
    for elements in (
        ["=cmd|' /C calc'!A0", "+1", "-", "@SUM(A1)"],
        ["\t=1", "\r=1", "\n=1", "\r\n=1"],
        ["＝1", "＋1", "－1", "＠SUM(A1)"],
    ):
        evil.elements = elements
        fastshap.write_csv([evil], tmp_path / "evil.csv")
        with (tmp_path / "evil.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert [row["element"] for row in rows] == [f"'{element}" for element in elements]
        assert rows[1]["attribution"] == ""
    evil.elements = ["a\r=1", "b\n=1", "c", "d"]
    fastshap.write_csv([evil], tmp_path / "evil.csv")
    with (tmp_path / "evil.csv").open(newline="", encoding="utf-8") as file:
        assert [row["element"] for row in csv.DictReader(file)] == evil.elements


def test_a_file_in_a_directory_that_is_missing(outputs, tmp_path):
    for write in (
        outputs.to_html,
        outputs[0].to_html,
        lambda path: fastshap.write_jsonl(outputs, path),
        lambda path: fastshap.write_csv(outputs, path),
        lambda path: fastshap.write_parquet(outputs, path),
    ):
        with pytest.raises(FileNotFoundError, match="No such directory") as caught:
            write(tmp_path / "none" / "a")
        assert caught.value.filename == str(tmp_path / "none")


def test_a_list_of_outputs_is_no_output(outputs, default_pair):
    for name in ("show", "top", "attributions", "to_json"):
        with pytest.raises(AttributeError, match=rf"no '{name}': this is a list of outputs; take one: outputs\[0\]"):
            getattr(outputs, name)
    with pytest.raises(AttributeError, match=r"no 'nothing'$"):
        outputs.nothing  # noqa: B018
    assert not hasattr(outputs, "_repr_png_")
    assert copy.deepcopy(outputs)[0].to_json() == pickle.loads(pickle.dumps(outputs))[0].to_json()
    with pytest.raises(fastshap.InvalidTypeError, match=r"reproduce takes one output: outputs\[0\]; got"):
        fastshap.reproduce(outputs, *default_pair)
    with pytest.raises(fastshap.InvalidTypeError, match=r"reproduce takes one output; got str"):
        fastshap.reproduce("x", *default_pair)


def test_a_confidence_that_is_no_share(outputs):
    for wrong in ("95%", None, True):
        with pytest.raises(fastshap.InvalidTypeError, match=r"must be a number between 0 and 1, such as 0\.95; got"):
            outputs[0].interval(wrong)
    with pytest.raises(fastshap.InvalidArgumentError, match=r"got 95; for 95 % write 0\.95"):
        outputs[0].interval(95)
    with pytest.raises(fastshap.InvalidArgumentError, match=r"got 0\.$"):
        outputs[0].interval(0)


def test_bytes_are_decoded_first(explainer):
    for texts in (b"good", [b"good"]):
        with pytest.raises(fastshap.InvalidTypeError, match="got bytes; decode it first"):
            explainer.explain(texts, on_error="raise")


# ------------------------------------------------------------------ side by side


def test_the_targets_of_one_output(outputs):
    compared = fastshap.compare(outputs[0])
    assert [column.name for column in compared.columns] == ["negative", "positive"]
    assert [row.element for row in compared.elements] == outputs[0].elements
    scores = outputs[0].attributions
    for i, row in enumerate(compared.elements):
        assert row.scores == tuple(scores[:, i].tolist())
        assert row.difference == pytest.approx((scores[1, i] - scores[0, i]).item())
    assert [column.name for column in fastshap.compare(outputs[0], targets=("positive", 0)).columns] == [
        "positive",
        "negative",
    ]
    with pytest.raises(fastshap.InvalidArgumentError, match="two columns or more"):
        fastshap.compare(outputs[1])
    with pytest.raises(fastshap.InvalidArgumentError, match="no target 'x'"):
        fastshap.compare(outputs[0], targets=("x", "positive"))


def test_each_column_says_how_probable_its_target_is(default_pair, outputs, tmp_path):
    compared, (negative, positive) = fastshap.compare(outputs[0]), outputs[0].target_probabilities.tolist()
    assert outputs[0].predicted_label == "positive"
    compared.to_html(tmp_path / "compared.html")
    other = f"probability {negative:.3f}; predicted positive, probability {positive:.3f}"
    for shown in (" ".join(str(compared).split()), Parsed((tmp_path / "compared.html").read_text()).text):
        assert shown.count(other) == 1
        assert shown.count(f"predicted, probability {positive:.3f}") == 1
        assert "target positive" not in shown  # the column's name says so
    (first,) = fastshap.GradientShap(*default_pair, seed=3)(TEXTS[0], "negative")
    pair = fastshap.compare(first, first, names=("old", "new"))
    for shown in (" ".join(str(pair).split()), Parsed(pair._repr_html_()).text):
        assert shown.count(f"target negative, {other}") == 2
        assert "probability of this target" not in shown
    first.target_probabilities = None  # an older file
    assert "target negative; predicted positive" in " ".join(str(fastshap.compare(first, first)).split())


def test_a_page_of_two_outputs_has_the_settings_of_both(default_pair, outputs, tmp_path):
    (other,) = fastshap.GradientShap(*default_pair, seed=3)(TEXTS[0], "positive")
    two, same = (fastshap.compare(one, other, targets="positive") for one in (outputs[0], other))
    for compared, calls in ((two, 2), (same, 1), (fastshap.compare(outputs[0]), 1)):
        compared.to_html(tmp_path / "compared.html")
        page = Parsed((tmp_path / "compared.html").read_text()).text
        assert page.count("Settings that reproduce these numbers") == 1
        assert page.count("fastshap.GradientShap(model, tokenizer") == calls
        assert page.count("BertForSequenceClassification") == 1


def test_two_outputs_share_a_scale(default_pair, outputs, tmp_path):
    (other,) = fastshap.GradientShap(*default_pair, seed=3)(TEXTS[0], "positive")
    compared = fastshap.compare(outputs[0], other, targets="positive", names=("old", "new"))
    assert compared.alike
    most = max(outputs[0].attributions[1].abs().max(), other.attributions.abs().max())
    compared.to_html(tmp_path / "compared.html", title="Old and new")
    found = Parsed((tmp_path / "compared.html").read_text())
    assert found.text.count(f"+{most:.3g} supports positive") == 2
    assert found.sentences == [TEXTS[0]] * 2
    assert "oldnewdifference" in found.text
    drawn = str(compared)
    assert drawn.split("\n")[0].split() == ["element", "old", "new", "difference"]
    assert f"{other.attributions[0, 1]:+.3f}" in drawn
    assert f"new: target positive, predicted, probability {other.probability:.3f}; explains" in " ".join(drawn.split())
    for column in (found.text, drawn):
        assert "± standard error" in column
    shown = f"{other.attributions[0, 1]:+.3f} ±{other.standard_error[0, 1]:.3f}"
    assert shown in drawn
    assert shown.replace("-", "−") in found.text
    assert repr(compared) == f"Comparison(['old', 'new'], {len(other.elements)} elements)"
    assert Parsed(compared._repr_html_()).tags[0] == ("div", {"class": "fastshap"})


def test_scores_of_two_kinds_are_not_subtracted(default_pair, outputs):
    (other,) = fastshap.GradientShap(*default_pair, inference_mode="softmax")(TEXTS[0], "positive")
    compared = fastshap.compare(outputs[0], other, targets="positive")
    assert not compared.alike
    assert all(math.isnan(row.difference) for row in compared.elements)
    page = Parsed(compared._repr_html_()).text
    assert "difference" not in page
    assert "explains the logit" in page
    assert "explains the probability" in page
    assert [column.name for column in compared.columns] == ["first", "second"]


def test_elements_are_matched_by_the_characters_they_stand_for(default_pair, llama_pair, outputs):
    (tokens,) = fastshap.GradientShap(*default_pair, granularity="all_tokens")(TEXTS[0], "positive")
    rows = {row.element: row for row in fastshap.compare(outputs[0], tokens, targets="positive").elements}
    assert not math.isnan(rows["gorgeous"].difference)
    assert math.isnan(rows["isn't"].scores[1])
    assert math.isnan(rows["isn"].scores[0])
    order = [row.element for row in fastshap.compare(outputs[0], tokens, targets="positive").elements]
    assert order[0] == "[CLS]" or order[1] == "[CLS]"
    assert order[-1] == "[SEP]"
    assert order.index("ending") < order.index("isn") < order.index("dull")
    words = [fastshap.GradientShap(*llama_pair, seed=seed)("The film is", " not good")[0] for seed in (0, 1)]
    compared = fastshap.compare(*words, targets=1)
    assert [row.element for row in compared.elements] == words[0].elements
    assert math.isnan(compared.elements[-1].difference)


def test_tokens_of_one_character_are_rows_of_their_own(llama_pair):
    torch.manual_seed(0)
    config = LlamaConfig(**llama_pair[0].config.to_dict() | {"num_labels": 2})
    explainer = fastshap.GradientShap(
        LlamaForSequenceClassification(config).eval(), llama_pair[1], granularity="token", n_perturbations=2
    )
    first, second = (explainer("good 👍 film", "all", seed=seed)[0] for seed in (0, 1))
    assert len(set(first.element_spans)) < len(first.elements)
    rows = fastshap.compare(first).elements
    assert [row.element for row in rows] == first.elements
    assert [row.scores for row in rows] == [tuple(scores) for scores in first.attributions.T.tolist()]
    rows = fastshap.compare(first, second, targets=1).elements
    assert [row.scores for row in rows] == list(
        zip(first.attributions[1].tolist(), second.attributions[1].tolist(), strict=True)
    )


def test_two_models_with_other_labels(default_pair, bert_pair, outputs, tmp_path):
    (other,) = fastshap.GradientShap(*bert_pair)(TEXTS[0], 2)
    (one,) = fastshap.GradientShap(*default_pair)(TEXTS[0], "positive")
    compared = fastshap.compare(one, other)
    assert [column.name for column in compared.columns] == ["first: positive", "second: LABEL_2"]
    assert compared.elements[0].scores == (one.attributions[0, 0].item(), other.attributions[0, 0].item())
    meaning = "difference: second: LABEL_2 minus first: positive"
    assert meaning in str(compared).split("\n")
    compared.to_html(tmp_path / "compared.html")
    assert meaning in Parsed((tmp_path / "compared.html").read_text()).text
    with pytest.raises(
        fastshap.InvalidArgumentError,
        match=r"no target 'negative'; there are 'LABEL_2'; targets=\['negative', 'LABEL_2'\] names one for each",
    ):
        fastshap.compare(outputs[0], other)
    chosen = fastshap.compare(outputs[0], other, targets=["positive", "LABEL_2"])
    assert [column.name for column in chosen.columns] == ["first: positive", "second: LABEL_2"]


def test_what_cannot_be_compared_says_so(explainer, outputs):
    with pytest.raises(fastshap.InvalidArgumentError, match="different texts"):
        fastshap.compare(outputs[0], outputs[1])
    with pytest.raises(fastshap.InvalidArgumentError, match="not explained"):
        fastshap.compare(outputs[2])
    with pytest.raises(fastshap.InvalidArgumentError, match="names must hold 2 names"):
        fastshap.compare(outputs[0], names=["one"])
    with pytest.raises(fastshap.InvalidArgumentError, match="one for each"):
        fastshap.compare(outputs[0], outputs[0], targets=[0, 1, 0])
    with pytest.raises(fastshap.InvalidTypeError, match="takes outputs; got str"):
        fastshap.compare("x")
    with pytest.raises(fastshap.InvalidTypeError, match=r"Take one of the list: outputs\[0\]"):
        fastshap.compare(outputs)
    apart = fastshap.AttributionOutput.from_dict(outputs[1].to_dict())
    apart.element_spans = [(start, end - 1) for start, end in apart.element_spans]
    with pytest.raises(fastshap.InvalidArgumentError, match="no element in common"):
        fastshap.compare(outputs[1], apart)


def test_small_scores_are_compared_by_their_digits(outputs):
    small = fastshap.AttributionOutput.from_dict(outputs[1].to_dict())
    small.attributions = small.attributions * 1e-6
    compared = fastshap.compare(small, outputs[1])
    assert "0.000" not in str(fastshap.compare(small, small))
    assert "e−0" in fastshap.compare(small, small)._repr_html_()
    assert "e-0" not in str(compared)  # beside large ones, which decide


def test_a_comparison_is_escaped(outputs):
    for text in EVIL:
        evil = fastshap.AttributionOutput.from_dict(outputs[1].to_dict())
        evil.text, evil.elements, evil.target_names = text, [text] * 4, [text]
        evil.predicted_label, evil.element_spans = text, [(0, 0)] * 4
        compared = fastshap.compare(evil, evil, names=(text, text))
        found = Parsed(compared._repr_html_())
        assert {tag for tag, _ in found.tags} <= set(
            "div style article section p span i bdi table thead tbody tr th td input label".split()
        )
        assert not set(str(compared)) & {"\x1b", "\x07", "\u202e", "\x85"}


# ------------------------------------------------------------------ fields that are made when somebody looks


def test_fields_made_later_are_as_if_made_at_once(explainer):
    """Whoever copies, pickles, compares or changes an output before looking at it sees the same."""
    looked, copied, pickled, changed = (explainer("A gorgeous film", 1)[0] for _ in range(4))
    whole = looked.to_dict()
    assert copy.deepcopy(copied).to_dict() == whole
    assert pickle.loads(pickle.dumps(pickled)).to_dict() == whole
    assert looked.elements is looked.elements
    assert looked.model_inputs_to_explain is looked.model_inputs_to_explain
    assert looked.element_spans == [(0, 1), (2, 10), (11, 15)]
    changed.elements = ["x", "y", "z"]
    assert changed.elements == ["x", "y", "z"]
    assert dataclasses.replace(looked, text="other").elements == looked.elements
    assert explainer(["A gorgeous film"] * 2, 1)[1].elements is not looked.elements
