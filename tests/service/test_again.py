"""``fastshap reproduce``: what an audit log says, computed again."""

import copy
import json

import pytest
import torch
from typer.testing import CliRunner

from fastshap.cli import app
from fastshap.service.audit import Audit
from helpers.services import app_of, service_of

pytestmark = pytest.mark.serve

INSTANCES = [
    "A gorgeous, witty film.",
    {"text": "bad", "pair": "Dull.", "targets": "all"},
    "",
    {"text": "x", "rtol": 0.3},
]


@pytest.fixture(scope="module", params=[True, False], ids=["texts", "no texts"])
def log(request, default_pair, tmp_path_factory):
    path = tmp_path_factory.mktemp("audit") / "audit.jsonl"
    service = service_of(default_pair, audit=Audit(path, request.param))
    with app_of(service) as client:
        answer = client.post(
            "/v1/models/sentiment:explain", json={"instances": INSTANCES}, headers={"x-request-id": "one"}
        )
        assert answer.status_code == 200
    return path, request.param


@pytest.fixture
def run(loaded_once):
    def reproduced(*arguments, code=0):
        done = CliRunner().invoke(app, ["reproduce", *map(str, arguments)])
        assert done.exit_code == code, done.output
        return done.output

    return reproduced


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.jsonl"
    asked = [{"text": one} if isinstance(one, str) else dict(one) for one in INSTANCES]
    asked[3].pop("rtol")
    path.write_text("".join(json.dumps({"id": f"one/{i}", **one}) + "\n" for i, one in enumerate(asked)))
    return path


def test_all_of_it_is_the_same(log, run, texts):
    path, whole = log
    said = run(path, *(() if whole else ("--texts", texts)))
    assert said.count("attributions: the same") == 3
    assert said.endswith("3 of 3 the same.\n")
    assert run(path, "--sample", 1, "--texts", texts).endswith("1 of 1 the same.\n")


def test_a_line_without_its_text_needs_it(log, run):
    path, whole = log
    if not whole:
        assert run(path, code=1).count("hand it in with --texts") == 3


def test_what_has_changed_is_named(log, run, texts, default_pair, monkeypatch):
    path, _ = log
    model = copy.deepcopy(default_pair[0])
    with torch.no_grad():
        model.classifier.weight.mul_(1.5)
    monkeypatch.setattr("fastshap.tasks.loading.load_default_model", lambda: (model, default_pair[1]))
    said = run(path, "--texts", texts, code=1)
    assert said.count("DIFFERENT") == 3
    assert said.count("model_fingerprint: was ") == 3
    assert said.endswith("0 of 3 the same.\n")


def test_scores_that_were_changed_show(log, run, texts, tmp_path):
    path, _ = log
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[0]["output"]["attributions"][0][1] += 0.01
    changed = tmp_path / "changed.jsonl"
    changed.write_text("".join(json.dumps(line) + "\n" for line in lines))
    said = run(changed, "--texts", texts, code=1)
    assert said.startswith("1: one/0: attributions: DIFFERENT")
    assert said.endswith("2 of 3 the same.\n")


def test_other_texts_are_not_taken_for_these(log, run, tmp_path):
    path, whole = log
    if not whole:
        other = tmp_path / "texts.jsonl"
        other.write_text('{"id": "one", "text": "Something else"}\n')
        assert "has 2 words" in run(path, "--texts", other, code=1)


def test_wrong_usage(run, tmp_path):
    empty, broken, texts = tmp_path / "empty", tmp_path / "broken", tmp_path / "texts"
    empty.touch()
    broken.write_text('{"a": 1}\n')
    texts.write_text('{"text": "a"}\n')
    assert "No such file" in run(tmp_path / "nothing", code=2)
    assert "no explanation" in run(empty, code=2)
    assert "broken, line 1" in run(broken, code=2)
    assert "an id" in run(empty, "--texts", texts, code=2)
