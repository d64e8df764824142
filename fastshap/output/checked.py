"""Plain values against a JSON schema: the keywords that our schemas use, with errors that name the field.

A string has to be one that UTF-8 can hold, and a number is never a truth value. Fields that the schema does not name are left
alone. Work and memory grow with the value, not with what its numbers say.
"""

from __future__ import annotations

import math
import re
import reprlib
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from fastshap.errors import InvalidArgumentError

_KINDS: dict[str, tuple[type, ...]] = {
    "null": (type(None),),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "string": (str,),
    "array": (list,),
    "object": (dict,),
}


class _Problem(NamedTuple):
    place: str  # ".settings.seed", "[3]"
    what: str


_Check = Callable[[Any], _Problem | None]


class Rule(NamedTuple):
    """A schema, compiled: for each type that it takes what else is asked, and what these types are called."""

    by_kind: dict[type, _Check | None]
    called: str

    def __call__(self, value: Any) -> _Problem | None:
        try:
            check = self.by_kind[type(value)]
        except KeyError:
            return _Problem("", f"must be {self.called}; got {short(value)}")
        return None if check is None else check(value)


def check(value: Any, schema: Rule) -> None:
    """Nothing, if the value fits the schema.

    Raises:
        InvalidArgumentError: it does not; the message names the field, ``settings.n_perturbations`` say.
    """
    if (problem := schema(value)) is not None:
        raise InvalidArgumentError(f"{problem.place.lstrip('.') or 'It'} {problem.what}.")


def short(value: Any) -> str:
    """A value for a message, of a few characters however large it is."""
    try:
        return reprlib.repr(value)
    except ValueError:  # whole numbers of thousands of digits are not written
        return f"a very large {type(value).__name__}"


def compiled(schema: Mapping[str, Any]) -> Rule:
    """A JSON schema, of our keywords, as what :func:`check` takes."""
    return _rule(schema, schema.get("$defs", {}))


def _rule(schema: Mapping[str, Any], named: Mapping[str, Any]) -> Rule:
    if "$ref" in schema:
        return _rule(named[schema["$ref"].removeprefix("#/$defs/")], named)
    if "anyOf" in schema:  # of different types, so that a value's type says which of them it has to fit
        rules = [_rule(one, named) for one in schema["anyOf"]]
        by_kind = {kind: check for rule in rules for kind, check in rule.by_kind.items()}
        return Rule(by_kind, " or ".join(rule.called for rule in rules))
    if "const" in schema or "enum" in schema:
        return _one_of(schema.get("enum") or [schema["const"]])
    names = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    by_kind = {kind: _further(kind, schema, named) for name in names for kind in _KINDS[name]}
    return Rule(by_kind, " or ".join(map(_called, names)))


def _further(kind: type, schema: Mapping[str, Any], named: Mapping[str, Any]) -> _Check | None:
    if kind is list:
        return _array(schema, named)
    if kind is dict:
        return _object(schema, named)
    if kind is str:
        return _string(schema)
    return _bounds(schema) if kind in (int, float) else None


def _called(name: str) -> str:
    return {"null": "null", "array": "a list", "object": "an object", "integer": "a whole number"}.get(
        name, f"a {name}"
    )


def _one_of(values: list[Any]) -> Rule:
    called = ("one of " if len(values) > 1 else "") + ", ".join(map(repr, values))

    def check(value: Any) -> _Problem | None:
        return None if value in values else _Problem("", f"must be {called}; got {short(value)}")

    return Rule(dict.fromkeys(map(type, values), check), called)


def _bounds(schema: Mapping[str, Any]) -> _Check | None:
    above, least, most = (schema.get(name) for name in ("exclusiveMinimum", "minimum", "maximum"))
    low = least if least is not None else -math.inf if above is None else math.nextafter(above, math.inf)
    high = math.inf if most is None else most
    called = f"more than {above}" if above is not None else f"at least {least}"

    def check(value: Any) -> _Problem | None:
        if low <= value <= high:  # NaN is not
            return None
        return _Problem("", f"must be {called if value < low else f'at most {most}'}; got {short(value)}")

    return check


def _string(schema: Mapping[str, Any]) -> _Check:
    wanted: str = schema.get("pattern", "")
    if wanted.endswith("$"):  # Python's lets a line break pass
        wanted = wanted[:-1] + r"\Z"
    pattern = re.compile(wanted, re.DOTALL)
    names = re.fullmatch(r"\^\(([\w|]+)\)\$", schema.get("pattern", ""))  # of some words one
    asked = f"be one of {names[1].replace('|', ', ')}" if names else f"match {schema.get('pattern')}"

    def check(value: Any) -> _Problem | None:
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                return _Problem("", f"holds half of a surrogate pair, which is no character: {short(value)}")
        if not pattern.search(value):
            return _Problem("", f"must {asked}; got {short(value)}")
        return None

    return check


def _array(schema: Mapping[str, Any], named: Mapping[str, Any]) -> _Check:
    least, most = schema.get("minItems", 0), schema.get("maxItems", sys.maxsize)
    each = _rule(schema["items"], named)

    def check(value: Any) -> _Problem | None:
        if not least <= len(value) <= most:
            wanted = f"{least}" if least == most else f"at least {least}"
            return _Problem("", f"must hold {wanted} entries; it holds {len(value)}")
        for i, entry in enumerate(value):
            if (problem := each(entry)) is not None:
                return _Problem(f"[{i}]{problem.place}", problem.what)
        return None

    return check


def _object(schema: Mapping[str, Any], named: Mapping[str, Any]) -> _Check:
    required = schema.get("required", [])
    known = {name: _rule(one, named) for name, one in schema.get("properties", {}).items()}
    others = schema.get("additionalProperties")
    other = _rule(others, named) if isinstance(others, dict) else None
    name_of = _string({})

    def check(value: Any) -> _Problem | None:
        for name in required:
            if name not in value:
                return _Problem("", f"lacks {name!r}")
        for name, entry in value.items():
            if type(name) is not str or name_of(name) is not None:
                return _Problem("", f"has a field of the name {short(name)}, which is no text")
            its = known.get(name, other)
            if its is not None and (problem := its(entry)) is not None:
                return _Problem(f".{_spelt(name)}{problem.place}", problem.what)
        return None

    return check


def _spelt(name: str) -> str:
    return name if name.isidentifier() and len(name) < 64 else short(name)
