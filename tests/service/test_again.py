"""``fastshap reproduce``: what an audit log says, computed again."""

import copy
import json

import pytest
import torch
from typer.testing import CliRunner

from fastshap.cli import app
from fastshap.service.audit import Audit, lines_of
from fastshap.service.limits import Limits
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
    asked = [{"text": one} if isinstance(one, str) else one for one in INSTANCES]
    return written(path, {f"one/{i}": one for i, one in enumerate(asked)})


def written(path, instances):
    path.write_text("".join(json.dumps({"id": own, **one}) + "\n" for own, one in instances.items()))
    return path


def logged(pair, path, instances, **options):
    """An audit log without texts, of a request for each instance."""
    service = service_of(pair, audit=Audit(path), name="mine", **options)
    with app_of(service) as client:
        for own, one in instances.items():
            headers = {"x-request-id": own.removesuffix("/0")}
            answer = client.post("/v1/models/mine:explain", json={"instances": [one]}, headers=headers)
            assert answer.status_code == 200, answer.text
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


CHOSEN = {
    "other/0": {"text": "Weak but witty.", "target": "negative", "seed": 3},
    "contrast/0": {"text": "Weak but witty.", "target": "negative", "contrast": "positive", "n_perturbations": 6},
    "all/0": {"text": "Weak but witty.", "targets": "all", "rtol": 0.3, "granularity": "token"},
}


def test_a_line_of_classes_needs_the_text_alone(run, default_pair, tmp_path):
    path = logged(default_pair, tmp_path / "audit.jsonl", CHOSEN)
    alone = written(tmp_path / "alone.jsonl", {own: {"text": one["text"]} for own, one in CHOSEN.items()})
    assert run(path, "--texts", alone).endswith("3 of 3 the same.\n")
    as_sent = written(tmp_path / "sent.jsonl", CHOSEN)
    assert run(path, "--texts", as_sent).endswith("3 of 3 the same.\n")
    slip = written(tmp_path / "slip.jsonl", {own: {"text": "a", "sede": 1} for own in CHOSEN})
    assert run(path, "--texts", slip, code=1).count("no field 'sede'") == 3


def test_what_a_language_model_wrote_is_written_again(run, llama_pair, tmp_path, monkeypatch):
    monkeypatch.setattr("fastshap.tasks.loading.load_pair", lambda *_: llama_pair)
    instances = {
        "short/0": {"text": "The film is"},
        "shorter/0": {"text": "The film is", "max_new_tokens": 3},
        "given/0": {"text": "The film is", "target": " good at all"},
    }
    path = logged(llama_pair, tmp_path / "audit.jsonl", instances, limits=Limits(max_new_tokens=6))
    assert " good" not in path.read_text()
    said = run(path, "--texts", written(tmp_path / "sent.jsonl", instances))
    assert said.endswith("3 of 3 the same.\n")
    alone = written(tmp_path / "alone.jsonl", {own: {"text": one["text"]} for own, one in instances.items()})
    said = run(path, "--texts", alone, code=1)
    assert "3: given/0: not computed again: the request had a target of its own" in said
    assert said.endswith("2 of 3 the same.\n")


def test_requests_that_failed_as_a_whole_are_written_down(default_pair, tmp_path):
    audit = Audit(path := tmp_path / "audit.jsonl", with_texts=True)
    with app_of(service_of(default_pair, audit=audit)) as client:
        for address in ("/v1/models/sentiment:explain", "/v1/models/sentiment:predict"):
            body = {"instances": ["", {"text": "a", "target": "none"}]}
            assert client.post(address, json=body, headers={"x-request-id": "v1"}).status_code == 422
        data = [{"name": "text", "datatype": "BYTES", "shape": [1], "data": [" "]}]
        infer = client.post("/v2/models/sentiment/infer", json={"inputs": data}, headers={"x-request-id": "v2"})
        assert infer.status_code == 422
        client.post("/v1/models/sentiment:explain", json={"instances": []})
    found = [(line.id, line.error) for line in lines_of(path)]
    assert found == [(own, "InvalidArgumentError") for own in ("v1/0", "v1/1", "v2/0")]


def test_wrong_usage(run, tmp_path):
    empty, broken, texts = tmp_path / "empty", tmp_path / "broken", tmp_path / "texts"
    empty.touch()
    broken.write_text('{"a": 1}\n')
    texts.write_text('{"text": "a"}\n')
    assert "No such file" in run(tmp_path / "nothing", code=2)
    assert "no explanation" in run(empty, code=2)
    assert "broken, line 1" in run(broken, code=2)
    assert "an id" in run(empty, "--texts", texts, code=2)
