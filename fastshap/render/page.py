"""Results as one HTML page that fetches nothing and runs no script: shades, tooltips and switches are CSS."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import fields
from enum import Enum
from html import escape
from itertools import repeat
from typing import Any, NamedTuple, TextIO

from torch import Tensor

from fastshap.provenance import Provenance
from fastshap.record import Record
from fastshap.types import Granularity, GranularityAggregationStrategy, ModelTask

_STEPS = 8  # shades of either side
_COMBINATIONS = 20  # of settings that a page lists

# Blue and orange: told apart by people who do not tell red from green.
_LIGHT = {
    "paper": "#ffffff",
    "for": "#2166de",
    "against": "#d6600a",
    "ink": "#1a1c1f",
    "quiet": "#5f646b",
    "faint": "#767b82",
    "line": "#d9dce0",
}
_DARK = {
    "paper": "#181a1e",
    "for": "#5c98ff",
    "against": "#ec8a34",
    "ink": "#e8eaed",
    "quiet": "#a3a8af",
    "faint": "#868b93",
    "line": "#3c4047",
}

# & is an element of class fastshap. Nothing outside is touched, and what a notebook says of paragraphs, labels and the like
# is undone inside. Where browsers can, a tooltip stands at its word and stays in the text; elsewhere at the line's beginning.
_STYLE = """
& {
    all: initial; display: block; box-sizing: border-box; color-scheme: light dark;
    background: var(--paper); color: var(--ink);
    font: 16px/1.5 system-ui, sans-serif; direction: ltr; print-color-adjust: exact; -webkit-print-color-adjust: exact;
}
& * { all: revert; box-sizing: border-box }
& p { margin: 0; overflow-wrap: anywhere }
& article { position: relative; padding: 1.4em 0; break-inside: avoid }
& .h { margin-bottom: .5em; font-weight: 600 }
& .e { margin-bottom: .5em; color: var(--quiet) }
& .s { font-size: 1.125em; line-height: 2.1; white-space: pre-wrap }
& .s > [tabindex] {
    padding: .1em 0; border-radius: .2em .2em 0 0; background-clip: padding-box;
    box-decoration-break: clone; -webkit-box-decoration-break: clone;
}
@media print { & [tabindex] { outline: none } }
@media screen {
    & .t > :focus-visible + label { outline: 2px solid var(--for); outline-offset: 2px }
    & .s > [tabindex]:is(:hover, :focus-visible) { outline: 2px solid var(--ink); outline-offset: 1px; cursor: default }
    & .s > [tabindex]:is(:hover, :focus-visible)::after {
        content: attr(aria-description); content: attr(aria-description) / "";
        position: absolute; left: 0; z-index: 1; width: max-content; max-width: 100%; margin-top: 2.8em; padding: .25em .6em;
        border-radius: .3em; background: var(--ink); color: var(--paper); font: 500 13px/1.4 system-ui, sans-serif;
        font-variant-numeric: tabular-nums; direction: ltr; pointer-events: none;
    }
    @supports (position-area: bottom) {
        & .s > [tabindex]:is(:hover, :focus-visible) { anchor-name: --fastshap; anchor-scope: --fastshap }
        & .s > [tabindex]:is(:hover, :focus-visible)::after {
            left: auto; margin: 5px 0; position-anchor: --fastshap; position-area: bottom;
        }
    }
}
& .s > .c {
    display: inline-block; max-width: 100%; margin: 0 .2em; padding: 0 .4em; border: 1px solid var(--line);
    border-radius: .3em; font-size: .72em; line-height: 1.5; white-space: normal; vertical-align: .1em;
}
& .c::before { content: attr(aria-label) }
& .f { color: var(--faint) }
& .own { outline: 1.5px solid var(--quiet); outline-offset: 1px; border-radius: .2em }
& .u { display: inline-block; font-size: 0; font-style: normal; white-space: nowrap }
& .u::before {
    content: attr(data-u); padding: 0 .2em; border: 1px solid var(--quiet); border-radius: 2px;
    background: var(--paper); color: var(--quiet); font: 600 10px/1.3 ui-monospace, monospace;
}
& .k {
    display: flex; flex-wrap: wrap; gap: .1em 1.6em; margin-top: .5em;
    color: var(--quiet); font-size: .8125em; font-variant-numeric: tabular-nums;
}
& .k > * { min-width: 0 }
& .k > :first-child { color: var(--ink) }
& .k > span > i { display: inline-block; width: 4.5em; height: .9em; vertical-align: -.1em }
& .k .n { background: linear-gradient(to left, var(--paper), var(--against)); border-bottom: 2px dashed var(--against) }
& .k .p { background: linear-gradient(to right, var(--paper), var(--for)); border-bottom: 2px solid var(--for) }
& .t { display: flex; flex-wrap: wrap; align-items: baseline }
& .t > input { width: 0; height: 0; margin: 0; opacity: 0 }
& .t > label {
    max-width: 100%; margin: 0 .35em .35em 0; padding: .1em .7em; border: 1px solid var(--line); border-radius: 1em;
    font-size: .9em; overflow-wrap: anywhere; cursor: pointer;
}
& .t > label:hover { border-color: var(--ink) }
& .t > :checked + label { border-color: var(--ink); background: var(--ink); color: var(--paper) }
& .t > .v { display: none; order: 1; flex: 0 0 100%; min-width: 0; margin-top: .4em }
& .t > :checked + label + .v { display: block }
& .q { margin-right: .7em; color: var(--quiet); font-size: .8125em }
@media (forced-colors: active) { & .t > :checked + label { outline: 2px solid Highlight } }
"""
_PAGE_STYLE = """
:root { color-scheme: light dark }
body { margin: 0 }
&.page { min-height: 100vh; padding: 2.5em 1.25em 5em }
& main { display: block; max-width: 44em; margin: 0 auto; counter-reset: text }
& h1 { margin: 0 0 .4em; font-size: 1.4em; font-weight: 600; line-height: 1.3; overflow-wrap: anywhere }
& article { counter-increment: text }
& article + article { border-top: 1px solid var(--line) }
& article:not(:only-of-type)::before { content: counter(text); color: var(--quiet); font-size: .8125em }
& .g { margin-top: 1.4em; padding-top: 1.4em; border-top: 1px solid var(--line); font-size: .8125em }
& .g summary { font-weight: 600; cursor: pointer }
& .g pre { margin: 1em 0 .6em; font: 1em/1.5 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere }
& .g dl {
    display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .1em 1em; margin: 0;
    color: var(--quiet); overflow-wrap: anywhere;
}
& .g dd { margin: 0 }
& .g p { margin-top: 1em }
@media (min-width: 56em), print {
    & article:not(:only-of-type)::before { position: absolute; right: 100%; margin: .25em 1em 0 0 }
}
@media print { &.page { min-height: 0; padding: 0 0 0 2.5em } }
"""

# Characters that are not seen, or that reorder what is: controls, formats and fillers, but for the joiners U+200C and U+200D,
# which many scripts are spelt with, the signs of Arabic and its kin that enclose digits, and a line's end.
_INVISIBLE = re.compile(
    "[\x01-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\u3164\ufeff\uffa0\ufff0-\ufffb\U00013430-\U0001345f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
    "|\r(?!\n)"
)
# What HTML or UTF-8 cannot hold.
_IMPOSSIBLE = re.compile("[\0\ud800-\udfff]")


def fragment(record: Record, name: str) -> str:
    """One output with its style, to stand within another page: a notebook's, say.

    Args:
        name: what no other output of that page is called; its switch between targets goes by it.
    """
    return f'<div class="fastshap"><style>{_style(_STYLE)}</style>{"".join(_output(record, name, None))}</div>'


def write_page(
    records: Iterable[Record],
    file: TextIO,
    title: str = "fastshap",
    captions: Iterable[str | None] | None = None,
) -> None:
    """Writes a page of any number of outputs, one after the other as they come.

    Args:
        file: open for text, in UTF-8.
        captions: a line above each output; where there is none, the predicted class, if it is known.
    """
    file.write(_head(title))
    settings = _Settings()
    pairs = zip(records, repeat(None)) if captions is None else zip(records, captions, strict=True)
    for i, (record, caption) in enumerate(pairs, 1):
        settings.add(record)
        file.writelines(_output(record, f"t{i}", caption))
        file.write("\n")
    file.writelines(settings.html())
    file.write("</main></body></html>\n")


def _head(title: str) -> str:
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{_plain(title)}</title><style>{_style(_STYLE + _PAGE_STYLE)}</style></head>\n"
        f'<body class="fastshap page"><main><h1 dir="auto">{_text(title)}</h1>\n'
    )


def _style(rules: str) -> str:
    """The rules with the colours of light and dark, without needless white space."""
    dark = f"@media screen and (prefers-color-scheme: dark) {{ {_colours(_DARK)} }}"
    # An id that no element has makes the rules weigh more than a notebook's own.
    whole = f"{rules}{_colours(_LIGHT)}{dark}".replace("&", ".fastshap:not(#_)")
    return re.sub(r"\s*([{};])\s*|: |\s+", lambda found: found[1] or found[0].strip() or " ", whole)


def _colours(palette: dict[str, str]) -> str:
    """Shades from paper to full colour; what speaks for the target is underlined, what speaks against it dashed.

    The text is black or white, whichever stands out.
    """
    rules = ["& {", *(f"--{name}: {colour};" for name, colour in palette.items()), "}"]
    paper = bytes.fromhex(palette["paper"][1:])
    for side, name, line in (("p", "for", "solid"), ("n", "against", "dashed")):
        end = bytes.fromhex(palette[name][1:])
        for step in range(1, _STEPS + 1):
            shade = bytes(round(p + (e - p) * step / _STEPS) for p, e in zip(paper, end, strict=True))
            ink = "#000" if _luminance(shade) > 0.18 else "#fff"
            look = f"background-color: #{shade.hex()}; color: {ink}; border-bottom: 2px {line} var(--{name})"
            rules.append(f"& .s > .{side}{step} {{ {look} }}")
    return " ".join(rules)


def _luminance(colour: bytes) -> float:
    """Relative, as the contrast guidelines WCAG 2 define it; black and white stand out alike at 0.18."""
    linear = [c / 3294.6 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def _possible(text: str) -> str:
    return _IMPOSSIBLE.sub("\ufffd", text)


def _text(text: str) -> str:
    """Text as HTML of the same textContent; what is not seen stands in a box with its code, cut off from the rest."""
    marked = _INVISIBLE.sub(
        lambda found: f'<i class="u" data-u="U+{ord(found[0]):04X}">{found[0]}</i>', escape(_possible(text))
    )
    return marked.replace("\r", "&#13;")


def _plain(text: str) -> str:
    """Text for an attribute or a title, where what is not seen is spelt out."""
    return escape(_INVISIBLE.sub(lambda found: f"[U+{ord(found[0]):04X}]", _possible(text)))


def _named(text: str) -> str:
    """A name without white space around it, as there is no running text that it stands in."""
    return text.strip() or repr(text)


def _number(value: float, form: str) -> str:
    return f"{value + 0.0:{form}}".replace("-", "−")  # adding zero makes -0.0 positive


class _Piece(NamedTuple):
    """A part of the text: an element's, or what stands between two."""

    text: str
    element: int | None = None
    chip: bool = False  # an element without characters of its own


