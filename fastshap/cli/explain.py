"""The command line: ``fastshap explain TEXT…`` and ``fastshap info``. Batch jobs are in :mod:`fastshap.cli.run`."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import platform
import re
import sys
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from fastshap.cli import evaluate as cli_evaluate
from fastshap.cli import reproduce as cli_reproduce
from fastshap.cli import run as cli_jobs
from fastshap.cli import serve as cli_service
from fastshap.cli.options import TABLES, for_model, in_words, of_settings, with_background, with_options
from fastshap.output.visible import printable
from fastshap.version import __version__

if TYPE_CHECKING:
    from fastshap.output.output import AttributionOutput

# Characters that JSON leaves as they are, and that steer a terminal or reorder its text.
_STEERING = re.compile("[\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff]")

app = typer.Typer(
    help="Shows which words a Hugging Face text model looks at, with GradientSHAP.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"fastshap {__version__}")
        raise typer.Exit()


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Shows which words a Hugging Face text model looks at, with GradientSHAP."""


def explain(
    texts: Annotated[
        list[str] | None,
        typer.Argument(metavar="TEXT", help="Texts, each in quotes; - reads standard input, one text per line."),
    ] = None,
    file: Annotated[
        list[Path] | None,
        typer.Option(help="A UTF-8 file with one text per line (an empty line cannot be explained); repeatable."),
    ] = None,
    pair: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            help="For a model that reads pairs of texts: the second text. Once for all texts, or once for each in their order.",
        ),
    ] = None,
    choice: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT", help="For a model that chooses among texts: a choice; once for each, for all texts."
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="A directory or hub id; by default the sentiment model in the package.")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="What to explain, where the model leaves a choice.  [default: by its class]"),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="A class number, a label or 'all'; repeatable; by default the predicted class. For a language model: the "
            "continuation; by default the model writes it."
        ),
    ] = None,
    contrast: Annotated[
        str | None,
        typer.Option(help="Why the --target rather than this one: explain the difference of their scores."),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(help="The most tokens a language model writes if there is no --target.  [default: 20]"),
    ] = None,
    return_convergence_delta: Annotated[
        bool, typer.Option("--return-convergence-delta", help="Report how far the scores are from adding up.")
    ] = False,
    batch_size: Annotated[str, typer.Option(help="The most rows (perturbed copies) per model call, or auto.")] = "auto",
    device: Annotated[str | None, typer.Option(help="Where to run: cpu, cuda:0, or auto for all GPUs.")] = None,
    backend: Annotated[str, typer.Option(help="Compute backend: auto, torch or triton.")] = "auto",
    on_error: Annotated[
        str, typer.Option(help="If a text cannot be explained: record says so and goes on, raise stops.")
    ] = "record",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per text and nothing else.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write a page for a browser instead of printing the words.")] = None,
    title: Annotated[
        str | None, typer.Option(help="The heading of the page, with --html.  [default: fastshap]")
    ] = None,
    uncertain: Annotated[
        bool, typer.Option("--uncertain", help="Colour words too whose 95 % interval contains zero.")
    ] = False,
    **settings: Any,
) -> None:
    """Explains texts: a score for each word. Words with a positive score support the predicted label (or --target), words
    with a negative score oppose it.

    Exit code: 0 if all texts were explained, 1 if some could not be explained, 2 for wrong usage.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # what the terminal cannot show is no reason to stop
    if html is not None and os.path.isdir(html):  # as "" is too
        _fail(f"--html is the file to write; {str(html)!r} is a directory.")
    if title is not None and html is None:
        _fail("--title is the heading of a page; add --html.")
    if uncertain and as_json:
        _fail("--uncertain is for words in colour; leave out --json.")
    if pair and choice:
        _fail("--pair and --choice do not go together: a text is one of a pair, or has choices.")
    wanted_texts = _with_choices(_with_pairs(_texts(texts or [], file or []), pair or []), choice or [])
    from transformers.utils import logging

    from fastshap.errors import FastshapError, NoiseWarning, TruncationWarning
    from fastshap.explainer import GradientShap
    from fastshap.tasks.loading import load_pair
    from fastshap.tasks.spelled import spelled_targets

    logging.disable_progress_bar()
    try:
        loaded, tokenizer = load_pair(model, task)
        explainer = GradientShap(
            loaded,
            tokenizer,
            batch_size=batch_size if batch_size == "auto" else _number(batch_size, "--batch-size"),
            device=device,
            return_convergence_delta=return_convergence_delta,
            on_error=on_error,
            backend=backend,
            task=task,
            **for_model(with_background(settings), model, task),
        )
        if pair and not explainer.task.takes_pairs:
            _fail(f"--pair is for a model that reads pairs of texts; {explainer.task.model_name} reads one text.")
        if choice and not explainer.task.takes_choices:
            _fail(f"--choice is for a model that chooses among texts; {explainer.task.model_name} reads one text.")
        if explainer.task.takes_choices and not choice:
            _fail(f"{explainer.task.model_name} chooses among texts: add --choice, once for each choice.")
        if max_new_tokens is not None and (target or not explainer.task.writes_targets):
            _fail("--max-new-tokens is for a language model that writes its own target; leave out --target.")
        options = None if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
        targets = spelled_targets(explainer.task, in_words(target, contrast), len(wanted_texts))
        outputs = explainer.iter_explain(wanted_texts, targets, generation_kwargs=options)
    except FastshapError as error:
        _fail(str(error))
    failed = False

    def results() -> Iterator[tuple[AttributionOutput, str | None]]:
        """Each output with its caption; printed, unless a page is all that is wanted."""
        nonlocal failed
        for text, output in zip(wanted_texts, outputs, strict=True):
            failed = failed or output.error is not None
            prediction = _prediction(output)
            if as_json or html is None:
                _print(text, output, prediction, as_json, uncertain)
            yield output, _caption(prediction)

    with warnings.catch_warnings(), _collected(NoiseWarning) as noise:
        warnings.simplefilter("ignore", TruncationWarning)  # each result says so itself
        try:
            if html is None:
                deque(results(), maxlen=0)
            else:
                _write_page(results(), html, "fastshap" if title is None else title, uncertain)
        except FastshapError as error:
            _fail(str(error), 2 if error.text_index is None else 1)
        except OSError as error:
            if error.errno == errno.EPIPE:  # the reader has seen enough
                raise
            _fail(f"the results could not be written: {error.strerror}{_where(error)}.")
    for message in noise:
        typer.echo(f"fastshap: {printable(message)}", err=True)
    if failed:
        raise typer.Exit(1)


app.command("explain")(with_options(explain, of_settings(), before="return_convergence_delta"))
cli_jobs.register(app, explain)
cli_service.register(app, explain)
cli_reproduce.register(app)
cli_evaluate.register(app, explain)


@app.command()
def info() -> None:
    """Shows versions, devices, the backend and the packaged model."""
    import torch

    from fastshap.models.default import DEFAULT_MODEL_PATH
    from fastshap.models.provenance import installed

    typer.echo(f"fastshap {__version__}, Python {platform.python_version()}, {platform.platform()}")
    for name in ("torch", "transformers", "tokenizers", "triton", "numpy"):
        typer.echo(f"{name} {installed(name) or 'not installed'}")
    typer.echo(f"device cpu: {torch.get_num_threads()} threads")
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        typer.echo(f"device cuda:{i}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    with_triton = torch.cuda.is_available() and installed("triton") is not None
    typer.echo(f"backend {'triton' if with_triton else 'torch (Triton needs its package and a CUDA or ROCm device)'}")
    card = DEFAULT_MODEL_PATH / "README.md"
    about = card.read_text(encoding="utf-8").split("## Architecture", 1)[1].split("\n\n")[1]
    typer.echo(f"\nModel inside the package: {DEFAULT_MODEL_PATH}\n{about}\nIts model card: {card}")


@contextlib.contextmanager
def _collected(category: type[Warning]) -> Iterator[list[str]]:
    """The messages of such warnings, which are not shown where they come. Within ``warnings.catch_warnings``."""
    found: list[str] = []
    show = warnings.showwarning

    def keep(message: Warning | str, kind: type[Warning], *where: Any) -> None:
        if issubclass(kind, category):
            found.append(str(message))
        else:
            show(message, kind, *where)

    warnings.showwarning = keep  # type: ignore[assignment]
    yield found


def _texts(texts: list[str], files: list[Path]) -> list[str]:
    """The texts to explain, in the order given; a line without its line break is a text."""
    found: list[str] = []
    for file in files:
        if file.suffix.lower() in TABLES:
            _fail(f"{file} is a table, and explain takes one text per line; fastshap run explains the rows of a table.")
    try:
        for text in texts:
            found += _lines(sys.stdin.buffer.read()) if text == "-" else [text]
        for file in files:
            found += _lines(sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes())
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}.")
    except UnicodeDecodeError as error:
        _fail(f"the input is not UTF-8 ({error.reason} at byte {error.start}); convert it first.")
    if not found:
        _fail("there is no text to explain: give one in quotes, a file with --file, or - for standard input.")
    return found


def _with_pairs(texts: list[str], seconds: list[str]) -> Sequence[str | tuple[str, str]]:
    """Each text, with its second text where there are pairs."""
    if not seconds:
        return texts
    if len(seconds) not in (1, len(texts)):
        _fail(f"there are {len(texts)} texts and {len(seconds)} of --pair: give one for all texts, or one for each.")
    return [*zip(texts, seconds if len(seconds) > 1 else seconds * len(texts), strict=True)]


def _with_choices(texts: Sequence[Any], choices: list[str]) -> Sequence[Any]:
    """Each text with the choices, where there are some."""
    return [{"text": text, "choices": choices} for text in texts] if choices else texts


def _parts(text: Any) -> Sequence[str]:
    """What a text is made of."""
    if isinstance(text, dict):
        return [text["text"], *text["choices"]]
    return (text,) if isinstance(text, str) else text


def _lines(content: bytes) -> list[str]:
    return content.decode("utf-8-sig").replace("\r\n", "\n").removesuffix("\n").split("\n") if content else []


def _where(error: OSError) -> str:
    return "" if error.filename is None else f": {error.filename}"


def _number(value: str, option: str) -> int:
    try:
        return int(value)
    except ValueError:
        _fail(f"{option} is a whole number or 'auto'; got {value!r}.")


def _write_page(
    results: Iterator[tuple[AttributionOutput, str | None]], path: Path, title: str, uncertain: bool
) -> None:
    from fastshap.output.files import write_html

    outputs, captions = itertools.tee(results)
    count = write_html((one for one, _ in outputs), path, title, (caption for _, caption in captions), uncertain)
    typer.echo(f"fastshap: {count} {'text' if count == 1 else 'texts'} written to {printable(str(path))}", err=True)


def _prediction(output: AttributionOutput) -> dict[str, Any] | None:
    """The most probable label and its probability, for a classifier of two classes or more."""
    label = output.predicted_label
    return None if label is None else {"label": label, "probability": output.probability}


def _caption(prediction: dict[str, Any] | None) -> str | None:
    return (
        None if prediction is None else f"predicted {prediction['label']}, probability {prediction['probability']:.3f}"
    )


def _print(
    text: Any,
    output: AttributionOutput,
    prediction: dict[str, Any] | None,
    as_json: bool,
    uncertain: bool,
) -> None:
    if as_json:
        unicode = (sys.stdout.encoding or "").lower().startswith("utf")
        line = json.dumps(output.to_dict() | {"prediction": prediction}, ensure_ascii=not unicode)
        typer.echo(_STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", line))
        return
    from rich.console import Console
    from rich.text import Text

    from fastshap.output.render.terminal import show

    console = Console(highlight=False)
    for part in _parts(text):
        console.print(Text(printable(part), style="italic"))
    show(output, console, uncertain)
    console.print()


def _fail(message: str, code: int = 2) -> NoReturn:
    typer.echo("\n".join(map(printable, f"fastshap: {message}".split("\n"))), err=True)
    raise typer.Exit(code)
