"""``fastshap serve`` as it is run: signals, slow and rude clients, large bodies, ports."""

import concurrent.futures
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from helpers.services import COMMAND, Process, wait_until

pytestmark = pytest.mark.serve

EXPLAIN = "/v1/models/sentiment:explain"
LIMITS = ("--header-timeout", "1", "--body-timeout", "1", "--max-connections", "20")


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


def _metrics(service):
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=30)
    with contextlib.closing(connection):
        connection.request("GET", "/metrics")
        return connection.getresponse().read()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_what_was_accepted_is_answered_before_it_stops(how):
    body = {"instances": [{"text": f"a gorgeous film number {i}", "n_perturbations": 200} for i in range(12)]}
    with Process("--grace", "60") as process, concurrent.futures.ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(post, process, body, timeout=60) for _ in range(2)]
        wait_until(lambda: b"fastshap_active_requests 2.0" in _metrics(process))
        process.process.send_signal(how)
        with contextlib.suppress(ConnectionError):  # it may have been quick
            wait_until(lambda: status_of(process, "/v2/health/ready") == 503, 5)
            assert post(process, {"instances": ["a"]})[0] == 503
        assert [one.result()[0] for one in waiting] == [200, 200]
        assert process.process.wait(30) == 0


def test_what_takes_longer_than_the_grace_is_given_up():
    body = {"instances": [{"text": "a gorgeous film " * 60, "n_perturbations": 1000}] * 20}
    with Process("--grace", "0.3") as process, concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(post, process, body)
        wait_until(lambda: b"fastshap_active_requests 1.0" in _metrics(process))
        process.process.send_signal(signal.SIGTERM)
        status, answer = waiting.result()
        assert status == 503
        assert json.loads(answer)["type"] == "ClosedError"
        assert process.process.wait(30) == 0


def test_a_token_from_the_environment_and_an_audit_log(tmp_path):
    path = tmp_path / "audit.jsonl"
    with Process("--audit", str(path), "--audit-texts", "--name", "mine", FASTSHAP_TOKEN="secret") as process:
        body = {"instances": ["A gorgeous, witty film.", {"text": "Dull.", "targets": "all"}, ""]}
        address = "/v1/models/mine:explain"
        assert post(process, body, address)[0] == 401
        assert post(process, body, address, Authorization="Bearer secret", **{"X-Request-Id": "one"})[0] == 200
        assert process.stop() == 0
        assert "secret" not in "".join(process.lines)
    done = subprocess.run([*COMMAND, "reproduce", str(path)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "2 of 2 the same."


def wrong(*options, **environment):
    done = subprocess.run(
        [*COMMAND, "serve", *options],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stderr


def test_a_port_that_is_taken(service):
    code, said = wrong("--port", str(service.port))
    assert code == 2
    assert f"port {service.port} is taken" in said
    assert "--port" in said


def test_wrong_usage(tmp_path):
    (tmp_path / "empty").touch()
    for options, words in {
        ("--host", "192.0.2.1"): "no address of this machine",
        ("--max-samples", "0"): "max_samples",
        ("--audit-texts",): "add --audit",
        ("--token-file", str(tmp_path / "empty")): "is empty",
    }.items():
        code, said = wrong(*options)
        assert code == 2, said
        assert words in said
