"""Outputs of version 0.1.0, kept as files: they read back, they are computed again to the bit, and their form has not changed.

`tests/data/golden/make.py` made the files, and explains the same texts here once more.
"""

import itertools
import json
import math
import runpy
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

import fastshap
from fastshap.output.plain import SCHEMA_VERSION

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
ABOUT = json.loads((GOLDEN / "about.json").read_text())
NAMES = [case["name"] for case in ABOUT["cases"]]
LINES = (GOLDEN / "outputs.jsonl").read_text().splitlines()
DERIVED = ["reliability", "segments", "target_weights"]  # what outputs say beside what files hold that are older
ROUNDING = 1e-5  # of the largest, by another order of float32 sums
LIBRARIES = ("torch", "transformers", "tokenizers")
JOBS = {"job-jsonl": "texts.jsonl", "job-parquet": "texts.parquet"}
OPTIONS = {"job-jsonl": [], "job-parquet": ["--target", "all", "--granularity", "sentence"]}


@pytest.fixture(scope="module")
def made():
    """The script's functions; one thread, as it had."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield runpy.run_path(str(GOLDEN / "make.py"))
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def exact(made):
    """Whether numbers must be the same to the bit: the same libraries on the same kind of processor."""
    then = json.loads(LINES[0])["provenance"]["versions"]
    now = fastshap.GradientShap(*fastshap.load_default_model())("fine")[0].provenance.versions
    return made["machine"]() == ABOUT["machine"] and all(then[name] == now[name] for name in LIBRARIES)


def differences(then, now, exact, scale=0.0, place=""):
    """Where two plain values differ; numbers but for rounding, as a share of the largest beside them, unless exact."""
    if isinstance(then, dict) and isinstance(now, dict):
        keys = then.keys() ^ now.keys()
        found = [differences(then[key], now[key], exact, scale, f"{place}.{key}") for key in then.keys() & now.keys()]
        return [f"{place}.{key}" for key in keys] + [one for some in found for one in some]
    if isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        scale = max([scale, *(abs(one) for one in then if isinstance(one, float) and math.isfinite(one))])
        each = map(differences, then, now, itertools.repeat(exact), itertools.repeat(scale))
        return [f"{place}{one}" for some in each for one in some]
    if not exact and isinstance(then, float) and isinstance(now, float) and math.isfinite(then):
        return [] if abs(then - now) <= ROUNDING * max(scale, abs(then)) else [f"{place}: {then} and {now}"]
    return [] if (then == now or (then != then and now != now)) else [f"{place}: {then!r} and {now!r}"]


def without_derived(plain):
    """Without what older files lack."""
    return {name: value for name, value in plain.items() if name not in DERIVED}


def known_then(settings, then):
    """Without parameters that are younger than the files, and have their defaults."""
    usual = fastshap.settings.Settings().to_plain()
    assert all(settings[name] == usual[name] for name in settings.keys() - then.keys())
    return {name: value for name, value in settings.items() if name in then}


def parsed(table):
    """Rows, with their columns of JSON read: names may stand in any order there."""
    columns = ("settings", "provenance", "model_inputs")
    return [row | {name: json.loads(row[name]) for name in columns} for row in table.to_pylist()]


def scale_of(plain):
    """The size that a text's rounding goes with: of its scores, and of errors that come from larger terms."""
    rows = plain["attributions"] + [[10 * (error or 0) for error in row] for row in plain["standard_error"]]
    return max((abs(score) for row in rows for score in row if score is not None), default=0.0)


# Outputs


def test_lines_read_back_and_are_written_as_they_were():
    outputs = list(fastshap.read_jsonl(GOLDEN / "outputs.jsonl"))
    assert len(outputs) == len(NAMES) == len(set(NAMES)) == len(LINES)
    for output, line in zip(outputs, LINES, strict=True):
        if json.loads(line)["schema_version"] == SCHEMA_VERSION:
            now = without_derived(json.loads(output.to_json()))
            assert differences(json.loads(line), now, exact=True) == []  # in any order of names
            continue
        then, now = json.loads(line), json.loads(output.to_json())  # a later version may have more
        for entries in ("settings", "provenance"):
            then |= then.pop(entries)
            now |= now.pop(entries)
        assert {name: now[name] for name in then if name != "schema_version"} == {
            name: value for name, value in then.items() if name != "schema_version"
        }


