"""The service over HTTP, in this process."""

import asyncio
import json
import time
from pathlib import Path

import numpy as np
import pytest

import fastshap
from fastshap.errors import ClosedError, DeadlineExceededError, InvalidArgumentError, ModelFailedError, OverloadedError
from fastshap.service.limits import Limits
from helpers.pages import EVIL, Parsed
from helpers.services import Held, app_of, events, service_of, wait_until

pytestmark = pytest.mark.serve

TEXT = "A gorgeous, witty film."
EXPLAIN, PREDICT, INFER = "/v1/models/sentiment:explain", "/v1/models/sentiment:predict", "/v2/models/sentiment/infer"
ERROR = {"error", "type", "field", "request_id"}


@pytest.fixture(scope="module")
def service(default_pair):
    return service_of(default_pair)


@pytest.fixture(scope="module")
def client(service):
    with app_of(service) as client:
        yield client


def asked(client, *instances, status=200, path=EXPLAIN, **options):
    answer = client.post(path, json={"instances": list(instances)}, **options)
    assert answer.status_code == status, answer.text
    return answer.json()


def refused(answer, status, **fields):
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert ERROR <= body.keys() <= {*ERROR, "explanations"}
    assert body["request_id"] == answer.headers["x-request-id"]
    assert fields.items() <= body.items()
    return body


def test_an_explanation_is_what_the_explainer_gives(client, service):
    body = asked(client, TEXT, {"text": "Dull.", "targets": "all", "granularity": "token", "seed": 5})
    first, second = (
        service.explainer.explain(TEXT)[0],
        service.explainer.explain("Dull.", "all", granularity="token", seed=5)[0],
    )
    for entry, output in zip(body["explanations"], (first, second), strict=True):
        assert entry["words"] == output.elements
        assert entry["targets"] == output.target_names
        scores = fastshap.AttributionOutput.from_dict(output.to_dict()).attributions.tolist()
        for row, expected in zip(entry["importances"], scores, strict=True):
            assert row == pytest.approx(expected, abs=1e-5 * max(map(abs, expected)))
        assert entry["samples"] == 4
        assert entry["output_value"] == pytest.approx(output.output_value.tolist(), rel=1e-4)
        value = sum(entry["importances"][0]) + entry["unassigned"][0]
        if len(entry["words"]) == len(output.model_inputs_to_explain["input_ids"][0]) - 2:  # a word is a token
            ends = entry["output_value"][0] - entry["baseline_value"][0]
            assert value - entry["delta"][0] == pytest.approx(ends, abs=1e-4)
        assert entry["model_fingerprint"] == output.provenance.model_fingerprint
    fingerprints = {one["settings_fingerprint"] for one in body["explanations"]}
    assert len(fingerprints) == 2
    assert body["predictions"][0]["label"] == "positive"
    assert body["predictions"][0]["probability"] == pytest.approx(first.probability)
    assert asked(client, TEXT, path=PREDICT)["predictions"][0]["label"] == "positive"


@pytest.mark.parametrize("page", ["README.md", "docs/serving.md"])
def test_the_answer_in_the_docs_is_the_real_one(client, page):
    page = (Path(__file__).parents[2] / page).read_text()
    (shown,) = [json.loads(line) for line in page.splitlines() if line.startswith('{"predictions"')]
    (said,), (real,) = shown["explanations"], asked(client, {"text": TEXT, "n_perturbations": 10})["explanations"]
    assert [*said] == [*real]
    assert said["words"] == real["words"]
    assert said["settings_fingerprint"] == real["settings_fingerprint"]
    for name in ("importances", "standard_error"):
        assert said[name][0] == pytest.approx(real[name][0], rel=1e-3)


