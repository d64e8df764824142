"""Texts with scores of their elements, from outputs of ours or from any method, as the measures take them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from fastshap.engine.packing import Item
from fastshap.errors import FastshapError, InvalidArgumentError, InvalidTypeError
from fastshap.metrics.measures import Skip
from fastshap.output.inputs import saved_in
from fastshap.output.record import Record
from fastshap.sampling import text_key
from fastshap.tasks import Prepared
from fastshap.tasks.tokens import unknown
from fastshap.text.encode import Encoded, as_bytes
from fastshap.text.groups import Grouping, members_of
from fastshap.text.inputs import sources
from fastshap.types import GranularityAggregationStrategy, name_of_task
from fastshap.types.grouping import OwnGroups

if TYPE_CHECKING:
    from fastshap.explainer import GradientShap

NOT_EXPLAINED = "not explained: its output has an error"
TOO_FEW = "fewer than two elements"
NOT_FINITE = "a score of an element is NaN or infinite"
TOO_LONG = "too long for the model, so that words are lost"
_PIECES = "Ġ▁"  # what marks the beginning of a word in tokens


class Scored(NamedTuple):
    """Scores of a text's words, from any method. A tuple ``(text, words, scores)`` does as well.

    Attributes:
        text: what was explained.
        words: all words, or other parts of the text, in their order. Special tokens are left out.
        scores: (G,), or (t, G) for several targets.
        target: as an explainer takes it: a class, or a list of classes; None is the predicted class. For a language model the
            text that follows.
    """

    text: Any
    words: Sequence[str]
    scores: Any
    target: Any = None


@dataclass(frozen=True, eq=False)
class Explained:
    """A text, the tokens of the G elements that may be replaced, and their scores for t targets.

    Attributes:
        encoded: its tokens.
        item: its row as it is.
        members: the tokens of each element.
        scores: (t, G) float64.
        mode: the score that was explained, where that is known.
    """

    encoded: Encoded
    item: Item
    members: list[list[int]]
    scores: np.ndarray
    mode: Any = None

    @cached_property
    def key(self) -> bytes:
        """What decides the scores of the text and its targets, and so of its rows."""
        item = self.item
        joined = None if item.joined is None else item.joined.numpy().tobytes()
        return as_bytes(self.encoded.key(item.positions), item.targets.tolist(), joined)

    @cached_property
    def draws(self) -> tuple[int, int]:
        """Numbers that depend on the text alone."""
        return text_key(0, self.item.input_ids)

    @cached_property
    def belongs(self) -> np.ndarray:
        """(G, L) bool: which tokens an element has."""
        table = np.zeros((len(self.members), len(self.encoded)), np.bool_)
        for row, member in zip(table, self.members, strict=True):
            row[member] = True
        return table

    def is_sum(self, target: int) -> bool:
        """Whether a target's score is no difference of several."""
        return self.item.joined is None or bool((self.item.joined[target] >= 0).all())

    def weight(self, target: int) -> float:
        """What a target's score is divided by to be a mean of several; 1 for one score, and for a difference."""
        return float(self.item.joined[target].sum()) if self.item.joined is not None and self.is_sum(target) else 1.0

    def alike(self, other: Explained) -> bool:
        """Whether the two can be compared: the same text, targets and elements."""
        return self.key == other.key and self.members == other.members


Found = Explained | Skip


def explained(outputs: Any, explainer: GradientShap) -> list[Found]:
    """Outputs and texts with scores, as the measures take them; where one has to be skipped, the reason.

    The model is at work (see fastshap.metrics.rows).

    Raises:
        InvalidArgumentError, InvalidTypeError: some entry is no text with scores, is of another task, or does not fit its text.
    """
    entries = listed(outputs)
    found: dict[int, Found] = {}
    plain: dict[int, Scored] = {}
    for place, entry in enumerate(entries):
        if isinstance(entry, Record):
            found[place] = _named(place, _of_output, entry, explainer)
        else:
            plain[place] = _named(place, scored, entry)
    for place, one in zip(plain, _prepared([*plain.values()], explainer), strict=True):
        found[place] = _named(place, _of_plain, plain[place], one, explainer)
    return [found[place] for place in range(len(entries))]


def listed(outputs: Any) -> list[Any]:
    """The entries of one set of outputs."""
    if isinstance(outputs, Record | Scored | str) or not isinstance(outputs, Iterable):
        raise InvalidTypeError(
            f"Pass a list of outputs, or of (text, words, scores), one for each text; got {type(outputs).__name__}."
        )
    entries = list(outputs)
    if not entries:
        raise InvalidArgumentError("The list of outputs is empty; there is nothing to measure.")
    return entries


def scored(entry: Any) -> Scored:
    """A text with words and scores."""
    if not (isinstance(entry, tuple) and 3 <= len(entry) <= 4):
        raise InvalidTypeError(
            f"An entry is an AttributionOutput, or (text, words, scores) or (text, words, scores, target); got "
            f"{type(entry).__name__}."
        )
    its = Scored(*entry)
    values = its.scores.detach().double().cpu().numpy() if isinstance(its.scores, torch.Tensor) else its.scores
    try:
        scores = np.array(values, np.float64)
    except (TypeError, ValueError):
        scores = np.zeros(())
    if scores.ndim not in (1, 2):
        raise InvalidTypeError("scores are numbers (G,), or (t, G) for several targets.")
    words = list(its.words)
    if scores.shape[-1] != len(words):
        raise InvalidArgumentError(
            f"There are {len(words)} words and {scores.shape[-1]} scores; give one for each word."
        )
    if any(not isinstance(word, str) for word in words):
        raise InvalidTypeError("words are strings.")
    return its._replace(words=words, scores=np.atleast_2d(scores))


