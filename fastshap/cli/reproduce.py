"""The command ``fastshap reproduce``."""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from fastshap.output.visible import printable


def register(app: typer.Typer) -> None:
    """Adds the command to ``app``."""
    app.command("reproduce")(reproduce)


def reproduce(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="What fastshap serve --audit wrote, or outputs as JSON lines.")
    ],
    model: Annotated[
        str | None, typer.Option(help="A directory or hub id; by default the sentiment model in the package.")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="What was explained, where the model leaves a choice.  [default: by its class]"
        ),
    ] = None,
    sample: Annotated[
        int | None, typer.Option(help="Compute so many again, drawn at random.  [default: all]", min=1)
    ] = None,
    texts: Annotated[
        Path | None,
        typer.Option(
            help="For a log without texts: a file of JSON lines, each an instance with an id: request id, slash, number."
        ),
    ] = None,
) -> None:
    """Computes explanations of an audit log again, and says which scores differ, and what has changed since.

    Exit code: 0 if all scores are the same but for rounding, 1 if some are not, or could not be computed again, 2 for wrong
    usage.
    """
    from transformers.utils import logging

    from fastshap.errors import FastshapError
    from fastshap.service.audit import lines_of
    from fastshap.service.replay import replay, texts_of
    from fastshap.tasks.loading import load_pair

    logging.disable_progress_bar()
    try:
        given = {} if texts is None else texts_of(texts)
        lines = _drawn(lines_of(file), sample)
        loaded, tokenizer = load_pair(model, task)
        good = count = 0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they were given when the texts were explained
            for line in lines:
                done = replay(line, loaded, tokenizer, task, given)
                typer.echo(done)
                good, count = good + done.good, count + 1
    except FastshapError as error:
        _fail(str(error))
    if count == 0:
        _fail("the file holds no explanation that could be computed again.")
    typer.echo(f"{good} of {count} the same.")
    if good < count:
        raise typer.Exit(1)


def _drawn(lines: Iterator[Any], sample: int | None) -> Iterator[Any]:
    """The lines of texts that were explained, or some of them in the order of the file; each has the same chance."""
    explained = (line for line in lines if line.error is None)
    if sample is None:
        return explained
    kept: list[Any] = []
    for seen, line in enumerate(explained):
        if seen < sample:
            kept.append(line)
        elif (place := random.randrange(seen + 1)) < sample:
            kept[place] = line
    return iter(sorted(kept, key=lambda line: line.number))


def _fail(message: str) -> NoReturn:
    typer.echo(f"fastshap: {printable(message)}", err=True)
    sys.stderr.flush()
    raise typer.Exit(2)
