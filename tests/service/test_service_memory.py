"""What a service that runs for long keeps: no more than at first."""

import concurrent.futures
import contextlib
import http.client
import itertools
import json
import os
import random
import statistics
import threading
from pathlib import Path

import pytest

from helpers.services import Process

pytestmark = pytest.mark.slow

EXPLAIN = "/v1/models/sentiment:explain"
WARM, COUNT, CLIENTS, TENTH = 2000, 10_000, 8, 1000
WORDS = "film plot cast music scene story actor joke script ending dull bright slow fresh weak strong odd warm".split()


def body(number):
    """A text that no other request has, short but for one in 25; every fourth has settings of its own too."""
    draw = random.Random(number)
    count = draw.randint(2, 12) if number % 25 != 7 else draw.randint(50, 150)
    instance = {"text": " ".join([*draw.choices(WORDS, k=count), str(number)]), "n_perturbations": 2}
    if number % 4 == 0:
        instance |= {"seed": number, "granularity": draw.choice(["word", "token", "sentence"])}
    return json.dumps({"instances": [instance if number % 50 else {"text": 3}]})


def test_resident_memory_is_flat_within_5_percent_over_10_000_requests(capsys):
    with Process() as service:
        numbers, samples, guard = itertools.count(), [], threading.Lock()
        statm = Path(f"/proc/{service.process.pid}/statm")

        def client():
            connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)
            with contextlib.closing(connection):
                while (number := next(numbers)) < WARM + COUNT:
                    connection.request("POST", EXPLAIN, body(number), {"Content-Type": "application/json"})
                    answer = connection.getresponse()
                    answer.read()
                    assert answer.status == (200 if number % 50 else 422)
                    if number % 20 == 0:
                        pages = int(statm.read_text().split()[1])
                        with guard:
                            samples.append((number, pages * os.sysconf("SC_PAGE_SIZE") / 2**20))

        with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
            for done in [pool.submit(client) for _ in range(CLIENTS)]:
                done.result()
        tenths = [
            statistics.median(size for number, size in samples if begin <= number < begin + TENTH)
            for begin in range(0, WARM + COUNT, TENTH)
        ]
        assert service.stop() == 0
    with capsys.disabled():
        print("\nresident MiB, the median of each 1,000 requests:", *(f"{one:.1f}" for one in tenths))
    first, last = tenths[WARM // TENTH], tenths[-1]
    assert abs(last - first) < 0.05 * first, tenths
