"""The settings and origins of a page's outputs, as what it takes to compute them again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from enum import Enum
from typing import Any

from torch import Tensor

from fastshap.models.provenance import Provenance
from fastshap.output.record import Record
from fastshap.output.render.markup import marked
from fastshap.output.visible import printable
from fastshap.tasks import usual_task
from fastshap.types import name_of_task
from fastshap.types.baselines import BaselineSet
from fastshap.types.grouping import OwnGroups

_COMBINATIONS = 20  # that a page lists


class Recipes:
    """The combinations of settings met on a page, as many as it lists: the calls, by what they were used with."""

    def __init__(self) -> None:
        self.met: dict[tuple[tuple[str, str], ...], list[str]] = {}
        self.more = False
        self.failed = False

    def add(self, record: Record) -> None:
        if record.error is not None:
            self.failed = True
            return
        origin, call = tuple(_origin(record.provenance)), _call(record)
        if call in self.met.get(origin, ()):
            return
        if sum(map(len, self.met.values())) < _COMBINATIONS:
            self.met.setdefault(origin, []).append(call)
        else:
            self.more = True

    def html(self) -> Iterator[str]:
        if not self.met:
            return
        yield '<details class="g" open><summary>Settings that reproduce these numbers</summary>'
        for origin, calls in self.met.items():
            yield from (f"<pre><code>{marked(call)}</code></pre>" for call in calls)
            rows = (f"<dt>{name}</dt><dd><bdi>{marked(value)}</bdi></dd>" for name, value in origin)
            yield f"<dl>{''.join(rows)}</dl>" if origin else ""
        if self.more:
            yield f"<p>There are more: these are the first {_COMBINATIONS}.</p>"
        if self.failed:
            yield "<p>Texts that cannot be explained need on_error=&quot;record&quot; too.</p>"
        yield "</details>"


def _call(record: Record) -> str:
    """The Python that makes an explainer of these settings: what differs from the defaults is named."""
    used = record.settings.changes()
    remarks = {name: _remark(value) for name, value in used.items()}
    arguments = [f"{name}={name if remarks[name] else _literal(value)}" for name, value in used.items()]
    task = name_of_task(record.model_task)
    if record.provenance.model_class and task not in ("score", usual_task(record.provenance.model_class)):
        arguments.append(f"task={json.dumps(task)}")
    if record.convergence_delta is not None:
        arguments.append("return_convergence_delta=True")
    lines = [f"fastshap.GradientShap({', '.join(['model', 'tokenizer', *arguments])})"]
    return "\n".join([*lines, *(f"# {name}: {remark}" for name, remark in remarks.items() if remark)])


def _literal(value: Any) -> str:
    if isinstance(value, Enum):
        return json.dumps(value.name.lower())
    if isinstance(value, OwnGroups):
        return repr([*value.given]) if isinstance(value.given, tuple) else ""
    return json.dumps(value) if isinstance(value, str) else repr(value)


def _remark(value: Any) -> str:
    """What a value is that cannot be written out; nothing for those that can."""
    if isinstance(value, BaselineSet):
        what = f"{len(value)} texts" if value.shape is None else f"embeddings of shape {value.shape}"
        return f"a fastshap.BaselineSet of {what}, fingerprint {value.fingerprint}"
    if isinstance(value, Tensor):
        digest = hashlib.sha256(value.detach().cpu().double().numpy().tobytes()).hexdigest()
        return f"a tensor of shape {tuple(value.shape)}, SHA-256 in float64 {digest[:16]}"
    if isinstance(value, OwnGroups):
        given: Any = value.given
        return "" if isinstance(given, tuple) else printable(f"your own {getattr(given, '__name__', given)}")
    if callable(value) and not isinstance(value, Enum):
        return printable(f"your own {getattr(value, '__name__', type(value).__name__)}")  # on one line: it is a comment
    return ""


def _origin(provenance: Provenance) -> Iterator[tuple[str, str]]:
    """What the settings were used with, as names and values; nothing of what is not known."""
    its = provenance
    rows = {
        "model": [its.model, its.model_class],
        "weights": [its.model_fingerprint],
        "tokenizer": [its.tokenizer_class, its.tokenizer_fingerprint],
        "computed in": [its.dtype, its.attention and f"{its.attention} attention", its.device],
        "versions": [f"{name} {version}" for name, version in its.versions.items()],
    }
    for name, values in rows.items():
        if known := ", ".join(filter(None, values)):
            yield name, known
