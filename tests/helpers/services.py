"""Services to test: in this process, or as the command starts them."""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import NamedTuple

COMMAND = [sys.executable, "-c", "from fastshap.cli import app; app()"]


class Load(NamedTuple):
    requests: int
    tokens: int


class Held:
    """A queue that answers when a test says so."""

    def __init__(self, refusing=None):
        self.refusing, self.futures, self.asked = refusing, [], []

    @property
    def load(self):
        waiting = [one for one in self.futures if not one.done()]
        return Load(len(waiting), 10 * len(waiting))

    def submit(self, text, target=None, *, deadline=None, **options):
        if self.refusing is not None:
            raise self.refusing
        self.asked.append((text, target, deadline, options))
        self.futures.append(Future())
        return self.futures[-1]

    def close(self, timeout=None):
        pass


@contextlib.contextmanager
def app_of(service):
    """A client of the service's app, once it is ready; what it logs is in ``service.log._stream``."""
    from starlette.testclient import TestClient

    from fastshap.service.app import make_app

    with TestClient(make_app(service)) as client:
        wait_until(lambda: service.state != "starting")
        assert service.state == "ready", service.failure
        yield client


def service_of(pair, held=None, **options):
    """A service of the model; with ``held`` in the place of its queue."""
    import fastshap
    from fastshap.service.logs import Log
    from fastshap.service.service import Service

    its = {"n_perturbations": 4, "return_convergence_delta": True} | options.pop("settings", {})
    explainer = fastshap.GradientShap(*pair, batch_size="auto", **its)
    service = Service(explainer, log=Log(io.StringIO()), **options)
    if held is not None:
        service.batcher.close()
        service.batcher, service.state = held, "ready"
        service.start = lambda: None
    return service


def events(service):
    return [json.loads(line) for line in service.log._stream.getvalue().splitlines()]


def wait_until(true, seconds=30):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


class Process:
    """``fastshap serve`` in a process of its own, at a port of its own.

    Attributes:
        address, port: where it is.
        lines: what it has written to standard error so far.
    """

    def __init__(self, *options, ready=True, **environment):
        root = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            [*COMMAND, "serve", "--port", "0", *options],
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        found = re.search(r"http://127\.0\.0\.1:(\d+)$", self.process.stdout.readline().strip())
        assert found, "".join(self.lines)
        self.address, self.port = found[0], int(found[1])
        if ready:
            wait_until(lambda: any('"event": "ready"' in line for line in self.lines))

    def _read(self):
        self.lines.extend(self.process.stderr)

    def events(self):
        return [json.loads(line) for line in self.lines]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join()
        self.process.stdout.close()
        self.process.stderr.close()

    def stop(self, how=signal.SIGTERM, seconds=30):
        """Its exit code."""
        self.process.send_signal(how)
        return self.process.wait(seconds)
