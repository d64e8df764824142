"""Options of commands that come from elsewhere: those of the settings, from :mod:`fastshap.settings`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Annotated, Any

import typer

from fastshap.settings import DEFAULTS, PARAMETERS

_KEYWORD = inspect.Parameter.KEYWORD_ONLY


def of_settings() -> list[inspect.Parameter]:
    """An option for each parameter that can be written in a shell."""
    return [_option(name, its.option, its.help) for name, its in PARAMETERS.items() if its.option is not None]


def _option(name: str, kind: Any, said: str) -> inspect.Parameter:
    default = DEFAULTS[name].value if isinstance(DEFAULTS[name], Enum) else DEFAULTS[name]
    read = None if isinstance(kind, type) else kind
    taken: Any = kind if read is None else str
    option = typer.Option(help=said, parser=read, metavar=None if read is None else "NUMBER|TOKEN")
    annotation = Annotated[taken if default is not None else taken | None, option]  # type: ignore[valid-type]
    return inspect.Parameter(name, _KEYWORD, default=default, annotation=annotation)


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
