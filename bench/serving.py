"""The service under load, beside the explainer called in process.

    python -m bench serve [--rounds 5] [--quick]

Starts ``fastshap serve`` with the packaged model, and measures in turn, with one torch thread on either side:

- throughput: short texts, one a request, from 64 clients that wait for their answers, beside a list of all of them in process;
- latency: one client, beside calls of one text in process;
- an open loop: requests at random times (exponential gaps), at half, eight tenths and one and a quarter of the throughput just
  measured. Latency counts from the time at which a request was to be sent, so that a slow answer delays nobody's clock;
- the same at half the throughput, where one request in 40 has about 400 tokens and 200 samples.

The clients run in this process and take their share of the machine. Figures go to bench/results/serving.json.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from bench.console import say
from bench.paths import RESULTS

_CLIENTS = 64
_START = 120  # seconds
_HEAD = (
    "POST /v1/models/sentiment:explain HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\ncontent-length: "
)
_LONG = {"n_perturbations": 200}


@dataclass
class Answers:
    """What came back: seconds of each answer that is an explanation, and how often each status came."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    took: float = 0.0

    def add(self, status: int, seconds: float) -> None:
        self.statuses[status] += 1
        if status == 200:
            self.seconds.append(seconds)

    def quantile(self, share: float) -> float:
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    def plain(self) -> dict[str, Any]:
        quantiles = {f"p{share:g}": round(1e3 * self.quantile(share / 100), 2) for share in (50, 90, 99)}
        statuses = {str(status): count for status, count in sorted(self.statuses.items())}
        return {"answers_a_second": round(self.statuses[200] / self.took, 2), "ms": quantiles, "statuses": statuses}


