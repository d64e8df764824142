"""What an instance may ask for, and what is said where it cannot: without a server."""

import dataclasses
import errno
import json
import os
from pathlib import Path

import pytest

import fastshap
from fastshap.errors import InvalidArgumentError, OverloadedError
from fastshap.service import fields
from fastshap.service.audit import Audit, lines_of
from fastshap.service.bodies import parsed
from fastshap.service.instances import Asked, Reader
from fastshap.service.limits import Limits
from fastshap.service.problems import ProblemError, of_all, problem_of
from fastshap.service.service import Service
from fastshap.settings import PARAMETERS
from fastshap.types import Granularity
from fastshap.types.targets import Contrast


@pytest.fixture(scope="module")
def explainer(default_pair):
    return fastshap.GradientShap(*default_pair, batch_size="auto")


@pytest.fixture(scope="module")
def reader(explainer):
    return Reader(explainer, Limits(max_samples=100, max_targets=3, max_text_tokens=40))


def refused(reader, instance):
    with pytest.raises(ProblemError) as caught:
        reader.asked(instance)
    assert caught.value.status == 422
    return caught.value.field, caught.value.message


def test_every_parameter_is_a_field_or_the_services_own(reader):
    assert {*fields.OPTIONS, *fields.OF_THE_SERVICE} == PARAMETERS.keys()
    assert tuple(name for name in reader.fields if name in PARAMETERS) == fields.OPTIONS
    for name in fields.OPTIONS:
        assert reader.fields[name]["description"] == PARAMETERS[name].help
    assert "callable" not in json.dumps(reader.fields)


def test_an_instance_as_the_queue_takes_it(reader):
    assert reader.asked("Dull.")[:3] == ("Dull.", None, {})
    one = reader.asked({"text": "a", "pair": "b", "target": 1, "granularity": "token", "baseline": "[MASK]", "seed": 3})
    assert one.text == ("a", "b")
    assert one.target == 1
    assert one.options == {"granularity": Granularity.TOKEN, "baseline": "[MASK]", "seed": 3}
    assert reader.asked({"text": "a", "targets": ["positive", 0]}).target == ["positive", 0]
    assert reader.asked({"text": "a", "targets": "all"}).target == "all"
    assert reader.asked({"text": "a", "target": "positive", "contrast": 0}).target == Contrast("positive", 0)
    assert reader.asked({"text": "a", "granularity": [[0, 1]]}).options["granularity"].given == ((0, 1),)


def test_scores_that_do_not_add_up_have_no_delta(reader):
    assert reader.asked({"text": "a", "reduction": "abs_mean"}).options["return_convergence_delta"] is False
    assert reader.asked({"text": "a", "input_x_gradient": False}).options["return_convergence_delta"] is False


@pytest.mark.parametrize(("asked", "most"), [({"rtol": 0.1}, 100), ({"rtol": 0.1, "n_perturbations": 1}, 64)])
def test_rounds_stay_within_the_limit(reader, asked, most):
    assert reader.asked({"text": "a", **asked}).options["max_perturbations"] == most


def test_rounds_where_the_service_has_a_tolerance_of_its_own(default_pair):
    explainer = fastshap.GradientShap(*default_pair, rtol=0.2, max_perturbations=70, path_density="auto")
    reader = Reader(explainer, Limits(max_samples=100))
    for asked, expected in (
        ({}, {}),
        ({"seed": 1}, {"seed": 1}),
        ({"n_perturbations": 20}, {"n_perturbations": 20, "max_perturbations": 100}),
        ({"rtol": 0.1}, {"rtol": 0.1, "max_perturbations": 100}),
        ({"rtol": 0.1, "max_perturbations": 50}, {"rtol": 0.1, "max_perturbations": 50}),
        ({"rtol": None}, {"rtol": None, "max_perturbations": None, "path_density": None}),
        ({"rtol": None, "max_perturbations": None}, {"rtol": None, "max_perturbations": None, "path_density": None}),
    ):
        options = reader.asked({"text": "a", **asked}).options
        assert options == expected
        explainer._for_call(options)


@pytest.mark.serve
def test_a_tolerance_of_the_services_own_stays_within_the_limit(default_pair):
    explainer = fastshap.GradientShap(*default_pair, rtol=0.001)
    service = Service(explainer, limits=Limits(max_samples=50))
    service.close()
    reader = service.explaining
    assert reader.asked("a").options == {"max_perturbations": 50}
    assert reader.asked({"text": "a", "max_perturbations": 20}).options == {"max_perturbations": 20}
    assert reader.asked({"text": "a", "n_perturbations": 40}).options["max_perturbations"] == 50


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "n_perturbations is 10"),
        ({"n_perturbations": 4, "rtol": 0.1, "max_perturbations": 8}, "max_perturbations is 8"),
    ],
)
def test_settings_beyond_the_limit_of_samples(default_pair, settings, said):
    explainer = fastshap.GradientShap(*default_pair, **settings)
    with pytest.raises(InvalidArgumentError, match=f"{said} and max_samples is 5; lower .*--max-samples"):
        Service(explainer, limits=Limits(max_samples=5))