def test_one_bad_instance_leaves_its_neighbours_alone(client):
    bad = [{"text": "x", "seed": "s"}, {"text": "x", "target": "nobody"}, {"text": "x", "foo": 1}, 7]
    body = asked(client, TEXT, *bad, TEXT)
    alone = asked(client, TEXT)["explanations"][0]
    assert body["explanations"][0]["words"] == body["explanations"][-1]["words"] == alone["words"]
    for name in ("importances", "baseline_value"):  # in one call, yet each row may round in its own way
        assert np.allclose(body["explanations"][0][name], body["explanations"][-1][name], rtol=1e-5)
    assert body["explanations"][0]["importances"][0] == pytest.approx(alone["importances"][0], rel=1e-4)
    for i, field in enumerate([".seed", "", ".foo", ""], 1):
        error = body["explanations"][i]
        assert error.keys() == {"error", "type", "field"}
        assert error["field"] == f"instances[{i}]{field}"
        assert body["predictions"][i] == error


def test_where_all_instances_fail_the_status_says_so(client):
    answer = client.post(EXPLAIN, json={"instances": ["", {"text": "x", "seed": 0.5}]})
    body = refused(answer, 422, field="instances[0].text")
    assert [one["field"] for one in body["explanations"]] == ["instances[0].text", "instances[1].seed"]


def test_a_whole_output_can_be_reproduced(client, default_pair):
    (plain,) = asked(client, TEXT, params={"format": "full"})["explanations"]
    output = fastshap.AttributionOutput.from_dict(plain)
    assert fastshap.reproduce(output, *default_pair).identical


def test_a_page_of_hostile_texts(client):
    answer = client.post(
        EXPLAIN, params={"format": "html"}, json={"instances": [*EVIL[:5], {"text": "x", "seed": "s"}]}
    )
    assert answer.headers["content-type"].startswith("text/html")
    assert "script" not in answer.headers["content-security-policy"]
    page = Parsed(answer.text)
    assert not any(tag == "script" for tag, _ in page.tags)
    assert page.sentences[0] == EVIL[0]
    assert "not explained" in page.text


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 422),
        ([], 422),
        ({"instances": []}, 422),
        ({"instances": "x"}, 422),
        ({"instances": ["x"], "more": 1}, 422),
        ({"instances": ["x"] * 65}, 413),
        ({"instances": ["a " * 3000]}, 413),
        (b"\xff", 422),
        (b"[" * 200_000, 422),
        (b'{"instances": [NaN]}', 422),
        (b" " * 1_048_577, 413),
    ],
)
def test_bodies_that_are_refused(client, body, status):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    refused(client.post(EXPLAIN, content=content, headers={"content-type": "application/json"}), status)


@pytest.mark.parametrize("kind", [None, "text/plain", "application/json; charset=latin-1", "application/octet-stream"])
def test_other_content_types_are_refused(client, kind):
    headers = {} if kind is None else {"content-type": kind}
    refused(client.post(EXPLAIN, content=b'{"instances": ["x"]}', headers=headers), 415)


def test_compressed_bodies_are_refused(client):
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    refused(client.post(EXPLAIN, content=b'{"instances": ["x"]}', headers=headers), 415)


def test_addresses_methods_and_queries_that_are_not_there(client):
    refused(client.get("/nothing"), 404)
    assert "sentiment" in refused(client.post("/v1/models/other:explain", json={}), 404)["error"]
    answer = client.get(EXPLAIN)
    refused(answer, 405)
    assert answer.headers["allow"] == "POST"
    refused(client.post(EXPLAIN, json={"instances": ["x"]}, params={"format": "pdf"}), 422, field="query.format")
    refused(client.post(EXPLAIN, json={"instances": ["x"]}, params={"fromat": "full"}), 422, field="query")
    refused(client.post(PREDICT, json={"instances": ["x"]}, params={"format": "full"}), 422)


def test_every_answer_has_its_headers_and_its_id(client):
    for path in ("/", "/nothing", "/v2/health/live", "/metrics", "/openapi.json", "/page.js"):
        headers = client.get(path, headers={"x-request-id": "abc-1"}).headers
        assert headers["x-request-id"] == "abc-1"
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
    made = client.get("/v2", headers={"x-request-id": "a b\tc"}).headers["x-request-id"]
    assert made != "a b\tc"
    assert len(made) == 32


