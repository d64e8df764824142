"""Outputs of which several parts are shown apart: the texts of a pair on a page, in a terminal, on a plot and in tables."""

import csv
import html
import re

import matplotlib as mpl
import pytest

import fastshap
from fastshap.output.render import parts, plot
from fastshap.output.render.page import article
from fastshap.tasks import Shown

mpl.use("Agg")

PAIR = ("A gorgeous, witty film, but\nthe ending is dull.", "The ending\n\nis not good.")
SHOWN = re.compile(r'<p class="q">(.*?)</p><p class="s".*?>(.*?)</p>', re.DOTALL)
CHIP = re.compile(r'<span[^>]* aria-label="(.*?)"[^>]*></span>')


def read(page):
    """The parts of a page: each one's name and text, with special tokens by their names."""
    return [(name, html.unescape(re.sub("<.*?>", "", CHIP.sub(r"(\1)", text)))) for name, text in SHOWN.findall(page)]


@pytest.fixture(scope="module")
def outputs(default_pair):
    """One of words, and one of all tokens with two targets."""
    explainer = fastshap.GradientShap(*default_pair, "auto", n_perturbations=4)
    tokens = fastshap.GradientShap(*default_pair, "auto", "all_tokens", n_perturbations=4)
    return explainer([PAIR])[0], tokens([PAIR], "all")[0]


@pytest.fixture
def other_names(monkeypatch):
    """As a task may have them: the last name goes for all further parts, and a picture shows all targets."""
    its = Shown(segments=("question", "<choice>"), map_axes=("written", "drew on"))
    for module in (parts, plot):
        monkeypatch.setattr(module, "shown", lambda task: its)


def test_a_page_shows_each_text_by_its_name(outputs):
    words, tokens = outputs
    assert read(article(words, "t")) == [("first text", PAIR[0]), ("second text", PAIR[1])]
    twice = [("first text", f"([CLS]){PAIR[0]}([SEP])"), ("second text", f"{PAIR[1]}([SEP])")]
    assert read(article(tokens, "t")) == twice * 2
    assert '<p class="q">second text</p>' in fastshap.compare(tokens)._repr_html_()


def test_names_are_the_tasks(outputs, other_names):
    assert [name for name, _ in read(article(outputs[0], "t"))] == ["question", "&lt;choice&gt;"]


def test_what_was_cut_of_the_first_text_stays_with_it(default_pair):
    first = "The film was not dull but witty. " * 100
    with pytest.warns(fastshap.TruncationWarning):
        (output,) = fastshap.GradientShap(*default_pair, "auto", n_perturbations=2)([(first, PAIR[1])])
    assert output.truncated
    assert read(article(output, "t")) == [("first text", first), ("second text", PAIR[1])]


def test_parts_that_begin_with_special_tokens(outputs, other_names):
    """Three texts, each with tokens before and behind it, of which the second is cut."""
    data = outputs[1].to_dict()
    data["elements"] = ["[CLS]", "one", "[SEP]", "[CLS]", "two", "[SEP]", "[CLS]", "three"]
    data["text"] = "one\ntwo or more\nthree"
    data["element_spans"] = [[0, 0], [0, 3], [0, 0], [0, 0], [4, 7], [0, 0], [0, 0], [16, 21]]
    data["segments"] = [0, 0, 0, 1, 1, 1, 2, 2]
    for name in ("attributions", "standard_error"):
        data[name] = [row[:8] for row in data[name]]
    data["element_tokens"] = data["element_tokens"][:8]
    output = fastshap.AttributionOutput.from_dict(data)
    assert read(article(output, "t"))[:3] == [
        ("question", "([CLS])one([SEP])"),
        ("&lt;choice&gt;", "([CLS])two([SEP]) or more"),
        ("&lt;choice&gt;", "([CLS])three"),
    ]


def test_a_terminal_shows_each_text_under_its_name(outputs):
    lines = str(outputs[0]).split("\n")
    first, second = lines.index("  first text"), lines.index("  second text")
    assert lines[first + 1].split()[:2] == ["A", "gorgeous"]
    assert lines[second + 1].split() == ["The", "ending", "is", "not", "good", "."]
    scores = [float(one) for one in lines[second + 2].split()]
    assert scores == pytest.approx(outputs[0].attributions[0, -6:].tolist(), abs=6e-4)


def test_a_plot_has_a_heading_for_each_text(outputs):
    ax = outputs[0].plot()
    labels = [text.get_text() for text in ax.get_yticklabels()]
    assert labels == ["first text", *outputs[0].elements[:12], "second text", *outputs[0].elements[12:]]
    widths = [bar.get_width() for bar in ax.patches]
    shown = [width for label, width in zip(labels, widths, strict=True) if not label.endswith(" text")]
    assert shown == pytest.approx(outputs[0].attributions[0].tolist())
    place = max(range(12), key=lambda i: abs(float(outputs[0].attributions[0, i])))
    few = [text.get_text() for text in outputs[0].plot(top=1).get_yticklabels()]
    assert few[0] in ("first text", "second text")
    assert len(few) == 2
    assert few != ["first text", "second text"]
    assert outputs[0].elements[place] in [text.get_text() for text in outputs[0].plot(top=12).get_yticklabels()]