def located(text: str, words: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Where each word stands in the text, one after the other. Marks of sub-words are no part of them.

    Raises:
        InvalidArgumentError: they are not the words of this text.
    """
    spans: list[tuple[int, int]] = []
    at, same = 0, text.lower() if len(text.lower()) == len(text) else text
    for number, word in enumerate(words):
        bare = word.strip()
        forms = [one for one in dict.fromkeys((bare, bare.removeprefix("##"), bare.lstrip(_PIECES))) if one]
        start = at
        while True:
            form = next((one for one in forms if text.startswith(one, start) or same.startswith(one, start)), None)
            if form is not None or start >= len(text) or text[start].isalnum():
                break
            start += 1
        if form is None:
            raise InvalidArgumentError(
                f"The words do not match the text: word {number}, {word!r}, is not what follows at character {at}, "
                f"{text[at : at + 30]!r}. Pass all words of the text in their order, without special tokens."
            )
        at = start + len(form)
        spans.append((start, at))
    if any(character.isalnum() for character in text[at:]):
        raise InvalidArgumentError(
            f"The words do not match the text: they end before {text[at : at + 30]!r}. Pass all words of the text."
        )
    return tuple(spans)


def _named(place: int, read: Any, *arguments: Any) -> Any:
    """What ``read`` returns; its error names the entry."""
    try:
        return read(*arguments)
    except Skip as skip:
        return skip
    except (InvalidArgumentError, InvalidTypeError) as error:
        known = type(error)(f"Entry {place}: {error}")
        known.text_index = place
        raise known from None


def _of_output(output: Record, explainer: GradientShap) -> Explained:
    task = explainer.task
    if (name := name_of_task(output.model_task)) != task.name:
        raise InvalidArgumentError(f"The output explains a {name}, and this model does {task.name}.")
    if output.error is not None:
        raise Skip(NOT_EXPLAINED)
    if "input_ids" not in output.model_inputs_to_explain:
        raise InvalidArgumentError("The output holds no tokens: a job of an earlier version did not store them.")
    if (problem := unknown(task, output.model_inputs_to_explain["input_ids"][0].tolist())) is not None:
        raise problem
    prepared = task.again(*saved_in(output))
    its = output.granularity_aggregation_strategy
    linear = GranularityAggregationStrategy.SUM, GranularityAggregationStrategy.MEAN
    groups = Grouping(
        prepared.encoded,
        output.granularity,
        its if its in linear else GranularityAggregationStrategy.MEAN,
        joins=True,
        given=(output.element_tokens, output.elements),
        scope=prepared.scope,
    )
    return _checked(prepared, output.element_tokens, output.attributions, groups.joined, output.inference_mode)


def _prepared(plain: Sequence[Scored], explainer: GradientShap) -> list[Prepared | FastshapError]:
    """Texts with their targets."""
    if not plain:
        return []
    task, wanted = explainer.task, [one.target for one in plain]
    missing = all(one is None for one in wanted)
    if task.writes_targets and any(one is None for one in wanted):
        raise InvalidArgumentError("Name the text that follows as each entry's target: (text, words, scores, target).")
    targets = None if missing else task.split_targets(wanted, len(plain))
    tokenised = task.tokenised(list(sources([one.text for one in plain])), targets, {})
    explainer._try_model(task.readable(tokenised))
    return task.prepare(tokenised, targets, explainer._predict, {}, lambda: None)


def _of_plain(its: Scored, prepared: Prepared | FastshapError, explainer: GradientShap) -> Explained:
    if isinstance(prepared, FastshapError):
        raise Skip(f"refused: {prepared}")
    encoded, own, joined = prepared.encoded, prepared.scope.own, prepared.scope.joined
    text = its.text if isinstance(its.text, str) else encoded.text
    spans = located(text, its.words)
    if encoded.truncated:
        raise Skip(TOO_LONG)
    try:
        members = members_of(encoded, OwnGroups(spans)) if spans else []
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"The words do not match the model's tokens. {error}") from None
    targets = len(prepared.targets) if joined is None else len(joined)
    if own is not None and len(its.scores) == 1:
        joined = torch.full((1, targets), 1 / targets, device="cpu")
        targets = 1
    if len(its.scores) != targets:
        raise InvalidArgumentError(
            f"The scores have {len(its.scores)} rows, and the text has {targets} targets; name as many targets as there are "
            "rows of scores."
        )
    return _checked(prepared, members, its.scores, joined, None)


def _checked(
    prepared: Prepared, members: list[list[int]], scores: Any, joined: torch.Tensor | None, mode: Any
) -> Explained:
    """Of the elements those that may be replaced: what stands before the first score's place, and is no target itself."""
    positions, own = prepared.scope.positions, set(prepared.scope.own or ())
    last = len(prepared.encoded) if positions is None else int(positions.min())
    free = [g for g, member in enumerate(members) if max(member) <= last and not own.intersection(member)]
    values = np.asarray(scores, np.float64)[:, free]
    if len(free) < 2:
        raise Skip(TOO_FEW)
    if not np.isfinite(values).all():
        raise Skip(NOT_FINITE)
    return Explained(prepared.encoded, prepared.item(joined), [members[g] for g in free], values, mode)
