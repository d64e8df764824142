"""Batch jobs from Python: run, verify, read; the one Parquet form of outputs, and what earlier versions wrote."""

import json
import math
import pickle
import shutil
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import fastshap
from fastshap import InvalidArgumentError, JobError
from fastshap.jobs.store import MANIFEST, Store
from helpers.checks import assert_identical
from helpers.jobs import SETTINGS, damaged_page, make_texts, replaced, write

DATA = Path(__file__).parents[1] / "data"
pytestmark = pytest.mark.usefixtures("loaded_once")
HERE = SETTINGS | {"runner": "local"}


def test_run_verify_and_read(tmp_path, default_pair):
    """What is read is what the explainer gives for the texts, with everything that it takes to compute it again."""
    texts = [*make_texts(20), "", "good " * 2000]
    source, out = write(tmp_path / "a.parquet", texts, [f"id {i}" for i in range(22)]), tmp_path / "out"
    summary = fastshap.jobs.run(source, out, **HERE)
    assert (summary.rows, dict(summary.errors), summary.truncated) == (22, {"InvalidArgumentError": 1}, 1)
    assert fastshap.jobs.verify(out, source).good
    found = list(fastshap.jobs.read(out))
    with pytest.warns(fastshap.TruncationWarning):
        expected = fastshap.GradientShap(*default_pair, batch_size="auto", on_error="record", **SETTINGS)(texts)
    for one, other in zip(found, expected, strict=True):
        assert type(one) is fastshap.AttributionOutput
        assert (one.text, one.elements, one.error) == (other.text, other.elements, other.error)
        assert (one.element_spans, one.truncated, one.provenance) == (
            other.element_spans,
            other.truncated,
            other.provenance,
        )
        assert torch.allclose(one.attributions, other.attributions, atol=1e-5)
    assert fastshap.reproduce(found[0], *default_pair).same
    named = list(fastshap.jobs.read(out, ids=True))
    assert [name for name, _ in named] == [f"id {i}" for i in range(22)]
    assert [output.text for _, output in named] == texts


def test_what_came_of_a_job_in_a_few_lines(tmp_path):
    source, out = write(tmp_path / "a.parquet", ["not good", "", " ", "fine"]), tmp_path / "out"
    summary = fastshap.jobs.run(source, out, **HERE)
    counts = "4 rows: 2 explained (1 of them mostly noise), 2 with an error (InvalidArgumentError 2)"
    first, second = str(summary).split("\n")
    assert first == counts
    assert second.endswith(" texts a second")
    assert repr(summary).startswith("JobSummary(rows=4")
    said = "    the first: The text is empty or only white space; there is nothing to explain."
    verdict = fastshap.jobs.verify(out, source)
    assert said in summary.lines()
    assert said in verdict.lines()
    assert str(verdict) == f"good: Every row of the input is there exactly once\n{counts}"
    assert repr(verdict).startswith("Verdict(state='complete'")
    longer = write(tmp_path / "b.parquet", ["not bad", "", " ", "fine", "more"])
    assert str(fastshap.jobs.verify(out, longer)) == f"not good: missing 1; text has changed 1\n{counts}"
    (part,) = out.glob("part-*")
    part.unlink()
    assert str(fastshap.jobs.verify(out, source)) == "not good: missing 4\n0 rows: 0 explained, 0 with an error"


def test_a_directory_that_is_named_like_a_file(tmp_path):
    source = write(tmp_path / "a.parquet", ["not good"])
    for name in ("out.csv", "out.JSONL", "out.json.gz"):
        for options in ({}, {"resume": True}, {"overwrite": True}):
            with pytest.raises(JobError, match="is named like a file, but the output is a directory of Parquet files"):
                fastshap.jobs.run(source, tmp_path / name, **options, **HERE)
        assert not (tmp_path / name).exists()
    fastshap.jobs.run(source, tmp_path / "out.parquet", **HERE)  # many call such directories so
    (tmp_path / "out.parquet").rename(tmp_path / "out.csv")  # as an earlier version would have made it
    assert fastshap.jobs.run(source, tmp_path / "out.csv", resume=True, **HERE).rows == 1


