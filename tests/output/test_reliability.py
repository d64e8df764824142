"""The reliability of an output: what it estimates, where it is kept and shown, and what has no colour."""

import csv
import dataclasses
import io
import json
import math

import numpy as np
import pytest
import torch
from rich.console import Console

import fastshap
from fastshap.engine.estimate import reliability
from fastshap.output.plain import SCHEMA_PATH
from fastshap.output.render import wording
from helpers.pages import Parsed

TEXT = "The plot wanders, the jokes fall flat, and nobody seems to care."


@pytest.fixture(scope="module")
def output(default_pair):
    """Of two targets, and with elements whose intervals contain zero."""
    (output,) = fastshap.GradientShap(*default_pair, "auto")([TEXT], "all")
    unsure = [wording.uncertain(output, t) for t in range(2)]
    assert all(any(row) and not all(row) for row in unsure)
    return output


# The estimator


def runs(signal, runs, elements, freedom, seed=0):
    """Scores (runs, G) of variance 1 around a signal of so much mean square, and their standard errors."""
    rng = np.random.default_rng(seed)
    mean = np.sqrt(signal) * np.ones(elements)
    errors = np.sqrt(rng.chisquare(freedom, (runs, elements)) / freedom)
    return torch.tensor(mean + rng.normal(size=(runs, elements))).float(), torch.tensor(errors).float()


@pytest.mark.parametrize("signal", [0.25, 1.0, 4.0, 19.0])
def test_it_is_the_share_that_a_repeated_run_finds_again(signal):
    scores, errors = runs(signal, 400, 300, 8)
    again, _ = runs(signal, 400, 300, 8, seed=1)
    share = float((scores * again).sum() / scores.square().sum())
    assert share == pytest.approx(signal / (1 + signal), abs=0.01)
    assert float(reliability(scores, errors).mean()) == pytest.approx(share, abs=0.015)


def test_its_bias_with_few_elements_is_as_documented():
    """docs/adr/0021: too low where there is signal, too high where there is none, as it cannot be below zero."""
    assert float(reliability(*runs(0, 4000, 10, 4)).mean()) == pytest.approx(0.12, abs=0.04)
    assert float(reliability(*runs(0, 4000, 300, 4)).mean()) < 0.05
    for signal in (1.0, 4.0):
        truth = signal / (1 + signal)
        assert truth - 0.08 < float(reliability(*runs(signal, 4000, 10, 4)).mean()) < truth


