"""What is said of a parameter, once: how it is checked, shown, and written to files."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, NamedTuple

from fastshap import checks
from fastshap.types import member_of


def same(value: Any) -> Any:
    return value


class Parameter(NamedTuple):
    """What is said of one parameter beside its name, type and default."""

    check: Callable[
        [Any, str], Any
    ]  # of a value and the parameter's name: the value as it is kept, or an error of ours
    option: Callable[[str], Any] | None  # its type on the command line, or what reads it; None: it is no option there
    help: str  # one sentence or two, for the command line and the table in the docs
    doc: str  # for the docstring
    schema: Mapping[str, Any]  # JSON schema of its plain form
    to_plain: Callable[[Any], Any] = same
    from_plain: Callable[[Any], Any] = same
    of_a_text: bool = False  # whether texts share a model call that differ in it


def parameter(default: Any, **said: Any) -> Any:
    """A field of :class:`Settings`; ``said`` are the entries of a :class:`Parameter`."""
    return dataclasses.field(default=default, metadata={"parameter": Parameter(**said)})


def member(enum: type[Enum], **said: Any) -> dict[str, Any]:
    """What is said of a parameter that is a member of ``enum``."""
    return {
        "check": lambda value, name: member_of(enum, value, name),
        "option": str,
        "schema": {"enum": [member.value for member in enum]},
        "to_plain": lambda member: member.value,
        "from_plain": enum,
        **said,
    }


def word(choices: tuple[str, ...], **said: Any) -> dict[str, Any]:
    """What is said of a parameter that is one of a few words."""
    return {
        "check": lambda value, name: checks.one_of(value, name, choices),
        "option": str,
        "schema": {"enum": [*choices]},
        **said,
    }


def switch(**said: Any) -> dict[str, Any]:
    return {"check": checks.flag, "option": bool, "schema": {"type": "boolean"}, **said}
