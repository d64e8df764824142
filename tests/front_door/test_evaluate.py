"""``fastshap evaluate``."""

import json
import re
import sys

import pytest
from typer.testing import CliRunner

from fastshap.cli import app

pytestmark = pytest.mark.usefixtures("loaded_once")

ROWS = [
    {"text": "A gorgeous, witty film, but the ending is dull."},
    {"text": "Terrible service; I want my money back."},
    {"text": "ok"},
]


def run(*arguments, code=0):
    result = CliRunner().invoke(app, ["evaluate", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in ROWS))
    return path


def test_a_table_beside_controls(rows, monkeypatch):
    for package in ("captum", "interpreto"):  # as where they are not installed
        monkeypatch.setitem(sys.modules, package, None)
        monkeypatch.delitem(sys.modules, f"{package}.attr", raising=False)
    out = run(rows, "--n-perturbations", "4").stdout
    assert re.search(r"fastshap +-?\d\.\d{3} ± \d\.\d{3}", out)
    for control in ("random-order", "word-length", "leave-one-out", "gradient-norm"):
        assert out.count(control) == 2  # its figures and its difference
    assert "2 texts; skipped 1 (fewer than two elements)" in out
    assert "pip install captum" in run(rows, "--methods", "captum", code=2).stderr


def test_json_and_a_page(rows, tmp_path):
    page = tmp_path / "page.html"
    options = ["--methods", "random-order", "--measures", "comprehensiveness,log-odds", "--seeds", "2"]
    found = json.loads(run(rows, *options, "--json", "--html", page, "--title", "<b>Mine").stdout)
    assert [*found["methods"]] == ["fastshap", "random-order"]
    one = found["differences"]["random-order"]["comprehensiveness at 20 %"]
    assert one["texts"] == 2
    assert one["seed_standard_error"] > 0
    assert found["settings_of_fastshap"]["n_perturbations"] == 10
    html = page.read_text()
    assert "&lt;b&gt;Mine" in html
    assert "random-order" in html
    assert "<script" not in html


def test_plain_lines_are_texts(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("".join(f"{row['text']}\n" for row in ROWS))
    found = json.loads(run(path, "--json", "--methods", "word-length", "--replacement", "[MASK]").stdout)
    assert found["settings"]["replacement"] == "[MASK]"
    assert found["about"]["texts"] == "3"


def test_targets_of_rows(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(json.dumps(row | {"target": "negative"}) for row in ROWS))
    named = json.loads(run(path, "--json", "--methods", "word-length").stdout)
    path.write_text("\n".join(map(json.dumps, ROWS)))
    assert (
        named["methods"]
        == json.loads(run(path, "--json", "--methods", "word-length", "--target", "negative").stdout)["methods"]
    )


def test_a_second_text_by_either_name(tmp_path):
    path = tmp_path / "pairs.jsonl"
    found = []
    for name in ("text_pair", "pair", "other"):
        path.write_text("\n".join(json.dumps({"text": "A dull film.", name: "The actors are good."}) for _ in "ab"))
        found.append(json.loads(run(path, "--json", "--methods", "word-length").stdout)["methods"])
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--methods", "magic"], "no method 'magic'"),
        (["--measures", "beauty"], "no measure 'beauty'"),
        (["--replacement", "[NONE]"], "[NONE]"),
        (["--title", "Mine"], "--html"),
        (["--measured-score", "logit"], "probabilit"),
        (["--batch-size", "many"], "batch_size"),
        (["--text-column", "review"], "line 1"),
    ],
)
def test_wrong_usage(rows, arguments, said):
    assert said in run(rows, *arguments, code=2).stderr


def test_a_file_that_holds_no_texts(tmp_path):
    assert "JSON lines" in run(tmp_path / "reviews.csv", code=2).stderr
    path = tmp_path / "empty.jsonl"
    assert "No such file" in run(path, code=2).stderr
    path.write_text("\n")
    assert "no text" in run(path, code=2).stderr
    path.write_text('{"text": "fine film"}\n{"text": "good", "target": "positive"}')
    assert "1 of 2 rows have no target" in run(path, code=2).stderr