def _pieces(record: Record) -> list[_Piece]:
    """The text in reading order; where it is not known where the elements stand, they are the text."""
    text, spans = record.text, record.element_spans
    if not text or len(spans) != len(record.elements):
        text, spans = " ".join(record.elements), []
        for element in record.elements:
            start = spans[-1][1] + 1 if spans else 0
            spans.append((start, start + len(element)))
    pieces, at = [], 0
    for i, (element, (start, end)) in enumerate(zip(record.elements, spans, strict=True)):
        start = max(start, at)
        if not text[start:end]:
            pieces.append(_Piece(element, i, chip=True))
            continue
        # White space that a tokenizer counts to its word is not coloured, unless there is nothing else.
        bare = text[start:end].strip() or text[start:end]
        first = text.index(bare, start)
        pieces += [_Piece(text[at:first]), _Piece(bare, i)]
        at = first + len(bare)
    return [*pieces, _Piece(text[at:])]


def _output(record: Record, name: str, caption: str | None) -> Iterator[str]:
    """One output, a target at a time."""
    yield f'<article id="{_plain(name)}">{_caption(record, caption)}'
    if record.error is not None:
        yield f'<p class="e">not explained: {_text(record.error)}</p>'
    pieces = _pieces(record)
    names = [_named(target) for target in record.target_names]
    if not names:
        yield _sentence(_text(record.text)) if record.text.strip() else ""
    elif len(names) == 1:
        yield _view(record, 0, pieces, names[0])
    else:
        generates = record.model_task is ModelTask.GENERATION
        what = "generated" if generates else "target"
        yield f'<div class="t" role="radiogroup" aria-label="{what}"><span class="q">{what}</span>'
        for t, target in enumerate(names):
            one, checked = f"{_plain(name)}-{t}", " checked" if t == 0 else ""
            yield (
                f'<input type="radio" name="{_plain(name)}" id="{one}"{checked}>'
                f'<label for="{one}" dir="auto">{_text(target)}</label><div class="v">'
            )
            yield _view(record, t, pieces, target)
            yield "</div>"
        yield "</div>"
    yield "</article>"


