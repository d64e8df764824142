"""Multiple choice in the shell and in jobs."""

import csv
import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from typer.testing import CliRunner

import fastshap
from fastshap import jobs
from fastshap.cli.explain import app
from fastshap.errors import InvalidArgumentError, JobError
from fastshap.jobs.listing import MANIFEST
from fastshap.jobs.texts import text_hash
from fastshap.text.inputs import Choices, Pair
from helpers.families import tiny

ROWS = [
    {"id": 1, "text": "The film was dull, and so", "options": ["I left.", "I stayed until the end."]},
    {"id": 2, "text": "Superb acting!", "options": ["I liked it.", "I did not.", "it rained"]},
    {"id": 3, "text": "She opened the door.", "options": None},
    {"id": 4, "text": "She opened the door.", "options": []},
    {"id": 5, "text": "She opened the door.", "options": ["ok", " "]},
    {"id": 6, "text": " ", "options": ["ok", "fine"]},
]
FEW = {"runner": "local", "n_perturbations": 4, "choices_column": "options"}


@pytest.fixture(scope="module")
def pair(default_pair):
    return tiny("Bert", "ForMultipleChoice", default_pair[1]), default_pair[1]


@pytest.fixture(scope="module")
def place(pair, tmp_path_factory):
    found = tmp_path_factory.mktemp("chooser")
    for part in pair:
        part.save_pretrained(found)
    return found


def written(rows, place, kind="jsonl"):
    path = place / f"rows.{kind}"
    if kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    elif kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, rows[0].keys())
            table.writeheader()
            table.writerows(row | {"options": json.dumps(row["options"])} for row in rows)
    return path


def shell(*arguments, code=0):
    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


def expected(pair, rows, targets=None):
    given = [{"text": row["text"], "choices": row["options"]} for row in rows]
    return fastshap.GradientShap(*pair, "auto", n_perturbations=4)(given, targets)


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv"])
def test_a_job_of_choices(tmp_path, pair, place, kind):
    source = written(ROWS, tmp_path, kind)
    summary = jobs.run(source, tmp_path / "out", model=place, **FEW)
    assert (summary.rows, summary.errors.total()) == (6, 4)
    found = {int(name): output for name, output in jobs.read(tmp_path / "out", ids=True)}
    for output, right in zip((found[1], found[2]), expected(pair, ROWS[:2]), strict=True):
        assert (output.text, output.target_names, output.segments) == (right.text, right.target_names, right.segments)
        assert (output.attributions - right.attributions).abs().max() < 1e-5
        assert fastshap.reproduce(output, *pair).same
    for number, said in {
        3: "must be a list of strings",
        4: "must be a list of strings",
        5: "empty",
        6: "empty",
    }.items():
        assert said in found[number].error
    assert jobs.verify(tmp_path / "out", source).good


def test_choices_that_changed_are_seen(tmp_path, place):
    source = written(ROWS, tmp_path)
    jobs.run(source, tmp_path / "out", model=place, **FEW)
    same = json.loads((tmp_path / "out" / MANIFEST).read_text())["identity"]
    assert same["columns"] == {"id": "id", "text": "text", "choices": "options"}
    written([ROWS[0] | {"options": ["I left.", "I slept."]}, *ROWS[1:]], tmp_path)
    assert jobs.verify(tmp_path / "out", source).changed == 1
    with pytest.raises(JobError, match=r"rows that are done have changed \(1\)"):
        jobs.run(source, tmp_path / "out", model=place, resume=True, **FEW)
    assert jobs.run(source, tmp_path / "out", model=place, resume=True, redo_changed=True, **FEW).redone == 1
    assert jobs.verify(tmp_path / "out", source).good


def test_hashes_tell_where_a_choice_ends():
    made = (Choices("a", ("b", "c")), Choices("a", ("bc",)), Choices("a", ("b",)), Pair("a", "b"), "a\nb")
    assert len({text_hash(one) for one in made}) == 5


def test_columns_and_models_that_do_not_go_together(tmp_path, place, loaded_once):
    source = written(ROWS, tmp_path, "parquet")
    out = tmp_path / "out"
    for options, said in (
        ({"choices_column": "other"}, r"no column 'other'.*choices_column \(--choices-column\)"),
        ({"choices_column": "text"}, "holds string; it takes lists of strings"),
        ({"choices_column": None}, "name the column of the lists of choices as choices_column"),
        ({"choices_column": "options", "pair_column": "text"}, "name pair_column or choices_column"),
        ({"choices_column": "options", "model": None}, "choices_column is for a model that chooses among texts"),
    ):
        with pytest.raises(InvalidArgumentError, match=said):
            jobs.run(source, out, **{"model": place, "runner": "local", "n_perturbations": 2, **options})


@pytest.mark.parametrize("form", ["lists", "arrow", "numpy", "a row"])
def test_batches_of_choices(pair, place, form):
    explain = fastshap.BatchExplainer(place, choices_column="options", n_perturbations=4, targets="all")
    columns = {name: [row[name] for row in ROWS[:2]] for name in ROWS[0]}
    if form == "arrow":
        columns = pyarrow.table(columns)
    if form == "numpy":
        lists = [np.array(one, object) for one in columns["options"]]
        columns["options"] = np.array([*lists, None], object)[:2]
    if form == "a row":
        columns = ROWS[1]
    table = explain(columns)
    right = expected(pair, ROWS[:2], "all")[1 if form == "a row" else 0 :]
    assert table.column("error").to_pylist() == [None] * len(right)
    assert table.column("target_names").to_pylist() == [one.target_names for one in right]
    assert table.column("options").to_pylist() == [row["options"] for row in ROWS[:2]][-len(right) :]


def test_the_shell(tmp_path, pair, place):
    choices = [part for one in ROWS[0]["options"] for part in ("--choice", one)]
    asked = ("explain", "--model", place, "--n-perturbations", 4, *choices)
    result = shell(*asked, "--json", ROWS[0]["text"])
    (right,) = expected(pair, ROWS[:1])
    output = fastshap.AttributionOutput.from_json(result.stdout)
    assert (output.text, output.target_names) == (right.text, right.target_names)
    assert (output.attributions - right.attributions).abs().max() < 1e-5
    printed = shell(*asked, "--task", "multiple_choice", "--target", "1", ROWS[0]["text"]).output
    assert "target I stayed until the end." in printed
    source = written(ROWS[:2], tmp_path)
    shell("run", source, tmp_path / "out", "--local", "--model", place, "--choices-column", "options", "--target", "0")
    assert {output.target_names[0] for output in jobs.read(tmp_path / "out")} == {"I left.", "I liked it."}


def test_questions_without_sense(place, loaded_once):
    assert "add --choice" in shell("explain", "--model", place, "fine", code=2).output
    assert "--choice is for a model" in shell("explain", "--choice", "a", "fine", code=2).output
    assert "do not go together" in shell("explain", "--choice", "a", "--pair", "b", "fine", code=2).output