@pytest.mark.parametrize(
    ("instance", "field", "said"),
    [
        (5, "", "a string or an object"),
        ([], "", "a string or an object"),
        ({}, "", "needs text"),
        ("  ", ".text", "empty"),
        ({"text": ""}, ".text", "empty"),
        ({"text": "a", "seed": "x"}, ".seed", "whole number"),
        ({"text": "a", "seed": True}, ".seed", "whole number"),
        ({"text": "a", "seed": 2**63}, ".seed", "at most"),
        ({"text": "a", "n_perturbations": 101}, ".n_perturbations", "at most 100"),
        ({"text": "a", "granularity": "words"}, ".granularity", "word"),
        ({"text": "a", "granularity": "callable:x"}, ".granularity", "word"),
        ({"text": "a", "granularity": [[0, -1]]}, ".granularity[0][1]", "at least 0"),
        ({"text": "a", "baseline": {"texts": ["x"]}}, ".baseline", "must be"),
        ({"text": "a", "inference_mode": "softmax"}, ".inference_mode", "no field"),
        ({"text": "a", "model": "other"}, ".model", "no field"),
        ({"text": "a", "a b": 1}, "['a b']", "no field"),
        ({"text": "a", "target": [1]}, ".target", "must be"),
        ({"text": "a", "targets": []}, ".targets", "at least 1"),
        ({"text": "a", "targets": [1, 1, 1, 1]}, ".targets", "4"),
        ({"text": "a", "target": 1, "targets": "all"}, ".targets", "not both"),
        ({"text": "a", "contrast": 1}, ".contrast", "beside one target"),
        ({"text": "a", "target": 1, "contrast": 1}, ".contrast", "itself"),
        ({"text": "a", "text_pair": "b"}, ".text_pair", "did you mean pair"),
        ({"text": "a", "n_perturbation": 5}, ".n_perturbation", "did you mean n_perturbations"),
        ({"text": "a", "granularity": "TOKEN"}, ".granularity", "must be one of all_tokens, token"),
        ({"text": "a", "max_new_tokens": 5}, ".max_new_tokens", "no field"),
        ({"text": "\ud800"}, ".text", "surrogate"),
    ],
)
def test_what_is_wrong_has_a_place(reader, instance, field, said):
    found, message = refused(reader, instance)
    assert found == field
    assert said in message


def test_long_texts_are_counted_and_short_ones_are_not(reader, explainer):
    assert not reader.is_long(reader.asked("a gorgeous film"))
    fits = reader.asked("incomprehensibly " * 3)
    assert reader.is_long(fits)
    reader.check_length(fits)
    for instance in ("a " * 60, {"text": "a", "pair": "b " * 60}, {"text": "a", "target": "c " * 60}):
        with pytest.raises(ProblemError, match="and the service takes 40") as caught:
            reader.check_length(reader.asked(instance))
        assert caught.value.status == 413
    assert explainer.tokenizer.backend_tokenizer.truncation is None


def test_a_language_model_may_write_so_many_tokens(llama_pair):
    explainer = fastshap.GradientShap(*llama_pair, batch_size="auto")
    reader = Reader(explainer, Limits(max_new_tokens=5))
    assert reader.asked("a").options == {"generation_kwargs": {"max_new_tokens": 5}}
    assert reader.asked({"text": "a", "target": "b"}).options == {}
    assert refused(reader, {"text": "a", "max_new_tokens": 6})[0] == ".max_new_tokens"
    assert "pair" not in reader.fields
    assert refused(reader, {"text": "a", "pair": "b"})[0] == ".pair"
    assert refused(reader, {"text": "a", "targets": ["b", "c"]})[0] == ".targets"


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff{}", b"\xfe\xff\x00{\x00}", b"[" * 100_000, b'{"a": NaN}', b"[-Infinity]"]
)
def test_what_is_no_json(body):
    with pytest.raises(ProblemError) as caught:
        parsed(body)
    assert caught.value.status == 422


def test_errors_have_a_status_and_strangers_keep_their_secrets():
    assert problem_of(OverloadedError("full", retry_after=2.2)).headers == {"retry-after": "3"}
    assert problem_of(InvalidArgumentError("no")).status == 422
    assert "secret" not in json.dumps(problem_of(RuntimeError("secret")).plain())
    worst = of_all([problem_of(InvalidArgumentError("no"), "a"), problem_of(OverloadedError("full"), "b")])
    assert (worst.status, worst.field, len(worst.instances)) == (429, "b", 2)


@pytest.mark.parametrize(
    "wrong", [{"max_body_bytes": 0}, {"max_samples": 1.5}, {"timeout": 0}, {"grace": float("inf")}]
)
def test_limits_are_checked(wrong):
    with pytest.raises((InvalidArgumentError, TypeError), match=next(iter(wrong))):
        Limits(**wrong)


