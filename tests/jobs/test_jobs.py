"""Batch jobs in one process: rows, files, what is refused, and what a killed run leaves."""

import gzip
import inspect
import io
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from typer.testing import CliRunner

import fastshap
from fastshap import BatchExplainer, InvalidArgumentError, JobError
from fastshap.cli import app
from fastshap.errors import recorded
from fastshap.jobs.columns import Columns
from fastshap.jobs.digests import with_digests
from fastshap.jobs.local import explain_files
from fastshap.jobs.progress import JobProgress, duration
from fastshap.jobs.reading import Files
from fastshap.jobs.recorded import MOST_FAILED, error_of
from fastshap.jobs.store import MANIFEST, Store
from fastshap.jobs.table import columns_of_a_batch
from fastshap.jobs.texts import MOST_CHARACTERS
from fastshap.jobs.verdict import verify
from helpers.jobs import (
    COMMAND,
    QUICK,
    SETTINGS,
    SLOWLY,
    damaged_page,
    make_texts,
    refused,
    replaced,
    rows,
    run,
    same_numbers,
    write,
)

pytestmark = pytest.mark.usefixtures("loaded_once")

# A batch


def test_a_batch_is_what_the_explainer_says_in_every_form_of_batch(default_pair, texts):
    outputs = fastshap.GradientShap(*default_pair, batch_size="auto", **SETTINGS)(texts)
    explain = pickle.loads(pickle.dumps(BatchExplainer(**SETTINGS)))
    columns = {"id": list(range(len(texts))), "text": texts}
    forms = [columns, {k: np.array(v) for k, v in columns.items()}, pa.table(columns), pd.DataFrame(columns)]
    for batch in forms:
        table = explain(batch)
        assert table.schema.names == ["id", "text", *columns_of_a_batch().names]
        assert table.schema.field("attributions").type == pa.list_(pa.float32())
        for row, output in zip(table.to_pylist(), outputs, strict=True):
            expected = output.attributions.flatten()
            assert torch.allclose(torch.tensor(row["attributions"]), expected, atol=1e-5 * float(expected.abs().max()))
            assert row["elements"] == output.elements
            assert (row["targets"], row["target_names"]) == (output.targets.tolist(), output.target_names)
            assert (row["n_perturbations"], row["truncated"], row["error"]) == (4, False, None)
    (row,) = explain(
        {"id": 7, "text": texts[1]}
    ).to_pylist()  # one row, as datasets' map passes it without batched=True
    assert row["elements"] == outputs[1].elements
    assert row["id"] == 7


def test_bad_rows_are_recorded_and_their_neighbours_are_right():
    explain = BatchExplainer(keep=(), **SETTINGS)
    mixed = ["fine film", "", None, 5, "x " * MOST_CHARACTERS, "not good", "\ud800", b"fine", "good " * 2000, ["a"]]
    found = explain({"text": mixed}).to_pylist()
    alone = explain({"text": ["fine film", "not good"]}).to_pylist()
    assert found[0] == alone[0]
    assert found[5] == alone[1]
    said = [row["error"] for row in found]
    assert "empty" in said[1]
    assert [kind.split(";")[1] for kind in (said[2], said[3], said[7])] == [" got null.", " got int.", " got bytes."]
    assert "2,000,000 characters" in said[4]
    assert said[9] == "InvalidTypeError: A text must be a string; got list."
    assert found[8]["truncated"]
    assert said[8] is None
    assert found[1]["attributions"] is None
    assert found[1]["n_perturbations"] == 0


def test_what_breaks_on_one_row_costs_that_row_alone(monkeypatch):
    explain = BatchExplainer(keep=(), **SETTINGS)
    inner = explain.explainer.explain

    def fragile(texts, *arguments, **options):
        if any("bad" in text for text in texts if isinstance(text, str)):
            raise RuntimeError("a kernel failed\nwith more lines")
        return inner(texts, *arguments, **options)

    monkeypatch.setattr(explain.explainer, "explain", fragile)
    found = explain({"text": ["fine film", "bad film", "not good", ""]}).to_pylist()
    assert found[1]["error"] == "ModelFailedError: The model failed on this text: RuntimeError: a kernel failed"
    assert [row["error"] is None for row in found] == [True, False, True, False]
    found = explain({"text": ["bad film"] * (MOST_FAILED - 1) + [""]}).to_pylist()
    assert [row["error"].split(":")[0] for row in found[-2:]] == ["ModelFailedError", "InvalidArgumentError"]
    said = f"failed on each of {MOST_FAILED} texts, one after the other.*RuntimeError: a kernel failed. .*; none of"
    with pytest.raises(JobError, match=said):
        explain({"text": ["", *["bad film"] * MOST_FAILED]})


