"""What a model leans on, and pictures of it."""

import io
import math
import re
import statistics

import matplotlib as mpl
import numpy as np
import pytest
from rich.console import Console
from scipy import stats

import fastshap
from fastshap.output.render import style
from fastshap.output.render.summary import show
from helpers.pages import Parsed

mpl.use("agg")

TEXTS = [
    "A gorgeous film, but the film is dull.",
    "Not good, the film.",
    "I loved the gorgeous ending!",
    "The battery died; gorgeous screen, dull price of $5 and $6.",
]


@pytest.fixture(scope="module")
def outputs(default_pair):
    explainer = fastshap.GradientShap(*default_pair, on_error="record")
    return explainer([*TEXTS, ""], "all")


def test_means_counts_and_intervals_by_hand(outputs):
    summary = fastshap.summarize(iter(outputs))
    assert (summary.outputs, summary.errors) == (5, 1)
    assert summary.targets == ["negative", "positive"]
    frame = summary.to_pandas()
    for target in (0, 1):
        values = [
            score
            for output in outputs[:4]
            for element, score in zip(output.elements, output.attributions[target].tolist(), strict=True)
            if element.lower() == "film"
        ]
        (row,) = [row for row in summary.of(summary.targets[target]) if row.element == "film"]
        assert (row.count, row.texts) == (3, 2)
        assert row.mean == pytest.approx(statistics.mean(values))
        assert row.mean_abs == pytest.approx(statistics.mean(map(abs, values)))
        low, high = stats.t.interval(0.95, 2, statistics.mean(values), stats.sem(values))
        assert (row.low, row.high) == (pytest.approx(low), pytest.approx(high))
        listed = frame[(frame.element == "film") & (frame.target == summary.targets[target])]
        assert listed["mean"].item() == row.mean
    assert [row.mean_abs for row in summary.of("positive")] == sorted(
        (row.mean_abs for row in summary.of("positive")), reverse=True
    )
    assert {row.element for row in summary} >= {"gorgeous", "dull", "the", "$"}
    assert all(row.count >= 2 for row in summary)


def test_case_and_rare_elements(outputs):
    every = fastshap.summarize(outputs, min_count=1, casefold=False)
    assert {"Not", "A", "The", "the"} <= {row.element for row in every}
    assert all(math.isnan(row.low) for row in every if row.count == 1)
    with pytest.raises(fastshap.InvalidArgumentError, match="min_count"):
        fastshap.summarize(outputs, min_count=0)
    with pytest.raises(fastshap.InvalidArgumentError, match="no target 'neutral'"):
        every.of("neutral")


def test_generations_leave_out_what_was_hidden(llama_pair):
    outputs = fastshap.GradientShap(*llama_pair)(["The film is", "The film"], ["good", "good"])
    summary = fastshap.summarize(outputs)
    assert {row.element for row in summary} == {"the", "film"}
    assert summary.targets == ["good"]


def test_many_occurrences(outputs):
    summary = fastshap.summarize(outputs[k % 4] for k in range(4000))
    assert max(row.count for row in summary) >= 4000
    assert all(row.high - row.low < 0.5 for row in summary)


def test_table(outputs):
    drawn = io.StringIO()
    show(fastshap.summarize(outputs), 3, Console(file=drawn, width=90))
    text = drawn.getvalue()
    assert "target positive" in text
    assert "gorgeous" in text
    assert "5 texts, 1 of them not explained; parts of the logit; elements that occur at least twice." in " ".join(
        text.split()
    )
    assert "\x1b" not in text


def test_counts_in_words(outputs):
    text = Parsed(fastshap.summarize(outputs[:1], min_count=1)._repr_html_()).text
    assert "1 text; parts of the logit; all elements." in text
    assert "elements that occur at least 3 times" in fastshap.summarize(outputs, min_count=3)._repr_html_()