def _caption(record: Record, caption: str | None) -> str:
    if caption is not None:
        return f'<p class="h" dir="auto">{_text(caption)}</p>'
    if record.probability is None or not record.target_names:
        return ""
    label = f"<bdi>{_text(_named(record.predicted_label or record.target_names[0]))}</bdi>"
    return f'<p class="h">predicted {label}, probability {record.probability:.3f}</p>'


def _sentence(content: str) -> str:
    return f'<p class="s" lang="" dir="auto">{content}</p>'


def _view(record: Record, t: int, pieces: list[_Piece], target: str) -> str:
    """The text and its legend for one target."""
    scores = record.attributions[t].tolist()
    errors = record.standard_error[t].tolist() if record.standard_error.numel() else [math.nan] * len(scores)
    largest = max((abs(score) for score in scores if not math.isnan(score)), default=0.0)
    generates = record.model_task is ModelTask.GENERATION
    own = len(scores) - len(record.attributions) + t if generates else -1
    signed = record.reduction == "sum"
    content = []
    for text, i, chip in pieces:
        if i is None:
            content.append(_text(text))
        elif math.isnan(scores[i]):
            content.append(_hidden(text, chip, i == own))
        else:
            content.append(_element(text, chip, _step(scores[i], largest), _exact(scores[i], errors[i], signed)))
    legend = f"<span>{_scale(largest, target, signed)}</span> <span>{'; '.join(_notes(record, t))}</span>"
    return f'{_sentence("".join(content))}<p class="k">{legend}</p>'