@pytest.mark.parametrize("gradients", [True, False], ids=["explaining", "predicting"])
def test_rows_on_which_the_model_fails(gradients):
    explain = BatchExplainer(keep=(), **SETTINGS)
    model, tokenizer = explain.explainer.model, explain.explainer.tokenizer
    explain({"text": ["a fine film"]})  # tried
    bad = model.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids("bad")].detach()

    def fails(module, args, kwargs):
        z = kwargs.get("inputs_embeds")
        if z is not None and torch.is_grad_enabled() == gradients:
            near = (z - bad).norm(dim=-1) < (0.9 if gradients else 1e-4) * bad.norm()
            if near.any():
                raise RuntimeError("a kernel failed")

    handle = model.register_forward_pre_hook(fails, with_kwargs=True)
    try:
        rows = explain({"text": ["bad film", "", "bad", "fine film"]}).to_pylist()
    finally:
        handle.remove()
    kinds = ["ModelFailedError", "InvalidArgumentError", "ModelFailedError", None]
    assert [row["error"] and row["error"].split(":")[0] for row in rows] == kinds


@pytest.mark.parametrize("kind", [fastshap.ModelFailedError, fastshap.NonFiniteError, InvalidArgumentError])
def test_errors_come_back_as_their_own_kind(kind):
    again = error_of(recorded(kind("it: failed")))
    assert type(again) is kind
    assert str(again) == "it: failed"


def test_datasets_map(texts):
    """The first batch has no error and the second has one: the column keeps its type. Two processes give the same."""
    data = Dataset.from_dict({"id": list(range(9)), "text": [*texts, ""]})
    explain = BatchExplainer(keep=["id"], **SETTINGS)
    mapped = data.map(explain, batched=True, batch_size=4)
    assert mapped.column_names == ["id", *columns_of_a_batch().names]
    assert [row["error"] is None for row in mapped] == [True] * 8 + [False]
    same_numbers({r["id"]: r for r in mapped}, {r["id"]: r for r in data.map(explain)})


def test_settings_and_columns_that_do_not_fit():
    with pytest.raises(InvalidArgumentError, match="no setting on_error"):
        BatchExplainer(on_error="raise")
    with pytest.raises(InvalidArgumentError, match="no column 'text'"):
        BatchExplainer()({"body": ["fine"]})
    with pytest.raises(InvalidArgumentError, match="named targets"):
        BatchExplainer()({"text": ["fine"], "targets": [1]})
    with pytest.raises(InvalidArgumentError, match="classes are"):
        BatchExplainer(targets="sad")({"text": ["fine"]})
    with pytest.raises(fastshap.InvalidTypeError, match="leave it out"):
        BatchExplainer(keep=["odd"])({"text": ["fine"], "odd": [object()]})
    (row,) = BatchExplainer(targets=["all"], keep=(), **SETTINGS)({"text": ["fine film"]}).to_pylist()
    assert (len(row["attributions"]), row["target_names"]) == (4, ["negative", "positive"])


def test_a_language_model(tmp_path, llama_pair):
    for part in llama_pair:
        part.save_pretrained(tmp_path / "lm")
    explain = BatchExplainer(tmp_path / "lm", targets=" dull", keep=(), **SETTINGS)
    (row,) = explain({"text": ["The film is"]}).to_pylist()
    assert row["target_names"] == [" dull"]
    explain = BatchExplainer(tmp_path / "lm", generation_kwargs={"max_new_tokens": 3}, keep=(), **SETTINGS)
    (row,) = explain({"text": ["The film is"]}).to_pylist()
    assert 1 <= len(row["targets"]) <= 3
    explain = BatchExplainer(tmp_path / "lm", targets="x", generation_kwargs={"max_new_tokens": 3})
    with pytest.raises(InvalidArgumentError, match="no use beside targets"):
        explain({"text": ["The"]})


def test_the_command_explains_a_language_model_by_probabilities(tmp_path, llama_pair):
    for part in llama_pair:
        part.save_pretrained(tmp_path / "lm")
    source = tmp_path / "texts.jsonl"
    source.write_text('{"id": 1, "text": "The film is"}')
    for options, mode in (([], "softmax"), (["--inference-mode", "logits"], "logits")):
        arguments = [str(source), str(tmp_path / mode), "--local", "--model", str(tmp_path / "lm"), "--target", "dull"]
        result = CliRunner().invoke(app, ["run", *arguments, *options, "--n-perturbations", "4"])
        assert result.exit_code == 0, result.output
        (output,) = fastshap.jobs.read(tmp_path / mode)
        assert output.inference_mode is getattr(fastshap.InferenceModes, mode.upper())


# Files


def test_the_same_rows_from_every_kind_of_file(tmp_path):
    texts = ["fine film", "NA", 'with "quotes", and\na line', "", "Café 👍"]
    write(tmp_path / "a.parquet", texts, [f"{i:03}" for i in range(5)])
    frame = pd.DataFrame({"text": texts, "id": [f"{i:03}" for i in range(5)], "more": range(5)})
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_csv(tmp_path / "a.csv.gz", index=False)
    lines = "".join(json.dumps({"id": f"{i:03}", "text": text}) + "\n" for i, text in enumerate(texts))
    (tmp_path / "a.jsonl").write_text(lines.replace("\n", "\n\n"))
    (tmp_path / "a.ndjson.gz").write_bytes(gzip.compress(("\ufeff" + lines).encode()))
    expected = None
    for name in ("a.parquet", "a.csv", "a.csv.gz", "a.jsonl", "a.ndjson.gz"):
        files = Files(tmp_path / name, Columns("id", "text"))
        (shard,) = files.shards()
        table = pa.concat_tables(list(files.read(shard)))
        assert expected is None or table == expected, name
        expected = table
    assert expected.column("text").to_pylist() == texts