def test_page_has_the_look_of_the_others(outputs, tmp_path):
    fastshap.summarize(outputs).to_html(tmp_path / "summary.html")
    source = (tmp_path / "summary.html").read_text()
    found = Parsed(source)
    assert ("body", {"class": "fastshap page"}) in found.tags
    assert "supports the target" in found.text
    assert re.search("<style>(.*?)</style>", source)[1].startswith(
        style.style(style.PAGE + style.ARTICLE).split(":root{--")[0][:2000]
    )


def test_page_is_escaped_and_stands_alone(outputs, tmp_path):
    evil = fastshap.AttributionOutput.from_dict(outputs[0].to_dict())
    evil.elements = ["<script>alert(1)</script>", '"><img src=x>', "\u202egnp", *evil.elements[3:]]
    evil.target_names = ["</style><script>", "positive"]
    path = tmp_path / "summary.html"
    fastshap.summarize([evil, evil]).to_html(path, title="<b>")
    text = path.read_text()
    assert "<script" not in text
    assert "<img" not in text
    assert text.count('data-u="U+202E">\u202e</i>') == text.count("\u202e") > 0
    assert "http" not in text.replace("http-equiv", "")
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "<script" not in fastshap.summarize(outputs)._repr_html_()


# ------------------------------------------------------------------ pictures


def test_bars_of_a_classification(outputs):
    output = outputs[3]
    ax = output.plot(target=1, top=6)
    names = [text.get_text() for text in ax.get_yticklabels()]
    scores = output.attributions[1]
    chosen = sorted(scores.abs().argsort(descending=True)[:6].tolist())
    assert names == [output.elements[i] for i in chosen]
    assert [bar.get_width() for bar in ax.patches] == pytest.approx(scores[chosen].tolist())
    (bars,) = ax.containers[1:]
    segments = bars.lines[2][0].get_segments()
    halves = [(segment[1, 0] - segment[0, 0]) / 2 for segment in segments]
    assert halves == pytest.approx(output.standard_error[1, chosen].tolist(), rel=1e-3)
    assert "positive" in ax.get_title(loc="left")


def test_any_text_can_be_drawn(default_pair, tmp_path):
    (output,) = fastshap.GradientShap(*default_pair)("$x_ {$ costs \\frac $5\x07 _^")
    ax = output.plot()
    ax.figure.savefig(tmp_path / "bars.png")
    assert any("$" in text.get_text() for text in ax.get_yticklabels())


def test_heat_map_of_a_generation(llama_pair, tmp_path):
    (output,) = fastshap.GradientShap(*llama_pair)("The film $is", "not good at all")
    ax = output.plot(uncertain=True)
    (image,) = ax.get_images()
    drawn = np.ma.filled(image.get_array(), np.nan)
    assert np.array_equal(drawn, output.attributions.numpy(), equal_nan=True)
    assert "interval" not in ax.get_xlabel()
    (sure,) = output.plot().get_images()  # what may be zero is drawn as zero
    low, high = output.interval()
    expected = output.attributions.masked_fill((low <= 0) & (high >= 0), 0).numpy()
    assert np.array_equal(np.ma.filled(sure.get_array(), np.nan), expected, equal_nan=True)
    assert "interval contains zero" in sure.axes.get_xlabel()
    low, high = image.get_clim()
    assert low == -high
    ax.figure.savefig(tmp_path / "heat.png")


def test_a_summary_is_drawn(outputs):
    ax = fastshap.summarize(outputs).plot("positive", top=5)
    assert len(ax.patches) == 5
    assert "gorgeous (3)" in [text.get_text() for text in ax.get_yticklabels()]


def test_what_cannot_be_drawn_says_so(outputs):
    with pytest.raises(fastshap.InvalidArgumentError, match="target 7 is none of them"):
        outputs[0].plot(target=7)
    with pytest.raises(fastshap.InvalidArgumentError, match="nothing to draw"):
        outputs[-1].plot()
