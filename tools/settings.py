"""Writes the copies of what fastshap/settings/__init__.py states. Run ``python -m tools.settings`` after a change there.

The copies serve those who read without running the code: the annotations for type checkers, the schema's file, and a table in
the docs.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from enum import Enum
from pathlib import Path
from typing import Any

import fastshap
from fastshap.output.plain import SCHEMA_PATH, schema
from fastshap.settings import DEFAULTS, PARAMETERS, Settings

ROOT = Path(__file__).parents[1]
_BEGIN, _END = "Written by tools/settings.py.", "End."
# Types of the explainer's own parameters, for type checkers.
_OWN = {
    "model": "PreTrainedModel | Pipeline",
    "tokenizer": "PreTrainedTokenizerBase | None",
    "batch_size": "int | str",
    "device": "torch.device | str | Sequence[torch.device | str] | None",
    "task": "str | type[Task] | None",
    "return_convergence_delta": "bool",
    "on_error": "str",
    "backend": "str",
    "cuda_graphs": "bool",
}
_TYPES = {one.name: str(one.type) for one in dataclasses.fields(Settings)}
_TAKEN = {
    "baseline": "Tensor | float | str | BaselineSet | None",
    "granularity": "Granularity | str | Sequence[tuple[int, int]] | Callable[[str], Any]",
    "score": "Callable[[Any, Any], Tensor] | str | None",
    "span": "bool | Sequence[tuple[int, int]]",
    "path_density": "float | Sequence[float] | str | None",
}  # what may be passed, if that is more than what is kept


def _literal(value: Any) -> str:
    if isinstance(value, Enum):
        return f"{type(value).__name__}.{value.name}"
    return json.dumps(value) if isinstance(value, str) else repr(value)


def attributes() -> str:
    """The attributes of objects that have settings."""
    return "".join(f"        {name}: {_TYPES[name]}\n" for name in PARAMETERS)


def signature() -> str:
    """The explainer's signature."""
    lines = []
    parameters = inspect.signature(fastshap.GradientShap).parameters
    starred = False
    for name, its in parameters.items():
        if its.kind is inspect.Parameter.KEYWORD_ONLY and not starred:
            starred = True
            lines.append("*")
        kind = _OWN.get(name) or _TAKEN.get(name) or _TYPES[name]
        if _TYPES.get(name, "").startswith(("Granularity", "Callable")):
            kind += "" if " | str" in kind else " | str"
        default = "" if its.default is inspect.Parameter.empty else f" = {_literal(its.default)}"
        lines.append(f"{name}: {kind}{default}")
    inside = "".join(f"            {line},\n" for line in lines)
    return f"        def __init__(\n            self,\n{inside}        ) -> None: ...\n"


def table() -> str:
    """The table in the docs."""
    rows = "".join(f"| `{name}` | {_shown(DEFAULTS[name])} | {its.help} |\n" for name, its in PARAMETERS.items())
    return f"\n| parameter | default | what it does |\n| --- | --- | --- |\n{rows}\n"


def _shown(value: Any) -> str:
    return value.name if isinstance(value, Enum) else f"`{value!r}`"


def between(text: str, block: str, begin: str, end: str) -> str:
    """``text``, with ``block`` put between two marks."""
    pattern = re.compile(rf"(^[^\n]*{re.escape(begin)}[^\n]*\n).*?(^[^\n]*{re.escape(end)}[^\n]*\n)", re.M | re.S)
    if len(pattern.findall(text)) != 1:
        raise ValueError(f"the text must hold {begin!r} and {end!r} once each")
    return pattern.sub(lambda found: found[1] + block + found[2], text)


def copies() -> dict[Path, str]:
    """Each file that holds a copy, as it should be."""
    blocks = {
        "fastshap/settings/__init__.py": attributes(),
        "fastshap/explainer.py": signature(),
        "docs/parameters.md": table(),
    }
    found = {ROOT / name: between((ROOT / name).read_text(), block, _BEGIN, _END) for name, block in blocks.items()}
    of_settings = schema()["properties"]["settings"]["properties"]
    inside = ",\n".join(f'        "{name}": {_json(its)}' for name, its in of_settings.items())
    return found | {SCHEMA_PATH: _with_properties(SCHEMA_PATH.read_text(), inside)}


def _json(value: Any) -> str:
    line = json.dumps(value)
    return line if len(line) < 100 else json.dumps(value, indent=2).replace("\n", "\n        ")


def _with_properties(text: str, inside: str) -> str:
    """The schema's file with new properties of its settings. The rest keeps its layout."""
    start = text.index('"properties": {', text.index('    "settings": {\n')) + len('"properties": {')
    end = text.index('\n      }\n    },\n    "provenance"', start)
    return f"{text[:start]}\n{inside}{text[end:]}"


if __name__ == "__main__":
    for path, text in copies().items():
        path.write_text(text)