def test_a_directory_is_read_in_shards_without_hidden_files(tmp_path, monkeypatch):
    monkeypatch.setattr("fastshap.jobs.reading._ROWS_OF_SHARD", 100)
    (tmp_path / "in" / "_tmp").mkdir(parents=True)
    write(tmp_path / "in" / "b.parquet", ["fine"] * 230)
    write(tmp_path / "in" / "a.parquet", ["fine"] * 10, list(range(1000, 1010)))
    write(tmp_path / "in" / "_tmp" / "c.parquet", ["fine"])
    (tmp_path / "in" / ".hidden.parquet").write_text("no")
    files = Files(tmp_path / "in", Columns("id", "text"))
    shards = files.shards()
    assert [(os.path.basename(shard.path), shard.groups) for shard in shards] == [
        ("a.parquet", (0,)),
        ("b.parquet", (0, 1)),
        ("b.parquet", (2, 3)),
        ("b.parquet", (4,)),
    ]
    found = [i for shard in shards for table in files.read(shard) for i in table.column("id").to_pylist()]
    assert found == [*range(1000, 1010), *range(230)]


@pytest.mark.parametrize("count", [100_000, pytest.param(700_000, marks=pytest.mark.slow)])
def test_a_column_that_nobody_asked_for_holds_anything(tmp_path, count):
    """Also long after a type could be guessed from it."""
    lines = "".join(f"{i},{i},fine film\n" for i in range(count))
    (tmp_path / "a.csv").write_text(f"id,score,text\n{lines}last,none,not good\n")
    files = Files(tmp_path / "a.csv", Columns("id", "text"))
    (shard,) = files.shards()
    assert sum(map(len, files.read(shard))) == count + 1


def test_what_is_beside_the_rows(tmp_path):
    """Outputs below the input, endings in capitals, blank lines."""
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "a.parquet", ["fine film"])
    run(tmp_path / "in", tmp_path / "in" / "out", *QUICK)
    assert verify(tmp_path / "in" / "out", tmp_path / "in").good
    (tmp_path / "B.JSONL.GZ").write_bytes(gzip.compress(b'\n{"id": 1, "text": "fine film"}\n'))
    run(tmp_path / "B.JSONL.GZ", tmp_path / "packed", *QUICK)
    (tmp_path / "c.jsonl").write_text('\n{"id": 1, "txt": "fine film"}\n')
    assert "no column 'text'" in refused(tmp_path / "c.jsonl", tmp_path / "out")
    (tmp_path / "twice.csv").write_text("id,text,text\n1,fine,film\n")
    pq.write_table(pa.table([[1], ["fine"], ["film"]], names=["id", "text", "text"]), tmp_path / "twice.parquet")
    assert "neither a file nor a directory" in refused("/dev/null", tmp_path / "out")
    for name in ("twice.csv", "twice.parquet"):
        assert "2 columns named 'text'" in refused(tmp_path / name, tmp_path / "out")


def test_rows_that_no_file_should_hold(tmp_path):
    raw = pa.array([b"fine film", b"caf\xe9", None], pa.binary())
    column = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    pq.write_table(pa.table({"id": [1, 2, 3], "text": column}), tmp_path / "a.parquet")
    run(tmp_path / "a.parquet", tmp_path / "a", *QUICK)
    found = rows(tmp_path / "a")
    assert found[1]["error"] is None
    assert "not UTF-8" in found[2]["error"]
    assert "got null" in found[3]["error"]
    lines = ['{"id": 1, "text": "fine"}', '{"id": 2, "text": 5}', '{"id": 3}', '{"id": 4, "text": "\\ud800"}']
    (tmp_path / "b.jsonl").write_text("\n".join(lines))
    run(tmp_path / "b.jsonl", tmp_path / "b", *QUICK)
    found = rows(tmp_path / "b")
    assert [found[i]["error"] is None for i in (1, 2, 3, 4)] == [True, False, False, False]
    assert "got int" in found[2]["error"]
    assert "no 'text'" in found[3]["error"]
    assert "surrogate" in found[4]["error"]


# What is refused