def test_a_jobs_part_is_a_file_of_outputs(tmp_path, llama_pair):
    """One form: the library's reader takes a part, and to_arrow's columns are the part's but for the job's own three."""
    for one in llama_pair:
        one.save_pretrained(tmp_path / "lm")
    source, out = write(tmp_path / "a.parquet", ["The film is", None, "fine"]), tmp_path / "out"
    fastshap.jobs.run(source, out, model=tmp_path / "lm", targets=" not good", granularity="sentence", **HERE)
    (part,) = out.glob("part-*")
    outputs = list(fastshap.read_parquet(part))
    assert [output.error is None for output in outputs] == [True, False, True]
    assert outputs[0].model_task is fastshap.ModelTask.GENERATION
    for one, other in zip(outputs, fastshap.jobs.read(out), strict=True):
        assert_identical(one, other)
    fastshap.write_parquet(outputs, tmp_path / "again")
    again, written = pq.read_table(tmp_path / "again"), pq.read_table(part)
    assert written.schema.names == ["id", "text_hash", *again.schema.names, "digest"]
    assert str(written.select(again.schema.names).to_pylist()) == str(again.to_pylist())  # NaN is not itself
    assert written.select(again.schema.names).schema.equals(again.schema, check_metadata=False)


def test_outputs_are_read_in_the_order_in_which_they_were_written(tmp_path, monkeypatch):
    texts = make_texts(30)
    source, out = write(tmp_path / "a.parquet", texts[:10]), tmp_path / "out"
    monkeypatch.setattr("fastshap.jobs.job._ROWS", 1)
    fastshap.jobs.run(source, out, **HERE)
    manifest = json.loads((out / MANIFEST).read_text())
    (out / MANIFEST).write_text(json.dumps(manifest | {"run": 8}))
    for count in (20, 30):  # the ninth and the tenth run
        fastshap.jobs.run(write(source, texts[:count]), out, resume=True, **HERE)
    assert [output.text for output in fastshap.jobs.read(out)] == texts
    names = [name for _, name in Store(out).places(manifest)]
    assert names != sorted(names), "the tenth run stands before the ninth by its name"


def test_many_outputs_are_read_in_little_memory(tmp_path):
    texts = make_texts(150) * 10  # most of them need not be explained
    source, out = write(tmp_path / "a.parquet", texts), tmp_path / "out"
    fastshap.jobs.run(source, out, targets="positive", n_perturbations=1, runner="local")
    next(fastshap.jobs.read(out))  # what is loaded once
    before, most = pa.total_allocated_bytes(), 0
    tracemalloc.start()
    for _ in fastshap.jobs.read(out):
        most = max(most, pa.total_allocated_bytes() - before)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    start = tracemalloc.get_traced_memory()[0]
    every = list(fastshap.jobs.read(out))
    held = tracemalloc.get_traced_memory()[0] - start
    tracemalloc.stop()
    assert len(every) == 1500
    assert peak < held / 4
    assert most < 8 << 20


def test_what_cannot_be_read(tmp_path):
    source, out = write(tmp_path / "a.parquet", make_texts(4)), tmp_path / "out"
    with pytest.raises(JobError, match="holds no output"):
        fastshap.jobs.read(out)
    fastshap.jobs.run(source, out, **HERE)
    (part,) = out.glob("part-*")
    table = pq.read_table(part)
    for column, values in (("attributions", [[1.0]] * 4), ("settings", ["{"] * 4)):
        pq.write_table(replaced(table, column, values), part)
        with pytest.raises(JobError, match=f"{part.name}, row 1: .*{column}.* resume=True"):
            list(fastshap.jobs.read(out))
    part.write_bytes(part.read_bytes()[:-20])
    with pytest.raises(JobError, match=f"{part.name} is no Parquet"):
        list(fastshap.jobs.read(out))
    assert fastshap.jobs.run(source, out, resume=True, **HERE).damaged == 1
    assert len(list(fastshap.jobs.read(out))) == 4


