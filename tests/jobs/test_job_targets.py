"""Jobs whose target is a contrast of two words."""

import json

import pytest
from typer.testing import CliRunner

import fastshap
from fastshap import Contrast, jobs
from fastshap.cli.explain import app
from fastshap.errors import InvalidArgumentError, JobError
from fastshap.jobs.listing import MANIFEST

pytestmark = pytest.mark.usefixtures("loaded_once")

TEXTS = ["A gorgeous, witty film.", "not good", "weak but witty", " "]
FEW = {"runner": "local", "n_perturbations": 4}
OPTIONS = ("--local", "--n-perturbations", "4", "--target", "positive", "--contrast", "negative")


def written(texts, place):
    path = place / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"id": i, "text": text}) for i, text in enumerate(texts)))
    return path


def shell(*arguments, code=0):
    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


def test_a_contrast_is_saved_resumed_and_computed_again(tmp_path, default_pair):
    out, source = tmp_path / "out", written(TEXTS[:2], tmp_path)
    shell("run", source, out, *OPTIONS)
    same = json.loads((out / MANIFEST).read_text())["identity"]
    assert (same["targets"], same["contrast"]) == (["positive"], "negative")
    source = written(TEXTS, tmp_path)
    with pytest.raises(JobError, match='contrast was "negative" and is null'):
        jobs.run(source, out, resume=True, targets="positive", **FEW)
    summary = jobs.run(source, out, resume=True, targets=Contrast("positive", "negative"), **FEW)
    assert (summary.rows, summary.before, summary.errors.total()) == (4, 2, 1)
    assert jobs.verify(out, source).good
    explainer = fastshap.GradientShap(*default_pair, "auto", n_perturbations=4)
    for output, expected in zip(jobs.read(out), explainer(TEXTS[:3], Contrast("positive", "negative")), strict=False):
        assert output.target_names == ["positive rather than negative"]
        assert (output.attributions - expected.attributions).abs().max() < 1e-5
        assert fastshap.reproduce(output, *default_pair).same


def test_a_language_models_contrast(tmp_path, llama_pair):
    for part in llama_pair:
        part.save_pretrained(tmp_path / "lm")
    shell("run", written(TEXTS[:2], tmp_path), tmp_path / "out", "--model", tmp_path / "lm", *OPTIONS)
    assert {name for output in jobs.read(tmp_path / "out") for name in output.target_names} == {
        "positive rather than negative"
    }


def test_contrasts_without_sense(tmp_path):
    source = written(TEXTS, tmp_path)
    said = shell("run", source, tmp_path / "out", "--local", "--contrast", "negative", code=2).output
    assert "stands beside one --target" in said
    for targets, message in (
        (Contrast("positive", "all"), "neither of which is 'all'"),
        (Contrast("positive", "neutral"), "no label 'neutral'"),
    ):
        with pytest.raises(InvalidArgumentError, match=message):
            jobs.run(source, tmp_path / "out", targets=targets, **FEW)


def test_a_batch_of_contrasts():
    table = fastshap.BatchExplainer(n_perturbations=4, targets=Contrast(1, 0))({"text": TEXTS})
    assert table.column("target_names").to_pylist() == [["positive rather than negative"]] * 3 + [None]
