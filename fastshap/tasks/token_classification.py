"""Token classification: targets are entities, or other words, with a label."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from fastshap.errors import InvalidArgumentError, InvalidTypeError
from fastshap.tasks.base import Prepared, Shown
from fastshap.tasks.classes import is_number
from fastshap.tasks.places import PlacesTask, Target, or_contrast
from fastshap.text.encode import Encoded
from fastshap.text.groups import members_of, span
from fastshap.text.spans import span_in, tokens_at
from fastshap.types import Granularity, InferenceModes

_OUTSIDE = "O"  # the label of words that are no entity
_BEGINS, _ENDS = "BUS", "LEUS"  # what the letter before a label says of a word: B-PER, I-PER, …


class TokenClassificationTask(PlacesTask):
    """``*ForTokenClassification``: logits (R, L, classes). A word has the label of its first token.

    What is explained of an entity is the mean of its words' scores, each for its label.
    """

    name = "token_classification"
    class_endings = ("ForTokenClassification",)
    auto_class = "AutoModelForTokenClassification"
    explains = "models that classify tokens (*ForTokenClassification)"
    shown = Shown(targets="entity")
    takes_words = True

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        mode = self.inference_mode
        if len(self._labels) == 1 and mode in (InferenceModes.SOFTMAX, InferenceModes.LOG_SOFTMAX):
            raise InvalidArgumentError(
                f"inference_mode={mode.name} of a single label is constant, so every score would be zero; use LOGITS for a "
                "model with one label."
            )

    @property
    def _labels(self) -> list[str]:
        config: Any = self.model.config
        return [str(config.id2label.get(i, i)) for i in range(config.num_labels)]

    def predicted(self, encoded: Encoded, logits: Tensor) -> list[Target]:
        """Runs of words that the model gives labels of one kind."""
        labels, words = self._labels, members_of(encoded, Granularity.TOKENIZER_WORD)
        entities: list[tuple[list[list[int]], list[int]]] = []
        before, ended = _OUTSIDE, True
        for word, best in zip(words, logits[[word[0] for word in words]].argmax(-1).tolist(), strict=True):
            letter, kind = _parts(labels[best])
            if kind != _OUTSIDE and (kind != before or ended or letter in [*_BEGINS]):
                entities.append(([word], [best]))
            elif kind != _OUTSIDE:
                entities[-1][0].append(word)
                entities[-1][1].append(best)
            before, ended = kind, letter in [*_ENDS]
        if not entities:
            raise InvalidArgumentError(
                f"The model finds no entity in this text: the label of every word is {_OUTSIDE}. To explain a label that it "
                "did not choose, give targets, a list for each text, such as [[('Paris', 'LOC')]]."
            )
        return [self._target(encoded, *one, logits) for one in entities]

    def asked_for(self, encoded: Encoded, given: Sequence[Any], logits: Tensor) -> list[Target]:
        return [or_contrast(one, partial(self._at, encoded, logits)) for one in given]

    def _at(self, encoded: Encoded, logits: Tensor, given: Any) -> Target:
        """What a place, or a place and a label, names."""
        labelled = isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], str)
        if isinstance(given, str) and given not in encoded.text:
            given = self._spelled(given)  # as outputs name their targets
            labelled = isinstance(given, tuple)
        where, label = given if labelled else (given, None)
        words = _words_at(encoded, where)
        classes = [*range(logits.shape[-1])] if label is None else self._classes(label)
        best = logits[[word[0] for word in words]][:, classes].argmax(-1)
        return self._target(encoded, words, [classes[i] for i in best.tolist()], logits)

    def _classes(self, label: str) -> list[int]:
        """That of a label; of a kind of entity, those of all its labels."""
        labels = self._labels
        if label in labels:
            return [labels.index(label)]
        found = [i for i, one in enumerate(labels) if _parts(one)[1] == label]
        if not found:
            raise InvalidArgumentError(f"The model has no label {label!r}; its labels are {', '.join(labels[:30])}.")
        return found

    def _target(self, encoded: Encoded, words: Sequence[list[int]], classes: list[int], logits: Tensor) -> Target:
        """``classes``: a label for each word."""
        kinds = dict.fromkeys(_parts(self._labels[one])[1] for one in classes)
        tokens = [place for word in words for place in word]
        start, end = span(encoded, tokens)
        name = f"{'/'.join(kinds)}: {encoded.text[start:end] or encoded.tokens[tokens[0]]}"
        places = [word[0] for word in words]
        probability = float(logits[places].softmax(-1)[range(len(words)), classes].mean())
        return Target(name, places, classes, [1 / len(words)] * len(words), probability)

    def again(self, saved: Prepared, kept: Mapping[str, Tensor]) -> Prepared:
        if int(saved.targets.max()) >= len(self._labels):
            raise InvalidArgumentError(
                f"The output explains label {int(saved.targets.max())}, and this model has {len(self._labels)} labels."
            )
        return saved

    def spelled_targets(self, words: Sequence[str | int] | None, count: int) -> Any:
        """Strings of the text, with a label before them if the model is not to choose it: "LOC: Paris"."""
        return [[self._spelled(word) for word in words]] * count if words else None

    def _spelled(self, word: str | int) -> Any:
        label, colon, where = word.partition(": ") if isinstance(word, str) else ("", "", "")
        known = {*self._labels, *(_parts(one)[1] for one in self._labels)}
        return (where, label) if colon and label in known else word


def _parts(label: str) -> tuple[str, str]:
    """What a label says of the word's place in an entity, "" if it says nothing, and the kind of entity."""
    found = re.fullmatch(r"([BILUES])-(.+)", label)
    return (found[1], found[2]) if found else ("", label)


def _words_at(encoded: Encoded, where: Any) -> list[list[int]]:
    """The words at a place, each as its tokens. A number is a token's; of words already split, a word's."""
    if is_number(where):
        place = operator.index(where)
        if encoded.split:
            return [_word_at(encoded, place)]
        if not 0 <= place < len(encoded):
            raise InvalidArgumentError(f"The text has {len(encoded)} tokens, counted from 0, and none at {place}.")
        return [[place]]
    if not isinstance(where, str | tuple):
        raise InvalidTypeError(
            "Targets of a text are None (the predicted entities) or a list. In it stands a string of the text, the characters "
            "(start, end), the place of a token (of words already split, that of a word), or a tuple of one of these and a "
            f"label, such as ('Paris', 'LOC'); got {where!r}."
        )
    inside = {*tokens_at(encoded, span_in(encoded.text, where))}
    words = [word for word in members_of(encoded, Granularity.TOKENIZER_WORD) if inside.intersection(word)]
    if not words:
        raise InvalidArgumentError(f"No token of the text stands at {where!r}; the model does not read that part.")
    return words


def _word_at(encoded: Encoded, number: int) -> list[int]:
    """The tokens of a word that came already split."""
    found = [i for i, word in enumerate(encoded.words) if word == number]
    if not found:
        there = [word for word in encoded.words if word is not None]
        raise InvalidArgumentError(
            f"The model reads the words {min(there)} to {max(there)}, counted from 0, and none is {number}."
        )
    return found
