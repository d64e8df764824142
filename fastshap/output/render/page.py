"""Results as one HTML page that fetches nothing and runs no script: shades, tooltips and switches are CSS."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import repeat
from typing import Any, NamedTuple, TextIO

from fastshap.output.record import Record
from fastshap.output.render import style, wording
from fastshap.output.render.markup import marked, plain
from fastshap.output.render.parts import parts_of
from fastshap.output.render.settings import Recipes
from fastshap.output.visible import named
from fastshap.tasks import shown

_MAY_BE_ZERO = "; may be zero (95 % interval)"


def fragment(record: Record, name: str) -> str:
    """One output with its style, to stand within another page: a notebook's, say.

    Args:
        name: what no other output of that page is called; its switch between targets goes by it.
    """
    return f'<div class="fastshap"><style>{style.style(style.ARTICLE)}</style>{article(record, name)}</div>'


def article(record: Record, name: str, caption: str | None = None) -> str:
    """One output without its style."""
    return "".join(_output(record, name, caption, uncertain=False))


def write_page(
    records: Iterable[Record | tuple[Any, Record]],
    file: TextIO,
    title: str = "fastshap",
    captions: Iterable[str | None] | None = None,
    uncertain: bool = False,
) -> None:
    """Writes a page of any number of outputs, one after the other as they come.

    Args:
        records: outputs, or pairs of an id and an output; an id takes the place of the output's number.
        file: open for text, in UTF-8.
        captions: a line above each output; where there is none, the predicted class, if it is known.
        uncertain: begin with all elements in colour; the page's own switches stay.
    """
    file.write(style.head(title))
    settings = Recipes()
    pairs = zip(records, repeat(None)) if captions is None else zip(records, captions, strict=True)
    for i, (entry, caption) in enumerate(pairs, 1):
        identity, record = entry if isinstance(entry, tuple) else (None, entry)
        settings.add(record)
        file.writelines(_output(record, f"t{i}", caption, identity, uncertain=uncertain))
        file.write("\n")
    file.writelines(settings.html())
    file.write(style.END)


def with_minus(value: float, form: str) -> str:
    return f"{value + 0.0:{form}}".replace("-", "−")  # adding zero makes -0.0 positive


class Stretch(NamedTuple):
    """A part of the text: an element's, or what stands between two."""

    text: str
    element: int | None = None
    chip: bool = False  # an element without characters of its own


def stretches_of(record: Record) -> list[Stretch]:
    """The text in reading order; where it is not known where the elements stand, they are the text."""
    text, spans = record.text, record.element_spans
    if not text or len(spans) != len(record.elements):
        text, spans = " ".join(record.elements), []
        for element in record.elements:
            start = spans[-1][1] + 1 if spans else 0
            spans.append((start, start + len(element)))
    stretches, at = [], 0
    for i, (element, (start, end)) in enumerate(zip(record.elements, spans, strict=True)):
        start = max(start, at)
        if not text[start:end]:
            stretches.append(Stretch(element, i, chip=True))
            continue
        # White space that a tokenizer counts to its word is not coloured, unless there is nothing else.
        bare = text[start:end].strip() or text[start:end]
        first = text.index(bare, start)
        stretches += [Stretch(text[at:first]), Stretch(bare, i)]
        at = first + len(bare)
    return [*stretches, Stretch(text[at:])]


def _output(record: Record, name: str, caption: str | None, identity: Any = None, *, uncertain: bool) -> Iterator[str]:
    """One output, a target at a time."""
    if identity is None:
        yield f'<article id="{plain(name)}">'
    else:
        yield f'<article id="{plain(name)}" class="i"><p class="q" dir="auto">{marked(str(identity))}</p>'
    yield _caption(record, caption)
    if record.error is not None:
        yield f'<p class="e">not explained: {marked(record.error)}</p>'
    stretches = stretches_of(record)
    names = [named(target) for target in record.target_names]
    toggle, label = "", ""
    if any(any(wording.uncertain(record, t)) for t in range(len(names))):
        toggle, label = colour_switch(name, wording.unit_name(record), uncertain)
    yield toggle
    if not names:
        yield _sentence(marked(record.text)) if record.text.strip() else ""
    elif len(names) == 1:
        yield view(record, 0, stretches, names[0], alone=True)
    else:
        yield from _switch(record, name, stretches, names)
    yield f"{label}</article>"


def colour_switch(name: str, unit: str, on: bool) -> tuple[str, str]:
    """What colours elements that may be zero, and its label. The first stands before these elements, the second behind them."""
    one, checked = f"{plain(name)}-all", " checked" if on else ""
    toggle = f'<input type="checkbox" class="a" id="{one}"{checked}>'
    return toggle, f'<label class="l" for="{one}">Colour all {unit}s, also those whose score may be noise</label>'


def _switch(record: Record, name: str, stretches: list[Stretch], names: list[str]) -> Iterator[str]:
    """The targets, one of which is shown: at first the predicted one, where it is among them."""
    what = shown(record.model_task).targets
    first = record.target_names.index(record.predicted_label) if record.predicted_label in record.target_names else 0
    yield f'<div class="t" role="radiogroup" aria-label="{what}"><span class="q">{what}</span>'
    for t, target in enumerate(names):
        one, checked = f"{plain(name)}-{t}", " checked" if t == first else ""
        known = wording.probability(record, t)
        also = "" if known is None else f' <span class="b">{known:.3f}</span>'
        yield (
            f'<input type="radio" name="{plain(name)}" id="{one}"{checked}>'
            f'<label for="{one}"><bdi>{marked(target)}</bdi>{also}</label><div class="v">'
        )
        yield view(record, t, stretches, target)
        yield "</div>"
    yield "</div>"