def test_logs_hold_ids_and_no_texts(client, service):
    asked(client, "A secretive film.", headers={"x-request-id": "logged"})
    asked(client, {"text": "A secretive film.", "target": "secretive"}, status=422)
    told = [one for one in events(service) if one.get("request_id") == "logged"]
    assert told[0].items() >= {"event": "request", "operation": "explain", "status": 200, "instances": 1}.items()
    assert "secretive" not in service.log._stream.getvalue()


def test_metrics_before_any_request(default_pair):
    with app_of(service_of(default_pair)) as client:
        lines = client.get("/metrics").text.splitlines()
    for name in ("texts_total", "samples_total", "call_tokens_count", 'seconds_count{stage="queue"}'):
        assert f"fastshap_{name} 0.0" in lines


def test_metrics(client):
    asked(client, TEXT)
    client.post(EXPLAIN, content=b"")
    text = client.get("/metrics").text
    for line in (
        'fastshap_requests_total{operation="explain",status="200"}',
        'fastshap_errors_total{type="UnsupportedMediaType"}',
        'fastshap_seconds_count{stage="compute"}',
        'fastshap_seconds_count{stage="queue"}',
        "fastshap_call_tokens_count",
        "fastshap_samples_total",
        "fastshap_queue_tokens 0.0",
    ):
        assert line in text


def test_v2(client, service):
    texts = {"name": "texts", "shape": [2], "datatype": "BYTES", "data": [TEXT, "  "]}
    request = {"id": "7", "inputs": [texts], "parameters": {"explain_parameters": {"granularity": "token"}}}
    body = client.post(INFER, json=request).json()
    assert (body["id"], body["model_name"]) == ("7", "sentiment")
    (output,) = body["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("explanation", "BYTES", [2])
    first, second = map(json.loads, output["data"])
    assert first["words"] == service.explainer.explain(TEXT, granularity="token")[0].elements
    assert second["field"] == "inputs[0].data[1].text"
    pair = {"name": "pair", "shape": [1], "datatype": "BYTES", "data": ["not good"]}
    first = {"name": "text", "shape": [1, 1], "datatype": "BYTES", "data": [["bad"]]}
    (data,) = client.post(INFER, json={"inputs": [first, pair]}).json()["outputs"][0]["data"]
    assert json.loads(data)["words"] == ["bad", "not", "good"]
    assert client.get("/v2/models/sentiment").json()["inputs"][0] == {
        "name": "text",
        "datatype": "BYTES",
        "shape": [-1],
    }
    assert client.get("/v2/models/sentiment/ready").json() == {"name": "sentiment", "ready": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2").json()["name"] == "fastshap"
    assert client.get("/v1/models").json() == {"models": ["sentiment"]}
    assert client.get("/v1/models/sentiment").json() == {"name": "sentiment", "ready": True}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"inputs": []}, "inputs"),
        ({"inputs": [{"name": "a", "shape": [1], "datatype": "FP32", "data": [1.0]}]}, "inputs[0].datatype"),
        ({"inputs": [{"name": "a", "shape": [2], "datatype": "BYTES", "data": ["x"]}]}, "inputs[0].shape"),
        ({"inputs": [{"name": "a", "shape": [1], "datatype": "BYTES", "data": [1]}]}, "inputs[0].data"),
        ({"inputs": [{"shape": [1], "datatype": "BYTES", "data": ["x"]}]}, "inputs[0]"),
        ({"inputs": [{"name": "pair", "shape": [1], "datatype": "BYTES", "data": ["x"]}]}, "inputs[0].name"),
        ({"id": 5}, "id"),
        ({"outputs": [{"name": "other"}]}, "outputs"),
        ({"more": 1}, "more"),
        ({"parameters": {"explain_parameters": {"seed": "x"}}}, "parameters.explain_parameters.seed"),
        ({"parameters": {"explain_parameters": {"text": "x"}}}, "parameters.explain_parameters.text"),
    ],
)
def test_v2_says_where_it_is_wrong(client, change, field):
    good = {"inputs": [{"name": "a", "shape": [1], "datatype": "BYTES", "data": ["x"]}]}
    refused(client.post(INFER, json=good | change), 422, field=field)


