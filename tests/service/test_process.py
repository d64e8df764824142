"""``fastshap serve`` as it is run: signals, slow and rude clients, large bodies, ports."""

import asyncio
import concurrent.futures
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fastshap.cli import app
from helpers.services import Process, wait_until

pytestmark = pytest.mark.serve

EXPLAIN = "/v1/models/sentiment:explain"
LIMITS = ("--header-timeout", "1", "--body-timeout", "1", "--max-connections", "20", "--max-queued-tokens", "100000000")


@pytest.fixture(scope="module")
def service():
    with Process(*LIMITS, "--n-perturbations", "4") as process:
        yield process
        assert process.stop() == 0
        assert all(line.startswith("{") for line in process.lines)


def post(service, body, path=EXPLAIN, timeout=30, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=timeout)
    headers = {"Content-Type": "application/json"} | headers
    with contextlib.closing(connection):
        connection.request("POST", path, json.dumps(body) if isinstance(body, dict) else body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()


def status_of(service, path):
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=10)
    with contextlib.closing(connection):
        connection.request("GET", path)
        return connection.getresponse().status


def explained(service):
    status, body = post(service, {"instances": ["A gorgeous, witty film."]})
    assert status == 200, body
    return json.loads(body)["explanations"][0]


def raw(service, data, seconds=10):
    """What a service answers to bytes, until it closes the connection."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=seconds) as client:
        client.sendall(data)
        answer = b""
        while part := client.recv(65536):
            answer += part
        return answer


def resident(service):
    """MiB."""
    pages = int(Path(f"/proc/{service.process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def test_it_explains(service):
    assert explained(service)["words"] == ["A", "gorgeous", ",", "witty", "film", "."]
    assert status_of(service, "/v2/health/ready") == 200
    listening = next(one for one in service.events() if one["event"] == "listening")
    assert listening["url"] == service.address


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_of_100_mb(service, chunked):
    before, began = resident(service), time.monotonic()
    part = b" " * 2**20
    head = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: 104857600"
    with socket.create_connection(("127.0.0.1", service.port), timeout=30) as client:
        client.sendall(
            f"POST {EXPLAIN} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n".encode() + head + b"\r\n\r\n"
        )
        with contextlib.suppress(ConnectionError):  # it stops reading
            for _ in range(100):
                client.sendall(b"100000\r\n" + part + b"\r\n" if chunked else part)
        with contextlib.suppress(ConnectionError):
            assert client.recv(65536).startswith(b"HTTP/1.1 413")
    assert time.monotonic() - began < 15
    assert resident(service) - before < 30
    explained(service)


def test_headers_that_come_too_slowly(service):
    began = time.monotonic()
    assert raw(service, b"POST / HTTP/1.1\r\nHost:") == b""
    assert 0.8 < time.monotonic() - began < 5


def test_headers_of_a_second_request_that_come_too_slowly(service):
    head = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"
    with socket.create_connection(("127.0.0.1", service.port), timeout=10) as client:
        client.sendall(head)
        assert client.recv(65536).startswith(b"HTTP/1.1 200")
        client.sendall(b"GET /v2")
        began = time.monotonic()
        while client.recv(65536):
            pass
        assert time.monotonic() - began < 5


def test_a_body_that_comes_too_slowly(service):
    head = f"POST {EXPLAIN} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 90\r\n\r\n{{"
    answer = raw(service, head.encode())
    assert answer.startswith(b"HTTP/1.1 408")
    assert b'"type": "RequestTimeout"' in answer


def test_what_is_no_http(service):
    answer = raw(service, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["type"] == "InvalidHttp"


def test_too_many_connections(service):
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(socket.create_connection(("127.0.0.1", service.port), timeout=10))
        answer = raw(service, b"")
        assert answer.startswith(b"HTTP/1.1 429")
        assert b"retry-after: 1" in answer
    wait_until(lambda: status_of(service, "/v2/health/live") == 200)


def test_clients_that_leave_do_not_hold_the_others_up(service):
    body = json.dumps({"instances": [{"text": "a gorgeous film " * 60, "n_perturbations": 1000}] * 4})
    head = (
        f"POST {EXPLAIN} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", service.port), timeout=10) as client:
        client.sendall((head + body).encode())
        wait_until(lambda: b"fastshap_active_requests 1.0" in _metrics(service))
    wait_until(lambda: any(one.get("status") == 499 for one in service.events()), 10)
    assert b"fastshap_active_requests 0.0" in _metrics(service)


def test_a_client_that_leaves_with_several_requests_on_its_connection(service):
    left = sum(one.get("status") == 499 for one in service.events())
    body = json.dumps({"instances": [{"text": "a gorgeous film " * 60, "n_perturbations": 1000}] * 4})
    head = (
        f"POST {EXPLAIN} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", service.port), timeout=10) as client:
        client.sendall((head + body).encode() * 2)
        wait_until(lambda: b"fastshap_active_requests 1.0" in _metrics(service))
    wait_until(lambda: sum(one.get("status") == 499 for one in service.events()) > left, 10)
    assert b"fastshap_active_requests 0.0" in _metrics(service)
    assert not any(one["event"] == "failure" for one in service.events())


def _metrics(service, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=30)
    with contextlib.closing(connection):
        connection.request("GET", "/metrics", headers=headers)
        return connection.getresponse().read()


def test_what_was_accepted_is_answered_before_it_stops(tmp_path):
    path = tmp_path / "audit.jsonl"
    body = {"instances": [{"text": f"a gorgeous film number {i}", "n_perturbations": 60} for i in range(5)]}
    options = ("--grace", "60", "--audit", str(path), "--audit-texts", "--name", "mine")
    address, headers = "/v1/models/mine:explain", {"Authorization": "Bearer secret"}
    with Process(*options, FASTSHAP_TOKEN="secret") as process, concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert post(process, body, address)[0] == 401
        waiting = [pool.submit(post, process, body, address, timeout=60, **headers) for _ in range(2)]
        wait_until(lambda: b"fastshap_active_requests 2.0" in _metrics(process, **headers))
        process.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(ConnectionError):  # it may have been quick
            wait_until(lambda: status_of(process, "/v2/health/ready") == 503, 5)
            assert post(process, {"instances": ["a"]}, address, **headers)[0] == 503
        assert [one.result()[0] for one in waiting] == [200, 200]
        assert process.process.wait(30) == 0
        assert "secret" not in "".join(process.lines)
    done = CliRunner().invoke(app, ["reproduce", str(path), "--sample", "3"])
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1] == "3 of 3 the same."


def test_what_takes_longer_than_the_grace_is_given_up():
    body = {"instances": [{"text": "a gorgeous film " * 20, "n_perturbations": 200}] * 40}
    with (
        Process("--grace", "0.3", "--max-queued-tokens", "100000000") as process,
        concurrent.futures.ThreadPoolExecutor(1) as pool,
    ):
        waiting = pool.submit(post, process, body)
        wait_until(lambda: b"fastshap_active_requests 1.0" in _metrics(process))
        process.process.send_signal(signal.SIGINT)
        status, answer = waiting.result()
        assert status == 503
        assert json.loads(answer)["type"] == "ClosedError"
        assert process.process.wait(30) == 0


def wrong(*options):
    done = CliRunner().invoke(app, ["serve", *options])
    assert done.exit_code == 2, done.output
    return done.stderr


def test_a_port_that_is_taken(service):
    said = wrong("--port", str(service.port))
    assert f"port {service.port} is taken" in said
    assert "--port" in said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--host", "192.0.2.1"], "no address of this machine"),
        (["--max-samples", "0"], "max_samples"),
        (["--port", "0", "--max-samples", "5"], "lower the one (--n-perturbations)"),
        (["--port", "0", "--ray", "--n-perturbations", "1001"], "lower the one (--n-perturbations)"),
        (["--audit-texts"], "add --audit"),
        (["--port", "0", "--cuda-graphs"], "one NVIDIA GPU"),
        (["--token-file", "/nothing"], "/nothing"),
        (["--audit", "/nothing/there"], "cannot be written"),
        (["--port", "0", "--name", "a/b"], "a/b"),
        (["--port", "0", "--replicas", "2"], "--replicas is for Ray Serve; add --ray"),
        (["--port", "0", "--ray", "--replicas", "2", "--autoscale", "1:2"], "exclude each other"),
        (["--port", "0", "--ray", "--autoscale", "3"], "MIN:MAX"),
        (["--port", "0", "--ray", "--autoscale", "3:2"], "at least one replica"),
    ],
)
def test_wrong_usage(loaded_once, options, words):
    assert words in wrong(*options)


def test_a_burst_of_400_requests_of_which_some_are_bad():
    good = json.dumps({"instances": [{"text": "A gorgeous, witty film.", "n_perturbations": 2}]})
    bad = json.dumps({"instances": [{"text": "A gorgeous, witty film.", "seed": "x"}]})

    async def asked(port, body):
        head = f"POST {EXPLAIN} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        answer = await asyncio.wait_for(reader.read(), 60)
        writer.close()
        head, _, content = answer.partition(b"\r\n\r\n")
        return int(head.split()[1]), json.loads(content)

    async def burst(port):
        return await asyncio.gather(*(asked(port, good if i % 10 else bad) for i in range(400)))

    with Process("--max-requests", "100") as process:

        def usual():
            began = time.monotonic()
            assert asyncio.run(asked(process.port, good))[0] == 200
            return time.monotonic() - began

        before = min(usual() for _ in range(3))
        answers = asyncio.run(burst(process.port))
        after = min(usual() for _ in range(3))
        counts = Counter(status for status, _ in answers)
        assert counts.keys() <= {200, 422, 429}, counts
        assert counts[200] >= 80
        for i, (status, body) in enumerate(answers):
            assert (status == 200) == ("error" not in body)
            if i % 10 == 0:
                assert status in (422, 429)
                assert "seed must be a whole number" in body["error"] or status == 429
        assert after < 3 * before + 0.1


def python(script, **options):
    """A process that runs ``script``, in this checkout."""
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", script, *options], env=environment, stdout=-1, stderr=-1, text=True)


def test_a_signal_while_the_model_loads():
    script = """
import time
import fastshap.service.building as building
from fastshap.cli import app
building.load_pair = lambda *_: (print("loading", flush=True), time.sleep(60))
app(["serve", "--port", "0"])
"""
    with python(script) as process:
        assert process.stdout.readline() == "loading\n"
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert time.monotonic() - began < 5
        assert process.stderr.read() == ""


@pytest.mark.parametrize("seconds", [0, 0.2])
def test_a_signal_while_the_model_is_tried(seconds):
    with Process("--n-perturbations", "20000", "--max-samples", "20000", ready=False) as process:
        time.sleep(seconds)
        assert process.stop(seconds=10) == 0
        process._reader.join(5)
        assert [one["event"] for one in process.events()] == ["listening"]


def test_a_batcher_that_nobody_closes():
    script = """
import fastshap
batcher = fastshap.Batcher(fastshap.GradientShap(*fastshap.load_default_model(), batch_size="auto"))
waiting = [batcher.submit(f"A gorgeous film {i}.") for i in range(400)]
waiting[0].result()
"""
    with python(script) as process:
        said = process.communicate(timeout=60)[1]
        assert process.returncode == 0, said
        assert said == ""