def _caption(record: Record, caption: str | None) -> str:
    if caption is not None:
        return f'<p class="h" dir="auto">{marked(caption)}</p>'
    if record.predicted_label is None or record.probability is None:
        return ""
    label = f"<bdi>{marked(named(record.predicted_label))}</bdi>"
    return f'<p class="h">predicted {label}, probability {record.probability:.3f}</p>'


def _sentence(content: str) -> str:
    return f'<p class="s" lang="" dir="auto">{content}</p>'


def view(
    record: Record,
    t: int,
    stretches: list[Stretch],
    target: str,
    largest: float | None = None,
    *,
    alone: bool = False,
) -> str:
    """The text and its legend for one target.

    Args:
        largest: the score of full colour; by default the target's own largest.
        alone: nothing beside it says how probable the target is.
    """
    scores, unsure = record.attributions[t].tolist(), wording.uncertain(record, t)
    errors = record.standard_error[t].tolist() if record.standard_error.numel() else [math.nan] * len(scores)
    if largest is None:
        largest = wording.largest_of(scores)
    own = next((i for i, score in enumerate(scores) if math.isnan(score)), -1)  # what a target sees ends before itself
    signed = record.reduction == "sum"
    content = []
    for name, part in _told_apart(record, stretches):
        content.append(f'<p class="q">{plain(name)}</p>' if name else "")
        shown = []
        for text, i, chip in part:
            if i is None:
                shown.append(marked(text))
            elif math.isnan(scores[i]):
                shown.append(_hidden(text, chip, i == own))
            else:
                exact = _exact(scores[i], errors[i], signed) + (_MAY_BE_ZERO if unsure[i] else "")
                shown.append(_element(text, chip, _step(scores[i], largest) + (" y" if unsure[i] else ""), exact))
        content.append(_sentence("".join(shown)))
    legend = f"<span>{_scale(largest, target, signed)}</span> <span>{_notes(record, t, alone)}</span>"
    return f'{"".join(content)}<p class="k">{legend}</p>'


def _told_apart(record: Record, stretches: list[Stretch]) -> Iterator[tuple[str, list[Stretch]]]:
    """The parts of a text, each with its name; one without a name where there is nothing to tell apart."""
    parts = parts_of(record)
    if not parts:
        yield "", stretches
        return
    stretches = list(stretches)
    places = {one.element: at for at, one in enumerate(stretches) if one.element is not None}
    starts, rests = [0], []
    for part in parts[1:]:
        first = places[part.first]
        # What stands between two parts: a line's end, and the rest of a text that was cut.
        between = next(at for at in (first - 1, *range(first, len(stretches))) if stretches[at].element is None)
        rest, _, beginning = stretches[between].text.rpartition("\n")
        stretches[between] = Stretch(beginning)
        starts.append(min(first, between))
        rests.append([Stretch(rest)])
    for part, start, end, rest in zip(parts, starts, [*starts[1:], None], [*rests, []], strict=True):
        yield part.name, stretches[start:end] + rest


def _step(score: float, largest: float) -> str:
    """The class of a score's shade: its share of the largest."""
    step = round(style.STEPS * abs(wording.share(score, largest)))
    return f"{'p' if score > 0 else 'n'}{step}" if step else ""


def _exact(score: float, error: float, signed: bool) -> str:
    shown = with_minus(score, "+.6g" if signed else ".6g")
    return shown if math.isnan(error) else f"{shown} ± {with_minus(error, '.3g')}"


def _element(text: str, chip: bool, step: str, exact: str) -> str:
    step = step.strip()
    if chip:
        kind = f"c {step}" if step else "c"
        label = plain(named(text))
        return f'<span class="{kind}" tabindex="0" role="img" aria-label="{label}" aria-description="{exact}"></span>'
    kind = f' class="{step}"' if step else ""
    return f'<span{kind} tabindex="0" aria-description="{exact}">{_visible(text)}</span>'


def _hidden(text: str, chip: bool, own: bool) -> str:
    """An element that the target could not see."""
    kind = "own" if own else "f"
    if chip:
        return f'<span class="c {kind}" role="img" aria-label="{plain(named(text))}"></span>'
    return f'<span class="{kind}">{_visible(text)}</span>'


def _visible(text: str) -> str:
    """An element's text; one of line breaks alone gets a sign that can be coloured and pointed at."""
    return ('<i class="u" data-u="↵"></i>' if "\n" in text and text.isspace() else "") + marked(text)


def _scale(largest: float, target: str, signed: bool) -> str:
    most, name = with_minus(largest, ".3g"), f"<bdi>{marked(target)}</bdi>"
    if not signed:
        return f'0 <i class="p"></i> {most} larger weighs more for {name}'
    return f'opposes −{most} <i class="n"></i><i class="p"></i> +{most} supports {name}'


def _notes(record: Record, t: int, alone: bool) -> str:
    """What one score stands for and how it was drawn."""
    notes = [
        f"explains the {wording.explained(record)}",
        f"one score per {wording.unit(record)}",
        *wording.drawn(record),
    ]
    notes += (note.replace("-", "−") for note in wording.remainders(record, t, "+.3g"))
    notes += filter(None, [wording.reliability(record, t)])
    known = wording.probability(record, t)
    if alone and known is not None and record.target_names[t] != record.predicted_label:
        notes.append(f"probability of this target {known:.3f}")
    notes += filter(None, [wording.sequences(record)])
    if record.truncated:
        notes.append("the text was cut to what the model takes")
    if any(wording.uncertain(record, t)):
        notes.append(wording.of_uncertain(record))
    faint = ""
    if bool(record.attributions[t].isnan().any()):
        faint = '; <span class="f">faint</span>: what the framed word could not see'
    return marked("; ".join(notes)) + faint