def test_v2_keeps_an_id_that_is_empty(client):
    request = {"id": "", "inputs": [{"name": "a", "shape": [1], "datatype": "BYTES", "data": ["x"]}]}
    assert client.post(INFER, json=request).json()["id"] == ""
    answer = client.post(INFER, json={"inputs": request["inputs"]})
    assert answer.json()["id"] == answer.headers["x-request-id"]


def test_a_number_without_a_fraction_is_whole(client):
    number = b'{"instances": [{"text": "a", "targets": [1.0], "seed": 3e0}]}'
    answer = client.post(EXPLAIN, content=number, headers={"content-type": "application/json"})
    whole = asked(client, {"text": "a", "targets": [1], "seed": 3})["explanations"]
    assert answer.json()["explanations"][0]["settings_fingerprint"] == whole[0]["settings_fingerprint"]


def test_the_page(client):
    answer = client.get("/", headers={"accept": "text/html,*/*"})
    page = Parsed(answer.text)
    assert "positive" in answer.text
    assert not any("style" in attrs or any(name.startswith("on") for name in attrs) for _, attrs in page.tags)
    fields = {attrs["id"] for tag, attrs in page.tags if tag in ("input", "textarea")}
    assert fields == {attrs["for"] for tag, attrs in page.tags if tag == "label"} == {"text", "pair", "target"}
    assert client.get("/").json() == {"status": "alive"}  # as KServe's client asks
    assert "javascript" in client.get("/page.js").headers["content-type"]
    assert client.get("/page.css").headers["content-type"].startswith("text/css")


# With a queue that answers when it is told to.


@pytest.fixture
def held(default_pair):
    queue = Held()
    its = service_of(default_pair, queue, limits=Limits(timeout=5, max_requests=2))
    with app_of(its) as client:
        yield its, queue, client


def test_a_token_is_wanted(default_pair):
    its = service_of(default_pair, Held(), token="secret\n")
    with app_of(its) as client:
        for headers in (
            {},
            {"authorization": "Bearer other"},
            {"authorization": "Basic secret"},
            {"authorization": "Bearer "},
        ):
            for path in ("/v1/models/sentiment", "/metrics", "/openapi.json", "/nothing"):
                answer = client.get(path, headers=headers)
                refused(answer, 401)
                assert answer.headers["www-authenticate"] == "Bearer"
        for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/sentiment/ready", "/", "/page.js"):
            assert client.get(path).status_code == 200
        assert client.get("/v1/models/sentiment", headers={"authorization": "bearer secret"}).status_code == 200
        page = client.get("/", headers={"accept": "text/html"}).text
        assert 'type="password"' in page
        assert "positive" not in page
        assert "secret" not in its.log._stream.getvalue()


def test_options_reach_the_queue_with_the_deadline(held):
    _its, queue, client = held
    instance = {"text": "a", "n_perturbations": 8}
    refused(client.post(EXPLAIN, json={"instances": [instance]}, headers={"x-request-timeout-seconds": "0.1"}), 504)
    ((text, target, deadline, options),) = queue.asked
    assert (text, target, options) == ("a", None, {"n_perturbations": 8})
    assert 0 < deadline <= 0.1
    assert queue.futures[0].cancelled()


@pytest.mark.parametrize("seconds", ["0", "-1", "x", "nan", "inf", "1e999", "1_0", ""])
def test_deadlines_that_are_none(held, seconds):
    _its, _queue, client = held
    answer = client.post(EXPLAIN, json={"instances": ["a"]}, headers={"x-request-timeout-seconds": seconds})
    refused(answer, 422, field="header.x-request-timeout-seconds")


