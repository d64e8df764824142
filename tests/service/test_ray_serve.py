"""``fastshap serve --ray`` in a network namespace of its own: answers, processes that die, and the end."""

import json
import os
import sys

import pytest

import fastshap
from helpers import namespace

pytestmark = pytest.mark.ray

TEXT = "A gorgeous, witty film."

# Put before everything else that a Python process imports: a process that explains dies over certain texts.
HOOK = """
import importlib.util, os, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name != "fastshap.service.variants":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module
        spec.loader.exec_module = lambda module: (run(module), change(module))
        return spec

def change(module):
    ready = module.Variant.ready

    def deadly(self, requests, alone):
        if any("deadly" in request.text for request in requests):
            os.kill(os.getpid(), 9)
        return ready(self, requests, alone)

    module.Variant.ready = deadly

sys.meta_path.insert(0, Finder())
"""

# A client within the namespace. It prints what it has seen as JSON.
CLIENT = """
import concurrent.futures, contextlib, http.client, json, re, signal, subprocess, sys, threading, time

COMMAND = [sys.executable, "-c", "from fastshap.cli import app; app()", "serve", "--ray", "--port", "8099"]
EXPLAIN, seen = "/v1/models/sentiment:explain", {}

def ask(path, body=None, headers={}, timeout=40):
    connection = http.client.HTTPConnection("127.0.0.1", 8099, timeout=timeout)
    with contextlib.closing(connection):
        data = None if body is None else json.dumps({"instances": body})
        connection.request("GET" if body is None else "POST", path, data, {"Content-Type": "application/json", **headers})
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read().decode()

def refused(*arguments, **headers):
    status, headers, body = ask(EXPLAIN, *arguments, headers)
    return status, json.loads(body)["type"], headers["x-request-id"] == json.loads(body)["request_id"]

def metric(name):
    return float(re.search("^%s ([0-9.e+]+)$" % name, ask("/metrics")[2], re.M)[1])

def back(since):
    "Seconds until a replica answers that began later."
    while metric("fastshap_texts_created") < since:
        assert time.time() < since + 60
        time.sleep(0.1)
    return time.time() - since

def exposed():
    "Addresses beside the loopback one at which something listens."
    lines = [line.split() for file in ("tcp", "tcp6") for line in open("/proc/net/" + file).readlines()[1:]]
    return [one[1] for one in lines if one[3] == "0A" and not re.match("0100007F|0{16}FFFF00000100007F|0{24}01000000", one[1])]

service = subprocess.Popen([*COMMAND, *sys.argv[1:]], stdout=subprocess.PIPE, text=True)
seen["line"] = service.stdout.readline().strip()
assert seen["line"]
seen["answer"] = ask(EXPLAIN, [TEXT])
seen["bad"] = refused([3])
seen["late"] = refused([{"text": TEXT * 60, "n_perturbations": 1000}], **{"x-request-timeout-seconds": "0.3"})
seen["named"] = ask(EXPLAIN, [TEXT], {"x-request-id": "mine"})[1].get("x-request-id")
seen["exposed"] = exposed()

# A client that leaves
with contextlib.suppress(TimeoutError):
    ask(EXPLAIN, [{"text": TEXT * 60, "n_perturbations": 1000}] * 4, timeout=0.5)
until = time.monotonic() + 10
while any(metric("fastshap_active_requests") for _ in range(8)) and time.monotonic() < until:
    time.sleep(0.1)
seen["left"] = time.monotonic() < until

# A text that kills
others, over = [], threading.Event()
def go_on():
    while not over.is_set():
        others.append((*ask(EXPLAIN, [{"text": TEXT, "seed": len(others)}])[::2], time.time()))
        time.sleep(0.02)
with concurrent.futures.ThreadPoolExecutor(1) as pool:
    going = pool.submit(go_on)
    seen["deaths"], seen["back"] = [], []
    for _ in range(2):
        began = time.time()
        seen["deaths"].append(refused(["deadly"]))
        seen["back"].append(back(began))
    began = time.time()
    seen["deaths"].append(refused(["deadly"]))
    seen["then"] = [ask(EXPLAIN, [TEXT])[0] for _ in range(8)]
    seen["no more died"] = all(metric("fastshap_texts_created") < began for _ in range(8))
    over.set()
    going.result()
seen["others"] = [one[0] for one in others]
seen["other errors"] = [one[1] for one in others if one[0] != 200]

# The end
with concurrent.futures.ThreadPoolExecutor(6) as pool:
    body = [{"text": "%s %d" % (TEXT, i), "n_perturbations": 60} for i in range(5)]
    waiting = [pool.submit(ask, EXPLAIN, body) for _ in range(6)]
    while not any(metric("fastshap_active_requests") for _ in range(4)):
        pass
    service.send_signal(signal.SIGTERM)
    seen["answered"] = [one.result()[0] for one in waiting]
    seen["code"] = service.wait(40)
print(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    place = tmp_path_factory.mktemp("hook")
    (place / "sitecustomize.py").write_text(HOOK)
    paths = [str(place), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | namespace.ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-c", f"TEXT = {TEXT!r}\n{CLIENT}", "--replicas", "2", "--n-perturbations", "4"]
    code, out, err = namespace.run(command, timeout=240, env=environment)
    assert code == 0, (out, err)
    return json.loads(out)


def test_it_answers_as_without_ray(seen):
    assert seen["line"] == "fastshap: sentiment at http://127.0.0.1:8099"
    status, headers, body = seen["answer"]
    assert status == 200
    assert headers["x-frame-options"] == "DENY"
    (explanation,) = json.loads(body)["explanations"]
    explainer = fastshap.GradientShap(*fastshap.load_default_model(), n_perturbations=4)
    assert explanation["importances"][0] == pytest.approx(explainer.explain(TEXT)[0].attributions[0].tolist(), abs=1e-5)
    assert explanation["delta"] is not None
    assert seen["bad"] == [422, "InvalidArgumentError", True]
    assert seen["late"] == [504, "DeadlineExceededError", True]
    assert seen["named"] == "mine"


def test_a_client_that_leaves_takes_its_work_along(seen):
    assert seen["left"]


def test_it_listens_on_the_loopback_address_alone(seen):
    assert seen["exposed"] == []


def test_a_text_that_kills_its_process_is_refused_and_the_others_are_answered(seen):
    died = [503, "WorkerDiedError", True]
    assert seen["deaths"] == [died, died, [500, "WorkerDiedError", True]]
    assert seen["no more died"]
    assert max(seen["back"]) < 30
    assert seen["then"] == [200] * 8
    # Of the others, only what was in the same process at that moment.
    assert len(seen["others"]) > 20
    assert set(seen["others"]) <= {200, 503}
    assert seen["others"].count(503) <= 2, seen["other errors"]


def test_what_was_accepted_is_answered_before_it_stops(seen):
    assert seen["answered"] == [200] * 6
    assert seen["code"] == 0
