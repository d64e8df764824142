"""Jobs of pairs of texts, and of a task that is asked for."""

import csv
import json

import pyarrow
import pyarrow.parquet
import pytest

import fastshap
from fastshap import jobs
from fastshap.errors import InvalidArgumentError, JobError
from fastshap.jobs.listing import MANIFEST
from fastshap.jobs.texts import text_hash
from fastshap.text.inputs import Pair

pytestmark = pytest.mark.usefixtures("loaded_once")

ROWS = [
    {"id": 1, "text": "A gorgeous, witty film.", "second": "The ending is dull."},
    {"id": 2, "text": "not good", "second": "ok"},
    {"id": 3, "text": "not good", "second": None},
    {"id": 4, "text": "ok", "second": " "},
]
FEW = {"runner": "local", "n_perturbations": 4}


def written(rows, place, kind):
    path = place / f"rows.{kind}"
    if kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    elif kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, rows[0].keys())
            table.writeheader()
            table.writerows(rows)
    return path


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv"])
def test_a_job_of_pairs(tmp_path, default_pair, kind):
    """Each pair as an explainer has it; a row that lacks its second text has an error, and its neighbours are right."""
    source = written(ROWS, tmp_path, kind)
    summary = jobs.run(source, tmp_path / "out", pair_column="second", **FEW)
    assert (summary.rows, summary.errors.total()) == (4, 2)
    found = dict(jobs.read(tmp_path / "out", ids=True))
    found = {int(name): output for name, output in found.items()}
    pairs = [(row["text"], row["second"]) for row in ROWS[:2]]
    for output, expected in zip(
        (found[1], found[2]), fastshap.GradientShap(*default_pair, "auto", n_perturbations=4)(pairs), strict=True
    ):
        assert (output.text, output.segments) == (expected.text, expected.segments)
        assert (output.attributions - expected.attributions).abs().max() < 1e-5
    assert found[3].error.startswith("Invalid")
    assert "Of a pair, one text cannot be used." in found[3].error
    assert "empty" in found[4].error
    assert jobs.verify(tmp_path / "out", source).good


def test_a_second_text_that_changed_is_seen(tmp_path):
    source = written(ROWS, tmp_path, "jsonl")
    jobs.run(source, tmp_path / "out", pair_column="second", **FEW)
    written([ROWS[0] | {"second": "The ending is good."}, *ROWS[1:]], tmp_path, "jsonl")
    verdict = jobs.verify(tmp_path / "out", source)
    assert (verdict.good, verdict.changed) == (False, 1)
    with pytest.raises(JobError, match=r"rows that are done have changed \(1\)"):
        jobs.run(source, tmp_path / "out", pair_column="second", resume=True, **FEW)
    summary = jobs.run(source, tmp_path / "out", pair_column="second", resume=True, redo_changed=True, **FEW)
    assert summary.redone == 1
    assert jobs.verify(tmp_path / "out", source).good
    with pytest.raises(JobError, match="pair"):
        jobs.run(source, tmp_path / "out", resume=True, **FEW)


def test_hashes_tell_where_one_text_ends():
    hashes = {text_hash(one) for one in ("a\nb", Pair("a", "b"), Pair("a\n", "b"), Pair("", "a\nb"), Pair("b", "a"))}
    assert len(hashes) == 5


def test_columns_that_are_not_there_and_models_of_one_text(tmp_path, llama_pair):
    source = written(ROWS, tmp_path, "jsonl")
    with pytest.raises(InvalidArgumentError, match=r"no column 'other'.*pair_column \(--pair-column\)"):
        jobs.run(source, tmp_path / "out", pair_column="other", **FEW)
    for part in llama_pair:
        part.save_pretrained(tmp_path / "llama")
    with pytest.raises(InvalidArgumentError, match="pair_column is for a model that reads pairs"):
        jobs.run(source, tmp_path / "out", model=tmp_path / "llama", pair_column="second", **FEW)


def test_batches_of_pairs(default_pair):
    explain = fastshap.BatchExplainer(pair_column="second", n_perturbations=4)
    table = explain({name: [row[name] for row in ROWS] for name in ROWS[0]})
    assert [error is None for error in table.column("error").to_pylist()] == [True, True, False, False]
    (first, *_) = fastshap.GradientShap(*default_pair, n_perturbations=4)([(ROWS[0]["text"], ROWS[0]["second"])])
    assert table.column("elements").to_pylist()[0] == first.elements
    assert table.column("second").to_pylist() == [row["second"] for row in ROWS]
    one = explain(ROWS[0])
    assert one.column("attributions").to_pylist() == [pytest.approx(first.attributions[0].tolist(), abs=1e-5)]
    with pytest.raises(InvalidArgumentError, match=r"no column 'second'.*as pair_column"):
        explain({"text": ["fine"]})


def test_the_task_of_a_job_is_part_of_what_it_is(tmp_path):
    source = written(ROWS, tmp_path, "jsonl")
    jobs.run(source, tmp_path / "out", task="classification", **FEW)
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert manifest["identity"]["task"] == "classification"
    with pytest.raises(JobError, match='task was "classification" and is null'):
        jobs.run(source, tmp_path / "out", resume=True, **FEW)
    with pytest.raises(InvalidArgumentError, match="no task named 'nothing'"):
        jobs.run(source, tmp_path / "other", task="nothing", **FEW)
