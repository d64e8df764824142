"""The service as a deployment of Ray Serve: the same app, with one model and one queue in each replica."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from http.client import HTTPConnection
from typing import Any

from fastshap.errors import FastshapError, InvalidArgumentError, JobError, NoiseWarning, TruncationWarning
from fastshap.extras import needed
from fastshap.integrations.ray.cluster import cores, imported, running
from fastshap.integrations.ray.ends import Back, middlewares
from fastshap.integrations.ray.lost import first_line
from fastshap.service.app import make_app
from fastshap.service.audit import Audit
from fastshap.service.building import Explained
from fastshap.service.limits import Limits
from fastshap.service.service import READY, Service

APP = "fastshap"  # of Ray Serve's applications
_CALLBACK = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
_ONGOING = 1.25  # requests that a replica holds, for one that it explains: below 1 it would be Ray that makes them wait
_TARGET = 16  # requests at work in each replica, where Ray chooses how many there are
_CHECKED = 2.0  # seconds from one health check to the next
_ANSWER = 20.0  # seconds that a check may take
_PROXY = 60.0  # seconds that Ray's proxy may take to listen
_LOADING = 600.0  # seconds that a model may take until it is ready


@dataclasses.dataclass(frozen=True, kw_only=True)
class Served:
    """What each replica serves: what is explained, and the rest as for :class:`fastshap.service.service.Service`."""

    explained: Explained = dataclasses.field(default_factory=Explained)
    name: str | None = None
    limits: Limits = dataclasses.field(default_factory=Limits)
    token: str | None = dataclasses.field(default=None, repr=False)
    audit: str | None = None
    audit_texts: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scale:
    """How many replicas there are, and what each takes: ``replicas``, or from ``least`` to ``most`` as Ray sees fit."""

    replicas: int = 1
    between: tuple[int, int] | None = None
    gpus: float | None = None

    @property
    def most(self) -> int:
        return self.replicas if self.between is None else self.between[1]

    def __post_init__(self) -> None:
        least, most = self.between or (self.replicas, self.replicas)
        if not 1 <= least <= most:
            raise InvalidArgumentError(f"There is at least one replica, and MIN is at most MAX; got {least}:{most}.")


class Replica:
    """A process that explains. It takes requests once its model has been tried."""

    def __init__(self, served: Served) -> None:
        _keep_to_loopback()
        for kind in (NoiseWarning, TruncationWarning):  # answers say so themselves
            warnings.simplefilter("ignore", kind)
        log = None if served.audit is None else Audit(served.audit, served.audit_texts)
        explainer = served.explained.explainer()
        self._service = Service(explainer, name=served.name, limits=served.limits, token=served.token, audit=log)
        self._service.start()
        until = time.monotonic() + _LOADING
        while self._service.state != READY:
            if self._service.failure is not None:
                raise self._service.failure
            if time.monotonic() > until:
                raise JobError(f"The model was not ready after {_LOADING:g} s.")
            time.sleep(0.02)

    def __serve_build_asgi_app__(self) -> Any:
        return Back(make_app(self._service))

    def name(self) -> str:
        """What the model is called in addresses."""
        return self._service.name

    def check_health(self) -> None:
        """Ray Serve asks this now and then, and starts another replica in the place of one that fails.

        Raises:
            RuntimeError: nothing is explained any more.
        """
        if self._service.state != READY or not self._service.batcher.is_alive:
            raise RuntimeError(f"The service is {self._service.state}, or its thread has ended.")


def application(served: Served, scale: Scale) -> Any:
    """The application, as ``serve.run`` takes it."""
    serve = needed("ray.serve", "ray")
    limits, explained = served.limits, served.explained
    options: dict[str, Any] = {"num_replicas": scale.replicas}
    if scale.between is not None:
        least, most = scale.between
        its = {"min_replicas": least, "max_replicas": most, "target_ongoing_requests": _TARGET}
        options = {"num_replicas": None, "autoscaling_config": its}
    deployment = serve.deployment(
        serve.ingress()(Replica),
        name="Explainer",
        max_ongoing_requests=int(limits.max_requests * _ONGOING) + 1,
        max_queued_requests=limits.max_requests,
        backpressure_config={"status_code": 429, "retry_after_s": 1},
        health_check_period_s=_CHECKED,
        health_check_timeout_s=_ANSWER,
        graceful_shutdown_timeout_s=limits.grace,
        graceful_shutdown_wait_loop_s=0.1,
        ray_actor_options={"num_cpus": explained.threads, "num_gpus": scale.gpus or 0},
        **options,
    )
    return deployment.bind(served)


def app(arguments: Mapping[str, Any]) -> Any:
    """The application from a configuration file: ``import_path: fastshap.integrations.ray.serving:app`` and its ``args``.

    Args:
        arguments: ``model``, ``task``, ``name``, ``threads``, ``replicas`` or ``min_replicas`` and ``max_replicas``,
            ``gpus_per_replica``, ``audit``, ``audit_texts``, ``token``, ``limits`` (an object of limits), ``settings`` (an
            object of the explainer's parameters). All may be left out.

    Raises:
        InvalidArgumentError: there is no such argument.
    """
    given = dict(arguments)
    take: Callable[..., Any] = given.pop
    least, most, gpus = take("min_replicas", None), take("max_replicas", None), take("gpus_per_replica", 0)
    scale = Scale(replicas=take("replicas", 1), between=None if most is None else (least or 1, most), gpus=gpus)
    settings = dict(take("settings", {}))
    if gpus:
        settings.setdefault("device", "auto")
    about = {name: take(name) for name in ("model", "task", "threads") if name in given}
    explained = Explained(settings=settings, **about)
    try:
        served = Served(explained=explained, limits=Limits(**take("limits", {})), **given)
    except TypeError as error:
        raise InvalidArgumentError(f"The arguments of the application: {error}.") from None
    return application(served, scale)


def serve_on_ray(
    served: Served,
    scale: Scale,
    *,
    host: str,
    port: int,
    address: str | None,
    started: Callable[[str], None] = lambda name: None,
) -> None:
    """Serves until SIGTERM or SIGINT, then answers what was accepted and returns.

    Args:
        address: of a cluster to join; None starts Ray on this machine, and ends it.
        started: called with the model's name once requests are taken.

    Raises:
        JobError: Ray could not be started or joined, or the model could not be tried.
        MissingPackageError: Ray is not installed.
    """
    if address is None and scale.most * served.explained.threads > cores():
        raise JobError(
            f"{scale.most} replicas of {served.explained.threads} threads are more than the {cores()} cores of this machine; "
            "take fewer replicas (--replicas, --autoscale), or a cluster (--address)."
        )
    ray = imported(address, "ray.serve")
    serve = needed("ray.serve", "ray")
    for name in ("ray.serve", "ray"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with running(ray, address, scale.most, served.explained.threads) as is_ours, _told_to_stop() as stop:
        if scale.gpus is None and ray.cluster_resources().get("GPU", 0) >= 1:
            scale = dataclasses.replace(scale, gpus=1)
        if scale.gpus and served.explained.settings.get("device") is None:
            settings = {**served.explained.settings, "device": "auto"}
            served = dataclasses.replace(served, explained=dataclasses.replace(served.explained, settings=settings))
        try:
            with stop.raising():
                serve.start(
                    http_options={"host": host, "port": port, "request_timeout_s": served.limits.timeout + _CHECKED},
                    logging_config={"log_level": "WARNING", "enable_access_log": False},
                    controller_options={
                        "runtime_env": {"env_vars": {_CALLBACK: f"{middlewares.__module__}:{middlewares.__name__}"}}
                    },
                )
                handle = serve.run(
                    application(served, scale),
                    name=APP,
                    logging_config={"log_level": "WARNING", "enable_access_log": False},
                )
                name = handle.name.remote().result()
                if is_ours:
                    _wait_for_proxy(host, port)
            started(name)
            stop.wait()
        except _Stopped:
            pass
        except FastshapError:
            raise
        except Exception as error:
            raise JobError(f"Ray Serve could not start the service: {_reason(error)}") from error
        finally:
            with contextlib.suppress(Exception):
                serve.delete(APP)
                if is_ours:
                    serve.shutdown()


class _Stopped(BaseException):
    """Told to stop before the service stood."""


class _Stop:
    def __init__(self) -> None:
        self._event, self._raises = threading.Event(), False

    def told(self, *_: Any) -> None:
        self._event.set()
        if self._raises:
            self._raises = False
            raise _Stopped

    @contextlib.contextmanager
    def raising(self) -> Iterator[None]:
        """Within, a signal ends what is done."""
        self._raises = True
        try:
            yield
        finally:
            self._raises = False

    def wait(self) -> None:
        self._event.wait()


@contextlib.contextmanager
def _told_to_stop() -> Iterator[_Stop]:
    """In place of Ray's handlers, which end the process at once."""
    stop = _Stop()
    before = {one: signal.signal(one, stop.told) for one in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _wait_for_proxy(host: str, port: int) -> None:
    """Until Ray's proxy takes requests and knows where to: ``serve.run`` waits for the replicas alone."""
    until = time.monotonic() + _PROXY
    while time.monotonic() < until:
        with contextlib.suppress(OSError), contextlib.closing(HTTPConnection(host, port, timeout=_PROXY)) as connection:
            connection.request("GET", "/-/healthz")
            if connection.getresponse().status == 200:
                return
        time.sleep(0.1)
    raise JobError(f"Ray's proxy did not answer at {host}:{port} within {_PROXY:g} s.")


def _keep_to_loopback() -> None:
    """Ray Serve's replicas listen on all interfaces for each other, and unpickle what comes. On a node that has the loopback
    address alone, nobody else has a reason to ask.

    Raises:
        JobError: this is another Ray than this was written for.
    """
    util = needed("ray.util", "ray")
    if util.get_node_ip_address() != "127.0.0.1":
        return
    replica = needed("ray.serve._private.replica", "ray")
    bind = getattr(replica, "add_port_to_grpc_server", None)
    if bind is None:
        raise JobError("With this version of Ray, replicas may listen on all interfaces. Take Ray 2.60, or a cluster.")
    replica.add_port_to_grpc_server = lambda server, at: bind(server, at.replace("[::]", "127.0.0.1"))


def _reason(error: BaseException) -> str:
    """What the replica said, out of Ray's traceback of it."""
    lines = [line.strip() for line in str(error).splitlines() if "Error:" in line]
    return lines[-1].partition("Error: ")[2] if lines else first_line(error)
