"""The command ``fastshap evaluate``."""

from __future__ import annotations

import inspect
import json
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, NoReturn

import typer

from fastshap.cli.options import TABLES, for_model, in_words, of_settings, with_background, with_options
from fastshap.output.visible import printable

_MODEL, _RUNNING = (
    ("task", "target", "contrast"),
    ("batch_size", "device", "backend"),
)  # options of ``fastshap explain``
_JSON = (".jsonl", ".ndjson", ".json")
_USUAL = "comprehensiveness,sufficiency,log-odds,aopc-comprehensiveness,aopc-sufficiency"


class _Given(NamedTuple):
    """The texts of a file, and where all have one, their targets."""

    texts: list[Any]
    targets: list[str] | None


def register(app: typer.Typer, explain: Callable[..., Any]) -> None:
    """Adds the command to ``app``; it has the options of ``explain`` that make sense for it."""
    shared = inspect.signature(explain, eval_str=True).parameters
    options = [*(shared[name] for name in _MODEL), *of_settings(), *(shared[name] for name in _RUNNING)]
    app.command("evaluate")(with_options(evaluate, options))


def evaluate(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="A UTF-8 file: JSON lines, each an object with a text and, if you like, a text_pair (or pair), and "
            "in all lines or none a target (.jsonl, .ndjson, .json); or one text per line.",
        ),
    ],
    model: Annotated[
        str | None, typer.Option(help="A directory or hub id; by default the sentiment model in the package.")
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help="With commas between them. fastshap has the settings below and comes first. Others: fastshap-sum, "
            "fastshap-abs-mean, leave-one-out, gradient-norm, word-length, random-order, and where they are installed captum "
            "and interpreto, or single methods of theirs.  [default: all but those of captum and interpreto]"
        ),
    ] = None,
    measures: Annotated[
        str,
        typer.Option(
            help="With commas between them. Others: insertion, deletion, infidelity, normalized-aopc (which takes longest)."
        ),
    ] = _USUAL,
    replacement: Annotated[
        str,
        typer.Option(
            help="What stands in the place of a word: delete, mask, pad, or a baseline as --baseline takes it.",
        ),
    ] = "delete",
    measured_score: Annotated[
        str, typer.Option(help="The score that is looked at: probability, logit or log_probability.")
    ] = "probability",
    seeds: Annotated[int, typer.Option(help="Seeds of each random method, from --seed on.", min=1)] = 1,
    text_column: Annotated[str, typer.Option(help="In JSON lines, what holds the text.")] = "text",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write a page for a browser too.")] = None,
    title: Annotated[
        str | None, typer.Option(help="The heading of the page, with --html.  [default: fastshap evaluate]")
    ] = None,
    **settings: Any,
) -> None:
    """Measures whether explanations are true to the model, beside simple controls and other methods: it takes words away and
    looks at the score.

    Figures are means over the texts with their standard errors. See docs/faithfulness.md for the measures.

    Exit code: 0 if all texts were measured, 1 if some could not be explained, 2 for wrong usage.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    if title is not None and html is None:
        _fail("--title is the heading of a page; add --html.")
    if html is not None and html.is_dir():
        _fail(f"--html is the file to write; {str(html)!r} is a directory.")
    given = _read(file, text_column)
    target, contrast = settings.pop("target"), settings.pop("contrast")
    if given.targets is not None and (target or contrast):
        _fail("the file names targets; leave out --target and --contrast.")
    from transformers.utils import logging

    from fastshap.errors import FastshapError

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            words = given.targets if given.targets is not None else in_words(target, contrast)
            table, failed, used = _measured(
                given.texts, words, given.targets is not None, model, methods, measures, replacement, measured_score, seeds,
                settings,
            )  # fmt: skip
    except FastshapError as error:
        _fail(str(error))
    about = {
        "model": model or "the sentiment model in the package",
        "file": str(file),
        "texts": str(len(given.texts)),
        "seeds": str(seeds),
        **table.settings,
        "settings of fastshap": ", ".join(f"{name}={value}" for name, value in used.items() if value is not None),
    }
    if as_json:
        typer.echo(json.dumps({**table.to_dict(), "about": about, "settings_of_fastshap": used}))
    else:
        typer.echo("\n".join(printable(line) for line in str(table).split("\n")))
    if html is not None:
        _write(html, table, "fastshap evaluate" if title is None else title, about)
    if failed:
        typer.echo(
            f"fastshap: {failed} of {len(given.texts)} texts could not be explained; they are left out.", err=True
        )
        raise typer.Exit(1)


def _measured(
    texts: list[Any],
    words: Any,
    one_each: bool,
    model: str | None,
    methods: str | None,
    measures: str,
    replacement: str,
    score: str,
    seeds: int,
    settings: dict[str, Any],
) -> tuple[Any, int, dict[str, Any]]:
    """The table, how many texts were not explained, and the settings of fastshap."""
    from fastshap.checks import number_or_name
    from fastshap.explainer import GradientShap
    from fastshap.metrics import Faithfulness
    from fastshap.metrics import methods as known
    from fastshap.tasks.loading import load_pair
    from fastshap.tasks.spelled import spelled_targets

    names = [*known.OURS_AND_CONTROLS] if methods is None else known.methods_named(methods)
    chosen = known.measures_named(measures)
    task = settings.pop("task")
    size = settings.pop("batch_size")
    rows: int | str = int(size) if size.isdecimal() else size
    device = settings["device"]
    settings = for_model(with_background(settings), model, task)
    loaded, tokenizer = load_pair(model, task)
    explainer = GradientShap(loaded, tokenizer, rows, on_error="record", task=task, **settings)
    place = replacement if replacement in ("delete", "mask", "pad") else number_or_name(replacement)
    faithfulness = Faithfulness(loaded, tokenizer, replacement=place, score=score, batch_size=rows, device=device)
    targets = words if one_each else spelled_targets(explainer.task, words, len(texts))
    reference = list(explainer.explain(texts, targets))
    setup = known.Setup(explainer, faithfulness, texts, targets, reference)
    found = known.run(setup, names, seeds)
    table = faithfulness.compare(found, chosen)
    return table, sum(one.error is not None for one in reference), explainer.settings.to_plain()


def _read(path: Path, column: str) -> _Given:
    if path.suffix.lower() in {*TABLES} - {*_JSON}:
        _fail(f"{path}: evaluate takes JSON lines (.jsonl), or one text per line (.txt).")
    try:
        content = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        _fail(f"{path}: {error.strerror}.")
    except UnicodeDecodeError as error:
        _fail(f"{path} is not UTF-8 ({error.reason} at byte {error.start}); convert it first.")
    lines = content.replace("\r\n", "\n").split("\n")
    if path.suffix.lower() not in _JSON:
        found = _Given([line for line in lines if line.strip()], None)
    else:
        found = _rows(path, lines, column)
    if not found.texts:
        _fail(f"{path} holds no text.")
    return found


def _rows(path: Path, lines: Sequence[str], column: str) -> _Given:
    texts: list[Any] = []
    targets: list[Any] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            _fail(f"{path}, line {number}, is no JSON: {error}.")
        if not isinstance(row, dict) or not isinstance(row.get(column), str):
            _fail(f"{path}, line {number}, is no object with a string {column!r}; name another with --text-column.")
        second = row.get("text_pair", row.get("pair"))
        texts.append(row[column] if second is None else {"text": row[column], "text_pair": second})
        targets.append(row.get("target"))
    missing = sum(one is None for one in targets)
    if 0 < missing < len(targets):
        _fail(f"{path}: {missing} of {len(targets)} rows have no target; give all one, or none.")
    return _Given(texts, None if missing else targets)


def _write(path: Path, table: Any, title: str, about: dict[str, str]) -> None:
    from fastshap.metrics.page import page
    from fastshap.output.disk import replacing

    try:
        with replacing(path) as beside:
            beside.write_text(page(table, title, about), encoding="utf-8")
    except OSError as error:
        _fail(f"the page could not be written: {error.strerror}: {path}.")
    typer.echo(f"fastshap: page written to {printable(str(path))}", err=True)


def _fail(message: str) -> NoReturn:
    typer.echo(f"fastshap: {printable(message)}", err=True)
    sys.stderr.flush()
    raise typer.Exit(2)
