"""KServe's own Python client talks to the service. It has an environment of its own, as it pins many packages."""

import json
import subprocess
import sys

import pytest

from helpers.services import Process

pytestmark = pytest.mark.slow

PACKAGE = "kserve==0.21.0"
CLIENT = """
import asyncio, json, sys
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig

url, text = sys.argv[1:]


async def main():
    first = InferenceRESTClient(RESTConfig(protocol="v1", timeout=60))
    second = InferenceRESTClient(RESTConfig(protocol="v2", timeout=60))
    instances = {"instances": [text, {"text": text, "targets": "all", "n_perturbations": 4}]}
    words = InferRequest("sentiment", [InferInput("text", [1], "BYTES", [text])])
    return {
        "explain": await first.explain(url, "sentiment", instances),
        "predict": await first.infer(url, {"instances": [text]}, model_name="sentiment"),
        "ready": [
            await first.is_model_ready(url, "sentiment"),
            await second.is_server_live(url),
            await second.is_server_ready(url),
            await second.is_model_ready(url, "sentiment"),
        ],
        "infer": (await second.infer(url, words, model_name="sentiment")).outputs[0].data,
    }


print(json.dumps(asyncio.run(main())))
"""


def test_kserves_own_client_gets_answers_by_both_protocols(tmp_path):
    text = "A gorgeous, witty film."
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", PACKAGE], check=True, timeout=600)
    with Process() as service:
        done = subprocess.run(
            [python, "-c", CLIENT, service.address, text], capture_output=True, text=True, timeout=120, check=False
        )
        assert service.stop() == 0
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["ready"] == [True] * 4
    first, second = found["explain"]["explanations"]
    assert first["words"] == second["words"] == ["A", "gorgeous", ",", "witty", "film", "."]
    assert len(second["importances"]) == 2
    assert found["explain"]["predictions"][0] == found["predict"]["predictions"][0]
    assert found["predict"]["predictions"][0]["label"] == "positive"
    (explanation,) = found["infer"]
    assert json.loads(explanation)["words"] == first["words"]