@pytest.mark.parametrize("with_texts", [True, False])
def test_an_audit_log_goes_on_behind_a_line_that_was_not_finished(explainer, tmp_path, with_texts):
    path = tmp_path / "audit.jsonl"
    outputs = explainer.explain(["A secretive film.", "Dull."])
    asked = [Asked("A secretive film.", None, {}, ()), problem_of(InvalidArgumentError("secretive"))]
    asked.append(Asked("Dull.", "positive", {}, ()))
    for request_id in ("one", "two"):
        audit = Audit(path, with_texts)
        audit.add(asked, [outputs[0], asked[1], outputs[1]], request_id, "m")
        audit.close()
        with path.open("ab") as file:
            file.write(b'{"audit": 1, "ti')
    found = list(lines_of(path))
    assert [(line.id, line.error is None, line.whole) for line in found] == [
        (f"{name}/{i}", i != 1, with_texts and i != 1) for name in ("one", "two") for i in range(3)
    ]
    assert [line.target_given for line in found] == [False, False, True] * 2
    assert (path.stat().st_mode & 0o777) == 0o600
    text = path.read_text()
    assert ("secretive" in text) is with_texts
    assert ("input_ids" in text) is with_texts
    assert found[0].output["attributions"] == outputs[0].attributions.tolist()
    assert found[0].output["provenance"]["model_fingerprint"] == outputs[0].provenance.model_fingerprint
    with path.open("ab") as file:
        file.write(b"\n{}\n")
    with pytest.raises(InvalidArgumentError, match="line 9"):
        list(lines_of(path))


def add(audit, request_id):
    refused = problem_of(InvalidArgumentError("no"))
    audit.add([refused], [refused], request_id, "m")


@pytest.mark.parametrize("can_truncate", [True, False])
def test_a_full_disk_costs_the_audit_log_no_other_line(tmp_path, monkeypatch, can_truncate):
    path = tmp_path / "audit.jsonl"
    audit = Audit(path)
    add(audit, "before")
    size, write = path.stat().st_size, os.write

    def write_some(file, data):
        if path.stat().st_size > size:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, data[:40])

    def refuse(file, length):
        raise OSError(errno.EINVAL, "Invalid argument")

    with monkeypatch.context() as full:
        full.setattr(os, "write", write_some)
        if not can_truncate:
            full.setattr(os, "ftruncate", refuse)
        for _ in range(2):
            with pytest.raises(OSError, match="No space"):
                add(audit, "failed")
    assert (path.stat().st_size == size) is can_truncate
    add(audit, "after")
    add(audit, "last")
    assert [line.id for line in lines_of(path)] == ["before/0", "after/0", "last/0"]
    assert path.read_text().count("continued") == 1


def test_two_processes_write_one_audit_log(tmp_path):
    """One of them dies within a line; the other does not start again."""
    path = tmp_path / "audit.jsonl"
    audit = Audit(path)
    add(audit, "one")
    with path.open("ab") as file:
        file.write(
            b'{"audit": 1, "time": "2026-11-27T19:21:05.000Z", "request_id": "lost", "name": "m", "instance": 0, "er'
        )
    add(audit, "two")
    assert [line.id for line in lines_of(path)] == ["one/0", "two/0"]


def test_an_audit_log_may_be_cut_anywhere(tmp_path):
    """Also within the event of a start behind a line that was cut."""
    path = tmp_path / "audit.jsonl"
    for request_id in ("one", "two"):
        add(audit := Audit(path), request_id)
        audit.close()
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for end in range(first, len(whole)):
        path.write_bytes(whole[: first - 20] + b"\n" + whole[first:end])
        if not path.read_bytes().endswith(b"}\n"):
            list(lines_of(path))
        add(audit := Audit(path), "three")
        audit.close()
        assert [line.id for line in lines_of(path)][-1] == "three/0"


def test_an_audit_log_that_was_damaged_is_not_taken(tmp_path):
    path = tmp_path / "audit.jsonl"
    add(audit := Audit(path), "one")
    add(audit, "two")
    for damaged in (0, 1):
        lines = path.read_bytes().splitlines(keepends=True)
        lines[damaged] = b"?" + lines[damaged]
        other = tmp_path / "damaged.jsonl"
        other.write_bytes(b"".join(lines))
        with pytest.raises(InvalidArgumentError, match=f"line {damaged + 1}"):
            list(lines_of(other))


def test_the_docs_list_fields_and_limits_as_they_are(reader):
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
    for name, its in reader.fields.items():
        assert f"| `{name}` | {its['description']} |\n" in page
    for one in dataclasses.fields(Limits):
        name, said = one.name.replace("_", "-"), one.metadata
        assert f"| `--{name}` | {one.default:,.0f} | {said['help']} | {said['answer']} |\n" in page