def test_parquet_reads_back_and_is_written_as_it_was(tmp_path):
    outputs = list(fastshap.read_parquet(GOLDEN / "outputs.parquet"))
    assert [output.to_json() for output in outputs] == [
        output.to_json() for output in fastshap.read_jsonl(GOLDEN / "outputs.jsonl")
    ]
    fastshap.write_parquet(outputs, tmp_path / "again.parquet")
    then, now = pq.read_table(GOLDEN / "outputs.parquet"), pq.read_table(tmp_path / "again.parquet")
    if set(then.column("schema_version").to_pylist()) == {SCHEMA_VERSION}:
        now = now.drop_columns(DERIVED)
        assert now.schema.equals(then.schema)
        assert differences(parsed(then), parsed(now), exact=True) == []


def test_there_is_every_kind():
    """The files hold what they are for: a file that lost a kind would let it change."""
    outputs = dict(zip(NAMES, fastshap.read_jsonl(GOLDEN / "outputs.jsonl"), strict=True))
    seen = outputs.values()
    assert {output.granularity for output in seen} == set(fastshap.Granularity)
    assert {output.granularity_aggregation_strategy for output in seen} == set(fastshap.GranularityAggregationStrategy)
    assert {output.inference_mode for output in seen} == {*fastshap.InferenceModes} - {fastshap.InferenceModes.SIGMOID}
    kinds = {(output.model_task, output.reduction, output.sampling) for output in seen}
    assert len(kinds) >= 5
    assert {(output.reduction, output.input_x_gradient) for output in seen} == {
        (reduction, multiplied) for reduction in ("sum", "abs_mean") for multiplied in (True, False)
    }
    assert {output.converged for output in seen} == {None, True, False}
    assert sum(output.error is not None for output in seen) == 2
    assert sum(output.truncated for output in seen) == 1
    assert sum(output.convergence_delta is not None for output in seen) == 3
    baselines = {getattr(output.baseline, "ndim", type(output.baseline)) for output in seen}
    assert baselines >= {1, 2, float}
    assert {len(output.targets) for output in seen} >= {0, 1, 2, 3}
    assert any(output.attributions.isnan().any() for output in seen)
    assert "token_type_ids" in outputs["a pair"].model_inputs_to_explain


def test_the_same_texts_give_the_same_numbers(made, exact):
    """From the text: tokens, elements, targets, what is generated, every number and every setting."""
    found = {}
    for (name, _, output), line in zip(made["explained"](), LINES, strict=True):
        then, now = json.loads(line), without_derived(json.loads(output.to_json()))
        now["settings"] = known_then(now["settings"], then["settings"])
        for name in {"output_value", "baseline_value"} - then.keys():
            assert (now.pop(name) is None) == (then["convergence_delta"] is None)
        for plain in (then, now):
            plain.pop("schema_version")
            versions = plain["provenance"].pop("versions")
            assert not plain["error"] or versions
            if not exact:
                plain.pop("provenance")  # libraries add entries to configurations
        # Version 0.1.0 ran the text alone for its prediction, and not as a row of a larger call.
        of_call = [{key: plain.pop(key) for key in ("probability", "target_probabilities")} for plain in (then, now)]
        if wrong := differences(then, now, exact, scale_of(then)) + differences(*of_call, exact=False):
            found[name] = wrong
    assert found == {}


def test_reproduce_finds_them_the_same(made, exact):
    models = made["pairs"]()
    found = {}
    for case, line in zip(ABOUT["cases"], LINES, strict=True):
        output = fastshap.AttributionOutput.from_json(line)
        if output.error is not None:
            continue
        again = fastshap.reproduce(output, *models[case["model"]])
        unchanged = again.changed.keys() <= {"fastshap", *(() if exact else again.changed)}
        same = again.identical if exact else again.same
        if not (same and unchanged and "model_fingerprint" not in again.changed):
            found[case["name"]] = str(again)
    assert found == {}