class Connections:
    """Connections to the service that are kept open; one request at a time on each."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    @contextlib.asynccontextmanager
    async def one(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        pair = self._idle.pop() if self._idle else await asyncio.open_connection("127.0.0.1", self._port)
        yield pair
        self._idle.append(pair)

    async def explain(self, instance: Any) -> int:
        """Sends an instance, reads the answer to its end, and returns the status."""
        body = json.dumps({"instances": [instance]})
        async with self.one() as (reader, writer):
            writer.write(f"{_HEAD}{len(body.encode())}\r\n\r\n{body}".encode())
            head = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
            length = next(int(line.split(b":")[1]) for line in head if line.startswith(b"content-length"))
            await reader.readexactly(length)
        return int(head[0].split()[1])

    def close(self) -> None:
        for _, writer in self._idle:
            writer.close()


async def closed_loop(port: int, instances: Sequence[Any], clients: int) -> Answers:
    """So many clients, each of which sends its next instance once it has its answer."""
    answers, connections, waiting = Answers(), Connections(port), iter(instances)

    async def client() -> None:
        for one in waiting:
            began = time.perf_counter()
            answers.add(await connections.explain(one), time.perf_counter() - began)

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    answers.took = time.perf_counter() - began
    connections.close()
    return answers


async def open_loop(port: int, instances: Sequence[Any], rate: float, seed: int) -> Answers:
    """Instances sent at random times, so many a second on average, whether or not there are answers."""
    answers, connections, draws = Answers(), Connections(port), random.Random(seed)
    began, at = time.perf_counter(), 0.0

    async def request(one: Any, due: float) -> None:
        answers.add(await connections.explain(one), time.perf_counter() - due)

    under_way = []
    for one in instances:
        at += draws.expovariate(rate)
        await asyncio.sleep(max(0.0, began + at - time.perf_counter()))
        under_way.append(asyncio.ensure_future(request(one, began + at)))
    await asyncio.gather(*under_way)
    answers.took = time.perf_counter() - began
    connections.close()
    return answers


@contextlib.contextmanager
def service(*options: str) -> Iterator[int]:
    """``fastshap serve`` on a free port, until it is ready; then ends by SIGTERM.

    Raises:
        RuntimeError: it did not start, or did not end well.
    """
    code = "from fastshap.cli import app; app()"
    command = [sys.executable, "-c", code, "serve", "--port", "0", "--name", "sentiment", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        address = process.stdout.readline()  # type: ignore[union-attr]
        if " at http://" not in address:
            raise RuntimeError(f"The service did not start; {' '.join(command[3:])} says why.")
        port = int(address.rsplit(":", 1)[1])
        _wait_until_ready(port)
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        status = process.wait(_START)
        process.stdout.close()  # type: ignore[union-attr]
    if status != 0:
        raise RuntimeError(f"The service ended with {status}.")


def _wait_until_ready(port: int) -> None:
    import http.client

    until = time.monotonic() + _START
    while time.monotonic() < until:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        with contextlib.suppress(OSError), contextlib.closing(connection):
            connection.request("GET", "/v2/health/ready")
            if connection.getresponse().status == 200:
                return
        time.sleep(0.2)
    raise RuntimeError(f"The service was not ready within {_START} seconds.")


def seconds_of(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def measure(texts: Sequence[str], rounds: int) -> dict[str, Any]:
    """All figures; the texts are sent ``rounds`` times in each of the ways."""
    import torch

    import fastshap

    torch.set_num_threads(1)
    explainer = fastshap.GradientShap(*fastshap.load_default_model(), batch_size="auto", return_convergence_delta=True)
    explainer(texts[:50])
    few = texts[: max(10, len(texts) // 8)]
    long = {"text": " ".join(texts)[:1600], **_LONG}
    lists, many, singles, ones = [], [], [], []
    with service() as port:
        asyncio.run(closed_loop(port, texts[:100], 16))
        for number in range(rounds):
            say(f"throughput, round {number + 1} of {rounds}")
            lists.append(len(texts) / seconds_of(partial(explainer, texts)))
            many.append(asyncio.run(closed_loop(port, texts, _CLIENTS)))
            singles.append(statistics.median(seconds_of(partial(explainer, text)) for text in few))
            ones.append(asyncio.run(closed_loop(port, few, 1)))
        rate = statistics.median(len(texts) / one.took for one in many)
        loops = {}
        for share in (0.5, 0.8, 1.25):
            say(f"open loop at {share:g} of {rate:.0f} requests a second")
            loops[f"{share:g}"] = asyncio.run(open_loop(port, texts, share * rate, seed=1)).plain()
        say("open loop with long texts")
        mixed = [long if i % 40 == 20 else text for i, text in enumerate(texts)]
        loops["0.5, one in 40 long"] = asyncio.run(open_loop(port, mixed, 0.5 * rate, seed=1)).plain()
    ratios = [len(texts) / one.took / alone for one, alone in zip(many, lists, strict=True)]
    added = [1e3 * (one.quantile(0.5) - alone) for one, alone in zip(ones, singles, strict=True)]
    return {
        "texts": len(texts),
        "in_process": {"texts_a_second": _rounded(lists), "ms_p50_of_one": _rounded([1e3 * one for one in singles])},
        "clients_64": [one.plain() for one in many],
        "client_1": [one.plain() for one in ones],
        "share_of_in_process": _rounded(ratios),
        "added_ms_p50": _rounded(added),
        "open_loop": loops,
    }


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(value, 3) for value in values]


def main(arguments: list[str] | None = None) -> int:
    """Measures, prints, and writes the record unless it is quick."""
    parser = argparse.ArgumentParser(
        prog="python -m bench serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="times that throughput is measured, in turn")
    parser.add_argument("--texts", type=int, default=640, help="requests in each measurement")
    parser.add_argument("--quick", action="store_true", help="few requests, no record: does it run?")
    options = parser.parse_args(arguments)
    if min(options.rounds, options.texts) < 1:
        parser.error("--rounds and --texts must be at least 1")
    from bench.record import commit, machine, versions
    from tools.assets import rated_sentences

    count, rounds = (64, 1) if options.quick else (options.texts, options.rounds)
    texts = [*dict.fromkeys(one.text for one in rated_sentences())][:count]
    found = measure(texts, rounds)
    middle = {name: statistics.median(found[name]) for name in ("share_of_in_process", "added_ms_p50")}
    print(f"64 clients: {middle['share_of_in_process']:.2f} of the texts a second in process")
    print(f"1 client: {middle['added_ms_p50']:+.1f} ms (median) beyond a call in process")
    for load, one in found["open_loop"].items():
        times = ", ".join(f"{name} {value:.0f}" for name, value in one["ms"].items())
        print(f"open loop, {load} of the throughput: {times} ms; answers by status {one['statuses']}")
    if not options.quick:
        record = {
            "date": time.strftime("%Y-%m-%d"),
            "machine": machine(),
            "versions": versions(),
            "commit": commit(),
            **found,
        }
        (RESULTS / "serving.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0