def test_the_runner_is_chosen_by_name_and_by_what_is_installed(tmp_path, monkeypatch):
    source, called = write(tmp_path / "a.parquet", ["fine film"]), []
    monkeypatch.setattr(
        "fastshap.jobs.local.explain_files", lambda *given, **options: called.append(("local", options))
    )
    monkeypatch.setattr(
        "fastshap.integrations.ray.explain_dataset", lambda *given, **options: called.append(("ray", options))
    )
    for runner, installed, expected in (
        ("auto", True, "ray"),
        ("auto", False, "local"),
        ("local", True, "local"),
        ("ray", False, "ray"),
    ):
        monkeypatch.setattr(
            "fastshap.jobs.runners.find_spec", lambda name, there=installed: object() if there else None
        )
        fastshap.jobs.run(source, tmp_path / "out", runner=runner, seed=3)
        assert called[-1][0] == expected
        assert called[-1][1]["seed"] == 3
        assert ("workers" in called[-1][1]) == (expected == "ray")
    monkeypatch.setattr("fastshap.jobs.runners.find_spec", lambda name: None)
    with pytest.raises(fastshap.MissingPackageError, match=r"workers: these need Ray: pip install .*-e '\.\[ray\]'"):
        fastshap.jobs.run(source, tmp_path / "out", workers=2)
    with pytest.raises(InvalidArgumentError, match="address, rows_per_batch: these are for Ray"):
        fastshap.jobs.run(source, tmp_path / "out", runner="local", address="auto", rows_per_batch=1)
    with pytest.raises(InvalidArgumentError, match="runner must be one of 'auto', 'local', 'ray'"):
        fastshap.jobs.run(source, tmp_path / "out", runner="dask")


def test_a_data_frame_is_no_file(tmp_path):
    with pytest.raises(fastshap.InvalidTypeError, match="reads files, by their path; got dict"):
        fastshap.jobs.run({"id": [1], "text": ["fine"]}, tmp_path / "out", **HERE)


# Errors by their fields


def test_an_error_names_its_text_in_a_field(default_pair):
    explainer = fastshap.GradientShap(*default_pair, **SETTINGS)
    with pytest.raises(InvalidArgumentError) as caught:
        explainer(["fine", "good", " "])
    assert caught.value.text_index == 2
    assert pickle.loads(pickle.dumps(caught.value)).text_index == 2
    for wrong in ({"seed": "x"}, {"granularity": "letter"}):
        with pytest.raises(fastshap.FastshapError) as caught:
            explainer("fine", **wrong)
        assert caught.value.text_index is None


def test_a_job_error_says_whether_resume_continues(tmp_path):
    source, out = damaged_page(tmp_path / "a.parquet"), tmp_path / "out"
    with pytest.raises(JobError) as caught:
        fastshap.jobs.run(source, out, **HERE)
    assert (caught.value.begun, caught.value.resumable) == (True, True)
    assert pickle.loads(pickle.dumps(caught.value)).resumable
    with pytest.raises(JobError, match="was interrupted") as caught:
        fastshap.jobs.run(source, out, **HERE)
    assert (caught.value.begun, caught.value.resumable) == (False, False)
    fastshap.jobs.run(write(source, ["fine film", "not good"]), out, overwrite=True, **HERE)
    with pytest.raises(JobError, match="have changed") as caught:
        fastshap.jobs.run(write(source, ["fine film", "not bad", "more"]), out, resume=True, **HERE)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.begun, again.resumable) == (True, False)
    fastshap.jobs.run(source, out, resume=True, redo_changed=True, **HERE)


def test_a_failed_output(default_pair):
    explainer = fastshap.GradientShap(*default_pair, on_error="record", seed=5)
    (recorded,) = explainer([" "])
    error = InvalidArgumentError(recorded.error.split(": ", 1)[1])
    given = {name: getattr(recorded, name) for name in ("model_task", "settings", "provenance")}
    made = fastshap.AttributionOutput.failed(error, " ", **given)
    assert made.seed == 5
    assert_identical(made, recorded)
    assert_identical(fastshap.AttributionOutput.from_json(made.to_json()), made)
    with pytest.raises(InvalidArgumentError, match="not explained"):
        made.number_of(0)
    with pytest.raises(fastshap.InvalidTypeError, match="got InvalidArgumentError"):
        fastshap.GradientShap(*default_pair)([error])


# What earlier versions wrote