def test_what_is_ready_at_the_deadline_is_answered(held, service):
    _its, queue, client = held
    output = service.explainer.explain(TEXT)[0]
    real = queue.submit

    def submit(text, *arguments, **options):
        future = real(text, *arguments, **options)
        if text == TEXT:
            future.set_result(output)
        return future

    queue.submit = submit
    body = asked(client, TEXT, "slow", headers={"x-request-timeout-seconds": "0.2"})
    assert body["explanations"][0]["words"] == output.elements
    assert body["explanations"][1]["type"] == "DeadlineExceededError"


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (OverloadedError("full", retry_after=3.5), 429, "OverloadedError"),
        (ClosedError("closed"), 503, "ClosedError"),
        (DeadlineExceededError("late"), 504, "DeadlineExceededError"),
        (InvalidArgumentError("no"), 422, "InvalidArgumentError"),
        (ModelFailedError("broken"), 500, "ModelFailedError"),
        (RuntimeError("secret"), 500, "InternalError"),
    ],
)
def test_errors_of_the_queue(held, error, status, kind):
    its, queue, client = held
    queue.refusing = error
    queue.futures.append(None)  # somebody else is there
    queue.futures[0] = type("Waiting", (), {"done": lambda self: False})()
    answer = client.post(EXPLAIN, json={"instances": ["a", "b"]})
    refused(answer, status, type=kind)
    assert "secret" not in answer.text + its.log._stream.getvalue()
    if status == 429:
        assert answer.headers["retry-after"] == "4"


def raised(error):
    try:
        raise error
    except type(error) as caught:
        return caught


def failing(queue, error, other):
    """The queue, in which the text "bad" fails and others are explained as ``other``."""
    real = queue.submit

    def submit(text, *arguments, **options):
        future = real(text, *arguments, **options)
        future.set_exception(error) if text == "bad" else future.set_result(other)
        return future

    queue.submit = submit


def test_a_model_that_fails_is_told_to_the_log_and_not_to_the_client(held, service):
    its, queue, client = held
    failing(
        queue, ModelFailedError.caused_by(raised(ValueError("/home/x: secret"))), service.explainer.explain(TEXT)[0]
    )
    part = asked(client, TEXT, "bad", headers={"x-request-id": "part"})["explanations"][1]
    whole = asked(client, "bad", status=500, headers={"x-request-id": "whole"})
    for said, field in ((part, "instances[1]"), (whole, "instances[0]")):
        assert (said["type"], said["field"]) == ("ModelFailedError", field)
        assert "the service's log has more" in said["error"]
    assert whole["request_id"] == "whole"
    assert "secret" not in json.dumps([part, whole]) + its.log._stream.getvalue()
    told = [one for one in events(its) if one["event"] == "failure"]
    assert [(one["request_id"], one["instance"]) for one in told] == [("part", 1), ("whole", 0)]
    for one in told:
        assert one["error"] == ["ModelFailedError", "ValueError"]
        assert one["where"][-1].endswith(" raised")


@pytest.mark.parametrize(
    ("sizes", "field"),
    [
        ({"noise_std": 1e38}, "noise_std"),
        ({"baseline": -1e30}, "baseline"),
        ({"noise_std": 0.5, "baseline": 1e30}, "baseline"),
    ],
)
def test_scores_that_a_request_makes_infinite_are_its_own_fault(client, service, sizes, field):
    before = len(events(service))
    body = asked(client, {"text": TEXT, **sizes}, status=422)
    assert (body["type"], body["field"]) == ("NonFiniteError", f"instances[0].{field}")
    assert [one["event"] for one in events(service)[before:]] == ["request"]


def test_a_request_is_accepted_as_a_whole_or_not_at_all(held):
    _its, queue, client = held
    real = queue.submit

    def submit(text, *arguments, **options):
        if text == "b":
            raise OverloadedError("The queue is full.")
        return real(text, *arguments, **options)

    queue.submit = submit
    refused(client.post(EXPLAIN, json={"instances": ["a", "b"]}), 413)  # alone, so there never will be room
    assert queue.futures[0].cancelled()


