"""The commands for batch jobs: ``fastshap run`` and ``fastshap verify``."""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

import typer

from fastshap.cli.options import for_model, in_words, of_settings, with_background, with_options
from fastshap.output.visible import printable

# Options of ``fastshap explain`` that a job takes too, with the same default and the same help.
_TARGETS, _RUNNING = ("task", "target", "contrast", "max_new_tokens"), ("batch_size", "device", "backend")


def register(app: typer.Typer, explain: Callable[..., Any]) -> None:
    """Adds the commands to ``app``; ``run`` has the options of ``explain`` that make sense for a job."""
    shared = inspect.signature(explain, eval_str=True).parameters
    app.command("run")(
        with_options(run, [*(shared[n] for n in _TARGETS), *of_settings(), *(shared[n] for n in _RUNNING)])
    )
    app.command("verify")(verify)


def run(
    source: Annotated[
        str,
        typer.Argument(
            metavar="INPUT", help="A Parquet, CSV or JSON-lines file, or a directory of these; a path or a URI."
        ),
    ],
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help="The directory to write Parquet files to.")],
    model: Annotated[
        str | None, typer.Option(help="A directory or hub id; by default the sentiment model in the package.")
    ] = None,
    text_column: Annotated[str, typer.Option(help="The column of texts.")] = "text",
    pair_column: Annotated[
        str | None, typer.Option(help="For a model that reads pairs of texts: the column of the second texts.")
    ] = None,
    choices_column: Annotated[
        str | None, typer.Option(help="For a model that chooses among texts: the column of the lists of choices.")
    ] = None,
    id_column: Annotated[str, typer.Option(help="The column of ids: whole numbers or strings, all different.")] = "id",
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep what an earlier run wrote, and explain the missing rows.")
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", help="Explain everything again. The earlier output stays until the new one is complete."
        ),
    ] = False,
    redo_changed: Annotated[
        bool, typer.Option("--redo-changed", help="With --resume: explain rows again if their text changed.")
    ] = False,
    local: Annotated[bool, typer.Option("--local", help="Run in this process, even if Ray is installed.")] = False,
    address: Annotated[
        str | None,
        typer.Option(help="Address of a Ray cluster to join, or auto on one of its nodes.  [default: start Ray here]"),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Number of worker processes.  [default: one per GPU, else one per core]", min=1)
    ] = None,
    cpus_per_worker: Annotated[float, typer.Option(help="CPUs of each worker.", min=0.01)] = 1,
    gpus_per_worker: Annotated[
        float | None, typer.Option(help="GPUs of each worker.  [default: 1 if there are any]", min=0)
    ] = None,
    rows_per_batch: Annotated[
        int, typer.Option(help="Texts per batch (computed again if the worker dies); for Ray only.", min=1)
    ] = 256,
    **settings: Any,
) -> None:
    """Explains a table of texts and writes a directory of Parquet files.

    Each id appears exactly once, even if the job is interrupted and resumed. The job runs on Ray if it is installed
    (the extra ray). Otherwise, or with --local, it runs in this process.

    Exit code: 0 if every row has attributions or a recorded error, 1 if rows are missing, 2 if the job could not start, 130 if
    Ctrl-C stopped it, 143 if SIGTERM did.
    """
    given = locals()
    _run(given.pop("settings"), **given)


def verify(
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help="What fastshap run wrote.")],
    source: Annotated[str, typer.Argument(metavar="INPUT", help="The input of that run.")],
) -> None:
    """Compares the output of a job with its input.

    Checks ids and texts, and whether the scores are still those that were written.

    Exit code: 0 if every row is there exactly once, 1 if not, 2 if the two cannot be compared.
    """
    from fastshap import jobs
    from fastshap.errors import FastshapError

    try:
        verdict = jobs.verify(output, source)
    except FastshapError as error:
        _fail(str(error), 2)
    _say(verdict.lines())
    if not verdict.good:
        raise typer.Exit(1)


def _run(settings: dict[str, Any], local: bool, **given: Any) -> None:
    from fastshap import jobs
    from fastshap.errors import FastshapError, JobError, NoiseWarning
    from fastshap.jobs.stopping import Terminated

    output = given["output"]
    try:
        options = _as_python(for_model(settings, given["model"], settings["task"]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NoiseWarning)  # the summary says so
            summary = jobs.run(**given, runner="local" if local else "auto", progress=True, **options)
    except FastshapError as error:
        if not isinstance(error, JobError) or not error.begun:
            _fail(str(error), 2)
        further = f" What was explained is in {output}; --resume continues the job." if error.resumable else ""
        _fail(f"{error}{further}", 1)
    except KeyboardInterrupt as stop:
        count = f": {stop}" if str(stop) else ""
        what = f"fastshap: stopped; what was explained is in {output}{count}. --resume continues the job."
        typer.echo(f"\n{printable(what)}", err=True)
        raise typer.Exit(143 if isinstance(stop, Terminated) else 130) from None
    _say([f"{output} is complete.", *summary.lines()])


def _as_python(options: dict[str, Any]) -> dict[str, Any]:
    """Options of the command line, as :func:`fastshap.jobs.run` takes them."""
    apart = ("target", "contrast", "max_new_tokens")
    settings = with_background({name: value for name, value in options.items() if name not in apart})
    settings["targets"] = in_words(options["target"], options["contrast"])
    if options["max_new_tokens"] is not None:
        settings["generation_kwargs"] = {"max_new_tokens": options["max_new_tokens"]}
    for name in ("device", "batch_size"):
        if settings[name] in (None, "auto"):
            del settings[name]
        elif settings[name].isdecimal():
            settings[name] = int(settings[name])
    return settings


def _say(lines: list[str]) -> None:
    """Prints lines. Names of files and kinds of errors come from strangers, so they must not steer the terminal."""
    typer.echo("\n".join(map(printable, lines)))


def _fail(message: str, code: int) -> NoReturn:
    typer.echo(f"fastshap: {printable(message)}", err=True)
    sys.stderr.flush()
    raise typer.Exit(code)