def test_inputs_that_are_refused(tmp_path):
    out = tmp_path / "out"
    write(tmp_path / "twice.parquet", ["a", "b", "c"], ["x", "y", "x"])
    assert "1 id is in the input more than once: 'x'" in refused(tmp_path / "twice.parquet", out)
    whole = write(tmp_path / "a.parquet", ["fine film"] * 300).read_bytes()
    assert "no column 'body'" in refused(tmp_path / "a.parquet", out, "--text-column", "body")
    assert "--id-column" in refused(tmp_path / "a.parquet", out, "--id-column", "key")
    assert "holds int64" in refused(tmp_path / "a.parquet", out, "--text-column", "id")
    (tmp_path / "cut.parquet").write_bytes(whole[:-50])
    assert "cut.parquet could not be read" in refused(tmp_path / "cut.parquet", out)
    (tmp_path / "bad.jsonl").write_text('{"id": 1, "text": "a"}\n{"id": 2, "te')
    assert "line 2, is no JSON" in refused(tmp_path / "bad.jsonl", out)
    (tmp_path / "mixed.jsonl").write_text('{"id": 1, "text": "a"}\n{"id": "2", "text": "a"}')
    assert "numbers and ids that are strings" in refused(tmp_path / "mixed.jsonl", out)
    (tmp_path / "float.jsonl").write_text('{"id": 1.5, "text": "a"}')
    assert "got 1.5" in refused(tmp_path / "float.jsonl", out)
    (tmp_path / "list.jsonl").write_text("[1]")
    assert "no object" in refused(tmp_path / "list.jsonl", out)
    (tmp_path / "ragged.csv").write_text("id,text\n1,a\n2,b,c\n")
    assert "line 3, has 3 values" in refused(tmp_path / "ragged.csv", out)
    (tmp_path / "none.csv").write_text("id,text\n")
    assert "no rows" in refused(tmp_path / "none.csv", out)
    write(tmp_path / "null.parquet", ["a", "b"], [1, None])
    assert "without an id" in refused(tmp_path / "null.parquet", out)
    (tmp_path / "notes.txt").write_text("hello")
    assert "none of .parquet" in refused(tmp_path / "notes.txt", out)
    assert "There is no file" in refused(tmp_path / "nowhere", out)
    (tmp_path / "empty").mkdir()
    assert "holds no files" in refused(tmp_path / "empty", out)
    assert "pyarrow can open" in refused("nosuch://place", out)
    (tmp_path / "two").mkdir()
    write(tmp_path / "two" / "a.parquet", ["a"], [1])
    write(tmp_path / "two" / "b.parquet", ["a"], ["1"])
    assert "int64 in one file and string" in refused(tmp_path / "two", out)
    assert "whole number or" in refused(tmp_path / "a.parquet", out, "--batch-size", "many")
    assert "no such directory" in refused(tmp_path / "a.parquet", out, "--model", "./nowhere")
    assert not out.exists()


def test_a_damaged_page_interrupts_the_job_and_nothing_is_skipped(tmp_path):
    path = damaged_page(tmp_path / "a.parquet")
    said = " ".join(run(path, tmp_path / "out", *QUICK, code=1).stderr.split())
    assert "a.parquet could not be read" in said
    assert "--resume continues the job" in said


def test_outputs_that_are_refused(tmp_path):
    path, out = write(tmp_path / "a.parquet", ["fine film", "not good"]), tmp_path / "out"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    assert "no job wrote (notes.txt)" in refused(path, tmp_path / "mine")
    assert "no job wrote" in refused(path, tmp_path / "mine", "--overwrite")
    assert "is a file" in refused(path, path)
    run(path, out, *QUICK)
    before = rows(out)
    assert "finished job of 2 rows" in refused(path, out)
    assert "one of the two" in refused(path, out, "--resume", "--overwrite")
    assert "settings.seed was 0 and is 1" in refused(path, out, "--resume", "--seed", "1")
    assert "targets was null" in refused(path, out, "--resume", "--target", "positive")
    write(tmp_path / "other.parquet", ["fine film", "not good"], [0, 5])
    assert "1 rows that the input does not have" in refused(tmp_path / "other.parquet", out, "--resume")
    write(tmp_path / "strings.parquet", ["fine film", "not good"], ["0", "1"])
    assert "ids that are int64, and the input has string" in refused(tmp_path / "strings.parquet", out, "--resume")
    write(tmp_path / "changed.parquet", ["fine film", "not bad", "more"])
    said = " ".join(run(tmp_path / "changed.parquet", out, "--resume", *QUICK, code=1).stderr.split())
    assert "have changed (1)" in said
    with Store(out).alone():
        assert "Another run is writing" in refused(path, out, "--resume")
    assert rows(out) == before
    assert "2 (2 from before)" in run(path, out, "--resume", *QUICK).stdout
    run(path, out, "--overwrite", "--seed", "1", *QUICK)
    assert rows(out)[0]["attributions"] != before[0]["attributions"]


def test_background_texts_of_a_job(tmp_path, default_pair):
    """They travel with the job; resuming compares them; outputs read from the job hold the set."""
    path, out = write(tmp_path / "texts.parquet", ["fine film", "not good"]), tmp_path / "out"
    for name, texts in {"one": "An ordinary film.\nok\n", "other": "An ordinary film.\nwell\n"}.items():
        (tmp_path / f"{name}.txt").write_text(texts)
    run(path, out, "--background", tmp_path / "one.txt", *QUICK)
    baseline = fastshap.BaselineSet(["An ordinary film.", "ok"])
    said = refused(path, out, "--resume", "--background", tmp_path / "other.txt")
    assert f'settings.baseline.fingerprint was "{baseline.fingerprint}" and is' in said
    assert "settings.baseline was" in refused(path, out, "--resume", "--baseline", "[MASK]")
    assert "2 (2 from before)" in run(path, out, "--resume", "--background", tmp_path / "one.txt", *QUICK).stdout
    explainer = fastshap.GradientShap(*default_pair, batch_size="auto", baseline=baseline, n_perturbations=4)
    for output, expected in zip(fastshap.jobs.read(out), explainer(["fine film", "not good"]), strict=True):
        assert output.baseline == baseline
        torch.testing.assert_close(output.attributions, expected.attributions, atol=1e-5, rtol=1e-4)
        assert fastshap.reproduce(output, *default_pair).same
    assert pickle.loads(pickle.dumps(BatchExplainer(baseline=baseline))).settings["baseline"] == baseline


