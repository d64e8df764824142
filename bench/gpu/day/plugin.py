"""A pytest plugin, ``-p bench.gpu.day.plugin``: writes every test as a case, and runs one part of several.

    FASTSHAP_DAY=<file>  FASTSHAP_DAY_LANE=<name>  FASTSHAP_DAY_PART=<k>/<parts>

Tests of few cases come first, so that a step that runs out of time loses some of many cases, and not the only one of its kind.
"""

from __future__ import annotations

import collections
import os
from pathlib import Path
from typing import Any

import pytest

from bench.gpu.day.record import FAILED, OK, SKIPPED, STARTED, Record, is_spoilt, leave

_record = Record(Path(os.environ["FASTSHAP_DAY"]), "tests", os.environ.get("FASTSHAP_DAY_LANE", "0"))
_waiting: dict[str, tuple[str, str, dict[str, Any]]] = {}


def _function(node: str) -> str:
    return node.split("::")[-1].split("[")[0]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    """Once the marks have chosen."""
    part, parts = map(int, os.environ.get("FASTSHAP_DAY_PART", "0/1").split("/"))
    counts = collections.Counter(_function(item.nodeid) for item in items)
    items.sort(key=lambda item: counts[_function(item.nodeid)])
    begun = _record.begun()
    kept = [item for place, item in enumerate(items) if place % parts == part and item.nodeid not in begun]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
    items[:] = kept


def pytest_collection_finish(session: Any) -> None:
    counts = collections.Counter(_function(item.nodeid) for item in session.items)
    if f"(collected {_record.lane})" not in _record.begun():
        _record.write(f"(collected {_record.lane})", OK, data=dict(counts))


def pytest_collectreport(report: Any) -> None:
    if report.failed:
        _record.write(f"(collecting {report.nodeid})", FAILED, report.longreprtext[-1500:])


def pytest_runtest_logstart(nodeid: str, location: Any) -> None:
    _record.write(nodeid, STARTED)


def pytest_runtest_logreport(report: Any) -> None:
    """A test has up to three reports, of which the worst counts."""
    status, why, data = _waiting.pop(report.nodeid, (OK, "", {}))
    data |= dict(report.user_properties)
    if report.skipped and status == OK:
        status, why = SKIPPED, report.longrepr[-1] if isinstance(report.longrepr, tuple) else report.longreprtext
    elif report.failed and status != FAILED:
        status, why = FAILED, report.longreprtext[-1500:]
    if report.when != "teardown" and not is_spoilt(why):
        _waiting[report.nodeid] = (status, why, data)
        return
    _record.write(report.nodeid, status, why, data or None, report.duration)
    if is_spoilt(why):
        print(report.longreprtext)
        leave()
