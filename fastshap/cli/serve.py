"""The command ``fastshap serve``."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from fastshap.cli.options import for_model, of_settings, with_background, with_options
from fastshap.output.visible import printable
from fastshap.service.limits import Limits

TOKEN = "FASTSHAP_TOKEN"  # the environment variable that may hold the token
_TRIAL = 1.0  # seconds for which the end of a trial of the model is waited for
_RUNNING = ("batch_size", "device", "backend")  # options of ``fastshap explain``


def register(app: typer.Typer, explain: Callable[..., Any]) -> None:
    """Adds the command to ``app``."""
    shared = inspect.signature(explain, eval_str=True).parameters
    running = [shared[name] for name in _RUNNING]
    app.command("serve")(with_options(serve, [*_of_limits(), *of_settings(), *running]))


def _of_limits() -> list[inspect.Parameter]:
    """An option for each limit."""
    return [
        inspect.Parameter(
            one.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=one.default,
            annotation=Annotated[
                int if isinstance(one.default, int) else float, typer.Option(help=one.metadata["help"])
            ],
        )
        for one in dataclasses.fields(Limits)
    ]


def serve(
    model: Annotated[
        str | None, typer.Option(help="A directory or hub id; by default the sentiment model in the package.")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="What to explain, where the model leaves a choice.  [default: by its class]"),
    ] = None,
    host: Annotated[
        str, typer.Option(help="The address to listen at; 0.0.0.0 is all of this machine's.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen at; 0 takes a free one.", min=0, max=65535)] = 8080,
    name: Annotated[
        str | None, typer.Option(help="What the model is called in addresses.  [default: after the model]")
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            help=f"A file whose content requests have to bring as a bearer token; {TOKEN} may hold it instead."
        ),
    ] = None,
    audit: Annotated[
        Path | None,
        typer.Option(
            help="A file to append a line of JSON to for each explanation: time, request id, settings, fingerprints, scores."
        ),
    ] = None,
    audit_texts: Annotated[
        bool,
        typer.Option("--audit-texts", help="With --audit: also the texts, so that fastshap reproduce needs no more."),
    ] = False,
    threads: Annotated[
        int | None,
        typer.Option(
            help="Threads of one model call on a CPU; more than 1 is slow on busy cores.  [default: 1]", min=1
        ),
    ] = None,
    cuda_graphs: Annotated[
        bool,
        typer.Option(
            "--cuda-graphs",
            help="Run calls of one text as CUDA graphs, which start faster; needs --device cuda:0, an NVIDIA GPU.",
        ),
    ] = False,
    return_convergence_delta: Annotated[
        bool,
        typer.Option(
            "--return-convergence-delta/--no-return-convergence-delta",
            help="Answer how far the scores are from adding up, and the values they lie between; it costs n + 1 forward rows.",
        ),
    ] = True,
    ray: Annotated[
        bool,
        typer.Option("--ray", help="Run the service on Ray Serve, in one process or more; it needs the extra ray."),
    ] = False,
    address: Annotated[
        str | None,
        typer.Option(help="With --ray: a cluster to join, as host:port or auto.  [default: Ray on this machine alone]"),
    ] = None,
    replicas: Annotated[
        int | None, typer.Option(help="With --ray: processes that explain, each with a model.  [default: 1]", min=1)
    ] = None,
    autoscale: Annotated[
        str | None,
        typer.Option(metavar="MIN:MAX", help="With --ray: from MIN to MAX processes, by how much there is to do."),
    ] = None,
    gpus_per_replica: Annotated[
        float | None,
        typer.Option(help="With --ray: GPUs for each process.  [default: 1 if the cluster has any]", min=0),
    ] = None,
    **settings: Any,
) -> None:
    """Serves explanations over HTTP: KServe's V1 and V2 protocols, and a page at / for people.

    Exit code: 0 after SIGTERM or Ctrl-C, 1 if the model could not be tried, 2 if the service could not start.
    """
    from transformers.utils import logging

    from fastshap.errors import FastshapError, NoiseWarning, TruncationWarning
    from fastshap.service.audit import Audit
    from fastshap.service.building import Explained
    from fastshap.service.server import bound_socket
    from fastshap.service.server import serve as run
    from fastshap.service.service import Service
    from fastshap.settings import DEFAULTS

    logging.disable_progress_bar()
    opened = contextlib.ExitStack()
    on_ray = {
        "address": address,
        "replicas": replicas,
        "autoscale": autoscale,
        "gpus_per_replica": gpus_per_replica,
    }
    try:
        limits = Limits(**{one.name: settings.pop(one.name) for one in dataclasses.fields(Limits)})
        token = _token(token_file)
        if audit_texts and audit is None:
            _fail("--audit-texts is for an audit log; add --audit.", 2)
        for option, value in on_ray.items():
            if not ray and value is not None:
                _fail(f"--{option.replace('_', '-')} is for Ray Serve; add --ray.", 2)
        if ray and replicas is not None and autoscale is not None:
            _fail("--replicas and --autoscale exclude each other; leave one out.", 2)
        listening = opened.enter_context(bound_socket(host, port))
        opened.enter_context(_ending_at_sigterm())
        explained = Explained(
            model=model,
            task=task,
            threads=threads or 1,
            with_delta=return_convergence_delta,
            settings=for_model(with_background(settings), model, task) | {"cuda_graphs": cuda_graphs},
        )
        its = {**DEFAULTS, **explained.settings}
        limits.check_samples(its["n_perturbations"], its["max_perturbations"])
        where = f"[{host}]" if ":" in host else host
        url = f"http://{where}:{listening.getsockname()[1]}"
        if ray:
            from fastshap.integrations.ray.serving import Served

            port = listening.getsockname()[1]
            opened.close()
            path = None if audit is None else str(audit.absolute())
            served = Served(
                explained=explained, name=name, limits=limits, token=token, audit=path, audit_texts=audit_texts
            )
            _on_ray(served, host, port, url, **on_ray)
            return
        log = None if audit is None else opened.enter_context(contextlib.closing(Audit(audit, audit_texts)))
        service = Service(explained.explainer(), name=name, limits=limits, token=token, audit=log)
    except FastshapError as error:
        opened.close()
        _fail(str(error), 2)

    def started() -> None:
        service.log.event("listening", url=url, name=service.name)
        typer.echo(f"fastshap: {service.name} at {url}")

    with opened, warnings.catch_warnings():
        for kind in (NoiseWarning, TruncationWarning):  # answers say so themselves
            warnings.simplefilter("ignore", kind)
        try:
            run(service, listening, started)
        except FastshapError as error:
            _fail(f"the model could not be tried: {error}", 1)
    if not service.is_tried(_TRIAL):  # in native code when the interpreter goes away, it would abort the process
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _on_ray(served: Any, host: str, port: int, url: str, **options: Any) -> None:
    """The service on Ray Serve, until it is told to stop."""
    from fastshap.errors import JobError
    from fastshap.integrations.ray.serving import Scale, serve_on_ray

    between = None if options["autoscale"] is None else _between(options["autoscale"])
    scale = Scale(replicas=options["replicas"] or 1, between=between, gpus=options["gpus_per_replica"])

    def started(name: str) -> None:
        typer.echo(f"fastshap: {name} at {url}")

    try:
        serve_on_ray(served, scale, host=host, port=port, address=options["address"], started=started)
    except JobError as error:
        _fail(str(error), 1)


def _between(said: str) -> tuple[int, int]:
    from fastshap.errors import InvalidArgumentError

    least, _, most = said.partition(":")
    if not (least.isdecimal() and most.isdecimal()):
        raise InvalidArgumentError(f"--autoscale is MIN:MAX, such as 1:4; got {said!r}.")
    return int(least), int(most)


@contextlib.contextmanager
def _ending_at_sigterm() -> Iterator[None]:
    """While nothing is accepted yet, a signal ends the process at once, and well."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _token(file: Path | None) -> str | None:
    """The token, from a file or the environment: what stands in a command line can be read by everybody on the machine."""
    from fastshap.errors import InvalidArgumentError

    if file is None:
        return os.environ.get(TOKEN)
    try:
        found = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgumentError(f"--token-file {file}: {getattr(error, 'strerror', None) or 'no UTF-8'}.") from None
    if not found:
        raise InvalidArgumentError(f"--token-file {file} is empty.")
    return found


def _fail(message: str, code: int) -> NoReturn:
    typer.echo(f"fastshap: {printable(message)}", err=True)
    sys.stderr.flush()
    raise typer.Exit(code)