# Jobs


def table_of(directory):
    (part,) = directory.glob("part-*.parquet")
    return pq.ParquetFile(part).read()


@pytest.mark.parametrize("job", JOBS)
def test_a_job_reads_back_and_is_complete(job, made, exact, tmp_path, monkeypatch):
    """It is verified; to resume it changes nothing, so that this version takes it for the same job."""
    shutil.copytree(GOLDEN, tmp_path / "golden")
    monkeypatch.chdir(tmp_path / "golden")
    made["verify_job"](JOBS[job], job)
    before = {path.name: path.read_bytes() for path in Path(job).glob("part-*")}
    if exact:  # the identity holds the configuration, to which libraries add entries
        made["run_job"](JOBS[job], job, *OPTIONS[job], "--resume")
    assert {path.name: path.read_bytes() for path in Path(job).glob("part-*")} == before


@pytest.mark.parametrize("job", JOBS)
def test_the_outputs_of_a_job_are_read(job):
    """Also one part by itself, which says what job it is of."""
    rows = {row["id"]: row for row in table_of(GOLDEN / job).to_pylist()}
    (part,) = (GOLDEN / job).glob("part-*.parquet")
    alone = list(fastshap.read_parquet(part))
    for (name, output), other in zip(fastshap.jobs.read(GOLDEN / job, ids=True), alone, strict=True):
        row = rows.pop(name)
        assert (output.error, output.truncated) == (row["error"], row["truncated"])
        assert output.elements == other.elements == (row["elements"] or [])
        assert output.target_names == (row["target_names"] or [])
        assert output.attributions.flatten().tolist() == (row["attributions"] or [])
        assert output.standard_error.flatten().tolist() == (row["standard_error"] or [])
        assert (output.granularity.value == "sentence") == ("sentence" in OPTIONS[job])
    assert not rows


@pytest.mark.parametrize("job", JOBS)
def test_a_job_writes_the_same_rows(job, made, exact, tmp_path, monkeypatch):
    monkeypatch.chdir(GOLDEN)
    made["run_job"](JOBS[job], tmp_path / "out", *OPTIONS[job])
    then = table_of(GOLDEN / job).drop_columns(["digest"])
    now = table_of(tmp_path / "out").select(then.schema.names)  # rows hold more by now, which the digest counts
    assert now.schema.remove_metadata().equals(then.schema.remove_metadata())
    for old, new in zip(then.to_pylist(), now.to_pylist(), strict=True):
        if old["error"] is not None:  # had null for what was not computed
            assert old["n_perturbations"] == 0
            old |= {name: [] for name, value in old.items() if value is None and isinstance(new[name], list)}
            old["n_perturbations"] = new["n_perturbations"]
        assert differences(old, new, exact) == []
    manifests = [
        json.loads((place / "_fastshap_manifest.json").read_text()) for place in (GOLDEN / job, tmp_path / "out")
    ]
    for manifest in manifests:
        for name in ("format", "job", "versions", "input"):
            del manifest[name]
        manifest["summary"].pop("noisy", None)  # not counted then
        if not exact:
            del manifest["identity"]["model"]
    settings = [manifest["identity"]["settings"] for manifest in manifests]
    manifests[1]["identity"]["settings"] = known_then(settings[1], settings[0])
    assert manifests[0] == manifests[1]


# The comparison itself


def test_a_number_that_changed_is_found():
    then = json.loads(LINES[0])
    now = json.loads(LINES[0])
    assert differences(then, now, exact=True) == []
    now["attributions"][0][1] *= 1 + 1e-7
    assert len(differences(then, now, exact=True)) == 1
    assert differences(then, now, False, scale_of(then)) == []
    now["attributions"][0][1] *= 1 + 1e-4
    assert len(differences(then, now, False, scale_of(then))) == 1
    del now["text"]
    assert len(differences(then, now, exact=True)) == 2
