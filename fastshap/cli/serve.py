"""The command ``fastshap serve``."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from fastshap.cli.options import for_model, of_settings, with_background, with_options
from fastshap.output.visible import printable
from fastshap.service.limits import Limits

TOKEN = "FASTSHAP_TOKEN"  # the environment variable that may hold the token
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
    return_convergence_delta: Annotated[
        bool,
        typer.Option(
            "--return-convergence-delta/--no-return-convergence-delta",
            help="Answer how far the scores are from adding up, and the values they lie between; it costs n + 1 forward rows.",
        ),
    ] = True,
    **settings: Any,
) -> None:
    """Serves explanations over HTTP: KServe's V1 and V2 protocols, and a page at / for people.

    Exit code: 0 after SIGTERM or Ctrl-C, 1 if the model could not be tried, 2 if the service could not start.
    """
    from transformers.utils import logging

    from fastshap.errors import FastshapError, NoiseWarning, TruncationWarning
    from fastshap.service.audit import Audit
    from fastshap.service.server import bound_socket
    from fastshap.service.server import serve as run
    from fastshap.service.service import Service

    logging.disable_progress_bar()
    opened = contextlib.ExitStack()
    try:
        limits = Limits(**{one.name: settings.pop(one.name) for one in dataclasses.fields(Limits)})
        token = _token(token_file)
        if audit_texts and audit is None:
            _fail("--audit-texts is for an audit log; add --audit.", 2)
        listening = opened.enter_context(bound_socket(host, port))
        log = None if audit is None else opened.enter_context(contextlib.closing(Audit(audit, audit_texts)))
        explainer = _explainer(settings, model, task, threads, return_convergence_delta)
        service = Service(explainer, name=name, limits=limits, token=token, audit=log)
    except FastshapError as error:
        opened.close()
        _fail(str(error), 2)
    where = f"[{host}]" if ":" in host else host
    address = f"http://{where}:{listening.getsockname()[1]}"

    def started() -> None:
        service.log.event("listening", url=address, name=service.name)
        typer.echo(f"fastshap: {service.name} at {address}")

    with opened, warnings.catch_warnings():
        for kind in (NoiseWarning, TruncationWarning):  # answers say so themselves
            warnings.simplefilter("ignore", kind)
        try:
            run(service, listening, started)
        except FastshapError as error:
            _fail(f"the model could not be tried: {error}", 1)


def _explainer(
    settings: dict[str, Any], model: str | None, task: str | None, threads: int | None, with_delta: bool
) -> Any:
    import torch

    from fastshap.explainer import GradientShap
    from fastshap.tasks.loading import load_pair

    torch.set_num_threads(1 if threads is None else threads)
    settings = for_model(with_background(settings), model, task)
    size = settings.pop("batch_size")
    return GradientShap(
        *load_pair(model, task),
        batch_size=int(size) if size.isdecimal() else size,
        return_convergence_delta=with_delta and settings["reduction"] == "sum" and settings["input_x_gradient"],
        task=task,
        **settings,
    )


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