def _step(score: float, largest: float) -> str:
    """The class of a score's shade: its share of the largest."""
    step = round(_STEPS * abs(score) / largest) if largest else 0
    return f"{'p' if score > 0 else 'n'}{step}" if step else ""


def _exact(score: float, error: float, signed: bool) -> str:
    shown = _number(score, "+.6g" if signed else ".6g")
    return shown if math.isnan(error) else f"{shown} ± {_number(error, '.3g')}"


def _element(text: str, chip: bool, step: str, exact: str) -> str:
    if chip:
        kind = f"c {step}" if step else "c"
        label = _plain(_named(text))
        return f'<span class="{kind}" tabindex="0" role="img" aria-label="{label}" aria-description="{exact}"></span>'
    kind = f' class="{step}"' if step else ""
    return f'<span{kind} tabindex="0" aria-description="{exact}">{_visible(text)}</span>'


def _hidden(text: str, chip: bool, own: bool) -> str:
    """An element that the target could not see."""
    kind = "own" if own else "f"
    if chip:
        return f'<span class="c {kind}" role="img" aria-label="{_plain(_named(text))}"></span>'
    return f'<span class="{kind}">{_visible(text)}</span>'


def _visible(text: str) -> str:
    """An element's text; one of line breaks alone gets a sign that can be coloured and pointed at."""
    return ('<i class="u" data-u="↵"></i>' if "\n" in text and text.isspace() else "") + _text(text)


