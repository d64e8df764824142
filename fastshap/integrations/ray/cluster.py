"""Ray itself: started here or joined, kept quiet, and how much of it the workers take."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import socket
import sys
import time
import warnings
from collections.abc import Iterator
from typing import Any

from fastshap.errors import InvalidArgumentError, JobError
from fastshap.extras import needed
from fastshap.integrations.ray.lost import first_line

_BLOCK = 16 << 20  # bytes that a reader hands on at once
_ANSWER = 10.0  # seconds that a cluster has to answer
_SPARE_CPUS = 2  # of a Ray that is started here, for what reads and cuts while the workers hold theirs


def imported(address: str | None, part: str = "ray.data") -> Any:
    """ray, with a part of it."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address is None and "ray" not in sys.modules:
        # By this name, which counts on Linux too, Ray is told that it has one node: it takes the loopback address then, instead
        # of looking for the one that other machines see and listening on all.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    ray = needed("ray", "ray")
    needed(part, "ray")
    return ray


def cores() -> int:
    """Of this machine, that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def running(ray: Any, address: str | None, workers: int | None, cpus: float) -> Iterator[bool]:
    """Ray, started or joined for the time being; yields whether it was started here."""
    if ray.is_initialized():
        if address is not None:
            raise InvalidArgumentError("This process has joined a Ray cluster already; leave the address out.")
        yield False
        return
    options = {"log_to_driver": False, "logging_level": "ERROR", "namespace": "fastshap"}
    if address is None:
        wanted = (workers or max(1, int(cores() // cpus))) * cpus
        if wanted > cores():
            raise JobError(
                f"{workers or 1} workers of {cpus:g} CPUs each are more than the {cores()} cores of this machine; take fewer "
                "workers (--workers), or a cluster (--address)."
            )
        # Ray's C++ side writes to the terminal, whatever Python's logging is told.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        with _hushed():
            ray.init(
                address="local",
                num_cpus=math.ceil(wanted) + _SPARE_CPUS,
                include_dashboard=False,
                _node_ip_address="127.0.0.1",
                **options,
            )
    else:
        try:
            _knock(address)
            ray.init(address=address, **options)
        except (OSError, RuntimeError, ValueError) as error:
            raise JobError(f"There is no Ray cluster at {address}: {first_line(error)}") from None
    try:
        yield address is None
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Whether anybody listens at host:port, since Ray itself would go on asking for many minutes."""
    if found := re.fullmatch(r"(?:ray://)?\[?(.+?)\]?:(\d+)", address):
        socket.create_connection((found[1], int(found[2])), _ANSWER).close()


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Without what native code writes to standard error; exceptions say what goes wrong."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextlib.contextmanager
def quiet(ray: Any, source: Any) -> Iterator[None]:
    """Ray Data without bars, messages and exceptions of its own, in small blocks; its settings are put back.

    A Dataset has settings of its own, those of when it was made.
    """
    contexts = [ray.data.DataContext.get_current(), *([source.context] if hasattr(source, "context") else [])]
    ours = {
        "enable_progress_bars": False,
        "print_on_execution_start": False,
        "target_max_block_size": _BLOCK,
        "raise_original_map_exception": True,  # one that Ray Data wraps loses its cause on the way here
    }
    theirs = [{name: getattr(context, name) for name in ours} for context in contexts]
    logger = logging.getLogger("ray.data")
    level = logger.level
    try:
        with warnings.catch_warnings():
            # Restarts and retries have no other place yet than the one that is to go.
            warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
            # An input smaller than the workers could take is no fault.
            warnings.filterwarnings("ignore", message="The minimum number of concurrent actors")
            logger.setLevel(logging.CRITICAL)
            for context in contexts:
                _set(context, ours)
            yield
    finally:
        for context, values in zip(contexts, theirs, strict=True):
            _set(context, values)
        logger.setLevel(level)


def _set(context: Any, values: dict[str, Any]) -> None:
    for name, value in values.items():
        setattr(context, name, value)


def pool_of(ray: Any, is_ours: bool, workers: int | None, cpus: float, gpus: float | None) -> dict[str, Any]:
    """What the workers take of the cluster, as ``map_batches`` wants it.

    Raises:
        JobError: they do not fit, or leave no CPU for what reads, which would wait for ever.
    """
    total = ray.cluster_resources()
    gpus = (1 if total.get("GPU", 0) >= 1 else 0) if gpus is None else gpus
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    places = sum(
        int(min(node.get("CPU", 0) // cpus, node.get("GPU", 0) // gpus if gpus else math.inf)) for node in nodes
    )
    if workers is None:
        workers = places if gpus else int(cores() // cpus) if is_ours else int((total.get("CPU", 0) - 1) // cpus)
        workers = max(1, workers)
    for name, each, beside in (("CPU", cpus, 1), ("GPU", gpus, 0)):
        there, needs = total.get(name, 0), workers * each + beside
        now = min(there, _free(ray, name, needs if needs <= there else 0))
        if needs > now:
            raise JobError(
                f"{workers} workers of {each:g} {name}s each{' and a CPU for what reads' * beside} take {needs:g} "
                f"{name}s; the cluster has {there:g}, of which {now:g} are free. They would wait for ever: take fewer workers "
                f"(--workers), or less for each (--{name.lower()}s-per-worker), or a larger cluster."
            )
    if workers > places:
        raise JobError(
            f"No node has room for a worker of {cpus:g} CPUs and {gpus:g} GPUs, or not for all: there is room for {places} of "
            f"{workers}. Take fewer workers (--workers), or less for each (--cpus-per-worker, --gpus-per-worker)."
        )
    return {"compute": ray.data.ActorPoolStrategy(size=workers), "num_cpus": cpus, "num_gpus": gpus or None}


def _free(ray: Any, name: str, needs: float) -> float:
    """How much of a resource nobody holds; what was let go of just now is given a little time to be told."""
    limit = time.monotonic() + _ANSWER
    while (free := float(ray.available_resources().get(name, 0))) < needs and time.monotonic() < limit:
        time.sleep(0.1)
    return free


def on_this_node(ray: Any) -> dict[str, Any]:
    strategies = needed("ray.util.scheduling_strategies", "ray")
    node = ray.get_runtime_context().get_node_id()
    return {"scheduling_strategy": strategies.NodeAffinitySchedulingStrategy(node_id=node, soft=False)}
