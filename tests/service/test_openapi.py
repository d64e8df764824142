"""The OpenAPI document: whatever it allows is answered as it says, and what it forbids is refused."""

import subprocess
import sys
from pathlib import Path

import pytest

from helpers.services import Process, app_of, service_of

pytestmark = pytest.mark.serve

EXPLAIN, INFER = "/v1/models/sentiment:explain", "/v2/models/sentiment/infer"
# A label that is not there or a deadline that is too short cannot be said in a schema.
CONFIG = """
[checks.positive_data_acceptance]
expected-statuses = [200, 422, 504]
[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", 504]
[checks.negative_data_rejection]
expected-statuses = [401, 404, 413, 415, 422, 504]
"""
LIMITS = ("--max-instances", "1", "--n-perturbations", "2", "--max-samples", "8", "--timeout", "20")


def test_schemathesis_finds_nothing(tmp_path):
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    with Process(*LIMITS, FASTSHAP_TOKEN="secret") as service:
        done = subprocess.run(
            [
                *(
                    Path(sys.executable).with_name("schemathesis"),
                    "run",
                    f"{service.address}/openapi.json",
                    "--no-color",
                ),
                *("--header", "Authorization: Bearer secret", "--checks", "all", "--max-examples", "80", "--seed", "1"),
                *("--phases", "examples,coverage,fuzzing"),
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Tested: 14" in done.stdout
        assert service.process.poll() is None


def test_what_the_service_takes_is_allowed(default_pair):
    from jsonschema import Draft202012Validator

    with app_of(service_of(default_pair)) as client:
        document = client.get("/openapi.json").json()
        schema = document["paths"][INFER]["post"]["requestBody"]["content"]["application/json"]["schema"]
        tensor = {"name": "a", "shape": [2, 1], "datatype": "BYTES", "data": [["a"], ["b"]]}
        body = {"inputs": [tensor | {"parameters": {"content_type": "str"}}]}
        assert client.post(INFER, json=body).status_code == 200
        Draft202012Validator({**schema, "components": document["components"]}).validate(body)
        addresses = {route.path for route in client.app.routes}
        assert addresses == document["paths"].keys()


def test_answers_of_many_instances_fit(default_pair):
    from jsonschema import Draft202012Validator

    with app_of(service_of(default_pair)) as client:
        document = client.get("/openapi.json").json()

        def fits(answer, path):
            kind = answer.headers["content-type"]
            schema = document["paths"][path]["post"]["responses"][str(answer.status_code)]["content"][kind]["schema"]
            Draft202012Validator({**schema, "components": document["components"]}).validate(answer.json())

        for path in (EXPLAIN, INFER):
            example = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["example"]
            answer = client.post(path, json=example)
            assert answer.status_code == 200
            fits(answer, path)
        mixed = ["A film.", {"text": "a", "targets": "all"}, "", {"text": "a", "rtol": 0.5, "reduction": "abs_mean"}]
        for form in ("summary", "full"):
            answer = client.post(EXPLAIN, json={"instances": mixed}, params={"format": form})
            assert answer.status_code == 200
            fits(answer, EXPLAIN)
        for bad in ({"instances": ["", ""]}, {"instances": []}, {"instances": ["a"] * 65}):
            fits(client.post(EXPLAIN, json=bad), EXPLAIN)