def test_while_it_starts_and_stops(held):
    its, _queue, client = held
    for state in ("starting", "stopping", "failed"):
        its.state = state
        refused(client.post(EXPLAIN, json={"instances": ["a"]}), 503, type="NotReady")
        refused(client.get("/v1/models/sentiment"), 503)
        assert client.get("/v2/health/ready").status_code == 503
        assert client.get("/v2/health/live").status_code == 200
    its.state = "ready"


async def drive(app, messages, until=None, path=EXPLAIN):
    """What an app sends to a client that sends such messages; ``until`` is waited for before the last of them."""
    sent, waiting = [], list(messages)

    async def receive():
        if len(waiting) == 1 and until is not None:
            while not until():
                await asyncio.sleep(0.01)
        if not waiting:
            await asyncio.sleep(60)
        return waiting.pop(0)

    async def send(message):
        sent.append(message)

    headers = [(b"content-type", b"application/json")]
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": headers,
    }
    scope |= {
        "http_version": "1.1",
        "scheme": "http",
        "server": ("x", 80),
        "client": ("x", 1),
        "root_path": "",
        "state": {},
    }
    await app(scope, receive, send)
    return sent


BODY = {"type": "http.request", "body": b'{"instances": ["a", "b"]}', "more_body": False}


def test_a_client_that_goes_away(held):
    its, queue, client = held
    app = client.app
    sent = asyncio.run(drive(app, [BODY, {"type": "http.disconnect"}], lambda: len(queue.futures) == 2))
    assert sent == []
    assert all(one.cancelled() for one in queue.futures)
    assert its.active == 0
    assert events(its)[-1]["status"] == 499


def test_a_client_that_goes_away_before_its_body_is_there(held):
    _its, queue, client = held
    part = {"type": "http.request", "body": b'{"instances"', "more_body": True}
    assert asyncio.run(drive(client.app, [part, {"type": "http.disconnect"}])) == []
    assert queue.futures == []


def test_too_many_requests_at_a_time(held):
    _its, queue, client = held

    async def burst():
        return await asyncio.gather(*(drive(client.app, [BODY, {"type": "http.disconnect"}], done) for _ in range(5)))

    def done():
        return len(queue.futures) == 4

    answers = asyncio.run(burst())
    starts = [sent[0]["status"] for sent in answers if sent]
    assert starts == [429] * 3
    assert (b"retry-after", b"1") in answers[-1][0]["headers"]


def test_what_is_waited_for_is_given_up_at_the_end(held):
    its, queue, client = held

    async def stopped():
        request = asyncio.ensure_future(drive(client.app, [BODY]))
        while len(queue.futures) < 2:
            await asyncio.sleep(0.01)
        its.give_up()
        return await request

    start, body = asyncio.run(stopped())
    assert start["status"] == 503
    assert json.loads(body["body"])["type"] == "ClosedError"
    assert its.waiting == set()


def test_a_body_that_comes_too_slowly(default_pair):
    its = service_of(default_pair, Held(), limits=Limits(body_timeout=0.1))
    with app_of(its) as client:
        part = {"type": "http.request", "body": b"{", "more_body": True}
        began = time.monotonic()
        start, _ = asyncio.run(drive(client.app, [part]))
        assert start["status"] == 408
        assert (b"connection", b"close") in start["headers"]
        assert time.monotonic() - began < 5


def test_a_model_that_cannot_be_tried(default_pair):
    from starlette.testclient import TestClient

    from fastshap.service.app import make_app

    its = service_of(default_pair)
    its.warm_up = lambda: (_ for _ in ()).throw(ModelFailedError("secret"))
    with TestClient(make_app(its)) as client:
        wait_until(lambda: its.state == "failed")
        refused(client.post(EXPLAIN, json={"instances": ["a"]}), 503)
    assert isinstance(its.failure, ModelFailedError)
    assert "secret" not in its.log._stream.getvalue()
