"""Options of commands that come from elsewhere: those of the settings, from :mod:`fastshap.settings`, and beside them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from fastshap.settings import DEFAULTS, PARAMETERS

# Those whose default depends on the model, with what the help says of it.
_BY_MODEL = {"inference_mode": "logits; softmax for a language model"}
TABLES = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")  # endings of files that are no texts line by line
_KEYWORD = inspect.Parameter.KEYWORD_ONLY


def of_settings() -> list[inspect.Parameter]:
    """An option for each parameter that can be written in a shell, and --background, which is a baseline too."""
    found = [_option(name, its.option, its.help) for name, its in PARAMETERS.items() if its.option is not None]
    help_ = (
        "A UTF-8 file of background texts, one per line, instead of --baseline: each sample's baseline is one of them."
    )
    background = Annotated[Path | None, typer.Option(help=help_)]
    return [*found, inspect.Parameter("background", _KEYWORD, default=None, annotation=background)]


def with_background(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings as Python takes them: background texts from a file are the baseline. Empty lines are left out.

    Raises:
        InvalidArgumentError: the file does not read or holds no text, or there is a baseline beside it.
    """
    settings = dict(settings)
    path = settings.pop("background")
    if path is None:
        return settings
    from fastshap.errors import InvalidArgumentError
    from fastshap.types.baselines import BaselineSet

    if settings["baseline"] is not None:
        raise InvalidArgumentError("--background names the baselines; leave out --baseline.")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise InvalidArgumentError(f"--background {path}: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(
            f"--background {path} is not UTF-8 ({error.reason} at byte {error.start}); convert it first."
        ) from None
    texts = [line.removesuffix("\r") for line in lines if line.strip()]
    if not texts:
        raise InvalidArgumentError(f"--background {path} holds no text; write one per line.")
    return settings | {"baseline": BaselineSet(texts)}


def _option(name: str, kind: Any, said: str) -> inspect.Parameter:
    default = DEFAULTS[name].value if isinstance(DEFAULTS[name], Enum) else DEFAULTS[name]
    if name in _BY_MODEL:
        default, said = None, f"{said}  [default: {_BY_MODEL[name]}]"
    read = None if isinstance(kind, type) else kind
    taken: Any = kind if read is None else str
    option = typer.Option(help=said, parser=read, metavar=None if read is None else "NUMBER|TOKEN")
    annotation = Annotated[taken if default is not None else taken | None, option]  # type: ignore[valid-type]
    return inspect.Parameter(name, _KEYWORD, default=default, annotation=annotation)


def for_model(settings: Mapping[str, Any], model: str | None, task: str | None) -> dict[str, Any]:
    """The settings, with what the command line explains of a model unless it is told otherwise (docs/adr/0025)."""
    from fastshap.tasks.loading import task_named_by

    if settings["inference_mode"] is not None:
        return dict(settings)
    if settings["score"] is not None:  # which says what is explained
        return {name: value for name, value in settings.items() if name != "inference_mode"}
    if settings["span"]:
        return dict(settings) | {"inference_mode": DEFAULTS["inference_mode"]}
    kind = task_named_by(model, task)
    return dict(settings) | {"inference_mode": DEFAULTS["inference_mode"] if kind is None else kind.steadiest_mode}


def in_words(target: list[str] | None, contrast: str | None) -> Any:
    """The words of --target; with --contrast the contrast of two.

    Raises:
        InvalidArgumentError: there is not one --target beside it, or it is the same.
    """
    if contrast is None:
        return target
    from fastshap.errors import InvalidArgumentError
    from fastshap.types.targets import Contrast

    if target is None or len(target) != 1:
        raise InvalidArgumentError("--contrast stands beside one --target; name one.")
    return Contrast(target[0], contrast)


def with_options(
    command: Callable[..., Any], options: Iterable[inspect.Parameter], before: str | None = None
) -> Callable[..., None]:
    """``command`` in the form that typer reads, with further ``options``, which ``command`` takes as ``**settings``.

    Args:
        before: in the help, the further options come before this one; by default they come last.
    """
    own = list(inspect.signature(command, eval_str=True).parameters.values())
    assert own.pop().kind is inspect.Parameter.VAR_KEYWORD
    place = [one.name for one in own].index(before) if before else len(own)
    own[place:place] = options

    def run(**given: Any) -> None:
        command(**given)

    run.__signature__ = inspect.Signature([one.replace(kind=_KEYWORD) for one in own])  # type: ignore[attr-defined]
    run.__doc__ = command.__doc__
    return run