def test_a_manifest_that_is_gone_or_lacks_something_is_made_anew_from_the_parts(tmp_path):
    path, out = write(tmp_path / "a.parquet", ["fine film", "not good"]), tmp_path / "out"
    run(path, out, *QUICK)
    before, manifest = rows(out), json.loads((out / MANIFEST).read_text())
    broken = ["", "{", *(json.dumps({k: manifest[k] for k in manifest if k != name}) for name in ("job", "identity"))]
    for content in [*broken, None]:
        if content is None:
            (out / MANIFEST).unlink()
        else:
            (out / MANIFEST).write_text(content)
        assert "was interrupted" in refused(path, out)
        assert verify(out, path).state == "interrupted"
        assert "settings.seed was 0 and is 1" in refused(path, out, "--resume", "--seed", "1")
        assert "2 (2 from before)" in run(path, out, "--resume", *QUICK).stdout
        assert verify(out, path).good
        assert rows(out) == before
    (out / MANIFEST).write_text(json.dumps(manifest | {"format": 7}))
    assert "format 7, which this version" in refused(path, out)


def as_an_earlier_version(out, state="complete"):
    """The output as version 1 of the format: parts without digests and metadata, a manifest without the configuration."""
    for part in out.glob("part-*"):
        table = pq.read_table(part)
        names = [name for name in table.schema.names if name != "digest"]
        pq.write_table(table.select(names).replace_schema_metadata(), part)
    manifest = json.loads((out / MANIFEST).read_text())
    model = {k: v for k, v in manifest["identity"]["model"].items() if k not in ("configuration", "labels_fingerprint")}
    identity = manifest["identity"] | {"model": model}
    (out / MANIFEST).write_text(json.dumps(manifest | {"format": 1, "state": state, "identity": identity}))


def test_an_output_of_an_earlier_version(tmp_path):
    path, out = write(tmp_path / "a.parquet", ["fine film", "not good"]), tmp_path / "out"
    run(path, out, *QUICK)
    as_an_earlier_version(out)
    found = verify(out, path)
    assert (found.good, found.unchecked) == (True, 2)
    assert "not checked      2 rows of an earlier version" in "\n".join(found.lines())
    write(path, ["fine film", "not good", "loved it"])
    assert "3 (2 from before)" in run(path, out, "--resume", *QUICK).stdout
    assert (verify(out, path).good, verify(out, path).unchecked) == (True, 2)
    as_an_earlier_version(out)
    (out / MANIFEST).unlink()
    for options in ([], ["--resume"]):
        assert "whose manifest is gone" in refused(path, out, *options)
    run(path, out, "--overwrite", *QUICK)


def test_a_finished_job_stays_finished_when_texts_have_changed(tmp_path):
    path, out = write(tmp_path / "a.parquet", ["fine film", "not good"]), tmp_path / "out"
    run(path, out, *QUICK)
    said = refused(write(tmp_path / "changed.parquet", ["fine film", "not bad"]), out, "--resume")
    assert "have changed (1)" in said
    assert "continues" not in said
    assert verify(out, path).good