def test_a_picture_of_all_targets_has_a_line_between_the_texts(outputs, other_names):
    ax = outputs[1].plot()
    assert [text.get_text() for text in ax.texts] == ["question", "<choice>"]
    (line,) = ax.lines
    assert line.get_xdata()[0] == outputs[1].segments.index(1) - 0.5


def test_a_single_text_and_a_generation_have_no_parts(default_pair, llama_pair):
    (single,) = fastshap.GradientShap(*default_pair, n_perturbations=2)(PAIR[1])
    (written,) = fastshap.GradientShap(*llama_pair, n_perturbations=2)("The film", " is dull")
    assert {*written.segments} == {0, 1}
    for output in (single, written):
        assert not parts.parts_of(output)
        assert not SHOWN.search(article(output, "t"))
        assert output.text == html.unescape(
            re.sub("<.*?>", "", re.search(r'<p class="s".*?>(.*?)</p>', article(output, "t"), re.DOTALL)[1])
        )
    assert " text" not in str(single)
    assert "prompt" not in str(written)


def test_tables_name_the_part_of_each_element(outputs, tmp_path):
    frame = outputs[1].to_pandas()
    assert frame["segment"].tolist() == outputs[1].segments * 2
    fastshap.write_csv(outputs[:1], tmp_path / "one.csv")
    with (tmp_path / "one.csv").open(newline="") as file:
        assert [int(row["segment"]) for row in csv.DictReader(file)] == outputs[0].segments
    data = outputs[0].to_dict() | {"segments": []}  # as outputs of earlier versions are
    assert fastshap.AttributionOutput.from_dict(data).to_pandas()["segment"].isna().all()


def test_other_libraries_get_both_texts(outputs):
    words, tokens = outputs
    shap, interpreto = pytest.importorskip("shap"), pytest.importorskip("interpreto")
    assert isinstance(words.to_shap(), shap.Explanation)
    assert "".join(words.to_shap().data) == words.text
    assert list(tokens.to_shap().data)[-2:] == [".", "[SEP] "]
    assert [len(one.raw_input_ids) for one in tokens.to_captum()] == [len(tokens.elements)] * 2
    assert words.to_interpreto().elements == words.elements
    assert words.to_interpreto().model_task.name == interpreto.attributions.base.ModelTask.CLASSIFICATION.name
    leans = fastshap.summarize([words], min_count=2)
    assert {"ending", "the", "is"} <= {lean.element for lean in leans}
    both = fastshap.compare(words, words)
    assert [one.element for one in both.elements] == words.elements


def test_a_list_tells_the_texts_apart(outputs, default_pair):
    explainer = fastshap.GradientShap(*default_pair, "auto", n_perturbations=4)
    line = str(explainer([("Is it any good?", "A gorgeous film.")]))
    assert line.startswith("1. 'Is it any good?' | 'A gorgeous film.': predicted")
    assert repr(outputs[0]).startswith(
        "AttributionOutput('A gorgeous, witty film, but t…' | 'The ending is not good.', "
    )
    assert str(explainer("Two lines\nof one text.")).startswith("1. 'Two lines of one text.': ")


def test_a_comparison_has_the_parts_as_headings(outputs):
    words, tokens = outputs
    comparison = fastshap.compare(tokens)
    assert comparison.segments == tokens.segments
    lines = str(comparison).split("\n")
    assert [line for line in lines if line in ("first text", "second text")] == ["first text", "second text"]
    assert lines[lines.index("second text") + 1].startswith("The ")
    page = comparison._repr_html_()
    assert page.count('scope="rowgroup" colspan="4"') == 2
    assert page.index("second text</th>") < page.index("<bdi>ending</bdi></th><td", page.index("second text</th>"))
    both = fastshap.compare(words, tokens, targets=words.target_names[0])
    assert sorted(both.segments) == both.segments
    assert {*both.segments} == {0, 1}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda its: its[:-1], "segments must hold 18 entries or none; it holds 17"),
        (lambda its: [*its[:-1], 99], "segments must be below"),
        (lambda its: its[::-1], "segments must not become smaller along the text"),
        (lambda its: [*its[:-1], -1], "segments"),
    ],
)
def test_segments_without_sense_are_refused(outputs, change, said):
    saved = outputs[0].to_dict()
    with pytest.raises(fastshap.InvalidArgumentError, match=said):
        fastshap.AttributionOutput.from_dict(saved | {"segments": change(saved["segments"])})