def known_of_earlier_rows(output, other):
    assert (output.elements, output.target_names, output.truncated) == (other.elements, other.target_names, False)
    assert torch.equal(output.targets, other.targets)
    assert torch.equal(output.classes, other.classes)
    assert torch.allclose(output.attributions, other.attributions, rtol=1e-3, atol=1e-4)
    assert (output.n_perturbations, output.rounds, output.rtol, output.seed) == (16, 4, 0.5, 0)
    assert output.provenance.model_fingerprint == other.provenance.model_fingerprint
    assert (output.text, output.element_spans, output.degrees_of_freedom) == ("", [], 0)
    assert output.unassigned.isnan().all()


@pytest.mark.parametrize("form", [1, 2])
def test_a_job_of_an_earlier_version_is_read_and_verified(tmp_path, default_pair, form):
    """Written in manifest format 2, and the same without what format 1 had not."""
    out, source = tmp_path / "out", DATA / "job-2.jsonl"
    shutil.copytree(DATA / "job-2", out)
    (part,) = out.glob("part-*")
    if form == 1:
        pq.write_table(pq.read_table(part).drop_columns(["digest"]).replace_schema_metadata(), part)
        manifest = json.loads((out / MANIFEST).read_text())
        for name in ("configuration", "labels_fingerprint"):
            del manifest["identity"]["model"][name]
        (out / MANIFEST).write_text(json.dumps(manifest | {"format": 1}))
        with pytest.raises(InvalidArgumentError, match="holds no outputs: it lacks the columns"):
            list(fastshap.read_parquet(part))
    else:
        for one, other in zip(fastshap.read_parquet(part), fastshap.jobs.read(out), strict=True):
            assert_identical(one, other)
    verdict = fastshap.jobs.verify(out, source)
    assert (verdict.good, verdict.unchecked) == (True, 3 if form == 1 else 0)
    assert (verdict.summary.rows, verdict.summary.errors.total(), verdict.summary.samples) == (3, 1, 32)
    explain = fastshap.GradientShap(*default_pair, n_perturbations=4, rtol=0.5, batch_size="auto")
    first, empty, last = (output for _, output in fastshap.jobs.read(out, ids=True))
    known_of_earlier_rows(first, explain("A gorgeous, witty film.", "all")[0])
    known_of_earlier_rows(last, explain("not good at all", "all")[0])
    assert empty.error.startswith("InvalidArgumentError: The text is empty")
    assert (empty.elements, empty.n_perturbations, empty.attributions.shape) == ([], 4, (0, 0))
    for output in (first, empty):  # what can be done without a text
        assert len(str(output)) > 10
        assert math.isfinite(sum(row.attribution for row in output.rows()))
    assert fastshap.write_html([first, empty], tmp_path / "page.html") == 2
    assert fastshap.write_html(fastshap.jobs.read(out, ids=True), tmp_path / "page.html") == 3
    assert "gorgeous" in (tmp_path / "page.html").read_text()
    assert len(first.to_pandas()) == 2 * len(first.elements)
    with pytest.raises(InvalidArgumentError, match="holds no tokens"):
        fastshap.reproduce(first, *default_pair)


def test_a_damaged_part_of_an_earlier_version_says_so(tmp_path):
    out = tmp_path / "out"
    shutil.copytree(DATA / "job-2", out)
    (part,) = out.glob("part-*")
    table = pq.read_table(part)
    for name, values in {
        "attributions": [[1.0], [], [1.0]],
        "elements": [None] * 3,
        "targets": [None] * 3,
        "n_perturbations": [-5] * 3,
    }.items():
        pq.write_table(replaced(table, name, values), part)
        with pytest.raises(JobError, match="row 1"):
            list(fastshap.jobs.read(out))
    about = json.loads(table.schema.metadata[b"fastshap"])
    for identity in ({}, {"settings": [], "model": about["identity"]["model"]}, {"settings": {}, "model": []}):
        said = json.dumps(about | {"identity": identity})
        pq.write_table(table.replace_schema_metadata({"fastshap": said}), part)
        with pytest.raises(JobError, match="lacks the columns"):
            list(fastshap.jobs.read(out))