def _scale(largest: float, target: str, signed: bool) -> str:
    most, name = _number(largest, ".3g"), f"<bdi>{_text(target)}</bdi>"
    if not signed:
        return f'0 <i class="p"></i> {most} larger weighs more for {name}'
    return f'against −{most} <i class="n"></i><i class="p"></i> +{most} for {name}'


def _notes(record: Record, t: int) -> Iterator[str]:
    """What one score stands for and how it was drawn."""
    unit = record.granularity.name.lower().replace("_", " ").replace("all tokens", "token")
    if record.granularity not in (Granularity.TOKEN, Granularity.ALL_TOKENS):
        unit += f" ({record.granularity_aggregation_strategy.name.lower().replace('_', ' ')} of its tokens)"
    yield f"one score a {unit}"
    yield f"{record.n_perturbations} samples" + (f" in {record.rounds} rounds" if record.rounds > 1 else "")
    if record.converged is not None:
        yield f"within rtol {record.rtol:g}" if record.converged else f"rtol {record.rtol:g} not met"
    if record.granularity_aggregation_strategy is GranularityAggregationStrategy.SUM and record.reduction == "sum":
        yield f"elsewhere {_number(float(record.unassigned[t]), '+.3g')}"
    if record.convergence_delta is not None:
        yield f"convergence delta {_number(float(record.convergence_delta[t]), '+.3g')}"
    if record.truncated:
        yield "the text was cut to what the model takes"
    if record.model_task is ModelTask.GENERATION:
        yield '<span class="f">faint</span>: what the framed word could not see'


class _Settings:
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
            yield from (f"<pre><code>{_text(call)}</code></pre>" for call in calls)
            rows = (f"<dt>{name}</dt><dd><bdi>{_text(value)}</bdi></dd>" for name, value in origin)
            yield f"<dl>{''.join(rows)}</dl>" if origin else ""
        if self.more:
            yield f"<p>There are more: these are the first {_COMBINATIONS}.</p>"
        if self.failed:
            yield "<p>Texts that cannot be explained need on_error=&quot;record&quot; too.</p>"
        yield "</details>"


_DEFAULTS = {field.name: field.default for field in fields(Record)}
_NAMED = (
    *("granularity", "granularity_aggregation_strategy", "inference_mode", "input_x_gradient", "n_perturbations"),
    *("baseline", "noise_std", "reduction", "sampling", "path_density", "seed", "rtol", "max_perturbations"),
    "perturb_special_tokens",
)


def _call(record: Record) -> str:
    """The Python that makes an explainer of these settings: what differs from the defaults is named."""
    used = {name: getattr(record, name) for name in _NAMED}
    used["n_perturbations"] //= record.rounds
    if used["max_perturbations"] == 64 * used["n_perturbations"]:
        used["max_perturbations"] = None
    if isinstance(used["baseline"], int | float) and used["baseline"] == 0:
        used["baseline"] = None
    remarks = {name: _remark(value) for name, value in used.items()}
    arguments = [
        f"{name}={name if remarks[name] else _literal(value)}"
        for name, value in used.items()
        if remarks[name] or value != _DEFAULTS[name]
    ]
    if record.convergence_delta is not None:
        arguments.append("return_convergence_delta=True")
    lines = [f"fastshap.GradientShap({', '.join(['model', 'tokenizer', *arguments])})"]
    return "\n".join([*lines, *(f"# {name}: {remark}" for name, remark in remarks.items() if remark)])


def _literal(value: Any) -> str:
    if isinstance(value, Enum):
        return json.dumps(value.name.lower())
    return json.dumps(value) if isinstance(value, str) else repr(value)


def _remark(value: Any) -> str:
    """What a value is that cannot be written out; nothing for those that can."""
    if isinstance(value, Tensor):
        digest = hashlib.sha256(value.detach().cpu().double().numpy().tobytes()).hexdigest()
        return f"a tensor of shape {tuple(value.shape)}, SHA-256 in float64 {digest[:16]}"
    if callable(value) and not isinstance(value, Enum):
        return f"your own {getattr(value, '__name__', type(value).__name__)}"
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