def test_outputs_that_cannot_be_written(tmp_path, monkeypatch):
    path, out = write(tmp_path / "a.parquet", ["fine film", "not good"]), tmp_path / "out"
    assert "could not be written: " in refused(path, path / "out")

    def denied(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr("fastshap.jobs.store.os.makedirs", denied)
        assert "could not be written: [Errno 13] Permission denied. Make room" in refused(path, out)


def test_a_disk_that_is_full_for_a_while(tmp_path, monkeypatch):
    """What was explained before is kept, nothing is there twice, and the next run goes on."""
    path, out = write(tmp_path / "a.parquet", make_texts(200)), tmp_path / "out"
    monkeypatch.setattr("fastshap.jobs.job._ROWS", 80)
    write_table, failed = pq.write_table, []

    def full(table, file, **options):
        if not failed:
            file.write(b"PAR1")
            failed.append(len(table))
            raise OSError(28, "No space left on device")
        write_table(table, file, **options)

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(JobError, match="No space left on device"):
        explain_files(path, out, **SETTINGS)
    monkeypatch.setattr(pq, "write_table", write_table)
    assert failed
    assert not list(out.glob("*.tmp"))
    assert explain_files(path, out, resume=True, **SETTINGS).rows == 200
    assert verify(out, path).good


def test_a_changed_model_is_refused(tmp_path, default_pair, bert_pair):
    path = write(tmp_path / "a.parquet", ["fine film", "not good"])
    for pair in (bert_pair,):
        for part in pair:
            part.save_pretrained(tmp_path / "model")
    run(path, tmp_path / "out", "--model", tmp_path / "model", *QUICK)
    weights = tmp_path / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    said = refused(path, tmp_path / "out", "--model", tmp_path / "model", "--resume")
    assert "model.model_fingerprint was" in said
    assert "--overwrite" in said


# A job, its end and its interruptions


def test_a_job_in_a_process(tmp_path, default_pair):
    texts = [*make_texts(30), "", "good " * 2000]
    path, out = write(tmp_path / "a.parquet", texts), tmp_path / "out"
    said = run(path, out, *QUICK).stdout
    assert re.search(r"rows +32\nexplained +31 \(1 truncated .*\nerrors +1\n +InvalidArgumentError +1\n", said)
    assert re.search(r"samples +124 \(4.0 a text\)\ntime .* texts a second\nstart-up .*\npadding +\d+\.\d%", said)
    found = rows(out)
    outputs = fastshap.GradientShap(*default_pair, on_error="record", **SETTINGS).explain(texts[:31])
    expected = {
        i: found[i] | {"attributions": o.attributions.flatten().tolist(), "elements": o.elements}
        for i, o in enumerate(outputs[:30])
    }
    same_numbers({i: found[i] for i in range(30)}, expected)
    assert CliRunner().invoke(app, ["verify", str(out), str(path)]).exit_code == 0
    write(path, [*texts, "one more"])
    unfinished = CliRunner().invoke(app, ["verify", str(out), str(path)])
    assert unfinished.exit_code == 1
    assert re.search(r"missing +1\n", unfinished.stdout)
    assert "33 (32 from before)" in run(path, out, "--resume", *QUICK).stdout
    assert verify(out, path).good


def test_a_class_of_its_own_for_every_kind_of_difference(tmp_path):
    path, out = write(tmp_path / "a.parquet", make_texts(6)), tmp_path / "out"
    run(path, out, *QUICK)
    (part,) = out.glob("part-*")
    whole = pq.read_table(part)
    changed = replaced(whole, "text_hash", ["0" * 32] * 6)
    blank = replaced(whole, "attributions", [[]] * 3 + [None] * 3)
    rows_ = pa.concat_tables([changed[:1], blank[1:2], whole[2:4], whole[3:4]])
    pq.write_table(with_digests(rows_.drop_columns(["digest"])), part)
    found = verify(out, path)
    assert (found.missing, found.twice, found.changed, found.empty, found.good) == (2, 1, 1, 1, False)
    said = CliRunner().invoke(app, ["verify", str(out), str(path)]).stdout
    assert "--overwrite" in said
    assert re.search(r"there twice +1\n", said)
    assert "1 ids twice" in refused(path, out, "--resume")
    part.write_bytes(b"PAR1")
    assert verify(out, path).damaged == [part.name]
    write(path, ["a"], ["x"])
    assert verify(out, path).missing == 1
    part.unlink()
    assert CliRunner().invoke(app, ["verify", str(tmp_path), str(path)]).exit_code == 2


def parts_of(out, count, process=None):
    """Waits for so many parts of a job, which the process runs."""
    limit = time.monotonic() + 120
    while len(list(out.glob("part-*"))) < count:
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < limit, "no parts in time"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """Two jobs of 400 texts in processes of their own, the one killed, the other stopped by SIGTERM; and what that one said.

    The process that runs the second is the first one's parent, which had not explained before.
    """
    place = tmp_path_factory.mktemp("interrupted")
    path = write(place / "a.parquet", make_texts(400))
    killed, stopped = place / "killed", place / "stopped"
    both = f"""
import fastshap
fastshap.load_default_model()  # which imports what it takes
child = os.fork()
print(child, flush=True)
app(["run", {str(path)!r}, {str(killed)!r} if child == 0 else {str(stopped)!r}, *{QUICK!r}])
"""
    command = [sys.executable, "-c", SLOWLY + both]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        child = max(int(process.stdout.readline()), int(process.stdout.readline()))
        parts_of(stopped, 1, process)
        before = verify(stopped, path).state
        process.send_signal(signal.SIGTERM)
        parts_of(killed, 4)
        os.kill(child, signal.SIGKILL)
        _, err = process.communicate(timeout=120)
    return path, killed, stopped, before, process.returncode, err


def damage_and_resume(path, out, whole, count, resume):
    """After SIGKILL: one part cut off, one removed, one with a flipped bit, one not finished. Each row once, as without."""
    state = json.loads((out / MANIFEST).read_text())
    assert state["state"] == "running"
    assert "was interrupted" in refused(path, out)
    parts = sorted(out.glob("part-*"))
    done = sum(pq.read_metadata(part).num_rows for part in parts)
    assert 0 < done < count
    assert not verify(out, path).good
    parts[0].write_bytes(parts[0].read_bytes()[:-20])
    parts[1].unlink()
    group = pq.read_metadata(parts[2]).row_group(0)
    (scores,) = (
        one for one in map(group.column, range(group.num_columns)) if one.path_in_schema.startswith("attributions")
    )
    content = bytearray(parts[2].read_bytes())
    content[scores.data_page_offset + scores.total_compressed_size - 5] ^= 255
    parts[2].write_bytes(content)
    (out / f".{parts[3].name}.tmp").write_bytes(b"half")
    (out / f".{MANIFEST}.tmp").write_bytes(b"half")
    assert "damaged parts    2" in resume()
    assert verify(out, path).good
    assert not list(out.glob(".*"))
    run(path, whole, *QUICK)
    assert pq.read_table(out).num_rows == count
    same_numbers(rows(out), rows(whole))


def test_killed_and_resumed(tmp_path, interrupted):
    path, out, *_ = interrupted
    damage_and_resume(path, out, tmp_path / "whole", 400, lambda: run(path, out, "--resume", *QUICK).stdout)


@pytest.mark.slow
def test_killed_at_full_speed_and_resumed_in_another_process(tmp_path):
    path, out = write(tmp_path / "a.parquet", make_texts(1500)), tmp_path / "out"
    command = [sys.executable, "-c", COMMAND, "run", str(path), str(out), *QUICK]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        parts_of(out, 4, process)
        process.kill()
    resume = [*command, "--resume"]
    damage_and_resume(
        path,
        out,
        tmp_path / "whole",
        1500,
        lambda: subprocess.run(resume, capture_output=True, text=True, check=True, timeout=300).stdout,
    )


def test_sigterm_ends_a_run_with_what_it_has(interrupted):
    path, _, out, before, code, err = interrupted
    assert before == "running"
    assert code == 143, err
    assert "stopped; what was explained is in" in err
    found = verify(out, path)
    assert (found.state, found.damaged, found.twice) == ("interrupted", [], 0)
    assert 0 < found.summary.rows < 400


def test_stopped_by_the_keyboard(tmp_path, monkeypatch):
    path, out = write(tmp_path / "a.parquet", make_texts(200)), tmp_path / "out"
    add, calls = JobProgress.add, []

    def interrupted(self, count):
        add(self, count)
        calls.append(count)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(JobProgress, "add", interrupted)
    assert "--resume continues" in run(path, out, *QUICK, code=130).stderr
    monkeypatch.undo()
    assert f"({sum(calls)} from before)" in run(path, out, "--resume", *QUICK).stdout


def test_slow_texts_are_handed_on_as_they_come(tmp_path, monkeypatch):
    path, out = write(tmp_path / "a.parquet", make_texts(50)), tmp_path / "out"
    add, calls, given = JobProgress.add, [], []
    window = fastshap.GradientShap._explain_window

    def slow(self, texts, *arguments):
        given.extend(texts)
        if len(given) > 7:
            raise KeyboardInterrupt
        time.sleep(0.12 * len(texts))
        return window(self, texts, *arguments)

    monkeypatch.setattr("fastshap.jobs.local._HAND_ON", 0.2)
    monkeypatch.setattr(fastshap.GradientShap, "_explain_window", slow)
    monkeypatch.setattr(JobProgress, "add", lambda self, count: (add(self, count), calls.append(count)))
    said = run(path, out, *QUICK, code=130).stderr
    assert calls == [1] * 7
    assert f"what was explained is in {out}: 7 of 50 rows. --resume" in said.replace("\n", "")
    assert set(rows(out)) == set(range(7))


def test_what_waits_is_kept_when_a_run_is_stopped(tmp_path, monkeypatch):
    path, out = write(tmp_path / "a.parquet", make_texts(50)), tmp_path / "out"
    explain = fastshap.GradientShap.iter_explain

    def stopped(self, *arguments, **options):
        for i, output in enumerate(explain(self, *arguments, **options)):
            if i == 12:
                raise KeyboardInterrupt
            yield output

    monkeypatch.setattr(fastshap.GradientShap, "iter_explain", stopped)
    monkeypatch.setattr("fastshap.jobs.local._HAND_ON", 1e9)
    run(path, out, *QUICK, code=130)
    assert set(rows(out)) == set(range(12))


def test_a_run_that_was_taken_over_stops(tmp_path, monkeypatch):
    path, out = write(tmp_path / "a.parquet", make_texts(100)), tmp_path / "out"
    add = JobProgress.add

    def taken(self, count):
        add(self, count)
        manifest = json.loads((out / MANIFEST).read_text())
        (out / MANIFEST).write_text(json.dumps(manifest | {"run": 9}))

    monkeypatch.setattr(JobProgress, "add", taken)
    with pytest.raises(JobError, match="taken over"):
        explain_files(path, out, **SETTINGS)
    assert not list(out.glob("part-*"))


def test_what_breaks_the_stream_costs_its_row_alone(tmp_path, monkeypatch):
    texts = make_texts(150)
    path, out = write(tmp_path / "a.parquet", texts), tmp_path / "out"
    window = fastshap.GradientShap._explain_window

    def fragile(self, given, *arguments):
        if texts[100] in given:
            raise RuntimeError("a kernel failed")
        return window(self, given, *arguments)

    monkeypatch.setattr(fastshap.GradientShap, "_explain_window", fragile)
    summary = explain_files(path, out, **SETTINGS)
    assert (summary.rows, dict(summary.errors)) == (150, {"ModelFailedError": 1})
    assert rows(out)[100]["error"] == "ModelFailedError: The model failed on this text: RuntimeError: a kernel failed"


class Failing:
    """Stands for ``load_pair``: the model in the package, which fails where its input holds the word "terrible"."""

    def __init__(self):
        self.everywhere = False

    def __call__(self, name, task):
        model, tokenizer = fastshap.load_default_model()
        token = tokenizer("terrible", add_special_tokens=False)["input_ids"][0]
        embedding = model.get_input_embeddings().weight[token].detach().clone()
        forward = model.forward

        def failing(input_ids=None, inputs_embeds=None, **options):
            if input_ids is not None:
                near = input_ids == token
            else:  # less than the path's first fifth away
                near = (inputs_embeds.detach() - embedding).norm(dim=-1) < 0.2 * embedding.norm()
            if bool(near.any()) or self.everywhere:
                raise IndexError("index out of range in self")
            return forward(input_ids=input_ids, inputs_embeds=inputs_embeds, **options)

        model.forward = failing
        return model, tokenizer


@pytest.fixture
def failing(monkeypatch):
    """Has jobs run a model that fails on some texts."""
    stand_in = Failing()
    monkeypatch.setattr("fastshap.jobs.table.load_pair", stand_in)
    return stand_in


@pytest.mark.parametrize("targets", [None, "positive"])
def test_a_text_on_which_the_model_fails_is_recorded_and_its_neighbours_are_right(tmp_path, failing, targets):
    texts = make_texts(150)
    texts = ["a terrible film" if i in (70, 149) else text.replace("terrible", "bad") for i, text in enumerate(texts)]
    path = write(tmp_path / "a.parquet", texts)
    summary = explain_files(path, tmp_path / "out", targets=targets, **SETTINGS)
    assert dict(summary.errors) == {"ModelFailedError": 2}
    found = rows(tmp_path / "out")
    said = "ModelFailedError: The model failed on this text: IndexError: index out of range in self"
    assert found[70]["error"] == found[149]["error"] == said
    others = [i for i in range(150) if i not in (70, 149)]
    alone = BatchExplainer(targets=targets, keep=("id",), **SETTINGS)
    expected = alone({"id": others, "text": [texts[i] for i in others]}).to_pylist()
    same_numbers({i: found[i] for i in others}, {row["id"]: row | {"digest": ""} for row in expected})
    assert verify(tmp_path / "out", path).good


@pytest.mark.parametrize("count", [1, 40, 400])
def test_a_model_that_fails_on_every_text_ends_the_job(tmp_path, failing, count):
    path, out = write(tmp_path / "a.parquet", ["a terrible film", *["", "terrible"] * (count // 2)]), tmp_path / "out"
    result = run(path, out, *QUICK, code=1)
    some = "the only text" if count == 1 else f"each of {min(count // 2 + 1, MOST_FAILED)} texts"
    assert f"failed on {some}" in result.stderr
    assert "--resume continues the job" in result.stderr
    assert not any("ModelFailedError" in row["error"] for part in out.glob("part-*") for row in rows(part).values())
    if count < 2 * MOST_FAILED:  # these are the texts' own
        write(path, [*pq.read_table(path).column("text").to_pylist(), "fine film"])
        run(path, out, "--resume", *QUICK)
        assert verify(out, path).good


def test_a_model_that_breaks_later_on_ends_the_job_and_what_was_before_is_kept(tmp_path, failing, monkeypatch):
    path, out = write(tmp_path / "a.parquet", make_texts(300)), tmp_path / "out"
    add, done = JobProgress.add, []

    def broken_from_now_on(self, count):
        add(self, count)
        done.append(count)
        failing.everywhere = sum(done) > 80

    monkeypatch.setattr(JobProgress, "add", broken_from_now_on)
    texts = [text.replace("terrible", "bad") for text in make_texts(300)]
    path = write(tmp_path / "a.parquet", texts)
    assert "failed on each of" in run(path, out, *QUICK, code=1).stderr
    found = rows(out)
    assert 80 < len(found) < 300
    assert all(row["error"] is None for row in found.values())
    monkeypatch.undo()
    explain_files(path, out, resume=True, **SETTINGS)
    assert verify(out, path).good


def test_progress_for_people(capsys, monkeypatch):
    assert [duration(4.21), duration(200), duration(7500)] == ["4.2 s", "3 min 20 s", "2 h 5 min"]
    clock = iter([0.0, 31.0, 40.0, 62.0])
    monkeypatch.setattr("fastshap.jobs.progress.time.monotonic", lambda: next(clock))
    progress = JobProgress(1000, 100, shown=True)
    for count in (62, 9, 10):
        progress.add(count)
    progress.close()
    assert capsys.readouterr().err.splitlines() == [
        "fastshap: 162 of 1,000 texts (16%), 2.0 a second, 6 min 59 s left",
        "fastshap: 181 of 1,000 texts (18%), 1.3 a second, 10 min 27 s left",
    ]


def test_the_bar_of_a_job_begins_without_a_rate(monkeypatch):
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", screen)
    JobProgress(50, 0, shown=True).close()
    assert "0 of 50 texts, starting" in screen.getvalue()


def test_every_parameter_of_the_explainer_is_an_option():
    wanted = set(inspect.signature(fastshap.GradientShap).parameters)
    wanted -= {
        "model",
        "tokenizer",
        "return_convergence_delta",
        "on_error",
        "cuda_graphs",
    }  # the last is for single texts
    shown = CliRunner().invoke(app, ["run", "--help"], env={"COLUMNS": "200"}).stdout
    assert all(f"--{name.replace('_', '-')}" in shown for name in wanted)


def test_without_ray_a_job_runs_here(tmp_path, monkeypatch):
    path = write(tmp_path / "a.parquet", ["fine film"])
    monkeypatch.setattr("fastshap.jobs.runners.find_spec", lambda name: None)
    run(path, tmp_path / "out", "--n-perturbations", "4")
    assert "address: these need Ray: pip install" in run(path, tmp_path / "b", "--address", "auto", code=2).stderr