def test_by_hand():
    scores = torch.tensor([[3.0, -4.0, torch.nan], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    errors = torch.tensor([[0.0, 3.0, torch.nan], [2.0, 0.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    found = reliability(scores, errors)
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx([1 - 9 / 25, 0.0, 1.0, 0.0])


def test_without_standard_errors_it_is_not_known(default_pair):
    (few,) = fastshap.GradientShap(*default_pair, n_perturbations=3)(["a fine film"], "all")
    assert few.reliability.shape == (2,)
    assert bool(few.reliability.isnan().all())
    assert json.loads(few.to_json())["reliability"] == [None, None]
    assert "reliability" not in str(few) + few._repr_html_()
    assert fastshap.AttributionOutput.failed(ValueError("x"), model_task="any").reliability.shape == (0,)
    bare = dataclasses.replace(few, standard_error=torch.zeros(0, 0))
    assert bool(bare.reliability.isnan().all())


def test_what_a_target_cannot_see_does_not_count(llama_pair):
    (output,) = fastshap.GradientShap(*llama_pair, n_perturbations=8)("The film is", "not good")
    seen = ~output.attributions[0].isnan()
    assert not bool(seen.all())
    noise, size = output.standard_error[0][seen].square().sum(), output.attributions[0][seen].square().sum()
    assert float(output.reliability[0]) == pytest.approx(max(0.0, 1 - float(noise / size)), abs=1e-6)


# Where it is kept


def test_files_hold_it_and_never_say_what_it_is(output, tmp_path):
    plain = output.to_dict()
    assert plain["reliability"] == output.reliability.tolist()
    lied = plain | {"reliability": [0.25, 0.25]}
    lacking = {name: value for name, value in plain.items() if name != "reliability"}
    for read in (plain, lied, lacking):
        again = fastshap.AttributionOutput.from_dict(read)
        assert torch.equal(again.reliability, output.reliability)
        assert again.to_json() == output.to_json()
    with pytest.raises(fastshap.InvalidArgumentError, match="reliability"):
        fastshap.AttributionOutput.from_dict(plain | {"reliability": "high"})
    schema = json.loads(SCHEMA_PATH.read_text())
    assert "derived" in schema["properties"]["reliability"]["description"]
    assert "reliability" not in schema["required"]


def test_tables_have_a_column_for_it(output, tmp_path):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    fastshap.write_parquet([output], tmp_path / "one.parquet")
    table = pq.read_table(tmp_path / "one.parquet")
    assert table.column("reliability").to_pylist() == [output.reliability.tolist()]
    (again,) = fastshap.read_parquet(tmp_path / "one.parquet")
    assert again.to_json() == output.to_json()
    at = table.schema.names.index("reliability")
    lied = table.set_column(at, "reliability", pa.array([[0.0, 0.0]], table.schema.field(at).type))
    for changed in (lied, table.drop_columns(["reliability"])):
        pq.write_table(changed, tmp_path / "other.parquet")
        (again,) = fastshap.read_parquet(tmp_path / "other.parquet")
        assert again.to_json() == output.to_json()
    fastshap.write_csv([output], tmp_path / "one.csv")
    with (tmp_path / "one.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["target"], np.float32(row["reliability"])) for row in rows} == set(
        zip(output.target_names, output.reliability.numpy(), strict=True)
    )
    assert output.to_pandas()["reliability"].nunique() == 2


# What has no colour


def coloured(output, **options):
    """The text that has a background on a terminal of many colours."""
    file = io.StringIO()
    output.show(Console(file=file, force_terminal=True, color_system="truecolor", width=200), **options)
    return file.getvalue()


def test_intervals_that_contain_zero_have_no_colour(output):
    low, high = output.interval()
    for t in range(2):
        assert wording.uncertain(output, t) == ((low <= 0) & (high >= 0))[t].tolist()
    without, all_of_them = coloured(output), coloured(output, uncertain=True)
    backgrounds = without.count("48;2"), all_of_them.count("48;2")
    assert backgrounds == (
        sum(not one for t in range(2) for one in wording.uncertain(output, t)),
        2 * len(output.elements),
    )
    assert "words without colour" in " ".join(without.split())
    assert "without colour" not in all_of_them
    assert "without colour" not in str(output)  # where nothing has one
    shares = [f"reliability {share:.2f}" for share in output.reliability.tolist()]
    assert all(share in str(output) and share in without for share in shares)


def test_without_standard_errors_everything_has_its_colour(default_pair):
    (few,) = fastshap.GradientShap(*default_pair, n_perturbations=3)(["a fine film"])
    assert coloured(few).count("48;2") == 3
    found = Parsed(few._repr_html_())
    assert "input" not in {tag for tag, _ in found.tags}
    assert "without colour" not in found.text


def test_a_page_has_a_switch_for_them(output, tmp_path):
    found = Parsed(output._repr_html_())
    unsure = [one for t in range(2) for one in wording.uncertain(output, t)]
    marked = ["y" in attrs.get("class", "").split() for _, attrs in found.words]
    assert marked == unsure
    assert ["may be zero" in attrs["aria-description"] for _, attrs in found.words] == unsure
    (switch,) = [attrs for tag, attrs in found.tags if attrs.get("type") == "checkbox"]
    assert "checked" not in switch
    (label,) = [attrs for tag, attrs in found.tags if tag == "label" and attrs["for"] == switch["id"]]
    assert label["class"] == "l"
    assert "Colour all words" in found.text
    assert "words without colour: the 95 % interval of their score contains zero" in found.text
    for write in (
        lambda path: output.to_html(path, uncertain=True),
        lambda path: fastshap.AttributionOutputs([output]).to_html(path, uncertain=True),
        lambda path: fastshap.write_html([output], path, uncertain=True),
        lambda path: fastshap.compare(output).to_html(path, uncertain=True),
    ):
        write(tmp_path / "page.html")
        tags = Parsed((tmp_path / "page.html").read_text()).tags
        assert ["checked" in attrs for _, attrs in tags if attrs.get("type") == "checkbox"] == [True]


def test_each_output_of_a_page_has_a_switch_of_its_own(output, default_pair, tmp_path):
    (sure,) = fastshap.GradientShap(*default_pair, n_perturbations=200)(["gorgeous"])
    assert not any(wording.uncertain(sure, 0))
    fastshap.write_html([output, sure, output], tmp_path / "page.html")
    tags = Parsed((tmp_path / "page.html").read_text()).tags
    switches = [attrs["id"] for _, attrs in tags if attrs.get("type") == "checkbox"]
    assert len(switches) == len(set(switches)) == 2


def test_a_comparison_marks_them_in_its_table(output):
    found = Parsed(fastshap.compare(output)._repr_html_())
    cells = [attrs.get("class", "").split() for tag, attrs in found.tags if tag == "td"]
    columns = [[("y" in cell) for cell in cells[i::3]] for i in range(3)]
    assert columns[:2] == [wording.uncertain(output, t) for t in range(2)]
    assert not any(columns[2])  # of a difference nobody knows


def test_a_line_of_a_list_says_when_it_is_noise(output):
    noise = dataclasses.replace(output, standard_error=output.attributions.abs())
    assert float(noise.reliability.max()) < 0.5
    lines = str(fastshap.AttributionOutputs([output, noise])).splitlines()
    assert ["mostly noise: reliability 0.00" in line for line in lines] == [False, True]


def test_bars_of_what_may_be_zero_are_grey(output):
    pytest.importorskip("matplotlib")
    from matplotlib.colors import to_hex

    from fastshap.output.render.plot import AGAINST, FOR

    def grey(ax):
        return sum(to_hex(patch.get_facecolor()) not in (FOR, AGAINST) for patch in ax.patches)

    assert grey(output.plot()) == sum(wording.uncertain(output, 0))
    assert grey(output.plot(uncertain=True)) == 0
    assert math.isfinite(float(output.reliability[0]))
